//! `holm events`.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use machine_protocol::{Event, Reply, Request};

use super::client::{Client, ControlError};
use super::{find, place};
use crate::completion;
use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output};
use crate::plane;

/// Pause between looks for machines that were started.
const LOOK: Duration = Duration::from_millis(500);

/// `holm events`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The machine's name; without it, all machines of this user
    #[arg(value_name = "NAME", value_parser = find::target, add = completion::machines())]
    pub name: Option<String>,

    /// Goes on: prints what happens until the machine ends, or, without a name, until interrupted
    #[arg(short, long)]
    pub follow: bool,

    /// Form of the answer; json is one object per line
    #[command(flatten)]
    pub output: Output,
}

/// Prints the events of one machine or of all.
pub fn run(arguments: &Arguments) -> u8 {
    match arguments.name.as_deref().map(find::machine).transpose() {
        Err(error) => return super::finish(Err(error.into())),
        Ok(Some(find::Machine::Kept(id))) => {
            let printed = plane::records::events(Some(&id), arguments.follow, arguments.output);
            return plane::finish(printed);
        }
        Ok(_) => {}
    }
    let printed = match (&arguments.name, arguments.follow) {
        (Some(name), follow) => of_one(name, follow, &mut |e| print(name, e, arguments.output)),
        (None, false) => of_all(arguments.output),
        (None, true) => follow_all(arguments.output),
    };
    match printed {
        // Without a reader nobody is told.
        Ok(()) | Err(Stop::Unread) => exit_code::SUCCESS,
        Err(Stop::Control(error)) => {
            terminal::say(&format!("holm: {error}"));
            exit_code::CONTROL
        }
        Err(Stop::Host(error)) => {
            terminal::say(&format!("holm: listing the machines: {error}"));
            exit_code::INTERNAL
        }
    }
}

/// Why no more is printed.
enum Stop {
    Control(ControlError),
    Host(io::Error),
    /// The reader of the output has gone.
    Unread,
}

impl From<ControlError> for Stop {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

/// Gives the events of a machine to `each`; whether it wants more.
fn of_one(
    name: &str,
    follow: bool,
    each: &mut dyn FnMut(&Event) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let name = name.strip_prefix(find::ALONE).unwrap_or(name);
    let mut client = Client::alone(name)?;
    let request = Request::Events { after: 0, follow };
    let mut reply = Some(client.ask(&request)?);
    if follow {
        client.wait_long()?;
    }
    while let Some(Reply::Events(list)) = reply.take() {
        list.events.iter().try_for_each(&mut *each)?;
        if follow {
            reply = client.next()?;
        }
    }
    Ok(())
}

fn of_all(output: Output) -> Result<(), Stop> {
    let mut all = Vec::new();
    for name in place::names().map_err(Stop::Host)? {
        // Who does not answer has been killed, or is just ending.
        let _ = of_one(&name, false, &mut |event| {
            all.push((name.clone(), event.clone()));
            Ok(())
        });
    }
    all.sort_by_key(|(_, event)| event.at_milliseconds);
    all.iter()
        .try_for_each(|(name, event)| print(name, event, output))
}

enum Told {
    Event(String, Event),
    Ended(String),
}

fn follow_all(output: Output) -> Result<(), Stop> {
    let (told, heard) = mpsc::sync_channel(64);
    let mut followed = BTreeSet::new();
    loop {
        for name in place::names().map_err(Stop::Host)? {
            if followed.insert(name.clone()) {
                let told = told.clone();
                thread::spawn(move || tell(&name, &told));
            }
        }
        while let Ok(news) = heard.recv_timeout(LOOK) {
            match news {
                Told::Event(name, event) => print(&name, &event, output)?,
                Told::Ended(name) => {
                    followed.remove(&name);
                }
            }
        }
    }
}

fn tell(name: &str, told: &mpsc::SyncSender<Told>) {
    // Without a receiver the process is ending; who does not answer is ending.
    let _ = of_one(name, true, &mut |event| {
        let news = Told::Event(name.to_owned(), event.clone());
        told.send(news).map_err(|_| Stop::Unread)
    });
    thread::sleep(LOOK);
    let _ = told.send(Told::Ended(name.to_owned()));
}

fn print(name: &str, event: &Event, output: Output) -> Result<(), Stop> {
    let mut value = serde_json::to_value(event).unwrap_or_default();
    value["name"] = name.into();
    let line = form::item_text(output, &value, || {
        // What no calendar holds is the end of time.
        let at = UNIX_EPOCH.checked_add(Duration::from_millis(event.at_milliseconds));
        let at = humantime::format_rfc3339_millis(at.unwrap_or(UNIX_EPOCH));
        let text = event.kind.describe();
        // Texts of the host may hold what a terminal obeys.
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        format!("{at} {name} {text}\n")
    });
    let mut out = io::stdout().lock();
    let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    written.map_err(|_| Stop::Unread)
}
