//! A folder of the host as a file system of the guest (virtio 1.2, 5.11): FUSE
//! requests, served here by the few system calls they need.
//!
//! Everything is done as who runs the machine, who is root to the guest.

mod server;
mod tree;
mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use devices::{StateError, Version, versioned};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, read_config_bytes,
};
use crate::queue::{Chain, QueueError, VirtQueue, read, write};
use server::{Server, TRANSFER_MAX};
use tree::Tree;
use wire::{IN_HEADER, OUT_HEADER, Reader, Writer, op};

const QUEUE_SIZE: u16 = 256;
/// High priority, and one for requests.
const QUEUES: usize = 2;
/// Most bytes of a tag.
const TAG_MAX: usize = 36;
/// Most bytes of a request.
const REQUEST_MAX: usize = TRANSFER_MAX + 4096;
/// Requests served before others get at the device.
const BUDGET: u32 = 64;

/// A shared folder.
pub struct Fs {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tag: [u8; TAG_MAX],
}

struct Shared {
    state: Mutex<State>,
    rung: Mutex<bool>,
    ring: Condvar,
    end: AtomicBool,
}

struct State {
    queues: [Option<VirtQueue>; QUEUES],
    server: Server,
    chain: Chain,
    request: Vec<u8>,
}

impl Fs {
    /// Shares `folder`; the guest mounts it by `tag`, of at most 36 bytes.
    ///
    /// # Errors
    /// The folder cannot be opened, or there is no thread.
    pub fn new(folder: &Path, tag: &str, read_only: bool) -> io::Result<Self> {
        let mut bytes = [0; TAG_MAX];
        if tag.is_empty() || tag.len() > TAG_MAX {
            let text = "a share's tag has 1 to 36 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        for (to, from) in bytes.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        let tree = Tree::open(folder, read_only, allow_descriptors())?;
        let server = Server::new(tree, read_only);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queues: [None, None],
                server,
                chain: Chain::default(),
                request: Vec::new(),
            }),
            rung: Mutex::new(false),
            ring: Condvar::new(),
            end: AtomicBool::new(false),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("fs".into())
            .stack_size(512 << 10)
            .spawn(move || worker.work())?;
        Ok(Self {
            shared,
            thread: Some(thread),
            tag: bytes,
        })
    }
}

/// Each file that the guest knows is a descriptor: allows this process as many
/// as the host gives, and says how many that is.
fn allow_descriptors() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer the guest meets ENFILE sooner.
    let _ = setrlimit(Resource::Nofile, limit);
    let allowed = getrlimit(Resource::Nofile).current;
    allowed.map_or(usize::MAX, |count| {
        usize::try_from(count).unwrap_or(usize::MAX)
    })
}

impl Shared {
    fn work(&self) {
        let mut busy = false;
        while !self.end.load(Ordering::Acquire) {
            {
                let mut rung = self.rung.lock();
                while !*rung && !busy && !self.end.load(Ordering::Acquire) {
                    self.ring.wait(&mut rung);
                }
                *rung = false;
            }
            busy = self.state.lock().serve();
        }
    }

    fn wake(&self) {
        *self.rung.lock() = true;
        self.ring.notify_one();
    }
}

impl Drop for Fs {
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

impl State {
    /// Serves both queues; whether there may be more.
    fn serve(&mut self) -> bool {
        let mut busy = false;
        for index in 0..QUEUES {
            let Some(mut queue) = self.queues.get_mut(index).and_then(Option::take) else {
                continue;
            };
            match self.serve_queue(&mut queue) {
                Ok(more) => busy |= more,
                Err(error) => {
                    queue.break_off();
                    queue.signal().needs_reset(&error.to_string());
                }
            }
            if let Some(place) = self.queues.get_mut(index) {
                *place = Some(queue);
            }
        }
        busy
    }

    fn serve_queue(&mut self, queue: &mut VirtQueue) -> Result<bool, QueueError> {
        if queue.is_broken() {
            return Ok(false);
        }
        let mut left = BUDGET;
        let mut chain = std::mem::take(&mut self.chain);
        let result = loop {
            let mut any = false;
            while left > 0 && queue.pop(&mut chain)? {
                left -= 1;
                any = true;
                let written = self.request(queue, &chain)?;
                queue.push(chain.head, written)?;
            }
            if any {
                queue.notify()?;
            }
            if left == 0 {
                break true;
            }
            if !queue.enable_notification()? {
                break false;
            }
        };
        self.chain = chain;
        Ok(result)
    }

    /// One request; the bytes of its answer.
    fn request(&mut self, queue: &VirtQueue, chain: &Chain) -> Result<u32, QueueError> {
        let bad = |what| QueueError::Request {
            head: chain.head,
            what,
        };
        let length = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX);
        if !(IN_HEADER..=REQUEST_MAX).contains(&length) {
            return Err(bad("a request is shorter than its header or too long"));
        }
        self.request.resize(length, 0);
        read(queue.ram(), &chain.readable, &mut self.request);
        let mut reader = Reader(&self.request);
        let (_, code) = (reader.u32(), reader.u32());
        let (unique, node) = (reader.u64(), reader.u64());
        reader.u64();
        reader.u64();
        if matches!(code, op::FORGET | op::BATCH_FORGET) {
            self.server.forget(code, node, reader);
            return Ok(0);
        }
        let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX);
        let Some(room) = room.checked_sub(OUT_HEADER) else {
            return Err(bad("an answer has no room for its header"));
        };
        let (mut error, mut data) = match self.server.request(code, node, reader, room) {
            Ok(data) => (0, data),
            Err(error) => (-error.raw_os_error(), Vec::new()),
        };
        if data.len() > room {
            error = -rustix::io::Errno::OVERFLOW.raw_os_error();
            data.clear();
        }
        let mut out = Writer::default();
        out.u32((OUT_HEADER + data.len()) as u32)
            .u32(error as u32)
            .u64(unique);
        out.0.append(&mut data);
        Ok(write(queue.ram(), &chain.writable, &out.0) as u32)
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 26,
            pci_class: 0x01_8000,
            name: "virtio-fs",
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut image = self.tag.to_vec();
        image.extend(1u32.to_le_bytes());
        read_config_bytes(&image, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let mut queues = activation.queues.into_iter();
        let mut next = |index| {
            let queue = queues.next().flatten();
            queue.ok_or(ActivateError::MissingQueue(index))
        };
        let queues = [Some(next(0)?), Some(next(1)?)];
        self.shared.state.lock().queues = queues;
        self.shared.wake();
        Ok(self.shared.clone())
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        let mut state = self.shared.state.lock();
        state.queues.iter_mut().map(Option::take).collect()
    }

    fn reset(&mut self) {
        self.shared.state.lock().server.tree.forget_all();
    }

    fn save(&self) -> DeviceState {
        let state = self.shared.state.lock();
        let tree = &state.server.tree;
        let handles = tree.handles.iter();
        DeviceState::Fs(FsState {
            version: Version::current(),
            nodes: tree.paths(),
            handles: handles
                .map(|(id, handle)| (*id, handle.node, handle.flags.bits()))
                .collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Fs(saved) = state else {
            return Err(StateError::invalid::<FsState>(
                "the snapshot has another device here",
            ));
        };
        let mut state = self.shared.state.lock();
        state.server.tree.restore(&saved.nodes, &saved.handles);
        Ok(())
    }
}

/// Saved state of an [`Fs`]: what the guest knows, by names in the folder. What
/// has no name any more is stale after a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    /// Format.
    pub version: Version<FsState>,
    /// Number, path in the folder, and times looked up, of each known file.
    pub nodes: Vec<(u64, PathBuf, u64)>,
    /// Number, file and flags of each open file.
    pub handles: Vec<(u64, u64, u32)>,
}
versioned!(FsState, "shared folder", 1);
