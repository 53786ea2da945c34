//! Waking a thread that waits for its disk queue, cheaply when it is awake.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const WOKEN: u32 = 2;

/// Ends the [`crate::BlockQueue::wait`] of one queue. A wake while the thread
/// is awake costs one atomic exchange and makes its next wait return at once.
pub struct Waker {
    state: AtomicU32,
    event: File,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers are involved; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            state: AtomicU32::new(AWAKE),
            // SAFETY: a fresh descriptor that nobody else owns.
            event: unsafe { File::from_raw_fd(fd) },
        })
    }

    /// Wakes the waiting thread, or makes its next wait return at once.
    pub fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::SeqCst) == ASLEEP {
            // Only a counter at its limit makes this fail, and then the
            // thread is woken already.
            let _ = (&self.event).write(&1u64.to_ne_bytes());
        }
    }

    /// The event (eventfd) by which a sleeping thread is woken; signalling it
    /// is as good as [`Self::wake`].
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// The event descriptor, readable after a wake of a sleeping thread.
    pub(crate) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Announces sleep; `false` (and awake) if a wake came first.
    pub(crate) fn try_sleep(&self) -> bool {
        let slept = self
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok();
        if !slept {
            self.state.store(AWAKE, Ordering::SeqCst);
        }
        slept
    }

    /// After sleep, or on taking note of a wake.
    pub(crate) fn awake(&self) {
        self.state.swap(AWAKE, Ordering::SeqCst);
    }

    /// Clears the event.
    pub(crate) fn drain(&self) {
        let mut count = [0; 8];
        let _ = (&self.event).read(&mut count);
    }

    /// Sleeps until the event is readable.
    pub(crate) fn sleep(&self) -> io::Result<()> {
        let mut poll = libc::pollfd {
            fd: self.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&mut poll, 1, -1) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.drain();
        Ok(())
    }
}
