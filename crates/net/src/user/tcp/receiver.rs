//! The direction from the guest: its data goes to the host's socket at once,
//! and what the socket has no room for waits here.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::buffer::Pending;
use super::sequence::{after, distance, room};

/// Most bytes that wait for one socket: the largest window.
pub const WINDOW: usize = 1 << 20;
/// Scale of our windows.
pub const SCALE: u8 = 7;
/// Most bytes, and most parts, kept that came before others that were lost.
const EARLY: usize = 256 << 10;
const EARLY_PARTS: usize = 64;
/// How long an acknowledgement waits for data to go with.
const DELAY: Duration = Duration::from_millis(4);
/// Bytes that are acknowledged without delay.
const PROMPT: u32 = 2 * 1460;

/// What we know of the guest's stream.
pub struct Receiver {
    /// Next byte expected.
    pub next: u32,
    /// First byte beyond the window that was told.
    edge: u32,
    /// Last acknowledgement that was sent.
    acked: u32,
    /// Scale of the windows we tell.
    scale: u8,
    /// What the socket had no room for.
    pub pending: Pending,
    /// Data that came before other data, which was lost or held up, and its
    /// number. Nothing is lost between a guest and its monitor, but the guest
    /// may be a router.
    early: Vec<(u32, Vec<u8>)>,
    /// The guest has finished, and everything up to that is here.
    pub finished: bool,
    /// The socket was told so.
    pub shut: bool,
    /// An acknowledgement is due.
    pub ack_now: bool,
    /// When it is due at the latest.
    pub ack_at: Option<Instant>,
}

/// Bytes that wait for all sockets, and their limit.
pub struct Budget {
    pub used: usize,
    pub limit: usize,
}

impl Budget {
    const fn left(&self) -> usize {
        self.limit.saturating_sub(self.used)
    }
}

/// The host's socket did not take it for good.
pub struct Broken;

impl Receiver {
    /// `first` is the number of the guest's SYN; `scaled` if it scales windows.
    pub const fn new(first: u32, scaled: bool) -> Self {
        let next = first.wrapping_add(1);
        Self {
            next,
            edge: next,
            acked: next,
            scale: if scaled { SCALE } else { 0 },
            pending: Pending::new(),
            early: Vec::new(),
            finished: false,
            shut: false,
            ack_now: false,
            ack_at: None,
        }
    }

    /// Window scale to be offered on our SYN.
    pub fn offered_scale(&self) -> Option<u8> {
        (self.scale != 0).then_some(self.scale)
    }

    /// The window to tell, and its field. That of a SYN is never scaled.
    pub fn window(&mut self, budget: &Budget, syn: bool) -> u16 {
        // A part of what is left, so that many connections can have some.
        let free = WINDOW
            .saturating_sub(self.pending.len())
            .min(budget.left() / 4);
        let scale = if syn { 0 } else { self.scale };
        let most = (usize::from(u16::MAX) << scale).min(free);
        let wanted = after(self.next, most);
        // A window never shrinks.
        if distance(self.edge, wanted) > 0 {
            self.edge = wanted;
        }
        let field = room(self.next, self.edge) >> scale;
        u16::try_from(field).unwrap_or(u16::MAX)
    }

    /// An acknowledgement goes out.
    pub const fn acknowledged(&mut self) {
        self.acked = self.next;
        self.ack_now = false;
        self.ack_at = None;
    }

    /// The part of a segment that is new and in the window, and whether its
    /// FIN is reached.
    pub fn fresh<'a>(
        &mut self,
        seq: u32,
        payload: &'a [u8],
        fin: bool,
        budget: &mut Budget,
    ) -> Option<(&'a [u8], bool)> {
        let length = payload.len() + usize::from(fin);
        let old = distance(seq, self.next);
        let Ok(skip) = usize::try_from(old) else {
            self.ack_now = true;
            self.keep_early(seq, payload, budget);
            return None;
        };
        if self.finished || (skip > 0 && skip >= length) {
            // Old data, or a probe: the guest did not see our acknowledgement.
            self.ack_now = self.ack_now || length > 0 || skip > 0;
            return None;
        }
        let data = payload.get(skip..).unwrap_or_default();
        let inside = usize::try_from(room(self.next, self.edge)).unwrap_or(0);
        if data.len() > inside {
            self.ack_now = true;
            return Some((data.get(..inside).unwrap_or_default(), false));
        }
        Some((data, fin))
    }

    fn keep_early(&mut self, seq: u32, payload: &[u8], budget: &mut Budget) {
        let inside = distance(after(seq, payload.len()), self.edge) >= 0;
        let known = self.early.iter().any(|(at, _)| *at == seq);
        let fits = self.early.len() < EARLY_PARTS
            && self.early_bytes() + payload.len() <= EARLY
            && payload.len() <= budget.left();
        if inside && !known && !payload.is_empty() && fits {
            budget.used += payload.len();
            self.early.push((seq, payload.to_vec()));
        }
    }

    fn early_bytes(&self) -> usize {
        self.early.iter().map(|(_, data)| data.len()).sum()
    }

    /// Bytes that are kept here, of the budget.
    pub fn held(&self) -> usize {
        self.pending.len() + self.early_bytes()
    }

    /// Data that came early and is next now.
    pub fn was_early(&mut self, budget: &mut Budget) -> Option<Vec<u8>> {
        loop {
            let next = self.next;
            let reached = |(at, _): &(u32, Vec<u8>)| distance(*at, next) >= 0;
            let place = self.early.iter().position(reached)?;
            let (at, mut data) = self.early.swap_remove(place);
            budget.used = budget.used.saturating_sub(data.len());
            let old = room(at, next) as usize;
            if old < data.len() {
                data.drain(..old);
                return Some(data);
            }
        }
    }

    /// Hands data to the socket; what it has no room for waits.
    pub fn deliver(
        &mut self,
        socket: &OwnedFd,
        writable: &mut bool,
        budget: &mut Budget,
        data: &[u8],
        fin: bool,
        now: Instant,
    ) -> Result<(), Broken> {
        let mut sent = 0;
        if self.pending.is_empty() && *writable && !data.is_empty() {
            sent = send_some(socket, writable, data)?;
        }
        let rest = data.get(sent..).unwrap_or_default();
        let kept = rest
            .get(..rest.len().min(budget.left()))
            .unwrap_or_default();
        self.pending.extend(kept);
        budget.used += kept.len();
        self.next = after(self.next, sent + kept.len());
        if kept.len() < rest.len() {
            self.ack_now = true;
        } else if fin {
            self.next = self.next.wrapping_add(1);
            self.finished = true;
            self.ack_now = true;
        }
        if room(self.acked, self.next) >= PROMPT {
            self.ack_now = true;
        } else if self.acked != self.next && self.ack_at.is_none() {
            self.ack_at = Some(now + DELAY);
        }
        Ok(())
    }

    /// Hands over what waits, and the end of the stream after it.
    pub fn flush(
        &mut self,
        socket: &OwnedFd,
        writable: &mut bool,
        budget: &mut Budget,
    ) -> Result<(), Broken> {
        let before = self.pending.len();
        while *writable && !self.pending.is_empty() {
            let sent = send_some(socket, writable, self.pending.front())?;
            self.pending.drop_front(sent);
            budget.used = budget.used.saturating_sub(sent);
        }
        // The guest learns of new room when it is worth it.
        if before > WINDOW / 2 && self.pending.len() <= WINDOW / 2 {
            self.ack_now = true;
        }
        if before > 0 && room(self.next, self.edge) < PROMPT {
            self.ack_now = true;
        }
        if self.finished && !self.shut && self.pending.is_empty() {
            self.shut = true;
            // An error of the socket shows when it is read.
            let _ = shutdown(socket, Shutdown::Write);
        }
        Ok(())
    }
}

/// Sends what the socket takes. A short send means that it is full.
fn send_some(socket: &OwnedFd, writable: &mut bool, data: &[u8]) -> Result<usize, Broken> {
    loop {
        match send(socket, data, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => {
                if sent < data.len() {
                    *writable = false;
                }
                return Ok(sent);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {
                *writable = false;
                return Ok(0);
            }
            Err(_) => return Err(Broken),
        }
    }
}
