//! A client that is told each event as it comes.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use machine_protocol::{ErrorCode, Reply};

use super::lines::Lines;
use super::send;
use crate::events::{Events, Follower};

/// Pause between looks whether the client is still there.
const TURN: Duration = Duration::from_millis(500);

/// Tells until the machine has ended or the client has gone.
pub(super) fn follow(
    stream: &mut UnixStream,
    lines: &Lines,
    events: Arc<Events>,
    after: u64,
) -> io::Result<()> {
    let mut follower = Follower::new(events, after);
    let mut patience = Duration::ZERO;
    while let Some(list) = follower.next(patience) {
        // The first answer comes at once, so that the client knows it follows.
        if patience.is_zero() || !list.events.is_empty() {
            send(stream, &Reply::Events(list))?;
        }
        patience = TURN;
        match lines.has_more() || sent_more(stream)? {
            true => {
                let reply = Reply::Error {
                    code: ErrorCode::Failed,
                    message: "this connection follows events; ask for other things on another"
                        .into(),
                };
                return send(stream, &reply);
            }
            false => continue,
        }
    }
    Ok(())
}

/// Whether the client has sent something.
///
/// # Errors
/// It has gone.
fn sent_more(stream: &mut UnixStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let read = stream.read(&mut [0]);
    stream.set_nonblocking(false)?;
    match read {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}
