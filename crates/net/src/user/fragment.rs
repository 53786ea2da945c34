//! Putting the guest's fragments together, within bounds.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::wire::Ip;

/// Most packets in the making.
const MAX_PACKETS: usize = 16;
/// Most fragments of one.
const MAX_PARTS: usize = 64;
/// Longest payload of a packet.
const MAX_LENGTH: usize = 65_535;
/// How long the rest of a packet may take.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

struct Packet {
    key: Key,
    since: Instant,
    bytes: Vec<u8>,
    /// Ranges that are there, sorted, none overlapping.
    parts: Vec<(usize, usize)>,
    /// Length of the payload, once the last fragment is there.
    total: Option<usize>,
}

/// Packets in the making.
#[derive(Default)]
pub struct Reassembly {
    packets: Vec<Packet>,
    /// Packets that were given up.
    pub lost: u64,
}

/// A packet that is whole.
pub struct Whole {
    /// Its protocol.
    pub protocol: u8,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Reassembly {
    /// Takes a fragment; returns the packet when it is whole.
    pub fn take(&mut self, ip: &Ip<'_>, now: Instant) -> Option<Whole> {
        let fragment = ip.fragment?;
        let key = Key {
            source: ip.source,
            destination: ip.destination,
            protocol: ip.protocol,
            id: fragment.id,
        };
        self.expire(now);
        let place = match self.packets.iter().position(|packet| packet.key == key) {
            Some(place) => place,
            None => self.begin(key, now),
        };
        let start = fragment.offset;
        let end = start + ip.payload.len();
        let packet = self.packets.get_mut(place)?;
        let odd = fragment.more && !ip.payload.len().is_multiple_of(8);
        if odd || end > MAX_LENGTH || !packet.add(start, end, fragment.more, ip.payload) {
            self.packets.remove(place);
            self.lost += 1;
            return None;
        }
        if packet.parts != [(0, packet.total?)] {
            return None;
        }
        let packet = self.packets.remove(place);
        Some(Whole {
            protocol: packet.key.protocol,
            payload: packet.bytes,
        })
    }

    /// Gives up what takes too long.
    pub fn expire(&mut self, now: Instant) {
        let before = self.packets.len();
        self.packets
            .retain(|packet| now.saturating_duration_since(packet.since) < PATIENCE);
        self.lost += (before - self.packets.len()) as u64;
    }

    fn begin(&mut self, key: Key, now: Instant) -> usize {
        if self.packets.len() >= MAX_PACKETS {
            self.packets.remove(0);
            self.lost += 1;
        }
        self.packets.push(Packet {
            key,
            since: now,
            bytes: Vec::new(),
            parts: Vec::new(),
            total: None,
        });
        self.packets.len() - 1
    }
}

impl Packet {
    /// `false` if the packet cannot be right any more: fragments that overlap
    /// are an attack, never an accident (RFC 5722).
    fn add(&mut self, start: usize, end: usize, more: bool, payload: &[u8]) -> bool {
        if self.parts.contains(&(start, end)) {
            return true;
        }
        if !more {
            if self.total.is_some_and(|total| total != end) {
                return false;
            }
            self.total = Some(end);
        }
        let beyond = self.total.is_some_and(|total| {
            end > total || self.parts.last().is_some_and(|(_, last)| *last > total)
        });
        let at = self.parts.partition_point(|(first, _)| *first < start);
        let before = at.checked_sub(1).and_then(|at| self.parts.get(at)).copied();
        let after = self.parts.get(at).copied();
        let overlaps = before.is_some_and(|(_, last)| last > start)
            || after.is_some_and(|(first, _)| first < end);
        if beyond || overlaps || start == end || self.parts.len() >= MAX_PARTS {
            return false;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(start..end) {
            place.copy_from_slice(payload);
        }
        self.parts.insert(at, (start, end));
        // Neighbours that touch become one, so that a whole packet is one.
        self.parts.dedup_by(|right, left| {
            let touch = left.1 == right.0;
            if touch {
                left.1 = right.1;
            }
            touch
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::wire::Fragment;

    fn part(id: u32, offset: usize, more: bool, payload: &[u8]) -> Ip<'_> {
        Ip {
            source: "10.0.2.15".parse().unwrap(),
            destination: "192.0.2.1".parse().unwrap(),
            protocol: 17,
            hops: 64,
            fragment: Some(Fragment { id, offset, more }),
            payload,
        }
    }

    #[test]
    fn any_order_makes_the_packet() {
        let whole: Vec<u8> = (0..100).collect();
        let parts = [(0, 40), (40, 80), (80, 100)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let mut table = Reassembly::default();
            let now = Instant::now();
            let mut done = None;
            for index in order {
                let (from, to) = parts[index];
                assert!(done.is_none());
                done = table.take(&part(1, from, to < 100, &whole[from..to]), now);
            }
            assert_eq!(done.unwrap().payload, whole);
            assert!(table.packets.is_empty());
        }
    }

    #[test]
    fn bounds_hold() {
        let mut table = Reassembly::default();
        let now = Instant::now();
        let data = [0; 64];
        for id in 0..1000 {
            assert!(table.take(&part(id, 0, true, &data), now).is_none());
            assert!(table.packets.len() <= MAX_PACKETS);
        }
        assert!(table.take(&part(999, 32, true, &data), now).is_none());
        assert!(table.take(&part(998, 65_528, true, &data), now).is_none());
        assert_eq!(table.packets.len(), MAX_PACKETS - 2);
        table.expire(now + PATIENCE);
        assert!(table.packets.is_empty());
        assert_eq!(table.lost, 1000);
    }
}
