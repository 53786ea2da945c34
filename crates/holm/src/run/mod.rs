//! `holm run`: a machine that a daemon keeps, where one answers and the machine
//! is made of an image's name; else a machine of its own in the foreground.

pub mod arguments;
mod managed;
pub mod own;
pub mod session;

use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use crate::background;
use crate::console::terminal;
use crate::failure::Failure;
use crate::plane::client::Client;
use crate::plane::create::KEPT;
use arguments::{OWN, Run};

/// An option that was given, and under which heading it stands.
pub struct Given {
    /// Its name, without dashes.
    pub name: String,
    heading: Option<String>,
}

/// The options of `holm run` that a command line gives.
pub fn given(command: &Command, matches: &ArgMatches) -> Vec<Given> {
    let (Some(run), Some(matches)) = (
        command.find_subcommand("run"),
        matches.subcommand_matches("run"),
    ) else {
        return Vec::new();
    };
    let said = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let options = run.get_arguments().filter(|a| said(a.get_id().as_str()));
    let given = options.filter_map(|option| {
        Some(Given {
            name: option.get_long()?.to_owned(),
            heading: option.get_help_heading().map(str::to_owned),
        })
    });
    given.collect()
}

/// Who keeps the machine.
#[derive(Debug, PartialEq, Eq)]
enum Keeper {
    /// The daemon of the state directory.
    Daemon,
    /// This process, for this reason.
    Itself(Why),
}

/// Why a machine is one of its own.
#[derive(Debug, PartialEq, Eq)]
enum Why {
    Asked,
    Kernel,
    Path,
    NoDaemon,
}

/// Runs the machine and returns the exit status.
pub fn run(arguments: &Run, given: &[Given]) -> u8 {
    match keeper(arguments, || Client::new().answers()) {
        Keeper::Daemon => match refused(given, OWN, not_kept) {
            Some(failure) => report(Err(failure)),
            None => managed::run(arguments),
        },
        Keeper::Itself(why) => report(alone(arguments, given, &why)),
    }
}

fn alone(arguments: &Run, given: &[Given], why: &Why) -> Result<u8, Failure> {
    let image = arguments.image.as_deref().unwrap_or_default();
    if let Some(failure) = refused(given, KEPT, |option| not_alone(option, why, image)) {
        return Err(failure);
    }
    match arguments.background.wanted() {
        true => background::start(arguments.name.as_deref()),
        false => own::start(arguments),
    }
}

/// Says what failed; the exit status.
pub fn report(result: Result<u8, Failure>) -> u8 {
    match result {
        Ok(code) => code,
        Err(failure) => {
            terminal::restore();
            terminal::say(&format!("holm: {failure}"));
            failure.code()
        }
    }
}

fn keeper(arguments: &Run, daemon: impl FnOnce() -> bool) -> Keeper {
    let image = arguments.image.as_deref().map(Path::new);
    let why = match image {
        _ if arguments.standalone || arguments.background.is() => Why::Asked,
        _ if arguments.own.kernel.is_some() => Why::Kernel,
        None => Why::Kernel,
        Some(image) if is_path(image) => Why::Path,
        Some(_) if daemon() => return Keeper::Daemon,
        Some(_) => Why::NoDaemon,
    };
    Keeper::Itself(why)
}

/// Whether this is no image's name: it has a '/', or there is such a file or
/// directory of an image.
fn is_path(image: &Path) -> bool {
    image.components().count() != 1
        || image.is_absolute()
        || image.to_string_lossy().contains('/')
        || image.join("image.json").exists()
        || (image.exists() && !image.is_dir())
}

fn refused(given: &[Given], heading: &str, text: impl Fn(&str) -> String) -> Option<Failure> {
    let wrong = given
        .iter()
        .find(|g| g.heading.as_deref() == Some(heading))?;
    Some(Failure::Usage(text(&wrong.name)))
}

/// Why a machine that a daemon keeps cannot have an option, and what to use.
fn not_kept(option: &str) -> String {
    let instead = match option {
        "cpus" | "memory" => {
            "its size is a type: use --type (`holm type ls`; `holm type create` makes others)"
        }
        "disk" => "use `holm volume create` and `holm volume attach`",
        "net" => "use --subnet and --sg (`holm net`, `holm sg`)",
        "publish" => "use `holm ssh`, or `holm sg allow` and its address (`holm show`)",
        "timeout" => "use --ttl",
        "keep" => "its disks are kept until `holm rm`: leave it out",
        "ephemeral" => "use --rm",
        "serial" | "serial-log" => "what it prints is kept: `holm logs`",
        "agent-socket" => "`holm exec` and `holm cp` find it by its name",
        "on-reset" => "a reset starts it again",
        _ => "use --standalone for a machine of its own",
    };
    format!(
        "--{option} is not for machines that a daemon keeps, and one answers here; {instead}{}",
        match instead.contains("--standalone") {
            true => "",
            false => ", or --standalone for a machine of its own",
        }
    )
}

/// Why a machine of its own cannot have an option.
fn not_alone(option: &str, why: &Why, image: &str) -> String {
    let because = match why {
        Why::Asked => "which --standalone is not: leave one of them out".to_owned(),
        Why::Kernel => "which starts from an image and not from --kernel".to_owned(),
        Why::Path => format!(
            "and {image} is a path: `holm image import {image} NAME` makes an image of a disk"
        ),
        Why::NoDaemon => {
            let state = crate::state_directory::resolve(None);
            let state = state.display();
            format!(
                "and none answers for {state}: start one with `holm daemon`, or name its state directory with --state"
            )
        }
    };
    format!("--{option} is for a machine that a daemon keeps, {because}")
}
