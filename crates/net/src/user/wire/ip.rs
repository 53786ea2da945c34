//! IPv4 (RFC 791) and IPv6 (RFC 8200) packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{array, be16, be32, checksum, kind, put};

/// Numbers of protocols.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// Length of an IPv4 header without options.
const V4: usize = 20;
/// Length of an IPv6 header without extensions.
const V6: usize = 40;
/// Most extension headers that are looked through.
const MAX_EXTENSIONS: usize = 8;

/// Place of a fragment in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Names the packet, together with addresses and protocol.
    pub id: u32,
    /// Bytes before this fragment's.
    pub offset: usize,
    /// It is not the last.
    pub more: bool,
}

/// A packet that was read.
pub struct Ip<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Hops left.
    pub hops: u8,
    /// Set for a fragment.
    pub fragment: Option<Fragment>,
    /// After the headers.
    pub payload: &'a [u8],
}

impl<'a> Ip<'a> {
    /// Reads an IPv4 packet; its header checksum must be right.
    pub fn parse_v4(packet: &'a [u8]) -> Option<Self> {
        let first = *packet.first()?;
        let header_len = usize::from(first & 15) * 4;
        let total = usize::from(be16(packet, 2)?);
        if first >> 4 != 4 || header_len < V4 || total < header_len {
            return None;
        }
        let header = packet.get(..header_len)?;
        if checksum::fold(checksum::add(0, header)) != 0xffff {
            return None;
        }
        let flags = be16(header, 6)?;
        let offset = usize::from(flags & 0x1fff) * 8;
        let more = flags & 0x2000 != 0;
        Some(Self {
            source: Ipv4Addr::from(array::<4>(header, 12)?).into(),
            destination: Ipv4Addr::from(array::<4>(header, 16)?).into(),
            protocol: *header.get(9)?,
            hops: *header.get(8)?,
            fragment: (more || offset != 0).then_some(Fragment {
                id: u32::from(be16(header, 4)?),
                offset,
                more,
            }),
            payload: packet.get(header_len..total)?,
        })
    }

    /// Reads an IPv6 packet and looks through its extension headers.
    pub fn parse_v6(packet: &'a [u8]) -> Option<Self> {
        if *packet.first()? >> 4 != 6 {
            return None;
        }
        let length = usize::from(be16(packet, 4)?);
        let mut payload = packet.get(V6..V6 + length)?;
        let mut next = *packet.get(6)?;
        let mut fragment = None;
        for _ in 0..MAX_EXTENSIONS {
            let skip = match next {
                // Hop-by-hop options, routing, destination options.
                0 | 43 | 60 => (usize::from(*payload.get(1)?) + 1) * 8,
                44 => {
                    let place = be16(payload, 2)?;
                    let found = Fragment {
                        id: be32(payload, 4)?,
                        offset: usize::from(place & !7),
                        more: place & 1 != 0,
                    };
                    // An atomic fragment is a whole packet (RFC 6946).
                    fragment = (found.offset != 0 || found.more).then_some(found);
                    8
                }
                _ => break,
            };
            next = *payload.first()?;
            payload = payload.get(skip..)?;
            if fragment.is_some() {
                break;
            }
        }
        Some(Self {
            source: Ipv6Addr::from(array::<16>(packet, 8)?).into(),
            destination: Ipv6Addr::from(array::<16>(packet, 24)?).into(),
            protocol: next,
            hops: *packet.get(7)?,
            fragment,
            payload,
        })
    }
}

/// A header to be written, without options.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Hop limit.
    pub hops: u8,
}

impl IpHeader {
    /// `None` if the addresses are of different families.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Option<Self> {
        (source.is_ipv4() == destination.is_ipv4()).then_some(Self {
            source,
            destination,
            protocol,
            hops: 64,
        })
    }

    /// Its length.
    pub const fn length(&self) -> usize {
        if self.source.is_ipv4() { V4 } else { V6 }
    }

    /// Its Ethernet type.
    pub const fn kind(&self) -> u16 {
        if self.source.is_ipv4() {
            kind::IPV4
        } else {
            kind::IPV6
        }
    }

    /// Writes the header of a packet with `payload` bytes; `None` if they are
    /// too many.
    pub fn write(&self, packet: &mut [u8], payload: usize) -> Option<()> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = u16::try_from(payload + V4).ok()?;
                let mut header = [0; V4];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[6] = 0x40;
                header[8] = self.hops;
                header[9] = self.protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                set_v4_checksum(&mut header);
                put(packet, 0, &header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = [0; V6];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&u16::try_from(payload).ok()?.to_be_bytes());
                header[6] = self.protocol;
                header[7] = self.hops;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
                put(packet, 0, &header);
            }
            _ => return None,
        }
        Some(())
    }

    /// Writes the header of an IPv4 fragment.
    pub fn write_v4_fragment(
        &self,
        packet: &mut [u8],
        payload: usize,
        fragment: Fragment,
    ) -> Option<()> {
        self.write(packet, payload)?;
        let header = packet.get_mut(..V4)?;
        let id = u16::try_from(fragment.id & 0xffff).ok()?;
        let place = u16::try_from(fragment.offset / 8).ok()? | u16::from(fragment.more) << 13;
        put(header, 4, &id.to_be_bytes());
        put(header, 6, &place.to_be_bytes());
        set_v4_checksum(header);
        Some(())
    }
}

fn set_v4_checksum(header: &mut [u8]) {
    put(header, 10, &[0, 0]);
    let sum = !checksum::fold(checksum::add(0, header));
    put(header, 10, &sum.to_be_bytes());
}
