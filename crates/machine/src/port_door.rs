//! The way of a machine's owner to the TCP ports of its guest: a Unix socket
//! of the host. A client sends the number of a port and a line feed, and the
//! connection is the guest's from the next byte on; it is closed if the guest
//! refuses. Security groups do not hold here: who may open the socket, its
//! owner alone, may do anything with the machine anyway.

use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use net::vpc::VpcNetwork;
use rustix::event::{PollFd, PollFlags};

use crate::outcome::MachineError;
use crate::socket::{OwnSocket, listen};

/// Most clients that have not yet named their port.
const CLIENTS: usize = 32;
/// How long a client may take to name it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest number with its line feed, and a carriage return.
const LONGEST: usize = 7;
/// Pause after a client could not be accepted.
const TURN: Duration = Duration::from_millis(20);

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
        let open = start(listener, port).map_err(|source| MachineError::Host {
            what: "thread for the socket to the guest's ports",
            source,
        })?;
        Ok(Self {
            _socket: socket,
            _open: open,
        })
    }
}

fn start(listener: UnixListener, port: Weak<VpcNetwork>) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let (open, end) = UnixStream::pair()?;
    std::thread::Builder::new()
        .name("port-door".into())
        .stack_size(256 << 10)
        .spawn(move || serve(&listener, &end, &port))?;
    Ok(open)
}

fn serve(listener: &UnixListener, end: &UnixStream, port: &Weak<VpcNetwork>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let mut sockets = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        let polled = rustix::event::poll(&mut sockets, None);
        if !sockets[1].revents().is_empty() {
            return;
        }
        match polled
            .map_err(io::Error::from)
            .and_then(|_| listener.accept())
        {
            Ok((client, _)) => welcome(client, port, &clients),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "accepting a client for a port of the guest");
                std::thread::sleep(TURN);
            }
        }
    }
}

fn welcome(client: UnixStream, port: &Weak<VpcNetwork>, clients: &Arc<AtomicUsize>) {
    if clients.fetch_add(1, Ordering::SeqCst) >= CLIENTS {
        clients.fetch_sub(1, Ordering::SeqCst);
        tracing::warn!(
            most = CLIENTS,
            "a client for a port of the guest was turned away"
        );
        return;
    }
    let (port, count) = (port.clone(), Arc::clone(clients));
    let spawned = std::thread::Builder::new()
        .name("port-client".into())
        .stack_size(128 << 10)
        .spawn(move || {
            if let Err(error) = lead(client, &port) {
                tracing::debug!(%error, "a client for a port of the guest has gone");
            }
            count.fetch_sub(1, Ordering::SeqCst);
        });
    if spawned.is_err() {
        clients.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lead(mut client: UnixStream, port: &Weak<VpcNetwork>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let number = number(&mut client)?;
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
