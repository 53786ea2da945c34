//! The direction to the guest: what was read from the host's socket, until the
//! guest has acknowledged it (RFC 9293; retransmission as in RFC 6298 and
//! RFC 6582, though hardly anything is ever lost on the way to a guest).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::buffer::{Pool, Segment};
use super::sequence::{after, before, distance, room};

/// Most bytes under way in one connection.
const WINDOW: u32 = 4 << 20;
/// First time-out, and the longest.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// Time-outs in a row before the guest is given up, with and without an open
/// connection.
const TRIES: u32 = 15;
const SYN_TRIES: u32 = 6;
/// Time-outs in a row that count for a guest that answers probes.
const ASKED: u32 = 4;
/// Acknowledgements of the same byte that mean that one is missing.
const DUPLICATES: u32 = 3;

/// What a time-out asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimedOut {
    /// Sending again, which has been arranged.
    Again,
    /// Giving up.
    Dead,
}

/// What we know of the stream to the guest.
pub struct Sender {
    /// First byte that is not acknowledged.
    pub unacked: u32,
    /// Next byte to be sent.
    pub next: u32,
    /// First byte that was never sent.
    pub most: u32,
    /// First byte beyond the guest's window.
    edge: u32,
    /// Largest window that it has told.
    largest: u32,
    /// Scale of its windows.
    pub scale: u8,
    /// Largest segment that it takes.
    pub mss: u16,
    /// What is not acknowledged, and after it what was never sent.
    pub queue: VecDeque<Segment>,
    /// Number after the last byte in the queue.
    pub end: u32,
    /// The host's stream has ended.
    pub eof: bool,
    /// Send only the first segment again, and go on then.
    pub resend: bool,
    /// Ask the guest for its window.
    pub probe: bool,
    /// When to send again.
    pub due: Option<Instant>,
    duplicates: u32,
    /// Until here, one loss has been seen to.
    recover: u32,
    /// One segment after the other is sent again up to there.
    recovering: bool,
    tries: u32,
}

impl Sender {
    /// `first` is the number of our SYN.
    pub const fn new(first: u32, mss: u16, scale: u8) -> Self {
        let next = first.wrapping_add(1);
        Self {
            unacked: first,
            next,
            most: next,
            edge: next,
            largest: 0,
            scale,
            mss,
            queue: VecDeque::new(),
            end: next,
            eof: false,
            resend: false,
            probe: false,
            due: None,
            duplicates: 0,
            recover: first,
            recovering: false,
            tries: 0,
        }
    }

    /// The guest's window as a segment that acknowledges `ack` tells it.
    pub fn set_window(&mut self, ack: u32, field: u16, scaled: bool) {
        let window = u32::from(field) << if scaled { self.scale } else { 0 };
        self.edge = ack.wrapping_add(window.min(WINDOW));
        self.largest = self.largest.max(window);
    }

    /// Bytes that may be sent now.
    pub fn room(&self) -> usize {
        room(self.next, self.edge) as usize
    }

    /// Whether the window is worth reading more from the socket: not for
    /// crumbs, while more room will come.
    pub fn wants_more(&self) -> bool {
        let crumbs = u32::from(self.mss).min(self.largest / 2).max(1);
        let space = room(self.next, self.edge);
        space >= crumbs || (space > 0 && self.unacked == self.most)
    }

    /// Something is under way.
    pub fn in_flight(&self) -> bool {
        self.unacked != self.most
    }

    /// Our FIN was acknowledged.
    pub fn done(&self) -> bool {
        self.eof && self.unacked == self.end.wrapping_add(1)
    }

    /// Hears an acknowledgement; `plain` if the segment says nothing else.
    /// `false` if it acknowledges what was never sent.
    pub fn hear(
        &mut self,
        ack: u32,
        field: u16,
        plain: bool,
        now: Instant,
        pool: &mut Pool,
    ) -> bool {
        if before(self.most, ack) {
            return false;
        }
        let old_edge = self.edge;
        if !before(ack, self.unacked) {
            self.set_window(ack, field, true);
        }
        if before(self.unacked, ack) {
            self.advance(ack, now, pool);
        } else if plain && ack == self.unacked && self.in_flight() && self.edge == old_edge {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES && !before(ack, self.recover) {
                self.recover = self.most;
                self.recovering = true;
                self.resend = true;
            }
        }
        if room(self.unacked, self.edge) > 0 && !self.in_flight() {
            // The window is open: no more probes.
            self.due = None;
            self.tries = 0;
        } else if self.unacked == self.edge {
            // A guest that answers probes may keep its window closed.
            self.tries = self.tries.min(ASKED);
        }
        true
    }

    fn advance(&mut self, ack: u32, now: Instant, pool: &mut Pool) {
        self.unacked = ack;
        self.duplicates = 0;
        self.tries = 0;
        if before(self.next, ack) {
            self.next = ack;
        }
        while let Some(first) = self.queue.front() {
            if before(ack, after(first.seq, first.length as usize)) {
                break;
            }
            if let Some(buffer) = self.queue.pop_front().and_then(|s| s.buffer) {
                pool.give(buffer);
            }
        }
        // More was lost than one segment.
        self.recovering &= before(ack, self.recover);
        self.resend = self.recovering && self.in_flight();
        if !before(ack, self.recover) {
            self.recover = ack;
        }
        self.due = self.in_flight().then(|| now + FIRST);
    }

    /// Something was sent up to `end`.
    pub fn sent(&mut self, end: u32, now: Instant) {
        self.next = end;
        if before(self.most, end) {
            self.most = end;
        }
        self.keep_time(now);
    }

    /// Something is under way that may have to be sent again.
    pub fn keep_time(&mut self, now: Instant) {
        if self.due.is_none() {
            self.due = Some(now + self.interval());
        }
    }

    fn interval(&self) -> Duration {
        FIRST.saturating_mul(1 << self.tries.min(6)).min(LONGEST)
    }

    /// The time-out has come. `open` once the connection is.
    pub fn timed_out(&mut self, now: Instant, open: bool) -> TimedOut {
        self.tries += 1;
        let closed_window = open && self.unacked == self.edge;
        if self.tries > if open { TRIES } else { SYN_TRIES } {
            return TimedOut::Dead;
        }
        self.due = Some(now + self.interval());
        if !open {
            return TimedOut::Again;
        }
        if closed_window || !self.in_flight() {
            self.probe = true;
        } else {
            self.next = self.unacked;
            self.recover = self.most;
            self.recovering = false;
            self.resend = false;
            self.duplicates = 0;
        }
        TimedOut::Again
    }

    /// The segment that holds the byte `at`, and the byte's place in it.
    pub fn find(&mut self, at: u32) -> Option<(&mut Segment, usize)> {
        self.queue.iter_mut().find_map(|segment| {
            let offset = distance(segment.seq, at);
            let inside = offset >= 0 && offset.cast_unsigned() < segment.length;
            inside.then_some((segment, usize::try_from(offset).ok()?))
        })
    }

    /// Adds data that was read from the socket.
    pub fn append(&mut self, buffer: Vec<u8>, length: usize) {
        self.queue.push_back(Segment {
            seq: self.end,
            length: u32::try_from(length).unwrap_or(0),
            buffer: Some(buffer),
        });
        self.end = after(self.end, length);
    }
}
