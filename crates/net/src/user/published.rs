//! Datagrams that come through publications: each sender outside has a port
//! of the gateway, from which the guest sees it speak.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arp;
use super::context::Context;
use super::policy::{Flow, Transport, Verdict};
use super::slab::Id;
use super::udp::{receive, send};

/// Most senders at a time, of all publications.
const MAX_SESSIONS: usize = 4096;

struct Session {
    publication: Id,
    peer: SocketAddr,
    used: Instant,
}

struct Door {
    socket: Arc<OwnedFd>,
    guest: u16,
    queued: bool,
}

/// Who speaks to the guest through publications.
#[derive(Default)]
pub struct Sessions {
    doors: HashMap<Id, Door>,
    /// By the guest's port, and the gateway's.
    by_ports: HashMap<(u16, u16), Session>,
    by_peer: HashMap<(Id, SocketAddr), u16>,
    ready: VecDeque<Id>,
}

impl Sessions {
    /// A socket leads to a port of the guest.
    pub fn publish(&mut self, id: Id, socket: Arc<OwnedFd>, guest: u16) {
        let door = Door {
            socket,
            guest,
            queued: false,
        };
        self.doors.insert(id, door);
    }

    /// It does not any more.
    pub fn unpublish(&mut self, id: Id) {
        self.doors.remove(&id);
        self.by_ports.retain(|_, session| session.publication != id);
        self.by_peer
            .retain(|(publication, _), _| *publication != id);
    }

    /// A door's socket is ready.
    pub fn event(&mut self, id: Id) {
        if let Some(door) = self.doors.get_mut(&id)
            && !door.queued
        {
            door.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Sends an answer of the guest out, if it is one.
    pub fn answer(
        &mut self,
        context: &Context,
        guest: SocketAddr,
        remote: SocketAddr,
        data: &[u8],
    ) -> bool {
        if self.by_ports.is_empty() || remote.ip() != context.config.v4.gateway {
            return false;
        }
        let Some(session) = self.by_ports.get_mut(&(guest.port(), remote.port())) else {
            return false;
        };
        session.used = context.now;
        if let Some(door) = self.doors.get(&session.publication)
            && send(&door.socket, data, session.peer).is_err()
        {
            context.counters.dropped_full.one();
        }
        true
    }

    /// Moves a datagram to the frames for the guest.
    pub fn next(&mut self, context: &mut Context, buffer: &mut [u8]) -> bool {
        while let Some(id) = self.ready.pop_front() {
            let Some(door) = self.doors.get_mut(&id) else {
                continue;
            };
            let Some((length, peer)) = receive(&door.socket, buffer) else {
                door.queued = false;
                continue;
            };
            self.ready.push_back(id);
            let port = door.guest;
            let Some(from) = self.gateway_port(context, id, port, peer) else {
                context.counters.limited.one();
                continue;
            };
            let guest = context.config.v4.guest;
            if context.card_of(guest.into()).is_none() {
                // The next datagram finds it known.
                arp::ask(context, guest);
                return true;
            }
            let gateway = SocketAddr::new(context.config.v4.gateway.into(), from);
            let data = buffer.get(..length).unwrap_or_default();
            context.counters.udp_in.one();
            context.send_udp(gateway, SocketAddr::new(guest.into(), port), data);
            return true;
        }
        false
    }

    /// The gateway's port that stands for a sender: its own, if it is free.
    fn gateway_port(
        &mut self,
        context: &Context,
        id: Id,
        guest: u16,
        peer: SocketAddr,
    ) -> Option<u16> {
        if let Some(port) = self.by_peer.get(&(id, peer))
            && let Some(session) = self.by_ports.get_mut(&(guest, *port))
        {
            session.used = context.now;
            return Some(*port);
        }
        let flow = Flow {
            transport: Transport::Udp,
            guest: SocketAddr::new(context.config.v4.guest.into(), guest),
            remote: SocketAddr::new(context.config.v4.gateway.into(), peer.port()),
            client: Some(peer),
        };
        let verdict = context.config.policy.decide(&flow);
        if matches!(verdict, Verdict::Refuse | Verdict::Ignore)
            || self.by_ports.len() >= MAX_SESSIONS
        {
            return None;
        }
        let mut port = peer.port();
        for _ in 0..100 {
            if let std::collections::hash_map::Entry::Vacant(e) = self.by_ports.entry((guest, port))
            {
                let session = Session {
                    publication: id,
                    peer,
                    used: context.now,
                };
                e.insert(session);
                self.by_peer.insert((id, peer), port);
                return Some(port);
            }
            port = port.wrapping_add(7919).max(1024);
        }
        None
    }

    /// Forgets who has not spoken for `idle`.
    pub fn sweep(&mut self, now: Instant, idle: Duration) {
        let by_peer = &mut self.by_peer;
        self.by_ports.retain(|_, session| {
            let keep = now.saturating_duration_since(session.used) < idle;
            if !keep {
                by_peer.remove(&(session.publication, session.peer));
            }
            keep
        });
    }
}
