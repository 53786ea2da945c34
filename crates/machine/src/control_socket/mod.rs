//! The machine's control socket: `machine-protocol` on a Unix socket.
//!
//! Each client has a thread and bounded buffers; one that hangs, floods or
//! talks nonsense is dropped and harms neither the machine nor other clients.

mod answer;
mod console;
mod events;
mod lines;

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use machine_protocol::{
    BadRequest, ErrorCode, Hello, LINE_MAX, PROTOCOL_VERSION, Reply, Request, parse_request,
};

use rustix::event::{PollFd, PollFlags};

use crate::control::Event;
use crate::machine::Inner;
use lines::{Line, Lines};

/// Most clients at once.
const CLIENTS: usize = 32;
/// How long a client may take to accept an answer.
const WRITE: Duration = Duration::from_secs(5);
/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(600);
/// Pause after a client could not be accepted.
const TURN: Duration = Duration::from_millis(20);

/// Accepts clients on a thread of its own, until what is returned is dropped.
///
/// # Errors
/// The host gives no thread or socket.
pub(crate) fn open(listener: UnixListener, machine: &Arc<Inner>) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let (open, end) = UnixStream::pair()?;
    let machine = Arc::downgrade(machine);
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || serve(&listener, &end, &machine))?;
    Ok(open)
}

/// Sleeps until a client comes or `end` hangs up.
fn serve(listener: &UnixListener, end: &UnixStream, machine: &Weak<Inner>) {
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
        let accepted = match polled {
            Ok(_) => listener.accept(),
            Err(error) => Err(error.into()),
        };
        match accepted {
            Ok((stream, _)) => welcome(stream, machine, &clients),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
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
        let request = request(line);
        let Some(machine) = machine.upgrade() else {
            return Ok(());
        };
        match &request {
            // Its rules may be thousands.
            Ok(Request::ConfigureNic { nic, .. }) => {
                tracing::info!(nic, "control request: configure a network card");
            }
            Ok(request) => tracing::info!(?request, "control request"),
            Err(_) => {}
        }
        let kill = matches!(request, Ok(Request::Kill {}));
        let reply = match request {
            Ok(Request::Events {
                after,
                follow: true,
            }) => {
                let events = Arc::clone(machine.events());
                drop(machine);
                return events::follow(&mut stream, &lines, events, after);
            }
            Ok(Request::Console { keyboard, replay }) => {
                let watcher = machine.terminal().watch(replay as usize);
                let machine = Arc::downgrade(&machine);
                return console::attach(stream, lines, &machine, watcher, keyboard);
            }
            Ok(request) => answer::answer(&machine, &request),
            Err(bad) => refusal(bad),
        };
        let sent = send(&mut stream, &reply);
        if kill {
            // The process ends with its machine: the answer goes first.
            machine.control().post(Event::Stop);
        }
        sent?;
    }
    Ok(())
}

fn request(line: Line) -> Result<Request, BadRequest> {
    match line {
        Line::Whole(line) => parse_request(&line),
        Line::TooLong => Err(BadRequest {
            code: ErrorCode::Malformed,
            message: format!("a request is longer than {LINE_MAX} bytes"),
        }),
    }
}

fn refusal(bad: BadRequest) -> Reply {
    Reply::Error {
        code: bad.code,
        message: bad.message,
    }
}

fn send(stream: &mut impl Write, message: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}
