//! A machine's port in a virtual private cloud (VPC): a gateway, a name
//! server and DHCP of its own, a member of the VPC's switch, and the security
//! groups' rules between them and the guest.
//!
//! Nothing else enforces a VPC: the port of the sender checks who sends and
//! what may leave, the port of the receiver what may come in, whatever the
//! other has checked. Card addresses are derived from private addresses, so
//! that the switch carries IP packets to single cards and nothing else.
//! `docs/network-vpc.md` tells users about it.

mod compiled;
mod counters;
mod error;
mod fragments;
mod link;
mod names;
mod network;
mod packet;
mod policy;
mod publish;
mod rules;
mod track;

pub use counters::PortMetrics;
pub use error::VpcError;
pub use network::{PortState, VpcNetwork};

/// The usual ports, of a range that is too wide to listen at each.
#[doc(hidden)]
pub use publish::{MOST_OF_A_RANGE, MOST_PUBLISHED};
