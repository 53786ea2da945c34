//! What can go wrong with disks.

use std::io;
use std::path::PathBuf;

/// A disk that cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No such file.
    #[error("disk {}: there is no such file; check the path", .0.display())]
    Missing(PathBuf),
    /// The host user may not open the file.
    #[error(
        "disk {}: permission denied for {access}; give this user access to the file{hint}",
        .path.display()
    )]
    Permission {
        /// The file.
        path: PathBuf,
        /// `reading` or `reading and writing`.
        access: &'static str,
        /// Another way out, or nothing.
        hint: &'static str,
    },
    /// A directory, socket, pipe or character device.
    #[error("disk {}: this is a {kind}; a disk is a regular file or a block device", .path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Nothing in it.
    #[error(
        "disk {}: the file is empty; give it a size first (truncate -s 10G FILE)",
        .0.display()
    )]
    Empty(PathBuf),
    /// A part of a sector at the end.
    #[error(
        "disk {}: its size of {size} bytes is not a multiple of {block}; if it is a raw image, \
         make it whole (truncate -s %{block} FILE)",
        .path.display()
    )]
    PartialSector {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The block size in bytes.
        block: u32,
    },
    /// Another process or another disk of this machine has it open.
    #[error(
        "disk {}: already in use{}; stop the machine that uses it, or open it \
         read-only everywhere",
        .path.display(), if *.for_writing { " (it can be written by one machine only)" } else { " for writing" }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Whether it was to be opened for writing.
        for_writing: bool,
    },
    /// An image that cannot be used as it is.
    #[error("disk {}: {reason}", .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A qcow2 image with a backing file whose format nobody told.
    #[error(
        "disk {}: it looks like a qcow2 image that builds on another file of this host. If you \
         made it, say format=qcow2; if a guest could write it as a raw disk, say format=raw",
        .0.display()
    )]
    Untold(PathBuf),
    /// A raw disk that has come to look like a qcow2 image.
    #[error(
        "disk {}: it was a raw disk when it was first used, and now begins as a qcow2 image does: \
         its guest may have written that. Say format=raw, or format=qcow2 if you replaced it",
        .0.display()
    )]
    Ambiguous(PathBuf),
    /// A file would be replaced.
    #[error("{}: there is such a file already; give another name, or say that it may be replaced", .0.display())]
    Exists(PathBuf),
    /// A backing file is its own.
    #[error("disk {}: it builds on itself; give one of the images another backing file", .0.display())]
    Loop(PathBuf),
    /// A chain of too many backing files.
    #[error(
        "disk {}: it builds on more than {} files; join some with holm disk commit or convert",
        .0.display(), crate::MAX_LAYERS - 1
    )]
    TooDeep(PathBuf),
    /// A file below an image cannot be used.
    #[error("disk {}: a file it builds on: {source}", .path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// What is wrong below it.
        source: Box<DiskError>,
    },
    /// The user's other choices do not fit.
    #[error("{0}")]
    Unfit(String),
    /// A serial number that the guest could not see whole.
    #[error("disk serial {0:?}: at most 20 printable ASCII characters are possible")]
    Serial(String),
    /// A logical block size other than 512 or 4096.
    #[error("disk block size {0}: only 512 and 4096 bytes are possible")]
    BlockSize(u32),
    /// Direct I/O was demanded and the file system refuses it.
    #[error(
        "disk {}: this file system cannot do direct I/O (O_DIRECT); allow the page cache instead",
        .0.display()
    )]
    NoDirect(PathBuf),
    /// io_uring was demanded and the host refuses it.
    #[error("io_uring cannot be used here: {0}; use the thread pool instead")]
    NoUring(String),
    /// Any other failure of the host to open it.
    #[error("disk {}: cannot {doing}: {source}", .path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// It cannot become larger, or not so.
    #[error("the disk ({disk}) cannot grow: {why}")]
    Grow {
        /// Its file or format.
        disk: String,
        /// Why not.
        why: String,
    },
    /// No resources for a queue.
    #[error("cannot set up disk I/O ({what}): {source}")]
    Queue {
        /// What was being set up.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// Why one operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The host's error number (ENOSPC, EIO …).
    #[error("host error: {}", io::Error::from_raw_os_error(*.0))]
    Host(i32),
    /// Beyond the end of the disk, or not a whole number of blocks.
    #[error("the range is not on the disk, or is not made of whole blocks")]
    Range,
    /// A write to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The buffer is not in RAM, or in too many parts.
    #[error("the buffer is not in guest memory, or in too many parts")]
    Memory,
    /// The disk cannot do this.
    #[error("not supported by the disk")]
    Unsupported,
    /// A write that would make a raw disk look like an image of another
    /// format, where nobody said that it is raw.
    #[error(
        "the write would make the raw disk look like a qcow2 image; attach it with format=raw to \
         allow that"
    )]
    Guarded,
}
