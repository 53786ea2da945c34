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
        let own = (target, context.mac());
        send(context, 2, own, (sender, card), card);
    }
    let known = context.config.v4.is_guest(sender);
    known.then_some((sender, card))
}

/// Asks who has `address`.
pub fn ask(context: &mut Context, address: Ipv4Addr) {
    let gateway = context.config.v4.gateway;
    let own = (gateway, context.mac());
    send(context, 1, own, (address, Mac([0; 6])), Mac::BROADCAST);
}

/// A question by the card and address `asker` for the card of `target`.
pub struct Asked {
    /// Who asks; without an address while it tests one.
    pub asker: (Ipv4Addr, Mac),
    /// Whose card is wanted; `None` if it is no question.
    pub target: Option<Ipv4Addr>,
}

/// Reads an ARP packet.
pub fn read(packet: &[u8]) -> Option<Asked> {
    if packet.get(..6)? != PREFIX {
        return None;
    }
    let operation: [u8; 2] = array(packet, 6)?;
    let target = Ipv4Addr::from(array::<4>(packet, 24)?);
    Some(Asked {
        asker: (
            Ipv4Addr::from(array::<4>(packet, 14)?),
            Mac(array(packet, 8)?),
        ),
        target: (operation == [0, 1]).then_some(target),
    })
}

/// Tells the guest whose card an address has.
pub fn tell(context: &mut Context, of: (Ipv4Addr, Mac), asker: (Ipv4Addr, Mac)) {
    send(context, 2, of, asker, asker.1);
}

fn send(
    context: &mut Context,
    operation: u8,
    (from, card): (Ipv4Addr, Mac),
    (to, target): (Ipv4Addr, Mac),
    destination: Mac,
) {
    let mut frame = vec![0; ETHERNET + LENGTH];
    Ethernet::write(&mut frame, destination, card, kind::ARP);
    let mut at = ETHERNET;
    for part in [
        &PREFIX[..],
        &[0, operation],
        &card.0,
        &from.octets(),
        &target.0,
        &to.octets(),
    ] {
        put(&mut frame, at, part);
        at += part.len();
    }
    context.push(Offload::default(), frame);
}
