//! What a disk says should be started, without firmware: partition tables,
//! file systems, and the configurations of boot loaders on them (GRUB, Boot
//! Loader Specification, unified kernel images, EXTLINUX).
//!
//! [`survey::Survey`] does the work; [`isolated`] does it in a process of its
//! own, because nothing on a disk is trusted: its reader may crash, loop or
//! run out of memory, and the monitor goes on.
//!
//! Nothing here writes to a disk.
#![forbid(unsafe_code)]

pub mod bls;
pub mod entry;
#[cfg(test)]
mod fake;
pub mod filesystem;
pub mod fuzz;
pub mod grub;
pub mod isolated;
pub mod partition;
pub mod read;
pub mod survey;
pub mod syslinux;
pub mod uki;
pub mod version;

pub use entry::{BootEntry, Found, Loader, Pieces};
pub use isolated::ReaderError;
pub use read::{Budget, Cached, ReadAt};
