//! How many requests an account may make.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Requests a second that an account may make for long.
const RATE: f64 = 200.0;
/// Requests that it may make at once after a pause.
const BURST: f64 = 1000.0;

/// A bucket of tokens for each account that asked.
#[derive(Debug, Default)]
pub struct Limit(Mutex<HashMap<String, (Instant, f64)>>);

impl Limit {
    /// Whether this account may make a request now; counts it.
    pub fn take(&self, account: &str, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, tokens) = buckets.entry(account.to_owned()).or_insert((now, BURST));
        let refilled = now.saturating_duration_since(*since).as_secs_f64() * RATE;
        *tokens = (*tokens + refilled).min(BURST);
        *since = now;
        let may = *tokens >= 1.0;
        if may {
            *tokens -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_served_and_then_the_rate() {
        let (limit, now) = (Limit::default(), Instant::now());
        let served = (0..2000).filter(|_| limit.take("a", now)).count();
        assert_eq!(served, 1000);
        assert!(limit.take("b", now), "another account is not limited");
        let later = now + Duration::from_millis(100);
        assert_eq!((0..100).filter(|_| limit.take("a", later)).count(), 20);
    }
}
