//! Which member an address is behind.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::MacAddress;

/// As bridges do (IEEE 802.1D: 300 s).
const AGE: Duration = Duration::from_secs(300);
/// Bound against a member that makes addresses up.
const MOST: usize = 8192;

/// Addresses and the members they were seen from.
#[derive(Debug, Default)]
pub(super) struct Learned(HashMap<MacAddress, (usize, Instant)>);

impl Learned {
    /// A frame from this address came from this member.
    pub(super) fn saw(&mut self, address: MacAddress, peer: usize, now: Instant) {
        if !address.is_unicast() {
            return;
        }
        if self.0.len() >= MOST && !self.0.contains_key(&address) {
            self.0
                .retain(|_, (_, seen)| now.saturating_duration_since(*seen) < AGE);
            if self.0.len() >= MOST {
                return;
            }
        }
        self.0.insert(address, (peer, now));
    }

    /// The member behind an address.
    pub(super) fn find(&self, address: MacAddress, now: Instant) -> Option<usize> {
        let (peer, seen) = self.0.get(&address)?;
        (now.saturating_duration_since(*seen) < AGE).then_some(*peer)
    }

    /// A member is gone.
    pub(super) fn forget(&mut self, peer: usize) {
        self.0.retain(|_, (behind, _)| *behind != peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_learned_move_age_and_are_bounded() {
        let mut learned = Learned::default();
        let now = Instant::now();
        let mac = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            MacAddress([2, 0, a, b, c, d])
        };
        learned.saw(mac(1), 4, now);
        learned.saw(MacAddress::BROADCAST, 4, now);
        assert_eq!(learned.find(mac(1), now), Some(4));
        assert_eq!(learned.find(MacAddress::BROADCAST, now), None);
        learned.saw(mac(1), 5, now);
        assert_eq!(learned.find(mac(1), now), Some(5));
        assert_eq!(learned.find(mac(1), now + AGE), None);
        for n in 0..100_000 {
            learned.saw(mac(n), 6, now);
        }
        assert_eq!(learned.0.len(), MOST);
        learned.saw(mac(200_000), 6, now + AGE);
        assert_eq!(learned.find(mac(200_000), now + AGE), Some(6));
        learned.forget(6);
        assert_eq!(learned.0.len(), 0);
    }
}
