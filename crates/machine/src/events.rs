//! What happened to a machine, of which its owner should know: kept, told to a
//! listener in this process, and to clients of the control socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use machine_protocol::{Event, EventKind, EventList};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::storage::{DiskPort, place};

/// Most events that are kept; older ones are forgotten.
const KEPT: usize = 256;
/// Most bytes of a text in an event, which may come from the host or a guest.
const TEXT_MAX: usize = 1024;

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

impl GuestEvent {
    /// As clients of the control socket are told of it.
    pub(crate) fn kind(self, disks: &[DiskPort]) -> EventKind {
        match self {
            Self::Panicked => EventKind::GuestPanicked,
            Self::CrashLoaded => EventKind::GuestCrashLoaded,
            Self::WatchdogExpired => EventKind::WatchdogExpired,
            Self::Rebooted => EventKind::Rebooted,
            Self::DiskStopped | Self::DiskFailed => {
                let failed = disks.iter().find_map(|port| Some((port, port.failure()?)));
                let (disk, message) = failed.map_or_else(
                    || ("of the machine".into(), "a request failed".into()),
                    |(port, text)| (format!("{} ({})", port.name, place(&port.disk.file)), text),
                );
                EventKind::DiskError {
                    disk,
                    message,
                    paused: self == Self::DiskStopped,
                }
            }
        }
    }
}

/// Told of each event of the guest, on the machine's supervisor thread.
pub type Listener = Box<dyn Fn(GuestEvent) + Send>;

#[derive(Default)]
struct State {
    kept: VecDeque<Event>,
    /// Number of the newest.
    last: u64,
    ended: bool,
    followers: usize,
}

/// The events of one machine.
#[derive(Default)]
pub(crate) struct Events {
    state: Mutex<State>,
    changed: Condvar,
    listener: Mutex<Option<Listener>>,
}

impl Events {
    /// Keeps what happened in the guest, and tells the listener.
    pub fn record(&self, event: GuestEvent, kind: EventKind) {
        self.note(kind);
        if let Some(listener) = &*self.listener.lock() {
            listener(event);
        }
    }

    /// Keeps what happened. Callable from anywhere: it does not wait.
    pub fn note(&self, mut kind: EventKind) {
        tracing::info!(?kind, "event");
        shorten(&mut kind);
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at = at.map_or(0, |t| t.as_millis());
        let mut s = self.state.lock();
        s.ended |= matches!(kind, EventKind::Ended { .. });
        s.last += 1;
        let event = Event {
            number: s.last,
            at_milliseconds: u64::try_from(at).unwrap_or(u64::MAX),
            kind,
        };
        if s.kept.len() >= KEPT {
            s.kept.pop_front();
        }
        s.kept.push_back(event);
        drop(s);
        self.changed.notify_all();
    }

    /// The kept events with greater numbers than `after`.
    pub fn after(&self, after: u64) -> EventList {
        Self::since(&self.state.lock(), after)
    }

    fn since(s: &State, after: u64) -> EventList {
        let forgotten = s.last - s.kept.len() as u64;
        EventList {
            missed: forgotten.saturating_sub(after),
            events: s
                .kept
                .iter()
                .filter(|e| e.number > after)
                .cloned()
                .collect(),
        }
    }

    pub fn listen(&self, listener: Listener) {
        *self.listener.lock() = Some(listener);
    }

    /// Waits until all followers have seen the end, or `patience` is over.
    pub fn drain(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut s = self.state.lock();
        while s.followers > 0 {
            if self.changed.wait_until(&mut s, end).timed_out() {
                return;
            }
        }
    }
}

/// A client that is told all events.
pub(crate) struct Follower {
    events: Arc<Events>,
    seen: u64,
}

impl Follower {
    /// Of events with greater numbers than `after`.
    pub fn new(events: Arc<Events>, after: u64) -> Self {
        events.state.lock().followers += 1;
        Self {
            events,
            seen: after,
        }
    }

    /// Those that were not seen, after at most `patience`; `None` after the end.
    pub fn next(&mut self, patience: Duration) -> Option<EventList> {
        let mut s = self.events.state.lock();
        // A number of the future is what a client of another run has.
        self.seen = self.seen.min(s.last);
        if self.seen == s.last && !s.ended {
            self.events.changed.wait_for(&mut s, patience);
        }
        if self.seen == s.last && s.ended {
            return None;
        }
        let list = Events::since(&s, self.seen);
        self.seen = s.last;
        Some(list)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.events.state.lock().followers -= 1;
        self.events.changed.notify_all();
    }
}

fn shorten(kind: &mut EventKind) {
    let cut = |text: &mut String| {
        let end = text.floor_char_boundary(TEXT_MAX);
        text.truncate(end);
    };
    match kind {
        EventKind::DiskError { disk, message, .. } => {
            cut(disk);
            cut(message);
        }
        EventKind::DeviceAttached { device } | EventKind::DeviceDetached { device } => cut(device),
        EventKind::SnapshotTaken { directory } => cut(directory),
        EventKind::Ended { outcome } => cut(outcome),
        EventKind::GuestUpdated { message } | EventKind::GuestNotUpdated { message } => {
            cut(message);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_sees_all_and_the_end_and_memory_is_bounded() {
        let events = Arc::new(Events::default());
        for _ in 0..3 * KEPT {
            events.note(EventKind::DeviceAttached {
                device: "ä".repeat(TEXT_MAX),
            });
        }
        let list = events.after(10);
        assert_eq!(list.events.len(), KEPT);
        assert_eq!(list.missed as usize, 2 * KEPT - 10);
        assert_eq!(list.events[0].number as usize, 2 * KEPT + 1);
        let mut follower = Follower::new(events.clone(), u64::MAX);
        let nothing = follower.next(Duration::ZERO).unwrap();
        assert_eq!(nothing, EventList::default());
        let noting = events.clone();
        let thread = std::thread::spawn(move || {
            noting.record(GuestEvent::Panicked, EventKind::GuestPanicked);
            noting.note(EventKind::Ended {
                outcome: "powered off".into(),
            });
            noting.drain(Duration::from_secs(60));
        });
        let mut seen = Vec::new();
        while let Some(list) = follower.next(Duration::from_secs(60)) {
            assert_eq!(list.missed, 0);
            seen.extend(list.events.into_iter().map(|e| e.kind.describe()));
        }
        assert_eq!(
            seen,
            ["the guest's kernel has panicked", "ended: powered off"]
        );
        drop(follower);
        thread.join().unwrap();
    }
}
