//! Disks of machines, and snapshots of them.
//!
//! A volume is a directory with `volume.json` and the disk file that it names.
//! A volume on an image or on a snapshot is a qcow2 overlay, made at once
//! whatever its size; an empty one is a sparse raw file. A snapshot is a copy
//! of what the volume has itself: it builds on the same image, never on the
//! volume, so that either can be deleted first, and chains do not grow with
//! the number of snapshots. `volume.json` is written last and is what counts:
//! files that it does not name are swept away.
//!
//! Every operation may be repeated after a crash at any of its steps.

mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use disk::manage::{self, CreateOptions};
use disk::{DiskError, Format};
use serde::{Deserialize, Serialize};

use crate::ImagesError;
use crate::files::{self, Kind};
use crate::staging::{self, Staging};

pub use snapshot::{Capture, Snapshot};

/// The description of a volume.
const RECORD: &str = "volume.json";
const KIND: Kind = Kind {
    format: "holm-volume",
    version: 1,
};
/// The directory of snapshots among those of volumes.
const SNAPSHOTS: &str = "snapshots";

/// What a volume held when it was made, or when it was last rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Origin {
    /// Zeroes.
    Empty,
    /// An image's disk, which must never change.
    Image {
        /// Its file.
        file: PathBuf,
        /// Format of the file.
        format: Format,
    },
    /// A snapshot.
    Snapshot(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Name of the disk's file in the volume's directory.
    file: String,
    disk_format: Format,
    origin: Origin,
    created: u64,
    /// The last rollback, by which a repetition of it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollback: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its name.
    pub id: String,
    /// The file to open it by; another one after a rollback.
    pub file: PathBuf,
    /// The format to open it as.
    pub format: Format,
    /// Bytes of its disk.
    pub size: u64,
    /// Bytes that it takes on the host, without what it builds on.
    pub allocated: u64,
    /// What it builds on, the nearest first.
    pub below: Vec<PathBuf>,
    /// What it was made from.
    pub origin: Origin,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

/// A directory of volumes and snapshots.
#[derive(Clone, Debug)]
pub struct Volumes {
    directory: PathBuf,
}

impl Volumes {
    /// Opens or makes the directory and removes what killed operations left.
    ///
    /// # Errors
    /// [`ImagesError::Host`].
    pub fn open(directory: &Path) -> Result<Self, ImagesError> {
        files::make_directory(&directory.join(SNAPSHOTS))?;
        let volumes = Self {
            directory: files::absolute(directory)?,
        };
        volumes.sweep()?;
        Ok(volumes)
    }

    /// Removes what killed operations left, and deleted snapshots on which
    /// nothing builds any more. Safe at any time.
    ///
    /// # Errors
    /// [`ImagesError::Host`].
    pub fn sweep(&self) -> Result<(), ImagesError> {
        let _lock = self.lock()?;
        for directory in [self.directory.clone(), self.snapshots_directory()] {
            staging::sweep(&directory).map_err(ImagesError::host(directory, "tidy it"))?;
        }
        for id in self.ids()? {
            if let Some(record) = self.record(&id)? {
                self.tidy(&id, &record)?;
            }
        }
        self.sweep_snapshots()
    }

    /// Makes a volume. If there is one of this name with the same origin, that
    /// is the answer.
    ///
    /// `size` is in bytes; `None`: as large as what it is made from. It is
    /// never smaller than that.
    ///
    /// # Errors
    /// [`ImagesError::Exists`] for one with another origin, a size that does
    /// not fit, a missing snapshot, a disk that cannot be used, or the host's.
    pub fn create(
        &self,
        id: &str,
        origin: &Origin,
        size: Option<u64>,
    ) -> Result<Volume, ImagesError> {
        let directory = self.directory_of(id)?;
        if let Some(there) = self.get(id)? {
            return match there.origin == *origin {
                true => Ok(there),
                false => Err(ImagesError::Exists {
                    what: "volume",
                    id: id.into(),
                    why: "it was made from something else".into(),
                }),
            };
        }
        let staging = Staging::begin(&self.directory).map_err(failed(&directory, "make it"))?;
        let record = self.fill(staging.path(), 1, origin, size)?;
        KIND.write(&staging.path().join(RECORD), &record)?;
        match staging.commit(&directory) {
            // Another one made it meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.create(id, origin, size)
            }
            other => {
                other.map_err(failed(&directory, "make it"))?;
                self.must(id)
            }
        }
    }

    /// Makes the disk file of a volume.
    fn fill(
        &self,
        directory: &Path,
        number: u64,
        origin: &Origin,
        size: Option<u64>,
    ) -> Result<Record, ImagesError> {
        let (format, options) = match self.backing(origin)? {
            None => {
                let size = size.ok_or_else(|| {
                    ImagesError::Refused("an empty volume needs a size in bytes".into())
                })?;
                (Format::Raw, CreateOptions::new(Format::Raw, size))
            }
            Some((file, format)) => {
                let below = manage::info(&file, Some(format))?.size;
                if let Some(size) = size.filter(|size| *size < below) {
                    return Err(ImagesError::Refused(format!(
                        "a volume of {size} bytes is smaller than what it is made from, which \
                         has {below}; ask for at least as much"
                    )));
                }
                let mut options = CreateOptions::overlay(file, Some(format));
                options.size = size;
                (Format::Qcow2, options)
            }
        };
        let record = Record {
            file: format!("disk-{number}.{}", format.name()),
            disk_format: format,
            origin: origin.clone(),
            created: files::now(),
            rollback: None,
        };
        manage::create(&directory.join(&record.file), &options)?;
        Ok(record)
    }

    /// The file that a volume of this origin builds on.
    fn backing(&self, origin: &Origin) -> Result<Option<(PathBuf, Format)>, ImagesError> {
        match origin {
            Origin::Empty => Ok(None),
            Origin::Image { file, format } => Ok(Some((files::absolute(file)?, *format))),
            Origin::Snapshot(id) => {
                let snapshot = self.must_snapshot(id)?;
                Ok(Some((snapshot.file, snapshot.format)))
            }
        }
    }

    /// A volume, which may be in use; `None`: there is none of this name.
    ///
    /// # Errors
    /// A record or disk that cannot be read.
    pub fn get(&self, id: &str) -> Result<Option<Volume>, ImagesError> {
        let Some(record) = self.record(id)? else {
            return Ok(None);
        };
        let file = self.directory_of(id)?.join(&record.file);
        let info = manage::info(&file, Some(record.disk_format))?;
        Ok(Some(Volume {
            id: id.into(),
            format: record.disk_format,
            size: info.size,
            allocated: info.allocated,
            below: info.backing.into_iter().map(|lower| lower.file).collect(),
            origin: record.origin,
            created: record.created,
            file,
        }))
    }

    /// All volumes, by name. One whose files cannot be read is left out, and
    /// its name and the reason are in the second part.
    ///
    /// # Errors
    /// [`ImagesError::Host`]: the directory cannot be listed.
    pub fn list(&self) -> Result<(Vec<Volume>, BTreeMap<String, ImagesError>), ImagesError> {
        let (mut found, mut broken) = (Vec::new(), BTreeMap::new());
        for id in self.ids()? {
            match self.get(&id) {
                Ok(volume) => found.extend(volume),
                Err(error) => {
                    broken.insert(id, error);
                }
            }
        }
        Ok((found, broken))
    }

    /// Makes a volume that no machine uses larger; nothing if it is as large
    /// already. (One in use grows by its machine: `GrowDisk`.)
    ///
    /// # Errors
    /// No such volume, one in use or larger, or the host's.
    pub fn grow(&self, id: &str, size: u64) -> Result<Volume, ImagesError> {
        let volume = self.must(id)?;
        if size < volume.size {
            return Err(ImagesError::Refused(format!(
                "volume {id} has {} bytes; volumes do not become smaller",
                volume.size
            )));
        }
        if size > volume.size {
            let grown = manage::resize(&volume.file, Some(volume.format), size, false);
            grown.map_err(|e| in_use(id, e))?;
        }
        self.must(id)
    }

    /// Deletes a volume that no machine uses; nothing if there is none.
    ///
    /// # Errors
    /// [`ImagesError::InUse`], or the host's.
    pub fn delete(&self, id: &str) -> Result<(), ImagesError> {
        let _lock = self.lock()?;
        let directory = self.directory_of(id)?;
        if let Some(record) = self.record(id)? {
            let file = directory.join(&record.file);
            if file.exists() && manage::in_use(&file)? {
                return Err(in_use(
                    id,
                    DiskError::InUse {
                        path: file,
                        for_writing: true,
                    },
                ));
            }
        }
        staging::remove(&directory).map_err(failed(&directory, "remove it"))?;
        self.sweep_snapshots()
    }

    /// Lets a volume that no machine uses show what a snapshot holds, at once.
    /// What was written since is lost; a volume that has grown keeps its size.
    /// `token` names this rollback: repeated with the same one, nothing is
    /// done.
    ///
    /// # Errors
    /// No such volume or snapshot, a volume in use, or the host's.
    pub fn rollback(&self, id: &str, snapshot: &str, token: &str) -> Result<Volume, ImagesError> {
        let _lock = self.lock()?;
        let old = self.must_record(id)?;
        let now = self.must(id)?;
        if old.rollback.as_deref() == Some(token) {
            self.tidy(id, &old)?;
            return Ok(now);
        }
        if manage::in_use(&now.file)? {
            let file = now.file.clone();
            return Err(in_use(
                id,
                DiskError::InUse {
                    path: file,
                    for_writing: true,
                },
            ));
        }
        let directory = self.directory_of(id)?;
        self.tidy(id, &old)?;
        let goal = self.must_snapshot(snapshot)?;
        let origin = Origin::Snapshot(snapshot.into());
        let size = now.size.max(goal.size);
        let mut record = self.fill(&directory, number(&old.file) + 1, &origin, Some(size))?;
        record.created = old.created;
        record.rollback = Some(token.into());
        KIND.write(&directory.join(RECORD), &record)?;
        self.tidy(id, &record)?;
        self.sweep_snapshots()?;
        self.must(id)
    }

    /// Every file that volumes and snapshots build on, their own left out: the
    /// images that must stay.
    ///
    /// # Errors
    /// A disk that cannot be read: then it is not known what it needs.
    pub fn images_in_use(&self) -> Result<BTreeSet<PathBuf>, ImagesError> {
        let mut used = self.built_on()?;
        used.retain(|file| !file.starts_with(&self.directory));
        Ok(used)
    }

    /// Every file that a volume or a snapshot builds on.
    fn built_on(&self) -> Result<BTreeSet<PathBuf>, ImagesError> {
        let mut used = BTreeSet::new();
        for id in self.ids()? {
            used.extend(self.get(&id)?.into_iter().flat_map(|v| v.below));
        }
        for snapshot in self.snapshots()? {
            used.extend(snapshot.below);
        }
        for (file, format) in self.kept_files()? {
            let info = manage::info(&file, Some(format))?;
            used.extend(info.backing.into_iter().map(|lower| lower.file));
        }
        Ok(used)
    }

    /// Keeps others from removing files, while it lives.
    fn lock(&self) -> Result<File, ImagesError> {
        files::lock(&self.directory.join(".lock"))
    }

    /// Removes the files of a volume's directory that its record does not name.
    fn tidy(&self, id: &str, record: &Record) -> Result<(), ImagesError> {
        let directory = self.directory_of(id)?;
        let listing = fs::read_dir(&directory).map_err(failed(&directory, "list it"))?;
        for entry in listing {
            let path = entry.map_err(failed(&directory, "list it"))?.path();
            let name = path.file_name().unwrap_or_default();
            if name != RECORD && name != record.file.as_str() {
                files::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn ids(&self) -> Result<Vec<String>, ImagesError> {
        let mut ids = files::entries(&self.directory)?;
        ids.retain(|id| id != SNAPSHOTS);
        Ok(ids)
    }

    fn directory_of(&self, id: &str) -> Result<PathBuf, ImagesError> {
        match files::name(id)? {
            SNAPSHOTS => Err(ImagesError::BadName(id.into())),
            name => Ok(self.directory.join(name)),
        }
    }

    fn record(&self, id: &str) -> Result<Option<Record>, ImagesError> {
        let path = self.directory_of(id)?.join(RECORD);
        let record: Option<Record> = KIND.read(&path)?;
        if let Some(record) = &record
            && files::name(&record.file).is_err()
        {
            let reason = format!("{:?} is no file of the volume's directory", record.file);
            return Err(ImagesError::Malformed { path, reason });
        }
        Ok(record)
    }

    fn must_record(&self, id: &str) -> Result<Record, ImagesError> {
        self.record(id)?.ok_or_else(|| missing(id))
    }

    fn must(&self, id: &str) -> Result<Volume, ImagesError> {
        self.get(id)?.ok_or_else(|| missing(id))
    }
}

fn missing(id: &str) -> ImagesError {
    ImagesError::Missing {
        what: "volume",
        id: id.into(),
    }
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> ImagesError {
    ImagesError::host(path, doing)
}

/// Names the volume where its disk is in use.
fn in_use(id: &str, error: DiskError) -> ImagesError {
    match error {
        DiskError::InUse { .. } => ImagesError::InUse {
            what: format!("volume {id}"),
            by: " by a running machine".into(),
        },
        other => other.into(),
    }
}

/// The number in the name of a disk's file.
fn number(file: &str) -> u64 {
    let digits = file.strip_prefix("disk-").unwrap_or_default();
    let digits = digits.split('.').next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}
