//! What can go wrong when a port is set up or changed.

use std::io;
use std::net::Ipv4Addr;

use machine_protocol::vpc::PortError;

use crate::switch::SwitchError;
use crate::user::UserError;

/// A port that cannot be, or a change of one.
#[derive(Debug, thiserror::Error)]
pub enum VpcError {
    /// Its configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] PortError),
    /// Its VPC's switch cannot be joined.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// Its gateway cannot be set up.
    #[error(transparent)]
    User(#[from] UserError),
    /// The host gives no descriptors.
    #[error("cannot set up the port: {0}")]
    Host(#[from] io::Error),
    /// Another private address, which is the card's identity.
    #[error(
        "the card's private address is {is} and cannot become {asked} while the machine runs; \
         stop it first"
    )]
    Address {
        /// The card's.
        is: Ipv4Addr,
        /// As asked for.
        asked: Ipv4Addr,
    },
    /// A saved state of another version.
    #[error("the port's saved state has version {0}; this program knows version {1}")]
    Version(u32, u32),
}
