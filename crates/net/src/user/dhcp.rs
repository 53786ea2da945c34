//! DHCP for the guest (RFC 2131, options of RFC 2132, RFC 3397 and RFC 4702).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::config::{Reach, UserConfig};
use super::context::Context;
use super::wire::{self, Mac, array, be32, put};

/// Port of servers.
pub const SERVER: u16 = 67;
/// Port of clients.
const CLIENT: u16 = 68;
/// Most leases.
const MAX_LEASES: usize = 64;
/// Length of a message without options, cookie included.
const FIXED: usize = 240;
const COOKIE: u32 = 0x6382_5363;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// Who has which address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    by_card: BTreeMap<Mac, Ipv4Addr>,
}

impl Leases {
    /// The address of a card: the one it has, the one it wants, or the next
    /// that is free. `None` if all are taken.
    fn assign(
        &mut self,
        config: &UserConfig,
        card: Mac,
        wanted: Option<Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        if let Some(only) = config.only_card {
            return (only == card).then_some(config.v4.guest);
        }
        if let Some(has) = self.by_card.get(&card) {
            return Some(*has);
        }
        if self.by_card.len() >= MAX_LEASES {
            return None;
        }
        let free = |address: &Ipv4Addr| {
            config.v4.is_guest(*address) && !self.by_card.values().any(|taken| taken == address)
        };
        let first = u32::from(config.v4.guest);
        let last = u32::from(config.v4.broadcast());
        let address = wanted.filter(free).or_else(|| {
            (first..last)
                .map(Ipv4Addr::from)
                .take(2 * MAX_LEASES)
                .find(free)
        })?;
        self.by_card.insert(card, address);
        Some(address)
    }

    /// Cards and addresses.
    pub fn iter(&self) -> impl Iterator<Item = (Mac, Ipv4Addr)> {
        self.by_card.iter().map(|(card, address)| (*card, *address))
    }
}

/// A message of a client.
struct Message<'a> {
    bytes: &'a [u8],
    kind: u8,
    card: Mac,
    /// The address it says it has.
    has: Ipv4Addr,
    /// Option 50: the address it asks for.
    requested: Option<Ipv4Addr>,
    /// Option 54: the server it speaks to.
    server: Option<Ipv4Addr>,
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        // A request, over Ethernet.
        if bytes.get(..3)? != [1, 1, 6] || be32(bytes, FIXED - 4)? != COOKIE {
            return None;
        }
        let mut message = Self {
            bytes,
            kind: 0,
            card: Mac(array(bytes, 28)?),
            has: Ipv4Addr::from(array::<4>(bytes, 12)?),
            requested: None,
            server: None,
        };
        let mut options = bytes.get(FIXED..)?;
        while let Some(&code) = options.first() {
            if code == 0 {
                options = options.get(1..)?;
                continue;
            }
            if code == 255 {
                break;
            }
            let length = usize::from(*options.get(1)?);
            let value = options.get(2..2 + length)?;
            match (code, length) {
                (53, 1) => message.kind = *value.first()?,
                (50, 4) => message.requested = Some(Ipv4Addr::from(array::<4>(value, 0)?)),
                (54, 4) => message.server = Some(Ipv4Addr::from(array::<4>(value, 0)?)),
                _ => {}
            }
            options = options.get(2 + length..)?;
        }
        message.card.is_unicast().then_some(message)
    }

    /// The answer's kind, and the address given.
    fn answer(&self, config: &UserConfig, leases: &mut Leases) -> Option<(u8, Ipv4Addr)> {
        let none = Ipv4Addr::UNSPECIFIED;
        let other = self.server.is_some_and(|s| s != config.v4.gateway);
        match self.kind {
            DISCOVER => {
                let address = leases.assign(config, self.card, self.requested)?;
                Some((OFFER, address))
            }
            REQUEST if other => None,
            REQUEST => {
                let wanted = self.requested.unwrap_or(self.has);
                match leases.assign(config, self.card, Some(wanted)) {
                    Some(address) if address == wanted => Some((ACK, address)),
                    _ => Some((NAK, none)),
                }
            }
            DECLINE | RELEASE => {
                leases.by_card.remove(&self.card);
                None
            }
            INFORM => Some((ACK, none)),
            _ => None,
        }
    }
}

/// Answers a message to the server's port.
pub fn answer(context: &mut Context, leases: &mut Leases, card: Mac, bytes: &[u8]) {
    let Some(message) = Message::parse(bytes) else {
        context.counters.dropped_malformed.one();
        return;
    };
    let Some((kind, address)) = message.answer(&context.config, leases) else {
        return;
    };
    let reply = reply(context, &message, kind, address);
    let from = SocketAddr::new(context.config.v4.gateway.into(), SERVER);
    // A client without an address hears what is sent to all.
    let direct = !message.has.is_unspecified() && kind != NAK;
    let (to, card) = if direct {
        (message.has, card)
    } else {
        (Ipv4Addr::BROADCAST, Mac::BROADCAST)
    };
    let to = SocketAddr::new(to.into(), CLIENT);
    let macs = (context.mac(), card);
    if let Some((frame, checksum)) = wire::udp_frame(macs, from, to, &reply, false) {
        context.push(Context::offload(checksum), frame);
    }
}

fn reply(context: &Context, message: &Message<'_>, kind: u8, address: Ipv4Addr) -> Vec<u8> {
    let config = &context.config;
    let gateway = config.v4.gateway;
    let mut out = vec![0; FIXED];
    // Transaction, flags, relay, and the client's card are as it said them.
    for (from, to) in [(0, 12), (24, 44)] {
        put(
            &mut out,
            from,
            message.bytes.get(from..to).unwrap_or_default(),
        );
    }
    put(&mut out, 0, &[2]);
    if kind != NAK {
        put(&mut out, 12, &message.has.octets());
        put(&mut out, 16, &address.octets());
        put(&mut out, 20, &gateway.octets());
    }
    put(&mut out, FIXED - 4, &COOKIE.to_be_bytes());
    option(&mut out, 53, &[kind]);
    option(&mut out, 54, &gateway.octets());
    if kind != NAK {
        if message.kind != INFORM {
            option(&mut out, 51, &config.lease.to_be_bytes());
        }
        option(&mut out, 1, &config.v4.mask().octets());
        option(&mut out, 28, &config.v4.broadcast().octets());
        if config.reach != Reach::Nothing {
            option(&mut out, 3, &gateway.octets());
            option(&mut out, 6, &config.v4.dns.octets());
        }
        option(&mut out, 26, &config.mtu.to_be_bytes());
        if let Some(name) = &config.hostname {
            option(&mut out, 12, name.as_bytes());
        }
        let search = config
            .search
            .as_deref()
            .unwrap_or(context.resolvers.search());
        if let Some(first) = search.first() {
            option(&mut out, 15, first.as_bytes());
            for part in domains(search).chunks(255) {
                option(&mut out, 119, part);
            }
        }
    }
    out.push(255);
    // Some clients of BOOTP days want no less.
    out.resize(out.len().max(300), 0);
    out
}

fn option(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    if let (Ok(length), false) = (u8::try_from(value.len()), value.is_empty()) {
        out.extend([code, length]);
        out.extend(value);
    }
}

/// Domains as DNS writes them (RFC 1035, 3.1), as far as 512 bytes go.
pub fn domains(names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        let mut one = Vec::new();
        for label in name.trim_matches('.').split('.') {
            match u8::try_from(label.len()) {
                Ok(length @ 1..=63) => {
                    one.push(length);
                    one.extend(label.as_bytes());
                }
                _ => one.clear(),
            }
        }
        one.push(0);
        if one.len() > 1 && out.len() + one.len() <= 512 {
            out.extend(one);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_last_and_run_out() {
        let config = UserConfig::default();
        let mut leases = Leases::default();
        let card = |n| Mac([2, 0, 0, 0, 0, n]);
        let first = leases.assign(&config, card(1), None).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 0, 2, 15));
        let wanted = Ipv4Addr::new(10, 0, 2, 99);
        assert_eq!(leases.assign(&config, card(2), Some(wanted)), Some(wanted));
        let gateway = config.v4.gateway;
        let third = leases.assign(&config, card(3), Some(gateway)).unwrap();
        assert_eq!(third, Ipv4Addr::new(10, 0, 2, 16));
        assert_eq!(leases.assign(&config, card(1), Some(wanted)), Some(first));
        for n in 4..=64 {
            assert!(leases.assign(&config, card(n), None).is_some());
        }
        assert_eq!(leases.assign(&config, card(65), None), None);
    }

    #[test]
    fn domains_are_labels() {
        let names = ["a.bc".to_owned(), "x".repeat(64), "d.".to_owned()];
        assert_eq!(domains(&names), b"\x01a\x02bc\0\x01d\0");
    }
}
