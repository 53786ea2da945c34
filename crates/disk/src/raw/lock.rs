//! Locks that keep a disk from being written by two machines.
//!
//! A lock belongs to an open file, so it also keeps this process from using an
//! image twice, and it ends with the last use of that open file. Writes of
//! io_uring that are under way when a process is killed are such a use: they
//! end after the process. So the open file of direct I/O must have a lock too:
//! else an old write could come after the first ones of the next machine. The
//! two share the range of the lock; who locks takes all of it.
//!
//! QEMU says by single bytes of a file what it does and what it bears
//! (`block/file-posix.c`). A reader leaves those alone by which QEMU would take
//! it for a writer, so that both read a base image at once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::DiskError;

/// From here on the open file of direct I/O has the lock, if there is one.
const DIRECT: libc::off_t = 1 << 62;

/// Length of a lock that goes to the end of all files.
const TO_END: libc::off_t = 0;
/// QEMU's bytes for "I write" (in three kinds), and for "nobody else may read".
const OF_QEMU: [(libc::off_t, libc::off_t); 2] = [(101, 3), (200, 1)];

/// Locks the whole file: exclusively for writing, shared for reading.
///
/// # Errors
/// [`DiskError::InUse`], or the host's error.
pub(crate) fn lock(path: &Path, file: &File, read_only: bool) -> Result<(), DiskError> {
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    // A child that has not yet called exec has the locks of its parent, too.
    let Err(source) = retried(|| set(file, kind, 0, TO_END)) else {
        for (start, length) in OF_QEMU.iter().filter(|_| read_only) {
            if let Err(error) = set(file, libc::F_UNLCK, *start, *length) {
                tracing::debug!(%error, "QEMU will not read this disk meanwhile");
            }
        }
        return Ok(());
    };
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(DiskError::InUse {
            path: path.to_owned(),
            for_writing: !read_only,
        }),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
            tracing::warn!(
                path = %path.display(),
                "the file system cannot lock files: nothing keeps two machines from writing this disk"
            );
            Ok(())
        }
        _ => Err(DiskError::Host {
            path: path.to_owned(),
            doing: "lock it",
            source,
        }),
    }
}

/// Whether another open file has a lock, of either kind. A file system without
/// locks knows of none.
pub(crate) fn is_locked(file: &File) -> bool {
    // SAFETY: an all-zero flock is a valid value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: an open descriptor and a valid flock that outlives the call.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    asked == 0 && range.l_type != libc::F_UNLCK as libc::c_short
}

/// Gives a part of a file's exclusive lock to another open file of it.
pub(super) fn share_lock(locked: &File, other: &File) {
    let shared = set(locked, libc::F_UNLCK, DIRECT, TO_END)
        .and_then(|()| set(other, libc::F_WRLCK, DIRECT, TO_END));
    if let Err(error) = shared {
        tracing::debug!(%error, "the lock could not be shared");
    }
}

/// Sets a lock on a range.
fn set(file: &File, kind: libc::c_int, from: libc::off_t, length: libc::off_t) -> io::Result<()> {
    // SAFETY: an all-zero flock is a valid value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = from;
    range.l_len = length;
    // SAFETY: an open descriptor and a valid flock that outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tries again for two seconds while another has the lock.
fn retried(try_once: impl Fn() -> io::Result<()>) -> io::Result<()> {
    for _ in 0..200 {
        match try_once() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    try_once()
}
