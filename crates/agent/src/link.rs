//! Requests into the guest, one at a time, and their answers.

use std::time::{Duration, Instant};

/// Most bytes of an answer: an agent's own limit for what it captures of a
/// program is 16 MiB, in base64.
const ANSWER_MAX: usize = 32 << 20;
/// Most bytes of answers to former requests that are passed over.
const SKIP_MAX: usize = 64 << 20;
/// Before a request: whatever the agent has of a former one is void.
const DELIMITER: u8 = 0xff;
/// Time in which an agent that lives answers to a synchronization.
const SYNC: Duration = Duration::from_secs(10);

/// Bytes to and from the guest's agent.
pub trait RawChannel: Send {
    /// Whether the guest's agent has the channel open.
    fn is_open(&self) -> bool;
    /// Sends all of `data`, or fails at the deadline.
    ///
    /// # Errors
    /// [`LinkError`].
    fn send(&mut self, data: &[u8], deadline: Instant) -> Result<(), LinkError>;
    /// Waits for bytes and takes some of them.
    ///
    /// # Errors
    /// [`LinkError`].
    fn receive(&mut self, into: &mut [u8], deadline: Instant) -> Result<usize, LinkError>;
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens in the guest.
    #[error(
        "no agent answers in the guest: install the package qemu-guest-agent there, or wait until the guest has started it"
    )]
    NoAgent,
    /// The time is over.
    #[error("the guest's agent did not answer in time; is the guest paused or very busy?")]
    Timeout,
    /// More than any agent answers.
    #[error("the guest's agent answered more than {ANSWER_MAX} bytes; the answer is dropped")]
    TooLong,
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
}

/// The machine's side of the agent channel.
pub struct Link<C> {
    channel: C,
    synchronized: bool,
    next: u64,
    buffer: Vec<u8>,
}

impl<C: RawChannel> Link<C> {
    /// A link that has not spoken to the agent yet.
    pub fn new(channel: C) -> Self {
        Self {
            channel,
            synchronized: false,
            // Not the same after the monitor was started anew with a restored
            // guest, whose agent may still be answering the former one.
            next: u64::from(std::process::id()) << 24,
            buffer: Vec::new(),
        }
    }

    /// Sends `request`, one JSON value without line breaks, and returns the
    /// answer's line as the guest gave it: it can be anything.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn call(&mut self, request: &[u8], patience: Duration) -> Result<Vec<u8>, LinkError> {
        if !self.channel.is_open() {
            self.synchronized = false;
            return Err(LinkError::NoAgent);
        }
        let result = self.try_call(request, patience);
        if result.is_err() {
            self.synchronized = false;
        }
        self.buffer.shrink_to(64 << 10);
        result
    }

    fn try_call(&mut self, request: &[u8], patience: Duration) -> Result<Vec<u8>, LinkError> {
        if !self.synchronized {
            self.synchronize()?;
            self.synchronized = true;
        }
        let deadline = Instant::now() + patience;
        self.channel.send(request, deadline)?;
        self.channel.send(b"\n", deadline)?;
        self.line(ANSWER_MAX, deadline)
    }

    fn synchronize(&mut self) -> Result<(), LinkError> {
        let deadline = Instant::now() + SYNC;
        self.next += 1;
        let id = self.next;
        self.buffer.clear();
        let mut request = vec![DELIMITER];
        let text = format!(r#"{{"execute":"guest-sync-delimited","arguments":{{"id":{id}}}}}"#);
        request.extend(text.as_bytes());
        request.push(b'\n');
        self.channel.send(&request, deadline)?;
        let mut skipped = 0;
        loop {
            match self.buffer.iter().position(|&byte| byte == DELIMITER) {
                None => {
                    skipped += self.buffer.len();
                    self.buffer.clear();
                    if skipped > SKIP_MAX {
                        return Err(LinkError::TooLong);
                    }
                    self.more(deadline)?;
                }
                Some(at) => {
                    self.buffer.drain(..=at);
                    let line = self.line(256, deadline)?;
                    if returned(&line) == Some(id) {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn line(&mut self, most: usize, deadline: Instant) -> Result<Vec<u8>, LinkError> {
        let mut seen = 0;
        loop {
            let rest = self.buffer.get(seen..).unwrap_or_default();
            if let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
                let after = self.buffer.split_off(seen + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, after);
                line.pop();
                return Ok(line);
            }
            seen = self.buffer.len();
            if seen > most {
                return Err(LinkError::TooLong);
            }
            self.more(deadline)?;
        }
    }

    fn more(&mut self, deadline: Instant) -> Result<(), LinkError> {
        let mut block = [0; 32 << 10];
        let count = self.channel.receive(&mut block, deadline)?;
        self.buffer.extend(block.get(..count).unwrap_or_default());
        Ok(())
    }
}

/// The number in `{"return": N}`.
fn returned(line: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "return")]
        value: u64,
    }
    let answer: Answer = serde_json::from_slice(line).ok()?;
    Some(answer.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// An agent whose every answer is preceded by rubbish.
    #[derive(Default)]
    struct Noisy {
        out: VecDeque<u8>,
        request: Vec<u8>,
        flood: bool,
        silent: bool,
    }

    impl RawChannel for Noisy {
        fn is_open(&self) -> bool {
            true
        }

        fn send(&mut self, data: &[u8], _: Instant) -> Result<(), LinkError> {
            for &byte in data {
                self.request.push(byte);
                if byte != b'\n' {
                    continue;
                }
                let text = String::from_utf8_lossy(&std::mem::take(&mut self.request)).into_owned();
                if self.silent {
                } else if let Some(at) = text.find("\"id\":") {
                    let id = text[at + 5..].trim_end().trim_end_matches('}');
                    self.out
                        .extend(b"{\"return\": 1}\n\xff{\"return\": 7}\nrest");
                    self.out.push_back(0xff);
                    self.out.extend(format!("{{\"return\": {id}}}\n").bytes());
                } else if self.flood {
                    self.out.extend(std::iter::repeat_n(b'x', ANSWER_MAX + 100));
                } else {
                    self.out.extend(format!("to {text}").bytes());
                }
            }
            Ok(())
        }

        fn receive(&mut self, into: &mut [u8], _: Instant) -> Result<usize, LinkError> {
            let count = into.len().min(self.out.len());
            for (to, from) in into.iter_mut().zip(self.out.drain(..count)) {
                *to = from;
            }
            if count == 0 {
                Err(LinkError::Timeout)
            } else {
                Ok(count)
            }
        }
    }

    #[test]
    fn the_answer_is_found_behind_whatever_was_said_before() {
        let mut link = Link::new(Noisy::default());
        let second = Duration::from_secs(1);
        assert_eq!(link.call(b"a", second).unwrap(), b"to a");
        assert_eq!(link.call(b"b", second).unwrap(), b"to b");
        link.channel.flood = true;
        assert_eq!(link.call(b"c", second), Err(LinkError::TooLong));
        link.channel.flood = false;
        assert_eq!(link.call(b"d", second).unwrap(), b"to d");
        link.channel.silent = true;
        assert_eq!(link.call(b"e", second), Err(LinkError::Timeout));
        link.channel.silent = false;
        assert_eq!(link.call(b"f", second).unwrap(), b"to f");
    }
}
