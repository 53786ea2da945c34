//! `holm restore`: a machine goes on where a snapshot was taken.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use machine::snapshot::{DiskKept, Snapshot};
use machine::{Description, GuestUpdate, NicNetwork};

use crate::console::terminal;
use crate::failure::Failure;
use crate::named::place;
use crate::run::arguments::{EngineChoice, Serial, serial};
use crate::run::background;
use crate::run::disks::{self, OwnDisk};
use crate::run::engine_choice;
use crate::run::image::Template;
use crate::run::network;
use crate::run::peripherals::LogOption;
use crate::run::session::{self, Origin, Plan};
use crate::run::{self, own};
use crate::values::duration;

/// `holm restore`.
#[derive(Args, Debug)]
pub struct Restore {
    /// The snapshot's directory
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,

    /// Gives the machine a name (--name web1)
    #[arg(long, value_name = "NAME", value_parser = place::name)]
    pub name: Option<String>,

    /// Whether it runs in the background
    #[command(flatten)]
    pub background: background::Options,

    /// Makes another machine of it: with its own UUID and network addresses, and without the
    /// published ports and sockets of the first, unless they are given here
    #[arg(long)]
    pub clone: bool,

    /// Tells the guest nothing. Otherwise its agent, if it runs, sets its time of day, and gives a
    /// clone's cards their new addresses and its random numbers a new beginning, while it runs
    #[arg(long)]
    pub leave_guest: bool,

    /// Leaves it paused, until `holm resume`
    #[arg(long, requires = "name")]
    pub paused: bool,

    /// Compares all of the snapshot with its digests first
    #[arg(long)]
    pub check: bool,

    /// Keeps the machine's disks in this directory (--keep ~/web1-back); without it its changes
    /// to them are discarded when it ends
    #[arg(long, value_name = "DIRECTORY")]
    pub keep: Option<PathBuf>,

    /// Port of the host that leads to a port of the guest, instead of those in the snapshot
    /// (--publish 2222:22)
    #[arg(long, value_name = "[ADDR:]HOST:GUEST[/udp]", value_parser = network::publication)]
    pub publish: Vec<net::user::Publication>,

    /// Path of the sockets between guest and host, instead of the one in the snapshot
    #[arg(long, value_name = "PATH")]
    pub vsock_socket: Option<PathBuf>,

    /// Serves the guest's agent there
    #[arg(long, value_name = "PATH")]
    pub agent_socket: Option<PathBuf>,

    /// CPU engine; any can go on with a snapshot of any
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,

    /// Where the serial console goes (--serial file=console.log)
    #[arg(long, value_name = "stdio|null|file=PATH", default_value = "stdio", value_parser = serial)]
    pub serial: Serial,

    /// Keeps what the serial console prints (--serial-log web1.log,max=4M)
    #[arg(long, value_name = "FILE[,max=SIZE]", value_parser = crate::run::peripherals::serial_log)]
    pub serial_log: Option<LogOption>,

    /// Ends the machine after this time (--timeout 5m)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// Restores the machine, runs it and returns the exit status.
pub fn run(arguments: &Restore) -> u8 {
    run::report(match arguments.background.wanted() {
        true => background::start(arguments.name.as_deref()),
        false => start(arguments),
    })
}

fn start(arguments: &Restore) -> Result<u8, Failure> {
    let deadline = arguments.timeout.map(|timeout| Instant::now() + timeout);
    let claim = arguments.name.as_deref().map(place::Claim::take);
    let claim = claim.transpose()?;
    let bad = |e: machine::SnapshotError| Failure::File(e.to_string());
    let snapshot = Snapshot::open(&arguments.directory).map_err(bad)?;
    if arguments.check {
        snapshot.check_contents().map_err(bad)?;
    }
    let mut description = snapshot.manifest().machine.clone();
    lead_elsewhere(arguments, &mut description)?;
    let own_disks = own_disks(arguments, &snapshot, &mut description)?;
    session::run(Plan {
        description,
        own_disks,
        origin: Origin::Snapshot {
            snapshot: Box::new(snapshot),
            paused: arguments.paused,
            update: match (arguments.leave_guest, arguments.clone) {
                (true, _) => None,
                (false, true) => Some(GuestUpdate::Cloned),
                (false, false) => Some(GuestUpdate::Restored),
            },
        },
        claim,
        engine: engine_choice::decide(arguments.engine)?,
        serial: arguments.serial.clone(),
        serial_log: arguments.serial_log.clone(),
        agent_socket: arguments.agent_socket.clone(),
        gdb: None,
        deadline,
        background: arguments.background.is(),
    })
}

/// What of the description leads to the host, for this machine.
fn lead_elsewhere(arguments: &Restore, description: &mut Description) -> Result<(), Failure> {
    let mut ports = Some(arguments.publish.clone()).filter(|p| arguments.clone || !p.is_empty());
    for nic in &mut description.nics {
        if let NicNetwork::User(user) = &mut nic.network
            && let Some(ports) = &mut ports
        {
            user.publish = std::mem::take(ports);
        }
        if arguments.clone && nic.capture.take().is_some() {
            terminal::say("holm: the frames of a clone are not captured");
        }
    }
    if ports.is_some_and(|rest| !rest.is_empty()) {
        return Err(Failure::Usage(
            "--publish needs a user network, and the snapshot's machine has none".into(),
        ));
    }
    match (&mut description.peripherals.vsock, &arguments.vsock_socket) {
        (Some(vsock), Some(path)) => vsock.socket = path.clone(),
        (Some(_), None) if arguments.clone => {
            return Err(Failure::Usage(
                "the snapshot's machine has sockets to the host; give this clone its own with \
                 --vsock-socket PATH"
                    .into(),
            ));
        }
        (None, Some(_)) => {
            return Err(Failure::Usage(
                "the snapshot's machine has no sockets to the host (--vsock)".into(),
            ));
        }
        _ => {}
    }
    if arguments.clone {
        description.uuid = own::random_uuid()?;
        for nic in &mut description.nics {
            nic.mac = None;
        }
    }
    Ok(())
}

/// Disks of its own for the machine: the snapshot's stay as they are.
fn own_disks(
    arguments: &Restore,
    snapshot: &Snapshot,
    description: &mut Description,
) -> Result<Vec<OwnDisk>, Failure> {
    let mut own = Vec::new();
    for (index, disk) in description.disks.iter_mut().enumerate() {
        let (Some(file), Some(kept)) = (snapshot.disk(index), snapshot.manifest().disks.get(index))
        else {
            continue;
        };
        let template = Template {
            file,
            format: kept.format,
            readonly: kept.kept == DiskKept::Referred,
        };
        let mine = disks::own(&template, arguments.keep.as_deref())?;
        disk.file = mine.path.clone();
        (disk.format, disk.scratch) = (Some(mine.format), mine.scratch);
        own.push(mine);
    }
    Ok(own)
}
