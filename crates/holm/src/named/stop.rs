//! `holm stop` and `holm kill`.

use std::time::{Duration, Instant};

use clap::Args;
use machine_protocol::Request;

use super::client::{Client, ControlError};
use super::process::Process;
use super::{Named, find, finish};
use crate::console::terminal;
use crate::plane;

/// How long a killed machine may take to go.
const END: Duration = Duration::from_secs(30);

/// `holm stop`.
#[derive(Args, Debug)]
pub struct Stop {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// How long the guest may take to shut down before its power is cut (--wait 5m)
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = crate::values::duration)]
    pub wait: Duration,

    /// Cuts the power at once
    #[arg(long)]
    pub force: bool,
}

/// Shuts a machine down: by its power button, and by force if that is in vain.
pub fn run(arguments: &Stop) -> u8 {
    match find::instance(&arguments.machine.name) {
        Err(error) => finish(Err(error.into())),
        Ok(None) => finish(try_stop(arguments).map(|text| terminal::say(&text))),
        Ok(Some(kept)) => {
            let stopped = plane::instances::stop(&kept, arguments.force, arguments.wait);
            plane::finish(stopped.map(|text| terminal::say(&text)))
        }
    }
}

fn try_stop(arguments: &Stop) -> Result<String, ControlError> {
    let name = &arguments.machine.name;
    let name = name.strip_prefix(find::ALONE).unwrap_or(name);
    let start = Instant::now();
    let mut client = Client::alone(name)?;
    let process = Process::of(&client.describe()?);
    if !arguments.force {
        // A paused guest could not hear the button.
        client.ask(&Request::Resume {})?;
        client.ask(&Request::PowerButton {})?;
        if process.ended(arguments.wait) {
            return Ok(format!(
                "{name} shut down in {:.1} s",
                start.elapsed().as_secs_f64()
            ));
        }
    }
    client.ask(&Request::Kill {})?;
    let waited = start.elapsed().as_secs_f64();
    match process.ended(END) {
        true if arguments.force => Ok(format!("{name}: power cut")),
        true => Ok(format!(
            "{name} did not shut down in {waited:.1} s; power cut"
        )),
        false => Err(does_not_end(name)),
    }
}

/// Cuts a machine's power; back when its process is gone.
pub fn kill(machine: &Named) -> u8 {
    finish(try_kill(&machine.name))
}

fn try_kill(name: &str) -> Result<(), ControlError> {
    let mut client = Client::connect(name)?;
    // A machine that describes itself no more must still be killed.
    let process = Client::connect(name)
        .and_then(|mut c| c.describe())
        .map(|description| Process::of(&description));
    client.ask(&Request::Kill {})?;
    match process {
        Ok(process) if !process.ended(END) => Err(does_not_end(name)),
        _ => Ok(()),
    }
}

fn does_not_end(name: &str) -> ControlError {
    ControlError::Refused {
        name: name.to_owned(),
        message: "its process does not end; `holm show` gives its number".into(),
    }
}
