//! What is done on a host, step by step.

use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use machine_protocol::launch::{Ended, Launch};
use machine_protocol::vpc::PortConfig;
use machine_protocol::{Event, RunState};
use provisioning::BootProgress;
use tokio::net::UnixListener;

/// A volume that is to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its id.
    pub id: String,
    /// Its capacity in bytes, at least its source's.
    pub size: u64,
    /// What is on it at first.
    pub source: VolumeSource,
}

/// What is on a volume at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// Zeroes.
    Empty,
    /// Contents, by name.
    Content(String),
    /// It was made before, of whatever; it is only to be there, and large
    /// enough.
    Made,
}

/// Contents that never change: what snapshots keep, and images are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// By which they are found.
    pub name: String,
    /// Bytes that it takes on the host.
    pub stored: u64,
}

/// The file of a volume, for a machine's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    /// Absolute path.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// What is known of a machine's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Nothing is there.
    Absent,
    /// It is about to be started, by whom or whatever died then: no process
    /// runs, and none has ended since.
    Prepared {
        /// Its start, by number.
        number: u64,
    },
    /// Its process is there, and the machine does not run yet.
    Starting {
        /// Its start, by number.
        number: u64,
    },
    /// It runs.
    Running {
        /// Its start, by number.
        number: u64,
        /// What it says of itself.
        facts: Facts,
    },
    /// Its process has ended.
    Ended {
        /// Its start, by number.
        number: u64,
        /// How.
        end: MachineEnd,
    },
}

impl Observed {
    /// Which start of the machine it is about.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Prepared { number }
            | Self::Starting { number }
            | Self::Running { number, .. }
            | Self::Ended { number, .. } => Some(*number),
        }
    }

    /// There is a process.
    #[must_use]
    pub fn has_process(&self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Running { .. })
    }
}

/// What a running machine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its process.
    pub pid: u32,
    /// `soft` or `kvm`.
    pub engine: String,
    /// Running or paused.
    pub state: RunState,
    /// Since when it runs, in milliseconds of Unix time.
    pub since_ms: u64,
    /// Names of its disks.
    pub disks: Vec<String>,
}

/// How a machine's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineEnd {
    /// As it said; `None`: it died without a word, or the host was started
    /// anew.
    pub how: Option<Ended>,
    /// For people.
    pub message: String,
    /// When, in milliseconds of Unix time, where that is known.
    pub at_ms: Option<u64>,
}

/// All that is on a host, by ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Machines, running or not.
    pub machines: Vec<String>,
    /// Volumes.
    pub volumes: Vec<String>,
    /// Networks, with cards or without.
    pub networks: Vec<String>,
}

/// Something that happened to a machine, as a driver tells it unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// The machine.
    pub machine: String,
    /// What its process said, and of which start. It is told again to each
    /// daemon that comes. `None`: it ended, perhaps; it is to be looked at.
    pub told: Option<(u64, Event)>,
}

impl Happened {
    /// The machine is to be looked at.
    pub(crate) fn look(machine: String) -> Self {
        let told = None;
        Self { machine, told }
    }
}

/// What may be done about a step that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may go better another time.
    Again,
    /// It will not, unless something else is asked for.
    Refused,
}

/// A step that was not taken, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{doing} {what}: {reason}")]
pub struct DriverError {
    /// What was being done.
    pub doing: &'static str,
    /// To what.
    pub what: String,
    /// Why not.
    pub reason: String,
    /// What may be done about it.
    pub failure: Failure,
}

impl DriverError {
    /// One that may not come again.
    pub fn again(doing: &'static str, what: &str, reason: impl std::fmt::Display) -> Self {
        Self {
            doing,
            what: what.into(),
            reason: reason.to_string(),
            failure: Failure::Again,
        }
    }

    /// One that will.
    pub fn refused(doing: &'static str, what: &str, reason: impl std::fmt::Display) -> Self {
        Self {
            failure: Failure::Refused,
            ..Self::again(doing, what, reason)
        }
    }
}

/// Single steps on one host. Each may be repeated, also after it was
/// interrupted anywhere; steps on one machine or volume are taken one at a
/// time by the caller. Ids are those of the store.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// All that is there, whoever made it.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn inventory(&self) -> Result<Inventory, DriverError>;

    /// What a machine is doing.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn observe(&self, machine: &str) -> Result<Observed, DriverError>;

    /// Starts a machine, unless its process is there. Returns when it runs, or
    /// has ended, or takes long: [`Self::observe`] tells which. Its disks'
    /// files must be there.
    ///
    /// # Errors
    /// [`DriverError`] where no process could be started.
    async fn launch(&self, machine: &str, launch: &Launch) -> Result<(), DriverError>;

    /// Presses the power button of a machine; no effect if it does not run.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn press_power_button(&self, machine: &str) -> Result<(), DriverError>;

    /// Ends a machine's process by force, and returns when it is gone.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn kill(&self, machine: &str) -> Result<(), DriverError>;

    /// Removes all files of a machine that does not run, but its volumes.
    ///
    /// # Errors
    /// [`DriverError`]; also if it runs.
    async fn remove(&self, machine: &str) -> Result<(), DriverError>;

    /// Gives a running machine a disk, as its description has it, with a name;
    /// no effect if it has one of that name.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn attach_disk(&self, machine: &str, disk: &serde_json::Value)
    -> Result<(), DriverError>;

    /// Asks a running machine's guest to give up a disk; by force, takes it
    /// away. It is gone when [`Facts::disks`] has it no longer. No effect if
    /// there is none of that name.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn detach_disk(&self, machine: &str, name: &str, force: bool) -> Result<(), DriverError>;

    /// Makes a disk of a running machine larger, and its file with it; no
    /// effect if it is that large, or the machine does not run.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn grow_disk(&self, machine: &str, name: &str, size: u64) -> Result<(), DriverError>;

    /// Tells a running machine's network card (from 0) what its network is
    /// now; no effect if the machine does not run.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn configure_nic(
        &self,
        machine: &str,
        nic: usize,
        port: &PortConfig,
    ) -> Result<(), DriverError>;

    /// Removes what is left of a network that no card is in; no effect if
    /// there is nothing.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn remove_network(&self, network: &str) -> Result<(), DriverError>;

    /// Whether it is of any use to call [`Self::configure_nic`].
    fn takes_ports(&self) -> bool {
        true
    }

    /// Keeps the seed disk of a machine that is about to be started.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn place_seed(&self, machine: &str, volume: &[u8]) -> Result<(), DriverError>;

    /// The socket at which a machine's metadata service is to listen; `None`:
    /// this host has no such thing.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn metadata_listener(&self, machine: &str) -> Result<Option<UnixListener>, DriverError>;

    /// How far the guest of a machine that was started at this time has come;
    /// `None`: this host cannot know.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn boot_progress(
        &self,
        machine: &str,
        started: SystemTime,
    ) -> Result<Option<BootProgress>, DriverError>;

    /// The end of what the console of a machine has printed, at most `most`
    /// bytes; empty if there is none.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn console_log(&self, machine: &str, most: usize) -> Result<Vec<u8>, DriverError>;

    /// Makes a volume, or makes it larger; its file.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<VolumeFile, DriverError>;

    /// Removes a volume that no machine uses; no effect if there is none.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn remove_volume(&self, volume: &str) -> Result<(), DriverError>;

    /// Keeps what is on a volume now as contents for a snapshot; what it kept
    /// before, if it was asked for the same before. If `machine` runs, it has
    /// the volume.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn snapshot_volume(
        &self,
        volume: &str,
        snapshot: &str,
        machine: Option<&str>,
    ) -> Result<Content, DriverError>;

    /// Removes contents that nothing needs any more; no effect if there are
    /// none.
    ///
    /// # Errors
    /// [`DriverError`].
    async fn remove_content(&self, name: &str) -> Result<(), DriverError>;
}
