//! What the host's kernel offers for guest memory.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Tries to make a userfaultfd that handles faults of user space, as lazy
/// restore needs it (userfaultfd(2), UFFD_USER_MODE_ONLY).
///
/// # Errors
/// The host's refusal.
pub fn try_userfaultfd() -> io::Result<()> {
    const UFFD_USER_MODE_ONLY: libc::c_long = 1;
    let flags = libc::c_long::from(libc::O_CLOEXEC | libc::O_NONBLOCK) | UFFD_USER_MODE_ONLY;
    // SAFETY: the call takes flags only and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match RawFd::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: a descriptor just made, owned by nobody else.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}
