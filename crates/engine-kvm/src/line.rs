//! One interrupt source's way to the local APICs: an event that KVM turns into
//! the message of a route (KVM_IRQFD).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use engine::{InterruptLine, MsiMessage};
use parking_lot::RwLock;
use rustix::event::{EventfdFlags, eventfd};

use crate::routes::Routes;

/// A line of one machine.
pub(crate) struct KvmLine {
    routes: Arc<Routes>,
    this: Weak<KvmLine>,
    wire: RwLock<Wire>,
    /// Whether it has sent since [`Self::settle`] what KVM may deliver later.
    lingers: AtomicBool,
}

enum Wire {
    /// Nothing was sent yet: many vectors are never used.
    Unused,
    /// By this event and route goes this message.
    Laid {
        event: OwnedFd,
        route: u32,
        message: MsiMessage,
    },
    /// The host has no more events or routes.
    Refused,
}

impl KvmLine {
    pub(crate) fn new(routes: Arc<Routes>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            routes,
            this: this.clone(),
            wire: RwLock::new(Wire::Unused),
            lingers: AtomicBool::new(false),
        })
    }

    /// Sends by the event, if that has this message.
    fn ring(&self, wire: &Wire, message: MsiMessage) -> bool {
        let Wire::Laid {
            event,
            message: routed,
            ..
        } = wire
        else {
            return false;
        };
        let rung = *routed == message && rustix::io::write(event, &1_u64.to_ne_bytes()).is_ok();
        if rung && Routes::may_linger(&message) {
            self.lingers.store(true, Ordering::SeqCst);
        }
        rung
    }

    /// Has the line send this message from now on, if it can.
    fn lead(&self, wire: &mut Wire, message: MsiMessage) {
        match wire {
            Wire::Unused => *wire = self.lay(message).unwrap_or(Wire::Refused),
            Wire::Laid {
                route,
                message: routed,
                ..
            } if *routed != message => {
                if self.routes.change(*route, message) {
                    *routed = message;
                }
            }
            Wire::Laid { .. } | Wire::Refused => {}
        }
    }

    fn lay(&self, message: MsiMessage) -> Option<Wire> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let event = event
            .inspect_err(|error| tracing::debug!(%error, "no event for an interrupt"))
            .ok()?;
        let route = self.routes.add(self.this.clone(), message)?;
        if let Err(error) = self.routes.wire(event.as_fd(), route, true) {
            tracing::debug!(%error, route, "KVM has no event send an interrupt");
            self.routes.remove(route);
            return None;
        }
        tracing::debug!(route, ?message, "an interrupt has an event of its own");
        Some(Wire::Laid {
            event,
            route,
            message,
        })
    }

    /// What it has sent is with the local APICs when this returns: KVM
    /// delivers some messages from a work queue, which only the end of an
    /// irqfd waits for. That takes about a millisecond, so it is not done
    /// without need.
    pub(crate) fn settle(&self) {
        if !self.lingers.swap(false, Ordering::SeqCst) {
            return;
        }
        let mut wire = self.wire.write();
        if let Wire::Laid { event, route, .. } = &*wire {
            let again = self
                .routes
                .wire(event.as_fd(), *route, false)
                .and_then(|()| self.routes.wire(event.as_fd(), *route, true));
            if let Err(error) = again {
                tracing::warn!(%error, route, "KVM has this event send no interrupts any more");
                self.routes.remove(*route);
                *wire = Wire::Refused;
            }
        }
    }
}

impl InterruptLine for KvmLine {
    fn send(&self, message: MsiMessage) {
        if !Routes::takes(&message) {
            if message.data & crate::routes::LEVEL != 0 {
                self.routes.know(&message);
            }
            return self.routes.signal(&message);
        }
        if self.ring(&self.wire.read(), message) {
            return;
        }
        let mut wire = self.wire.write();
        self.lead(&mut wire, message);
        if !self.ring(&wire, message) {
            self.routes.signal(&message);
        }
    }
}

impl Drop for KvmLine {
    fn drop(&mut self) {
        if let Wire::Laid { event, route, .. } = &*self.wire.get_mut() {
            if let Err(error) = self.routes.wire(event.as_fd(), *route, false) {
                tracing::debug!(%error, route, "an event of KVM's does not end");
            }
            self.routes.remove(*route);
        }
    }
}
