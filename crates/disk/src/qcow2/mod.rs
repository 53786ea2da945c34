//! qcow2 images, through `imago`; checked before it sees them, because it
//! trusts more than a hostile image deserves.

pub(crate) mod check;
pub(crate) mod header;
pub(crate) mod rebuild;
pub(crate) mod storage;
pub(crate) mod tables;
