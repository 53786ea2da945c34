//! The disks of a snapshot.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use disk::{BlockBackend, Capture, SECTOR};

use super::files::{self, NewDirectory};
use super::{DiskFile, DiskKept, SnapshotError};
use crate::description::Disk;
use crate::machine::Inner;

/// A disk whose snapshot is being made.
pub(super) struct Taken {
    file: DiskFile,
    /// The rest of its copy.
    rest: Option<Capture>,
}

/// Before the guest stands: what the disks still have to write would be
/// written while it does, if their blocks are to be shared.
pub(super) fn prepare(machine: &Inner) {
    for file in machine.board().disks().iter().filter_map(|d| d.raw_file()) {
        // A failure is met again, and told, when the copy is made.
        let _ = file.sync_data();
    }
}

/// Begins to copy the disks of a machine whose devices stand.
pub(super) fn take(machine: &Inner, directory: &NewDirectory) -> Result<Vec<Taken>, SnapshotError> {
    let described = machine.description().disks.iter();
    let disks = described.zip(machine.board().disks()).enumerate();
    disks
        .map(|(index, (described, disk))| match described.read_only {
            true => refer(&described.file),
            false => copy(described, disk, &files::disk(index), directory),
        })
        .collect()
}

fn refer(path: &Path) -> Result<Taken, SnapshotError> {
    let (size, modified) = identity(path).map_err(SnapshotError::file("reading", path))?;
    let file = DiskFile {
        kept: DiskKept::Referred,
        file: std::path::absolute(path).map_err(SnapshotError::file("reading", path))?,
        size,
        digest: None,
        modified_ns: Some(modified),
    };
    Ok(Taken { file, rest: None })
}

/// Size and time of change of a file or block device.
pub(super) fn identity(path: &Path) -> io::Result<(u64, i64)> {
    let mut file = File::open(path)?;
    let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    let metadata = file.metadata()?;
    let seconds = metadata.mtime().saturating_mul(1_000_000_000);
    Ok((size, seconds.saturating_add(metadata.mtime_nsec())))
}

fn copy(
    described: &Disk,
    disk: &Arc<dyn BlockBackend>,
    name: &str,
    directory: &NewDirectory,
) -> Result<Taken, SnapshotError> {
    let target = directory.create(name)?;
    let copying = SnapshotError::file("copying the disk", &described.file);
    let rest = disk.capture(target).map_err(copying)?;
    let file = DiskFile {
        kept: match rest.is_shared() {
            true => DiskKept::Cloned,
            false => DiskKept::Copied,
        },
        file: name.into(),
        size: disk.info().sectors * SECTOR,
        digest: None,
        modified_ns: None,
    };
    Ok(Taken {
        file,
        rest: Some(rest),
    })
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
        let digest = rest.finish().and_then(|()| {
            let file = File::open(&path)?;
            file.sync_all()?;
            files::contents_digest(&file, disk.size)
        });
        disk.digest = Some(digest.map_err(SnapshotError::file("writing", &path))?);
        Ok(disk)
    };
    disks.into_iter().map(finish).collect()
}
