//! Commands through the guest's agent: `exec`, `cp`, `fsfreeze`, `fsthaw`.

mod copy;
mod exec;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent::{AgentError, Balloon as BalloonReport, Client};
use clap::Args;
use machine_protocol::RunState;
use machine_protocol::launch::CONTROL_SOCKET;

use crate::completion;
use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output};
use crate::named::{
    self,
    find::{self, FindError},
};
use crate::socket;

/// Time between attempts to reach a machine.
const AGAIN: Duration = Duration::from_millis(50);

/// Which machine, and how patiently.
#[derive(Args, Debug)]
pub struct Target {
    /// The machine: its name or id, or the socket it serves its agent at (`--agent-socket`)
    #[arg(value_name = "MACHINE", add = completion::machines())]
    pub machine: PathBuf,

    /// Waits so long for the guest's agent to start (--wait 2m)
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration)]
    pub wait: Option<Duration>,
}

/// `holm exec`.
#[derive(Args, Debug)]
pub struct Exec {
    /// Machine and patience
    #[command(flatten)]
    pub target: Target,

    /// Passes standard input on, to its end
    #[arg(short, long)]
    pub interactive: bool,

    /// Program and arguments; no shell looks at them
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub command: Vec<String>,
}

/// `holm cp`.
#[derive(Args, Debug)]
pub struct Copy {
    /// Source: a file of the host, or MACHINE:/PATH of the guest
    #[arg(value_name = "FROM")]
    pub from: String,

    /// Destination, a file name: of the host, or MACHINE:/PATH of the guest
    #[arg(value_name = "TO")]
    pub to: String,

    /// Waits so long for the guest's agent to start (--wait 2m)
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration)]
    pub wait: Option<Duration>,
}

/// `holm balloon`.
#[derive(Args, Debug)]
pub struct Balloon {
    /// Machine and patience
    #[command(flatten)]
    pub target: Target,

    /// Memory that the guest shall do with; not given: nothing is changed (512M)
    #[arg(value_name = "SIZE", value_parser = crate::values::size)]
    pub size: Option<u64>,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Asks a guest for memory; how its balloon is.
pub fn balloon(arguments: &Balloon) -> u8 {
    let run = || {
        // The machine answers, not the guest.
        let target = &arguments.target;
        let mut client = reach(&target.machine, target.wait, |_, _| Ok(()))?;
        let report = client.balloon(arguments.size)?;
        form::print(arguments.output, &report, || balloon_text(&report));
        Ok(exit_code::SUCCESS)
    };
    finish(run())
}

fn balloon_text(report: &BalloonReport) -> String {
    let line = |name: &str, bytes: u64| format!("{name:9} {:6} MiB\n", bytes >> 20);
    let mut text = line("memory", report.memory)
        + &line("asked for", report.target)
        + &line("given", report.actual)
        + &line("reported", report.reported);
    for (name, value) in &report.statistics {
        if let (Some(bytes), false) = (value, name.ends_with("faults")) {
            text += &line(name, *bytes);
        }
    }
    if !report.driver {
        text += "the guest has no driver for the balloon\n";
    }
    text
}

/// Runs a program in the guest; its status.
pub fn exec(arguments: &Exec) -> u8 {
    finish(connect(&arguments.target).and_then(|mut client| exec::run(&mut client, arguments)))
}

/// Copies a file.
pub fn copy(arguments: &Copy) -> u8 {
    finish(copy::run(arguments).map(|()| exit_code::SUCCESS))
}

/// Freezes or thaws the guest's file systems.
pub fn freeze(target: &Target, freeze: bool) -> u8 {
    finish(connect(target).and_then(|mut client| {
        let (count, done) = match freeze {
            true => (client.freeze()?, "frozen"),
            false => (client.thaw()?, "thawed"),
        };
        terminal::say(&format!("{count} file systems {done}"));
        Ok(exit_code::SUCCESS)
    }))
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Usage(String),
    #[error("{what}: {error}")]
    File { what: String, error: std::io::Error },
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("{0}")]
    Guest(String),
}

fn finish(result: Result<u8, Problem>) -> u8 {
    result.unwrap_or_else(|problem| {
        let hint = match &problem {
            Problem::Agent(AgentError::Refused { text, .. }) if text.contains("frozen") => {
                "; `holm fsthaw` thaws its file systems"
            }
            _ => "",
        };
        terminal::say(&format!("holm: {problem}{hint}"));
        match problem {
            Problem::Usage(_) => exit_code::USAGE,
            Problem::File { .. } => exit_code::BAD_FILE,
            Problem::Find(_) | Problem::Agent(_) | Problem::Guest(_) => exit_code::AGENT,
        }
    })
}

fn connect(target: &Target) -> Result<Client, Problem> {
    connect_to(&target.machine, target.wait)
}

/// For what the guest's agent does.
fn connect_to(machine: &Path, wait: Option<Duration>) -> Result<Client, Problem> {
    reach(machine, wait, awake)
}

/// A paused guest answers nothing. `socket` is its agent's.
fn awake(machine: &Path, socket: &Path) -> Result<(), Problem> {
    let name = machine.display().to_string();
    let control = socket.with_file_name(CONTROL_SOCKET);
    // A socket of --agent-socket has none beside it, and is asked as it is.
    let Some(described) = named::client::Client::at(&name, &control)
        .and_then(|mut client| client.describe())
        .ok()
    else {
        return Ok(());
    };
    match described.state {
        RunState::Paused => Err(Problem::Guest(format!(
            "{name} is paused, and its guest answers nothing{}; `holm resume {name}` lets it go on",
            named::disk_failure(&described).map_or(String::new(), |why| format!(" ({why})"))
        ))),
        _ => Ok(()),
    }
}

fn reach(
    machine: &Path,
    wait: Option<Duration>,
    fit: impl Fn(&Path, &Path) -> Result<(), Problem>,
) -> Result<Client, Problem> {
    let connect = || -> Result<Client, Problem> {
        let socket = find::agent(machine)?;
        fit(machine, &socket)?;
        let stream = socket::connect(&socket).map_err(|source| AgentError::Connect {
            place: socket.display().to_string(),
            source,
        })?;
        Ok(Client::over(stream))
    };
    let Some(patience) = wait else {
        return connect();
    };
    let deadline = Instant::now() + patience;
    // The machine itself may just be starting.
    let mut client = loop {
        match connect() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(AGAIN),
            result => break result?,
        }
    };
    client.wait(deadline.saturating_duration_since(Instant::now()))?;
    Ok(client)
}
