//! `holm create`, `start`, `reboot`, `rm`, `logs`, and the part of `ls`,
//! `show` and `stop` that is of a daemon's machines.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::resources::images::ImageView;
use api::resources::instances::{InstanceView, LaunchView};
use api::resources::key_pairs::KeyPairView;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::boot::{self, Until};
use super::client::{Client, PlaneError};
use super::form::{self, Output, age, bytes, or_none};
use super::{finish, id, instance, tag, tags};
use crate::cli;
use crate::console::terminal;
use crate::named::place;

/// Time between looks at a machine that is to change its state.
const AGAIN: Duration = Duration::from_millis(200);
/// Size of a machine unless one is named.
const TYPE: &str = "t3.micro";

/// `holm create`.
#[derive(Args, Debug)]
pub struct Create {
    /// Image that it is made from: a name of `holm image ls`, or an id
    #[arg(value_name = "IMAGE")]
    pub image: String,

    /// Its name (--name web1); one is made up unless given
    #[arg(long, value_name = "NAME", value_parser = place::name)]
    pub name: Option<String>,

    /// Its size (--type t3.small); `holm type ls` lists them
    #[arg(long = "type", value_name = "TYPE", default_value = TYPE)]
    pub size: String,

    /// How many; more than one get names with numbers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub count: u32,

    /// Key pair with which people log in (--key mine); the only one there is unless given
    #[arg(long, value_name = "NAME")]
    pub key: Option<String>,

    /// Security group, may be repeated (--sg web); the network's default unless given
    #[arg(long = "sg", value_name = "GROUP")]
    pub groups: Vec<String>,

    /// Subnet (--subnet subnet-0123…); the default unless given
    #[arg(long, value_name = "SUBNET")]
    pub subnet: Option<String>,

    /// File with what its cloud-init is told: a script, or #cloud-config (--user-data setup.sh)
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,

    /// Size of its root disk (--disk-size 20G); the image's unless given
    #[arg(long, value_name = "SIZE", value_parser = cli::size)]
    pub disk_size: Option<u64>,

    /// Tag, may be repeated (--tag team=blue)
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    pub tags: Vec<(String, String)>,

    /// It goes by itself after this time (--ttl 2h)
    #[arg(long, value_name = "DURATION", value_parser = cli::duration)]
    pub ttl: Option<Duration>,

    /// It goes for good when it powers itself off
    #[arg(long)]
    pub rm: bool,

    /// Until what is waited
    #[arg(long, value_enum, default_value_t = Until::Ready)]
    pub wait: Until,

    /// How long at most (--timeout 10m)
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = cli::duration)]
    pub timeout: Duration,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Makes machines, and tells how they come up.
pub fn create(arguments: &Create) -> u8 {
    finish(try_create(arguments))
}

fn try_create(arguments: &Create) -> Result<(), PlaneError> {
    let client = Client::new();
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => free_name(&client, &arguments.image)?,
    };
    let body = body(&client, arguments, &name)?;
    let made: LaunchView = client.ask("POST", "/v1/instances", Some(&body))?;
    let several = made.instances.len() > 1;
    let mut there = Vec::new();
    for (n, one) in made.instances.into_iter().enumerate() {
        if several {
            let name = json!({"Name": format!("{name}-{}", n + 1)});
            client.call("PATCH", &format!("/v1/tags/{}", one.id), Some(&name))?;
        }
        let name = one.name.as_deref().unwrap_or_default();
        terminal::say(&format!(
            "{name} ({}) is made of {}",
            one.id, arguments.image
        ));
        there.push(boot::wait(&client, one, arguments.wait, arguments.timeout)?);
    }
    form::print(arguments.output, &there, || list_text(&there));
    Ok(())
}

fn body(client: &Client, arguments: &Create, name: &str) -> Result<Value, PlaneError> {
    let key = match &arguments.key {
        Some(key) => Some(key.clone()),
        None => only_key(client)?,
    };
    let group = |name: &String| id(client, "/v1/security-groups", "security group", "sg-", name);
    let groups: Result<Vec<_>, _> = arguments.groups.iter().map(group).collect();
    let mut body = json!({
        "image": arguments.image,
        "instance_type": arguments.size,
        "count": arguments.count,
        "security_group_ids": groups?,
        "tags": tags(&arguments.tags, Some(name)),
        "terminate_on_shutdown": arguments.rm,
    });
    if let Some(key) = key {
        body["key_name"] = key.into();
    }
    if let Some(subnet) = &arguments.subnet {
        body["subnet_id"] = id(client, "/v1/subnets", "subnet", "subnet-", subnet)?.into();
    }
    if let Some(file) = &arguments.user_data {
        let data = fs::read(file)
            .map_err(|e| PlaneError::File(format!("reading {}: {e}", file.display())))?;
        body["user_data"] = STANDARD.encode(data).into();
    }
    if let Some(size) = arguments.disk_size {
        let images: Vec<ImageView> = client.all("/v1/images", "")?;
        let wanted = &arguments.image;
        let of = |i: &&ImageView| {
            [Some(&i.id), Some(&i.name), i.family.as_ref()].contains(&Some(wanted))
        };
        let image = images.iter().find(of);
        let device = image.map_or("/dev/xvda", |image| &image.root_device);
        body["disks"] = json!([{"device": device, "size": size}]);
    }
    if let Some(ttl) = arguments.ttl {
        body["ttl_seconds"] = ttl.as_secs().max(1).into();
    }
    Ok(body)
}

fn only_key(client: &Client) -> Result<Option<String>, PlaneError> {
    let mut keys: Vec<KeyPairView> = client.all("/v1/key-pairs", "")?;
    Ok(match keys.len() {
        1 => Some(keys.remove(0).name),
        0 => {
            terminal::say(
                "holm: without a key pair nobody can log in; `holm key create NAME` makes one",
            );
            None
        }
        _ => {
            terminal::say(
                "holm: there are several key pairs; name one with --key, or nobody can log in",
            );
            None
        }
    })
}

/// A name that no machine has: the image's, with a number.
fn free_name(client: &Client, image: &str) -> Result<String, PlaneError> {
    let all: Vec<InstanceView> = client.all("/v1/instances", "")?;
    let stem: String = match image.starts_with("ami-") {
        true => "machine".into(),
        false => {
            let fits = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
            let stem: String = image.chars().take_while(fits).take(32).collect();
            stem
        }
    };
    let stem = if stem.is_empty() { "machine" } else { &stem };
    let taken = |name: &String| {
        let is = |i: &InstanceView| i.state != "terminated" && i.name.as_ref() == Some(name);
        all.iter().any(is)
    };
    let mut names = (1_u32..).map(|n| format!("{stem}-{n}"));
    Ok(names.find(|name| !taken(name)).unwrap_or_default())
}

/// The machines of the daemon, if there is one that answers.
pub fn all() -> Option<Vec<InstanceView>> {
    let client = Client::new();
    client.answers().then_some(())?;
    match client.all("/v1/instances", "") {
        Ok(all) => Some(all),
        Err(error) => {
            terminal::say(&format!("holm: {error}"));
            None
        }
    }
}

/// A table of machines.
pub fn list_text(all: &[InstanceView]) -> String {
    let names = [
        "NAME",
        "ID",
        "STATE",
        "TYPE",
        "PRIVATE IP",
        "PUBLIC IP",
        "AGE",
    ];
    let rows = all.iter().map(|i| {
        [
            or_none(i.name.as_ref()),
            i.id.clone(),
            i.state.clone(),
            i.instance_type.clone(),
            or_none(i.private_ip.as_ref()),
            or_none(i.public_ip.as_ref()),
            age(&i.created),
        ]
    });
    form::table(names, rows)
}

/// A machine by a name or an id, if a daemon answers and knows it.
pub fn known(name: &str) -> Option<InstanceView> {
    let client = Client::new();
    client.answers().then(|| instance(&client, name).ok())?
}

/// What there is to say of a machine.
pub fn show_text(i: &InstanceView) -> String {
    let ready = i.boot.ready.as_ref().map(|_| "ready");
    let mut text = form::fields(&[
        ("name", or_none(i.name.as_ref())),
        ("id", i.id.clone()),
        ("state", i.state.clone()),
        ("reason", or_none(i.state_reason.as_ref())),
        ("trouble", or_none(i.trouble.as_ref())),
        ("boot", ready.unwrap_or_default().into()),
        ("type", i.instance_type.clone()),
        ("cpus", i.cpus.to_string()),
        ("memory", bytes(i.memory)),
        ("image", i.image_id.clone()),
        ("key", or_none(i.key_name.as_ref())),
        ("hostname", i.hostname.clone()),
        ("private ip", or_none(i.private_ip.as_ref())),
        ("public ip", or_none(i.public_ip.as_ref())),
        ("created", i.created.clone()),
        ("expires", or_none(i.expires.as_ref())),
    ]);
    for card in &i.interfaces {
        let groups = card.security_group_ids.join(", ");
        text += &format!("card: {} in {} ({groups})\n", card.mac, card.subnet_id);
    }
    for disk in &i.disks {
        text += &format!("disk: {} {}\n", disk.device, disk.volume_id);
    }
    for (key, value) in i.tags.iter().filter(|(key, _)| *key != "Name") {
        text += &form::fields(&[("tag", format!("{key}={value}"))]);
    }
    text + &boot_text(i)
}

fn boot_text(i: &InstanceView) -> String {
    let mut text = String::new();
    if !i.boot.stages.is_empty() {
        text += "boot stages:\n";
    }
    for stage in &i.boot.stages {
        text += &boot::line(stage);
        text.push('\n');
    }
    if let Some(failure) = &i.boot.failure {
        text += &format!("boot failed: {failure}\n");
    }
    text
}

/// Machines by their names or ids.
#[derive(Args, Debug)]
pub struct Machines {
    /// Names or ids
    #[arg(value_name = "NAME", required = true, value_parser = place::name)]
    pub names: Vec<String>,
}

/// `holm start`.
#[derive(Args, Debug)]
pub struct Start {
    /// The machines
    #[command(flatten)]
    pub machines: Machines,

    /// Until what is waited
    #[arg(long, value_enum, default_value_t = Until::Running)]
    pub wait: Until,

    /// How long at most (--timeout 10m)
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = cli::duration)]
    pub timeout: Duration,
}

/// Starts machines.
pub fn start(arguments: &Start) -> u8 {
    let client = Client::new();
    let started = arguments.machines.names.iter().try_for_each(|name| {
        let found = instance(&client, name)?;
        let path = format!("/v1/instances/{}/start", found.id);
        let now = client.ask("POST", &path, None)?;
        boot::wait(&client, now, arguments.wait, arguments.timeout).map(drop)
    });
    finish(started)
}

/// Restarts the guests of machines.
pub fn reboot(arguments: &Machines) -> u8 {
    let client = Client::new();
    let rebooted = arguments.names.iter().try_for_each(|name| {
        let found = instance(&client, name)?;
        let path = format!("/v1/instances/{}/reboot", found.id);
        client.call("POST", &path, None)?;
        terminal::say(&format!("{name} is being rebooted"));
        Ok(())
    });
    finish(rebooted)
}

/// `holm rm`.
#[derive(Args, Debug)]
pub struct Remove {
    /// The machines
    #[command(flatten)]
    pub machines: Machines,

    /// Takes away their protection against it first
    #[arg(long)]
    pub force: bool,

    /// Does not wait until they are gone
    #[arg(long)]
    pub no_wait: bool,
}

/// Removes machines for good.
pub fn remove(arguments: &Remove) -> u8 {
    let client = Client::new();
    let removed = arguments.machines.names.iter().try_for_each(|name| {
        let found = instance(&client, name)?;
        let path = format!("/v1/instances/{}", found.id);
        if arguments.force && found.termination_protection {
            let body = json!({"termination_protection": false});
            client.call("PATCH", &path, Some(&body))?;
        }
        client.call("DELETE", &path, None)?;
        if !arguments.no_wait {
            until(&client, &found.id, "terminated", Duration::from_secs(300))?;
        }
        terminal::say(&format!("{name} is gone"));
        Ok(())
    });
    finish(removed)
}

/// Stops a machine that a daemon has.
///
/// # Errors
/// [`PlaneError`].
pub fn stop(found: &InstanceView, force: bool, within: Duration) -> Result<String, PlaneError> {
    let client = Client::new();
    let start = Instant::now();
    let path = format!("/v1/instances/{}/stop", found.id);
    client.call("POST", &path, Some(&json!({"force": force})))?;
    let name = found.name.as_deref().unwrap_or(&found.id);
    match until(&client, &found.id, "stopped", within) {
        Err(PlaneError::TimedOut(_)) if !force => {
            client.call("POST", &path, Some(&json!({"force": true})))?;
            until(&client, &found.id, "stopped", Duration::from_secs(60))?;
            Ok(format!("{name} did not shut down; power cut"))
        }
        other => other.map(|()| {
            let took = start.elapsed().as_secs_f64();
            format!("{name} shut down in {took:.1} s")
        }),
    }
}

fn until(client: &Client, id: &str, state: &str, within: Duration) -> Result<(), PlaneError> {
    let start = Instant::now();
    loop {
        let now: InstanceView = client.get(&format!("/v1/instances/{id}"))?;
        if now.state == state {
            return Ok(());
        }
        if start.elapsed() > within {
            return Err(PlaneError::TimedOut(format!(
                "{id} is still {}, and not {state}; it goes on",
                now.state
            )));
        }
        std::thread::sleep(AGAIN);
    }
}

/// `holm logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// Name or id
    #[arg(value_name = "NAME", value_parser = place::name)]
    pub name: String,

    /// How far its boot came, stage by stage, instead of its console
    #[arg(long)]
    pub boot: bool,

    /// Form of the stages
    #[command(flatten)]
    pub output: Output,
}

/// Prints what a machine printed.
pub fn logs(arguments: &Logs) -> u8 {
    finish(try_logs(arguments))
}

fn try_logs(arguments: &Logs) -> Result<(), PlaneError> {
    let client = Client::new();
    let found = instance(&client, &arguments.name)?;
    if arguments.boot {
        form::print(arguments.output, &found.boot, || boot_text(&found));
        return Ok(());
    }
    let path = format!("/v1/instances/{}/console", found.id);
    let printed = client.call("GET", &path, None)?;
    form::out(&String::from_utf8_lossy(&printed));
    Ok(())
}
