//! The way of a machine's owner to the TCP ports of its guest: a Unix socket
//! of the host. A client sends the number of a port and a line feed, and the
//! connection is the guest's from the next byte on; it is closed if the guest
//! refuses. Security groups do not hold here: who may open the socket, its
//! owner alone, may do anything with the machine anyway.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use net::vpc::VpcNetwork;

use crate::clients::{self, Seat};
use crate::outcome::MachineError;
use crate::socket::{OwnSocket, listen};

/// How long a client may take to name it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest number with its line feed, and a carriage return.
const LONGEST: usize = 7;
/// A socket that is served until this is dropped.
pub(crate) struct PortDoor {
    _socket: OwnSocket,
    /// Its other end tells the thread that it is over.
    _open: UnixStream,
}

impl PortDoor {
    /// Serves a socket at `path`.
    ///
    /// # Errors
    /// [`MachineError::Socket`], [`MachineError::Host`].
    pub fn open(path: &Path, port: &Arc<VpcNetwork>) -> Result<Self, MachineError> {
        let (listener, socket) = listen(path)?;
        let port = Arc::downgrade(port);
        let lead = move |client: &Seat| lead(client, &port);
        let open = clients::serve(listener, "port-door", String::new(), lead);
        let open = open.map_err(|source| MachineError::Host {
            what: "thread for the socket to the guest's ports",
            source,
        })?;
        Ok(Self {
            _socket: socket,
            _open: open,
        })
    }
}

fn lead(mut seat: &Seat, port: &Weak<VpcNetwork>) -> io::Result<()> {
    seat.stream().set_read_timeout(Some(PATIENCE))?;
    let number = number(&mut seat)?;
    let client = seat.stream().try_clone()?;
    client.set_nonblocking(true)?;
    if let Some(port) = port.upgrade() {
        port.hand(client.into(), number);
    }
    Ok(())
}

/// Reads the line with the port's number, and not a byte more.
fn number(client: &mut impl Read) -> io::Result<u16> {
    let mut line = String::new();
    for _ in 0..LONGEST {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        if byte == *b"\n" {
            let number = line.trim_end_matches('\r').parse().ok();
            let number = number.filter(|number| *number != 0);
            return number.ok_or_else(|| io::Error::other("the first line is no port"));
        }
        line.push(byte[0].into());
    }
    Err(io::Error::other("the first line is longer than a port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_nothing_else() {
        let read = |text: &str| {
            let mut bytes = text.as_bytes();
            number(&mut bytes).ok().map(|number| (number, bytes.len()))
        };
        assert_eq!(read("22\nSSH"), Some((22, 3)));
        assert_eq!(read("65535\r\n"), Some((65_535, 0)));
        for bad in ["", "22", "0\n", "65536\n", "x\n", "0000022\n", "\n", "-1\n"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
