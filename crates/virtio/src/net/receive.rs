//! Frames into a receive queue.

use memory::GuestRam;
use net::vnet::{self, VNET_HEADER};
use net::{Checksum, Frame};

use crate::queue::{self, Chain, QueueError, VirtQueue};

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// In the guest's buffers.
    Done,
    /// There are not enough buffers now.
    Starved,
    /// It fits into no buffers the guest could give.
    TooLong,
}

/// A receive queue.
pub(super) struct Receiver {
    pub queue: VirtQueue,
    /// The driver takes a frame in several buffers.
    mergeable: bool,
    /// The driver knows of verified checksums.
    knows_verified: bool,
    chains: Vec<Chain>,
    used: Vec<(u16, u32)>,
    /// Index up to which buffers were available when they were too few.
    starved_at: Option<u16>,
    quiet: bool,
}

impl Receiver {
    pub(super) fn new(queue: VirtQueue, mergeable: bool, knows_verified: bool) -> Self {
        Self {
            queue,
            mergeable,
            knows_verified,
            chains: Vec::new(),
            used: Vec::new(),
            starved_at: None,
            quiet: false,
        }
    }

    /// Whether there were too few buffers and there are no more since.
    pub(super) fn is_starved(&mut self) -> Result<bool, QueueError> {
        let Some(at) = self.starved_at else {
            return Ok(false);
        };
        if self.queue.available_index()? == at {
            return Ok(true);
        }
        self.starved_at = None;
        Ok(false)
    }

    /// Asks for a notification of more buffers if there were too few; `true`
    /// if there are more already.
    pub(super) fn listen(&mut self) -> Result<bool, QueueError> {
        let Some(at) = self.starved_at else {
            return Ok(false);
        };
        self.quiet = false;
        self.queue.notify_beyond()?;
        Ok(self.queue.available_index()? != at)
    }

    /// Puts a frame into the guest's buffers.
    pub(super) fn deliver(
        &mut self,
        frame: &Frame<'_>,
        ram: &GuestRam,
    ) -> Result<Delivery, QueueError> {
        if !self.quiet {
            self.queue.disable_notification()?;
            self.quiet = true;
        }
        let needed = (VNET_HEADER + frame.bytes.len()) as u64;
        let (count, room) = self.take(needed)?;
        if room < needed {
            // All there are, and still not enough: more will not come.
            let hopeless =
                (!self.mergeable && count == 1) || count >= usize::from(self.queue.size());
            let at = self.queue.available_index()?;
            for _ in 0..count {
                self.queue.undo_pop();
            }
            if hopeless {
                return Ok(Delivery::TooLong);
            }
            self.starved_at = Some(at);
            return Ok(Delivery::Starved);
        }
        self.fill(frame, count, ram);
        self.queue.push_all(&self.used)?;
        Ok(Delivery::Done)
    }

    /// Takes chains until there is room, or one; their number and room.
    fn take(&mut self, needed: u64) -> Result<(usize, u64), QueueError> {
        let most = match self.mergeable {
            true => usize::from(self.queue.size()),
            false => 1,
        };
        let (mut count, mut room) = (0, 0);
        while room < needed && count < most {
            if self.chains.len() == count {
                self.chains.push(Chain::default());
            }
            let Some(chain) = self.chains.get_mut(count) else {
                break;
            };
            if !self.queue.pop(chain)? {
                break;
            }
            let length = chain.writable_len();
            // The first begins with the header (virtio 1.2, 5.1.6.3.1).
            let least = if count == 0 { VNET_HEADER as u64 } else { 1 };
            if length < least || !chain.readable.is_empty() {
                return Err(QueueError::Request {
                    head: chain.head,
                    what: "a buffer that cannot receive a frame",
                });
            }
            room += length;
            count += 1;
        }
        Ok((count, room))
    }

    /// Writes header and frame into the chains taken.
    fn fill(&mut self, frame: &Frame<'_>, count: usize, ram: &GuestRam) {
        let mut offload = frame.offload;
        if offload.checksum == Checksum::Verified && !self.knows_verified {
            offload.checksum = Checksum::Complete;
        }
        let mut header = vnet::encode(&offload);
        let buffers = u16::try_from(count).unwrap_or(u16::MAX);
        header[VNET_HEADER - 2..].copy_from_slice(&buffers.to_le_bytes());
        self.used.clear();
        let mut rest = frame.bytes;
        for (index, chain) in self.chains.iter_mut().take(count).enumerate() {
            let mut to = &mut chain.writable[..];
            let mut written = 0;
            if index == 0 {
                written += queue::write(ram, to, &header);
                to = queue::skip(to, VNET_HEADER as u64);
            }
            let part = queue::write(ram, to, rest);
            rest = rest.get(part..).unwrap_or_default();
            written += part;
            self.used.push((chain.head, written as u32));
        }
    }
}
