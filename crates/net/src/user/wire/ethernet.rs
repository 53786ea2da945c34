//! Ethernet frames.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{array, be16, put};

/// Values of the type field.
pub mod kind {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// Address resolution (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// The address of a card.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All cards.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Addresses a group.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A frame's header, and what follows.
pub struct Ethernet<'a> {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// Of what ([`kind`]).
    pub kind: u16,
    /// The rest.
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Reads a frame.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        Some(Self {
            destination: Mac(array(frame, 0)?),
            source: Mac(array(frame, 6)?),
            kind: be16(frame, 12)?,
            payload: frame.get(super::ETHERNET..)?,
        })
    }

    /// Writes a header to the start of `frame`.
    pub fn write(frame: &mut [u8], destination: Mac, source: Mac, kind: u16) {
        put(frame, 0, &destination.0);
        put(frame, 6, &source.0);
        put(frame, 12, &kind.to_be_bytes());
    }
}
