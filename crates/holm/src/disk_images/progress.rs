//! How far long work is, on a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Work that is shorter says nothing.
const QUIET: Duration = Duration::from_millis(500);
/// Time between two lines.
const AGAIN: Duration = Duration::from_millis(100);

/// Says how far work is, in one line of standard error if that is a terminal.
pub struct Meter {
    what: &'static str,
    started: Instant,
    said: Option<Instant>,
    terminal: bool,
}

impl Meter {
    /// For work that is called so.
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            started: Instant::now(),
            said: None,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// What is to be called with bytes done and bytes in all.
    pub fn hear(&mut self) -> impl FnMut(u64, u64) {
        |done, all| {
            let now = Instant::now();
            let last = self.said.unwrap_or(self.started + QUIET - AGAIN);
            if self.terminal && now.saturating_duration_since(last) >= AGAIN {
                self.said = Some(now);
                let percent = u128::from(done) * 100 / u128::from(all.max(1));
                // A terminal that is gone hears nothing.
                let _ = write!(std::io::stderr(), "\r{} {percent:3} % ", self.what);
            }
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.said.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
