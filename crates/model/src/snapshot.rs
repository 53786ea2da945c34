//! What a volume held at one moment.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{Meta, SnapshotId, Timestamp, VolumeId};

/// A snapshot of a volume, or a disk's content that was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its own id.
    pub id: SnapshotId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Volume that it is of; `None`: it was imported.
    #[serde(default)]
    pub volume: Option<VolumeId>,
    /// Capacity in bytes of what it is of.
    pub size: u64,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// Where its content is: the digest of a file in the image library. `None`
    /// until it is made.
    #[serde(default)]
    pub content: Option<String>,
    /// Bytes that it takes on the host.
    #[serde(default)]
    pub stored: u64,
    /// All accounts may use it.
    #[serde(default)]
    pub public: bool,
    /// It is to go.
    #[serde(default)]
    pub deleting: bool,
    /// How far it is.
    pub state: SnapshotState,
    /// Of what is to be done, in percent.
    #[serde(default)]
    pub progress: u8,
    /// When it was complete.
    #[serde(default)]
    pub completed: Option<Timestamp>,
    /// What is wrong with it.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Record for Snapshot {
    const KIND: &'static str = "snapshot";
    const VERSION: u32 = 1;
}

/// How far a snapshot is; names of EC2's `SnapshotState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// It is being made.
    Pending,
    /// It can be used.
    Completed,
    /// It could not be made.
    Error,
}

impl SnapshotState {
    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Error => "error",
        }
    }
}
