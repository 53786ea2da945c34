//! `holm completion`: what a shell completes. The shell asks this program for
//! each word, which names what exists at that moment.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use api::resources::account::QuotaView;
use api::resources::images::ImageView;
use api::resources::instance_types::InstanceTypeView;
use api::resources::instances::InstanceView;
use api::resources::key_pairs::KeyPairView;
use clap::builder::StyledStr;
use clap::{Args, CommandFactory};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use serde_json::Value;

use crate::cli;
use crate::console::terminal;
use crate::exit_code;
use crate::form;
use crate::image;
use crate::named::place;
use crate::plane::client::Client;
use crate::state_directory;

/// Environment variable by which a shell asks.
const VARIABLE: &str = "COMPLETE";

/// `holm completion`.
#[derive(Args, Debug)]
pub struct Completion {
    /// For which shell
    #[arg(value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
    pub shell: String,
}

/// Prints the script.
pub fn run(arguments: &Completion) -> u8 {
    match script(&arguments.shell) {
        Ok(script) => {
            form::out(&String::from_utf8_lossy(&script));
            exit_code::SUCCESS
        }
        Err(error) => {
            terminal::say(&format!("holm: writing the script: {error}"));
            exit_code::INTERNAL
        }
    }
}

fn script(shell: &str) -> io::Result<Vec<u8>> {
    let shells = Shells::builtins();
    let shell = shells.completer(shell);
    let shell = shell.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    // One that was called by its path is not necessarily in PATH.
    let called = std::env::args_os().next().unwrap_or_default();
    let completer = match Path::new(&called).components().count() {
        0 | 1 => "holm".into(),
        _ => std::env::current_exe()?.to_string_lossy().into_owned(),
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "holm", "holm", &completer, &mut script)?;
    Ok(script)
}

/// Answers a shell that asks, and ends this process then.
pub fn answer() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    // What is completed may say whose names are meant.
    let words: Vec<OsString> = std::env::args_os().collect();
    let mut given = words.windows(2).filter(|pair| pair[0] == "--state");
    if let Some(directory) = given.next_back().map(|pair| Path::new(&pair[1])) {
        state_directory::name(directory);
    }
    CompleteEnv::with_factory(cli::Arguments::command)
        .var(VARIABLE)
        .complete();
}

fn candidate(name: String, about: String) -> CompletionCandidate {
    CompletionCandidate::new(name).help(Some(StyledStr::from(about)))
}

/// Records of the daemon, if one answers.
fn all<T: serde::de::DeserializeOwned>(path: &str) -> Vec<T> {
    // Without a daemon there is nothing to name.
    Client::new().all(path, "").unwrap_or_default()
}

/// Machines by their names, and by their ids where they have none.
pub fn machines() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let kept: Vec<InstanceView> = all("/v1/instances");
        let kept = kept.into_iter().filter(|i| i.state != "terminated");
        let kept = kept.map(|i| candidate(i.name.unwrap_or(i.id), i.state));
        let alone = place::running().into_iter();
        let alone = alone.map(|name| candidate(name, "runs alone".into()));
        kept.chain(alone).collect()
    })
}

/// Images: the daemon's, and those that this user has made.
pub fn images() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let offered: Vec<ImageView> = all("/v1/images");
        let offered = offered
            .into_iter()
            .map(|i| candidate(i.family.unwrap_or(i.name), i.description));
        let made = image::directory().and_then(|d| std::fs::read_dir(d).ok());
        let made = made.into_iter().flatten().filter_map(Result::ok);
        let made = made.filter(|entry| entry.path().join("image.json").exists());
        let made = made.filter_map(|entry| entry.file_name().into_string().ok());
        offered
            .chain(made.map(|name| candidate(name, String::new())))
            .collect()
    })
}

/// What has a name and an id: volumes, networks and the like.
fn named(path: &'static str) -> ArgValueCandidates {
    ArgValueCandidates::new(move || {
        let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
        let one = |value: Value| {
            let id = text(&value, "id")?;
            let state = text(&value, "state").unwrap_or_default();
            Some(candidate(text(&value, "name").unwrap_or(id), state))
        };
        all::<Value>(path).into_iter().filter_map(one).collect()
    })
}

/// Volumes.
pub fn volumes() -> ArgValueCandidates {
    named("/v1/volumes")
}

/// Snapshots of volumes.
pub fn snapshots() -> ArgValueCandidates {
    named("/v1/snapshots")
}

/// Networks.
pub fn networks() -> ArgValueCandidates {
    named("/v1/vpcs")
}

/// Subnets.
pub fn subnets() -> ArgValueCandidates {
    named("/v1/subnets")
}

/// Security groups.
pub fn groups() -> ArgValueCandidates {
    named("/v1/security-groups")
}

/// Key pairs.
pub fn keys() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let keys: Vec<KeyPairView> = all("/v1/key-pairs");
        let keys = keys.into_iter();
        keys.map(|key| candidate(key.name, key.id)).collect()
    })
}

/// Sizes of machines.
pub fn types() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let types: Vec<InstanceTypeView> = all("/v1/instance-types");
        let size = |t: &InstanceTypeView| format!("{} CPUs, {} MiB", t.cpus, t.memory_mib);
        let types = types.into_iter();
        types.map(|t| candidate(t.name.clone(), size(&t))).collect()
    })
}

/// Quotas.
pub fn quotas() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let quotas: Vec<QuotaView> = all("/v1/quotas");
        let quotas = quotas.into_iter();
        quotas
            .map(|q| candidate(q.name, q.limit.to_string()))
            .collect()
    })
}
