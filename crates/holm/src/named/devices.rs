//! `holm attach`, `holm detach`, `holm grow` and `holm link`: disks and network
//! cards of running machines.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use machine::{Disk, Nic};
use machine_protocol::{Description, Reply, Request};

use super::client::{Client, ControlError};
use super::{AGAIN, Named, finish};
use crate::console::terminal;
use crate::form::{self, Output};
use crate::run::{disk_option, network};
use crate::values;

/// `holm attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// The disk, as with `holm run --disk` (--disk data.img,name=data)
    #[arg(long = "disk", value_name = "FILE[,OPTION[=VALUE]…]", value_parser = disk_option::parse)]
    pub disk: Option<Disk>,

    /// A network card instead, as with `holm run --net`, not in a VPC (--net switch=lab,name=lab)
    #[arg(
        long = "net",
        value_name = "NETWORK[,OPTION…]",
        value_parser = network::spec,
        conflicts_with = "disk",
        required_unless_present = "disk"
    )]
    pub net: Option<network::Spec>,

    /// How long to wait for the guest to take it (--wait 30s)
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    pub wait: Duration,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// `holm detach`.
#[derive(Args, Debug)]
pub struct Detach {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// The disk's or network card's name (`holm show`)
    #[arg(value_name = "DEVICE")]
    pub device: String,

    /// How long to wait for the guest to give it up (--wait 1m)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    pub wait: Duration,

    /// Takes it away without asking, as if it were pulled out: what the guest has not written yet
    /// is lost
    #[arg(long)]
    pub force: bool,
}

/// `holm link`.
#[derive(Args, Debug)]
pub struct Link {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// The network card's name (`holm show`): net0 is the first of its start
    #[arg(value_name = "CARD")]
    pub nic: String,

    /// Whether the cable is plugged in
    #[arg(value_enum, value_name = "up|down")]
    pub link: Carrier,
}

/// State of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// Plugged in
    Up,
    /// Pulled out
    Down,
}

/// `holm grow`.
#[derive(Args, Debug)]
pub struct Grow {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// The disk's name (`holm show`)
    #[arg(value_name = "DISK")]
    pub disk: String,

    /// Its new capacity; K, M, G and T are powers of 1024 (20G)
    #[arg(value_name = "SIZE", value_parser = values::size)]
    pub size: u64,
}

/// Attaches a disk or a network card.
pub fn attach(arguments: &Attach) -> u8 {
    finish(try_attach(arguments))
}

fn try_attach(arguments: &Attach) -> Result<(), ControlError> {
    match (&arguments.disk, &arguments.net) {
        (Some(disk), _) => attach_disk(arguments, disk.clone()),
        (None, Some(network::Spec::Card(nic))) => attach_nic(arguments, (**nic).clone()),
        (None, _) => Err(refused(arguments)("--net none is no network card")),
    }
}

/// The machine's answer that it is not done, in its name.
fn refused(arguments: &Attach) -> impl Fn(&str) -> ControlError {
    |message| ControlError::Refused {
        name: arguments.machine.name.clone(),
        message: message.into(),
    }
}

const ANOTHER_ANSWER: &str = "it gave an answer to something else";

fn attach_disk(arguments: &Attach, mut disk: Disk) -> Result<(), ControlError> {
    let refused = refused(arguments);
    // The machine's process may be in another directory.
    disk.file = std::path::absolute(&disk.file).map_err(|e| refused(&e.to_string()))?;
    let disk = serde_json::to_value(&disk).map_err(|e| refused(&e.to_string()))?;
    let mut client = Client::connect(&arguments.machine.name)?;
    let Reply::Attached { disk } = client.ask(&Request::AttachDisk { disk })? else {
        return Err(refused(ANOTHER_ANSWER));
    };
    let find = |d: Description| d.disks.into_iter().find(|d| d.name == disk);
    let report = wait_for(&mut client, arguments.wait, find, |d| {
        d.as_ref().is_some_and(|d| d.in_use)
    })?;
    let report = report.ok_or_else(|| refused(&format!("disk {disk:?} has gone again")))?;
    form::print(arguments.output, &report, || {
        attached_text(&disk, report.in_use, "virtio_blk")
    });
    Ok(())
}

fn attach_nic(arguments: &Attach, mut nic: Nic) -> Result<(), ControlError> {
    let refused = refused(arguments);
    if let Some(capture) = &mut nic.capture {
        capture.file = std::path::absolute(&capture.file).map_err(|e| refused(&e.to_string()))?;
    }
    let nic = serde_json::to_value(&nic).map_err(|e| refused(&e.to_string()))?;
    let mut client = Client::connect(&arguments.machine.name)?;
    let Reply::NicAttached { nic } = client.ask(&Request::AttachNic { nic })? else {
        return Err(refused(ANOTHER_ANSWER));
    };
    let find = |d: Description| d.attached_nics.into_iter().find(|n| n.name == nic);
    let report = wait_for(&mut client, arguments.wait, find, |n| {
        n.as_ref().is_some_and(|n| n.in_use)
    })?;
    let report = report.ok_or_else(|| refused(&format!("network card {nic:?} has gone again")))?;
    form::print(arguments.output, &report, || {
        attached_text(&nic, report.in_use, "virtio_net")
    });
    Ok(())
}

fn attached_text(name: &str, in_use: bool, driver: &str) -> String {
    match in_use {
        true => format!("{name}: attached, and the guest uses it\n"),
        false => format!(
            "{name}: attached; the guest has not taken it yet (it is paused, starting, or has no \
             drivers pciehp and {driver})\n"
        ),
    }
}

/// Detaches a disk or a network card.
pub fn detach(arguments: &Detach) -> u8 {
    finish(try_detach(arguments))
}

fn try_detach(arguments: &Detach) -> Result<(), ControlError> {
    let (name, device) = (&arguments.machine.name, &arguments.device);
    let mut client = Client::connect(name)?;
    let is_nic = |d: &Description| d.attached_nics.iter().any(|nic| nic.name == *device);
    let force = arguments.force;
    let request = match is_nic(&client.describe()?) {
        true => Request::DetachNic {
            nic: device.clone(),
            force,
        },
        false => Request::DetachDisk {
            disk: device.clone(),
            force,
        },
    };
    client.ask(&request)?;
    let there = |d: Description| is_nic(&d) || d.disks.iter().any(|disk| disk.name == *device);
    if wait_for(&mut client, arguments.wait, there, |there| !there)? {
        return Err(ControlError::Refused {
            name: name.clone(),
            message: format!(
                "the guest was asked and has not given up {device:?} yet; it may still do so, \
                 and --force takes it away"
            ),
        });
    }
    terminal::say(&format!("{device}: detached"));
    Ok(())
}

/// Plugs the cable of a network card in or pulls it out.
pub fn link(arguments: &Link) -> u8 {
    let asked = Client::connect(&arguments.machine.name).and_then(|mut client| {
        client.ask(&Request::SetLink {
            nic: arguments.nic.clone(),
            up: arguments.link == Carrier::Up,
        })
    });
    finish(asked.map(drop))
}

/// Makes a disk larger.
pub fn grow(arguments: &Grow) -> u8 {
    let asked = Client::connect(&arguments.machine.name).and_then(|mut client| {
        client.ask(&Request::GrowDisk {
            disk: arguments.disk.clone(),
            size: arguments.size,
        })
    });
    finish(asked.map(drop))
}

/// Looks at the machine until what is found is as wanted, or the time is over;
/// what it was then.
fn wait_for<T>(
    client: &mut Client,
    within: Duration,
    find: impl Fn(Description) -> T,
    wanted: impl Fn(&T) -> bool,
) -> Result<T, ControlError> {
    let start = Instant::now();
    loop {
        let found = find(client.describe()?);
        if wanted(&found) || start.elapsed() >= within {
            return Ok(found);
        }
        std::thread::sleep(AGAIN);
    }
}
