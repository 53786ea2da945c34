//! `--net user`: the host's network for a guest, without any privilege.
//!
//! The guest sees a link with a router, a name server and DHCP; its TCP
//! connections and UDP ports become sockets of the monitor ([`tcp`], [`udp`]).
//! `docs/network-user.md` tells users about it, and why it is made this way.

pub(crate) mod arp;
mod config;
pub(crate) mod context;
pub(crate) mod counters;
mod dhcp;
pub(crate) mod dhcp6;
mod dns;
mod doors;
mod echo;
mod error;
mod errors;
mod fragment;
mod hops;
pub(crate) mod icmp;
mod nat;
pub(crate) mod ndp;
mod network;
mod policy;
mod publication;
mod published;
mod slab;
mod stack;
mod tcp;
mod udp;
pub(crate) mod wire;

pub use config::{Limits, Reach, Subnet4, Subnet6, UserConfig};
pub use counters::UserMetrics;
pub use dhcp::Leases;
pub use echo::{Pinging, pinging};
pub use error::UserError;
pub use network::{UserNetwork, UserState};
pub use policy::{Flow, FlowPolicy, Open, Target, Transport, Verdict};
pub use publication::Publication;
pub use stack::UserLink;
