//! Limits of a disk: operations and bytes per second, with bursts. Shared by
//! all queues of the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::Waker;
use net::{Rate, TokenBucket};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

/// A bound on what goes through a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Operations or bytes per second on average; not 0.
    pub per_second: u64,
    /// What may go at once after a pause.
    pub burst: u64,
}

impl Limit {
    /// With the usual burst: a tenth of a second's worth, one at least.
    pub fn new(per_second: u64) -> Self {
        Self {
            per_second,
            burst: (per_second / 10).max(1),
        }
    }

    fn bucket(self, now: Instant) -> TokenBucket {
        let rate = Rate {
            bytes_per_second: self.per_second.max(1),
            burst: self.burst.max(1),
        };
        TokenBucket::new(rate, now)
    }
}

/// The limits of a disk; a read or write of any size is one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Reads, writes, discards and write-zeroes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Limit>,
    /// Bytes read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Limit>,
}

struct State {
    operations: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
    /// When the queues that wait are woken.
    wake_at: Option<Instant>,
    waiting: Vec<Arc<Waker>>,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Limits at work, with a thread that wakes the queues that wait for them.
pub(super) struct Limiter {
    shared: Arc<Shared>,
}

impl Limiter {
    /// `None` if nothing is limited.
    ///
    /// # Errors
    /// The host gives no thread.
    pub(super) fn new(limits: Limits) -> std::io::Result<Option<Arc<Self>>> {
        if limits == Limits::default() {
            return Ok(None);
        }
        let now = Instant::now();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                operations: limits.operations.map(|limit| limit.bucket(now)),
                bytes: limits.bytes.map(|limit| limit.bucket(now)),
                wake_at: None,
                waiting: Vec::new(),
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("disk-limit".into())
            .stack_size(128 * 1024)
            .spawn(move || wake_in_time(&of_thread))?;
        Ok(Some(Arc::new(Self { shared })))
    }

    /// Whether an operation of this many bytes may go now, and then it has
    /// gone; else `waker` is woken when it is worth asking again.
    pub(super) fn admit(&self, bytes: u64, waker: &Arc<Waker>) -> bool {
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        let State {
            operations,
            bytes: moved,
            ..
        } = &mut *state;
        let wait = |bucket: &mut Option<TokenBucket>| bucket.as_mut().and_then(|b| b.wait(now));
        if let Some(wait) = wait(operations).max(wait(moved)) {
            let at = now + wait.min(Duration::from_secs(60));
            state.wake_at = Some(state.wake_at.map_or(at, |before| before.min(at)));
            if !state.waiting.iter().any(|w| Arc::ptr_eq(w, waker)) {
                state.waiting.push(waker.clone());
            }
            self.shared.changed.notify_one();
            return false;
        }
        if let Some(bucket) = operations {
            bucket.spend(1, now);
        }
        if let Some(bucket) = moved {
            bucket.spend(usize::try_from(bytes).unwrap_or(usize::MAX), now);
        }
        true
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

fn wake_in_time(shared: &Shared) {
    let mut state = shared.state.lock();
    while !state.ended {
        match state.wake_at {
            None => shared.changed.wait(&mut state),
            Some(at) if Instant::now() < at => {
                shared.changed.wait_until(&mut state, at);
            }
            Some(_) => {
                state.wake_at = None;
                for waker in state.waiting.drain(..) {
                    waker.wake();
                }
            }
        }
    }
}
