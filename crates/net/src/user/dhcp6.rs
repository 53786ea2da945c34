//! DHCPv6 for a network of one card (RFC 8415): it gives that card its one
//! address, to whoever asks there.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::context::Context;
use super::dhcp;
use super::wire::{Ip, Udp, array, be16, protocol};

/// Where clients speak to servers.
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Ports of servers and of clients.
const SERVER: u16 = 547;
const CLIENT: u16 = 546;

/// Kinds of messages.
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION: u8 = 11;

/// Codes of options.
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const ADDRESSES: u16 = 3;
const ADDRESS: u16 = 5;
const STATUS: u16 = 13;
const RAPID: u16 = 14;
const NAME_SERVERS: u16 = 23;
const DOMAINS: u16 = 24;

/// Values of [`STATUS`].
const SUCCESS: u16 = 0;
const NO_ADDRESS: u16 = 2;
const NOT_ON_LINK: u16 = 4;

/// Most sets of addresses that one message is answered for.
const MOST_SETS: usize = 8;

/// Whether a packet is for the server.
pub fn is_for_server(ip: &Ip<'_>) -> bool {
    ip.protocol == protocol::UDP
        && ip.destination == IpAddr::V6(SERVERS)
        && ip.fragment.is_none()
        && Udp::parse(ip.payload).is_some_and(|udp| udp.destination == SERVER)
}

/// The options of a message, or of an option.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (code, length) = (be16(self.0, 0)?, usize::from(be16(self.0, 2)?));
        let value = self.0.get(4..4 + length)?;
        self.0 = self.0.get(4 + length..).unwrap_or_default();
        Some((code, value))
    }
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    if let Ok(length) = u16::try_from(value.len()) {
        out.extend(code.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(value);
    }
}

/// Hears a datagram for the server, whose sender's card is known.
pub fn hear(context: &mut Context, ip: &Ip<'_>) {
    let (Some(address), Some(v6)) = (context.config.guest6, context.config.v6) else {
        return;
    };
    let Some(datagram) = Udp::parse(ip.payload) else {
        return;
    };
    let mut own = vec![0, 3, 0, 1];
    own.extend(context.mac().0);
    let Some(mut reply) = answer(datagram.payload, address, context.config.lease, &own) else {
        return;
    };
    option(&mut reply, NAME_SERVERS, &v6.dns().octets());
    let search = context.config.search.clone().unwrap_or_default();
    let domains = dhcp::domains(&search);
    if !domains.is_empty() {
        option(&mut reply, DOMAINS, &domains);
    }
    let from = SocketAddr::new(v6.router().into(), SERVER);
    context.send_udp(from, SocketAddr::new(ip.source, CLIENT), &reply);
}

/// The answer to a message, without what all answers have.
fn answer(message: &[u8], address: Ipv6Addr, lease: u32, own: &[u8]) -> Option<Vec<u8>> {
    let kind = *message.first()?;
    let options = || Options(message.get(4..).unwrap_or_default());
    let find = |code| options().find(|(c, _)| *c == code).map(|(_, value)| value);
    let client = find(CLIENT_ID);
    let rapid = find(RAPID).is_some();
    let ours = find(SERVER_ID);
    // Some must name this server, others none.
    let named = match kind {
        REQUEST | RENEW | RELEASE | DECLINE => ours == Some(own),
        SOLICIT | CONFIRM | REBIND => ours.is_none(),
        INFORMATION => ours.is_none_or(|ours| ours == own),
        _ => false,
    };
    if !named || (client.is_none() && kind != INFORMATION) {
        return None;
    }
    let mut out = vec![if kind == SOLICIT && !rapid {
        ADVERTISE
    } else {
        REPLY
    }];
    out.extend(message.get(1..4)?);
    option(&mut out, SERVER_ID, own);
    if let Some(client) = client {
        option(&mut out, CLIENT_ID, client);
    }
    let sets = options()
        .filter(|(code, _)| *code == ADDRESSES)
        .map(|(_, set)| set);
    match kind {
        CONFIRM => {
            let right = sets.flat_map(addresses).all(|one| one == address);
            let code = if right { SUCCESS } else { NOT_ON_LINK };
            option(&mut out, STATUS, &code.to_be_bytes());
        }
        RELEASE | DECLINE => option(&mut out, STATUS, &SUCCESS.to_be_bytes()),
        INFORMATION => {}
        _ => {
            for (number, set) in sets.take(MOST_SETS).enumerate() {
                let own = (number == 0).then_some(address);
                option(&mut out, ADDRESSES, &give(set, own, lease)?);
            }
        }
    }
    if kind == SOLICIT && rapid {
        option(&mut out, RAPID, &[]);
    }
    Some(out)
}

/// The addresses in a set.
fn addresses(set: &[u8]) -> impl Iterator<Item = Ipv6Addr> {
    let options = Options(set.get(12..).unwrap_or_default());
    let addresses = options.filter(|(code, _)| *code == ADDRESS);
    addresses.filter_map(|(_, value)| Some(Ipv6Addr::from(array::<16>(value, 0)?)))
}

/// A set with an address, or without. What else the client has in it ends.
fn give(set: &[u8], address: Option<Ipv6Addr>, lease: u32) -> Option<Vec<u8>> {
    let mut out = set.get(..4)?.to_vec();
    let life = |address: Ipv6Addr, lease: u32| {
        let mut value = address.octets().to_vec();
        value.extend(lease.to_be_bytes());
        value.extend(lease.to_be_bytes());
        value
    };
    out.extend((lease / 2).to_be_bytes());
    out.extend((lease / 5 * 4).to_be_bytes());
    match address {
        Some(address) => {
            option(&mut out, ADDRESS, &life(address, lease));
            for other in addresses(set)
                .filter(|other| *other != address)
                .take(MOST_SETS)
            {
                option(&mut out, ADDRESS, &life(other, 0));
            }
        }
        None => option(&mut out, STATUS, &NO_ADDRESS.to_be_bytes()),
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 4] = [0, 3, 0, 1];

    fn address() -> Ipv6Addr {
        "fd00::4".parse().unwrap()
    }

    fn message(kind: u8, parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = vec![kind, 1, 2, 3];
        for (code, value) in parts {
            option(&mut out, *code, value);
        }
        out
    }

    fn ask(kind: u8, parts: &[(u16, &[u8])]) -> Option<Vec<u8>> {
        answer(&message(kind, parts), address(), 3600, &OWN)
    }

    fn given(reply: &[u8]) -> Vec<Ipv6Addr> {
        let sets = Options(&reply[4..]).filter(|(code, _)| *code == ADDRESSES);
        sets.flat_map(|(_, set)| addresses(set)).collect()
    }

    #[test]
    fn a_client_gets_its_address_and_no_other() {
        let client: (u16, &[u8]) = (CLIENT_ID, b"client");
        let set: (u16, &[u8]) = (ADDRESSES, &[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
        let advertise = ask(SOLICIT, &[client, set]).unwrap();
        assert_eq!(advertise[..4], [ADVERTISE, 1, 2, 3]);
        assert_eq!(given(&advertise), [address()]);
        let rapid = ask(SOLICIT, &[client, (RAPID, &[]), set]).unwrap();
        assert_eq!(rapid[0], REPLY);
        let request = [client, (SERVER_ID, &OWN[..]), set, set];
        let reply = ask(REQUEST, &request).unwrap();
        assert_eq!((reply[0], given(&reply)), (REPLY, vec![address()]));
        let mut other = vec![0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut value = "fd00::99".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        value.extend([0; 8]);
        option(&mut other, ADDRESS, &value);
        let confirm = ask(CONFIRM, &[client, (ADDRESSES, &other)]).unwrap();
        let status = Options(&confirm[4..])
            .find(|(code, _)| *code == STATUS)
            .unwrap();
        assert_eq!(status.1, NOT_ON_LINK.to_be_bytes());
        let renew = ask(RENEW, &[client, (SERVER_ID, &OWN), (ADDRESSES, &other)]).unwrap();
        assert_eq!(given(&renew), [address(), "fd00::99".parse().unwrap()]);
    }

    #[test]
    fn what_is_for_others_or_broken_is_not_answered() {
        let client: (u16, &[u8]) = (CLIENT_ID, b"client");
        assert_eq!(ask(SOLICIT, &[]), None);
        assert_eq!(ask(REQUEST, &[client]), None);
        assert_eq!(ask(REQUEST, &[client, (SERVER_ID, b"another")]), None);
        assert_eq!(ask(REPLY, &[client]), None);
        assert!(ask(INFORMATION, &[]).is_some());
        let full = message(SOLICIT, &[client, (ADDRESSES, &[0; 12])]);
        for length in 0..full.len() {
            let _ = answer(&full[..length], address(), 3600, &OWN);
        }
    }
}
