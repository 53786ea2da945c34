//! Copies of files with holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom as Position};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// How a file was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It shares its blocks with the other until one of them is written.
    Shared,
    /// Byte by byte.
    Bytes,
}

/// Copies a file or block device to an empty file: shares the blocks where the
/// file system can, else copies what is not a hole. How, and the size.
///
/// # Errors
/// The host's; `UnexpectedEof` if the file becomes shorter meanwhile.
pub fn copy_sparse(mut source: &File, mut target: &File) -> io::Result<(Copied, u64)> {
    let size = source.seek(Position::End(0))?;
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok((Copied::Shared, size));
    }
    target.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // Block devices have no holes.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(source, SeekFrom::Hole(start)).unwrap_or(size);
        source.seek(Position::Start(start))?;
        target.seek(Position::Start(start))?;
        let copied = io::copy(&mut source.take(at - start), &mut target)?;
        if copied != at - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((Copied::Bytes, size))
}
