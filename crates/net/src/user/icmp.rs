//! ICMP (RFC 792) and ICMPv6 (RFC 4443): answers to echo requests for the
//! network's own addresses, and errors told to the guest.

use std::net::{IpAddr, SocketAddr};

use super::context::Context;
use super::wire::{Ip, IpHeader, checksum, protocol, put};

/// Type of an echo request, by family.
const ECHO4: u8 = 8;
const ECHO6: u8 = 128;
/// Type of an echo reply, by family.
const REPLY4: u8 = 0;
const REPLY6: u8 = 129;

/// Why a packet did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// The host does not answer.
    Host,
    /// Nobody listens on the port.
    Port,
    /// Forbidden.
    Prohibited,
    /// It may go no further hop.
    Hops,
}

impl Unreachable {
    /// Type and code.
    const fn code(self, v4: bool) -> [u8; 2] {
        match (self, v4) {
            (Self::Network, true) => [3, 0],
            (Self::Host, true) => [3, 1],
            (Self::Port, true) => [3, 3],
            (Self::Prohibited, true) => [3, 13],
            (Self::Network, false) => [1, 0],
            (Self::Prohibited, false) => [1, 1],
            (Self::Host, false) => [1, 3],
            (Self::Port, false) => [1, 4],
            (Self::Hops, true) => [11, 0],
            (Self::Hops, false) => [3, 0],
        }
    }
}

/// An echo request.
pub struct Echo<'a> {
    /// Names the one who asks.
    pub id: u16,
    /// Number and data.
    pub rest: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Reads the echo request in a packet, if it is one.
    pub fn parse(ip: &Ip<'a>) -> Option<Self> {
        let wanted = if ip.source.is_ipv4() { ECHO4 } else { ECHO6 };
        if ip.payload.get(..2)? != [wanted, 0] || !holds(ip) {
            return None;
        }
        Some(Self {
            id: super::wire::be16(ip.payload, 4)?,
            rest: ip.payload.get(6..)?,
        })
    }
}

/// Whether a packet's ICMP checksum is right.
pub fn holds(ip: &Ip<'_>) -> bool {
    if ip.source.is_ipv4() {
        checksum::fold(checksum::add(0, ip.payload)) == 0xffff
    } else {
        checksum::holds(ip.source, ip.destination, protocol::ICMPV6, ip.payload)
    }
}

/// An echo request as the host's sockets take it; they fill in the checksum of
/// ICMPv6, and we that of ICMP.
pub fn request(v4: bool, id: u16, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![if v4 { ECHO4 } else { ECHO6 }, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(rest);
    if v4 {
        let sum = !checksum::fold(checksum::add(0, &message));
        put(&mut message, 2, &sum.to_be_bytes());
    }
    message
}

/// Identifier, and number and data, if `message` is an echo reply.
pub fn reply_parts(v4: bool, message: &[u8]) -> Option<(u16, &[u8])> {
    let wanted = if v4 { REPLY4 } else { REPLY6 };
    (message.get(..2)? == [wanted, 0]).then_some(())?;
    Some((super::wire::be16(message, 4)?, message.get(6..)?))
}

/// Sends an echo reply to the guest.
pub fn reply(context: &mut Context, from: IpAddr, to: IpAddr, id: u16, rest: &[u8]) {
    let kind = if from.is_ipv4() { REPLY4 } else { REPLY6 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(rest);
    send(context, from, to, message);
}

/// Tells the guest that a packet did not arrive. `transport` is the beginning
/// of what followed the packet's IP header.
pub fn unreachable(
    context: &mut Context,
    why: Unreachable,
    guest: SocketAddr,
    remote: SocketAddr,
    number: u8,
    transport: &[u8],
) {
    unreachable_by(context, (why, None), guest, remote, number, transport);
}

/// As [`unreachable`], as the router on the way tells it that is given.
pub fn unreachable_by(
    context: &mut Context,
    (why, by): (Unreachable, Option<IpAddr>),
    guest: SocketAddr,
    remote: SocketAddr,
    number: u8,
    transport: &[u8],
) {
    let Some(inner) = IpHeader::new(guest.ip(), remote.ip(), number) else {
        return;
    };
    let quoted = transport
        .get(..transport.len().min(1200))
        .unwrap_or_default();
    let mut message = vec![0; 8 + inner.length()];
    put(&mut message, 0, &why.code(guest.is_ipv4()));
    if let Some(place) = message.get_mut(8..)
        && inner.write(place, transport.len()).is_none()
    {
        return;
    }
    // IPv4 routers quote little (RFC 792); 8 bytes name the ports.
    let quoted = if guest.is_ipv4() {
        quoted.get(..quoted.len().min(520)).unwrap_or_default()
    } else {
        quoted
    };
    message.extend(quoted);
    // Errors come from the router, so that the guest believes them.
    let from = match (guest.ip(), context.config.v6) {
        (IpAddr::V4(_), _) => context.config.v4.gateway.into(),
        (IpAddr::V6(_), Some(v6)) => v6.gateway().into(),
        (IpAddr::V6(_), None) => return,
    };
    // Nobody outside has an address of the guest's own link.
    let by = by.filter(|by| by.is_ipv4() == guest.is_ipv4() && !context.config.is_guest(*by));
    send(context, by.unwrap_or(from), guest.ip(), message);
}

/// Tells the guest that a packet may not go beyond the router, as traceroute
/// wants to hear; errors and all but the first fragment are passed over
/// (RFC 1812, 4.3.2.7).
pub fn out_of_hops(context: &mut Context, ip: &Ip<'_>) {
    let is_icmp = matches!(ip.protocol, protocol::ICMP | protocol::ICMPV6);
    let first = ip.fragment.as_ref().is_none_or(|part| part.offset == 0);
    if !first || is_icmp && Echo::parse(ip).is_none() {
        return;
    }
    let guest = SocketAddr::new(ip.source, 0);
    let remote = SocketAddr::new(ip.destination, 0);
    let why = Unreachable::Hops;
    unreachable(context, why, guest, remote, ip.protocol, ip.payload);
}

/// The first 8 bytes of a UDP datagram or TCP segment, to be quoted.
pub fn ports(guest: SocketAddr, remote: SocketAddr, rest: u32) -> [u8; 8] {
    let mut out = [0; 8];
    put(&mut out, 0, &guest.port().to_be_bytes());
    put(&mut out, 2, &remote.port().to_be_bytes());
    put(&mut out, 4, &rest.to_be_bytes());
    out
}

/// Sends a message with its checksum to the guest.
pub fn send(context: &mut Context, from: IpAddr, to: IpAddr, mut message: Vec<u8>) {
    let number = if from.is_ipv4() {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    let Some(mut header) = IpHeader::new(from, to, number) else {
        return;
    };
    put(&mut message, 2, &[0, 0]);
    let pseudo = if from.is_ipv4() {
        0
    } else {
        // Neighbour discovery wants to see that no router was on the way.
        header.hops = 255;
        checksum::pseudo(from, to, number, message.len())
    };
    let sum = !checksum::fold(checksum::add(pseudo, &message));
    put(&mut message, 2, &sum.to_be_bytes());
    let group = match to {
        IpAddr::V6(v6) if v6.is_multicast() => {
            let [.., c, d, e, f] = v6.octets();
            Some(super::wire::Mac([0x33, 0x33, c, d, e, f]))
        }
        _ => None,
    };
    match group {
        Some(card) => context.send_ip_to(&header, card, &message),
        None => context.send_ip(&header, &message),
    }
}
