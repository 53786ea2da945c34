//! One member as another sees it. Format 1 of what they say: first a hello
//! from each side ([`hello`]), then frames, each a message with its header
//! ([`crate::vnet`]) before it.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg, sockopt};

/// Version of the format that this program speaks.
pub(super) const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"holmswch";
const HELLO: usize = 16;
/// Bytes on their way to one member, as far as the host allows: what a member
/// that stands still can hold.
const WAITING_BYTES: usize = 1 << 20;
/// How long a card waits for one member that takes nothing.
const PATIENCE: Duration = Duration::from_millis(20);

/// What a message of the first kind is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The same format.
    Welcome,
    /// Another version of it.
    Version(u16),
    /// Something else.
    Foreign,
}

/// The hello of this version.
pub(super) fn hello() -> [u8; HELLO] {
    let mut hello = [0; HELLO];
    hello[..8].copy_from_slice(&MAGIC);
    hello[8..10].copy_from_slice(&VERSION.to_le_bytes());
    hello
}

pub(super) fn greeting(message: &[u8]) -> Greeting {
    match (message.get(..8), message.get(8..10)) {
        (Some(magic), Some(&[a, b])) if magic == MAGIC => match u16::from_le_bytes([a, b]) {
            VERSION if message.len() == HELLO => Greeting::Welcome,
            other => Greeting::Version(other),
        },
        _ => Greeting::Foreign,
    }
}

/// What came of sending to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Done.
    Done,
    /// No room: wait for it, until [`Peer::deadline`].
    Wait,
    /// Not done, and not to be tried again.
    Lost,
    /// The member is gone.
    Gone,
}

/// A connected member.
pub(super) struct Peer {
    pub socket: OwnedFd,
    /// Its hello has come.
    pub greeted: bool,
    /// Since when it has no room.
    full: Option<Instant>,
    /// It had none for too long: nothing waits for it until it has.
    slow: bool,
}

impl Peer {
    /// A fresh connection; says hello.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, Errno> {
        // The host's limit may be lower, and that works, too.
        let _ = sockopt::set_socket_send_buffer_size(&socket, WAITING_BYTES);
        send(&socket, &hello(), SendFlags::NOSIGNAL)?;
        Ok(Self {
            socket,
            greeted: false,
            full: None,
            slow: false,
        })
    }

    /// Sends one frame. `patient`: rather wait than lose it.
    pub(super) fn send(&mut self, header: &[u8], frame: &[u8], patient: bool) -> Delivery {
        if self.slow || (self.full.is_some() && !patient) {
            return Delivery::Lost;
        }
        let parts = [IoSlice::new(header), IoSlice::new(frame)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            let none = &mut SendAncillaryBuffer::default();
            return match sendmsg(&self.socket, &parts, none, flags) {
                Ok(_) => {
                    self.full = None;
                    Delivery::Done
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => self.no_room(patient),
                Err(Errno::NOBUFS | Errno::NOMEM | Errno::MSGSIZE) => Delivery::Lost,
                Err(_) => Delivery::Gone,
            };
        }
    }

    fn no_room(&mut self, patient: bool) -> Delivery {
        if !patient {
            return Delivery::Lost;
        }
        let now = Instant::now();
        let since = *self.full.get_or_insert(now);
        if now.saturating_duration_since(since) < PATIENCE {
            return Delivery::Wait;
        }
        self.slow = true;
        Delivery::Lost
    }

    /// When a frame that waits is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.full
            .filter(|_| !self.slow)
            .map(|since| since + PATIENCE)
    }

    /// Whether its socket is to be watched for room.
    pub(super) fn wants_room(&self) -> bool {
        self.full.is_some()
    }

    /// It has room again.
    pub(super) fn has_room(&mut self) {
        self.full = None;
        self.slow = false;
    }

    /// The next message; `Ok(None)`: there is none now. An empty message or
    /// an error is the end.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        loop {
            return match recv(&self.socket, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, 0)) => Err(Errno::PIPE),
                Ok((_, length)) => Ok(Some(length)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(None),
                Err(error) => Err(error),
            };
        }
    }

    /// The user and process at the other end.
    pub(super) fn who(socket: &OwnedFd) -> Option<(u32, i32)> {
        let credentials = sockopt::socket_peercred(socket).ok()?;
        let process = credentials.pid.as_raw_nonzero().get();
        Some((credentials.uid.as_raw(), process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_of_other_versions_are_told_apart() {
        assert_eq!(greeting(&hello()), Greeting::Welcome);
        let mut other = hello();
        other[8] = 9;
        assert_eq!(greeting(&other), Greeting::Version(9));
        assert_eq!(greeting(b"holm"), Greeting::Foreign);
        assert_eq!(greeting(&[0; 16]), Greeting::Foreign);
    }
}
