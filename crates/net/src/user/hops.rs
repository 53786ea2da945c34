//! How far a guest's packets go, so that what traces routes in a guest sees those
//! of the host.

use std::os::fd::OwnedFd;

use rustix::net::sockopt::{set_ip_ttl, set_ipv6_unicast_hops};

/// What a packet has left behind the user network's router; `None`: as many as
/// any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hops(Option<u8>);

impl Hops {
    /// Least number of hops that is not meant to run out: what Linux begins with.
    const ENOUGH: u8 = 64;

    /// Those of a packet that the guest sent with `hops`.
    pub fn left(hops: u8) -> Self {
        Self((hops < Self::ENOUGH).then(|| hops.saturating_sub(1).max(1)))
    }

    /// Gives them to what a socket sends from now on, whose packets had
    /// `before`.
    pub fn apply(self, before: &mut Self, socket: &OwnedFd, v4: bool) {
        if self == *before {
            return;
        }
        *before = self;
        // Without it a route is traced to its end at once.
        let _ = match (v4, self.0) {
            (true, hops) => set_ip_ttl(socket, u32::from(hops.unwrap_or(Self::ENOUGH))),
            (false, hops) => set_ipv6_unicast_hops(socket, hops),
        };
    }
}
