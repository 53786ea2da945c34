//! The machine's control socket: `machine-protocol` on a Unix socket.
//!
//! Each client has bounded buffers; one that hangs, floods or
//! talks nonsense is dropped and harms neither the machine nor other clients.

mod answer;
mod console;
mod events;
mod lines;

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Weak};
use std::time::Duration;

use machine_protocol::{
    BadRequest, ErrorCode, Hello, LINE_MAX, PROTOCOL_VERSION, Reply, Request, parse_request,
};

use crate::clients::{self, Seat};
use crate::control::Event;
use crate::machine::Inner;
use lines::{Line, Lines};

/// How long a client may take to accept an answer.
const WRITE: Duration = Duration::from_secs(5);
/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(600);

/// Accepts clients on a thread of its own, until what is returned is dropped.
///
/// # Errors
/// The host gives no thread or socket.
pub(crate) fn open(listener: UnixListener, machine: &Arc<Inner>) -> io::Result<UnixStream> {
    let machine = Arc::downgrade(machine);
    let full = Reply::Error {
        code: ErrorCode::Failed,
        message: "the machine has too many clients that wait for answers; try again soon".into(),
    };
    let mut line = serde_json::to_string(&full)?;
    line.push('\n');
    let session = move |seat: &Seat| session(seat, &machine);
    clients::serve(listener, "control", line, session)
}

/// One client from its first line to its last.
fn session(mut seat: &Seat, machine: &Weak<Inner>) -> io::Result<()> {
    seat.stream().set_write_timeout(Some(WRITE))?;
    seat.stream().set_read_timeout(Some(IDLE))?;
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        holm: env!("CARGO_PKG_VERSION").into(),
    };
    send(&mut seat, &hello)?;
    let mut lines = Lines::default();
    while let Some(line) = lines.next(&mut seat)? {
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
        let streams = matches!(
            request,
            Ok(Request::Events { follow: true, .. } | Request::Console { .. })
        );
        let reply = match request {
            Ok(_) if streams && !seat.keep() => too_many(),
            Ok(Request::Events {
                after,
                follow: true,
            }) => {
                let events = Arc::clone(machine.events());
                drop(machine);
                let mut stream = seat.stream().try_clone()?;
                return events::follow(&mut stream, &lines, events, after);
            }
            Ok(Request::Console { keyboard, replay }) => {
                let watcher = machine.terminal().watch(replay as usize);
                let machine = Arc::downgrade(&machine);
                let stream = seat.stream().try_clone()?;
                return console::attach(stream, lines, &machine, watcher, keyboard);
            }
            Ok(request) => answer::answer(&machine, &request),
            Err(bad) => refusal(bad),
        };
        let sent = send(&mut seat, &reply);
        if kill {
            // The process ends with its machine: the answer goes first.
            machine.board().hurry();
            machine.control().post(Event::Stop);
        }
        sent?;
    }
    Ok(())
}

fn too_many() -> Reply {
    Reply::Error {
        code: ErrorCode::Failed,
        message: "the machine has too many clients that watch it; end some".into(),
    }
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
