//! Where things are in a state directory.

use std::path::{Path, PathBuf};

/// A state directory. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The state directory at an absolute path.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// The library of images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Volumes and their snapshots.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// All machines.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }

    /// A machine.
    #[must_use]
    pub fn machine(&self, id: &str) -> PathBuf {
        self.machines().join(id)
    }

    /// The seed disk of a machine whose guest asks no metadata service.
    #[must_use]
    pub fn seed_disk(&self, id: &str) -> PathBuf {
        self.machine(id).join(SEED_DISK)
    }

    /// The socket of a machine's metadata service.
    #[must_use]
    pub fn metadata_socket(&self, id: &str) -> PathBuf {
        self.machine(id).join(METADATA_SOCKET)
    }

    /// The socket by which the owner reaches any port of a machine, past all
    /// rules.
    #[must_use]
    pub fn door_socket(&self, id: &str) -> PathBuf {
        self.machine(id).join(DOOR_SOCKET)
    }

    /// Where the cards of a network meet.
    #[must_use]
    pub fn network(&self, id: &str) -> PathBuf {
        self.networks().join(id)
    }

    /// The networks.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// The daemon's sockets, which are of no use without it.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}

/// Name of the socket by which the owner reaches any port of a machine.
pub const DOOR_SOCKET: &str = "port.sock";
/// Name of a machine's seed disk in its directory.
pub const SEED_DISK: &str = "seed.img";
/// Name of the socket of a machine's metadata service in its directory.
pub const METADATA_SOCKET: &str = "metadata.sock";
