//! What happened to a machine, of which its owner should know.

use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Most events that are kept; older ones are forgotten.
const KEPT: usize = 256;

/// Something that happened in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestEvent {
    /// Its kernel panicked and stands, or is about to reset (pvpanic).
    Panicked,
    /// Its kernel panicked and its crash kernel runs (pvpanic).
    CrashLoaded,
    /// It did not ping its watchdog in time.
    WatchdogExpired,
    /// It was reset and started again.
    Rebooted,
    /// The host could not do a request to a disk. The machine was paused; when
    /// it is resumed, the request is tried again.
    DiskStopped,
    /// The host could not do a request to a disk, and the guest got an error.
    DiskFailed,
}

/// A [`GuestEvent`] and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// On the host's clock.
    pub at: SystemTime,
    /// What.
    pub event: GuestEvent,
}

/// Told of each event, on the machine's supervisor thread.
pub type Listener = Box<dyn Fn(GuestEvent) + Send>;

/// The events of one machine.
#[derive(Default)]
pub(crate) struct Events {
    kept: Mutex<Vec<Happened>>,
    listener: Mutex<Option<Listener>>,
}

impl Events {
    pub fn record(&self, event: GuestEvent) {
        tracing::info!(?event, "guest event");
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        let at = SystemTime::now();
        kept.push(Happened { at, event });
        drop(kept);
        if let Some(listener) = &*self.listener.lock() {
            listener(event);
        }
    }

    pub fn list(&self) -> Vec<Happened> {
        self.kept.lock().clone()
    }

    pub fn listen(&self, listener: Listener) {
        *self.listener.lock() = Some(listener);
    }
}
