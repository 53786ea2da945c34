//! What a machine says of its ports.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Protocol;

/// How much further a port answers that cannot be bound: port 22 at 10022.
pub const BY_THE_SIDE: u16 = 10_000;

/// A card in a VPC, as its machine describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// Which card of the machine, from 0.
    pub nic: u32,
    /// Its private address.
    pub address: Ipv4Addr,
    /// Its card address.
    pub mac: String,
    /// Address of the host's loopback at which its ports answer.
    pub public: Option<Ipv4Addr>,
    /// The ports that answer there.
    pub published: Vec<PublishedPort>,
    /// The ports that should, and do not.
    pub unpublished: Vec<UnpublishedPort>,
    /// Whether the cable is plugged in.
    pub link_up: bool,
}

/// A port of a machine that answers at its public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The guest's port.
    pub port: u16,
    /// The port of the public address: the same, or [`BY_THE_SIDE`] more where
    /// the host does not let it be bound.
    pub host_port: u16,
}

/// A port that rules open for the host's clients, but that does not answer at
/// the public address under its own number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpublishedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port, or the first of a range.
    pub port: u16,
    /// The last of the range.
    pub last: u16,
    /// Why, and what can be done.
    pub reason: String,
}
