//! The machine's control socket: `machine-protocol` on a Unix socket.
//!
//! Each client has a thread and bounded buffers; one that hangs, floods or
//! talks nonsense is dropped and harms neither the machine nor other clients.

mod answer;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use machine_protocol::{ErrorCode, Hello, LINE_MAX, PROTOCOL_VERSION, Reply, parse_request};

use crate::machine::Inner;

/// Most clients at once.
const CLIENTS: usize = 32;
/// How long a client may take to accept an answer.
const WRITE: Duration = Duration::from_secs(5);
/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(600);
/// Pause between looks for new clients.
const TURN: Duration = Duration::from_millis(20);

/// Accepts clients until the machine is gone.
pub(crate) fn serve(listener: &UnixListener, machine: &Weak<Inner>) {
    if let Err(error) = listener.set_nonblocking(true) {
        tracing::warn!(%error, "the control socket cannot be served");
        return;
    }
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        if machine.upgrade().is_none_or(|m| m.control().has_ended()) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => welcome(stream, machine, &clients),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TURN),
            Err(error) => {
                tracing::warn!(%error, "accepting a client of the control socket");
                std::thread::sleep(TURN);
            }
        }
    }
}

fn welcome(stream: UnixStream, machine: &Weak<Inner>, clients: &Arc<AtomicUsize>) {
    if clients.fetch_add(1, Ordering::SeqCst) >= CLIENTS {
        clients.fetch_sub(1, Ordering::SeqCst);
        tracing::warn!(
            most = CLIENTS,
            "a client of the control socket was turned away"
        );
        return;
    }
    let (machine, count) = (machine.clone(), Arc::clone(clients));
    let spawned = std::thread::Builder::new()
        .name("control-client".into())
        .stack_size(256 << 10)
        .spawn(move || {
            if let Err(error) = session(stream, &machine) {
                tracing::debug!(%error, "a client of the control socket has gone");
            }
            count.fetch_sub(1, Ordering::SeqCst);
        });
    if spawned.is_err() {
        clients.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One client from its first line to its last.
fn session(mut stream: UnixStream, machine: &Weak<Inner>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE))?;
    stream.set_read_timeout(Some(IDLE))?;
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        holm: env!("CARGO_PKG_VERSION").into(),
    };
    send(&mut stream, &hello)?;
    let mut lines = Lines::default();
    while let Some(line) = lines.next(&mut stream)? {
        let reply = match (line, machine.upgrade()) {
            (_, None) => return Ok(()),
            (Line::TooLong, _) => Reply::Error {
                code: ErrorCode::Malformed,
                message: format!("a request is longer than {LINE_MAX} bytes"),
            },
            (Line::Whole(line), Some(machine)) => match parse_request(&line) {
                Ok(request) => {
                    tracing::info!(?request, "control request");
                    answer::answer(&machine, &request)
                }
                Err(bad) => Reply::Error {
                    code: bad.code,
                    message: bad.message,
                },
            },
        };
        send(&mut stream, &reply)?;
    }
    Ok(())
}

fn send(stream: &mut UnixStream, message: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

enum Line {
    Whole(String),
    TooLong,
}

/// Cuts what a client sends into lines, in bounded space.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// What comes is the rest of a line that is too long.
    skipping: bool,
}

impl Lines {
    fn next(&mut self, from: &mut impl Read) -> io::Result<Option<Line>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                if std::mem::take(&mut self.skipping) {
                    return Ok(Some(Line::TooLong));
                }
                let text = String::from_utf8_lossy(&line).into_owned();
                return Ok(Some(Line::Whole(text)));
            }
            if self.buffer.len() >= LINE_MAX {
                self.buffer.clear();
                self.skipping = true;
            }
            let mut more = [0; 4096];
            match from.read(&mut more) {
                Ok(0) => return Ok(None),
                Ok(n) => self.buffer.extend_from_slice(&more[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_long_ones_refused_in_bounded_space() {
        let mut text = b"one\ntwo\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', 5 * LINE_MAX));
        text.extend(b"\nthree\nrest without end");
        let mut from = &text[..];
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        while let Some(line) = lines.next(&mut from).unwrap() {
            assert!(lines.buffer.len() <= LINE_MAX + 4096);
            seen.push(match line {
                Line::Whole(text) => text,
                Line::TooLong => "TOO LONG".into(),
            });
        }
        assert_eq!(seen, ["one", "two", "TOO LONG", "three"]);
    }
}
