//! Fragments of packets: only the first says what the packet is, and the
//! others follow it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::user::wire::Ip;

/// Most packets in pieces at a time.
const MOST: usize = 1024;
/// How long the pieces of one may take.
const AGE: Duration = Duration::from_secs(30);
/// Where the second piece begins at the earliest: behind all that rules look at.
const EARLIEST: usize = 16;

type Packet = (IpAddr, IpAddr, u8, u32);

/// Packets whose first piece has passed.
#[derive(Default)]
pub struct Fragments(HashMap<Packet, Instant>);

fn packet(ip: &Ip<'_>) -> Option<Packet> {
    let fragment = ip.fragment?;
    Some((ip.source, ip.destination, ip.protocol, fragment.id))
}

impl Fragments {
    /// Whether this is a piece that is not the first; then, whether it passes.
    pub fn later(&self, ip: &Ip<'_>, now: Instant) -> Option<bool> {
        let fragment = ip.fragment.filter(|fragment| fragment.offset > 0)?;
        let began = packet(ip).and_then(|packet| self.0.get(&packet));
        let fresh = began.is_some_and(|began| now.saturating_duration_since(*began) < AGE);
        Some(fresh && fragment.offset >= EARLIEST)
    }

    /// A packet has passed; if it is a first piece, the others will.
    pub fn passed(&mut self, ip: &Ip<'_>, now: Instant) {
        let Some(packet) = packet(ip) else {
            return;
        };
        if self.0.len() >= MOST {
            self.0
                .retain(|_, began| now.saturating_duration_since(*began) < AGE);
            if self.0.len() >= MOST {
                return;
            }
        }
        self.0.insert(packet, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::wire::Fragment;

    #[test]
    fn later_pieces_follow_the_first() {
        let mut fragments = Fragments::default();
        let now = Instant::now();
        let piece = |id, offset| Ip {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol: 17,
            hops: 64,
            fragment: Some(Fragment {
                id,
                offset,
                more: true,
            }),
            payload: &[],
        };
        assert_eq!(fragments.later(&piece(1, 0), now), None);
        assert_eq!(fragments.later(&piece(1, 1480), now), Some(false));
        fragments.passed(&piece(1, 0), now);
        assert_eq!(fragments.later(&piece(1, 1480), now), Some(true));
        assert_eq!(fragments.later(&piece(1, 8), now), Some(false));
        assert_eq!(fragments.later(&piece(2, 1480), now), Some(false));
        assert_eq!(fragments.later(&piece(1, 1480), now + AGE), Some(false));
        for id in 0..10_000 {
            fragments.passed(&piece(id, 0), now);
        }
        assert_eq!(fragments.0.len(), MOST);
    }
}
