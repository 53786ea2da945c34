//! A machine that exists until somebody says otherwise.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{
    Base64, ImageId, InstanceId, InterfaceAttachmentId, InterfaceId, Meta, ReservationId,
    SecurityGroupId, SubnetId, Tags, Timestamp, VolumeId, VpcId,
};

/// Most bytes of user data (RunInstances).
pub const USER_DATA_MAX: usize = 16 << 10;

/// An instance. Its disks' contents are in [`crate::Volume`]s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its own id.
    pub id: InstanceId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Of the request that made it.
    pub reservation: ReservationId,
    /// Its number among those of that request.
    #[serde(default)]
    pub launch_index: u32,
    /// What it was made from.
    pub image: ImageId,
    /// Name of its size.
    pub instance_type: String,
    /// vCPUs, as its type said when it was made or resized.
    pub cpus: u32,
    /// RAM in bytes, likewise.
    pub memory: u64,
    /// Name by which its network's DNS knows it.
    pub hostname: String,
    /// Name of the key pair that it was made with.
    #[serde(default)]
    pub key_name: Option<String>,
    /// That key, in OpenSSH's form; it stays when the pair goes.
    #[serde(default)]
    pub public_key: Option<String>,
    /// What its cloud-init is told.
    #[serde(default)]
    pub user_data: Base64,
    /// Its cards; the first is the one that its addresses are of.
    pub interfaces: Vec<Interface>,
    /// Its disks; the first is its root.
    pub disks: Vec<BlockDevice>,
    /// Name of the root disk's device, as `/dev/xvda`.
    pub root_device: String,
    /// How its metadata are served.
    #[serde(default)]
    pub metadata_options: MetadataOptions,
    /// It cannot be terminated.
    #[serde(default)]
    pub termination_protection: bool,
    /// It cannot be stopped.
    #[serde(default)]
    pub stop_protection: bool,
    /// What its own power-off means.
    #[serde(default)]
    pub shutdown_behavior: ShutdownBehavior,
    /// It goes at this moment.
    #[serde(default)]
    pub expires: Option<Timestamp>,

    /// What is wanted of it.
    pub desired: Desired,
    /// It is to be stopped without asking its guest.
    #[serde(default)]
    pub force: bool,
    /// How often a reboot was asked for.
    #[serde(default)]
    pub reboots_wanted: u64,

    /// What it is doing.
    pub state: InstanceState,
    /// Why it is in that state, if not by wish.
    #[serde(default)]
    pub state_reason: Option<StateReason>,
    /// Since when.
    pub state_since: Timestamp,
    /// How often it was rebooted.
    #[serde(default)]
    pub reboots_done: u64,
    /// How often its machine was started, or was to be.
    #[serde(default)]
    pub starts: u64,
    /// Which start its machine is of, that runs or is to run; `None`: it has
    /// none.
    #[serde(default)]
    pub machine: Option<u64>,
    /// When it was last started.
    #[serde(default)]
    pub launched: Option<Timestamp>,
    /// How far its guest has come since.
    #[serde(default)]
    pub boot: Boot,
    /// When its machine's power button was first pressed, to end it.
    #[serde(default)]
    pub pressed: Option<Pressed>,
    /// Its guest is told of itself by a NoCloud seed disk: it does not ask the
    /// metadata service.
    #[serde(default)]
    pub nocloud: bool,
    /// The last that its machine told and that was noted.
    #[serde(default)]
    pub noted: Noted,
    /// What is wrong with its machine, though it runs: for people.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Host that it is on.
    #[serde(default)]
    pub host: Option<String>,
    /// Key of its metadata service's tokens, so that they survive a daemon.
    pub token_key: Base64,
}

impl Record for Instance {
    const KIND: &'static str = "instance";
    const VERSION: u32 = 1;
}

impl Instance {
    /// The address that its name leads to.
    #[must_use]
    pub fn private_ip(&self) -> Option<Ipv4Addr> {
        self.interfaces.first().map(|i| i.private_ip)
    }

    /// The address at which its host reaches it.
    #[must_use]
    pub fn public_ip(&self) -> Option<Ipv4Addr> {
        self.interfaces.first().and_then(|i| i.public_ip)
    }

    /// Its network.
    #[must_use]
    pub fn vpc(&self) -> Option<&VpcId> {
        self.interfaces.first().map(|i| &i.vpc)
    }

    /// Its subnet.
    #[must_use]
    pub fn subnet(&self) -> Option<&SubnetId> {
        self.interfaces.first().map(|i| &i.subnet)
    }

    /// It is gone, and kept only to be seen for a while.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.state == InstanceState::Terminated
    }
}

/// Tag of an image, or of an instance when it is made, whose value `nocloud`
/// says that its cloud-init does not ask EC2's metadata service.
pub const DATASOURCE_TAG: &str = "holm:datasource";

/// That a power button was pressed: who does not hear it loses its power after
/// a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressed {
    /// Start of the instance's machine.
    pub start: u64,
    /// When.
    pub at: Timestamp,
}

/// Something that a machine told, by its place among all that it tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Noted {
    /// Start of the instance's machine.
    pub start: u64,
    /// Number of the event, of that start.
    pub event: u64,
}

/// What is wanted of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// To run.
    Running,
    /// To stand still, its disks kept.
    Stopped,
    /// To be gone.
    Terminated,
}

/// What an instance is doing; names and codes of EC2's `InstanceState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// It is being made or started.
    Pending,
    /// It has a running machine.
    Running,
    /// It is being terminated.
    ShuttingDown,
    /// It is gone.
    Terminated,
    /// It is being stopped.
    Stopping,
    /// It has no machine.
    Stopped,
}

impl InstanceState {
    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// Its code, as EC2 has it.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }
}

/// Why an instance is in its state; EC2's `StateReason`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReason {
    /// As `Server.InternalError` or `Client.UserInitiatedShutdown`.
    pub code: String,
    /// For people, with what they can do next.
    pub message: String,
}

/// What the guest's own power-off means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownBehavior {
    /// It is stopped.
    #[default]
    Stop,
    /// It is terminated.
    Terminate,
}

/// A network card of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its own id.
    pub id: InterfaceId,
    /// Of its being in this instance.
    pub attachment: InterfaceAttachmentId,
    /// Its network.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its address there; its MAC follows from it ([`crate::mac_of`]).
    pub private_ip: Ipv4Addr,
    /// More addresses.
    #[serde(default)]
    pub ipv6: Vec<Ipv6Addr>,
    /// Address at which its host reaches it.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    /// What may come in and go out.
    pub groups: Vec<SecurityGroupId>,
    /// What its owner calls it.
    #[serde(default)]
    pub description: String,
    /// It sends and takes only what is of its own addresses.
    #[serde(default = "yes")]
    pub source_dest_check: bool,
    /// What its owner wrote on it.
    #[serde(default)]
    pub tags: Tags,
}

fn yes() -> bool {
    true
}

/// A disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Name of its device, as `/dev/sdf`. The guest sees the volume's id as the
    /// disk's serial number.
    pub device: String,
    /// What it holds.
    pub volume: VolumeId,
    /// The volume goes with the instance.
    pub delete_on_termination: bool,
}

/// How an instance's metadata are served (RunInstances, `MetadataOptions`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// They are served at all.
    pub enabled: bool,
    /// Whether a token is needed.
    pub token: Token,
    /// How many routers an answer passes, 1 to 64.
    pub hop_limit: u8,
    /// Tags are among them.
    pub tags: bool,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            token: Token::Optional,
            hop_limit: 1,
            tags: false,
        }
    }
}

/// Whether metadata need a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Token {
    /// IMDSv1 works, too.
    Optional,
    /// IMDSv2 only.
    Required,
}

/// How far an instance's guest has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Stages that began, in order.
    #[serde(default)]
    pub stages: Vec<BootStage>,
    /// Nothing more is awaited: it is up, or stuck for good.
    #[serde(default)]
    pub over: bool,
    /// It is up.
    #[serde(default)]
    pub ready: Option<Timestamp>,
    /// What went wrong, with its output.
    #[serde(default)]
    pub failure: Option<String>,
}

/// A part of a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStage {
    /// `image`, `machine`, `kernel`, `userspace`, `network`, `cloud-init` …
    pub name: String,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// What went wrong in it.
    #[serde(default)]
    pub failure: Option<String>,
}
