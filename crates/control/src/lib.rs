//! What can be done with Holm's nouns. Every door (EC2, REST) calls a
//! [`Plane`], and nothing else writes what users want.
//!
//! Reads come from a [`View`] of the store in memory. A write is a
//! transaction: a function that reads the view and fills a [`Batch`], which the
//! store takes only if what was read still holds; otherwise it is done again.
//! An operation has returned when the view shows what it did. It writes what is
//! wanted; crate `host` makes it so and writes what came of it, by the same
//! transactions.
#![forbid(unsafe_code)]

mod access_keys;
mod addresses;
mod answers;
mod api_tokens;
mod batch;
mod bootstrap;
mod caller;
mod events;
mod gateways;
mod housekeeping;
mod idempotency;
mod images;
mod instance_types;
mod instances;
mod key_pairs;
mod launch;
mod operations;
mod plane;
mod policy;
mod quotas;
mod refusal;
mod reports;
mod route_tables;
mod security_groups;
mod snapshots;
mod subnets;
mod tags;
mod view;
mod volumes;
mod vpcs;

pub use access_keys::NewAccessKey;
pub use api_tokens::NewApiToken;
pub use batch::Batch;
pub use caller::Caller;
pub use idempotency::Token;
pub use images::{CreateImage, RegisterDisk, RegisterImage};
pub use instances::{InstanceChange, Transition};
pub use key_pairs::{KeyMaterial, NewKeyPair};
pub use launch::{DiskRequest, Launched, PublicAddress, RunInstances};
pub use plane::{Owned, Plane};
pub use quotas::QuotaReport;
pub use refusal::{Kind, Refusal};
pub use reports::{BootTimes, Drift, Orphan, boot_times};
pub use security_groups::NewSecurityGroup;
pub use snapshots::NewSnapshot;
pub use subnets::NewSubnet;
pub use view::{Changed, Kept, View};
pub use volumes::{AttachVolume, NewVolume, VolumeChange};
pub use vpcs::NewVpc;

#[cfg(test)]
mod tests;
