//! Clients of a machine's Unix sockets: a thread each, and never too many.
//! One that hangs or floods harms neither the machine nor other clients.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

/// Most clients of a socket at once.
const CLIENTS: usize = 32;
/// Stack of a client's thread, in bytes.
const STACK: usize = 256 << 10;
/// Pause after a client could not be accepted.
const TURN: Duration = Duration::from_millis(20);

/// Accepts clients on a thread of its own, until what is returned is dropped;
/// each has its `session` on another. `socket` names the socket in the log and
/// the threads.
///
/// # Errors
/// The host gives no thread or socket.
pub(crate) fn serve(
    listener: UnixListener,
    socket: &'static str,
    session: impl Fn(UnixStream) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let (open, end) = UnixStream::pair()?;
    let clients = Clients {
        socket,
        session: Arc::new(session),
        count: Arc::default(),
    };
    std::thread::Builder::new()
        .name(socket.into())
        .spawn(move || clients.accept(&listener, &end))?;
    Ok(open)
}

struct Clients<S> {
    socket: &'static str,
    session: Arc<S>,
    count: Arc<AtomicUsize>,
}

impl<S: Fn(UnixStream) -> io::Result<()> + Send + Sync + 'static> Clients<S> {
    /// Sleeps until a client comes or `end` hangs up.
    fn accept(&self, listener: &UnixListener, end: &UnixStream) {
        loop {
            let mut sockets = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(end, PollFlags::IN),
            ];
            let polled = rustix::event::poll(&mut sockets, None);
            if !sockets[1].revents().is_empty() {
                return;
            }
            let accepted = match polled {
                Ok(_) => listener.accept(),
                Err(error) => Err(error.into()),
            };
            match accepted {
                Ok((client, _)) => self.welcome(client),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(socket = self.socket, %error, "accepting a client");
                    std::thread::sleep(TURN);
                }
            }
        }
    }

    fn welcome(&self, client: UnixStream) {
        let socket = self.socket;
        if self.count.fetch_add(1, Ordering::SeqCst) >= CLIENTS {
            self.count.fetch_sub(1, Ordering::SeqCst);
            tracing::warn!(socket, most = CLIENTS, "a client was turned away");
            return;
        }
        let (session, count) = (Arc::clone(&self.session), Arc::clone(&self.count));
        let spawned = std::thread::Builder::new()
            .name(format!("{socket}-client"))
            .stack_size(STACK)
            .spawn(move || {
                let served = client.set_nonblocking(false).and_then(|()| session(client));
                if let Err(error) = served {
                    tracing::debug!(socket, %error, "a client has gone");
                }
                count.fetch_sub(1, Ordering::SeqCst);
            });
        if spawned.is_err() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
