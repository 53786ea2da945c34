//! Waking a thread that waits, cheaply when it is awake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const WOKEN: u32 = 2;

/// Ends the sleep of one thread; while it is awake, makes its next sleep
/// return at once, and costs one atomic exchange.
pub(super) struct Waker {
    state: AtomicU32,
    event: OwnedFd,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: AtomicU32::new(AWAKE),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub(super) fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::SeqCst) == ASLEEP {
            // Only a counter at its limit makes this fail, and then the
            // thread is woken already.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Announces sleep; `false` (and awake) if a wake came first.
    pub(super) fn try_sleep(&self) -> bool {
        let slept = self
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok();
        if !slept {
            self.state.store(AWAKE, Ordering::SeqCst);
        }
        slept
    }

    /// After sleep; `readable`: as its descriptor was then.
    pub(super) fn awake(&self, readable: bool) {
        self.state.swap(AWAKE, Ordering::SeqCst);
        if readable {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.event, &mut count);
        }
    }

    /// Readable after a wake of a sleeping thread.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
