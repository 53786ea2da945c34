//! A user network as one card sees it: [`crate::Link`].

use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};

use super::config::UserConfig;
use super::context::{Context, Token};
use super::doors::Porter;
use super::fragment::Reassembly;
use super::hops::Hops;
use super::icmp::{self, Echo};
use super::network::Shared;
use super::wire::{Ethernet, Ip, Mac, Tcp, Udp, checksum, kind, protocol};
use super::{arp, dhcp, dhcp6, echo, ndp, tcp, udp};
use crate::{Abilities, Checksum, Frame, Link, LinkError, Offload, Segmentation, Sent};

/// Most events taken from the kernel at once.
const EVENTS: usize = 128;
/// Between looks for what has been idle too long.
const SWEEP: Duration = Duration::from_secs(5);
/// Longest frame of a guest: 64 KiB and headers.
const LONGEST: usize = 65_550 + 128;

/// Where the frame is that the card was shown.
enum Shown {
    Nothing,
    /// The first that waits in the context.
    Waiting,
    /// Of a connection.
    Segment(tcp::Emission),
}

/// See the module.
pub struct UserLink {
    shared: Arc<Shared>,
    context: Context,
    tcp: tcp::Table,
    udp: udp::Table,
    echo: echo::Table,
    porter: Porter,
    fragments: Reassembly,
    shown: Shown,
    /// Datagrams and connections take turns.
    datagrams_next: bool,
}

impl UserLink {
    pub(super) fn new(config: UserConfig, shared: Arc<Shared>) -> std::io::Result<Self> {
        let mut context = Context::new(
            config,
            Arc::clone(&shared.counters),
            Arc::clone(&shared.connections),
        )?;
        let mut udp = udp::Table::new();
        let mut tcp = tcp::Table::new(context.config.limits.bytes);
        let doors = Arc::clone(&shared.doors);
        let porter = Porter::new(&mut context, doors, &mut tcp, &mut udp)?;
        ndp::advertise_later(&mut context);
        let mut link = Self {
            shared,
            context,
            tcp,
            udp,
            echo: echo::Table::new(),
            porter,
            fragments: Reassembly::default(),
            shown: Shown::Nothing,
            datagrams_next: false,
        };
        link.sweep();
        link.recall();
        Ok(link)
    }

    /// Goes on with another configuration; what is open stays open.
    pub(crate) fn set_config(&mut self, config: UserConfig) {
        let other = config.v6 != self.context.config.v6;
        self.context.config = config;
        if other {
            ndp::advertise_later(&mut self.context);
        }
    }

    /// What all its protocols share.
    pub(crate) fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    /// After a restore: cards are known, and connections that are no more are
    /// asked about, so that the guest hears of it.
    fn recall(&mut self) {
        let Some(state) = self.shared.restored.lock().take() else {
            return;
        };
        for (address, card) in &state.neighbours {
            if self.context.config.is_guest(*address) {
                self.context.neighbours.learn(*address, *card);
            }
        }
        for (guest, remote) in &state.connections {
            if self.context.config.is_guest(guest.ip()) {
                tcp::ask(&mut self.context, *guest, *remote);
            }
        }
    }

    fn sweep(&mut self) {
        let now = self.context.now;
        self.udp.sweep(&self.context);
        self.echo.sweep(now);
        self.fragments.expire(now);
        let lost = std::mem::take(&mut self.fragments.lost);
        self.context.counters.dropped_fragments.add(lost);
        self.context.arm(now + SWEEP, Token::Sweep);
    }

    /// Whether the frame was taken.
    fn take(&mut self, offload: &Offload, frame: &[u8]) -> Option<()> {
        let ethernet = Ethernet::parse(frame).filter(|_| frame.len() <= LONGEST)?;
        match ethernet.kind {
            kind::ARP => {
                if let Some((address, card)) = arp::hear(&mut self.context, ethernet.payload) {
                    self.learn(address.into(), card);
                }
                Some(())
            }
            kind::IPV4 => {
                let ip = Ip::parse_v4(ethernet.payload)?;
                self.take_ip(offload, &ethernet, &ip)
            }
            kind::IPV6 => {
                let ip = Ip::parse_v6(ethernet.payload)?;
                self.take_ip(offload, &ethernet, &ip)
            }
            _ => {
                self.context.counters.dropped_protocol.one();
                Some(())
            }
        }
    }

    fn learn(&mut self, address: IpAddr, card: Mac) {
        if self.context.neighbours.learn(address, card) {
            self.shared.remember(address, card);
            self.tcp.resolved(&mut self.context, address);
        }
    }

    fn take_ip(&mut self, offload: &Offload, ethernet: &Ethernet<'_>, ip: &Ip<'_>) -> Option<()> {
        if self.is_for_router(ethernet, ip) {
            return Some(());
        }
        if !self.context.config.is_guest(ip.source) {
            self.context.counters.dropped_spoofed.one();
            return Some(());
        }
        self.learn(ip.source, ethernet.source);
        let group = match ip.destination {
            IpAddr::V4(a) => {
                a.is_multicast() || a.is_broadcast() || a == self.context.config.v4.broadcast()
            }
            IpAddr::V6(a) => a.is_multicast(),
        };
        if group || ethernet.destination.is_multicast() {
            self.context.counters.dropped_group.one();
            return Some(());
        }
        if ip.hops <= 1 && self.goes_on(ip.destination) {
            icmp::out_of_hops(&mut self.context, ip);
            return Some(());
        }
        if ip.fragment.is_some() {
            let Some(whole) = self.fragments.take(ip, self.context.now) else {
                return Some(());
            };
            let whole = Ip {
                source: ip.source,
                destination: ip.destination,
                protocol: whole.protocol,
                hops: ip.hops,
                fragment: None,
                payload: &whole.payload,
            };
            return self.take_transport(&Offload::default(), &whole);
        }
        self.take_transport(offload, ip)
    }

    /// Whether a packet would leave the network's own link for this address.
    fn goes_on(&self, address: IpAddr) -> bool {
        let link_local = match address {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        !link_local && !self.context.config.is_own(address)
    }

    /// DHCP and neighbour discovery, which come from guests without address.
    fn is_for_router(&mut self, ethernet: &Ethernet<'_>, ip: &Ip<'_>) -> bool {
        match ip.protocol {
            protocol::UDP if ip.source.is_ipv4() && ip.fragment.is_none() => {
                let config = &self.context.config;
                let here = ip.destination == IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
                    || ip.destination == config.v4.broadcast()
                    || ip.destination == config.v4.gateway;
                let Some(udp) = Udp::parse(ip.payload) else {
                    return false;
                };
                if !here || udp.destination != dhcp::SERVER {
                    return false;
                }
                let mut leases = self.shared.leases.lock();
                dhcp::answer(&mut self.context, &mut leases, ethernet.source, udp.payload);
                true
            }
            protocol::UDP if dhcp6::is_for_server(ip) => {
                if self.context.config.is_guest(ip.source) {
                    self.learn(ip.source, ethernet.source);
                }
                dhcp6::hear(&mut self.context, ip);
                true
            }
            protocol::ICMPV6 if ndp::is_for_router(ip) => {
                if self.context.config.is_guest(ip.source) {
                    self.learn(ip.source, ethernet.source);
                }
                ndp::hear(&mut self.context, ip);
                true
            }
            _ => false,
        }
    }

    fn take_transport(&mut self, offload: &Offload, ip: &Ip<'_>) -> Option<()> {
        match ip.protocol {
            protocol::TCP => {
                let segment = Tcp::parse(ip.payload)?;
                self.verify(offload, ip)?;
                let guest = SocketAddr::new(ip.source, segment.source);
                let remote = SocketAddr::new(ip.destination, segment.destination);
                self.tcp.hear(&mut self.context, (guest, remote), &segment);
            }
            protocol::UDP => {
                let datagram = Udp::parse(ip.payload)?;
                if ip.payload.get(6..8) != Some(&[0, 0]) {
                    self.verify(offload, ip)?;
                }
                let guest = SocketAddr::new(ip.source, datagram.source);
                let remote = SocketAddr::new(ip.destination, datagram.destination);
                let size = match offload.segmentation {
                    Segmentation::Udp { size } => Some(usize::from(size)),
                    _ => None,
                };
                let datagram = udp::Datagram {
                    data: datagram.payload,
                    size,
                    hops: Hops::left(ip.hops),
                };
                self.udp.hear(&mut self.context, (guest, remote), &datagram);
            }
            protocol::ICMP | protocol::ICMPV6 => match Echo::parse(ip) {
                Some(request) => self.echo.hear(&mut self.context, ip, &request),
                None => self.context.counters.dropped_protocol.one(),
            },
            _ => self.context.counters.dropped_protocol.one(),
        }
        Some(())
    }

    /// Whether a packet's checksum is right, or left to us.
    fn verify(&self, offload: &Offload, ip: &Ip<'_>) -> Option<()> {
        let right = offload.checksum != Checksum::Complete
            || checksum::holds(ip.source, ip.destination, ip.protocol, ip.payload);
        right.then_some(())
    }

    fn event(&mut self, token: Token, event: &Event) {
        if token == Token::Publications {
            self.recall();
        }
        let context = &mut self.context;
        match token {
            Token::Tcp(id) => self.tcp.event(context, id, event.flags),
            Token::Udp(id) => self.udp.event(context, id, event.flags),
            Token::Listener(id) => self.porter.accept(context, &mut self.tcp, id),
            Token::Published(id) => self.udp.sessions.event(id),
            Token::Echo(id) => self.echo.event(context, id),
            Token::Publications => self.porter.sync(context, &mut self.tcp, &mut self.udp),
            Token::Advertise | Token::Sweep => {}
        }
    }

    fn time(&mut self, token: Token) {
        match token {
            Token::Tcp(id) => self.tcp.time(&mut self.context, id),
            Token::Listener(id) => self.porter.set_open(&self.context, id, true),
            Token::Advertise => ndp::advertise_later(&mut self.context),
            Token::Sweep => self.sweep(),
            _ => {}
        }
    }

    /// Makes the next frame ready.
    fn show(&mut self) {
        if !matches!(self.shown, Shown::Nothing) {
            return;
        }
        if self.context.waiting().is_some() {
            self.shown = Shown::Waiting;
            return;
        }
        self.datagrams_next = !self.datagrams_next;
        if self.datagrams_next && self.udp.next(&mut self.context) && self.wait() {
            return;
        }
        if let Some(emission) = self.tcp.next(&mut self.context) {
            self.shown = Shown::Segment(emission);
            return;
        }
        while !self.wait() && self.udp.next(&mut self.context) {}
    }

    /// Whether a frame waits now, which is shown then.
    fn wait(&mut self) -> bool {
        let waits = self.context.waiting().is_some();
        if waits {
            self.shown = Shown::Waiting;
        }
        waits
    }
}

impl Link for UserLink {
    fn abilities(&self) -> Abilities {
        Abilities {
            partial_checksum: true,
            tcp4: true,
            tcp6: true,
            udp: true,
        }
    }

    fn set_guest_abilities(&mut self, guest: Abilities) {
        self.context.guest = guest;
    }

    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<Sent, LinkError> {
        if self.take(offload, frame).is_some() {
            return Ok(Sent::Yes);
        }
        self.context.counters.dropped_malformed.one();
        Ok(Sent::Dropped)
    }

    fn incoming(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        self.show();
        Ok(match &self.shown {
            Shown::Nothing => None,
            Shown::Waiting => self.context.waiting().map(|outgoing| Frame {
                offload: outgoing.offload,
                bytes: &outgoing.bytes,
            }),
            Shown::Segment(emission) => Some(Frame {
                offload: emission.offload,
                bytes: emission.bytes(),
            }),
        })
    }

    fn consume(&mut self) {
        match std::mem::replace(&mut self.shown, Shown::Nothing) {
            Shown::Nothing => {}
            Shown::Waiting => self.context.taken(),
            Shown::Segment(emission) => self.tcp.consumed(emission),
        }
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.context.epoll.as_fd()
    }

    fn turn(&mut self, now: Instant) -> Option<Instant> {
        self.context.now = now;
        let mut place = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // If interrupted, the next turn sees what this one did not.
        let found = epoll::wait(&self.context.epoll, &mut place, Some(&at_once));
        if let Ok((events, _)) = found {
            for event in events {
                if let Some(token) = Token::unpack(event.data.u64()) {
                    self.event(token, event);
                }
            }
        }
        while let Some(token) = self.context.due() {
            self.time(token);
        }
        self.context.next_due()
    }
}
