//! Ethernet frames.

use super::{array, be16, put};
use crate::MacAddress as Mac;

/// Values of the type field.
pub mod kind {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// Address resolution (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
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
