//! `holm console`: the serial console of a machine that runs elsewhere.

use std::io::{self, Read, Write};
use std::sync::mpsc::{self, Sender};
use std::thread;

use clap::Args;
use machine_protocol::{Bytes, Keyboard, Reply, Request};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use super::Named;
use super::client::{Client, ControlError, Sending};
use crate::console::keys::{Keys, Typed};
use crate::console::terminal::{self, RawMode};
use crate::exit_code;

/// `holm console`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// Only watches; another may type
    #[arg(long, conflicts_with = "take")]
    pub watch: bool,

    /// Takes the keyboard from whoever has it
    #[arg(long)]
    pub take: bool,

    /// How much of what was printed before is printed again, at most 256K (--replay 64K, --replay 0)
    #[arg(long, value_name = "SIZE", default_value = "16K", value_parser = crate::values::size)]
    pub replay: u64,
}

/// What the main thread waits for.
enum News {
    /// The user wants to go.
    Detached,
    /// SIGHUP, SIGINT or SIGTERM.
    Signal,
    /// The machine has ended.
    Ended,
    /// The connection failed.
    Failed(ControlError),
    /// The reader of the output has gone.
    Unread,
}

/// Attaches the terminal to the machine's console until it is detached.
pub fn run(arguments: &Arguments) -> u8 {
    let name = &arguments.machine.name;
    let keyboard = match (arguments.watch, arguments.take) {
        (true, _) => Keyboard::No,
        (false, true) => Keyboard::Take,
        (false, false) => Keyboard::IfFree,
    };
    match Client::connect(name) {
        Ok(client) => session(client, name, keyboard, arguments.replay).code(),
        Err(error) => super::finish(Err(error)),
    }
}

/// How an attached console came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The user left it.
    Left,
    /// The machine has ended.
    Ended,
    /// A signal, or a failure that was said; the exit status.
    Other(u8),
}

impl End {
    fn code(self) -> u8 {
        match self {
            Self::Left | Self::Ended => exit_code::SUCCESS,
            Self::Other(code) => code,
        }
    }
}

/// Attaches the terminal to a console until it is detached.
pub fn session(client: Client, name: &str, keyboard: Keyboard, replay: u64) -> End {
    let news = attach(client, name, keyboard, replay);
    terminal::restore();
    match news {
        Ok(News::Detached | News::Unread) => End::Left,
        // It may end between the connection and the first answer.
        Ok(News::Ended | News::Failed(ControlError::Ended(_)))
        | Err(Failure::Control(ControlError::Ended(_))) => {
            terminal::say(&format!("holm: {name} has ended"));
            End::Ended
        }
        Ok(News::Signal) => End::Other(exit_code::ENDED_BY_SIGNAL),
        Ok(News::Failed(error)) | Err(Failure::Control(error)) => {
            terminal::say(&format!("holm: {error}"));
            End::Other(exit_code::CONTROL)
        }
        Err(Failure::Host(error)) => {
            terminal::say(&format!("holm: the terminal: {error}"));
            End::Other(exit_code::INTERNAL)
        }
    }
}

enum Failure {
    Control(ControlError),
    Host(io::Error),
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

fn attach(
    mut client: Client,
    name: &str,
    keyboard: Keyboard,
    replay: u64,
) -> Result<News, Failure> {
    let watch = keyboard == Keyboard::No;
    let first = client.ask(&Request::Console {
        keyboard,
        replay: u32::try_from(replay).unwrap_or(u32::MAX),
    })?;
    client.wait_long()?;
    let sending = client.sending()?;
    let raw = RawMode::enter()?;
    let mut held = matches!(first, Reply::Keyboard { held: true });
    terminal::say(&greeting(name, raw.is_some(), held));
    if !held && !watch {
        terminal::say("holm: another has the keyboard; Ctrl-A t takes it");
    }
    let (news, heard) = mpsc::channel();
    watch_signals(sending.clone(), news.clone())?;
    if raw.is_some() || !watch {
        read_keys(sending.clone(), news.clone(), raw.is_some())?;
    }
    tell_size(&sending);
    thread::Builder::new()
        .name("console-output".into())
        .spawn(move || {
            let end = loop {
                match print_next(&mut client, &mut held) {
                    Ok(None) => {}
                    Ok(Some(end)) => break end,
                    Err(error) => break News::Failed(error),
                }
            };
            // Without a receiver the process is ending.
            let _ = news.send(end);
        })?;
    Ok(heard.recv().unwrap_or(News::Detached))
}

fn greeting(name: &str, keys: bool, held: bool) -> String {
    let what = if held { "" } else { " (watching)" };
    match keys {
        true => format!("holm: the console of {name}{what}; Ctrl-] or Ctrl-A d leaves it"),
        false => format!("holm: the console of {name}{what}"),
    }
}

/// Prints what comes; what ends the session, if something does.
fn print_next(client: &mut Client, held: &mut bool) -> Result<Option<News>, ControlError> {
    match client.next() {
        Ok(None) => return Ok(Some(News::Ended)),
        Ok(Some(Reply::Printed(printed))) => {
            if printed.lost > 0 {
                terminal::say(&format!("\nholm: {} bytes were missed", printed.lost));
            }
            let mut out = io::stdout().lock();
            if out
                .write_all(&printed.data.0)
                .and_then(|()| out.flush())
                .is_err()
            {
                return Ok(Some(News::Unread));
            }
        }
        Ok(Some(Reply::Keyboard { held: now })) => {
            if *held && !now {
                terminal::say("\nholm: another has taken the keyboard; Ctrl-A t takes it back");
            }
            if now && !*held {
                terminal::say("\nholm: you have the keyboard");
            }
            *held = now;
        }
        Ok(Some(_)) => {}
        // What was typed in vain; the session goes on.
        Err(ControlError::Refused { message, .. }) => {
            terminal::say(&format!("\nholm: {message}"));
        }
        Err(error) => return Err(error),
    }
    Ok(None)
}

fn tell_size(sending: &Sending) {
    if let Some((columns, rows)) = terminal::size() {
        sending.offer(&Request::ConsoleSize { columns, rows });
    }
}

fn watch_signals(sending: Sending, news: Sender<News>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGWINCH])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGWINCH {
                    tell_size(&sending);
                    continue;
                }
                // Without a receiver the process is ending.
                let _ = news.send(News::Signal);
            }
        })?;
    Ok(())
}

/// Sends what is typed. At the end of a pipe nothing happens: one goes on
/// watching.
fn read_keys(sending: Sending, news: Sender<News>, terminal: bool) -> io::Result<()> {
    thread::Builder::new()
        .name("console-input".into())
        .spawn(move || {
            let mut keys = Keys::attached();
            let mut buffer = [0; 4096];
            loop {
                let read = match io::stdin().read(&mut buffer) {
                    Ok(0) => return,
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let bytes = buffer.get(..read).unwrap_or_default();
                let typed = match terminal {
                    true => keys.feed(bytes),
                    false => vec![Typed::Guest(bytes.to_vec())],
                };
                for typed in typed {
                    let sent = match typed {
                        Typed::Guest(data) => sending.send(&Request::Type { data: Bytes(data) }),
                        Typed::Take => sending.send(&Request::TakeKeyboard {}),
                        Typed::Detach | Typed::End | Typed::Monitor => {
                            // Without a receiver the process is ending.
                            let _ = news.send(News::Detached);
                            return;
                        }
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            }
        })?;
    Ok(())
}
