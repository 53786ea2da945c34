//! Sockets between guest and host (virtio 1.2, 5.10), the host's side being
//! Unix sockets as Firecracker has them: who connects to the machine's socket
//! and says `CONNECT PORT\n` reaches that port of the guest, and is told
//! `OK PORT\n`; a guest that connects to port N of the host (context id 2)
//! reaches the Unix socket whose path is the machine's with `_N` behind.

mod connection;
mod packet;
mod streams;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use devices::{StateError, Version, versioned};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, read_config_bytes,
};
use crate::queue::VirtQueue;
use streams::Streams;

const QUEUE_SIZE: u16 = 256;
const QUEUES: usize = 3;

/// A virtio socket device.
pub struct Vsock {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    cid: u64,
    streams: Mutex<Streams>,
    wake: OwnedFd,
    end: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        // Full means awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Vsock {
    /// A device whose guest has this context id (3 or more), and whose
    /// machine's socket is `listener` at `path`.
    ///
    /// # Errors
    /// The host gives no event descriptor or thread.
    pub fn new(cid: u32, listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            cid: cid.into(),
            streams: Mutex::new(Streams::new(cid.into(), listener, path)),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            end: AtomicBool::new(false),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("vsock".into())
            .stack_size(512 << 10)
            .spawn(move || work(&worker))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

/// The device's thread: waits for the guest and for the host's programs.
fn work(shared: &Shared) {
    let mut ready = Vec::new();
    while !shared.end.load(Ordering::Acquire) {
        let (interests, busy) = {
            let mut streams = shared.streams.lock();
            streams.serve(&ready);
            (streams.interests(), streams.is_busy())
        };
        let mut polled = vec![PollFd::new(&shared.wake, PollFlags::IN)];
        polled.extend(
            interests
                .iter()
                .map(|interest| PollFd::new(&interest.source, interest.flags)),
        );
        // An interrupted call found nothing.
        let at_once = rustix::event::Timespec::default();
        let found = poll(&mut polled, busy.then_some(&at_once)).unwrap_or(0);
        ready.clear();
        if found > 0 {
            let happened: Vec<_> = polled.iter().map(PollFd::revents).collect();
            if happened.first().is_some_and(|flags| !flags.is_empty()) {
                let mut count = [0; 8];
                // Somebody else cannot have read it.
                let _ = rustix::io::read(&shared.wake, &mut count);
            }
            let sources = interests.iter().zip(happened.iter().skip(1));
            let sources = sources.filter(|(_, flags)| !flags.is_empty());
            ready.extend(sources.map(|(interest, flags)| (interest.who, *flags)));
        }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported already.
            let _ = thread.join();
        }
    }
}

impl Doorbell for Shared {
    fn ring(&self, _queue: u16) {
        self.wake();
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 19,
            pci_class: 0x02_8000,
            name: "virtio-vsock",
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.shared.cid.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let mut queues = activation.queues.into_iter();
        let mut next = |index| {
            let queue = queues.next().flatten();
            queue.ok_or(ActivateError::MissingQueue(index))
        };
        let queues = [next(0)?, next(1)?, next(2)?];
        self.shared.streams.lock().start(queues);
        self.shared.wake();
        Ok(self.shared.clone())
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        self.shared.streams.lock().stop()
    }

    fn reset(&mut self) {
        self.shared.streams.lock().forget();
        self.shared.wake();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {
            version: Version::current(),
            cid: self.shared.cid,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Vsock(_) => {
                // Its streams ended with the machine that was saved.
                self.shared.streams.lock().transport_reset();
                Ok(())
            }
            _ => Err(StateError::invalid::<VsockState>(
                "the snapshot has another device here",
            )),
        }
    }
}

/// Saved state of a [`Vsock`]: streams do not survive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Format.
    pub version: Version<VsockState>,
    /// The guest's context id, which a restored machine may have another of.
    pub cid: u64,
}
versioned!(VsockState, "virtio socket device", 1);
