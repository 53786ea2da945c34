//! Clients of a machine's Unix sockets: a thread each, and never too many.
//! One that hangs or floods harms neither the machine nor other clients: when
//! all seats are taken, a new client gets that of who has been silent longest.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};

/// Most clients of a socket at once.
const CLIENTS: usize = 40;
/// Most of them that cannot be sent away.
const KEPT: usize = 32;
/// Stack of a client's thread, in bytes.
const STACK: usize = 256 << 10;
/// Pause after a client could not be accepted.
const TURN: Duration = Duration::from_millis(20);

/// A client of a socket where requests are lines.
pub(crate) struct Seat {
    stream: UnixStream,
    taken: Mutex<Taken>,
    others: Arc<Mutex<Vec<Arc<Seat>>>>,
}

struct Taken {
    /// When it came, or had its last answer.
    since: Instant,
    /// It waits for an answer.
    asked: bool,
    kept: bool,
}

impl Seat {
    /// Its connection, for what is no request and no answer.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Keeps it from being sent away for another: it is to be told things as
    /// they happen. `false`: there are too many such clients.
    pub fn keep(&self) -> bool {
        let others = self.others.lock();
        let kept = others.iter().filter(|seat| seat.taken.lock().kept).count();
        self.taken.lock().kept |= kept < KEPT;
        kept < KEPT
    }

    /// Since when nobody waits for anything here.
    fn idle_since(&self) -> Option<Instant> {
        let taken = self.taken.lock();
        (!taken.asked && !taken.kept).then_some(taken.since)
    }
}

impl Read for &Seat {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = (&self.stream).read(into)?;
        if into.get(..count).is_some_and(|read| read.ends_with(b"\n")) {
            self.taken.lock().asked = true;
        }
        Ok(count)
    }
}

impl Write for &Seat {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&self.stream).write(bytes)?;
        let mut taken = self.taken.lock();
        (taken.asked, taken.since) = (false, Instant::now());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Accepts clients on a thread of its own, until what is returned is dropped;
/// each has its `session` on another. `socket` names the socket in the log and
/// the threads; `full` is sent to a client for whom there is no seat.
///
/// # Errors
/// The host gives no thread or socket.
pub(crate) fn serve(
    listener: UnixListener,
    socket: &'static str,
    full: String,
    session: impl Fn(&Seat) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let (open, end) = UnixStream::pair()?;
    let clients = Clients {
        socket,
        full,
        session: Arc::new(session),
        seats: Arc::default(),
    };
    std::thread::Builder::new()
        .name(socket.into())
        .spawn(move || clients.accept(&listener, &end))?;
    Ok(open)
}

struct Clients<S> {
    socket: &'static str,
    full: String,
    session: Arc<S>,
    seats: Arc<Mutex<Vec<Arc<Seat>>>>,
}

impl<S: Fn(&Seat) -> io::Result<()> + Send + Sync + 'static> Clients<S> {
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
        if !self.make_room() {
            tracing::warn!(socket, most = CLIENTS, "a client was turned away");
            // The socket's buffer is empty: this does not wait.
            let _ = (&client).write_all(self.full.as_bytes());
            return;
        }
        let seat = Arc::new(Seat {
            stream: client,
            taken: Mutex::new(Taken {
                since: Instant::now(),
                asked: false,
                kept: false,
            }),
            others: self.seats.clone(),
        });
        self.seats.lock().push(seat.clone());
        let (session, seats) = (Arc::clone(&self.session), Arc::clone(&self.seats));
        let own = seat.clone();
        let spawned = std::thread::Builder::new()
            .name(format!("{socket}-client"))
            .stack_size(STACK)
            .spawn(move || {
                let served = seat.stream.set_nonblocking(false);
                if let Err(error) = served.and_then(|()| session(&seat)) {
                    tracing::debug!(socket, %error, "a client has gone");
                }
                leave(&seats, &seat);
            });
        if spawned.is_err() {
            leave(&self.seats, &own);
        }
    }

    /// Sends the client away who has been silent longest, if all seats are
    /// taken; whether there is room.
    fn make_room(&self) -> bool {
        let mut seats = self.seats.lock();
        if seats.len() < CLIENTS {
            return true;
        }
        let idle = seats.iter().enumerate();
        let idle = idle.filter_map(|(at, seat)| Some((seat.idle_since()?, at)));
        let Some((since, at)) = idle.min() else {
            return false;
        };
        let gone = seats.swap_remove(at);
        tracing::warn!(socket = self.socket, silent = ?since.elapsed(), "a client made room for another");
        // Its thread sees the end.
        let _ = gone.stream.shutdown(Shutdown::Both);
        true
    }
}

fn leave(seats: &Mutex<Vec<Arc<Seat>>>, seat: &Arc<Seat>) {
    seats.lock().retain(|other| !Arc::ptr_eq(other, seat));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// Answers each line with itself; `keep` makes it a stream.
    fn echo(seat: &Seat) -> io::Result<()> {
        let mut lines = BufReader::new(seat);
        let (mut line, mut to) = (String::new(), seat);
        while lines.read_line(&mut line)? > 0 {
            if line == "keep\n" && !seat.keep() {
                line = "too many\n".into();
            }
            to.write_all(std::mem::take(&mut line).as_bytes())?;
        }
        Ok(())
    }

    fn ask(client: &UnixStream, what: &str) -> String {
        let _ = (&*client).write_all(what.as_bytes());
        let mut answer = String::new();
        let _ = BufReader::new(client).read_line(&mut answer);
        answer
    }

    #[test]
    fn who_is_silent_makes_room_and_who_watches_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _open = serve(listener, "test", "full\n".into(), echo).unwrap();
        let connect = || {
            let client = UnixStream::connect(&path).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            client
        };
        let watchers: Vec<_> = (0..KEPT).map(|_| connect()).collect();
        for watcher in &watchers {
            assert_eq!(ask(watcher, "keep\n"), "keep\n");
        }
        let hung: Vec<_> = (0..3 * CLIENTS)
            .map(|_| {
                let client = connect();
                let _ = (&client).write_all(b"half a li");
                client
            })
            .collect();
        let client = connect();
        assert_eq!(ask(&client, "hello\n"), "hello\n");
        assert_eq!(ask(&client, "keep\n"), "too many\n");
        assert_eq!(ask(&hung[0], "ne\n"), "", "it was sent away");
        assert_eq!(ask(&watchers[0], "still here\n"), "still here\n");
    }
}
