//! TCP: the guest's connections end here, and their data goes on in sockets of
//! the host.
//!
//! - Data from the guest goes from its frame to the socket by one call. What
//!   the socket does not take waits in the connection, within the window.
//! - Data to the guest is read into the buffer of its frame by one call, and
//!   only when the card asks for a frame and the guest's window has room. It
//!   stays in that buffer until it is acknowledged.
//! - Frames hold up to 64 KiB where the guest accepts that.

mod buffer;
mod connection;
mod emit;
mod frame;
mod open;
mod receiver;
mod sender;
mod sequence;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

use rustix::event::epoll::EventFlags;

use self::buffer::Pool;
use self::connection::{Connection, Fate, Phase};
use self::frame::send_bare;
use self::receiver::Budget;
use super::context::{Context, Token};
use super::slab::{Id, Slab};
use super::wire::{Tcp, TcpHeader, flag};

pub use self::emit::Emission;

/// Both ends of a connection: the guest's, and the other as the guest sees it.
pub type Ends = (SocketAddr, SocketAddr);

/// All connections.
pub struct Table {
    by_ends: HashMap<Ends, Id>,
    connections: Slab<Connection>,
    /// Those that may have a frame for the guest.
    ready: VecDeque<Id>,
    /// Those that wait for memory.
    starved: Vec<Id>,
    pool: Pool,
    budget: Budget,
    /// For frames that are made up of pieces.
    scratch: Vec<u8>,
    /// Makes initial sequence numbers.
    seed: RandomState,
    opened: u64,
}

impl Table {
    pub fn new(bytes: usize) -> Self {
        Self {
            by_ends: HashMap::new(),
            connections: Slab::new(),
            ready: VecDeque::new(),
            starved: Vec::new(),
            pool: Pool::new(bytes),
            budget: Budget {
                used: 0,
                limit: bytes,
            },
            scratch: Vec::new(),
            seed: RandomState::new(),
            opened: 0,
        }
    }

    /// Hears a segment from the guest.
    pub fn hear(&mut self, context: &mut Context, ends: Ends, segment: &Tcp<'_>) {
        let bytes = segment.payload.len() as u64;
        context.counters.tcp_bytes_out.add(bytes);
        let syn = segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN;
        if let Some(&id) = self.by_ends.get(&ends) {
            let Some(connection) = self.connections.get_mut(id) else {
                return;
            };
            if !(syn && connection.phase == Phase::Quiet) {
                let fate = connection.hear(segment, &mut self.budget, &mut self.pool, context.now);
                self.settle(context, id, fate);
                self.feed();
                return;
            }
            // The port is used again.
            self.remove(context, id);
        }
        if syn {
            self.open(context, ends, segment);
        } else if !segment.has(flag::RST) {
            refuse(context, ends, segment);
        }
    }

    /// A socket's readiness has changed.
    pub fn event(&mut self, context: &mut Context, id: Id, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if connection.phase == Phase::Connecting {
            self.connected(context, id);
            return;
        }
        let end = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        connection.readable |= flags.intersects(EventFlags::IN | end);
        connection.ended |= flags.intersects(end);
        connection.writable |= flags.intersects(EventFlags::OUT | EventFlags::ERR);
        self.settle(context, id, Fate::Keep);
    }

    /// A connection's time has come.
    pub fn time(&mut self, context: &mut Context, id: Id) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        connection.armed = None;
        let fate = connection.time(context.now);
        self.settle(context, id, fate);
    }

    /// Does what follows from a change of a connection.
    fn settle(&mut self, context: &mut Context, id: Id, fate: Fate) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        let fate = match fate {
            Fate::Keep => connection.flush(&mut self.budget),
            other => other,
        };
        match fate {
            Fate::Keep => {}
            Fate::Reset => {
                let ends = (connection.guest, connection.remote);
                let header = reset_of(connection);
                send_bare(context, ends.1, ends.0, &header);
                self.remove(context, id);
                return;
            }
            Fate::Drop => {
                self.remove(context, id);
                return;
            }
        }
        if connection.finish(context.now) {
            let ends = (connection.guest, connection.remote);
            context.connections.lock().remove(&ends);
        }
        connection.mind_window(context.now);
        if connection.has_frame() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(id);
        }
        if let Some(when) = connection.deadline()
            && connection.armed.is_none_or(|armed| when < armed)
        {
            connection.armed = Some(when);
            context.arm(when, Token::Tcp(id));
        }
    }

    /// Forgets a connection. A socket that has not come to its orderly end is
    /// reset.
    fn remove(&mut self, context: &mut Context, id: Id) {
        let Some(mut connection) = self.connections.remove(id) else {
            return;
        };
        let ends = (connection.guest, connection.remote);
        self.by_ends.remove(&ends);
        context.connections.lock().remove(&ends);
        connection.abort();
        self.budget.used = self.budget.used.saturating_sub(connection.rx.held());
        for segment in connection.tx.queue.drain(..) {
            if let Some(buffer) = segment.buffer {
                self.pool.give(buffer);
            }
        }
        context.counters.tcp_now.set(self.connections.len());
        self.feed();
    }

    /// Those that waited for memory try again.
    fn feed(&mut self) {
        if self.starved.is_empty() || !self.pool.has_room() {
            return;
        }
        for id in self.starved.drain(..) {
            if let Some(connection) = self.connections.get_mut(id)
                && !connection.queued
            {
                connection.queued = true;
                self.ready.push_back(id);
            }
        }
    }

    /// An initial sequence number.
    fn first_number(&mut self, ends: Ends) -> u32 {
        self.opened = self.opened.wrapping_add(1);
        let hash = self.seed.hash_one((ends, self.opened));
        u32::try_from(hash & 0xffff_ffff).unwrap_or(0)
    }
}

/// The reset that a guest believes: with the number that it expects.
const fn reset_of(connection: &Connection) -> TcpHeader {
    let connecting = matches!(connection.phase, Phase::Connecting);
    TcpHeader {
        source: connection.remote.port(),
        destination: connection.guest.port(),
        seq: if connecting { 0 } else { connection.tx.most },
        ack: connection.rx.next,
        flags: flag::RST | flag::ACK,
        window: 0,
        syn: None,
    }
}

/// Answers a segment that belongs to nothing (RFC 9293, 3.10.7.1).
fn refuse(context: &mut Context, ends: Ends, segment: &Tcp<'_>) {
    let length = segment.payload.len()
        + usize::from(segment.has(flag::SYN))
        + usize::from(segment.has(flag::FIN));
    let acknowledges = segment.has(flag::ACK);
    let header = TcpHeader {
        source: ends.1.port(),
        destination: ends.0.port(),
        seq: if acknowledges { segment.ack } else { 0 },
        ack: if acknowledges {
            0
        } else {
            sequence::after(segment.seq, length)
        },
        flags: if acknowledges {
            flag::RST
        } else {
            flag::RST | flag::ACK
        },
        window: 0,
        syn: None,
    };
    send_bare(context, ends.1, ends.0, &header);
}

/// Asks the guest about a connection that is not known any more: the guest's
/// answer says where it stands, and gets a reset that it believes.
pub fn ask(context: &mut Context, guest: SocketAddr, remote: SocketAddr) {
    let header = TcpHeader {
        source: remote.port(),
        destination: guest.port(),
        seq: 0,
        ack: 0,
        flags: flag::ACK,
        window: 0,
        syn: None,
    };
    send_bare(context, remote, guest, &header);
}
