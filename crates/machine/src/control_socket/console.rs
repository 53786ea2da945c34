//! A client at the serial console: one thread tells it what is printed, one
//! takes what it types.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use machine_protocol::{BadRequest, ErrorCode, EventKind, Keyboard, Reply, Request};

use super::lines::{Line, Lines};
use super::{refusal, request, send};
use crate::machine::Inner;
use crate::terminal::Watcher;

/// Most bytes typed by one request.
const TYPED_MAX: usize = 16 << 10;
/// How long a guest may read nothing before what was typed is dropped.
const UNREAD: Duration = Duration::from_secs(30);
/// Pause between looks whether the client is still there.
const TURN: Duration = Duration::from_millis(500);
/// Refusals that wait to be told; more are dropped.
const REFUSALS: usize = 16;

/// Serves the console until the client has gone or the machine has ended.
pub(super) fn attach(
    mut stream: UnixStream,
    mut lines: Lines,
    machine: &Weak<Inner>,
    watcher: Watcher,
    keyboard: Keyboard,
) -> io::Result<()> {
    // Watchers may be silent for as long as they like.
    stream.set_read_timeout(None)?;
    if keyboard != Keyboard::No {
        take(machine, &watcher, keyboard == Keyboard::Take);
    }
    let watcher = Arc::new(watcher);
    let gone = Arc::new(AtomicBool::new(false));
    let (refusals, told) = sync_channel(REFUSALS);
    let teller = {
        let (stream, watcher, gone) = (stream.try_clone()?, watcher.clone(), gone.clone());
        std::thread::Builder::new()
            .name("console-client".into())
            .stack_size(256 << 10)
            .spawn(move || {
                // A client that cannot be told anything has gone.
                let _ = tell(&stream, &watcher, &gone, &told);
                let _ = stream.shutdown(Shutdown::Both);
            })?
    };
    let listened = listen(&mut stream, &mut lines, machine, &watcher, &refusals);
    gone.store(true, Ordering::Release);
    // Its panic, if any, was reported.
    let _ = teller.join();
    listened
}

fn take(machine: &Weak<Inner>, watcher: &Watcher, force: bool) {
    let had = watcher.has_keyboard();
    if watcher.take_keyboard(force)
        && !had
        && let Some(machine) = machine.upgrade()
    {
        machine.events().note(EventKind::KeyboardTaken);
    }
}

fn tell(
    mut stream: &UnixStream,
    watcher: &Watcher,
    gone: &AtomicBool,
    refusals: &Receiver<Reply>,
) -> io::Result<()> {
    let mut held = watcher.has_keyboard();
    send(&mut stream, &Reply::Keyboard { held })?;
    while !gone.load(Ordering::Acquire) {
        let news = watcher.news(held, TURN);
        if news.keyboard != held {
            held = news.keyboard;
            send(&mut stream, &Reply::Keyboard { held })?;
        }
        while let Ok(refusal) = refusals.try_recv() {
            send(&mut stream, &refusal)?;
        }
        if let Some(printed) = news.printed {
            send(&mut stream, &Reply::Printed(printed))?;
        }
        if news.ended {
            return Ok(());
        }
    }
    Ok(())
}

fn listen(
    stream: &mut UnixStream,
    lines: &mut Lines,
    machine: &Weak<Inner>,
    watcher: &Watcher,
    refusals: &SyncSender<Reply>,
) -> io::Result<()> {
    while let Some(line) = lines.next(stream)? {
        if let Err(bad) = one(line, machine, watcher) {
            // A client with so many faults has heard enough of them.
            let _ = refusals.try_send(refusal(bad));
        }
    }
    Ok(())
}

/// Does one request at the console.
fn one(line: Line, machine: &Weak<Inner>, watcher: &Watcher) -> Result<(), BadRequest> {
    let failed = |message: String| BadRequest {
        code: ErrorCode::Failed,
        message,
    };
    let request = request(line)?;
    let Some(owner) = machine.upgrade() else {
        return Ok(());
    };
    match request {
        Request::Type { data } if data.0.len() > TYPED_MAX => Err(failed(format!(
            "at most {TYPED_MAX} bytes are typed by one request"
        ))),
        Request::Type { data } => {
            let push = |bytes: &[u8]| owner.board().serial_input(bytes);
            match watcher.type_in(&data.0, push, UNREAD) {
                0 => Ok(()),
                _ if !watcher.has_keyboard() => Err(failed("another has the keyboard".into())),
                left => Err(failed(format!(
                    "the guest does not read what is typed; {left} bytes are lost"
                ))),
            }
        }
        Request::TakeKeyboard {} => {
            take(machine, watcher, true);
            Ok(())
        }
        Request::ConsoleSize { columns, rows } => {
            if watcher.has_keyboard()
                && let Some(console) = owner.board().console()
            {
                console.set_size(columns, rows);
            }
            Ok(())
        }
        other => Err(failed(format!(
            "{other:?} is not for a console's connection; ask on another"
        ))),
    }
}
