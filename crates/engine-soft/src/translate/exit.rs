//! Exit records: why generated code was left. A record lies in the cache
//! after the code that leaves, and r15 points to it.

use crate::translate::asm::Asm;

/// Kind of exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The software TLB does not know the page, or the access crosses pages.
    TlbMiss = 0,
    /// Interpret one instruction.
    Emulate = 1,
    /// A direct jump that is not linked yet.
    Link = 2,
    /// An indirect branch the jump cache does not know; target in r14.
    Indirect = 3,
    /// An entry of a block that was invalidated.
    Again = 4,
    /// Something is pending.
    Poll = 5,
    /// As `TlbMiss`, of a group's range (its length is in `next`).
    GroupMiss = 7,
}

/// Bytes of a record.
pub(crate) const RECORD_LENGTH: usize = 24;

/// An exit record.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub(crate) struct Record {
    pub kind: u8,
    /// Bytes of the access that missed.
    pub size: u8,
    /// Length of the guest instruction.
    pub len: u8,
    /// Link: 1 if the jump needs the target's poll. TlbMiss: 1 for a store.
    pub entry: u8,
    /// TlbMiss: where to try again. Link: place of the rel32. Again: block.
    pub a: u32,
    /// Where the next guest instruction starts; 0: leave the block.
    /// GroupMiss: bytes of the range.
    pub next: u32,
    /// Source block's mapping (Link).
    pub map: u32,
    /// Guest rip (Link: target).
    pub rip: u64,
}

impl Record {
    pub fn new(kind: Kind, rip: u64) -> Self {
        Self {
            kind: kind as u8,
            size: 0,
            len: 0,
            entry: 0,
            a: 0,
            next: 0,
            map: 0,
            rip,
        }
    }

    pub fn indirect() -> Self {
        Self::new(Kind::Indirect, 0)
    }

    pub fn write(&self, a: &mut Asm) {
        a.bytes(&self.bytes());
    }

    pub fn bytes(&self) -> [u8; RECORD_LENGTH] {
        let mut b = [0; RECORD_LENGTH];
        b[..4].copy_from_slice(&[self.kind, self.size, self.len, self.entry]);
        b[4..8].copy_from_slice(&{ self.a }.to_le_bytes());
        b[8..12].copy_from_slice(&{ self.next }.to_le_bytes());
        b[12..16].copy_from_slice(&{ self.map }.to_le_bytes());
        b[16..].copy_from_slice(&{ self.rip }.to_le_bytes());
        b
    }

    pub fn read(b: &[u8; RECORD_LENGTH]) -> Self {
        let dword = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        Self {
            kind: b[0],
            size: b[1],
            len: b[2],
            entry: b[3],
            a: dword(4),
            next: dword(8),
            map: dword(12),
            rip: u64::from(dword(16)) | u64::from(dword(20)) << 32,
        }
    }

    /// The kind, if the number is one.
    pub fn kind(&self) -> Option<Kind> {
        Some(match self.kind {
            0 => Kind::TlbMiss,
            1 => Kind::Emulate,
            2 => Kind::Link,
            3 => Kind::Indirect,
            4 => Kind::Again,
            5 => Kind::Poll,
            7 => Kind::GroupMiss,
            _ => return None,
        })
    }
}
