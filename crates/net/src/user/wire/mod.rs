//! Frames as bytes: what is read from a guest's and written to it.
//!
//! Parsers take any bytes and answer `None` for what is malformed.

pub mod checksum;
mod ethernet;
mod ip;
mod tcp;

pub use crate::MacAddress as Mac;
pub use ethernet::{Ethernet, kind};
pub use ip::{Fragment, Ip, IpHeader, protocol};
pub use tcp::{Tcp, TcpHeader, flag};

use std::net::SocketAddr;

use crate::Checksum;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of a UDP header.
pub const UDP: usize = 8;

/// Big-endian 16 bits at `at`.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let part = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(part.try_into().ok()?))
}

/// Big-endian 32 bits at `at`.
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(part.try_into().ok()?))
}

/// Fixed part of `bytes` at `at`.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Overwrites part of `bytes`; nothing happens if it does not fit.
pub fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = at
        .checked_add(part.len())
        .and_then(|end| bytes.get_mut(at..end))
    {
        place.copy_from_slice(part);
    }
}

/// A UDP datagram (RFC 768).
pub struct Udp<'a> {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Its data.
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Reads a datagram; `bytes` is the payload of an IP packet.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let length = usize::from(be16(bytes, 4)?);
        Some(Self {
            source: be16(bytes, 0)?,
            destination: be16(bytes, 2)?,
            payload: bytes.get(UDP..length)?,
        })
    }
}

/// Sets the checksum of a transport header: the part that is left to the
/// guest if it `may` be, else all of it. `frame` begins with the Ethernet
/// header, its transport header and data at `l4`, its checksum `offset` into it.
pub fn seal(
    frame: &mut [u8],
    l4: usize,
    offset: usize,
    ip: &IpHeader,
    may_leave: bool,
) -> Checksum {
    let length = frame.len().saturating_sub(l4);
    let pseudo = checksum::pseudo(ip.source, ip.destination, ip.protocol, length);
    if may_leave {
        put(frame, l4 + offset, &checksum::fold(pseudo).to_be_bytes());
        return Checksum::Partial {
            start: u16::try_from(l4).unwrap_or(0),
            offset: u16::try_from(offset).unwrap_or(0),
        };
    }
    put(frame, l4 + offset, &[0, 0]);
    let sum = checksum::add(pseudo, frame.get(l4..).unwrap_or_default());
    let sum = match !checksum::fold(sum) {
        0 => 0xffff,
        other => other,
    };
    put(frame, l4 + offset, &sum.to_be_bytes());
    Checksum::Complete
}

/// Builds a whole frame with a UDP datagram in one IP packet. The caller has
/// seen to it that it fits.
pub fn udp_frame(
    macs: (Mac, Mac),
    from: SocketAddr,
    to: SocketAddr,
    data: &[u8],
    may_leave: bool,
) -> Option<(Vec<u8>, Checksum)> {
    let length = UDP + data.len();
    let ip = IpHeader::new(from.ip(), to.ip(), protocol::UDP)?;
    let l4 = ETHERNET + ip.length();
    let mut frame = vec![0; l4 + length];
    Ethernet::write(&mut frame, macs.1, macs.0, ip.kind());
    ip.write(frame.get_mut(ETHERNET..)?, length)?;
    put(&mut frame, l4, &from.port().to_be_bytes());
    put(&mut frame, l4 + 2, &to.port().to_be_bytes());
    put(
        &mut frame,
        l4 + 4,
        &u16::try_from(length).ok()?.to_be_bytes(),
    );
    put(&mut frame, l4 + UDP, data);
    let checksum = seal(&mut frame, l4, 6, &ip, may_leave);
    Some((frame, checksum))
}
