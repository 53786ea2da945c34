//! Snapshots of volumes.

use std::fs;
use std::path::PathBuf;

use disk::manage::{self, Base};
use disk::{Format, Image, ImageOptions};
use serde::{Deserialize, Serialize};

use super::{SNAPSHOTS, Volumes, failed, in_use};
use crate::ImagesError;
use crate::files::{self, Kind};
use crate::staging::{self, Staging};

/// The description of a snapshot; one that was deleted has none.
const RECORD: &str = "snapshot.json";
const KIND: Kind = Kind {
    format: "holm-volume-snapshot",
    version: 1,
};
/// The disk's file.
const DISK: &str = "disk";
/// What tells the format of a deleted snapshot's disk.
const KEPT: &str = "kept.json";
/// A snapshot that would build on more files is made to build on the lowest.
const DEEPEST: usize = 8;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    volume: String,
    disk_format: Format,
    created: u64,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub id: String,
    /// The volume it was made of, which may be gone.
    pub volume: String,
    /// The file of its disk, which never changes.
    pub file: PathBuf,
    /// Format of the file.
    pub format: Format,
    /// Bytes of its disk.
    pub size: u64,
    /// Bytes that it takes on the host, without what it builds on.
    pub allocated: u64,
    /// What it builds on, the nearest first.
    pub below: Vec<PathBuf>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

/// A snapshot of a volume in use that its machine is making. Dropped, nothing
/// of it is left.
#[derive(Debug)]
pub struct Capture {
    staging: Staging,
    volume: String,
    snapshot: String,
}

impl Capture {
    /// The file that the machine is to make: an absolute path.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.staging.path().join(DISK)
    }
}

impl Volumes {
    /// Makes a snapshot of a volume that no machine writes. If there is one of
    /// this name of the same volume, that is the answer.
    ///
    /// # Errors
    /// [`ImagesError::InUse`]: use [`Self::begin_capture`];
    /// [`ImagesError::Exists`], no such volume, or the host's.
    pub fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Snapshot, ImagesError> {
        if let Some(there) = self.same_snapshot(volume, snapshot)? {
            return Ok(there);
        }
        let source = self.must(volume)?;
        let capture = self.begin_capture(volume, snapshot)?;
        // Shared: nobody can begin to write it meanwhile.
        let lock = Image::open(&ImageOptions::read(&source.file, Some(source.format)))
            .map_err(|e| in_use(volume, e))?;
        let file = capture.file();
        files::copy(&source.file, &file).map_err(failed(&file, "copy the volume to it"))?;
        manage::adopt_copy(&file, &source.file, Some(source.format))?;
        drop(lock);
        self.finish_capture(capture, source.format)
    }

    /// Begins a snapshot of a volume in use: its machine is to copy its disk
    /// as it is at one instant to [`Capture::file`] (`CopyDisk` of its control
    /// socket), then [`Self::finish_capture`] keeps it.
    ///
    /// # Errors
    /// No such volume, [`ImagesError::Exists`], or the host's.
    pub fn begin_capture(&self, volume: &str, snapshot: &str) -> Result<Capture, ImagesError> {
        self.must_record(volume)?;
        let directory = self.directory_of_snapshot(snapshot)?;
        if directory.exists() {
            return Err(taken(snapshot));
        }
        let parent = self.snapshots_directory();
        let staging = Staging::begin(&parent).map_err(failed(&parent, "make a snapshot in it"))?;
        Ok(Capture {
            staging,
            volume: volume.into(),
            snapshot: snapshot.into(),
        })
    }

    /// Keeps what a machine has made; `format` is what it said. A copy that
    /// builds on many files is joined with all but the lowest of them.
    ///
    /// # Errors
    /// No usable disk was made, or the host's; then there is no snapshot.
    pub fn finish_capture(
        &self,
        capture: Capture,
        format: Format,
    ) -> Result<Snapshot, ImagesError> {
        let Capture {
            staging,
            volume,
            snapshot,
        } = capture;
        let file = staging.path().join(DISK);
        let below = manage::info(&file, Some(format))?.backing;
        if let Some(lowest) = below.last().filter(|_| below.len() > DEEPEST) {
            let base = Base::File(lowest.file.clone(), Some(lowest.format));
            manage::rebase(&file, Some(format), &base, false, &mut |_, _| {})?;
        }
        let record = Record {
            volume: volume.clone(),
            disk_format: format,
            created: files::now(),
        };
        KIND.write(&staging.path().join(RECORD), &record)?;
        let directory = self.directory_of_snapshot(&snapshot)?;
        match staging.commit(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let there = self.same_snapshot(&volume, &snapshot)?;
                there.ok_or_else(|| taken(&snapshot))
            }
            other => {
                other.map_err(failed(&directory, "make it"))?;
                self.must_snapshot(&snapshot)
            }
        }
    }

    fn same_snapshot(&self, volume: &str, id: &str) -> Result<Option<Snapshot>, ImagesError> {
        match self.get_snapshot(id)? {
            Some(there) if there.volume != volume => Err(ImagesError::Exists {
                what: "snapshot",
                id: id.into(),
                why: format!("it is of the volume {}", there.volume),
            }),
            other => Ok(other),
        }
    }

    /// A snapshot; `None`: there is none of this name.
    ///
    /// # Errors
    /// A record or disk that cannot be read.
    pub fn get_snapshot(&self, id: &str) -> Result<Option<Snapshot>, ImagesError> {
        let directory = self.directory_of_snapshot(id)?;
        let Some(record): Option<Record> = KIND.read(&directory.join(RECORD))? else {
            return Ok(None);
        };
        let file = directory.join(DISK);
        let info = manage::info(&file, Some(record.disk_format))?;
        Ok(Some(Snapshot {
            id: id.into(),
            volume: record.volume,
            format: record.disk_format,
            size: info.size,
            allocated: info.allocated,
            below: info.backing.into_iter().map(|lower| lower.file).collect(),
            created: record.created,
            file,
        }))
    }

    /// All snapshots, by name.
    ///
    /// # Errors
    /// As [`Self::get_snapshot`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, ImagesError> {
        let mut found = Vec::new();
        for id in files::entries(&self.snapshots_directory())? {
            found.extend(self.get_snapshot(&id)?);
        }
        Ok(found)
    }

    /// Deletes a snapshot; nothing if there is none. Its disk stays as long as
    /// a volume or another snapshot builds on it.
    ///
    /// # Errors
    /// The host's.
    pub fn delete_snapshot(&self, id: &str) -> Result<(), ImagesError> {
        let _lock = self.lock()?;
        let directory = self.directory_of_snapshot(id)?;
        let record = directory.join(RECORD);
        if record.exists() {
            fs::rename(&record, directory.join(KEPT))
                .and_then(|()| staging::sync_directory(&directory))
                .map_err(failed(&directory, "delete it"))?;
        }
        self.sweep_snapshots()
    }

    /// Removes deleted snapshots on which nothing builds any more.
    pub(super) fn sweep_snapshots(&self) -> Result<(), ImagesError> {
        loop {
            let kept = self.kept_files()?;
            if kept.is_empty() {
                return Ok(());
            }
            let used = self.built_on()?;
            let unused = kept.into_iter().find(|(file, _)| !used.contains(file));
            // Each that goes may free another below it.
            let Some(directory) = unused.as_ref().and_then(|(file, _)| file.parent()) else {
                return Ok(());
            };
            staging::remove(directory).map_err(failed(directory, "remove it"))?;
        }
    }

    /// The disks of deleted snapshots.
    pub(super) fn kept_files(&self) -> Result<Vec<(PathBuf, Format)>, ImagesError> {
        let mut kept = Vec::new();
        for id in files::entries(&self.snapshots_directory())? {
            let directory = self.directory_of_snapshot(&id)?;
            if let Some(record) = KIND.read::<Record>(&directory.join(KEPT))? {
                kept.push((directory.join(DISK), record.disk_format));
            }
        }
        Ok(kept)
    }

    pub(super) fn must_snapshot(&self, id: &str) -> Result<Snapshot, ImagesError> {
        self.get_snapshot(id)?.ok_or_else(|| ImagesError::Missing {
            what: "snapshot",
            id: id.into(),
        })
    }

    pub(super) fn snapshots_directory(&self) -> PathBuf {
        self.directory.join(SNAPSHOTS)
    }

    fn directory_of_snapshot(&self, id: &str) -> Result<PathBuf, ImagesError> {
        Ok(self.snapshots_directory().join(files::name(id)?))
    }
}

fn taken(id: &str) -> ImagesError {
    ImagesError::Exists {
        what: "snapshot",
        id: id.into(),
        why: "it may have been deleted while something builds on it".into(),
    }
}
