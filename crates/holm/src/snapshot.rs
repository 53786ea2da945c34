//! `holm snapshot`: making, showing and checking snapshots.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use machine::snapshot::{DiskKept, Manifest, Snapshot};
use machine_protocol::{Reply, Request, SnapshotMade};

use crate::completion;
use crate::console::terminal;
use crate::exit_code;
use crate::failure::Failure;
use crate::form::{self, Output};
use crate::named::{self, client::Client};
use crate::plane;

/// `holm snapshot`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Captures a running machine, memory and disks at one instant, in a new directory
    ///
    /// The guest stands for some milliseconds and runs on. `holm restore` makes machines of it.
    ///
    /// Examples:
    ///   holm snapshot create web1 /srv/snapshots/web1-monday
    ///   holm snapshot create web1 /srv/snapshots/web1-tuesday --incremental
    #[command(verbatim_doc_comment, after_help = exit_code::CONTROL_HELP)]
    Create(Create),
    /// Copies one disk of a running machine, as it is at one instant, to a new file
    ///
    /// A qcow2 disk that builds on another file becomes one that builds on the same; others become
    /// raw ones. The guest stands for some milliseconds and runs on.
    ///
    /// Example: holm snapshot disk web1 data /srv/snapshots/data.img
    #[command(after_help = exit_code::CONTROL_HELP)]
    Disk(CopyDisk),
    /// Lists the snapshots of volumes that a daemon keeps
    ///
    /// Example: holm snapshot ls
    #[command(after_help = exit_code::PLANE_HELP)]
    Ls(Output),
    /// Removes a snapshot of a volume that a daemon keeps
    ///
    /// Example: holm snapshot rm snap-0123456789abcdef0
    #[command(after_help = exit_code::PLANE_HELP,
        mut_arg("name", |name| name.add(completion::snapshots())))]
    Rm(plane::keys::Name),
    /// Shows what a snapshot is: its machine, host files that it needs, sizes
    ///
    /// Example: holm snapshot show /srv/snapshots/web1-monday
    #[command(after_help = exit_code::SNAPSHOT_HELP)]
    Show(Show),
    /// Reads all of a snapshot and compares it with its digests
    ///
    /// Example: holm snapshot check /srv/snapshots/web1-monday
    #[command(after_help = exit_code::SNAPSHOT_HELP)]
    Check(Directory),
}

/// `holm snapshot create`.
#[derive(Args, Debug)]
pub struct Create {
    /// The machine
    #[command(flatten)]
    pub machine: named::Named,

    /// The directory, which must not exist; it appears when it is complete
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,

    /// Keeps only the memory that changed since the machine's last snapshot, or since it was
    /// restored; that snapshot must be kept too
    #[arg(long)]
    pub incremental: bool,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// `holm snapshot disk`.
#[derive(Args, Debug)]
pub struct CopyDisk {
    /// The machine
    #[command(flatten)]
    pub machine: named::Named,

    /// The disk, as `holm show` calls it
    #[arg(value_name = "DISK")]
    pub disk: String,

    /// The file, which must not exist
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// A snapshot.
#[derive(Args, Debug)]
pub struct Directory {
    /// The snapshot's directory
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,
}

/// `holm snapshot show`.
#[derive(Args, Debug)]
pub struct Show {
    /// The snapshot
    #[command(flatten)]
    pub snapshot: Directory,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// Does it, and returns the exit status.
pub fn run(command: &Command) -> u8 {
    match command {
        Command::Create(arguments) => create(arguments),
        Command::Disk(arguments) => copy_disk(arguments),
        Command::Ls(output) => plane::volumes::snapshots(*output),
        Command::Rm(name) => plane::volumes::remove_snapshot(name),
        Command::Show(arguments) => report(show(arguments)),
        Command::Check(arguments) => report(check(arguments)),
    }
}

fn report(result: Result<(), Failure>) -> u8 {
    match result {
        Ok(()) => exit_code::SUCCESS,
        Err(failure) => {
            terminal::say(&format!("holm: {failure}"));
            failure.code()
        }
    }
}

fn open(directory: &Directory) -> Result<Snapshot, Failure> {
    Snapshot::open(&directory.directory).map_err(|e| Failure::File(e.to_string()))
}

fn copy_disk(arguments: &CopyDisk) -> u8 {
    let file = match std::path::absolute(&arguments.file) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(e) => return report(Err(Failure::Usage(format!("the file: {e}")))),
    };
    let disk = arguments.disk.clone();
    let request = Request::CopyDisk { disk, file };
    let made = Client::connect(&arguments.machine.name).and_then(|mut client| {
        client.wait_long()?;
        match client.ask(&request)? {
            Reply::DiskCopied(made) => Ok(made),
            _ => Err(client.strange()),
        }
    });
    named::finish(made.map(|made| {
        let milliseconds = made.stopped_us as f64 / 1000.0;
        let format = made.format;
        terminal::print(&format!("{format}; the guest stood {milliseconds:.1} ms\n"));
    }))
}

fn create(arguments: &Create) -> u8 {
    let name = &arguments.machine.name;
    let directory = match std::path::absolute(&arguments.directory) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(e) => return report(Err(Failure::Usage(format!("the directory: {e}")))),
    };
    let request = Request::Snapshot {
        directory: directory.clone(),
        incremental: arguments.incremental,
    };
    let made = Client::connect(name).and_then(|mut client| {
        client.wait_long()?;
        match client.ask(&request)? {
            Reply::Snapshot(made) => Ok(made),
            _ => Err(client.strange()),
        }
    });
    named::finish(made.map(|made| {
        form::print(arguments.output, &made, || told(name, &directory, &made));
    }))
}

fn told(name: &str, directory: &str, made: &SnapshotMade) -> String {
    format!(
        "{name}: snapshot {directory} in {:.2} s; the guest stood {:.1} ms; {} MiB of memory\n",
        made.took_us as f64 / 1e6,
        made.stopped_us as f64 / 1e3,
        made.memory_bytes >> 20
    )
}

fn show(arguments: &Show) -> Result<(), Failure> {
    let snapshot = open(&arguments.snapshot)?;
    form::print(arguments.output, snapshot.manifest(), || {
        text(snapshot.manifest(), snapshot.depth())
    });
    Ok(())
}

/// Seconds since 1970 as a time that people read.
fn moment(seconds: u64) -> String {
    // The year 9999 ends there: whoever wrote the manifest may say anything.
    match seconds < 253_402_300_800 {
        true => {
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            humantime::format_rfc3339_seconds(at).to_string()
        }
        false => format!("{seconds} (Unix time)"),
    }
}

fn text(m: &Manifest, depth: usize) -> String {
    let d = &m.machine;
    let memory = (m.memory.pages * 4) >> 10;
    let mut text = form::fields(&[
        ("id", m.id.to_string()),
        ("created", moment(m.created)),
        ("made by", format!("holm {}, engine {}", m.holm, m.engine)),
        (
            "machine",
            format!("{} CPUs, {} MiB", d.cpus, d.memory >> 20),
        ),
        ("memory", format!("{memory} MiB in {depth} files")),
    ]);
    if let Some(parent) = &m.parent {
        text += &format!("builds on {} ({})\n", parent.directory.display(), parent.id);
    }
    for disk in &m.disks {
        let how = match disk.kept {
            DiskKept::Copied => "copy",
            DiskKept::Cloned => "copy with shared blocks",
            DiskKept::Referred => "file of the host",
        };
        let (file, size) = (disk.file.display(), disk.size >> 20);
        text += &form::fields(&[("disk", format!("{file}, {size} MiB, {how}"))]);
    }
    for nic in &d.nics {
        text += &form::fields(&[("nic", nic.network.to_string())]);
    }
    text
}

fn check(arguments: &Directory) -> Result<(), Failure> {
    let snapshot = open(arguments)?;
    snapshot
        .check_contents()
        .map_err(|e| Failure::File(e.to_string()))?;
    println!("{}: whole", arguments.directory.display());
    Ok(())
}
