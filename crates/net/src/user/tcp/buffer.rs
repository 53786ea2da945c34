//! Memory for data on its way to the guest. Data is read from the host's
//! socket into the frame that carries it, and stays there until the guest has
//! acknowledged it.

use std::collections::VecDeque;

use crate::user::wire::ETHERNET;

/// Room for headers in front of the data: Ethernet, IPv6, TCP with the options of a SYN.
pub const HEADROOM: usize = ETHERNET + 40 + 28 + 2;
/// Most data in one frame: an IPv4 packet of 65,535 bytes.
pub const MOST: usize = 65_535 - 40;
/// Data below this is moved to a buffer of its size.
const SMALL: usize = 32 << 10;
/// Most free buffers kept.
const KEPT: usize = 64;

/// Where buffers come from, and how many bytes are out.
pub struct Pool {
    free: Vec<Vec<u8>>,
    out: usize,
    limit: usize,
}

impl Pool {
    pub const fn new(limit: usize) -> Self {
        Self {
            free: Vec::new(),
            out: 0,
            limit,
        }
    }

    /// A buffer for [`MOST`] bytes, if the limit allows one.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        if !self.has_room() {
            return None;
        }
        let buffer = self.free.pop().unwrap_or_else(|| vec![0; HEADROOM + MOST]);
        self.out += buffer.len();
        Some(buffer)
    }

    /// Whether [`Self::take`] would succeed.
    pub const fn has_room(&self) -> bool {
        self.out + HEADROOM + MOST <= self.limit
    }

    /// The buffer, or a smaller one, with the first `length` bytes of data.
    pub fn fit(&mut self, buffer: Vec<u8>, length: usize) -> Vec<u8> {
        if length >= SMALL {
            return buffer;
        }
        let mut small = vec![0; HEADROOM];
        small.extend(buffer.get(HEADROOM..HEADROOM + length).unwrap_or_default());
        self.out += small.len();
        self.give(buffer);
        small
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Vec<u8>) {
        self.out = self.out.saturating_sub(buffer.len());
        if buffer.len() == HEADROOM + MOST && self.free.len() < KEPT {
            self.free.push(buffer);
        }
    }
}

/// Data that the guest has not acknowledged, in one buffer.
pub struct Segment {
    /// Sequence number of its first byte.
    pub seq: u32,
    /// Its length.
    pub length: u32,
    /// Its buffer; `None` while the card reads from it.
    pub buffer: Option<Vec<u8>>,
}

/// Data that the host's socket had no room for.
pub struct Pending {
    bytes: VecDeque<u8>,
}

impl Pending {
    pub const fn new() -> Self {
        Self {
            bytes: VecDeque::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn extend(&mut self, data: &[u8]) {
        self.bytes.extend(data);
    }

    /// The first of it.
    pub fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Forgets the first `count` bytes.
    pub fn drop_front(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
        if self.bytes.is_empty() {
            // Thousands of connections that were full once keep nothing.
            self.bytes = VecDeque::new();
        }
    }
}
