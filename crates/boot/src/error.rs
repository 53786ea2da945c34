//! What can go wrong when a machine is made to start.

use std::path::PathBuf;

use crate::file::Role;

/// Why a kernel cannot be started. Every text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("cannot read the {role} {path}: {source}; check the path and its permissions")]
    Read {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// The path is a directory, a device or a pipe.
    #[error("the {role} {path} is not a regular file; give the path of a file")]
    NotAFile {
        /// What the file is for.
        role: Role,
        /// The path.
        path: PathBuf,
    },
    /// The file has no content.
    #[error("the {role} {path} is empty; fetch or build it again")]
    Empty {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot fit in the guest's memory.
    #[error(
        "the {role} {path} has {size} bytes, more than the {limit} bytes of memory below 3 GiB of this machine; give it more with --memory, or another file"
    )]
    Oversized {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        size: u64,
        /// Bytes that could fit.
        limit: u64,
    },
    /// The content is none of the known kernel formats.
    #[error(
        "{0} is not a kernel: it is neither a bzImage, an ELF kernel nor a multiboot kernel; give --kernel one of those"
    )]
    UnknownKernel(PathBuf),
    /// The kernel is of a known format, and wrong.
    #[error("the {format} {path} cannot be used: {reason}; fetch or build it again")]
    BadKernel {
        /// The format found.
        format: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The initrd's content is not what Linux could unpack.
    #[error(
        "{path} is not an initial RAM disk: it begins with none of the known archive or compression signatures, or ends too early ({reason}); make it again, for instance with update-initramfs"
    )]
    BadInitrd {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Kernel and initrd together need more memory.
    #[error(
        "the {what} needs guest memory up to {needed:#x}, and there is memory up to {available:#x}; give the machine more with --memory"
    )]
    NoRoom {
        /// What does not fit.
        what: &'static str,
        /// First address that is not needed.
        needed: u64,
        /// First address that is not there.
        available: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error(
        "the kernel command line has {len} bytes, and this kernel takes at most {max}; shorten --cmdline"
    )]
    CmdlineTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes the kernel takes.
        max: usize,
    },
    /// The command line holds a NUL byte.
    #[error("the kernel command line has a NUL character in it; remove it from --cmdline")]
    CmdlineNul,
    /// The machine's description asks for tables that do not fit their area.
    #[error("the {0} tables do not fit in their area; use fewer CPUs")]
    TablesTooLarge(&'static str),
    /// A write to guest memory failed.
    #[error("writing the {what} to guest memory: {source}")]
    Memory {
        /// What was written.
        what: &'static str,
        /// The cause.
        source: memory::MemoryError,
    },
    /// The host gives no random numbers.
    #[error("reading random numbers from the host: {0}")]
    Random(std::io::Error),
}
