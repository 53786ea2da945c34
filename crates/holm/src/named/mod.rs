//! Commands on machines by their names, whether they run alone or a daemon
//! keeps them: a module for each, and the client of a machine's control socket.

pub mod client;
pub mod console;
pub mod devices;
pub mod events;
pub mod find;
pub mod logs;
pub mod ls;
pub mod place;
mod process;
pub mod show;
pub mod stop;
pub mod top;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use machine_protocol::{Description, Request, RunState};

use crate::completion;
use crate::console::terminal;
use crate::exit_code;
use client::{Client, ControlError};

/// Time between looks at a machine that is to change.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a resumed machine is looked at whose disk had failed.
const RETRY: Duration = Duration::from_millis(500);

/// A machine by its name.
#[derive(Args, Debug)]
pub struct Named {
    /// The machine: its name or id; alone:NAME for the one that runs alone, where a daemon has
    /// another of that name
    #[arg(value_name = "NAME", value_parser = find::target, add = completion::machines())]
    pub name: String,
}

/// Asks for something that has no answer but that it is done.
pub fn ask(machine: &Named, request: &Request) -> u8 {
    finish(
        Client::connect(&machine.name)
            .and_then(|mut c| c.ask(request))
            .map(drop),
    )
}

/// What a disk's host could not do, for which the machine is paused.
pub fn disk_failure(d: &Description) -> Option<String> {
    let (disk, failure) = d
        .disks
        .iter()
        .find_map(|d| Some((d, d.failure.as_ref()?)))?;
    let place = machine::place(Path::new(&disk.file));
    Some(format!("disk {} ({place}): {failure}", disk.name))
}

/// Lets a paused machine go on. Where it was paused by a disk, it tries again
/// what failed, and is paused again if that fails again, which is told.
pub fn resume(machine: &Named) -> u8 {
    finish(try_resume(&machine.name))
}

fn try_resume(name: &str) -> Result<(), ControlError> {
    let mut client = Client::connect(name)?;
    let failed = disk_failure(&client.describe()?).is_some();
    client.ask(&Request::Resume {})?;
    if !failed {
        return Ok(());
    }
    let deadline = Instant::now() + RETRY;
    while Instant::now() < deadline {
        std::thread::sleep(AGAIN);
        let now = client.describe()?;
        if let (RunState::Paused, Some(why)) = (now.state, disk_failure(&now)) {
            return Err(ControlError::Refused {
                name: name.into(),
                message: format!(
                    "it is paused again, and has lost nothing: {why}; make room or mend the disk, \
                     and resume it again"
                ),
            });
        }
    }
    Ok(())
}

/// Says what failed; the exit status.
pub fn finish(result: Result<(), ControlError>) -> u8 {
    match result {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => {
            terminal::say(&format!("holm: {error}"));
            exit_code::CONTROL
        }
    }
}

/// What a machine is doing, for people.
fn state(state: RunState) -> &'static str {
    match state {
        RunState::Created => "created",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Ended => "ended",
    }
}

/// A machine that runs alone, for programs.
fn with_name(name: &str, d: &Description) -> serde_json::Value {
    let mut value = serde_json::to_value(d).unwrap_or_default();
    value["name"] = name.into();
    value
}
