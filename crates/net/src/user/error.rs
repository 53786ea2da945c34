//! What can go wrong when a user network is set up.

use std::io;

use super::publication::Publication;

/// A user network, or a change of one, that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A subnet's text or value is no good.
    #[error(
        "{0} is no subnet for a guest: for IPv4 give its first address and a prefix of 8 to 28 \
         bits (10.0.2.0/24), for IPv6 one of 64 bits (fec0::/64)"
    )]
    Subnet(String),
    /// An MTU is out of bounds.
    #[error("an MTU of {0} is not possible: choose one of 1280 to 65520 bytes")]
    Mtu(u16),
    /// A publication's text.
    #[error(
        "{0:?} is no publication: write [ADDR:]HOST:GUEST[/udp], such as 2222:22 or \
         0.0.0.0:5353:53/udp; IPv6 addresses in brackets"
    )]
    Publication(String),
    /// A publication that the host refuses.
    #[error("cannot publish {publication}: {source}; {hint}")]
    Publish {
        /// Which.
        publication: Publication,
        /// What the user can do.
        hint: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// A publication that does not exist.
    #[error("{0} is not published")]
    NotPublished(Publication),
    /// A publication that exists already.
    #[error("{0} is published already")]
    AlreadyPublished(Publication),
    /// The host has no descriptors or memory left.
    #[error("cannot set up the user network: {0}")]
    Host(#[from] io::Error),
    /// A saved state of another version.
    #[error("the user network's saved state has version {0}; this program knows version {1}")]
    Version(u32, u32),
}
