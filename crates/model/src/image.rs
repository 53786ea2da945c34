//! What instances are made from.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{ImageId, InstanceId, Meta, SnapshotId};

/// An image: disks whose contents never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its own id.
    pub id: ImageId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Its name, one of its owner's images' alone.
    pub name: String,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// Name of the root disk's device.
    pub root_device: String,
    /// Its disks; the first is the root.
    pub disks: Vec<ImageDisk>,
    /// All accounts may use it.
    #[serde(default)]
    pub public: bool,
    /// Accounts that may use it, too.
    #[serde(default)]
    pub shared_with: Vec<crate::AccountId>,
    /// Instance that it was made of.
    #[serde(default)]
    pub source_instance: Option<InstanceId>,
    /// Name of what it is a version of, as `debian`; `name` if missing.
    #[serde(default)]
    pub family: Option<String>,
    /// Who may log in, as `debian`; for `holm ssh`.
    #[serde(default)]
    pub login: Option<String>,
    /// It is to go.
    #[serde(default)]
    pub deregistering: bool,
    /// Whether it can be used.
    pub state: ImageState,
    /// Why it cannot.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Record for Image {
    const KIND: &'static str = "image";
    const VERSION: u32 = 1;
}

/// A disk of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDisk {
    /// Name of its device.
    pub device: String,
    /// What it holds; `None`: nothing.
    pub snapshot: Option<SnapshotId>,
    /// Capacity in bytes.
    pub size: u64,
    /// Volumes made of it go with their instance.
    pub delete_on_termination: bool,
}

/// Whether an image can be used; names of EC2's `ImageState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageState {
    /// Its disks are being made.
    Pending,
    /// It can be used.
    Available,
    /// Its disks could not be made.
    Failed,
}

impl ImageState {
    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Available => "available",
            Self::Failed => "failed",
        }
    }
}
