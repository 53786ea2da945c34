//! Requests that the host failed and that are kept to be tried again.
//!
//! A full or failing disk of the host need not be a failed disk of the guest:
//! such a request is answered only after the machine was resumed and the
//! request has been done. Nothing is lost, because the guest still waits.

use disk::GuestRange;
use serde::{Deserialize, Serialize};

use super::request::{Request, RequestKind};

/// What is done with a request that the host cannot do (no space, I/O error).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is kept until the device is stopped and started again; whoever
    /// listens is told and pauses the machine.
    #[default]
    Pause,
    /// The guest gets an I/O error.
    Report,
}

/// A request that waits to be tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldRequest {
    /// Its queue.
    pub queue: u16,
    /// The first descriptor of its chain.
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
    /// Guest-physical address and length of each part of the data.
    pub data: Vec<(u64, u32)>,
}

impl HeldRequest {
    pub(super) fn keep(queue: u16, request: &Request) -> Self {
        let data = request.data.iter().map(|range| (range.gpa, range.len));
        Self {
            queue,
            head: request.head,
            status: request.status,
            writable: request.writable,
            kind: request.kind,
            sector: request.sector,
            count: request.count,
            data: data.collect(),
        }
    }

    pub(super) fn load(&self, request: &mut Request) {
        let data = self.data.iter().map(|&(gpa, len)| GuestRange { gpa, len });
        *request = Request {
            head: self.head,
            status: self.status,
            writable: self.writable,
            kind: self.kind,
            sector: self.sector,
            count: self.count,
            data: data.collect(),
        };
    }
}

/// Whether a failed request may be tried again without a lie.
///
/// A flush that failed is tried again only if the host was out of space: after
/// an I/O error Linux forgets which pages it could not write, and the next
/// flush would succeed without them.
pub(super) fn can_retry(kind: RequestKind, error: disk::BlockError) -> bool {
    match error {
        disk::BlockError::Host(errno) => kind != RequestKind::Flush || is_full(errno),
        _ => false,
    }
}

/// ENOSPC and EDQUOT, which have these numbers on all of Linux.
fn is_full(errno: i32) -> bool {
    use rustix::io::Errno;
    [Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|full| full.raw_os_error() == errno)
}
