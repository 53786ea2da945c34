//! The next frame for the guest.

use std::net::IpAddr;

use super::buffer::HEADROOM;
use super::connection::{Connection, Fate, Phase};
use super::frame::Envelope;
use super::receiver::Broken;
use super::sequence::{after, distance};
use super::{Id, Table};
use crate::Offload;
use crate::user::arp;
use crate::user::context::{Context, ip_header};
use crate::user::wire::{TcpHeader, flag};

/// Segments read at once for a guest that takes only small ones.
const PIECES: usize = 20;

/// A frame that the card has been shown.
pub struct Emission {
    /// The connection and segment whose buffer it is.
    owner: Option<(Id, u32)>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    pub offload: Offload,
}

impl Emission {
    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

/// What a turn of a connection came to.
enum Made {
    Frame(Emission),
    Nothing,
    /// No memory is left.
    Starved,
    Broken,
}

impl Table {
    /// The next frame of any connection, by turns.
    pub fn next(&mut self, context: &mut Context) -> Option<Emission> {
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            connection.queued = false;
            match self.make(context, id) {
                Made::Frame(emission) => {
                    self.settle(context, id, Fate::Keep);
                    return Some(emission);
                }
                // What it has may depend on what the other side does next.
                Made::Nothing => self.settle_quietly(context, id),
                Made::Starved => self.starved.push(id),
                Made::Broken => self.settle(context, id, Fate::Reset),
            }
        }
        None
    }

    /// As `settle`, but a connection that made no frame is not asked again
    /// before something happens.
    fn settle_quietly(&mut self, context: &mut Context, id: Id) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.queued = true;
        }
        self.settle(context, id, Fate::Keep);
        if let Some(connection) = self.connections.get_mut(id) {
            connection.queued = false;
        }
    }

    /// The card has taken a frame: its buffer goes back.
    pub fn consumed(&mut self, emission: Emission) {
        let Emission { owner, buffer, .. } = emission;
        let Some((id, seq)) = owner else {
            self.scratch = buffer;
            return;
        };
        let place = self.connections.get_mut(id).and_then(|connection| {
            let queue = &mut connection.tx.queue;
            queue
                .iter_mut()
                .rev()
                .find(|segment| segment.seq == seq && segment.buffer.is_none())
        });
        match place {
            Some(segment) => segment.buffer = Some(buffer),
            None => {
                self.pool.give(buffer);
                self.feed();
            }
        }
    }

    fn make(&mut self, context: &mut Context, id: Id) -> Made {
        let Some(connection) = self.connections.get_mut(id) else {
            return Made::Nothing;
        };
        let guest = connection.guest;
        let Some(card) = context.card_of(guest.ip()) else {
            // Asked again when the time-out comes.
            if let IpAddr::V4(address) = guest.ip() {
                arp::ask(context, address);
            }
            connection.syn_due = false;
            connection.tx.keep_time(context.now);
            return Made::Nothing;
        };
        let envelope = Envelope {
            from: connection.remote,
            to: guest,
            from_card: context.mac(),
            to_card: card,
            hops: context.config.policy.hops(connection.remote.ip()),
        };
        match connection.phase {
            Phase::Connecting => Made::Nothing,
            Phase::SynSent | Phase::SynReceived if connection.syn_due => {
                self.make_syn(context, id, envelope)
            }
            Phase::Open => self.make_open(context, id, envelope),
            _ => self.make_ack(context, id, envelope),
        }
    }

    fn make_syn(&mut self, context: &Context, id: Id, envelope: Envelope) -> Made {
        let Some(connection) = self.connections.get_mut(id) else {
            return Made::Nothing;
        };
        connection.syn_due = false;
        let flags = match connection.phase {
            Phase::SynSent => flag::SYN,
            _ => flag::SYN | flag::ACK,
        };
        let seq = connection.tx.next.wrapping_sub(1);
        let mut header = connection.header(&self.budget, seq, flags);
        let own =
            usize::from(context.config.mtu).saturating_sub(ip_header(connection.guest.ip()) + 20);
        let mss = u16::try_from(own).unwrap_or(536);
        header.syn = Some((mss, connection.rx.offered_scale()));
        connection.tx.keep_time(context.now);
        self.bare(context, &envelope, &header)
    }

    fn make_ack(&mut self, context: &Context, id: Id, envelope: Envelope) -> Made {
        let Some(connection) = self.connections.get_mut(id) else {
            return Made::Nothing;
        };
        if !connection.rx.ack_now {
            return Made::Nothing;
        }
        let seq = connection.tx.most;
        let header = connection.header(&self.budget, seq, flag::ACK);
        self.bare(context, &envelope, &header)
    }

    fn make_open(&mut self, context: &mut Context, id: Id, envelope: Envelope) -> Made {
        let Some(connection) = self.connections.get_mut(id) else {
            return Made::Nothing;
        };
        if connection.tx.probe {
            connection.tx.probe = false;
            let seq = connection.tx.unacked.wrapping_sub(1);
            let header = connection.header(&self.budget, seq, flag::ACK);
            return self.bare(context, &envelope, &header);
        }
        let most = envelope.most(context.guest, connection.tx.mss);
        let all_sent = connection.tx.next == connection.tx.end && !connection.tx.resend;
        if all_sent && connection.readable && !connection.tx.eof && connection.tx.wants_more() {
            let mss = usize::from(connection.tx.mss);
            let chunk = if most > mss { most } else { mss * PIECES };
            match connection.read(&mut self.pool, chunk) {
                Ok(Some(count)) => context.counters.tcp_bytes_in.add(count as u64),
                Ok(None) => return Made::Starved,
                Err(Broken) => return Made::Broken,
            }
        }
        if let Some((at, length)) = connection.next_data() {
            return self.make_data(context, id, envelope, at, length.min(most));
        }
        // The FIN was lost, or has not been sent.
        let fin_lost = connection.tx.resend && connection.tx.eof;
        if connection.fin_due() || fin_lost {
            connection.tx.resend = false;
            let end = connection.tx.end;
            let header = connection.header(&self.budget, end, flag::FIN | flag::ACK);
            connection.tx.sent(after(end, 1), context.now);
            return self.bare(context, &envelope, &header);
        }
        connection.tx.resend = false;
        self.make_ack(context, id, envelope)
    }

    /// A frame with data from the queue: in the buffer it is in if it is whole.
    fn make_data(
        &mut self,
        context: &Context,
        id: Id,
        envelope: Envelope,
        at: u32,
        length: usize,
    ) -> Made {
        let Some(connection) = self.connections.get_mut(id) else {
            return Made::Nothing;
        };
        if distance(at, connection.tx.most) > 0 {
            context.counters.tcp_again.one();
        }
        let last = after(at, length) == connection.tx.end;
        let flags = flag::ACK | if last { flag::PSH } else { 0 };
        let header = connection.header(&self.budget, at, flags);
        let mss = connection.tx.mss;
        let Some((segment, offset)) = connection.tx.find(at) else {
            return Made::Nothing;
        };
        let in_place = offset == 0 && length == segment.length as usize;
        let (owner, mut buffer) = match segment.buffer.take() {
            Some(buffer) if in_place => (Some((id, segment.seq)), buffer),
            Some(buffer) => {
                let mut scratch = std::mem::take(&mut self.scratch);
                scratch.clear();
                scratch.resize(HEADROOM, 0);
                let from = HEADROOM + offset;
                scratch.extend(buffer.get(from..from + length).unwrap_or_default());
                segment.buffer = Some(buffer);
                (None, scratch)
            }
            None => return Made::Nothing,
        };
        let Some((start, offload)) =
            envelope.seal(&mut buffer, length, &header, mss, context.guest)
        else {
            return Made::Broken;
        };
        connection.data_sent(at, length, context.now);
        Made::Frame(Emission {
            owner,
            buffer,
            start,
            end: HEADROOM + length,
            offload,
        })
    }

    /// A frame without data.
    fn bare(&mut self, context: &Context, envelope: &Envelope, header: &TcpHeader) -> Made {
        let mut buffer = std::mem::take(&mut self.scratch);
        buffer.clear();
        buffer.resize(HEADROOM, 0);
        match envelope.seal(&mut buffer, 0, header, u16::MAX, context.guest) {
            Some((start, offload)) => Made::Frame(Emission {
                owner: None,
                buffer,
                start,
                end: HEADROOM,
                offload,
            }),
            None => Made::Broken,
        }
    }

    /// The card of one of the guest's addresses became known: connections to
    /// it that wait for it go on.
    pub fn resolved(&mut self, context: &mut Context, guest: IpAddr) {
        let waiting: Vec<Id> = self
            .connections
            .iter()
            .filter(|(_, c): &(Id, &Connection)| c.phase == Phase::SynSent && c.guest.ip() == guest)
            .map(|(id, _)| id)
            .collect();
        for id in waiting {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.syn_due = true;
            }
            self.settle(context, id, Fate::Keep);
        }
    }
}
