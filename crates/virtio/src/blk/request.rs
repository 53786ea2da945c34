//! Block requests: what a chain asks for, and those in flight.

use disk::GuestRange;
use memory::GuestRam;

use super::config::feature;
use crate::queue::{self, Chain, QueueError};

/// Bytes of the header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of one range of a discard or write-zeroes.
const RANGE: usize = 16;
/// Only flag of a range: the space may be given back.
const FLAG_UNMAP: u32 = 1;

/// Request types (virtio 1.2, 5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// How a request ended, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a chain asks for. Buffers are parts of the chain.
#[derive(Debug)]
pub(super) enum Ask<'a> {
    Read {
        sector: u64,
        to: &'a [GuestRange],
    },
    Write {
        sector: u64,
        from: &'a [GuestRange],
    },
    Flush,
    Serial {
        to: &'a [GuestRange],
    },
    Discard {
        sector: u64,
        count: u64,
    },
    WriteZeroes {
        sector: u64,
        count: u64,
        unmap: bool,
    },
    /// Ends at once.
    Refuse(Status),
}

/// A parsed chain: the request and the address of its status byte.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    pub ask: Ask<'a>,
    pub status: u64,
    /// Bytes of buffers the device writes before the status.
    pub writable: u32,
}

/// Parses the request in a chain, for a device that offers `features`.
///
/// # Errors
/// [`QueueError::Request`] if there is no header or no place for the status:
/// then nothing can be answered.
pub(super) fn parse<'a>(
    chain: &'a mut Chain,
    ram: &GuestRam,
    features: u64,
) -> Result<Parsed<'a>, QueueError> {
    let head = chain.head;
    let broken = |what| QueueError::Request { head, what };
    let mut header = [0; HEADER];
    if queue::read(ram, &chain.readable, &mut header) < HEADER {
        return Err(broken("the block request has no whole header"));
    }
    let Some(last) = chain.writable.last_mut() else {
        return Err(broken("the block request has no place for its status"));
    };
    last.len -= 1;
    let status = last.gpa + u64::from(last.len);
    if last.len == 0 {
        chain.writable.pop();
    }
    let writable = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX - 1);
    let kind = u32_at(&header, 0);
    let sector = u64::from(u32_at(&header, 8)) | u64::from(u32_at(&header, 12)) << 32;
    let readable = queue::skip(&mut chain.readable, HEADER as u64);
    let ask = match kind {
        kind::IN => Ask::Read {
            sector,
            to: &chain.writable,
        },
        kind::OUT => Ask::Write {
            sector,
            from: readable,
        },
        kind::FLUSH => Ask::Flush,
        kind::GET_ID => Ask::Serial {
            to: &chain.writable,
        },
        kind::DISCARD if features & feature::DISCARD != 0 => parse_range(readable, ram, true),
        kind::WRITE_ZEROES if features & feature::WRITE_ZEROES != 0 => {
            parse_range(readable, ram, false)
        }
        _ => Ask::Refuse(Status::Unsupported),
    };
    Ok(Parsed {
        ask,
        status,
        writable,
    })
}

/// The one range of a discard or write-zeroes.
fn parse_range<'a>(data: &[GuestRange], ram: &GuestRam, discard: bool) -> Ask<'a> {
    let mut range = [0; RANGE + 1];
    // One byte more would be a second range, which the configuration forbids.
    if queue::read(ram, data, &mut range) != RANGE {
        return Ask::Refuse(Status::IoError);
    }
    let sector = u64::from(u32_at(&range, 0)) | u64::from(u32_at(&range, 4)) << 32;
    let count = u64::from(u32_at(&range, 8));
    let flags = u32_at(&range, 12);
    match (discard, flags) {
        (true, 0) => Ask::Discard { sector, count },
        (false, 0 | FLAG_UNMAP) => Ask::WriteZeroes {
            sector,
            count,
            unmap: flags == FLAG_UNMAP,
        },
        _ => Ask::Refuse(Status::Unsupported),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
        .map_or(0, u32::from_le_bytes)
}

/// A request in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Request {
    /// Index of its queue.
    pub queue: usize,
    /// Its chain.
    pub head: u16,
    /// Guest-physical address of its status byte.
    pub status: u64,
    /// Bytes before the status that it writes.
    pub writable: u32,
    /// For [`super::IoFailure`].
    pub sector: u64,
    /// For [`super::IoFailure`].
    pub write: bool,
}

/// Requests in flight by tag; tags are reused.
#[derive(Default)]
pub(super) struct Table {
    requests: Vec<Request>,
    free: Vec<usize>,
}

impl Table {
    pub(super) fn insert(&mut self, request: Request) -> u64 {
        if let Some(tag) = self.free.pop()
            && let Some(place) = self.requests.get_mut(tag)
        {
            *place = request;
            return tag as u64;
        }
        self.requests.push(request);
        self.requests.len() as u64 - 1
    }

    pub(super) fn remove(&mut self, tag: u64) -> Option<Request> {
        let tag = usize::try_from(tag).ok()?;
        let request = self.requests.get(tag).copied()?;
        self.free.push(tag);
        Some(request)
    }
}
