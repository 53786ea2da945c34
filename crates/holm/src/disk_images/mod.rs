//! `holm disk`: making, looking at and changing disk images.

mod arguments;
mod progress;

use std::path::Path;

use disk::manage::{self, Base, CreateOptions};
use disk::{DiskError, Format};
use serde::Serialize;

pub use arguments::Command;
use arguments::{Check, Commit, Compare, Convert, Create, InfoOf, Rebase, Resize, SizeChange};
pub use progress::Meter;

use crate::console::terminal;
use crate::exit_code;
use crate::failure::Failure;
use crate::form;

/// Runs the command; the exit status.
pub fn run(command: &Command) -> u8 {
    let done = match command {
        Command::Create(arguments) => create(arguments),
        Command::Info(arguments) => info(arguments),
        Command::Convert(arguments) => convert(arguments),
        Command::Check(arguments) => check(arguments),
        Command::Commit(arguments) => commit(arguments),
        Command::Rebase(arguments) => rebase(arguments),
        Command::Resize(arguments) => resize(arguments),
        Command::Compare(arguments) => compare(arguments),
    };
    done.unwrap_or_else(|failure| {
        terminal::say(&format!("holm: {failure}"));
        failure.code()
    })
}

/// Images choose parts of the texts, such as names of files below them.
fn failure(error: DiskError) -> Failure {
    let text = printable(&error.to_string());
    match error {
        DiskError::Unfit(_) => Failure::Usage(text),
        _ => Failure::File(text),
    }
}

fn create(arguments: &Create) -> Result<u8, Failure> {
    let format = match (arguments.format, &arguments.backing) {
        (Some(format), _) => format,
        (None, Some(_)) => Format::Qcow2,
        (None, None) => by_name(&arguments.file),
    };
    let options = CreateOptions {
        format,
        size: arguments.size,
        backing: arguments
            .backing
            .clone()
            .map(|backing| (backing, arguments.backing_format)),
        cluster_size: arguments.cluster_size,
        preallocate: arguments.preallocate.into(),
        replace: arguments.force,
    };
    manage::create(&arguments.file, &options).map_err(failure)?;
    Ok(exit_code::SUCCESS)
}

/// The format that a new file's name asks for.
fn by_name(path: &Path) -> Format {
    match path.extension() {
        Some(extension) if extension == "qcow2" => Format::Qcow2,
        _ => Format::Raw,
    }
}

fn info(arguments: &InfoOf) -> Result<u8, Failure> {
    let info = manage::info(&arguments.file, arguments.format).map_err(failure)?;
    if form::for_program(arguments.output, &info) {
        return Ok(exit_code::SUCCESS);
    }
    let mut rows = vec![
        ("file", printable(&info.file.to_string_lossy())),
        ("format", info.format.to_string()),
        ("size", people(info.size)),
        ("on the host", people(info.allocated)),
    ];
    if let Some(version) = info.qcow2_version {
        let cluster = info.cluster_size.unwrap_or(0) >> 10;
        rows.push((
            "qcow2",
            format!("version {version}, clusters of {cluster} KiB"),
        ));
    }
    if let Some(snapshots) = info.internal_snapshots.filter(|n| *n > 0) {
        rows.push((
            "snapshots",
            format!("{snapshots} (internal: not for writing)"),
        ));
    }
    for lower in &info.backing {
        let text = format!(
            "{} ({})",
            printable(&lower.file.to_string_lossy()),
            lower.format
        );
        rows.push(("builds on", text));
    }
    if let Some(problem) = info.backing_problem {
        rows.push(("problem", printable(&problem)));
    }
    if info.dirty {
        rows.push((
            "state",
            "in use, or not closed: mended when it is used next".into(),
        ));
    }
    for (name, value) in rows {
        terminal::print(&format!("{name:<12} {value}\n"));
    }
    Ok(exit_code::SUCCESS)
}

/// A text without what could work on the terminal.
pub fn printable(text: &str) -> String {
    bootdisk::isolated::printable(text).to_string()
}

/// A size for people, exact in bytes too.
pub fn people(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit} ({bytes} bytes)", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} bytes")
}

fn convert(arguments: &Convert) -> Result<u8, Failure> {
    let target = &arguments.target;
    let options = CreateOptions {
        size: None,
        cluster_size: arguments.cluster_size,
        preallocate: arguments.preallocate.into(),
        replace: arguments.force,
        ..CreateOptions::new(arguments.to.unwrap_or_else(|| by_name(target)), 0)
    };
    let mut meter = Meter::new("converting");
    let source = &arguments.source;
    manage::convert(
        source,
        arguments.format,
        target,
        &options,
        &mut meter.hear(),
    )
    .map_err(failure)?;
    Ok(exit_code::SUCCESS)
}

/// The answer of `holm disk check`.
#[derive(Serialize)]
struct Checked<'a> {
    clean: bool,
    repaired: bool,
    leaked_clusters: u64,
    errors: u64,
    damage: u64,
    data_clusters: u64,
    compressed_clusters: u64,
    disk_clusters: u64,
    findings: &'a [String],
}

fn check(arguments: &Check) -> Result<u8, Failure> {
    let report = manage::check(&arguments.file, arguments.format, arguments.repair);
    let report = report.map_err(failure)?;
    let repaired = arguments.repair && !report.is_clean() && report.damage == 0;
    let checked = Checked {
        clean: report.is_clean(),
        repaired,
        leaked_clusters: report.leaked_clusters,
        errors: report.errors,
        damage: report.damage,
        data_clusters: report.data_clusters,
        compressed_clusters: report.compressed_clusters,
        disk_clusters: report.disk_clusters,
        findings: &report.texts,
    };
    if !form::for_program(arguments.output, &checked) {
        for text in &report.texts {
            terminal::print(&format!("{text}\n"));
        }
        let (leaks, errors, damage) = (report.leaked_clusters, report.errors, report.damage);
        terminal::print(&match (report.is_clean(), repaired) {
            (true, _) => format!(
                "no fault found; {} of {} clusters have data\n",
                report.data_clusters, report.disk_clusters
            ),
            (false, true) => format!("repaired: {leaks} leaked clusters, {errors} errors\n"),
            (false, false) => format!(
                "{leaks} leaked clusters (space, no data), {errors} errors that --repair mends, \
                 {damage} that it does not\n"
            ),
        });
    }
    Ok(match report.is_clean() || repaired {
        true => exit_code::SUCCESS,
        false => exit_code::FOUND,
    })
}

fn commit(arguments: &Commit) -> Result<u8, Failure> {
    let mut meter = Meter::new("committing");
    manage::commit(&arguments.file, arguments.format, &mut meter.hear()).map_err(failure)?;
    Ok(exit_code::SUCCESS)
}

fn rebase(arguments: &Rebase) -> Result<u8, Failure> {
    let base = match &arguments.backing {
        Some(file) => Base::File(file.clone(), arguments.backing_format),
        None => Base::None,
    };
    let mut meter = Meter::new("rebasing");
    let (file, format) = (&arguments.file, arguments.format);
    manage::rebase(file, format, &base, arguments.trust, &mut meter.hear()).map_err(failure)?;
    Ok(exit_code::SUCCESS)
}

fn resize(arguments: &Resize) -> Result<u8, Failure> {
    let now = || {
        let info = manage::info(&arguments.file, arguments.format);
        info.map(|info| info.size).map_err(failure)
    };
    let size = match arguments.size {
        SizeChange::To(size) => Some(size),
        SizeChange::By(more) => now()?.checked_add(more),
    };
    let size = size.ok_or_else(|| Failure::Usage("this size is beyond 64 bits".into()))?;
    manage::resize(&arguments.file, arguments.format, size, arguments.shrink).map_err(failure)?;
    Ok(exit_code::SUCCESS)
}

/// The answer of `holm disk compare`.
#[derive(Serialize)]
struct Compared {
    equal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<u64>,
}

fn compare(arguments: &Compare) -> Result<u8, Failure> {
    let mut meter = Meter::new("comparing");
    let difference = manage::compare(
        (&arguments.first, arguments.first_format),
        (&arguments.second, arguments.second_format),
        &mut meter.hear(),
    );
    drop(meter);
    let at = difference.map_err(failure)?.map(|d| d.offset);
    let compared = Compared {
        equal: at.is_none(),
        first_difference: at,
    };
    if !form::for_program(arguments.output, &compared) {
        terminal::print(&match at {
            None => "the disks show the same\n".to_owned(),
            Some(at) => format!("the disks differ first at byte {at}\n"),
        });
    }
    Ok(match at {
        None => exit_code::SUCCESS,
        Some(_) => exit_code::FOUND,
    })
}
