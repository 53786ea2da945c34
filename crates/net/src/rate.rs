//! A bound on bytes per second.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How fast a direction of a card may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Bytes per second on average; not 0.
    pub bytes_per_second: u64,
    /// Bytes that may go at once after a pause.
    pub burst: u64,
}

impl Rate {
    /// A rate with the usual burst: 10 ms of it, but one largest frame at least.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            burst: (bytes_per_second / 100).max(crate::MAX_FRAME as u64),
        }
    }
}

/// A token bucket. A frame may go while there is any token and takes as many
/// as it has bytes, so that the last one may leave a debt: no frame is too
/// large for a small burst, and the average holds.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// Bytes that may go; negative: a debt.
    tokens: i128,
    /// Parts of a byte, in billionths.
    fraction: u64,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            tokens: i128::from(rate.burst.max(1)),
            fraction: 0,
            filled: now,
        }
    }

    /// How long until something may go; `None`: now.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        if self.tokens > 0 {
            return None;
        }
        self.fill(now);
        if self.tokens > 0 {
            return None;
        }
        let missing = u128::try_from(1 - self.tokens).unwrap_or(1);
        let nanos = missing * 1_000_000_000 / u128::from(self.rate.bytes_per_second.max(1));
        Some(Duration::from_nanos(
            u64::try_from(nanos + 1).unwrap_or(u64::MAX),
        ))
    }

    /// This much went.
    pub fn spend(&mut self, bytes: usize, now: Instant) {
        self.fill(now);
        self.tokens -= bytes as i128;
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        self.filled = self.filled.max(now);
        let earned = elapsed * u128::from(self.rate.bytes_per_second) + u128::from(self.fraction);
        self.fraction = (earned % 1_000_000_000) as u64;
        let whole = i128::try_from(earned / 1_000_000_000).unwrap_or(i128::MAX);
        let full = i128::from(self.rate.burst.max(1));
        self.tokens = self.tokens.saturating_add(whole).min(full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_holds_and_bursts_are_bounded() {
        let rate = Rate {
            bytes_per_second: 1_000_000,
            burst: 5000,
        };
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate, start);
        let mut now = start;
        let mut sent = 0u64;
        let mut at_once = 0u64;
        while now < start + Duration::from_secs(10) {
            match bucket.wait(now) {
                None => {
                    bucket.spend(1500, now);
                    sent += 1500;
                    at_once += u64::from(now == start) * 1500;
                }
                Some(wait) => now += wait,
            }
        }
        assert!((9_990_000..=10_010_000).contains(&sent), "{sent}");
        assert!((5000..=6500).contains(&at_once), "{at_once}");
        // A long pause earns no more than the burst.
        now += Duration::from_secs(3600);
        let mut again = 0;
        while bucket.wait(now).is_none() {
            bucket.spend(1500, now);
            again += 1500;
        }
        assert!((5000..=6500).contains(&again), "{again}");
    }

    #[test]
    fn a_frame_larger_than_the_burst_goes_and_is_paid_for() {
        let rate = Rate {
            bytes_per_second: 1000,
            burst: 10,
        };
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate, start);
        assert_eq!(bucket.wait(start), None);
        bucket.spend(65_550, start);
        let wait = bucket.wait(start).unwrap();
        assert!((65..=66).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(bucket.wait(start + wait), None);
    }
}
