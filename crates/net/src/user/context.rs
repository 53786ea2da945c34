//! What all protocols of a user network share: the frames that wait for the
//! guest, the guest's cards, the host's readiness, and the clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::config::UserConfig;
use super::counters::Counters;
use super::dns::Resolvers;
use super::slab::Id;
use super::tcp::Ends;
use super::wire::{self, ETHERNET, Ethernet, Fragment, IpHeader, Mac, protocol, put};
use crate::{Abilities, Checksum, Offload};

/// Most frames that wait, besides those of TCP connections.
const MAX_WAITING: usize = 1024;
/// Most addresses of the guest that are remembered.
const MAX_NEIGHBOURS: usize = 256;

/// Whose socket is ready, or whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Token {
    /// A TCP connection.
    Tcp(Id),
    /// A UDP flow.
    Udp(Id),
    /// A socket that listens for a publication.
    Listener(Id),
    /// The UDP socket of a publication.
    Published(Id),
    /// An ICMP echo flow.
    Echo(Id),
    /// The publications have changed.
    Publications,
    /// Router advertisement.
    Advertise,
    /// Looking for what has been idle too long.
    Sweep,
}

impl Token {
    /// As 64 bits for epoll. Indices have 24 bits, far beyond the limits.
    pub fn pack(self) -> u64 {
        let (kind, id) = match self {
            Self::Tcp(id) => (0, id),
            Self::Udp(id) => (1, id),
            Self::Listener(id) => (2, id),
            Self::Published(id) => (3, id),
            Self::Echo(id) => (4, id),
            Self::Publications => (5, Id::default()),
            Self::Advertise => (6, Id::default()),
            Self::Sweep => (7, Id::default()),
        };
        kind << 56 | u64::from(id.index & 0xff_ffff) << 32 | u64::from(id.generation)
    }

    /// Back from 64 bits.
    pub fn unpack(bits: u64) -> Option<Self> {
        let id = Id {
            index: u32::try_from(bits >> 32 & 0xff_ffff).ok()?,
            generation: u32::try_from(bits & 0xffff_ffff).ok()?,
        };
        Some(match bits >> 56 {
            0 => Self::Tcp(id),
            1 => Self::Udp(id),
            2 => Self::Listener(id),
            3 => Self::Published(id),
            4 => Self::Echo(id),
            5 => Self::Publications,
            6 => Self::Advertise,
            7 => Self::Sweep,
            _ => return None,
        })
    }
}

/// A frame for the guest.
pub struct Outgoing {
    pub offload: Offload,
    pub bytes: Vec<u8>,
}

/// Shared by all protocols.
pub struct Context {
    pub config: UserConfig,
    pub counters: Arc<Counters>,
    /// Connections that are open, for who saves the state.
    pub connections: Arc<Mutex<HashSet<Ends>>>,
    pub resolvers: Resolvers,
    /// What the guest accepts.
    pub guest: Abilities,
    /// The time of the last turn.
    pub now: Instant,
    pub neighbours: Neighbours,
    pub epoll: OwnedFd,
    timers: BinaryHeap<Reverse<(Instant, Token)>>,
    outbox: VecDeque<Outgoing>,
    /// Names the next packet that is fragmented.
    packet: u32,
}

impl Context {
    pub fn new(
        config: UserConfig,
        counters: Arc<Counters>,
        connections: Arc<Mutex<HashSet<Ends>>>,
    ) -> io::Result<Self> {
        let resolvers = match &config.resolvers {
            Some(servers) => Resolvers::fixed(servers.clone()),
            None => Resolvers::of_host(),
        };
        Ok(Self {
            config,
            counters,
            connections,
            resolvers,
            guest: Abilities::default(),
            now: Instant::now(),
            neighbours: Neighbours::default(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            timers: BinaryHeap::new(),
            outbox: VecDeque::new(),
            packet: 0,
        })
    }

    /// Hears of every change of a socket's readiness.
    pub fn watch(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, EventData::new_u64(token.pack()), flags)?;
        Ok(())
    }

    /// Hears when a socket can be read, as long as it can.
    pub fn watch_level(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        let data = EventData::new_u64(token.pack());
        epoll::add(&self.epoll, socket, data, EventFlags::IN)?;
        Ok(())
    }

    /// Goes on hearing of a socket of [`Self::watch_level`], or stops.
    pub fn watch_again(&self, socket: impl AsFd, token: Token, on: bool) {
        let flags = if on {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        // It was added before, so only a lack of memory makes this fail.
        let _ = epoll::modify(&self.epoll, socket, EventData::new_u64(token.pack()), flags);
    }

    /// Calls the token's owner at `when`, or soon after.
    pub fn arm(&mut self, when: Instant, token: Token) {
        self.timers.push(Reverse((when, token)));
    }

    /// The next token whose time has come.
    pub fn due(&mut self) -> Option<Token> {
        let Reverse((when, token)) = *self.timers.peek()?;
        if when > self.now {
            return None;
        }
        self.timers.pop();
        Some(token)
    }

    /// When the next one's comes.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((when, _))| *when)
    }

    /// Queues a frame for the guest; dropped when too many wait.
    pub fn push(&mut self, offload: Offload, bytes: Vec<u8>) {
        if self.outbox.len() >= MAX_WAITING {
            self.counters.dropped_full.one();
            return;
        }
        self.outbox.push_back(Outgoing { offload, bytes });
    }

    /// The first frame that waits.
    pub fn waiting(&self) -> Option<&Outgoing> {
        self.outbox.front()
    }

    /// Takes it away.
    pub fn taken(&mut self) {
        self.outbox.pop_front();
    }

    /// The gateway's card.
    pub fn mac(&self) -> Mac {
        self.config.gateway_mac()
    }

    /// The card of one of the guest's addresses.
    pub fn card_of(&self, guest: IpAddr) -> Option<Mac> {
        self.neighbours.card(guest)
    }

    /// Sends a UDP datagram to the guest.
    pub fn send_udp(&mut self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        let Some(card) = self.card_of(to.ip()) else {
            self.counters.dropped_full.one();
            return;
        };
        let macs = (self.mac(), card);
        let fits = data.len() + wire::UDP + ip_header(to.ip()) <= usize::from(self.config.mtu);
        let leave = fits && self.guest.partial_checksum;
        let Some((frame, checksum)) = wire::udp_frame(macs, from, to, data, leave) else {
            self.counters.dropped_malformed.one();
            return;
        };
        if fits {
            let offload = Offload {
                checksum,
                ..Offload::default()
            };
            self.push(offload, frame);
        } else if let Some(header) = IpHeader::new(from.ip(), to.ip(), protocol::UDP) {
            let payload = frame.get(ETHERNET + header.length()..).unwrap_or_default();
            self.send_fragments(&header, card, payload);
        }
    }

    /// Sends an IP packet to the guest whose payload is complete.
    pub fn send_ip(&mut self, header: &IpHeader, payload: &[u8]) {
        let Some(card) = self.card_of(header.destination) else {
            return;
        };
        self.send_ip_to(header, card, payload);
    }

    /// The same to a certain card.
    pub fn send_ip_to(&mut self, header: &IpHeader, card: Mac, payload: &[u8]) {
        if header.length() + payload.len() > usize::from(self.config.mtu) {
            self.send_fragments(header, card, payload);
            return;
        }
        let mut frame = vec![0; ETHERNET + header.length() + payload.len()];
        Ethernet::write(&mut frame, card, self.mac(), header.kind());
        if let Some(packet) = frame.get_mut(ETHERNET..) {
            if header.write(packet, payload.len()).is_none() {
                return;
            }
            put(packet, header.length(), payload);
        }
        self.push(Offload::default(), frame);
    }

    fn send_fragments(&mut self, header: &IpHeader, card: Mac, payload: &[u8]) {
        self.packet = self.packet.wrapping_add(1);
        let v6 = header.source.is_ipv6();
        let extension = if v6 { 8 } else { 0 };
        let room = (usize::from(self.config.mtu) - header.length() - extension) & !7;
        let mut outer = *header;
        if v6 {
            outer.protocol = 44;
        }
        for (number, part) in payload.chunks(room.max(8)).enumerate() {
            let offset = number * room;
            let fragment = Fragment {
                id: self.packet,
                offset,
                more: offset + part.len() < payload.len(),
            };
            let at = ETHERNET + header.length();
            let mut frame = vec![0; at + extension + part.len()];
            Ethernet::write(&mut frame, card, self.mac(), header.kind());
            let Some(packet) = frame.get_mut(ETHERNET..) else {
                return;
            };
            let written = if v6 {
                outer.write(packet, extension + part.len())
            } else {
                outer.write_v4_fragment(packet, part.len(), fragment)
            };
            if written.is_none() {
                return;
            }
            if v6 {
                let place = u16::try_from(offset).unwrap_or(0) | u16::from(fragment.more);
                put(&mut frame, at, &[header.protocol, 0]);
                put(&mut frame, at + 2, &place.to_be_bytes());
                put(&mut frame, at + 4, &fragment.id.to_be_bytes());
            }
            put(&mut frame, at + extension, part);
            self.push(Offload::default(), frame);
        }
    }

    /// What is left to the guest of a frame's checksum.
    pub const fn offload(checksum: Checksum) -> Offload {
        Offload {
            checksum,
            segmentation: crate::Segmentation::None,
            header_len: 0,
        }
    }
}

/// Length of an IP header without options.
pub const fn ip_header(address: IpAddr) -> usize {
    if address.is_ipv4() { 20 } else { 40 }
}

/// The cards behind the guest's addresses, as seen in its frames.
#[derive(Default)]
pub struct Neighbours {
    cards: HashMap<IpAddr, Mac>,
    /// The last one, which most frames come from.
    last: Option<(IpAddr, Mac)>,
}

impl Neighbours {
    /// A frame came from `card`; whether that is news.
    pub fn learn(&mut self, address: IpAddr, card: Mac) -> bool {
        if self.last == Some((address, card)) {
            return false;
        }
        if !card.is_unicast() {
            return false;
        }
        self.last = Some((address, card));
        if self.cards.len() >= MAX_NEIGHBOURS && !self.cards.contains_key(&address) {
            self.cards.clear();
        }
        self.cards.insert(address, card) != Some(card)
    }

    /// The card of an address. For an IPv6 address that never spoke it is the
    /// last that did, since there is hardly ever another.
    pub fn card(&self, address: IpAddr) -> Option<Mac> {
        match self.cards.get(&address) {
            Some(card) => Some(*card),
            None if address.is_ipv6() => self.last.map(|(_, card)| card),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let id = Id {
            index: 77,
            generation: u32::MAX,
        };
        for token in [
            Token::Tcp(id),
            Token::Udp(id),
            Token::Listener(id),
            Token::Published(id),
            Token::Echo(id),
            Token::Publications,
            Token::Advertise,
            Token::Sweep,
        ] {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
    }
}
