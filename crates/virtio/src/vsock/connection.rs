//! One stream between a program of the guest and one of the host.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Bytes from the guest that are kept for a slow program of the host; what the
/// guest is told it may send.
pub const BUFFER: u32 = 256 << 10;

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest has been asked.
    Requested,
    /// Both have agreed.
    Open,
}

/// A stream. Counters wrap, as the standard has them.
pub struct Connection {
    pub stream: Arc<UnixStream>,
    pub phase: Phase,
    /// Bytes that the guest said it has room for, and has consumed.
    pub peer_buffer: u32,
    pub peer_forwarded: u32,
    /// Bytes sent to the guest.
    pub sent: u32,
    /// Bytes that the host's program has taken, and as the guest knows it.
    pub forwarded: u32,
    pub told: u32,
    /// Bytes for the host's program.
    out: VecDeque<u8>,
    /// The guest will send no more, receive no more.
    pub guest_done: bool,
    pub guest_deaf: bool,
    /// The host's program will send no more.
    pub host_done: bool,
    half_closed: bool,
}

/// The host's program is gone.
pub struct Gone;

impl Connection {
    pub fn new(stream: UnixStream, phase: Phase) -> Self {
        Self {
            stream: Arc::new(stream),
            phase,
            peer_buffer: 0,
            peer_forwarded: 0,
            sent: 0,
            forwarded: 0,
            told: 0,
            out: VecDeque::new(),
            guest_done: false,
            guest_deaf: false,
            host_done: false,
            half_closed: false,
        }
    }

    /// Bytes that the guest has room for.
    pub fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(under_way)
    }

    /// Whether bytes of the host's program can go to the guest.
    pub fn wants_input(&self) -> bool {
        self.phase == Phase::Open && !self.host_done && !self.guest_deaf && self.credit() > 0
    }

    pub fn wants_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Bytes that the guest may yet send.
    pub fn room(&self) -> usize {
        (BUFFER as usize).saturating_sub(self.out.len())
    }

    /// Whether the guest should hear how much it may send.
    pub fn owes_credit(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER / 4
    }

    /// Both sides have said all, and it has arrived.
    pub fn is_over(&self) -> bool {
        let guest_over = self.guest_done && self.out.is_empty();
        guest_over && (self.guest_deaf || self.host_done)
    }

    /// Keeps bytes of the guest and passes on what goes now.
    pub fn push(&mut self, data: &[u8]) -> Result<(), Gone> {
        self.out.extend(data);
        self.flush()
    }

    /// Says something to the host's program before the guest does.
    pub fn greet(&mut self, text: &str) -> Result<(), Gone> {
        let length = text.len();
        self.out.extend(text.bytes());
        self.forwarded = self.forwarded.wrapping_sub(length as u32);
        self.told = self.forwarded;
        self.flush()
    }

    /// Passes on what the host's program takes.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while !self.out.is_empty() {
            match (&*self.stream).write(self.out.as_slices().0) {
                Ok(0) => return Err(Gone),
                Ok(count) => {
                    self.out.drain(..count);
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        if self.guest_done && !self.half_closed {
            self.half_closed = true;
            // The program may have closed it already.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
        Ok(())
    }

    /// Takes bytes of the host's program; `None`: there are none now. None at
    /// all is its end.
    pub fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, Gone> {
        loop {
            match (&*self.stream).read(into) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }
}
