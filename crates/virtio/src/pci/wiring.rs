//! Doorbells that ring without an exit to the device's register: where the
//! engine can, a store to a queue's doorbell signals the event of the thread
//! that serves the queue.

use std::sync::Arc;

use engine::Doorbells;
use parking_lot::Mutex;

use super::{NOTIFY, NOTIFY_STEP};
use crate::device::Doorbell;

/// The doorbells of one function.
pub(super) struct Wiring {
    engine: Option<Arc<dyn Doorbells>>,
    queues: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where the BAR is.
    bar: Option<u64>,
    bell: Option<Arc<dyn Doorbell>>,
    /// Addresses and queues that are wired to `bell`.
    wired: Vec<(u64, u16)>,
}

impl Wiring {
    pub(super) fn new(engine: Option<Arc<dyn Doorbells>>, queues: usize) -> Self {
        Self {
            engine,
            queues: u16::try_from(queues).unwrap_or(u16::MAX),
            state: Mutex::default(),
        }
    }

    /// The function's BAR is there now, or nowhere.
    pub(super) fn bar(&self, bar: Option<u64>) {
        if self.state.lock().bar != bar {
            self.change(|state| state.bar = bar);
        }
    }

    /// This doorbell counts now, or none.
    pub(super) fn bell(&self, bell: Option<Arc<dyn Doorbell>>) {
        self.change(|state| state.bell = bell);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let Some(engine) = &self.engine else {
            return;
        };
        let mut state = self.state.lock();
        state.cut(&**engine);
        change(&mut state);
        state.wire(&**engine, self.queues);
    }
}

impl State {
    fn wire(&mut self, engine: &dyn Doorbells, queues: u16) {
        let (Some(bar), Some(bell)) = (self.bar, &self.bell) else {
            return;
        };
        for queue in 0..queues {
            let Some(event) = bell.event(queue) else {
                continue;
            };
            let gpa = bar + NOTIFY + u64::from(queue) * u64::from(NOTIFY_STEP);
            match engine.attach(gpa, event) {
                Ok(()) => self.wired.push((gpa, queue)),
                // The store reaches the register as any other.
                Err(error) => tracing::debug!(%error, gpa, "a doorbell is not wired"),
            }
        }
    }

    fn cut(&mut self, engine: &dyn Doorbells) {
        for (gpa, queue) in self.wired.drain(..) {
            let event = self.bell.as_ref().and_then(|bell| bell.event(queue));
            let cut = event.map(|event| engine.detach(gpa, event));
            if let Some(Err(error)) = cut {
                tracing::warn!(%error, gpa, "a doorbell stays wired");
            }
        }
    }
}

impl Drop for Wiring {
    fn drop(&mut self) {
        self.bell(None);
    }
}
