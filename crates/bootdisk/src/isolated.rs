//! The survey of a disk in a process of its own.
//!
//! The parent keeps the disk and answers reads; the child (the same program,
//! started with [`ARGUMENT`]) has nothing but a socket to the parent, a memory
//! file for a kernel and its initrd, bounds on time and memory, and a filter
//! that leaves it no system call but reading, writing and memory. A disk that
//! makes its reader crash, loop or grow ends that process, and is an error.

mod child;
mod parent;
mod protocol;

pub use child::serve;
pub use parent::{Loaded, Reader, ReaderError, printable};

/// The program's first argument that makes it a reader of disks; `main` calls
/// [`serve`] then, before anything else.
pub const ARGUMENT: &str = "--read-boot-disk";
