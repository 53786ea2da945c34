//! `holm show` and `holm metrics`.

use std::path::Path;

use api::resources::instances::InstanceView;
use clap::Args;
use machine_protocol::{Description, DiskReport};

use super::client::{Client, ControlError};
use super::{Named, find, finish, state, with_name};
use crate::exit_code;
use crate::form::{self, Output};
use crate::plane;
use crate::plane::client::PlaneError;

/// Time between looks at a machine that runs alone.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// `holm show`.
#[derive(Args, Debug)]
pub struct Show {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// Goes on: shows the machine again when it changes, until it is gone
    #[arg(short, long)]
    pub watch: bool,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// `holm metrics`.
#[derive(Args, Debug)]
pub struct Metrics {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// Form of the answer; text is that of Prometheus
    #[command(flatten)]
    pub output: Output,
}

/// Shows one machine.
pub fn run(arguments: &Show) -> u8 {
    let (name, output) = (&arguments.machine.name, arguments.output);
    match (find::instance(name), arguments.watch) {
        (Err(error), _) => finish(Err(error.into())),
        (Ok(Some(kept)), true) => plane::finish(watch(&kept, output)),
        (Ok(Some(kept)), false) => {
            form::print(output, &kept, || plane::instances::show_text(&kept));
            exit_code::SUCCESS
        }
        (Ok(None), true) => finish(watch_alone(name, output)),
        (Ok(None), false) => finish(Client::connect(name).and_then(|mut c| c.describe()).map(
            |d| {
                form::print(output, &with_name(name, &d), || text(name, &d));
            },
        )),
    }
}

fn watch(kept: &InstanceView, output: Output) -> Result<(), PlaneError> {
    let query = format!("kind=instance&resource={}", kept.id);
    let gone = plane::client::Client::new().watch(&query, None, |_, event| {
        let Some(event) = event.filter(|event| event.id == kept.id) else {
            return Ok(None);
        };
        let Some(value) = event.value else {
            return Ok(Some(()));
        };
        let now: InstanceView =
            serde_json::from_value(value).map_err(|e| PlaneError::Strange(e.to_string()))?;
        again(output, &now, || plane::instances::show_text(&now));
        Ok((now.state == "terminated").then_some(()))
    });
    gone.map(drop)
}

fn watch_alone(name: &str, output: Output) -> Result<(), ControlError> {
    let mut client = Client::connect(name)?;
    let mut before = None;
    // It ends with the machine.
    while let Ok(d) = client.describe() {
        let changed = Some((
            d.state,
            d.disks.clone(),
            d.attached_nics.clone(),
            d.links_down.clone(),
            d.ports.clone(),
            d.guest_update.clone(),
        ));
        if changed != before {
            again(output, &with_name(name, &d), || text(name, &d));
            before = changed;
        }
        std::thread::sleep(AGAIN);
    }
    Ok(())
}

/// Shows something that was shown before.
fn again<T: serde::Serialize>(output: Output, value: &T, text: impl Fn() -> String) {
    match output.is_text() && form::on_terminal() {
        true => form::draw(&text()),
        false => form::item(output, value, || text() + "\n"),
    }
}

fn text(name: &str, d: &Description) -> String {
    let mut text = form::fields(&[
        ("name", name.to_owned()),
        ("state", state(d.state).to_owned()),
        ("engine", d.engine.clone()),
        ("cpus", d.cpus.to_string()),
        ("memory", format!("{} MiB", d.memory >> 20)),
        ("uptime", format!("{} s", d.uptime_seconds)),
        ("uuid", d.uuid.clone()),
        ("generation", d.generation_id.clone()),
        ("restored", d.guest_update.clone().unwrap_or_default()),
        ("pid", d.pid.to_string()),
    ]);
    d.disks.iter().for_each(|disk| text += &disk_text(disk));
    let link = |name: &str| match d.links_down.iter().any(|down| down == name) {
        true => ", link down",
        false => "",
    };
    for (index, network) in d.nics.iter().enumerate() {
        let name = format!("net{index}");
        let what = format!("{network} ({name}{})", link(&name));
        text += &form::fields(&[("nic", what)]);
    }
    for nic in &d.attached_nics {
        let (name, mac) = (&nic.name, &nic.mac);
        let what = format!("{} ({name}, {mac}{})", nic.network, link(name));
        text += &form::fields(&[("nic", what)]);
    }
    text
}

fn disk_text(disk: &DiskReport) -> String {
    let read_only = if disk.read_only { ", read-only" } else { "" };
    let (name, size) = (&disk.name, disk.size >> 20);
    let file = machine::place(Path::new(&disk.file));
    let what = format!("{name} ({file}, {size} MiB{read_only})");
    let failure = disk.failure.clone().unwrap_or_default();
    form::fields(&[("disk", what)]) + &form::fields(&[("disk failed", failure)])
}

/// Prints a machine's counters.
pub fn metrics(arguments: &Metrics) -> u8 {
    let asked = Client::connect(&arguments.machine.name).and_then(|mut c| c.metrics());
    finish(asked.map(|metrics| {
        form::print(arguments.output, &metrics, || metrics.to_prometheus());
    }))
}
