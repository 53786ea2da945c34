//! Address resolution for IPv4 (RFC 826).

use std::net::Ipv4Addr;

use super::context::Context;
use super::wire::{ETHERNET, Ethernet, Mac, array, kind, put};
use crate::Offload;

const LENGTH: usize = 28;
/// Hardware Ethernet, protocol IPv4, and the lengths of their addresses.
const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Hears an ARP packet, answers a question for the network's own addresses,
/// and says which guest address it is about.
pub fn hear(context: &mut Context, packet: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    if packet.get(..6)? != PREFIX {
        return None;
    }
    let operation: [u8; 2] = array(packet, 6)?;
    let card = Mac(array(packet, 8)?);
    let sender = Ipv4Addr::from(array::<4>(packet, 14)?);
    let target = Ipv4Addr::from(array::<4>(packet, 24)?);
    if operation == [0, 1] && context.config.is_own(target.into()) {
        send(context, 2, target, card, sender, card);
    }
    let known = context.config.v4.is_guest(sender);
    known.then_some((sender, card))
}

/// Asks who has `address`.
pub fn ask(context: &mut Context, address: Ipv4Addr) {
    let gateway = context.config.v4.gateway();
    send(context, 1, gateway, Mac([0; 6]), address, Mac::BROADCAST);
}

fn send(
    context: &mut Context,
    operation: u8,
    from: Ipv4Addr,
    target: Mac,
    to: Ipv4Addr,
    destination: Mac,
) {
    let mut frame = vec![0; ETHERNET + LENGTH];
    Ethernet::write(&mut frame, destination, context.mac(), kind::ARP);
    let mut at = ETHERNET;
    for part in [
        &PREFIX[..],
        &[0, operation],
        &context.mac().0,
        &from.octets(),
        &target.0,
        &to.octets(),
    ] {
        put(&mut frame, at, part);
        at += part.len();
    }
    context.push(Offload::default(), frame);
}
