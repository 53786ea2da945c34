//! How a halted vCPU waits for what wakes it.
//!
//! Sleeping costs the host two context switches and the guest tens of
//! microseconds, as long as a disk or a peer takes to answer. So a vCPU whose
//! last halts were short looks for its wake-up for a while before it sleeps.

use std::time::{Duration, Instant};

use crate::world::Signal;

/// A halt that is longer is not worth looking for its end.
const SHORT: Duration = Duration::from_micros(200);
/// First time to look, after halts that were short.
const FIRST: Duration = Duration::from_micros(20);
/// Most halts that are slept through after looking in vain.
const REST_MAX: u32 = 256;

/// Decides for one vCPU whether and how long to look before it sleeps.
#[derive(Default)]
pub(crate) struct HaltPoll {
    /// Time to look; zero while halts are long.
    window: Duration,
    /// Halts to sleep through before looking again.
    rest: u32,
    /// Halts slept through after the last time in vain: it doubles, so that a
    /// host with more to do than CPUs is hardly burdened.
    penalty: u32,
}

impl HaltPoll {
    /// Waits until any pending bit is set or the deadline has passed.
    pub(crate) fn wait(&mut self, signal: &Signal, deadline: Option<Instant>) {
        let start = Instant::now();
        if self.looks() && look(signal, start + self.window, deadline) {
            self.penalty = 0;
            return;
        }
        signal.wait(deadline);
        self.slept(start.elapsed());
    }

    fn looks(&self) -> bool {
        self.rest == 0 && !self.window.is_zero()
    }

    /// Takes note of a halt that ended in sleep.
    fn slept(&mut self, halted: Duration) {
        if self.rest > 0 {
            self.rest -= 1;
        } else if halted <= SHORT {
            self.window = (self.window * 2).clamp(FIRST, SHORT);
        } else if !self.window.is_zero() {
            self.window = Duration::ZERO;
            self.penalty = (self.penalty * 2).clamp(1, REST_MAX);
            self.rest = self.penalty;
        }
    }
}

/// Looks until `end`; whether the halt is over.
fn look(signal: &Signal, end: Instant, deadline: Option<Instant>) -> bool {
    loop {
        for _ in 0..16 {
            if signal.peek() != 0 {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if deadline.is_some_and(|at| now >= at) {
            return true;
        }
        if now >= end {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_halts_are_looked_for_and_long_ones_slept_through() {
        let mut poll = HaltPoll::default();
        assert!(!poll.looks());
        poll.slept(Duration::from_micros(90));
        assert!(poll.looks());
        assert_eq!(poll.window, FIRST);
        for _ in 0..10 {
            poll.slept(Duration::from_micros(90));
        }
        assert_eq!(poll.window, SHORT);
        poll.slept(Duration::from_millis(4));
        assert!(!poll.looks());
    }

    #[test]
    fn looking_in_vain_again_and_again_becomes_rare() {
        let mut poll = HaltPoll::default();
        let mut looked = 0;
        for halt in 0..100_000 {
            looked += u32::from(poll.looks());
            // As on a busy host: a short halt now and then, or so it seems.
            poll.slept(if halt % 2 == 0 {
                Duration::from_micros(50)
            } else {
                Duration::from_millis(3)
            });
        }
        assert!(looked < 2_000, "{looked} of 100,000");
    }
}
