//! Neighbour discovery and router advertisements for IPv6 (RFC 4861, 4862,
//! name servers by RFC 8106).

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::config::{Reach, Subnet6};
use super::context::{Context, Token};
use super::wire::{Ip, Mac, array, put};
use super::{dhcp, icmp, nat};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Life of what is advertised, in seconds.
const LIFE: u32 = 86_400;
/// Life of the default route, in seconds.
const ROUTE_LIFE: u16 = 1800;
/// Between advertisements that nobody asked for.
const INTERVAL: Duration = Duration::from_secs(450);

/// Whether an ICMPv6 message is of neighbour discovery or of multicast
/// listeners, which are the router's to hear.
pub fn is_for_router(ip: &Ip<'_>) -> bool {
    matches!(ip.payload.first(), Some(130..=137 | 143))
}

/// Hears a message of neighbour discovery.
pub fn hear(context: &mut Context, ip: &Ip<'_>) {
    let Some(v6) = context.config.v6 else {
        return;
    };
    // Not from beyond a router (RFC 4861, 6.1.1).
    if ip.hops != 255 || !icmp::holds(ip) {
        context.counters.dropped_malformed.one();
        return;
    }
    match ip.payload.first() {
        Some(&ROUTER_SOLICITATION) => advertise(context, v6),
        Some(&NEIGHBOUR_SOLICITATION) => {
            answer(context, v6, ip);
        }
        _ => {}
    }
}

/// Answers a solicitation for one of the network's own addresses.
fn answer(context: &mut Context, v6: Subnet6, ip: &Ip<'_>) -> Option<()> {
    let target = Ipv6Addr::from(array::<16>(ip.payload, 8)?);
    if !context.config.is_own(target.into()) {
        return None;
    }
    // One who tests an address has none yet.
    let asker = match ip.source {
        IpAddr::V6(a) if a.is_unspecified() => ALL_NODES,
        IpAddr::V6(a) => a,
        IpAddr::V4(_) => return None,
    };
    let mut message = vec![0; 32];
    put(&mut message, 0, &[NEIGHBOUR_ADVERTISEMENT]);
    let solicited = asker != ALL_NODES;
    // Router, solicited, override.
    put(&mut message, 4, &[0xa0 | u8::from(solicited) << 6]);
    put(&mut message, 8, &target.octets());
    put(&mut message, 24, &[2, 1]);
    put(&mut message, 26, &context.mac().0);
    let from = if target == v6.router() {
        v6.router()
    } else {
        target
    };
    icmp::send(context, from.into(), asker.into(), message);
    Some(())
}

/// Advertises to all, and arms the next time.
pub fn advertise_later(context: &mut Context) {
    if let Some(v6) = context.config.v6 {
        advertise(context, v6);
        let next = context.now + INTERVAL;
        context.arm(next, Token::Advertise);
    }
}

fn advertise(context: &mut Context, v6: Subnet6) {
    // A host without IPv6 leads nowhere: no default route then.
    // A network with one address gives it by DHCPv6, and leads to others of its own.
    let managed = context.config.guest6.is_some();
    let leads = managed || context.config.reach != Reach::Nothing && nat::host_has_ipv6();
    let route = if leads { ROUTE_LIFE } else { 0 };
    let mac: Mac = context.mac();
    let flags = if managed { 0xc0 } else { 0 };
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, flags];
    message.extend(route.to_be_bytes());
    message.extend([0; 8]);
    // Source link-layer address.
    message.extend([1, 1]);
    message.extend(mac.0);
    // MTU.
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(context.config.mtu).to_be_bytes());
    if !managed {
        // Prefix: on the link, for addresses.
        message.extend([3, 4, 64, 0xc0]);
        message.extend(LIFE.to_be_bytes());
        message.extend(LIFE.to_be_bytes());
        message.extend([0; 4]);
        message.extend(v6.network.octets());
    }
    if context.config.reach != Reach::Nothing {
        // Recursive name server.
        message.extend([25, 3, 0, 0]);
        message.extend(LIFE.to_be_bytes());
        message.extend(v6.dns().octets());
        // Search list.
        let search = context.config.search.as_deref();
        let mut names = dhcp::domains(search.unwrap_or(context.resolvers.search()));
        names.resize(names.len().next_multiple_of(8), 0);
        if let (Ok(units), false) = (u8::try_from(1 + names.len() / 8), names.is_empty()) {
            message.extend([31, units, 0, 0]);
            message.extend(LIFE.to_be_bytes());
            message.extend(names);
        }
    }
    icmp::send(context, v6.router().into(), ALL_NODES.into(), message);
}
