//! Block requests: what a chain asks for, and those in flight.

use disk::{GuestRange, Op};
use memory::GuestRam;
use serde::{Deserialize, Serialize};

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

/// What a request does to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// Disk to guest.
    Read,
    /// Guest to disk.
    Write,
    /// Makes what was written durable.
    #[default]
    Flush,
    /// Gives up a range.
    Discard,
    /// Zeroes a range.
    WriteZeroes,
    /// Zeroes a range and gives its space back.
    Unmap,
}

/// A request that was taken off its queue and is not answered yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// Its chain.
    pub head: u16,
    /// Guest-physical address of its status byte.
    pub status: u64,
    /// Bytes before the status that it writes.
    pub writable: u32,
    /// What it does.
    pub kind: RequestKind,
    /// First sector.
    pub sector: u64,
    /// Sectors of a discard or write-zeroes.
    pub count: u64,
    /// The data in guest memory.
    pub data: Vec<GuestRange>,
}

impl Request {
    /// Puts a parsed chain in place of what was here; `Err`: it is answered
    /// with this and does nothing to the disk.
    pub(super) fn load(&mut self, head: u16, parsed: &Parsed<'_>) -> Result<(), Status> {
        self.data.clear();
        (self.head, self.status, self.writable) = (head, parsed.status, 0);
        (self.kind, self.sector, self.count) = (RequestKind::Flush, 0, 0);
        match parsed.ask {
            Ask::Read { sector, to } => {
                (self.kind, self.sector) = (RequestKind::Read, sector);
                self.writable = parsed.writable;
                self.data.extend_from_slice(to);
            }
            Ask::Write { sector, from } => {
                (self.kind, self.sector) = (RequestKind::Write, sector);
                self.data.extend_from_slice(from);
            }
            Ask::Flush => {}
            Ask::Discard { sector, count } => {
                (self.kind, self.sector, self.count) = (RequestKind::Discard, sector, count);
            }
            Ask::WriteZeroes {
                sector,
                count,
                unmap,
            } => {
                self.kind = match unmap {
                    true => RequestKind::Unmap,
                    false => RequestKind::WriteZeroes,
                };
                (self.sector, self.count) = (sector, count);
            }
            Ask::Serial { .. } => return Err(Status::Ok),
            Ask::Refuse(status) => return Err(status),
        }
        Ok(())
    }

    /// Bytes that move between guest and disk.
    pub(super) fn bytes(&self) -> u64 {
        self.data.iter().map(|range| u64::from(range.len)).sum()
    }

    /// As the disk takes it; writes are complete when `durable` if that is set.
    pub(super) fn op(&self, durable: bool) -> Op<'_> {
        let (sector, count) = (self.sector, self.count);
        match self.kind {
            RequestKind::Read => Op::Read {
                sector,
                to: &self.data,
            },
            RequestKind::Write => Op::Write {
                sector,
                from: &self.data,
                durable,
            },
            RequestKind::Flush => Op::Flush,
            RequestKind::Discard => Op::Discard { sector, count },
            RequestKind::WriteZeroes | RequestKind::Unmap => Op::WriteZeroes {
                sector,
                count,
                unmap: self.kind == RequestKind::Unmap,
                durable,
            },
        }
    }
}

/// Requests in flight by tag; tags are reused, and with them the room for the
/// data's places.
#[derive(Default)]
pub(super) struct Table {
    requests: Vec<Request>,
    free: Vec<usize>,
}

impl Table {
    /// A free tag and its request, to be loaded.
    pub(super) fn claim(&mut self) -> (u64, &mut Request) {
        let tag = self.free.pop().unwrap_or_else(|| {
            self.requests.push(Request::default());
            self.requests.len() - 1
        });
        // Free tags are of requests that exist.
        (tag as u64, &mut self.requests[tag])
    }

    pub(super) fn get(&self, tag: u64) -> Option<&Request> {
        self.requests.get(usize::try_from(tag).ok()?)
    }

    /// The tag is free again.
    pub(super) fn release(&mut self, tag: u64) {
        if let Ok(tag) = usize::try_from(tag) {
            self.free.push(tag);
        }
    }
}
