//! Frames out of a transmit queue.

use memory::GuestRam;
use net::segment::{Segmenter, accepts};
use net::vnet::{self, VNET_HEADER};
use net::{Link, LinkError, MAX_FRAME, Offload, Sent};

use super::counters::Direction;
use crate::queue::{self, Chain, QueueError, VirtQueue};

/// Shorter ones have no Ethernet header.
const SHORTEST: usize = 14;
/// Bytes given back of which the driver is told at once.
const PROMPT: usize = 8192;
/// Rounds of the thread after which it is told in any case.
const ROUNDS: u32 = 8;

/// A transmit queue.
pub(super) struct Transmitter {
    pub queue: VirtQueue,
    chain: Chain,
    frame: Box<[u8]>,
    /// A frame that its link had no room for.
    waiting: Option<Waiting>,
    segmenter: Segmenter,
    used: Vec<(u16, u32)>,
    /// What was given back without an interrupt.
    silent: Option<Silent>,
    quiet: bool,
}

/// What a driver was not told of yet.
#[derive(Clone, Copy, Default)]
struct Silent {
    bytes: usize,
    frames: usize,
    /// Rounds of the thread since.
    rounds: u32,
}

#[derive(Clone, Copy)]
struct Waiting {
    head: u16,
    offload: Offload,
    length: usize,
    /// The segmenter has the rest of it.
    cut: bool,
}

/// What [`Transmitter::next`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This many bytes went, or were thrown away.
    Went(usize),
    /// The link has no room.
    Full,
    /// There is no frame.
    Nothing,
}

/// Why transmission ended.
#[derive(Debug)]
pub(super) enum Stop {
    Queue(QueueError),
    Link(LinkError),
}

impl From<QueueError> for Stop {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl Transmitter {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self {
            queue,
            chain: Chain::default(),
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            waiting: None,
            segmenter: Segmenter::default(),
            used: Vec::new(),
            silent: None,
            quiet: false,
        }
    }

    /// Whether a frame waits for room on the link.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Sends the next frame; `link`: `None` without a carrier.
    pub(super) fn next(
        &mut self,
        link: Option<&mut (dyn Link + 'static)>,
        ram: &GuestRam,
        counters: &Direction,
    ) -> Result<Next, Stop> {
        let waiting = match self.waiting {
            Some(waiting) => waiting,
            None => match self.take(ram)? {
                Some(Ok(waiting)) => waiting,
                Some(Err(head)) => {
                    counters.error();
                    self.used.push((head, 0));
                    return Ok(Next::Went(0));
                }
                None => return Ok(Next::Nothing),
            },
        };
        self.waiting = Some(waiting);
        let sent = match link {
            Some(link) => self.send(link, waiting).map_err(Stop::Link)?,
            None => Sent::Dropped,
        };
        match sent {
            Sent::Full => return Ok(Next::Full),
            Sent::Yes => counters.crossed(waiting.length),
            Sent::Dropped => counters.dropped(),
        }
        self.waiting = None;
        self.used.push((waiting.head, 0));
        Ok(Next::Went(waiting.length))
    }

    /// Takes a frame off the ring; the head of its chain if it is malformed.
    fn take(&mut self, ram: &GuestRam) -> Result<Option<Result<Waiting, u16>>, QueueError> {
        if !self.queue.pop(&mut self.chain)? {
            return Ok(None);
        }
        if !self.quiet {
            self.queue.disable_notification()?;
            self.quiet = true;
        }
        let head = self.chain.head;
        let shortest = (VNET_HEADER + SHORTEST) as u64;
        let longest = (VNET_HEADER + MAX_FRAME) as u64;
        let length = self.chain.readable_len();
        if !(shortest..=longest).contains(&length) || !self.chain.writable.is_empty() {
            return Ok(Some(Err(head)));
        }
        let mut header = [0; VNET_HEADER];
        queue::read(ram, &self.chain.readable, &mut header);
        let Ok(offload) = vnet::decode(&header) else {
            return Ok(Some(Err(head)));
        };
        let rest = queue::skip(&mut self.chain.readable, VNET_HEADER as u64);
        let length = queue::read(ram, rest, &mut self.frame);
        Ok(Some(Ok(Waiting {
            head,
            offload,
            length,
            cut: false,
        })))
    }

    fn send(
        &mut self,
        link: &mut (dyn Link + 'static),
        waiting: Waiting,
    ) -> Result<Sent, LinkError> {
        let frame = self.frame.get(..waiting.length).unwrap_or_default();
        if accepts(link.abilities(), &waiting.offload) {
            return link.transmit(&waiting.offload, frame);
        }
        if !waiting.cut && !self.segmenter.load(&waiting.offload, frame) {
            return Ok(Sent::Dropped);
        }
        self.waiting = Some(Waiting {
            cut: true,
            ..waiting
        });
        let mut all = Sent::Yes;
        while let Some(segment) = self.segmenter.current() {
            match link.transmit(&segment.offload, segment.bytes)? {
                Sent::Full => return Ok(Sent::Full),
                Sent::Dropped => all = Sent::Dropped,
                Sent::Yes => {}
            }
            self.segmenter.advance();
        }
        Ok(all)
    }

    /// Gives back what was sent, these bytes of it. A driver that has sent
    /// much may wait for room: it is told at once, others later.
    pub(super) fn give_back(&mut self, bytes: usize) -> Result<(), QueueError> {
        let frames = self.used.len();
        if frames > 0 {
            self.queue.push_all(&self.used)?;
            self.used.clear();
            self.silent.get_or_insert_default();
        }
        let Some(silent) = &mut self.silent else {
            return Ok(());
        };
        silent.bytes += bytes;
        silent.frames += frames;
        silent.rounds += 1;
        let many = silent.frames >= usize::from(self.queue.size() / 4);
        if silent.bytes < PROMPT && !many && silent.rounds < ROUNDS {
            return Ok(());
        }
        self.notify()
    }

    /// Interrupts for what was given back, if the driver wants that.
    pub(super) fn notify(&mut self) -> Result<(), QueueError> {
        match self.silent.take() {
            Some(_) => self.queue.notify(),
            None => Ok(()),
        }
    }

    /// Whether there is a frame to be taken.
    pub(super) fn has_frames(&self) -> bool {
        self.queue.has_available() == Ok(true)
    }

    /// Asks for a notification of the next frame; `true` if there is one.
    pub(super) fn listen(&mut self) -> Result<bool, QueueError> {
        self.quiet = false;
        self.queue.enable_notification()
    }

    /// The queue, with a frame that waits put back.
    pub(super) fn into_queue(mut self) -> VirtQueue {
        // A queue that cannot be used says so to its next user.
        let _ = self.give_back(PROMPT);
        let _ = self.notify();
        if self.waiting.is_some() {
            self.queue.undo_pop();
        }
        self.queue
    }
}
