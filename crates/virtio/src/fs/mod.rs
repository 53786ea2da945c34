//! A folder of the host as a file system of the guest (virtio 1.2, 5.11): FUSE
//! requests, served here by the few system calls they need.
//!
//! Everything is done as who runs the machine, who is root to the guest.

mod line;
mod server;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::{StateError, Version, versioned};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, read_config_bytes,
};
use crate::queue::VirtQueue;
use line::Worker;
use server::Server;
use tree::Tree;
use wire::Reader;

const QUEUE_SIZE: u16 = 256;
/// High priority, and one for requests.
const QUEUES: usize = 2;
/// Most bytes of a tag.
const TAG_MAX: usize = 36;

/// How a folder is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsOptions {
    /// The guest changes nothing.
    pub read_only: bool,
    /// The guest may keep what it writes until the file is closed or synced
    /// (`FUSE_WRITEBACK_CACHE`), and then does not see what the host does to
    /// files that it knows.
    pub write_back: bool,
}

/// The host's side of a shared folder. Any call may take as long as the host's
/// file system likes; all come from one thread.
trait Folder: Send {
    /// The data of the answer to a request, or its error. `room` is for the
    /// answer's data.
    fn request(
        &mut self,
        op: u32,
        node: u64,
        body: Reader<'_>,
        room: usize,
    ) -> Result<Vec<u8>, Errno>;

    /// Requests that have no answer.
    fn forget(&mut self, op: u32, node: u64, body: Reader<'_>);

    /// Nobody has anything open any more.
    fn forget_all(&mut self);

    fn save(&self) -> FsState;

    fn restore(&mut self, state: &FsState);
}

/// A shared folder.
pub struct Fs {
    worker: Worker,
    tag: [u8; TAG_MAX],
}

impl Fs {
    /// Shares `folder`; the guest mounts it by `tag`, of at most 36 bytes.
    ///
    /// # Errors
    /// The folder cannot be opened, or there is no thread.
    pub fn new(folder: &Path, tag: &str, options: FsOptions) -> io::Result<Self> {
        let tree = Tree::open(folder, options.read_only, allow_descriptors())?;
        Self::with(Box::new(Server::new(tree, options)), tag)
    }

    fn with(folder: Box<dyn Folder>, tag: &str) -> io::Result<Self> {
        let mut bytes = [0; TAG_MAX];
        if tag.is_empty() || tag.len() > TAG_MAX {
            let text = "a share's tag has 1 to 36 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        for (to, from) in bytes.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        Ok(Self {
            worker: Worker::start(folder)?,
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
        Ok(self.worker.activate(queues))
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        self.worker.stop()
    }

    fn reset(&mut self) {
        self.worker.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Fs(self.worker.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Fs(saved) = state else {
            return Err(StateError::invalid::<FsState>(
                "the snapshot has another device here",
            ));
        };
        self.worker.restore(saved);
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
