//! How often each caller may ask: a bucket of requests that fills with time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Most callers that are remembered.
const CALLERS_MAX: usize = 10_000;

/// How often one caller may ask.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Requests per second in the long run; at least one per hour.
    pub per_second: f64,
    /// Requests at once.
    pub burst: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            per_second: 100.0,
            burst: 200.0,
        }
    }
}

struct Bucket {
    left: f64,
    at: Instant,
}

/// The buckets of all callers.
pub struct Limiter {
    rate: Rate,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Limiter {
    /// Full buckets for everybody.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            buckets: Mutex::default(),
        }
    }

    /// Takes one request from a caller's bucket.
    ///
    /// # Errors
    /// How long to wait.
    pub fn take(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= CALLERS_MAX && !buckets.contains_key(caller) {
            // Who has a full bucket again need not be remembered.
            let fill = Duration::from_secs_f64(self.rate.burst / self.rate.per_second);
            buckets.retain(|_, b| now.saturating_duration_since(b.at) < fill);
            if buckets.len() >= CALLERS_MAX {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = buckets.entry(caller.to_owned()).or_insert(Bucket {
            left: self.rate.burst,
            at: now,
        });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + passed * self.rate.per_second).min(self.rate.burst);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(
            (1.0 - bucket.left) / self.rate.per_second,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let limiter = Limiter::new(Rate {
            per_second: 2.0,
            burst: 3.0,
        });
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(limiter.take("a", start), Ok(()));
        }
        let wait = limiter.take("a", start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        assert_eq!(limiter.take("b", start), Ok(()), "others are not held up");
        assert_eq!(limiter.take("a", start + wait), Ok(()));
        assert!(limiter.take("a", start + wait).is_err());
        let later = start + Duration::from_secs(3600);
        for _ in 0..3 {
            assert_eq!(limiter.take("a", later), Ok(()), "full, and not more");
        }
        assert!(limiter.take("a", later).is_err());
    }

    #[test]
    fn many_callers_do_not_fill_the_memory() {
        let limiter = Limiter::new(Rate::default());
        let start = Instant::now();
        for n in 0..CALLERS_MAX {
            assert!(limiter.take(&n.to_string(), start).is_ok());
        }
        assert!(limiter.take("one more", start).is_err());
        let later = start + Duration::from_secs(10);
        assert!(limiter.take("one more", later).is_ok());
        assert_eq!(limiter.buckets.lock().len(), 1);
    }
}
