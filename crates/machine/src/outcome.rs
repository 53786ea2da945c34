//! How machines end, and why they cannot be made.

use engine::EngineError;

use crate::description::DescriptionError;

/// How a machine ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest powered off (ACPI S5).
    PoweredOff,
    /// The guest reset, and `on_reset` is `exit`.
    Reset,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u32),
    /// This vCPU shut down by a triple fault.
    TripleFault(u32),
    /// The time given to the machine ran out.
    TimedOut,
    /// [`crate::Machine::stop`] was called.
    Stopped,
    /// Holm or the host failed.
    Failed(MachineError),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PoweredOff => write!(f, "the guest powered off"),
            Self::Reset => write!(f, "the guest was reset"),
            Self::DebugExit(value) => write!(f, "the guest wrote {value} to the debug-exit port"),
            Self::TripleFault(vcpu) => write!(f, "a triple fault on vCPU {vcpu}"),
            Self::TimedOut => write!(f, "its time was over"),
            Self::Stopped => write!(f, "its power was cut"),
            Self::Failed(error) => write!(f, "it failed: {error}"),
        }
    }
}

/// Why a machine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The description makes no sense.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// A kernel or initrd file is missing or unfit, or does not fit.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// A disk is missing or unfit.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// A disk offers nothing that can be started, or not what was asked for.
    #[error("starting from the disk {disk}: {source}")]
    BootDisk {
        /// Where the disk is.
        disk: String,
        /// Why.
        source: bootdisk::ReaderError,
    },
    /// A disk cannot be attached, detached or grown.
    #[error(transparent)]
    HotPlug(#[from] crate::hotplug::HotPlugError),
    /// A network card's network cannot be had.
    #[error(transparent)]
    Nic(#[from] crate::nic::NicError),
    /// The host has not enough memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// The host cannot run the engine, or the engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The host gives no thread or timer.
    #[error("the host gives no {what}: {source}; end other processes or raise the limits")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
    /// A Unix socket of the machine cannot be made.
    #[error("listening at {path}: {reason}", path = path.display())]
    Socket {
        /// Its path.
        path: std::path::PathBuf,
        /// Why not.
        reason: String,
    },
    /// A folder cannot be shared.
    #[error("sharing the folder {folder}: {source}", folder = folder.display())]
    Share {
        /// Its path.
        folder: std::path::PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// The devices contradict each other: a defect of Holm.
    #[error("the machine's devices cannot be put together: {0}")]
    Assembly(String),
    /// A snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::SnapshotError),
    /// A saved state is of another version, another machine, or damaged.
    #[error("cannot restore the machine: {0}")]
    State(String),
    /// A device cannot be stopped now.
    #[error(
        "{device} waits for the host and cannot be stopped now (a file server that does not \
         answer?); the machine goes on as before: bring the server back and ask again, or end it \
         with `holm kill`"
    )]
    Restless {
        /// Which.
        device: &'static str,
    },
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
}
