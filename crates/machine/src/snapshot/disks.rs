//! The disks of a snapshot.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::files::{self, NewDirectory};
use super::{DiskFile, DiskKept, FileBelow, SnapshotError};
use crate::Disk;
use crate::copy::{Copied, copy_sparse};
use crate::machine::Inner;

/// Takes the disks of a machine whose devices stand.
pub(super) fn take(
    machine: &Inner,
    directory: &NewDirectory,
) -> Result<Vec<DiskFile>, SnapshotError> {
    let now = machine.described_now();
    let disks = now.disks.iter().enumerate();
    disks
        .map(|(index, disk)| match disk.read_only {
            true => refer(&disk.file),
            false => copy(disk, &files::disk(index), directory),
        })
        .collect()
}

fn refer(path: &Path) -> Result<DiskFile, SnapshotError> {
    let (size, modified) = identity(path).map_err(SnapshotError::file("reading", path))?;
    Ok(DiskFile {
        kept: DiskKept::Referred,
        file: std::path::absolute(path).map_err(SnapshotError::file("reading", path))?,
        size,
        digest: None,
        modified_ns: Some(modified),
        below: Vec::new(),
    })
}

/// Size and time of change of a file or block device.
pub(super) fn identity(path: &Path) -> io::Result<(u64, i64)> {
    let mut file = File::open(path)?;
    let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    let metadata = file.metadata()?;
    let seconds = metadata.mtime().saturating_mul(1_000_000_000);
    Ok((size, seconds.saturating_add(metadata.mtime_nsec())))
}

fn copy(disk: &Disk, name: &str, directory: &NewDirectory) -> Result<DiskFile, SnapshotError> {
    let from = disk.file.as_path();
    let target = directory.create(name)?;
    let source = File::open(from).map_err(SnapshotError::file("reading", from))?;
    let (kept, size) = match copy_sparse(&source, &target) {
        Ok((Copied::Shared, size)) => (DiskKept::Cloned, size),
        Ok((Copied::Bytes, size)) => (DiskKept::Copied, size),
        Err(e) => return Err(SnapshotError::file("copying the disk", from)(e)),
    };
    let below = below(disk)?;
    disk::manage::adopt_copy(&directory.path().join(name), from, disk.format)
        .map_err(SnapshotError::Disk)?;
    Ok(DiskFile {
        kept,
        file: name.into(),
        size,
        digest: None,
        modified_ns: None,
        below,
    })
}

/// The files that an image builds on.
fn below(disk: &Disk) -> Result<Vec<FileBelow>, SnapshotError> {
    let info = disk::manage::info(&disk.file, disk.format);
    let lower = info.map_err(SnapshotError::Disk)?.backing.into_iter();
    lower
        .map(|lower| {
            let file = lower.file;
            let failed = SnapshotError::file("reading", &file);
            let (size, modified_ns) = identity(&file).map_err(failed)?;
            let path = std::path::absolute(&file);
            Ok(FileBelow {
                file: path.map_err(SnapshotError::file("reading", &file))?,
                size,
                modified_ns,
            })
        })
        .collect()
}

/// Makes the copies durable and notes their digests; the guest runs.
pub(super) fn finish(
    disks: &mut [DiskFile],
    directory: &NewDirectory,
) -> Result<(), SnapshotError> {
    for disk in disks.iter_mut().filter(|d| d.kept != DiskKept::Referred) {
        let path = directory.path().join(&disk.file);
        let digest = File::open(&path).and_then(|file| {
            file.sync_all()?;
            files::contents_digest(&file, disk.size)
        });
        disk.digest = Some(digest.map_err(SnapshotError::file("writing", &path))?);
    }
    Ok(())
}
