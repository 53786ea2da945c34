//! A port as its card sees it: [`crate::Link`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::compiled::{Compiled, Way};
use super::counters::Counters;
use super::fragments::Fragments;
use super::network::Shared;
use super::packet::{Kind, summarize};
use super::rules::Question;
use super::track::Outcome;
use crate::switch::SwitchLink;
use crate::user::UserLink;
use crate::user::wire::{ETHERNET, Ethernet, Ip, Udp, checksum, kind, protocol, put};
use crate::user::{arp, dhcp6, icmp, ndp};
use crate::{Abilities, Frame, Link, LinkError, MacAddress, Offload, Sent};

/// Frames of others that are thrown away at once, so that the guest's own get
/// their turn.
const AT_ONCE: usize = 256;
/// Ports of DHCP's server and of DNS.
const DHCP: u16 = 67;
const DNS: u16 = 53;

/// Where the frame is that the card was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    Gateway,
    Switch,
}

/// What becomes of a frame of the guest.
enum Step {
    /// The gateway takes it.
    Gateway,
    /// It goes to this card, a hop further if it is routed.
    Member(MacAddress, bool),
    /// It is answered.
    Taken,
    /// It is thrown away, and counted.
    Dropped,
}

/// See the module.
pub struct VpcLink {
    shared: Arc<Shared>,
    port: Arc<Compiled>,
    generation: u64,
    gateway: UserLink,
    switch: SwitchLink,
    epoll: OwnedFd,
    sent_pieces: Fragments,
    received_pieces: Fragments,
    /// For frames that are changed on their way.
    scratch: Vec<u8>,
    shown: Shown,
    /// The switch and the gateway take turns.
    switch_next: bool,
    /// There may be more on the switch than was looked at.
    more: bool,
    now: Instant,
}

impl VpcLink {
    pub(super) fn new(
        shared: Arc<Shared>,
        port: Arc<Compiled>,
        gateway: UserLink,
        switch: SwitchLink,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, fd) in [(0, gateway.ready_fd()), (1, switch.ready_fd())] {
            epoll::add(&epoll, fd, EventData::new_u64(number), EventFlags::IN)?;
        }
        let mut link = Self {
            shared,
            port,
            generation: 0,
            gateway,
            switch,
            epoll,
            sent_pieces: Fragments::default(),
            received_pieces: Fragments::default(),
            scratch: Vec::new(),
            shown: Shown::Nothing,
            switch_next: false,
            more: false,
            now: Instant::now(),
        };
        link.refresh();
        Ok(link)
    }

    /// Takes up a new configuration.
    fn refresh(&mut self) {
        let Some(port) = self.shared.newer(&mut self.generation) else {
            return;
        };
        self.gateway
            .set_config(port.user_config(&self.shared.counters));
        // The guest's card is known before it speaks.
        let neighbours = &mut self.gateway.context().neighbours;
        neighbours.learn(port.config.address.into(), port.mac);
        if let Some(v6) = port.config.ipv6 {
            neighbours.learn(v6.into(), port.mac);
        }
        self.port = port;
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn drop_for(&self, counter: impl FnOnce(&Counters) -> &crate::user::counters::Counter) -> Step {
        counter(&self.shared.counters).one();
        Step::Dropped
    }

    /// Decides on a frame of the guest; `None`: it is malformed.
    fn judge(&mut self, frame: &[u8]) -> Option<Step> {
        let ethernet = Ethernet::parse(frame)?;
        if ethernet.source != self.port.mac {
            return Some(self.drop_for(|c| &c.dropped_spoofed));
        }
        match ethernet.kind {
            kind::ARP => self.resolve(ethernet.payload),
            kind::IPV4 => {
                let ip = Ip::parse_v4(ethernet.payload)?;
                self.judge_ip(&ethernet, &ip)
            }
            kind::IPV6 => {
                let ip = Ip::parse_v6(ethernet.payload)?;
                self.judge_ip(&ethernet, &ip)
            }
            _ => None,
        }
    }

    /// Answers who asks for a card of the subnet: all are known.
    fn resolve(&mut self, packet: &[u8]) -> Option<Step> {
        let asked = arp::read(packet)?;
        let (address, card) = asked.asker;
        let own = address == self.port.config.address || address.is_unspecified();
        if card != self.port.mac || !own {
            return Some(self.drop_for(|c| &c.dropped_spoofed));
        }
        let Some(target) = asked.target else {
            return Some(Step::Taken);
        };
        let gateway = self.gateway.context().mac();
        let found = match self.port.way(target.into()) {
            Way::Port => Some(gateway),
            Way::Member(card) if self.port.config.subnet.contains(target.into()) => Some(card),
            _ => None,
        };
        if let Some(found) = found {
            arp::tell(self.gateway.context(), (target, found), asked.asker);
        }
        Some(Step::Taken)
    }

    fn judge_ip(&mut self, ethernet: &Ethernet<'_>, ip: &Ip<'_>) -> Option<Step> {
        if is_dhcp(&self.port, ip) {
            // The host's address is set by who made its port.
            return Some(match self.port.config.host {
                true => self.drop_for(|c| &c.dropped_group),
                false => Step::Gateway,
            });
        }
        if self.is_of_the_link(ip) {
            return Some(Step::Gateway);
        }
        let group = match ip.destination {
            IpAddr::V4(a) => {
                a.is_multicast() || a.is_broadcast() || self.port.config.subnet.last4() == Some(a)
            }
            IpAddr::V6(a) => a.is_multicast(),
        };
        if group || ethernet.destination.is_multicast() {
            return Some(self.drop_for(|c| &c.dropped_group));
        }
        if !self.port.is_guest(ip.source) {
            return Some(self.drop_for(|c| &c.dropped_spoofed));
        }
        Some(match self.port.way(ip.destination) {
            Way::Port if self.answer_name(ip) => Step::Taken,
            Way::Port => Step::Gateway,
            Way::Member(card) => return self.leave(ip, card),
            Way::Out if self.port.config.internet => Step::Gateway,
            Way::Out => {
                self.tell_no_route(ip);
                self.drop_for(|c| &c.dropped_no_route)
            }
            Way::Nowhere => self.drop_for(|c| &c.dropped_no_route),
        })
    }

    /// Whether a packet is of IPv6's own protocols on the link, which end at
    /// the gateway: neighbour discovery, DHCPv6, and what has the gateway's
    /// link-local address.
    fn is_of_the_link(&self, ip: &Ip<'_>) -> bool {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (ip.source, ip.destination) else {
            return false;
        };
        let local = from.is_unicast_link_local() || from.is_unspecified();
        let own = local || self.port.is_guest(ip.source);
        let discovery = ip.protocol == protocol::ICMPV6 && ndp::is_for_router(ip);
        let here = discovery || dhcp6::is_for_server(ip) || local && self.port.is_own(to.into());
        self.port.config.ipv6.is_some() && own && here
    }

    /// A packet for another member: asks the rules.
    fn leave(&mut self, ip: &Ip<'_>, card: MacAddress) -> Option<Step> {
        let routed = !self.port.config.subnet.contains(ip.destination);
        if routed && ip.hops <= 1 {
            return Some(self.drop_for(|c| &c.dropped_hops));
        }
        let step = Step::Member(card, routed);
        if let Some(passes) = self.sent_pieces.later(ip, self.now) {
            return Some(match passes {
                true => step,
                false => self.drop_for(|c| &c.dropped_egress),
            });
        }
        let packet = summarize(ip, true)?;
        let rules = &self.port.egress;
        let mut track = self.shared.track.lock();
        let outcome = track.pass(&packet, true, self.now, |question| rules.allow(question));
        drop(track);
        Some(match outcome {
            Outcome::Pass => {
                self.sent_pieces.passed(ip, self.now);
                step
            }
            Outcome::Denied => self.drop_for(|c| &c.dropped_egress),
            Outcome::Full => self.drop_for(|c| &c.dropped_untracked),
        })
    }

    /// Answers a query for a name of the VPC.
    fn answer_name(&mut self, ip: &Ip<'_>) -> bool {
        if ip.protocol != protocol::UDP
            || ip.fragment.is_some()
            || !self.port.is_name_server(ip.destination)
        {
            return false;
        }
        let Some(datagram) = Udp::parse(ip.payload).filter(|udp| udp.destination == DNS) else {
            return false;
        };
        let Some(answer) = self.port.names.answer(datagram.payload) else {
            return false;
        };
        self.counters().dns_own.one();
        let from = SocketAddr::new(ip.destination, DNS);
        let to = SocketAddr::new(ip.source, datagram.source);
        self.gateway.context().send_udp(from, to, &answer);
        true
    }

    /// Tells the guest that no route leads there, as a router would.
    fn tell_no_route(&mut self, ip: &Ip<'_>) {
        let error = summarize(ip, true).is_some_and(|p| matches!(p.kind, Kind::Error(_)));
        if error || ip.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return;
        }
        let (guest, remote) = (
            SocketAddr::new(ip.source, 0),
            SocketAddr::new(ip.destination, 0),
        );
        let why = icmp::Unreachable::Network;
        icmp::unreachable(
            self.gateway.context(),
            why,
            guest,
            remote,
            ip.protocol,
            ip.payload,
        );
    }

    /// Sends a frame to a card, a hop further.
    fn send(
        &mut self,
        offload: &Offload,
        frame: &[u8],
        card: MacAddress,
        routed: bool,
    ) -> Result<Sent, LinkError> {
        let sent = if !routed && frame.get(..6) == Some(&card.0[..]) {
            self.switch.transmit(offload, frame)?
        } else {
            self.scratch.clear();
            self.scratch.extend_from_slice(frame);
            put(&mut self.scratch, 0, &card.0);
            if routed {
                hop(&mut self.scratch);
            }
            self.switch.transmit(offload, &self.scratch)?
        };
        if sent == Sent::Yes {
            self.counters().vpc_sent_packets.one();
            self.counters().vpc_sent_bytes.add(frame.len() as u64);
        }
        Ok(sent)
    }

    /// Whether a frame of the switch waits that the guest may have.
    fn admit(&mut self) -> Result<bool, LinkError> {
        for _ in 0..AT_ONCE {
            let Some(frame) = self.switch.incoming()? else {
                return Ok(false);
            };
            let gate = Gate {
                shared: &self.shared,
                port: &self.port,
                now: self.now,
            };
            let passes = gate.admits(frame.bytes, &mut self.received_pieces);
            if passes {
                return Ok(true);
            }
            self.switch.consume();
        }
        self.more = true;
        Ok(false)
    }

    fn show(&mut self) -> Result<(), LinkError> {
        if self.shown != Shown::Nothing {
            return Ok(());
        }
        self.switch_next = !self.switch_next;
        if self.switch_next && self.admit()? {
            self.shown = Shown::Switch;
        } else if self.gateway.incoming()?.is_some() {
            self.shown = Shown::Gateway;
        } else if !self.switch_next && self.admit()? {
            self.shown = Shown::Switch;
        }
        Ok(())
    }
}

/// What frames of the switch must pass. Their senders are processes of their
/// own: nothing they have checked counts.
struct Gate<'a> {
    shared: &'a Shared,
    port: &'a Compiled,
    now: Instant,
}

impl Gate<'_> {
    fn admits(&self, frame: &[u8], pieces: &mut Fragments) -> bool {
        let counters = &self.shared.counters;
        match self.judge(frame, pieces) {
            Some(Outcome::Pass) => {
                counters.vpc_received_packets.one();
                counters.vpc_received_bytes.add(frame.len() as u64);
                return true;
            }
            Some(Outcome::Denied) => counters.dropped_ingress.one(),
            Some(Outcome::Full) => counters.dropped_untracked.one(),
            None => {}
        }
        false
    }

    /// `None`: not for the guest at all.
    fn judge(&self, frame: &[u8], pieces: &mut Fragments) -> Option<Outcome> {
        let ethernet = Ethernet::parse(frame)?;
        // The switch sends to all what it does not know yet.
        (ethernet.destination == self.port.mac).then_some(())?;
        let ip = match ethernet.kind {
            kind::IPV4 => Ip::parse_v4(ethernet.payload),
            kind::IPV6 => Ip::parse_v6(ethernet.payload),
            _ => None,
        };
        let ip = ip.filter(|ip| self.is_honest(&ethernet, ip));
        let Some(ip) = ip else {
            self.shared.counters.dropped_foreign.one();
            return None;
        };
        if let Some(passes) = pieces.later(&ip, self.now) {
            return Some(if passes {
                Outcome::Pass
            } else {
                Outcome::Denied
            });
        }
        let Some(packet) = summarize(&ip, false) else {
            self.shared.counters.dropped_malformed.one();
            return None;
        };
        let mut track = self.shared.track.lock();
        let allow = |question: &Question| self.port.admits(question);
        let outcome = track.pass(&packet, false, self.now, allow);
        if outcome == Outcome::Pass {
            pieces.passed(&ip, self.now);
        }
        Some(outcome)
    }

    /// Whether a packet comes from a member, by its own card, to the guest.
    fn is_honest(&self, ethernet: &Ethernet<'_>, ip: &Ip<'_>) -> bool {
        let from_member = matches!(self.port.way(ip.source), Way::Member(_))
            && self.port.card_of(ip.source) == Some(ethernet.source);
        from_member && self.port.is_guest(ip.destination)
    }
}

/// Whether a packet is for the gateway's DHCP.
fn is_dhcp(port: &Compiled, ip: &Ip<'_>) -> bool {
    let IpAddr::V4(to) = ip.destination else {
        return false;
    };
    let here = to.is_broadcast() || Some(to) == port.config.subnet.last4() || to == port.gateway;
    let from = port.is_guest(ip.source) || ip.source == IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    here && from
        && ip.protocol == protocol::UDP
        && ip.fragment.is_none()
        && Udp::parse(ip.payload).is_some_and(|udp| udp.destination == DHCP)
}

/// One hop less.
fn hop(frame: &mut [u8]) {
    let Some(first) = frame.get(ETHERNET).copied() else {
        return;
    };
    if first >> 4 == 6 {
        let hops = frame.get(ETHERNET + 7).copied().unwrap_or_default();
        put(frame, ETHERNET + 7, &[hops.saturating_sub(1)]);
        return;
    }
    let hops = frame.get(ETHERNET + 8).copied().unwrap_or_default();
    put(frame, ETHERNET + 8, &[hops.saturating_sub(1)]);
    put(frame, ETHERNET + 10, &[0, 0]);
    let end = ETHERNET + usize::from(first & 15) * 4;
    let header = frame.get(ETHERNET..end).unwrap_or_default();
    let sum = !checksum::fold(checksum::add(0, header));
    put(frame, ETHERNET + 10, &sum.to_be_bytes());
}

impl Link for VpcLink {
    fn abilities(&self) -> Abilities {
        self.switch.abilities()
    }

    fn set_guest_abilities(&mut self, guest: Abilities) {
        self.gateway.set_guest_abilities(guest);
        self.switch.set_guest_abilities(guest);
    }

    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<Sent, LinkError> {
        self.refresh();
        match self.judge(frame) {
            Some(Step::Gateway) => self.gateway.transmit(offload, frame),
            Some(Step::Member(card, routed)) => self.send(offload, frame, card, routed),
            Some(Step::Taken) => Ok(Sent::Yes),
            Some(Step::Dropped) => Ok(Sent::Dropped),
            None => {
                self.counters().dropped_malformed.one();
                Ok(Sent::Dropped)
            }
        }
    }

    fn incoming(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        self.refresh();
        self.show()?;
        match self.shown {
            Shown::Nothing => Ok(None),
            Shown::Gateway => self.gateway.incoming(),
            Shown::Switch => self.switch.incoming(),
        }
    }

    fn consume(&mut self) {
        match std::mem::replace(&mut self.shown, Shown::Nothing) {
            Shown::Nothing => {}
            Shown::Gateway => self.gateway.consume(),
            Shown::Switch => self.switch.consume(),
        }
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn turn(&mut self, now: Instant) -> Option<Instant> {
        self.now = now;
        self.refresh();
        let mut track = self.shared.track.lock();
        if track.due() <= now {
            track.sweep(now);
        }
        let sweep = track.due();
        drop(track);
        let due = [self.gateway.turn(now), self.switch.turn(now)];
        if std::mem::take(&mut self.more) {
            return Some(now);
        }
        due.into_iter().flatten().chain([sweep]).min()
    }
}
