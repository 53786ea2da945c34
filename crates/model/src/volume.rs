//! Disks that exist apart from instances.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{InstanceId, Meta, SnapshotId, Timestamp, VolumeId};

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its own id.
    pub id: VolumeId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Capacity in bytes that is wanted of it.
    pub size: u64,
    /// Capacity in bytes that it has; 0: not made yet.
    #[serde(default)]
    pub actual_size: u64,
    /// What it held when it was made; `None`: nothing.
    #[serde(default)]
    pub snapshot: Option<SnapshotId>,
    /// Kind, which says how fast it is.
    pub kind: VolumeKind,
    /// Operations each second, where its owner may choose.
    #[serde(default)]
    pub iops: Option<u32>,
    /// MiB each second, likewise.
    #[serde(default)]
    pub throughput: Option<u32>,
    /// Zone that it is in.
    pub zone: String,
    /// Instance that it is in.
    #[serde(default)]
    pub attachment: Option<Attachment>,
    /// It is to go.
    #[serde(default)]
    pub deleting: bool,
    /// What it is doing.
    pub state: VolumeState,
    /// It is to hold again what a snapshot of it has.
    #[serde(default)]
    pub rollback: Option<Rollback>,
    /// What is wrong with it.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Volume {
    /// Its file is what is asked for: machines may open it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.actual_size >= self.size && self.rollback.is_none()
    }
}

/// A volume's going back to a snapshot of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Where to.
    pub snapshot: SnapshotId,
    /// Which rollback this is: done once, however often it is tried.
    pub token: String,
}

impl Record for Volume {
    const KIND: &'static str = "volume";
    const VERSION: u32 = 1;
}

/// A volume's being in an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The instance.
    pub instance: InstanceId,
    /// Name of its device there.
    pub device: String,
    /// The volume goes with the instance.
    pub delete_on_termination: bool,
    /// Since when.
    pub since: Timestamp,
    /// It is to be detached.
    #[serde(default)]
    pub detaching: bool,
    /// Without asking the guest.
    #[serde(default)]
    pub force: bool,
    /// How far it is.
    pub state: AttachmentState,
}

/// How far an attachment is; names of EC2's `VolumeAttachmentState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    /// The machine does not have it yet.
    Attaching,
    /// The machine has it.
    Attached,
    /// The guest is asked to give it up.
    Detaching,
}

impl AttachmentState {
    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }
}

/// What a volume is doing; names of EC2's `VolumeState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Its file is being made.
    Creating,
    /// It is in no instance.
    Available,
    /// It is in one.
    InUse,
    /// Its file is being removed.
    Deleting,
    /// Its file could not be made.
    Error,
}

impl VolumeState {
    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::InUse => "in-use",
            Self::Deleting => "deleting",
            Self::Error => "error",
        }
    }
}

/// Kinds of volumes; EC2's `VolumeType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// Limits that its owner chooses; 3000 operations and 125 MiB a second.
    #[default]
    Gp3,
    /// Limits that follow from its size.
    Gp2,
    /// Operations that its owner chooses.
    Io1,
    /// Likewise.
    Io2,
    /// For streams.
    St1,
    /// For what is rarely read.
    Sc1,
    /// Magnetic.
    Standard,
}

impl VolumeKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Gp3,
        Self::Gp2,
        Self::Io1,
        Self::Io2,
        Self::St1,
        Self::Sc1,
        Self::Standard,
    ];

    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gp3 => "gp3",
            Self::Gp2 => "gp2",
            Self::Io1 => "io1",
            Self::Io2 => "io2",
            Self::St1 => "st1",
            Self::Sc1 => "sc1",
            Self::Standard => "standard",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}
