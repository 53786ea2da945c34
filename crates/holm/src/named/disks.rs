//! `holm attach`, `holm detach` and `holm grow`: disks of running machines.

use std::time::{Duration, Instant};

use clap::Args;
use machine::Disk;
use machine_protocol::{DiskReport, Reply, Request};

use super::client::{Client, ControlError};
use super::{AGAIN, Named, finish};
use crate::console::terminal;
use crate::disk_option;
use crate::form::{self, Output};
use crate::values;

/// `holm attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// The machine
    #[command(flatten)]
    pub machine: Named,

    /// The disk, as with `holm run --disk` (--disk data.img,name=data)
    #[arg(long = "disk", value_name = "FILE[,OPTION[=VALUE]…]", value_parser = disk_option::parse)]
    pub disk: Disk,

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

    /// The disk's name (`holm show`)
    #[arg(value_name = "DISK")]
    pub disk: String,

    /// How long to wait for the guest to give it up (--wait 1m)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    pub wait: Duration,

    /// Takes it away without asking, as if it were pulled out: what the guest has not written yet
    /// is lost
    #[arg(long)]
    pub force: bool,
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

/// Attaches a disk.
pub fn attach(arguments: &Attach) -> u8 {
    finish(try_attach(arguments))
}

fn try_attach(arguments: &Attach) -> Result<(), ControlError> {
    let name = &arguments.machine.name;
    let refused = |message: String| ControlError::Refused {
        name: name.clone(),
        message,
    };
    let mut disk = arguments.disk.clone();
    // The machine's process may be in another directory.
    disk.file = std::path::absolute(&disk.file).map_err(|e| refused(e.to_string()))?;
    let disk = serde_json::to_value(&disk).map_err(|e| refused(e.to_string()))?;
    let mut client = Client::connect(name)?;
    let Reply::Attached { disk } = client.ask(&Request::AttachDisk { disk })? else {
        return Err(refused("it gave an answer to something else".into()));
    };
    let report = wait_for(&mut client, &disk, arguments.wait, |d| {
        d.is_some_and(|d| d.in_use)
    })?;
    let report = report.ok_or_else(|| refused(format!("disk {disk:?} has gone again")))?;
    form::print(arguments.output, &report, || match report.in_use {
        true => format!("{disk}: attached, and the guest uses it\n"),
        false => format!(
            "{disk}: attached; the guest has not taken it yet (it is paused, starting, or has no \
             drivers pciehp and virtio_blk)\n"
        ),
    });
    Ok(())
}

/// Detaches a disk.
pub fn detach(arguments: &Detach) -> u8 {
    finish(try_detach(arguments))
}

fn try_detach(arguments: &Detach) -> Result<(), ControlError> {
    let (name, disk) = (&arguments.machine.name, &arguments.disk);
    let mut client = Client::connect(name)?;
    client.ask(&Request::DetachDisk {
        disk: disk.clone(),
        force: arguments.force,
    })?;
    match wait_for(&mut client, disk, arguments.wait, |d| d.is_none())? {
        None => {
            terminal::say(&format!("{disk}: detached"));
            Ok(())
        }
        Some(_) => Err(ControlError::Refused {
            name: name.clone(),
            message: format!(
                "the guest was asked and has not given up disk {disk:?} yet; it may still do so, \
                 and --force takes it away"
            ),
        }),
    }
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

/// Looks at a disk until it is as wanted, or the time is over; what it was
/// then.
fn wait_for(
    client: &mut Client,
    disk: &str,
    within: Duration,
    wanted: impl Fn(Option<&DiskReport>) -> bool,
) -> Result<Option<DiskReport>, ControlError> {
    let start = Instant::now();
    loop {
        let disks = client.describe()?.disks;
        let found = disks.into_iter().find(|d| d.name == disk);
        if wanted(found.as_ref()) || start.elapsed() >= within {
            return Ok(found);
        }
        std::thread::sleep(AGAIN);
    }
}
