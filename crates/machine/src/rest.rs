//! Bringing all virtio devices to rest, in bounded time. One that waits for a
//! host that does not answer, such as a folder on a dead file server, cannot
//! be stopped: then all go on, and that one when it can.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use virtio::VirtioPci;

use crate::board::{FIRST_DISK_SLOT, FIRST_NIC_SLOT};
use crate::hotplug::PORTS;
use crate::outcome::MachineError;
use crate::peripherals::{SHARE_SLOT, VSOCK_SLOT};

/// A virtio function and its PCI place.
type Placed = (u8, Arc<VirtioPci>);

#[derive(Default)]
struct State {
    /// They are to be at rest.
    wanted: bool,
    /// Functions that are, by address.
    at_rest: BTreeSet<usize>,
    /// Functions that a thread brings to rest.
    trying: BTreeSet<usize>,
    /// The machine ends: nobody waits any longer.
    hurry: bool,
}

/// What the devices of one machine do about rest. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Rest(Arc<(Mutex<State>, Condvar)>);

impl Rest {
    /// Brings these to rest. If one does not come to it, the others go on, but
    /// with `for_good`.
    pub fn begin(
        &self,
        functions: &[Placed],
        patience: Duration,
        for_good: bool,
    ) -> Result<(), MachineError> {
        let deadline = Instant::now() + patience;
        let (state, changed) = &*self.0;
        let mut s = state.lock();
        s.wanted = true;
        for (_, function) in functions {
            let key = key(function);
            if !s.at_rest.contains(&key) && s.trying.insert(key) && !self.try_one(function) {
                s.trying.remove(&key);
            }
        }
        loop {
            let left = functions.iter().find(|(_, f)| !s.at_rest.contains(&key(f)));
            let Some((slot, _)) = left else {
                return Ok(());
            };
            let over = s.hurry && !for_good;
            if !over && !changed.wait_until(&mut s, deadline).timed_out() {
                continue;
            }
            let device = device(*slot);
            tracing::warn!(device, "a device does not come to rest");
            if !for_good {
                s.wanted = false;
                let rested = std::mem::take(&mut s.at_rest);
                let rested = functions.iter().filter(|(_, f)| rested.contains(&key(f)));
                rested.for_each(|(_, function)| function.resume());
            }
            return Err(MachineError::Restless { device });
        }
    }

    /// On a thread of its own, which waits for the device's; whether there is
    /// one.
    fn try_one(&self, function: &Arc<VirtioPci>) -> bool {
        let (rest, own) = (self.clone(), function.clone());
        let work = move || {
            own.pause();
            let (state, changed) = &*rest.0;
            let mut s = state.lock();
            s.trying.remove(&key(&own));
            match s.wanted {
                true => drop(s.at_rest.insert(key(&own))),
                // It was given up meanwhile.
                false => own.resume(),
            }
            changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("rest".into());
        thread.spawn(work).is_ok()
    }

    /// Ends [`Self::begin`].
    pub fn end(&self, functions: &[Placed]) {
        let mut s = self.0.0.lock();
        s.wanted = false;
        s.at_rest.clear();
        for (_, function) in functions {
            if !s.trying.contains(&key(function)) {
                function.resume();
            }
        }
    }

    /// Who waits for rest is told at once that there is none.
    pub fn hurry(&self) {
        self.0.0.lock().hurry = true;
        self.0.1.notify_all();
    }
}

fn key(function: &Arc<VirtioPci>) -> usize {
    Arc::as_ptr(function) as usize
}

/// What is in a slot, for people.
fn device(slot: u8) -> &'static str {
    match slot {
        SHARE_SLOT => "the shared folder",
        VSOCK_SLOT => "the socket device",
        FIRST_NIC_SLOT..FIRST_DISK_SLOT => "a network card",
        slot if (FIRST_DISK_SLOT..*PORTS.start()).contains(&slot) => "a disk",
        // The place behind a port.
        slot if slot > *PORTS.end() => "an attached device",
        _ => "a device",
    }
}
