//! Where others decide on a guest's flows: security groups, and services of
//! the monitor at addresses that the guest sees (such as instance metadata).

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Kind of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// UDP datagrams between two ports.
    Udp,
    /// ICMP echo requests; the ports are 0.
    Echo,
}

/// A flow that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its kind.
    pub transport: Transport,
    /// The guest's address.
    pub guest: SocketAddr,
    /// The other address, as the guest sees it.
    pub remote: SocketAddr,
    /// Who began it outside, if it comes through a publication; `remote` is
    /// the gateway then.
    pub client: Option<SocketAddr>,
}

/// Where a flow is delivered instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address of the host's network.
    Address(SocketAddr),
    /// A stream socket of the host, for TCP; who listens there knows whose
    /// socket it is.
    Unix(PathBuf),
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As the network's own rules say.
    Default,
    /// Goes elsewhere, past the network's rules.
    Deliver(Target),
    /// Refused, and the guest is told.
    Refuse,
    /// Dropped without a word.
    Ignore,
}

/// Decides on the flows of one network. Called from the card's thread for the
/// first packet of each flow: quick, and never waits.
pub trait FlowPolicy: Debug + Send + Sync {
    /// What becomes of `flow`.
    fn decide(&self, flow: &Flow) -> Verdict;

    /// Most hops that TCP segments from `remote` go (time to live).
    fn hops(&self, remote: IpAddr) -> u8 {
        let _ = remote;
        64
    }
}

/// The policy of a network that has none: its own rules.
#[derive(Clone, Copy, Debug)]
pub struct Open;

impl FlowPolicy for Open {
    fn decide(&self, _: &Flow) -> Verdict {
        Verdict::Default
    }
}
