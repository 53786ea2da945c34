//! What tracking and rules need to know of a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::rules::Question;
use crate::user::wire::{Ip, array, be16, flag, protocol};

/// A flow between the guest and one other address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Number of its protocol.
    pub protocol: u8,
    /// The other's address; the guest has one of each family.
    pub remote: IpAddr,
    /// The guest's port, or the identifier of an echo.
    pub local: u16,
    /// The other's port; of an echo 1 if the other asks.
    pub other: u16,
}

/// What a packet does to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// A datagram, or a packet of a protocol without ports.
    Datagram,
    /// Asks for an echo.
    EchoRequest,
    /// Is one.
    EchoReply,
    /// Tells that a packet of this flow failed.
    Error(Option<Key>),
    /// Belongs to no flow.
    Single,
}

/// A packet in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub key: Key,
    pub kind: Kind,
    pub question: Question,
}

/// Sums a packet up; `outbound`: the guest sends it. `None` if it is too short
/// for its protocol.
pub fn summarize(ip: &Ip<'_>, outbound: bool) -> Option<Summary> {
    let remote = if outbound { ip.destination } else { ip.source };
    let (mut number, mut code) = (0, 0);
    let mut key = Key {
        protocol: ip.protocol,
        remote,
        local: 0,
        other: 0,
    };
    let kind = match ip.protocol {
        protocol::TCP | protocol::UDP => {
            let (source, destination) = (be16(ip.payload, 0)?, be16(ip.payload, 2)?);
            (key.local, key.other) = if outbound {
                (source, destination)
            } else {
                (destination, source)
            };
            number = destination;
            if ip.protocol == protocol::TCP {
                Kind::Tcp(*ip.payload.get(13)?)
            } else {
                ip.payload.get(7)?;
                Kind::Datagram
            }
        }
        protocol::ICMP | protocol::ICMPV6 => {
            // A family with the other's ICMP is nobody's.
            if (ip.protocol == protocol::ICMP) != remote.is_ipv4() {
                return None;
            }
            let [kind, icmp_code] = array(ip.payload, 0)?;
            (number, code) = (kind.into(), icmp_code);
            icmp(ip, kind, outbound, &mut key)?
        }
        _ => Kind::Datagram,
    };
    let question = Question {
        protocol: ip.protocol,
        number,
        code,
        remote,
    };
    Some(Summary {
        key,
        kind,
        question,
    })
}

fn icmp(ip: &Ip<'_>, kind: u8, outbound: bool, key: &mut Key) -> Option<Kind> {
    let v4 = ip.source.is_ipv4();
    let echo = |request: bool, key: &mut Key| {
        key.local = be16(ip.payload, 4)?;
        key.other = u16::from(outbound != request);
        Some(())
    };
    Some(match (kind, v4) {
        (8, true) | (128, false) => {
            echo(true, key)?;
            Kind::EchoRequest
        }
        (0, true) | (129, false) => {
            echo(false, key)?;
            Kind::EchoReply
        }
        (3 | 4 | 11 | 12, true) | (1..=4, false) => {
            Kind::Error(quoted(ip.payload.get(8..)?, v4, outbound))
        }
        _ => Kind::Single,
    })
}

/// The flow of the packet that an error quotes: it went the other way.
fn quoted(packet: &[u8], v4: bool, outbound: bool) -> Option<Key> {
    let (source, destination, number, rest): (IpAddr, IpAddr, u8, &[u8]) = if v4 {
        let first = *packet.first()?;
        let header = usize::from(first & 15) * 4;
        if first >> 4 != 4 || header < 20 {
            return None;
        }
        let source = Ipv4Addr::from(array::<4>(packet, 12)?);
        let destination = Ipv4Addr::from(array::<4>(packet, 16)?);
        let number = *packet.get(9)?;
        (
            source.into(),
            destination.into(),
            number,
            packet.get(header..)?,
        )
    } else {
        let source = Ipv6Addr::from(array::<16>(packet, 8)?);
        let destination = Ipv6Addr::from(array::<16>(packet, 24)?);
        (
            source.into(),
            destination.into(),
            *packet.get(6)?,
            packet.get(40..)?,
        )
    };
    let remote = if outbound { source } else { destination };
    let mut key = Key {
        protocol: number,
        remote,
        local: 0,
        other: 0,
    };
    match number {
        protocol::TCP | protocol::UDP => {
            let ports = (be16(rest, 0)?, be16(rest, 2)?);
            (key.local, key.other) = if outbound { (ports.1, ports.0) } else { ports };
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let request = matches!((rest.first()?, v4), (8, true) | (128, false));
            key.local = be16(rest, 4)?;
            // The quoted packet went the other way.
            key.other = u16::from(outbound == request);
        }
        _ => {}
    }
    Some(key)
}

/// Whether a segment begins a connection.
pub const fn begins(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}
