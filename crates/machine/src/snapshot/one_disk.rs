//! A copy of one disk as it is at one instant, while the guest runs.

use std::path::Path;
use std::time::{Duration, Instant};

use disk::{CapturableDisk, Format};

use super::SnapshotError;
use crate::machine::Inner;

/// A copy of a disk that was made.
#[derive(Clone, Copy, Debug)]
pub struct DiskCopy {
    /// Format of the file.
    pub format: Format,
    /// How long the guest stood.
    pub stopped: Duration,
    /// How long all of it took.
    pub took: Duration,
}

/// Copies a disk to a new file: raw, or of an overlay what it has itself, as
/// an overlay on the same file. The guest stands for the instant in which the
/// copy begins; what it overwrites later is copied first.
///
/// # Errors
/// No such disk, a file that exists, another copy or snapshot that is being
/// made, or the host's error; then there is no file.
pub(crate) fn copy_disk(
    machine: &Inner,
    name: &str,
    goal: &Path,
) -> Result<DiskCopy, SnapshotError> {
    let start = Instant::now();
    let Some(_one) = machine.ledger().try_lock() else {
        return Err(SnapshotError::Refused(
            "a snapshot of this machine is being made; ask again when it is done".into(),
        ));
    };
    let disks = machine.board().disks();
    let port = disks.into_iter().find(|port| port.name == name);
    let port = port.ok_or_else(|| {
        SnapshotError::Refused(format!(
            "the machine has no disk {name:?}; `holm show` lists them"
        ))
    })?;
    if port.disk.read_only {
        return Err(SnapshotError::Refused(format!(
            "disk {name:?} is read-only: its file never changes, so copy that"
        )));
    }
    let disk = port.control.disk();
    let Some(capturable) = disk.capturable() else {
        let text = format!("a disk ({}) cannot be copied", disk.describe());
        return Err(SnapshotError::Refused(text));
    };
    if goal.exists() {
        return Err(SnapshotError::Disk(disk::DiskError::Exists(goal.into())));
    }
    let copied = copy(machine, capturable, goal);
    if copied.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(goal);
    }
    let (format, stopped) = copied?;
    let made = DiskCopy {
        format,
        stopped,
        took: start.elapsed(),
    };
    tracing::info!(name, ?made, "disk copied");
    Ok(made)
}

fn copy(
    machine: &Inner,
    disk: &CapturableDisk,
    goal: &Path,
) -> Result<(Format, Duration), SnapshotError> {
    let failed = || SnapshotError::file("copying the disk to", goal);
    let target = disk.prepare(goal).map_err(SnapshotError::Disk)?;
    let format = target.format();
    let (rest, stopped) = {
        let _one = machine.operation();
        if machine.control().has_ended() {
            return Err(SnapshotError::Refused("the machine has ended".into()));
        }
        let (rest, stopped) = machine
            .standing(|| disk.capture(target))
            .map_err(|e| SnapshotError::Refused(e.to_string()))?;
        (rest.map_err(failed())?, stopped)
    };
    rest.finish().map_err(failed())?;
    let synced = std::fs::File::open(goal).and_then(|file| file.sync_all());
    synced.map_err(failed())?;
    Ok((format, stopped))
}
