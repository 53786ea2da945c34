//! How connections begin: a guest's, and those that come through a
//! publication.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt,
};

use super::connection::{Connection, Fate, Phase};
use super::receiver::Receiver;
use super::sender::Sender;
use super::{Ends, Table, refuse, reset_of, send_bare};
use crate::user::context::{Context, Token, ip_header};
use crate::user::icmp::{self, Unreachable};
use crate::user::nat::{Route, Via, route};
use crate::user::policy::{Flow, Target, Transport, Verdict};
use crate::user::slab::Id;
use crate::user::wire::{Tcp, protocol};

/// A socket that connects.
struct Started {
    socket: OwnedFd,
    /// It is connected already.
    done: bool,
}

impl Table {
    /// A guest's SYN.
    pub(super) fn open(&mut self, context: &mut Context, ends: Ends, syn: &Tcp<'_>) {
        let (guest, remote) = ends;
        let found = route(
            &context.config,
            &mut context.resolvers,
            Transport::Tcp,
            guest,
            remote,
        );
        if self.connections.len() >= context.config.limits.tcp {
            context.counters.limited.one();
            refuse(context, ends, syn);
            return;
        }
        let started = match &found {
            Route::To(address, _) | Route::Deliver(Target::Address(address)) => start(*address),
            Route::Deliver(Target::Unix(path)) => start_unix(path),
            Route::Nobody => Err(Errno::CONNREFUSED),
            Route::Refuse => {
                context.counters.denied.one();
                Err(Errno::CONNREFUSED)
            }
            Route::Ignore => {
                context.counters.denied.one();
                return;
            }
        };
        context.counters.tcp_out.one();
        match started {
            Ok(started) => {
                let dns = matches!(found, Route::To(_, Via::Dns(_)));
                self.begin(context, ends, syn, started, dns);
            }
            Err(errno) => {
                context.counters.tcp_failed.one();
                match failure(errno) {
                    Failure::Unreachable(why) => {
                        let quoted = icmp::ports(guest, remote, syn.seq);
                        icmp::unreachable(context, why, guest, remote, protocol::TCP, &quoted);
                    }
                    Failure::Refused => refuse(context, ends, syn),
                    Failure::Limit => {
                        context.counters.limited.one();
                        refuse(context, ends, syn);
                    }
                }
            }
        }
    }

    fn begin(
        &mut self,
        context: &mut Context,
        ends: Ends,
        syn: &Tcp<'_>,
        started: Started,
        dns: bool,
    ) {
        let mss = mss(context, ends.0).min(syn.mss.unwrap_or(536).max(64));
        let mut tx = Sender::new(self.first_number(ends), mss, syn.scale.unwrap_or(0));
        tx.set_window(tx.next, syn.window, false);
        let rx = Receiver::new(syn.seq, syn.scale.is_some());
        let phase = Phase::Connecting;
        let mut connection = Connection::new(ends, started.socket, phase, rx, tx, context.now);
        connection.dns = dns;
        let done = started.done;
        if let Some(id) = self.add(context, ends, connection)
            && done
        {
            self.connected(context, id);
        }
    }

    /// Enters a connection, and watches its socket.
    fn add(&mut self, context: &mut Context, ends: Ends, connection: Connection) -> Option<Id> {
        let id = self.connections.insert(connection);
        self.by_ends.insert(ends, id);
        context.connections.lock().insert(ends);
        context.counters.tcp_now.set(self.connections.len());
        let connection = self.connections.get_mut(id)?;
        let socket = connection.socket.as_ref()?;
        if context.watch(socket, Token::Tcp(id)).is_err() {
            context.counters.limited.one();
            let header = reset_of(connection);
            send_bare(context, ends.1, ends.0, &header);
            self.remove(context, id);
            return None;
        }
        Some(id)
    }

    /// A socket that was connecting is connected, or has failed.
    pub(super) fn connected(&mut self, context: &mut Context, id: Id) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let Some(socket) = &connection.socket else {
            return;
        };
        // An event may say nothing but that the socket was not connected yet.
        let errno = match sockopt::socket_error(socket) {
            Ok(Ok(())) => match rustix::net::getpeername(socket) {
                Ok(_) => None,
                Err(Errno::NOTCONN) => return,
                Err(errno) => Some(errno),
            },
            Ok(Err(errno)) | Err(errno) => Some(errno),
        };
        let Some(errno) = errno else {
            connection.phase = Phase::SynReceived;
            connection.syn_due = true;
            connection.writable = true;
            connection.readable = true;
            self.settle(context, id, Fate::Keep);
            return;
        };
        context.counters.tcp_failed.one();
        if connection.dns {
            context.resolvers.failed();
        }
        let (guest, remote) = (connection.guest, connection.remote);
        match failure(errno) {
            Failure::Unreachable(why) => {
                let first = connection.rx.next.wrapping_sub(1);
                let quoted = icmp::ports(guest, remote, first);
                icmp::unreachable(context, why, guest, remote, protocol::TCP, &quoted);
                self.remove(context, id);
            }
            Failure::Refused | Failure::Limit => self.settle(context, id, Fate::Reset),
        }
    }

    /// A connection for `guest` that came through a publication from `client`,
    /// or from the machine's owner; the guest sees it come from `from`, or
    /// another port if that one is in use.
    pub fn accepted(
        &mut self,
        context: &mut Context,
        socket: OwnedFd,
        (guest, mut from): Ends,
        client: Option<SocketAddr>,
    ) {
        let flow = Flow {
            transport: Transport::Tcp,
            guest,
            remote: from,
            client,
        };
        let refused = client.is_some()
            && matches!(
                context.config.policy.decide(&flow),
                Verdict::Refuse | Verdict::Ignore
            );
        let full = self.connections.len() >= context.config.limits.tcp;
        let mut tries = 0;
        while self.by_ends.contains_key(&(guest, from)) && tries < 100 {
            from.set_port(from.port().wrapping_add(7919).max(1024));
            tries += 1;
        }
        if refused || full || tries == 100 {
            if refused {
                context.counters.denied.one();
            } else {
                context.counters.limited.one();
            }
            let _ = sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO));
            return;
        }
        context.counters.tcp_in.one();
        tune(&socket);
        let ends = (guest, from);
        let tx = Sender::new(self.first_number(ends), mss(context, guest), 0);
        // What the guest sends is known when it answers.
        let rx = Receiver::new(0, true);
        let mut connection = Connection::new(ends, socket, Phase::SynSent, rx, tx, context.now);
        connection.syn_due = true;
        if let Some(id) = self.add(context, ends, connection) {
            self.settle(context, id, Fate::Keep);
        }
    }
}

enum Failure {
    /// The guest gets an ICMP error.
    Unreachable(Unreachable),
    /// The guest gets a reset.
    Refused,
    /// The host has no more descriptors; a reset, too.
    Limit,
}

const fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::NETUNREACH | Errno::AFNOSUPPORT => Failure::Unreachable(Unreachable::Network),
        Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::HOSTDOWN => {
            Failure::Unreachable(Unreachable::Host)
        }
        Errno::ACCESS | Errno::PERM => Failure::Unreachable(Unreachable::Prohibited),
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL => {
            Failure::Limit
        }
        _ => Failure::Refused,
    }
}

fn start(address: SocketAddr) -> Result<Started, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    tune(&socket);
    let done = match connect(&socket, &address) {
        Ok(()) => true,
        Err(Errno::INPROGRESS | Errno::INTR) => false,
        Err(errno) => return Err(errno),
    };
    Ok(Started { socket, done })
}

fn start_unix(path: &Path) -> Result<Started, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A longer path than an address holds is reached by its directory.
    let (directory, address) = match SocketAddrUnix::new(path) {
        Ok(address) => (None, address),
        Err(_) => {
            let parent = path.parent().ok_or(Errno::NAMETOOLONG)?;
            let name = path.file_name().ok_or(Errno::NAMETOOLONG)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(parent, flags, Mode::empty())?;
            let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
            (
                Some(directory),
                SocketAddrUnix::new(Path::new(&short).join(name))?,
            )
        }
    };
    connect(&socket, &address)?;
    drop(directory);
    Ok(Started { socket, done: true })
}

/// The guest has done what Nagle's algorithm would do, and its keep-alives
/// end here.
fn tune(socket: &OwnedFd) {
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_socket_keepalive(socket, true);
}

/// Largest segment that fits the link.
fn mss(context: &Context, guest: SocketAddr) -> u16 {
    let headers = ip_header(guest.ip()) + 20;
    let room = usize::from(context.config.mtu).saturating_sub(headers);
    u16::try_from(room).unwrap_or(536)
}
