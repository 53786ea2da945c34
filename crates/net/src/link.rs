//! The contract between a network card and what it is plugged into.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::{Abilities, Offload};

/// Most bytes of a frame: the largest IP packet and an Ethernet header.
pub const MAX_FRAME: usize = 65_550;

/// A frame on its way to the guest: an Ethernet header and what follows,
/// without the checksum at its end.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Work left to the guest; only what it accepts.
    pub offload: Offload,
    /// The bytes, at most [`MAX_FRAME`].
    pub bytes: &'a [u8],
}

/// What became of a frame from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Taken.
    Yes,
    /// No room now: to be offered again when [`Link::ready_fd`] is readable.
    Full,
    /// Thrown away: malformed, or nobody listens. Counted by the card.
    Dropped,
}

/// A link that failed for good; the card's carrier goes down.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The host's error.
    #[error("{network}: {what}: {source}")]
    Host {
        /// Which network, as [`Network::describe`] says.
        network: String,
        /// What was being done.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// One queue pair's way to its network. Used by one thread; no call waits.
pub trait Link: Send {
    /// What may be left to do on frames given to [`Self::transmit`].
    fn abilities(&self) -> Abilities;

    /// What the guest accepts in frames of [`Self::incoming`].
    fn set_guest_abilities(&mut self, guest: Abilities);

    /// Whether the guest serves this pair now. A link that it does not serve
    /// brings no frames; its network leads them to the others.
    ///
    /// # Errors
    /// [`LinkError`] if the link has failed for good.
    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        let _ = active;
        Ok(())
    }

    /// Takes a frame from the guest. Its bytes and its offload were written by
    /// the guest and are not to be trusted.
    ///
    /// # Errors
    /// [`LinkError`] if the link has failed for good.
    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<Sent, LinkError>;

    /// The next frame for the guest, the same one until [`Self::consume`].
    ///
    /// # Errors
    /// [`LinkError`] if the link has failed for good.
    fn incoming(&mut self) -> Result<Option<Frame<'_>>, LinkError>;

    /// The guest has taken the frame of [`Self::incoming`].
    fn consume(&mut self);

    /// Readable (as epoll sees it) when [`Self::incoming`] or a
    /// [`Self::transmit`] that was full may do better than before.
    fn ready_fd(&self) -> BorrowedFd<'_>;

    /// Does what is due (time-outs, retransmissions, sockets that became
    /// ready); when it wants to be called again at the latest. Called after
    /// each wake and before each sleep of the card's thread, and so after each
    /// batch of [`Self::transmit`].
    fn turn(&mut self, now: Instant) -> Option<Instant>;
}

/// What a card is plugged into.
pub trait Network: Send + Sync {
    /// Opens `pairs` links, one for each queue pair of the card.
    ///
    /// # Errors
    /// [`LinkError`].
    fn open(&self, pairs: u16) -> Result<Vec<Box<dyn Link>>, LinkError>;

    /// Most queue pairs that [`Self::open`] can serve.
    fn most_pairs(&self) -> u16;

    /// Largest IP packet that crosses, in bytes.
    fn mtu(&self) -> u16;

    /// Kind and name in a few words, for logs.
    fn describe(&self) -> String;
}
