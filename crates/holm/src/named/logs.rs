//! `holm logs`.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use machine_protocol::{Keyboard, Reply, Request};

use super::client::{Client, ControlError};
use super::{Named, find, finish};
use crate::exit_code;
use crate::form::{self, Output};
use crate::plane;

/// What a machine keeps of what it printed, in bytes.
const KEPT: u32 = 256 << 10;
/// After so long a silence all that was kept has come.
const SILENCE: Duration = Duration::from_secs(1);

/// `holm logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// How far its boot came, stage by stage, instead of its console
    #[arg(long, conflicts_with = "follow")]
    pub boot: bool,

    /// Goes on: prints what comes, until the machine ends
    #[arg(short, long)]
    pub follow: bool,

    /// Form of the stages
    #[command(flatten)]
    pub output: Output,
}

/// Prints what a machine printed.
pub fn run(arguments: &Logs) -> u8 {
    let name = &arguments.machine.name;
    let kept = match find::instance(name) {
        Ok(kept) => kept,
        Err(error) => return finish(Err(error.into())),
    };
    if !arguments.boot && !arguments.output.is_text() {
        return plane::finish(Err(plane::client::PlaneError::Usage(
            "-o is for --boot; what a console prints has no other form".into(),
        )));
    }
    match kept {
        Some(kept) if arguments.boot => {
            form::print(arguments.output, &kept.boot, || {
                plane::instances::boot_text(&kept)
            });
            exit_code::SUCCESS
        }
        Some(kept) if arguments.follow && kept.state == "running" => finish(print(name, true)),
        Some(kept) => plane::finish(plane::instances::console(&kept)),
        None if arguments.boot => plane::finish(Err(plane::client::PlaneError::Which(format!(
            "the stages of a boot are known of machines that a daemon keeps; {name} runs alone: `holm logs {name}`"
        )))),
        None => finish(print(name, arguments.follow)),
    }
}

/// Prints what a machine has kept of its console, and what comes if `follow`.
fn print(name: &str, follow: bool) -> Result<(), ControlError> {
    let mut client = Client::connect(name)?;
    client.ask(&Request::Console {
        keyboard: Keyboard::No,
        replay: KEPT,
    })?;
    match follow {
        true => client.wait_long()?,
        false => client.wait_for(SILENCE)?,
    }
    let mut left = KEPT as usize;
    loop {
        let printed = match client.next() {
            Ok(Some(Reply::Printed(printed))) => printed.data.0,
            Ok(Some(_)) => continue,
            Ok(None) => return Ok(()),
            Err(error) if !follow && error.is_silence() => return Ok(()),
            Err(error) => return Err(error),
        };
        let part = match follow {
            true => &printed[..],
            false => printed.get(..left).unwrap_or(&printed),
        };
        let mut out = io::stdout().lock();
        if out.write_all(part).and_then(|()| out.flush()).is_err() {
            // The reader has gone.
            return Ok(());
        }
        left = left.saturating_sub(printed.len());
        if !follow && left == 0 {
            return Ok(());
        }
    }
}
