//! ICMP echo to the world: by the kernel's ping sockets where
//! net.ipv4.ping_group_range allows them, else by raw sockets where the monitor
//! may have them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, recvfrom, socket_with,
};

use super::context::{Context, Token};
use super::errors;
use super::hops::Hops;
use super::icmp::{self, Echo, Unreachable};
use super::nat::{Route, Via, route};
use super::policy::Transport;
use super::slab::{Id, Slab};
use super::wire::{Ip, protocol};

/// How long an answer may take.
const IDLE: Duration = Duration::from_secs(10);
/// Most identifiers at a time.
const MAX_FLOWS: usize = 64;
/// Most replies taken from a socket at once.
const AT_ONCE: usize = 64;

/// How the host lets its users ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinging {
    /// By the kernel's ping sockets.
    Sockets,
    /// By raw sockets, which need CAP_NET_RAW.
    Raw,
    /// Not at all: the guest is told that it is prohibited.
    Prohibited,
}

/// How guests of this process can ping the world over IPv4.
pub fn pinging() -> Pinging {
    match open(true) {
        Ok((_, false)) => Pinging::Sockets,
        Ok((_, true)) => Pinging::Raw,
        Err(_) => Pinging::Prohibited,
    }
}

struct Flow {
    guest: IpAddr,
    /// The guest's identifier.
    id: u16,
    socket: OwnedFd,
    /// It hears all of the host's ICMP, and leaves the identifier to us.
    raw: bool,
    /// The identifier outside.
    outside: u16,
    used: Instant,
    /// Of what was sent last.
    hops: Hops,
}

/// All echo flows.
pub struct Table {
    by_guest: HashMap<(IpAddr, u16), Id>,
    flows: Slab<Flow>,
    /// Identifiers for raw sockets.
    next: u16,
    buffer: Vec<u8>,
    warned: bool,
}

impl Table {
    pub fn new() -> Self {
        Self {
            by_guest: HashMap::new(),
            flows: Slab::new(),
            next: u16::try_from(std::process::id() & 0xffff).unwrap_or(1),
            buffer: vec![0; 65_535],
            warned: false,
        }
    }

    /// Takes an echo request from the guest.
    pub fn hear(&mut self, context: &mut Context, ip: &Ip<'_>, echo: &Echo<'_>) {
        let guest = SocketAddr::new(ip.source, 0);
        let remote = SocketAddr::new(ip.destination, 0);
        if context.config.is_own(ip.destination) {
            icmp::reply(context, ip.destination, ip.source, echo.id, echo.rest);
            return;
        }
        let found = route(
            &context.config,
            &mut context.resolvers,
            Transport::Echo,
            guest,
            remote,
        );
        let tell = |context: &mut Context, why| {
            let number = if ip.source.is_ipv4() {
                protocol::ICMP
            } else {
                protocol::ICMPV6
            };
            icmp::unreachable(context, why, guest, remote, number, ip.payload);
        };
        match found {
            Route::To(target, Via::Direct) => {
                let hops = Hops::left(ip.hops);
                if let Err(why) = self.send(context, ip.source, target, echo, hops) {
                    tell(context, why);
                }
            }
            Route::Nobody => tell(context, Unreachable::Host),
            Route::Ignore => context.counters.denied.one(),
            _ => {
                context.counters.denied.one();
                tell(context, Unreachable::Prohibited);
            }
        }
    }

    fn send(
        &mut self,
        context: &mut Context,
        guest: IpAddr,
        target: SocketAddr,
        echo: &Echo<'_>,
        hops: Hops,
    ) -> Result<(), Unreachable> {
        let id = match self.by_guest.get(&(guest, echo.id)) {
            Some(id) => *id,
            None => self.begin(context, guest, echo.id)?,
        };
        let Some(flow) = self.flows.get_mut(id) else {
            return Ok(());
        };
        flow.used = context.now;
        hops.apply(&mut flow.hops, &flow.socket, guest.is_ipv4());
        let message = icmp::request(guest.is_ipv4(), flow.outside, echo.rest);
        match super::udp::send(&flow.socket, &message, target) {
            Err(Errno::NETUNREACH) => Err(Unreachable::Network),
            Err(Errno::HOSTUNREACH) => Err(Unreachable::Host),
            Err(Errno::ACCESS | Errno::PERM) => Err(Unreachable::Prohibited),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, context: &Context, guest: IpAddr, id: u16) -> Result<Id, Unreachable> {
        if self.flows.len() >= MAX_FLOWS {
            self.drop_oldest();
        }
        let (socket, raw) = open(guest.is_ipv4()).map_err(|errno| {
            if !self.warned {
                self.warned = true;
                tracing::warn!(
                    "guests cannot ping the world: {errno}; allow it by net.ipv4.ping_group_range"
                );
            }
            Unreachable::Prohibited
        })?;
        errors::ask(&socket, guest.is_ipv4());
        self.next = self.next.wrapping_add(1);
        let slot = self.flows.insert(Flow {
            guest,
            id,
            socket,
            raw,
            outside: self.next,
            used: context.now,
            hops: Hops::default(),
        });
        self.by_guest.insert((guest, id), slot);
        let watched = match self.flows.get_mut(slot) {
            Some(flow) => context.watch_level(&flow.socket, Token::Echo(slot)),
            None => Ok(()),
        };
        if watched.is_err() {
            self.remove(slot);
            return Err(Unreachable::Network);
        }
        Ok(slot)
    }

    fn remove(&mut self, id: Id) {
        if let Some(flow) = self.flows.remove(id) {
            self.by_guest.remove(&(flow.guest, flow.id));
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used);
        if let Some(id) = oldest.map(|(id, _)| id) {
            self.remove(id);
        }
    }

    /// A flow's socket has something.
    pub fn event(&mut self, context: &mut Context, id: Id) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let v4 = flow.guest.is_ipv4();
        for _ in 0..AT_ONCE {
            let Some(error) = errors::next(&flow.socket, &mut self.buffer) else {
                break;
            };
            let sent = self.buffer.get(..error.length).unwrap_or_default();
            flow.failed(context, &error, sent);
        }
        for _ in 0..AT_ONCE {
            let got = recvfrom(&flow.socket, &mut *self.buffer, RecvFlags::DONTWAIT);
            let Ok((length, _, Some(from))) = got else {
                break;
            };
            let Ok(from) = SocketAddr::try_from(from) else {
                continue;
            };
            let bytes = self.buffer.get(..length).unwrap_or_default();
            let message = if flow.raw && v4 {
                Ip::parse_v4(bytes).map(|ip| ip.payload)
            } else {
                Some(bytes)
            };
            let Some((outside, rest)) = message.and_then(|m| icmp::reply_parts(v4, m)) else {
                continue;
            };
            if !flow.raw || outside == flow.outside {
                icmp::reply(context, from.ip(), flow.guest, flow.id, rest);
            }
        }
    }

    /// Closes what waits for nothing.
    pub fn sweep(&mut self, now: Instant) {
        let idle: Vec<Id> = self
            .flows
            .iter()
            .filter(|(_, flow)| now.saturating_duration_since(flow.used) >= IDLE)
            .map(|(id, _)| id)
            .collect();
        for id in idle {
            self.remove(id);
        }
    }
}

impl Flow {
    /// Tells the guest what became of a request, whose beginning is `sent`.
    fn failed(&self, context: &mut Context, error: &errors::Error, sent: &[u8]) {
        let v4 = self.guest.is_ipv4();
        let (Some(outside), Some(rest)) = (super::wire::be16(sent, 4), sent.get(6..)) else {
            return;
        };
        if self.raw && outside != self.outside {
            return;
        }
        let number = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
        let quoted = icmp::request(v4, self.id, rest);
        let (guest, why) = (SocketAddr::new(self.guest, 0), (error.why, error.by));
        icmp::unreachable_by(context, why, guest, error.to, number, &quoted);
    }
}

/// A socket for echo requests, and whether it is a raw one.
fn open(v4: bool) -> Result<(OwnedFd, bool), Errno> {
    let (family, number) = if v4 {
        (AddressFamily::INET, ipproto::ICMP)
    } else {
        (AddressFamily::INET6, ipproto::ICMPV6)
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    match socket_with(family, SocketType::DGRAM, flags, Some(number)) {
        Ok(socket) => Ok((socket, false)),
        Err(errno @ (Errno::MFILE | Errno::NFILE)) => Err(errno),
        Err(_) => socket_with(family, SocketType::RAW, flags, Some(number)).map(|s| (s, true)),
    }
}
