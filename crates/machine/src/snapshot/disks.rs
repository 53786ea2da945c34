//! The disks of a snapshot.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use disk::{BlockBackend, Capture, CaptureTarget};

use super::files::{self, NewDirectory};
use super::{DiskFile, DiskKept, FileBelow, SnapshotError};
use crate::Disk;
use crate::machine::Inner;

/// A disk whose snapshot is about to be made.
pub(super) struct Prepared {
    name: String,
    described: Disk,
    file: DiskFile,
    disk: Arc<dyn BlockBackend>,
    target: Option<CaptureTarget>,
}

/// A disk whose snapshot is being made.
pub(super) struct Taken {
    /// How the machine has it now.
    pub described: Disk,
    file: DiskFile,
    /// The rest of its copy.
    rest: Option<Capture>,
}

/// Makes the files for the copies; the guest runs.
pub(super) fn prepare(
    machine: &Inner,
    directory: &NewDirectory,
) -> Result<Vec<Prepared>, SnapshotError> {
    let disks = machine.board().disks().into_iter().enumerate();
    disks
        .map(|(index, port)| {
            let (name, disk) = (files::disk(index), port.control.disk());
            let (file, target) = match port.disk.read_only {
                true => (refer(&port.disk)?, None),
                false => target(disk, &name, &directory.path().join(&name))?,
            };
            Ok(Prepared {
                disk: disk.clone(),
                name: port.name,
                described: port.disk,
                file,
                target,
            })
        })
        .collect()
}

fn refer(disk: &Disk) -> Result<DiskFile, SnapshotError> {
    let path = &disk.file;
    let (size, modified) = identity(path).map_err(SnapshotError::file("reading", path))?;
    let info = disk::manage::info(path, disk.format).map_err(SnapshotError::Disk)?;
    let below = info.backing.iter().map(|lower| below(&lower.file));
    Ok(DiskFile {
        kept: DiskKept::Referred,
        file: std::path::absolute(path).map_err(SnapshotError::file("reading", path))?,
        format: info.format,
        size,
        digest: None,
        modified_ns: Some(modified),
        below: below.collect::<Result<_, _>>()?,
    })
}

fn target(
    disk: &Arc<dyn BlockBackend>,
    name: &str,
    path: &Path,
) -> Result<(DiskFile, Option<CaptureTarget>), SnapshotError> {
    let Some(capturable) = disk.capturable() else {
        let text = format!("a disk ({}) cannot be captured", disk.describe());
        return Err(SnapshotError::Refused(text));
    };
    let target = capturable.prepare(path).map_err(SnapshotError::Disk)?;
    let below = target.below().iter().map(|path| below(path));
    let file = DiskFile {
        kept: DiskKept::Copied,
        file: name.into(),
        format: target.format(),
        size: 0,
        digest: None,
        modified_ns: None,
        below: below.collect::<Result<_, _>>()?,
    };
    Ok((file, Some(target)))
}

fn below(path: &Path) -> Result<FileBelow, SnapshotError> {
    let failed = SnapshotError::file("reading", path);
    let (size, modified_ns) = identity(path).map_err(failed)?;
    Ok(FileBelow {
        file: std::path::absolute(path).map_err(SnapshotError::file("reading", path))?,
        size,
        modified_ns,
    })
}

/// Size and time of change of a file or block device.
pub(super) fn identity(path: &Path) -> io::Result<(u64, i64)> {
    let mut file = files::open(path)?;
    let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    let metadata = file.metadata()?;
    let seconds = metadata.mtime().saturating_mul(1_000_000_000);
    Ok((size, seconds.saturating_add(metadata.mtime_nsec())))
}

/// Begins to copy the disks, whose devices stand.
pub(super) fn take(machine: &Inner, disks: Vec<Prepared>) -> Result<Vec<Taken>, SnapshotError> {
    let now = machine.board().disks();
    if !now
        .iter()
        .map(|d| &d.name)
        .eq(disks.iter().map(|d| &d.name))
    {
        let text = "a disk was attached or detached meanwhile; ask again";
        return Err(SnapshotError::Refused(text.into()));
    }
    let take = |prepared: Prepared| {
        let mut file = prepared.file;
        let rest = match (prepared.disk.capturable(), prepared.target) {
            (Some(disk), Some(target)) => {
                let copying = SnapshotError::file("copying the disk to", &file.file);
                let rest = disk.capture(target).map_err(copying)?;
                if rest.is_shared() {
                    file.kept = DiskKept::Cloned;
                }
                Some(rest)
            }
            _ => None,
        };
        Ok(Taken {
            described: prepared.described,
            file,
            rest,
        })
    };
    disks.into_iter().map(take).collect()
}

/// Copies the rest, makes it durable and notes its digests; the guest runs.
pub(super) fn finish(
    disks: Vec<Taken>,
    directory: &NewDirectory,
) -> Result<Vec<DiskFile>, SnapshotError> {
    let finish = |taken: Taken| {
        let mut disk = taken.file;
        let Some(rest) = taken.rest else {
            return Ok(disk);
        };
        let path = directory.path().join(&disk.file);
        let read = || {
            rest.finish()?;
            let file = File::open(&path)?;
            file.sync_all()?;
            let size = file.metadata()?.len();
            Ok((size, files::contents_digest(&file, size)?))
        };
        let (size, digest) = read().map_err(SnapshotError::file("writing", &path))?;
        (disk.size, disk.digest) = (size, Some(digest));
        Ok(disk)
    };
    disks.into_iter().map(finish).collect()
}
