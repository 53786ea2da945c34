//! A network of which the test is the other side.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use net::{Abilities, Frame, Link, LinkError, Network, Offload, Sent};
use parking_lot::Mutex;

/// A network that the test is the other side of.
#[derive(Default)]
pub struct Wire {
    pub to_guest: Mutex<VecDeque<(Offload, Vec<u8>)>>,
    pub from_guest: Mutex<Vec<(Offload, Vec<u8>)>>,
    /// Frames the wire takes before it is full; negative: any number.
    pub room: Mutex<i64>,
    pub abilities: Mutex<Abilities>,
    pub guest: Mutex<Abilities>,
    pub active: Mutex<Vec<bool>>,
    pub bell: Mutex<Vec<Arc<OwnedFd>>>,
    pub fails: Mutex<bool>,
    pub turns: AtomicUsize,
}

pub struct TestNetwork(pub Arc<Wire>, pub u16);

pub struct TestLink {
    wire: Arc<Wire>,
    index: usize,
    current: Option<(Offload, Vec<u8>)>,
    bell: Arc<OwnedFd>,
}

impl Network for TestNetwork {
    fn open(&self, pairs: u16) -> Result<Vec<Box<dyn Link>>, LinkError> {
        self.0.active.lock().resize(pairs.into(), false);
        let links = (0..pairs.into()).map(|index| {
            let flags = rustix::event::EventfdFlags::NONBLOCK;
            let bell = Arc::new(rustix::event::eventfd(0, flags).unwrap());
            self.0.bell.lock().push(bell.clone());
            Box::new(TestLink {
                wire: self.0.clone(),
                index,
                current: None,
                bell,
            }) as Box<dyn Link>
        });
        Ok(links.collect())
    }
    fn most_pairs(&self) -> u16 {
        self.1
    }
    fn mtu(&self) -> u16 {
        9000
    }
    fn describe(&self) -> String {
        "test wire".into()
    }
}

impl Wire {
    pub fn send(&self, frame: &[u8]) {
        self.send_with(Offload::default(), frame);
    }
    pub fn send_with(&self, offload: Offload, frame: &[u8]) {
        self.to_guest.lock().push_back((offload, frame.to_vec()));
        self.ring();
    }
    pub fn ring(&self) {
        for bell in &*self.bell.lock() {
            rustix::io::write(bell, &1u64.to_ne_bytes()).unwrap();
        }
    }
}

impl Link for TestLink {
    fn abilities(&self) -> Abilities {
        *self.wire.abilities.lock()
    }
    fn set_guest_abilities(&mut self, guest: Abilities) {
        *self.wire.guest.lock() = guest;
    }
    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        self.wire.active.lock()[self.index] = active;
        Ok(())
    }
    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<Sent, LinkError> {
        if *self.wire.fails.lock() {
            return Err(LinkError::Host {
                network: "test wire".into(),
                what: "cutting it",
                source: std::io::Error::other("cut"),
            });
        }
        let mut room = self.wire.room.lock();
        if *room == 0 {
            return Ok(Sent::Full);
        }
        *room -= 1;
        self.wire.from_guest.lock().push((*offload, frame.to_vec()));
        Ok(Sent::Yes)
    }
    fn incoming(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        if self.index == 0 && self.current.is_none() {
            self.current = self.wire.to_guest.lock().pop_front();
        }
        Ok(self.current.as_ref().map(|(offload, bytes)| Frame {
            offload: *offload,
            bytes,
        }))
    }
    fn consume(&mut self) {
        self.current = None;
    }
    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
    fn turn(&mut self, _now: Instant) -> Option<Instant> {
        self.wire.turns.fetch_add(1, Ordering::Relaxed);
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        None
    }
}
