//! A machine's console under the control of a program: waits for what the
//! guest prints, and types.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Bytes kept for error messages.
const TAIL: usize = 2000;

/// A running machine; killed when dropped.
pub struct Console {
    child: Child,
    stdin: ChildStdin,
    received: Receiver<Vec<u8>>,
    /// Printed and not yet asked for.
    pending: Vec<u8>,
    tail: VecDeque<u8>,
    started: Instant,
}

impl Console {
    /// Starts a program that has a serial console on its stdin and stdout.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        let stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        let (send, received) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                if send.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            received,
            pending: Vec::new(),
            tail: VecDeque::new(),
            started,
        })
    }

    /// Time since the program was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a text and returns what came before it.
    ///
    /// # Errors
    /// If the time is over or the program ends first: with its last output.
    pub fn expect(&mut self, text: &str, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        let mut searched = 0;
        loop {
            if let Some(at) = find(&self.pending[searched..], text.as_bytes()) {
                let rest = self.pending.split_off(searched + at + text.len());
                let before = std::mem::replace(&mut self.pending, rest);
                return Ok(String::from_utf8_lossy(&before[..searched + at]).into_owned());
            }
            searched = self.pending.len().saturating_sub(text.len());
            match self.receive(end) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "waited {patience:?} in vain for {text:?}; last output:\n{}",
                        self.tail()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!(
                        "it ended ({status}) before it printed {text:?}; last output:\n{}",
                        self.tail()
                    )
                }
            }
        }
    }

    fn receive(&mut self, end: Instant) -> Result<(), RecvTimeoutError> {
        let left = end.saturating_duration_since(Instant::now());
        let bytes = self.received.recv_timeout(left)?;
        self.tail.extend(&bytes);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
        self.pending.extend(bytes);
        Ok(())
    }

    fn tail(&mut self) -> String {
        String::from_utf8_lossy(self.tail.make_contiguous()).into_owned()
    }

    /// Types a text.
    ///
    /// # Errors
    /// If the program has closed its stdin.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.stdin
            .write_all(text.as_bytes())
            .and_then(|()| self.stdin.flush())
            .context("typing at the console")
    }

    /// Waits until the program ends by itself; returns its status and the rest
    /// of its output.
    ///
    /// # Errors
    /// If the time is over.
    pub fn finish(mut self, patience: Duration) -> Result<(ExitStatus, String)> {
        let end = Instant::now() + patience;
        loop {
            match self.receive(end) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "it did not end within {patience:?}; last output:\n{}",
                        self.tail()
                    )
                }
            }
        }
        let status = self.child.wait()?;
        Ok((
            status,
            String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned(),
        ))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

/// Base64 (RFC 4648), for commands on their way through a console.
pub fn base64(text: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for group in text.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            encoded.push(if digit > group.len() {
                '='
            } else {
                char::from(DIGITS[index])
            });
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_agrees_with_the_standard() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_console_is_expected_typed_at_and_finished() {
        let script = "printf 'hello '; read x; echo got $x; exit 3";
        let mut console = Console::start(Command::new("sh").args(["-c", script])).unwrap();
        let patience = Duration::from_secs(20);
        assert_eq!(console.expect("lo ", patience).unwrap(), "hel");
        console.send("you\n").unwrap();
        let (status, rest) = console.finish(patience).unwrap();
        assert_eq!((status.code(), rest.as_str()), (Some(3), "got you\n"));
    }

    #[test]
    fn what_does_not_come_is_reported_with_the_last_output() {
        let mut console = Console::start(Command::new("echo").arg("other")).unwrap();
        let error = console
            .expect("this", Duration::from_secs(20))
            .unwrap_err()
            .to_string();
        assert!(error.contains("other") && error.contains("this"), "{error}");
    }
}
