//! UDP: each port of the guest is a socket of the host, whatever its
//! destinations (endpoint-independent mapping, RFC 4787), and hears only
//! addresses that it has sent to.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recvfrom, sendto,
    socket_with,
};

use super::context::{Context, Token};
use super::errors;
use super::hops::Hops;
use super::icmp::{self, Unreachable};
use super::nat::{DNS_PORT, Route, Via, route};
use super::policy::{Target, Transport};
use super::published::Sessions;
use super::slab::{Id, Slab};
use super::wire::{UDP, protocol};

/// How long a flow lives that nobody uses (RFC 4787 asks for two minutes).
const IDLE: Duration = Duration::from_secs(180);
/// The same for queries to a name server.
const IDLE_DNS: Duration = Duration::from_secs(20);
/// Most addresses that a flow hears.
const MAX_PEERS: usize = 256;
/// Most datagrams looked at for one that the guest may have.
const STRANGERS: usize = 64;
/// Length of a datagram without data.
const UDP_ALONE: u32 = UDP as u32;
/// Longest datagram.
const LONGEST: usize = 65_507;

/// Which flow: the guest's port, how it leaves, and by which family.
type Key = (SocketAddr, Via, bool);

struct Flow {
    key: Key,
    socket: OwnedFd,
    /// Addresses that were sent to, the latest last.
    peers: VecDeque<IpAddr>,
    used: Instant,
    queued: bool,
    /// Of what was sent last.
    hops: Hops,
}

/// What the guest sent.
pub struct Datagram<'a> {
    /// Its data.
    pub data: &'a [u8],
    /// Bytes of each datagram, if it stands for several.
    pub size: Option<usize>,
    /// How far it may go.
    pub hops: Hops,
}

/// All flows.
pub struct Table {
    by_key: HashMap<Key, Id>,
    flows: Slab<Flow>,
    /// Flows that may have a datagram for the guest.
    ready: VecDeque<Id>,
    buffer: Vec<u8>,
    /// What came through publications.
    pub sessions: Sessions,
}

impl Table {
    pub fn new() -> Self {
        Self {
            by_key: HashMap::new(),
            flows: Slab::new(),
            ready: VecDeque::new(),
            buffer: vec![0; LONGEST],
            sessions: Sessions::default(),
        }
    }

    /// Takes a datagram from the guest.
    pub fn hear(
        &mut self,
        context: &mut Context,
        (guest, remote): (SocketAddr, SocketAddr),
        datagram: &Datagram<'_>,
    ) {
        let data = datagram.data;
        context.counters.udp_out.one();
        if self.sessions.answer(context, guest, remote, data) {
            return;
        }
        let found = route(
            &context.config,
            &mut context.resolvers,
            Transport::Udp,
            guest,
            remote,
        );
        let (target, via) = match found {
            Route::To(target, via) => (target, via),
            Route::Deliver(Target::Address(target)) => (target, Via::Policy(remote)),
            Route::Deliver(Target::Unix(_)) | Route::Nobody => {
                tell(context, Unreachable::Port, guest, remote, data);
                return;
            }
            Route::Refuse => {
                context.counters.denied.one();
                tell(context, Unreachable::Prohibited, guest, remote, data);
                return;
            }
            Route::Ignore => {
                context.counters.denied.one();
                return;
            }
        };
        if matches!(via, Via::Dns(_)) {
            context.counters.dns_queries.one();
            context.resolvers.asked(context.now);
        }
        let key = (guest, via, target.is_ipv4());
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => match self.open(context, key) {
                Ok(id) => id,
                Err(errno) => {
                    context.counters.limited.one();
                    let why = errors::meaning(errno).unwrap_or(Unreachable::Network);
                    tell(context, why, guest, remote, data);
                    return;
                }
            },
        };
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        flow.used = context.now;
        flow.knows(target.ip());
        datagram
            .hops
            .apply(&mut flow.hops, &flow.socket, target.is_ipv4());
        for part in data.chunks(datagram.size.unwrap_or(LONGEST).max(1)) {
            if let Err(errno) = send(&flow.socket, part, target) {
                failed(context, errno, via, (guest, remote), data);
                break;
            }
        }
        if data.is_empty() {
            let _ = send(&flow.socket, data, target);
        }
    }

    fn open(&mut self, context: &Context, key: Key) -> Result<Id, Errno> {
        if self.flows.len() >= context.config.limits.udp {
            context.counters.limited.one();
            self.drop_oldest(context);
        }
        let (_, via, v4) = key;
        let family = if v4 {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
        if via == Via::Host {
            // Nobody but the host itself can speak to it.
            let loopback: IpAddr = if v4 {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            bind(&socket, &SocketAddr::new(loopback, 0))?;
        }
        errors::ask(&socket, v4);
        let id = self.flows.insert(Flow {
            key,
            socket,
            peers: VecDeque::new(),
            used: context.now,
            queued: false,
            hops: Hops::default(),
        });
        let watched = match self.flows.get_mut(id) {
            Some(flow) => context.watch(&flow.socket, Token::Udp(id)),
            None => Ok(()),
        };
        if watched.is_err() {
            self.flows.remove(id);
            return Err(Errno::NOMEM);
        }
        self.by_key.insert(key, id);
        context.counters.udp_now.set(self.flows.len());
        Ok(id)
    }

    fn drop_oldest(&mut self, context: &Context) {
        let oldest = self
            .flows
            .iter()
            .min_by_key(|(_, flow)| flow.used)
            .map(|(id, _)| id);
        if let Some(id) = oldest {
            self.remove(context, id);
        }
    }

    fn remove(&mut self, context: &Context, id: Id) {
        if let Some(flow) = self.flows.remove(id) {
            self.by_key.remove(&flow.key);
        }
        context.counters.udp_now.set(self.flows.len());
    }

    /// A flow's socket is ready.
    pub fn event(&mut self, context: &mut Context, id: Id, flags: EventFlags) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        if flags.contains(EventFlags::ERR) {
            let (guest, via, _) = flow.key;
            // A bound, in case errors come as fast as they are read.
            for _ in 0..64 {
                let mut nothing = [];
                let Some(error) = errors::next(&flow.socket, &mut nothing) else {
                    break;
                };
                if matches!(via, Via::Dns(_)) {
                    context.resolvers.failed();
                }
                if let Some(remote) = visible(context, guest, via, error.to) {
                    let quoted = icmp::ports(guest, remote, UDP_ALONE << 16);
                    // Whom it was for is known to the guest by another address.
                    let own = |by| if by == error.to.ip() { remote.ip() } else { by };
                    let why = (error.why, error.by.map(own));
                    icmp::unreachable_by(context, why, guest, remote, protocol::UDP, &quoted);
                }
            }
        }
        if flags.contains(EventFlags::IN) && !flow.queued {
            flow.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Moves a datagram to the frames that wait for the guest; `false` if
    /// there is none.
    pub fn next(&mut self, context: &mut Context) -> bool {
        if self.sessions.next(context, &mut self.buffer) {
            return true;
        }
        // A bound, for strangers that send what nobody asked for.
        for _ in 0..STRANGERS {
            let Some(id) = self.ready.pop_front() else {
                return false;
            };
            let Some(flow) = self.flows.get_mut(id) else {
                continue;
            };
            let (guest, via, _) = flow.key;
            match receive(&flow.socket, &mut self.buffer) {
                Some((length, from)) => {
                    self.ready.push_back(id);
                    if !flow.peers.contains(&from.ip()) {
                        continue;
                    }
                    flow.used = context.now;
                    if matches!(via, Via::Dns(_)) {
                        context.resolvers.answered();
                    }
                    let data = self.buffer.get(..length).unwrap_or_default();
                    if let Some(remote) = visible(context, guest, via, from) {
                        context.counters.udp_in.one();
                        context.send_udp(remote, guest, data);
                        return true;
                    }
                }
                None => flow.queued = false,
            }
        }
        !self.ready.is_empty()
    }

    /// Closes what nobody uses.
    pub fn sweep(&mut self, context: &Context) {
        let idle: Vec<Id> = self
            .flows
            .iter()
            .filter(|(_, flow)| {
                let most = if matches!(flow.key.1, Via::Dns(_)) {
                    IDLE_DNS
                } else {
                    IDLE
                };
                context.now.saturating_duration_since(flow.used) >= most
            })
            .map(|(id, _)| id)
            .collect();
        for id in idle {
            self.remove(context, id);
        }
        self.sessions.sweep(context.now, IDLE);
    }
}

impl Flow {
    fn knows(&mut self, address: IpAddr) {
        if self.peers.back() == Some(&address) || self.peers.contains(&address) {
            return;
        }
        if self.peers.len() >= MAX_PEERS {
            self.peers.pop_front();
        }
        self.peers.push_back(address);
    }
}

/// The address that the guest knows an address by.
fn visible(context: &Context, guest: SocketAddr, via: Via, real: SocketAddr) -> Option<SocketAddr> {
    let host: IpAddr = match guest {
        SocketAddr::V4(_) => context.config.v4.gateway.into(),
        SocketAddr::V6(_) => context.config.v6?.gateway().into(),
    };
    Some(match via {
        Via::Direct => SocketAddr::new(real.ip(), real.port()),
        Via::Policy(remote) => remote,
        Via::Host => SocketAddr::new(host, real.port()),
        Via::Dns(address) => SocketAddr::new(address, DNS_PORT),
    })
}

/// Sends; an error of an earlier datagram that shows now is not this one's.
pub fn send(socket: &OwnedFd, data: &[u8], to: SocketAddr) -> Result<(), Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendto(socket, data, flags, &to) {
        Err(Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::INTR) => {
            sendto(socket, data, flags, &to).map(drop)
        }
        other => other.map(drop),
    }
}

/// Receives; errors of earlier datagrams are passed over, since they are told
/// by their own way.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    for _ in 0..16 {
        match recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _, from)) => {
                let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                return from.map(|from| (length, from));
            }
            Err(Errno::AGAIN) => return None,
            Err(_) => {}
        }
    }
    None
}

fn failed(
    context: &mut Context,
    errno: Errno,
    via: Via,
    (guest, remote): (SocketAddr, SocketAddr),
    data: &[u8],
) {
    if matches!(via, Via::Dns(_)) {
        context.resolvers.failed();
    }
    match errors::meaning(errno) {
        Some(why) => tell(context, why, guest, remote, data),
        None => context.counters.dropped_full.one(),
    }
}

/// Tells the guest that a datagram did not arrive.
fn tell(
    context: &mut Context,
    why: Unreachable,
    guest: SocketAddr,
    remote: SocketAddr,
    data: &[u8],
) {
    let length = u32::try_from(UDP + data.len()).unwrap_or(0);
    let mut quoted = icmp::ports(guest, remote, length << 16).to_vec();
    quoted.extend(data);
    icmp::unreachable(context, why, guest, remote, protocol::UDP, &quoted);
}
