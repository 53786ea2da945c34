//! The work that senders leave to receivers, done in software, for a receiver
//! that does not accept it.

use crate::{Abilities, Checksum, Frame, MAX_FRAME, Offload, Segmentation};

const ETHERNET: usize = 14;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Whether a receiver accepts this work.
pub fn accepts(receiver: Abilities, offload: &Offload) -> bool {
    let checksum = match offload.checksum {
        Checksum::Partial { .. } => receiver.partial_checksum,
        Checksum::Complete | Checksum::Verified => true,
    };
    let segmentation = match offload.segmentation {
        Segmentation::None => true,
        Segmentation::Tcp4 { .. } => receiver.tcp4,
        Segmentation::Tcp6 { .. } => receiver.tcp6,
        Segmentation::Udp { .. } => receiver.udp,
    };
    checksum && segmentation
}

/// One frame becoming what goes over a wire: with checksums, in segments.
#[derive(Debug, Default)]
pub struct Segmenter {
    source: Vec<u8>,
    plan: Option<Plan>,
    /// Where in the source the next segment's payload begins.
    at: usize,
    index: u16,
    out: Vec<u8>,
}

/// Where the headers of a frame to be cut are.
#[derive(Clone, Copy, Debug)]
struct Plan {
    ip: usize,
    version6: bool,
    transport: usize,
    payload: usize,
    size: usize,
    udp: bool,
}

impl Segmenter {
    /// Takes a frame whose work must be done; `false` if its headers
    /// contradict its offload, and then there is nothing to come.
    pub fn load(&mut self, offload: &Offload, frame: &[u8]) -> bool {
        self.source.clear();
        self.plan = None;
        self.at = 0;
        self.index = 0;
        if frame.len() > MAX_FRAME {
            return false;
        }
        let Checksum::Partial { start, offset } = offload.checksum else {
            if offload.segmentation != Segmentation::None {
                return false;
            }
            self.out.clear();
            self.out.extend_from_slice(frame);
            return true;
        };
        if offload.segmentation == Segmentation::None {
            self.out.clear();
            self.out.extend_from_slice(frame);
            let done = complete(&mut self.out, start.into(), offset.into());
            if !done {
                self.out.clear();
            }
            return done;
        }
        let Some(plan) = plan(offload.segmentation, start.into(), frame) else {
            return false;
        };
        self.source.extend_from_slice(frame);
        self.at = plan.payload;
        self.plan = Some(plan);
        self.cut()
    }

    /// The frame to give next, the same until [`Self::advance`].
    pub fn current(&self) -> Option<Frame<'_>> {
        (!self.out.is_empty()).then_some(Frame {
            offload: Offload::default(),
            bytes: &self.out,
        })
    }

    /// Goes on to the next segment.
    pub fn advance(&mut self) {
        self.out.clear();
        if self.plan.is_some() && self.at < self.source.len() {
            self.cut();
        }
    }

    /// Makes the segment at `self.at`; `false` if it cannot be.
    fn cut(&mut self) -> bool {
        let Some(plan) = self.plan else {
            return false;
        };
        let end = (self.at + plan.size).min(self.source.len());
        let (Some(headers), Some(payload)) = (
            self.source.get(..plan.payload),
            self.source.get(self.at..end),
        ) else {
            return false;
        };
        self.out.clear();
        self.out.extend_from_slice(headers);
        self.out.extend_from_slice(payload);
        let position = Position {
            offset: self.at - plan.payload,
            index: self.index,
            last: end == self.source.len(),
        };
        let made = finish_segment(&mut self.out, &plan, &position).is_some();
        if !made {
            self.out.clear();
        }
        self.at = end;
        self.index = self.index.wrapping_add(1);
        made
    }
}

/// Which part of the whole a segment is.
struct Position {
    offset: usize,
    index: u16,
    last: bool,
}

fn plan(segmentation: Segmentation, transport: usize, frame: &[u8]) -> Option<Plan> {
    let (size, udp) = match segmentation {
        Segmentation::None => return None,
        Segmentation::Tcp4 { size } | Segmentation::Tcp6 { size } => (size, false),
        Segmentation::Udp { size } => (size, true),
    };
    let (ip, kind) = network_header(frame)?;
    let version6 = match (kind, segmentation) {
        (0x0800, Segmentation::Tcp4 { .. } | Segmentation::Udp { .. }) => false,
        (0x86dd, Segmentation::Tcp6 { .. } | Segmentation::Udp { .. }) => true,
        _ => return None,
    };
    let least = ip + if version6 { 40 } else { 20 };
    if transport < least || size == 0 {
        return None;
    }
    let header = match udp {
        true => 8,
        false => usize::from(*frame.get(transport + 12)? >> 4) * 4,
    };
    let payload = transport + header;
    let sound = (udp || header >= 20) && payload < frame.len();
    sound.then_some(Plan {
        ip,
        version6,
        transport,
        payload,
        size: size.into(),
        udp,
    })
}

/// Where the network header begins, behind VLAN tags, and its type.
fn network_header(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = ETHERNET;
    loop {
        let kind = get16(frame, at - 2)?;
        match kind {
            0x8100 | 0x88a8 if at < ETHERNET + 8 => at += 4,
            _ => return Some((at, kind)),
        }
    }
}

fn finish_segment(out: &mut [u8], plan: &Plan, position: &Position) -> Option<()> {
    let length = out.len();
    let transport_length = length.checked_sub(plan.transport)?;
    if plan.version6 {
        put16(out, plan.ip + 4, length.checked_sub(plan.ip + 40)?)?;
    } else {
        put16(out, plan.ip + 2, length.checked_sub(plan.ip)?)?;
        let id = get16(out, plan.ip + 4)?.wrapping_add(position.index);
        put16(out, plan.ip + 4, id.into())?;
        put16(out, plan.ip + 10, 0)?;
        let header = usize::from(*out.get(plan.ip)? & 15) * 4;
        let sum = checksum(out.get(plan.ip..plan.ip + header)?, 0);
        put16(out, plan.ip + 10, sum.into())?;
    }
    let place = if plan.udp {
        put16(out, plan.transport + 4, transport_length)?;
        plan.transport + 6
    } else {
        let at = plan.transport + 4;
        let bytes = out.get_mut(at..at + 4)?;
        let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        bytes.copy_from_slice(&first.wrapping_add(position.offset as u32).to_be_bytes());
        let flags = out.get_mut(plan.transport + 13)?;
        if !position.last {
            *flags &= !FIN_PSH;
        }
        if position.index > 0 {
            *flags &= !CWR;
        }
        plan.transport + 16
    };
    put16(out, place, 0)?;
    let addresses = match plan.version6 {
        true => out.get(plan.ip + 8..plan.ip + 40)?,
        false => out.get(plan.ip + 12..plan.ip + 20)?,
    };
    let protocol = if plan.udp { 17 } else { 6 };
    let pseudo = sum(addresses) + protocol + transport_length as u64;
    let value = checksum(out.get(plan.transport..)?, pseudo);
    // A UDP checksum of 0 means none (RFC 768).
    let value = if plan.udp && value == 0 {
        0xffff
    } else {
        value
    };
    put16(out, place, value.into())
}

/// Completes a partial checksum in place; `false` if it is outside the frame.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = frame
        .get(start..)
        .filter(|c| c.len() >= offset.saturating_add(2))
    else {
        return false;
    };
    let value = checksum(covered, 0);
    // 0 in a UDP header means none; 0xffff is the same number in both.
    let value = if value == 0 { 0xffff } else { value };
    put16(frame, start + offset, value.into()).is_some()
}

/// The Internet checksum of bytes and of a sum made before.
pub fn checksum(bytes: &[u8], before: u64) -> u16 {
    let mut total = before + sum(bytes);
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// The sum of big-endian 16-bit words, not folded.
fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    let mut total = 0u64;
    for chunk in &mut chunks {
        if let [a, b, c, d] = *chunk {
            total += u64::from(u32::from_be_bytes([a, b, c, d]));
        }
    }
    let mut rest = [0; 4];
    for (to, from) in rest.iter_mut().zip(chunks.remainder()) {
        *to = *from;
    }
    total + u64::from(u32::from_be_bytes(rest))
}

fn get16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn put16(bytes: &mut [u8], at: usize, value: usize) -> Option<()> {
    let value = u16::try_from(value).ok()?;
    bytes
        .get_mut(at..at + 2)?
        .copy_from_slice(&value.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp4(payload: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 1, 0, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1]);
        frame.extend([0x50, 0x99, 1, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|n| (n % 251) as u8));
        frame
    }

    fn udp6(payload: usize) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
        frame.extend((0..32).collect::<Vec<u8>>());
        frame.extend([0, 53, 1, 0, 0, 0, 0, 0]);
        frame.extend((0..payload).map(|n| (n % 249) as u8));
        frame
    }

    fn cut(offload: &Offload, frame: &[u8]) -> Vec<Vec<u8>> {
        let mut segmenter = Segmenter::default();
        assert!(segmenter.load(offload, frame));
        let mut all = Vec::new();
        while let Some(frame) = segmenter.current() {
            all.push(frame.bytes.to_vec());
            segmenter.advance();
        }
        all
    }

    fn transport_is_right(frame: &[u8], ip: usize, addresses: std::ops::Range<usize>, at: usize) {
        let protocol = u64::from(
            frame[if addresses.len() == 32 {
                ip + 6
            } else {
                ip + 9
            }],
        );
        let pseudo = sum(&frame[addresses]) + protocol + (frame.len() - at) as u64;
        assert_eq!(checksum(&frame[at..], pseudo), 0);
    }

    #[test]
    fn a_tcp_stream_is_cut_and_comes_together_again() {
        let frame = tcp4(5000);
        let offload = Offload {
            checksum: Checksum::Partial {
                start: 34,
                offset: 16,
            },
            segmentation: Segmentation::Tcp4 { size: 1460 },
            header_len: 54,
        };
        let all = cut(&offload, &frame);
        assert_eq!(all.len(), 4);
        let mut whole: Vec<u8> = Vec::new();
        for (n, segment) in all.iter().enumerate() {
            assert_eq!(checksum(&segment[14..34], 0), 0, "header checksum");
            transport_is_right(segment, 14, 26..34, 34);
            assert_eq!(get16(segment, 16), Some((segment.len() - 14) as u16));
            assert_eq!(get16(segment, 18), Some(0x1234 + n as u16));
            let sequence = u32::from_be_bytes(segment[38..42].try_into().unwrap());
            assert_eq!(sequence, 0xffff_fff0u32.wrapping_add(whole.len() as u32));
            let flags = [0x90, 0x10, 0x10, 0x19][n];
            assert_eq!(segment[47], flags, "segment {n}");
            whole.extend(&segment[54..]);
        }
        assert_eq!(whole, frame[54..]);
    }

    #[test]
    fn datagrams_over_ipv6_are_cut() {
        let frame = udp6(2500);
        let offload = Offload {
            checksum: Checksum::Partial {
                start: 54,
                offset: 6,
            },
            segmentation: Segmentation::Udp { size: 1000 },
            header_len: 62,
        };
        let all = cut(&offload, &frame);
        assert_eq!(
            all.iter().map(Vec::len).collect::<Vec<_>>(),
            [1062, 1062, 562]
        );
        for datagram in &all {
            transport_is_right(datagram, 14, 22..54, 54);
            assert_eq!(get16(datagram, 58), Some((datagram.len() - 54) as u16));
            assert_eq!(get16(datagram, 18), Some((datagram.len() - 54) as u16));
        }
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        let mut frame = tcp4(7);
        let pseudo = sum(&frame[26..34]) + 6 + 27;
        let folded = !checksum(&[], pseudo);
        frame[50..52].copy_from_slice(&folded.to_be_bytes());
        let offload = Offload {
            checksum: Checksum::Partial {
                start: 34,
                offset: 16,
            },
            ..Offload::default()
        };
        let all = cut(&offload, &frame);
        transport_is_right(&all[0], 14, 26..34, 34);
        assert!(!complete(&mut frame, 60, 1));
        assert!(!complete(&mut frame, usize::MAX, 0));
    }

    proptest! {
        #[test]
        fn whatever_comes_in_is_harmless(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            start: u16, offset: u16, size in 1u16.., kind in 0..4u8, plausible: bool,
        ) {
            let mut frame = if plausible { tcp4(300) } else { Vec::new() };
            frame.extend(bytes);
            let segmentation = match kind {
                0 => Segmentation::None,
                1 => Segmentation::Tcp4 { size },
                2 => Segmentation::Tcp6 { size },
                _ => Segmentation::Udp { size },
            };
            let start = if plausible { start % 80 } else { start };
            let checksum = Checksum::Partial { start, offset: offset % 100 };
            let mut segmenter = Segmenter::default();
            segmenter.load(&Offload { checksum, segmentation, header_len: 0 }, &frame);
            let mut count = 0;
            while let Some(part) = segmenter.current() {
                prop_assert!(part.bytes.len() <= frame.len());
                segmenter.advance();
                count += 1;
                prop_assert!(count <= frame.len() + 1);
            }
        }
    }
}
