//! `holm start`, `reboot`, `rm`, and the part of `ls`, `show`, `stop` and
//! `logs` that is of a daemon's machines.

use std::time::{Duration, Instant};

use api::resources::instances::InstanceView;
use clap::Args;
use serde_json::json;

use super::boot::{self, Until};
use super::client::{Client, PlaneError};
use super::{finish, instance};
use crate::completion;
use crate::console::terminal;
use crate::form::{self, age, bytes, or_none};
use crate::named::find;
use crate::values;

/// Time between looks at a machine that is to change its state.
const AGAIN: Duration = Duration::from_millis(200);

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

/// How far a machine's boot came.
pub fn boot_text(i: &InstanceView) -> String {
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
    #[arg(value_name = "NAME", required = true, value_parser = find::target, add = completion::machines())]
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
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = values::duration)]
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

/// Prints what a machine printed.
///
/// # Errors
/// [`PlaneError`].
pub fn console(found: &InstanceView) -> Result<(), PlaneError> {
    let path = format!("/v1/instances/{}/console", found.id);
    let printed = Client::new().call("GET", &path, None)?;
    form::out(&String::from_utf8_lossy(&printed));
    Ok(())
}
