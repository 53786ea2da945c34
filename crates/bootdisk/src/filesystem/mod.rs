//! File systems that kernels are read from: ext2 to ext4, FAT and XFS.
//!
//! The readers are crates of others (`ext4-view`, `fatfs`, `lamxfs`). They
//! are trusted with nothing: see [`crate::isolated`].

mod ext;
mod fat;
mod links;
mod xfs;

use std::io;

use crate::read::Window;

pub use fat::is_fat;

/// Most names of a directory that are looked at.
pub const MOST_NAMES: usize = 4096;
/// Longest path that is looked up, in bytes.
const LONGEST_PATH: usize = 4096;

/// Why a file or file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// There is no such file.
    #[error("there is no {0}")]
    NotFound(String),
    /// A file was wanted and there is a directory, or the other way round.
    #[error("{0} is of another type than expected")]
    WrongType(String),
    /// A file is larger than anything of its kind.
    #[error("{path} has more than {limit} bytes")]
    TooLarge {
        /// The file.
        path: String,
        /// Most bytes.
        limit: u64,
    },
    /// The file system is damaged, or its reader does not understand it.
    #[error("the {kind} file system cannot be read: {reason}")]
    Damaged {
        /// `ext4`, for instance.
        kind: &'static str,
        /// The reader's words.
        reason: String,
    },
    /// A file system that is known by name only.
    #[error("{0} is not read by Holm")]
    Unsupported(&'static str),
    /// Where the file's bytes went could not take them.
    #[error("passing a file on: {0}")]
    Output(#[from] io::Error),
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of so many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A device, a pipe, a socket.
    Other,
}

/// Takes the pieces of a file in order.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// A file system, for reading. Paths are absolute, `/` between their parts;
/// symbolic links are followed within the file system.
pub trait FileSystem {
    /// `ext4`, `vfat`, `xfs`.
    fn kind(&self) -> &'static str;

    /// As `blkid` prints it; empty if there is none.
    fn uuid(&self) -> String;

    /// May be empty.
    fn label(&self) -> String;

    /// What a path leads to.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::Damaged`].
    fn stat(&self, path: &str) -> Result<Kind, FsError>;

    /// The names in a directory, without `.` and `..`, at most [`MOST_NAMES`].
    /// Names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// As [`Self::stat`], and [`FsError::WrongType`].
    fn names(&self, path: &str) -> Result<Vec<String>, FsError>;

    /// Passes a file of at most `limit` bytes on; its size.
    ///
    /// # Errors
    /// As [`Self::names`], and [`FsError::TooLarge`].
    fn copy(&self, path: &str, limit: u64, to: Sink<'_>) -> Result<u64, FsError>;

    /// The content of a small file.
    ///
    /// # Errors
    /// As [`Self::copy`].
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FsError> {
        let mut content = Vec::new();
        self.copy(path, limit, &mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }

    /// Bytes from the middle of a file; short at its end.
    ///
    /// # Errors
    /// As [`Self::names`].
    fn read_part(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, FsError>;
}

/// Opens the file system of a partition.
///
/// # Errors
/// [`FsError::Unsupported`], [`FsError::Damaged`]; `None`: there is none that
/// is known.
pub fn open(part: &Window) -> Option<Result<Box<dyn FileSystem>, FsError>> {
    Some(match signature(part)? {
        "ext4" => ext::open(part.clone()),
        "vfat" => fat::open(part.clone()),
        "xfs" => xfs::open(part.clone()),
        other => Err(FsError::Unsupported(other)),
    })
}

/// What a partition holds, by its signature.
pub fn signature(part: &Window) -> Option<&'static str> {
    let sign = |offset: u64, what: &[u8]| {
        part.bytes(offset, what.len())
            .is_ok_and(|found| found == what)
    };
    let known: [(u64, &[u8], &'static str); 11] = [
        (0, b"XFSB", "xfs"),
        (0, b"LUKS\xba\xbe", "LUKS encryption"),
        (0x438, &[0x53, 0xef], "ext4"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (0x218, b"LVM2 001", "LVM"),
        (0x8001, b"CD001", "iso9660"),
        (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcachefs"),
        (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
        (3, b"NTFS    ", "NTFS"),
        (3, b"EXFAT   ", "exFAT"),
        (0, b"hsqs", "squashfs"),
    ];
    let found = known.iter().find(|(at, what, _)| sign(*at, what));
    let first = || part.bytes(0, 512).unwrap_or_default();
    match found {
        Some((.., name)) => Some(name),
        None => is_fat(&first()).then_some("vfat"),
    }
}

/// A path with a slash in front and no more than one between its parts.
fn absolute(path: &str) -> Result<String, FsError> {
    if path.len() > LONGEST_PATH || path.contains('\0') {
        return Err(FsError::NotFound(path.chars().take(64).collect()));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Refuses a file of more than `limit` bytes.
fn check_size(path: &str, size: u64, limit: u64) -> Result<(), FsError> {
    if size > limit {
        return Err(FsError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(())
}
