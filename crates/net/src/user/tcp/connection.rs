//! One connection: a guest's TCP on one side, a socket of the host on the
//! other, and nothing between them but what is under way.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};

use super::buffer::{HEADROOM, MOST, Pool};
use super::receiver::{Broken, Budget, Receiver};
use super::sender::{Sender, TimedOut};
use super::sequence::{after, distance};
use crate::user::wire::{Tcp, TcpHeader, flag};

/// A guest that said nothing for so long is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(2 * 3600);
/// How long a finished connection answers late segments.
const LINGER: Duration = Duration::from_secs(2);

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The host's socket connects; the guest waits.
    Connecting,
    /// The guest has been told, and is to confirm.
    SynReceived,
    /// The guest has been asked.
    SynSent,
    /// Open, at least in one direction.
    Open,
    /// Finished in both directions, and the socket closed.
    Quiet,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Keep,
    /// The guest gets a reset, and so does the host.
    Reset,
    /// The host gets a reset, the guest nothing.
    Drop,
}

/// See the module.
pub struct Connection {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
    /// Where the socket leads was found through the name server's address.
    pub dns: bool,
    pub socket: Option<OwnedFd>,
    pub phase: Phase,
    pub rx: Receiver,
    pub tx: Sender,
    /// A SYN is to be sent.
    pub syn_due: bool,
    /// The socket may have data, or its end.
    pub readable: bool,
    /// The socket may have room.
    pub writable: bool,
    /// The socket has ended, or failed: it shows when it is read.
    pub ended: bool,
    /// It is in the queue of those that have a frame for the guest.
    pub queued: bool,
    /// When the clock calls next.
    pub armed: Option<Instant>,
    /// When the guest was last heard.
    heard: Instant,
}

impl Connection {
    pub const fn new(
        (guest, remote): (SocketAddr, SocketAddr),
        socket: OwnedFd,
        phase: Phase,
        rx: Receiver,
        tx: Sender,
        now: Instant,
    ) -> Self {
        Self {
            guest,
            remote,
            dns: false,
            socket: Some(socket),
            phase,
            rx,
            tx,
            syn_due: false,
            readable: false,
            writable: false,
            ended: false,
            queued: false,
            armed: None,
            heard: now,
        }
    }

    /// Hears a segment of the guest.
    pub fn hear(
        &mut self,
        segment: &Tcp<'_>,
        budget: &mut Budget,
        pool: &mut Pool,
        now: Instant,
    ) -> Fate {
        self.heard = now;
        if segment.has(flag::RST) {
            return self.hear_reset(segment);
        }
        match self.phase {
            Phase::Connecting => return Fate::Keep,
            Phase::SynSent => {
                let expected = self.tx.next == segment.ack && segment.has(flag::ACK);
                if !expected {
                    return if segment.has(flag::ACK) {
                        Fate::Reset
                    } else {
                        Fate::Keep
                    };
                }
                if !segment.has(flag::SYN) {
                    return Fate::Reset;
                }
                self.guest_accepted(segment, now, pool);
                return Fate::Keep;
            }
            Phase::Quiet => {
                self.rx.ack_now |= segment.has(flag::FIN) || !segment.payload.is_empty();
                return Fate::Keep;
            }
            Phase::SynReceived | Phase::Open => {}
        }
        if segment.has(flag::SYN) {
            // Our answer was lost, or the guest makes things up.
            let again = self.phase == Phase::SynReceived;
            self.syn_due |= again;
            self.rx.ack_now |= !again;
            return Fate::Keep;
        }
        if !segment.has(flag::ACK) {
            return Fate::Keep;
        }
        if self.phase == Phase::SynReceived {
            if segment.ack != self.tx.next {
                return Fate::Reset;
            }
            self.phase = Phase::Open;
        }
        self.hear_open(segment, budget, pool, now)
    }

    fn hear_open(
        &mut self,
        segment: &Tcp<'_>,
        budget: &mut Budget,
        pool: &mut Pool,
        now: Instant,
    ) -> Fate {
        let fin = segment.has(flag::FIN);
        let plain = segment.payload.is_empty() && !fin;
        if !self.tx.hear(segment.ack, segment.window, plain, now, pool) {
            self.rx.ack_now = true;
            return Fate::Keep;
        }
        if let Some((data, fin)) = self.rx.fresh(segment.seq, segment.payload, fin, budget) {
            if data.is_empty() && !fin {
                return Fate::Keep;
            }
            let Some(socket) = &self.socket else {
                return Fate::Keep;
            };
            let writable = &mut self.writable;
            let mut done = self.rx.deliver(socket, writable, budget, data, fin, now);
            while let (Ok(()), Some(data)) = (&done, self.rx.was_early(budget)) {
                done = self.rx.deliver(socket, writable, budget, &data, false, now);
                self.rx.ack_now = true;
            }
            if let Err(Broken) = done {
                return Fate::Reset;
            }
        }
        Fate::Keep
    }

    /// A reset counts only where it must come from the guest itself
    /// (RFC 5961, 3.2).
    fn hear_reset(&mut self, segment: &Tcp<'_>) -> Fate {
        let exact = match self.phase {
            Phase::SynSent => segment.has(flag::ACK) && segment.ack == self.tx.next,
            _ => segment.seq == self.rx.next,
        };
        if exact {
            return Fate::Drop;
        }
        let ahead = distance(self.rx.next, segment.seq);
        if ahead > 0 && self.phase != Phase::SynSent {
            self.rx.ack_now = true;
        }
        Fate::Keep
    }

    /// The guest's SYN in answer to ours.
    fn guest_accepted(&mut self, segment: &Tcp<'_>, now: Instant, pool: &mut Pool) {
        self.phase = Phase::Open;
        let scaled = segment.scale.is_some() && self.rx.offered_scale().is_some();
        self.rx = Receiver::new(segment.seq, scaled);
        self.rx.ack_now = true;
        self.tx.scale = if scaled {
            segment.scale.unwrap_or(0)
        } else {
            0
        };
        self.tx.mss = self.tx.mss.min(segment.mss.unwrap_or(536).max(64));
        self.tx.hear(segment.ack, segment.window, false, now, pool);
        // The window of a SYN is not scaled.
        self.tx.set_window(segment.ack, segment.window, false);
    }

    /// Moves on what can be moved on towards the host.
    pub fn flush(&mut self, budget: &mut Budget) -> Fate {
        if let (Phase::Open | Phase::SynReceived, Some(socket)) = (self.phase, &self.socket)
            && self.rx.flush(socket, &mut self.writable, budget).is_err()
        {
            return Fate::Reset;
        }
        Fate::Keep
    }

    /// Both directions have ended: the socket is closed, and late segments
    /// are answered for a while.
    pub fn finish(&mut self, now: Instant) -> bool {
        let done = self.phase == Phase::Open && self.rx.shut && self.tx.done();
        if done {
            self.phase = Phase::Quiet;
            self.socket = None;
            self.tx.due = Some(now + LINGER);
        }
        done
    }

    /// Whether it may have a frame for the guest.
    pub fn has_frame(&self) -> bool {
        if self.phase == Phase::Connecting {
            return false;
        }
        if self.syn_due || self.rx.ack_now {
            return true;
        }
        self.phase == Phase::Open
            && (self.tx.resend
                || self.tx.probe
                || (distance(self.tx.next, self.tx.end) > 0 && self.tx.room() > 0)
                || (self.readable && !self.tx.eof && self.tx.wants_more())
                || self.fin_due())
    }

    /// Our FIN is the next thing to be sent.
    pub fn fin_due(&self) -> bool {
        self.tx.eof && self.tx.next == self.tx.end
    }

    /// When it wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let idle = (self.phase == Phase::Open).then(|| self.heard + IDLE);
        [self.tx.due, self.rx.ack_at, idle]
            .into_iter()
            .flatten()
            .min()
    }

    /// Its time has come.
    pub fn time(&mut self, now: Instant) -> Fate {
        if self.rx.ack_at.is_some_and(|at| at <= now) {
            self.rx.ack_at = None;
            self.rx.ack_now = true;
        }
        if self.tx.due.is_some_and(|at| at <= now) {
            if self.phase == Phase::Quiet {
                return Fate::Drop;
            }
            let open = self.phase == Phase::Open;
            if self.tx.timed_out(now, open) == TimedOut::Dead {
                return Fate::Reset;
            }
            self.syn_due = !open;
        }
        if self.phase == Phase::Open && now.saturating_duration_since(self.heard) >= IDLE {
            self.tx.probe = true;
            self.tx.keep_time(now);
            self.heard = now;
        }
        Fate::Keep
    }

    /// A closed window is asked about from time to time.
    pub fn mind_window(&mut self, now: Instant) {
        let waits = distance(self.tx.next, self.tx.end) > 0 || (self.readable && !self.tx.eof);
        if self.phase == Phase::Open && waits && self.tx.room() == 0 {
            self.tx.keep_time(now);
        }
    }

    /// Reads from the socket as much as the guest will take. `Err` when the
    /// connection has failed, `Ok(None)` when no memory is left.
    pub fn read(&mut self, pool: &mut Pool, whole: usize) -> Result<Option<usize>, Broken> {
        let Some(socket) = &self.socket else {
            return Err(Broken);
        };
        let Some(mut buffer) = pool.take() else {
            return Ok(None);
        };
        let want = self.tx.room().min(whole).min(MOST);
        let place = buffer
            .get_mut(HEADROOM..HEADROOM + want)
            .unwrap_or_default();
        let got = loop {
            match recv(socket, &mut *place, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                other => break other.map(|(count, _)| count),
            }
        };
        match got {
            Ok(0) => {
                self.tx.eof = true;
                pool.give(buffer);
                Ok(Some(0))
            }
            Ok(count) => {
                // Less than asked for: there is no more, unless the end.
                self.readable = count == want || self.ended;
                let buffer = pool.fit(buffer, count);
                self.tx.append(buffer, count);
                Ok(Some(count))
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                pool.give(buffer);
                Ok(Some(0))
            }
            Err(_) => {
                pool.give(buffer);
                Err(Broken)
            }
        }
    }

    /// A header with everything but data and flags.
    pub fn header(&mut self, budget: &Budget, seq: u32, flags: u8) -> TcpHeader {
        let syn = flags & flag::SYN != 0;
        let window = self.rx.window(budget, syn);
        if flags & flag::ACK != 0 {
            self.rx.acknowledged();
        }
        TcpHeader {
            source: self.remote.port(),
            destination: self.guest.port(),
            seq,
            ack: if flags & flag::ACK != 0 {
                self.rx.next
            } else {
                0
            },
            flags,
            window,
            syn: None,
        }
    }

    /// The first thing to be sent again or for the first time from the queue:
    /// its number and length.
    pub fn next_data(&mut self) -> Option<(u32, usize)> {
        let (at, room) = if self.tx.resend {
            (
                self.tx.unacked,
                usize::from(self.tx.mss).max(self.tx.room()),
            )
        } else {
            (self.tx.next, self.tx.room())
        };
        let (segment, offset) = self.tx.find(at)?;
        let length = (segment.length as usize).saturating_sub(offset).min(room);
        (length > 0).then_some((at, length))
    }

    /// Data up to `at + length` was sent.
    pub fn data_sent(&mut self, at: u32, length: usize, now: Instant) {
        if self.tx.resend {
            self.tx.resend = false;
            self.tx.keep_time(now);
        } else {
            self.tx.sent(after(at, length), now);
        }
    }

    /// Makes the socket end with a reset, not an orderly end.
    pub fn abort(&mut self) {
        if let Some(socket) = self.socket.take() {
            let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        }
    }
}
