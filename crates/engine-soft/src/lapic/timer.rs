//! One thread that fires the timers of all local APICs of a machine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::lapic::Lapic;

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// An instant as nanoseconds since the process's epoch.
pub(crate) fn to_ns(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(epoch()).as_nanos()).unwrap_or(NEVER - 1)
}

/// The reverse of [`to_ns`].
pub(crate) fn from_ns(ns: u64) -> Instant {
    epoch() + Duration::from_nanos(ns)
}

/// What the timer thread waits for.
pub struct Wheel {
    lapics: Mutex<Vec<Weak<Lapic>>>,
    /// What the thread sleeps until; [`NEVER`] while it looks around, so that
    /// whoever arms a timer then notifies it.
    next: AtomicU64,
    stop: Mutex<bool>,
    wake: Condvar,
}

impl Wheel {
    /// A wheel without a thread: timers fire when polled. For tests.
    pub fn new() -> Arc<Self> {
        epoch();
        Arc::new(Self {
            lapics: Mutex::new(Vec::new()),
            next: AtomicU64::new(NEVER),
            stop: Mutex::new(false),
            wake: Condvar::new(),
        })
    }

    pub(crate) fn add(&self, lapic: &Arc<Lapic>) {
        self.lapics.lock().push(Arc::downgrade(lapic));
    }

    /// A deadline was stored in an APIC: the thread must wake by then. Not to
    /// be called with an APIC's lock held.
    pub(crate) fn arm(&self, deadline: u64) {
        if deadline < self.next.load(Ordering::SeqCst) {
            drop(self.stop.lock());
            self.wake.notify_one();
        }
    }

    fn run(&self) {
        let mut stop = self.stop.lock();
        while !*stop {
            self.next.store(NEVER, Ordering::SeqCst);
            let lapics: Vec<Arc<Lapic>> = self
                .lapics
                .lock()
                .iter()
                .filter_map(Weak::upgrade)
                .collect();
            let mut first = NEVER;
            let now = to_ns(Instant::now());
            let mut due = Vec::new();
            for l in lapics {
                let at = l.deadline_ns();
                if at <= now {
                    due.push(l);
                } else {
                    first = first.min(at);
                }
            }
            if !due.is_empty() {
                // `next` stays NEVER: deadlines stored meanwhile are seen in
                // the next round.
                parking_lot::MutexGuard::unlocked(&mut stop, || {
                    for l in due {
                        l.poll_timer(Instant::now());
                    }
                });
                continue;
            }
            self.next.store(first, Ordering::SeqCst);
            if first == NEVER {
                self.wake.wait(&mut stop);
            } else {
                self.wake.wait_until(&mut stop, from_ns(first));
            }
        }
    }
}

/// The thread; ends when dropped.
pub struct TimerThread {
    wheel: Arc<Wheel>,
    thread: Option<JoinHandle<()>>,
}

impl TimerThread {
    /// Starts it.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let wheel = Wheel::new();
        let mine = wheel.clone();
        let thread = std::thread::Builder::new()
            .name("lapic-timer".into())
            .spawn(move || {
                // SAFETY: takes two integers; failure leaves the default
                // slack of 50 µs.
                unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
                mine.run();
            })?;
        Ok(Self {
            wheel,
            thread: Some(thread),
        })
    }

    /// To give to the local APICs.
    pub fn wheel(&self) -> Arc<Wheel> {
        self.wheel.clone()
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        *self.wheel.stop.lock() = true;
        self.wheel.wake.notify_all();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}
