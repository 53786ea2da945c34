//! The nouns that users see: what each is, how it is named, what is allowed.
//! Data and validation only; `control` decides, `host` makes it so.
//!
//! Each noun is one record in the store, with what is wanted of it and what
//! was observed of it side by side. Who wants something writes the first, a
//! reconciler the second, both by compare-and-swap.
#![forbid(unsafe_code)]

mod access_key;
mod answer;
mod api_token;
mod id;
mod image;
mod instance;
mod instance_type;
mod invalid;
mod key_pair;
mod meta;
mod network;
mod operation;
mod quota;
mod security_group;
mod site;
mod snapshot;
mod tag_policy;
mod volume;

pub use access_key::AccessKey;
pub use answer::{Answer, Given};
pub use api_token::ApiToken;
pub use id::{
    AccountId, AllocationId, AssociationId, DhcpOptionsId, EventId, ImageId, InstanceId,
    InterfaceAttachmentId, InterfaceId, InternetGatewayId, KeyPairId, NetworkAclId, OperationId,
    ReservationId, RouteTableAssociationId, RouteTableId, SecurityGroupId, SecurityGroupRuleId,
    SnapshotId, SubnetId, VolumeId, VpcId, random_bytes,
};
pub use image::{Image, ImageDisk, ImageState};
pub use instance::{
    BlockDevice, Boot, BootStage, DATASOURCE_TAG, Desired, Instance, InstanceState, Interface,
    MetadataOptions, Noted, Pressed, ShutdownBehavior, StateReason, Token, USER_DATA_MAX,
};
pub use instance_type::{CATALOGUE, InstanceType, catalogued};
pub use invalid::Invalid;
pub use key_pair::{KeyPair, KeyType};
pub use meta::{Base64, Meta, TAGS_MAX, Tags, Timestamp, check_tags};
pub use network::{
    Association, InternetGateway, Route, RouteTable, RouteTarget, Subnet, Vpc, mac_of,
};
pub use operation::{Event, Operation, OperationState};
pub use quota::{Quota, Quotas};
pub use security_group::{Direction, Peer, Ports, Protocol, SecurityGroup, SecurityGroupRule};
pub use site::{Account, Claim, Done, Site};
pub use snapshot::{Snapshot, SnapshotState};
pub use tag_policy::TagPolicy;
pub use volume::{Attachment, AttachmentState, Volume, VolumeKind, VolumeState};
