//! The rules for flows that the port's gateway carries: out of the VPC, and
//! in from the host's clients.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::compiled::{Compiled, METADATA4, METADATA6};
use super::counters::Counters;
use super::rules::Question;
use crate::user::wire::protocol;
use crate::user::{Flow, FlowPolicy, Target, Transport, Verdict};

/// Port of the metadata service.
const HTTP: u16 = 80;
/// Type of an echo request, by family.
const ECHO: [u16; 2] = [8, 128];

/// See the module.
#[derive(Debug)]
pub struct PortPolicy {
    port: Arc<Compiled>,
    counters: Arc<Counters>,
    host: Vec<IpAddr>,
}

impl PortPolicy {
    pub fn new(port: Arc<Compiled>, counters: Arc<Counters>) -> Self {
        Self {
            host: port.host_addresses(),
            port,
            counters,
        }
    }

    /// A client of a published port. One on the host counts as any of the
    /// host's addresses.
    fn client(&self, flow: &Flow, client: SocketAddr) -> Verdict {
        let own = client.ip().is_loopback() || self.host.contains(&client.ip());
        let one = [client.ip()];
        let addresses = if own { &self.host[..] } else { &one };
        let allowed = addresses.iter().any(|remote| {
            self.port.ingress.allow(&Question {
                protocol: number(flow),
                number: flow.guest.port(),
                code: 0,
                remote: *remote,
            })
        });
        if allowed {
            return Verdict::Default;
        }
        self.counters.dropped_ingress.one();
        Verdict::Ignore
    }
}

const fn number(flow: &Flow) -> u8 {
    match flow.transport {
        Transport::Tcp => protocol::TCP,
        Transport::Udp => protocol::UDP,
        Transport::Echo if flow.remote.is_ipv4() => protocol::ICMP,
        Transport::Echo => protocol::ICMPV6,
    }
}

/// Whether an address is the metadata service's.
pub fn is_metadata(address: IpAddr) -> bool {
    address == METADATA4 || address == METADATA6
}

impl FlowPolicy for PortPolicy {
    fn decide(&self, flow: &Flow) -> Verdict {
        if let Some(client) = flow.client {
            return self.client(flow, client);
        }
        let remote = flow.remote.ip();
        if is_metadata(remote) {
            return match self.port.metadata() {
                Some(socket) if flow.transport == Transport::Tcp && flow.remote.port() == HTTP => {
                    Verdict::Deliver(Target::Unix(socket.clone()))
                }
                _ => Verdict::Refuse,
            };
        }
        // As in EC2, rules do not hold for the name server.
        if self.port.is_name_server(remote) {
            return Verdict::Default;
        }
        let (transport, at) = (flow.transport, usize::from(remote.is_ipv6()));
        let kind = ECHO.get(at).copied().unwrap_or_default();
        let allowed = self.port.egress.allow(&Question {
            protocol: number(flow),
            number: if transport == Transport::Echo {
                kind
            } else {
                flow.remote.port()
            },
            code: 0,
            remote,
        });
        if allowed {
            return Verdict::Default;
        }
        self.counters.dropped_egress.one();
        Verdict::Ignore
    }

    fn hops(&self, remote: IpAddr) -> u8 {
        match &self.port.config.metadata {
            Some(metadata) if is_metadata(remote) => metadata.hop_limit,
            _ => 64,
        }
    }
}
