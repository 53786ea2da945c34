//! `holm volume`, and what `holm snapshot` does with volumes' snapshots.

use api::resources::snapshots::SnapshotView;
use api::resources::volumes::VolumeView;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, PlaneError};
use super::keys::Name;
use super::{finish, id, instance, tags};
use crate::completion;
use crate::console::terminal;
use crate::exit_code;
use crate::form::{self, Output, age, bytes, or_none};
use crate::named::find;
use crate::values;

/// `holm volume`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Lists volumes
    ///
    /// Example: holm volume ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Makes a volume, empty or of a snapshot
    ///
    /// Examples:
    ///   holm volume create --name data --size 20G
    ///   holm volume create --name restored --snapshot snap-0123456789abcdef0
    #[command(verbatim_doc_comment, after_help = exit_code::PLANE_HELP)]
    Create(Create),
    /// Attaches a volume to a machine, running or not
    ///
    /// Example: holm volume attach data web1
    #[command(after_help = exit_code::PLANE_HELP)]
    Attach(Attach),
    /// Takes a volume out of its machine; unmount it there before
    ///
    /// Example: holm volume detach data
    #[command(after_help = exit_code::PLANE_HELP)]
    Detach(Detach),
    /// Makes a volume larger; the file system is the guest's to grow
    ///
    /// Example: holm volume grow data 40G
    #[command(after_help = exit_code::PLANE_HELP)]
    Grow(Grow),
    /// Makes a snapshot of a volume, in use or not
    ///
    /// Example: holm volume snapshot data --description monday
    #[command(after_help = exit_code::PLANE_HELP)]
    Snapshot(Snap),
    /// Removes a volume that is in no machine, with what it holds
    ///
    /// Example: holm volume rm data
    #[command(after_help = exit_code::PLANE_HELP,
        mut_arg("name", |name| name.add(completion::volumes())))]
    Rm(Name),
}

/// `holm volume create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Its name (--name data)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Its size (--size 20G); the snapshot's unless given
    #[arg(long, value_name = "SIZE", value_parser = values::size, required_unless_present = "snapshot")]
    pub size: Option<u64>,

    /// What it holds at first (--snapshot snap-0123…)
    #[arg(long, value_name = "SNAPSHOT", add = completion::snapshots())]
    pub snapshot: Option<String>,
}

/// `holm volume attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// The volume
    #[arg(value_name = "VOLUME", add = completion::volumes())]
    pub volume: String,

    /// The machine
    #[arg(value_name = "NAME", value_parser = find::target, add = completion::machines())]
    pub machine: String,

    /// Name of its device, for the tools of EC2 (--device /dev/sdf); a free one unless given
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

/// `holm volume detach`.
#[derive(Args, Debug)]
pub struct Detach {
    /// The volume
    #[arg(value_name = "VOLUME", add = completion::volumes())]
    pub volume: String,

    /// Without asking the guest, which loses what it has not written
    #[arg(long)]
    pub force: bool,
}

/// `holm volume grow`.
#[derive(Args, Debug)]
pub struct Grow {
    /// The volume
    #[arg(value_name = "VOLUME", add = completion::volumes())]
    pub volume: String,

    /// Its size from now on
    #[arg(value_name = "SIZE", value_parser = values::size)]
    pub size: u64,
}

/// `holm volume snapshot`.
#[derive(Args, Debug)]
pub struct Snap {
    /// The volume
    #[arg(value_name = "VOLUME", add = completion::volumes())]
    pub volume: String,

    /// Its name (--name monday)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
}

/// Does it, and returns the exit status.
pub fn run(command: &Command) -> u8 {
    finish(try_run(&Client::new(), command))
}

fn volume(client: &Client, name: &str) -> Result<String, PlaneError> {
    id(client, "/v1/volumes", "volume", "vol-", name)
}

fn try_run(client: &Client, command: &Command) -> Result<(), PlaneError> {
    let act = |volume: &str, verb: &str, body: Value| -> Result<VolumeView, PlaneError> {
        let path = format!("/v1/volumes/{}/{verb}", self::volume(client, volume)?);
        client.ask("POST", &path, Some(&body))
    };
    match command {
        Command::Ls(output) => list(client, *output)?,
        Command::Create(new) => {
            let mut body = json!({"tags": tags(&[], new.name.as_deref())});
            if let Some(size) = new.size {
                body["size"] = size.into();
            }
            if let Some(of) = &new.snapshot {
                body["snapshot_id"] = id(client, "/v1/snapshots", "snapshot", "snap-", of)?.into();
            }
            let made: VolumeView = client.ask("POST", "/v1/volumes", Some(&body))?;
            form::out(&format!("{}\n", made.id));
        }
        Command::Attach(attach) => {
            let mut body = json!({"instance_id": instance(client, &attach.machine)?.id});
            if let Some(device) = &attach.device {
                body["device"] = device.as_str().into();
            }
            let now = act(&attach.volume, "attach", body)?;
            let device = now.attachment.map(|a| a.device).unwrap_or_default();
            terminal::say(&format!(
                "{} is {device} of {}; in the guest its serial number is {}",
                attach.volume, attach.machine, now.id
            ));
        }
        Command::Detach(detach) => {
            act(&detach.volume, "detach", json!({"force": detach.force}))?;
            terminal::say(&format!("{} is being detached", detach.volume));
        }
        Command::Grow(grow) => {
            let path = format!("/v1/volumes/{}", volume(client, &grow.volume)?);
            client.call("PATCH", &path, Some(&json!({"size": grow.size})))?;
        }
        Command::Snapshot(snap) => {
            let body = json!({
                "volume_id": volume(client, &snap.volume)?,
                "description": snap.description,
                "tags": tags(&[], snap.name.as_deref()),
            });
            let made: SnapshotView = client.ask("POST", "/v1/snapshots", Some(&body))?;
            form::out(&format!("{}\n", made.id));
        }
        Command::Rm(name) => {
            let path = format!("/v1/volumes/{}", volume(client, &name.name)?);
            client.call("DELETE", &path, None)?;
        }
    }
    Ok(())
}

fn list(client: &Client, output: Output) -> Result<(), PlaneError> {
    let all: Vec<VolumeView> = client.all("/v1/volumes", "")?;
    form::print(output, &all, || {
        let rows = all.iter().map(|v| {
            let at = v.attachment.as_ref();
            let at = at.map(|a| format!("{} {}", a.instance_id, a.device));
            [
                or_none(v.name.as_ref()),
                v.id.clone(),
                bytes(v.size),
                v.state.clone(),
                at.unwrap_or_default(),
                age(&v.created),
            ]
        });
        form::table(["NAME", "ID", "SIZE", "STATE", "ATTACHED TO", "AGE"], rows)
    });
    Ok(())
}

/// Lists snapshots of volumes.
pub fn snapshots(output: Output) -> u8 {
    let listed = || {
        let all: Vec<SnapshotView> = Client::new().all("/v1/snapshots", "")?;
        form::print(output, &all, || {
            let rows = all.iter().map(|s| {
                [
                    or_none(s.name.as_ref()),
                    s.id.clone(),
                    or_none(s.volume_id.as_ref()),
                    bytes(s.size),
                    s.state.clone(),
                    s.description.clone(),
                    age(&s.created),
                ]
            });
            let names = [
                "NAME",
                "ID",
                "VOLUME",
                "SIZE",
                "STATE",
                "DESCRIPTION",
                "AGE",
            ];
            form::table(names, rows)
        });
        Ok(())
    };
    finish(listed())
}

/// Removes a snapshot of a volume.
pub fn remove_snapshot(name: &Name) -> u8 {
    let client = Client::new();
    let removed = id(&client, "/v1/snapshots", "snapshot", "snap-", &name.name)
        .and_then(|id| client.call("DELETE", &format!("/v1/snapshots/{id}"), None));
    finish(removed.map(drop))
}
