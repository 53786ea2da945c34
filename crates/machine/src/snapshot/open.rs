//! Reading a snapshot, and what it builds on.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use arch::CpuIdentity;
use memory::{GuestRam, Layer, MemoryError, PAGE_SIZE, PageSet};

use super::capture::DEPTH;
use super::files::PageList;
use super::ledger::{Last, Ledger};
use super::manifest::{self, Manifest};
use super::{DiskKept, SnapshotError, disks, files};
use crate::description::Description;
use crate::state::MachineState;

/// A snapshot that can be restored: its manifest and those it builds on were
/// read and fit each other, and all files are there in their sizes.
pub struct Snapshot {
    directory: PathBuf,
    manifest: Manifest,
    /// From the full snapshot up to this one.
    layers: Vec<FoundLayer>,
}

struct FoundLayer {
    path: PathBuf,
    file: File,
    list: PageList,
    digest: String,
}

impl Snapshot {
    /// Opens a snapshot. What it says of its memory and disks is compared with
    /// their sizes, and with their contents by [`Self::check_contents`].
    ///
    /// # Errors
    /// [`SnapshotError`]: what is missing, damaged or not known.
    pub fn open(directory: &Path) -> Result<Self, SnapshotError> {
        let directory =
            std::path::absolute(directory).map_err(SnapshotError::file("reading", directory))?;
        let manifest = Manifest::read(&directory)?;
        let unfit = |reason: String| SnapshotError::Unfit {
            path: directory.clone(),
            reason,
        };
        manifest.machine.check().map_err(|e| unfit(e.to_string()))?;
        let size = manifest.memory.size;
        if size != manifest.machine.memory || manifest.disks.len() != manifest.machine.disks.len() {
            return Err(unfit("its parts do not belong to one machine".into()));
        }
        let mut layers = vec![layer(&directory, &manifest)?];
        let (mut at, mut below) = (directory.clone(), manifest.clone());
        while let Some(parent) = &below.parent {
            if layers.len() == DEPTH {
                return Err(unfit(format!("it builds on more than {DEPTH} others")));
            }
            let (place, found) = find_parent(&at, parent)?;
            let other = found.cpu.vendor != manifest.cpu.vendor
                || found.cpu.features != manifest.cpu.features;
            if found.memory.size != size || other {
                return Err(unfit(format!(
                    "it builds on {}, which is of another machine",
                    place.display()
                )));
            }
            layers.push(layer(&place, &found)?);
            (at, below) = (place, found);
        }
        layers.reverse();
        let snapshot = Self {
            directory,
            manifest,
            layers,
        };
        snapshot.check_disks()?;
        Ok(snapshot)
    }

    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How many snapshots it consists of: 1 if it is a full one.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The file with a disk's contents. It belongs to the snapshot: a machine
    /// that may write gets a copy.
    #[must_use]
    pub fn disk(&self, index: usize) -> Option<PathBuf> {
        let disk = self.manifest.disks.get(index)?;
        Some(self.directory.join(&disk.file))
    }

    /// Reads everything and compares it with the digests. Files that are only
    /// referred to have none.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::File`].
    pub fn check_contents(&self) -> Result<(), SnapshotError> {
        for layer in &self.layers {
            let found = files::pages_digest(&layer.file, &layer.list.pages)
                .map_err(SnapshotError::file("reading", &layer.path))?;
            same(&layer.path, &found, &layer.digest)?;
        }
        for disk in &self.manifest.disks {
            let Some(digest) = &disk.digest else { continue };
            let path = self.directory.join(&disk.file);
            let found = files::open(&path)
                .and_then(|file| files::contents_digest(&file, disk.size))
                .map_err(SnapshotError::file("reading", &path))?;
            same(&path, &found, digest)?;
        }
        self.state().map(drop)
    }

    /// Whether a machine so described can go on with it.
    ///
    /// # Errors
    /// [`SnapshotError::Unfit`].
    pub(crate) fn fits(&self, description: &Description) -> Result<(), SnapshotError> {
        let shape = |d: &Description| {
            let read_only: Vec<bool> = d.disks.iter().map(|disk| disk.read_only).collect();
            (d.cpus, d.memory, d.cpu_model, read_only, d.nics.len())
        };
        if shape(description) == shape(&self.manifest.machine) {
            return Ok(());
        }
        Err(self.unfit("the machine to restore it in has other CPUs, memory, disks or cards"))
    }

    /// Whether its guest can go on with this CPU.
    ///
    /// # Errors
    /// [`SnapshotError::Unfit`].
    pub(crate) fn fits_cpu(&self, here: &CpuIdentity) -> Result<(), SnapshotError> {
        let fits = self.manifest.cpu.check(here);
        fits.map_err(|mismatch| self.unfit(mismatch.to_string()))
    }

    fn unfit(&self, reason: impl Into<String>) -> SnapshotError {
        SnapshotError::Unfit {
            path: self.directory.clone(),
            reason: reason.into(),
        }
    }

    /// The state of CPUs and devices.
    pub(crate) fn state(&self) -> Result<MachineState, SnapshotError> {
        let path = self.directory.join(files::STATE);
        let described = &self.manifest.state;
        let bytes = files::read(&path, described.size)?;
        same(&path, &manifest::digest(&bytes), &described.digest)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| SnapshotError::damaged(&path, e.to_string()))?;
        MachineState::from_json(text).map_err(|e| SnapshotError::damaged(&path, e.to_string()))
    }

    /// RAM with the snapshot's contents, read when it is used.
    pub(crate) fn ram(&self, low_limit: u64) -> Result<std::sync::Arc<GuestRam>, MemoryError> {
        let layers: Vec<Layer<'_>> = self
            .layers
            .iter()
            .map(|layer| Layer {
                file: &layer.file,
                pages: &layer.list.pages,
                zero: &layer.list.zero,
            })
            .collect();
        GuestRam::from_layers(self.manifest.memory.size, low_limit, &layers)
    }

    /// What the restored machine knows of its pages.
    pub(crate) fn ledger(&self) -> Ledger {
        let mut written = PageSet::none(self.manifest.memory.size / PAGE_SIZE);
        for layer in &self.layers {
            written.union(&layer.list.pages);
        }
        let last = Last {
            id: self.manifest.id.clone(),
            directory: self.directory.clone(),
            depth: self.layers.len(),
        };
        Ledger::restored(written, last)
    }

    fn check_disks(&self) -> Result<(), SnapshotError> {
        for (disk, described) in self.manifest.disks.iter().zip(&self.manifest.machine.disks) {
            let path = self.directory.join(&disk.file);
            let (size, modified) =
                disks::identity(&path).map_err(SnapshotError::file("reading", &path))?;
            if size != disk.size {
                let what = format!("has {size} bytes instead of {}", disk.size);
                return Err(SnapshotError::damaged(&path, what));
            }
            let fits = match disk.kept {
                DiskKept::Referred => described.read_only,
                DiskKept::Copied | DiskKept::Cloned => is_name(&disk.file),
            };
            if !fits {
                return Err(self.unfit(format!("it has a disk at {}", disk.file.display())));
            }
            let changed = |path: &Path| {
                let path = path.display();
                self.unfit(format!(
                    "the disk {path} has changed since; bring the old one back"
                ))
            };
            if disk.modified_ns.is_some_and(|then| then != modified) {
                return Err(changed(&path));
            }
            for below in &disk.below {
                let now = disks::identity(&below.file)
                    .map_err(SnapshotError::file("reading", &below.file))?;
                if now != (below.size, below.modified_ns) {
                    return Err(changed(&below.file));
                }
            }
        }
        Ok(())
    }
}

/// Whether a path is the name of a file and leads nowhere else.
fn is_name(path: &Path) -> bool {
    let mut parts = path.components();
    matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}

fn same(path: &Path, found: &str, expected: &str) -> Result<(), SnapshotError> {
    match found == expected {
        true => Ok(()),
        false => Err(SnapshotError::damaged(
            path,
            "has other contents than when it was made",
        )),
    }
}

fn layer(directory: &Path, manifest: &Manifest) -> Result<FoundLayer, SnapshotError> {
    let memory = &manifest.memory;
    let list = directory.join(files::PAGES);
    let size = files::open(&list)
        .and_then(|file| file.metadata())
        .map_err(SnapshotError::file("reading", &list))?
        .len();
    if size / 16 > memory.size / PAGE_SIZE {
        return Err(SnapshotError::damaged(&list, "is too long"));
    }
    let bytes = files::read(&list, size)?;
    same(&list, &manifest::digest(&bytes), &memory.list_digest)?;
    let list_of = PageList::from_bytes(&bytes, memory.size / PAGE_SIZE)
        .map_err(|what| SnapshotError::damaged(&list, what))?;
    if list_of.pages.count() != memory.pages {
        return Err(SnapshotError::damaged(
            &list,
            "lists another number of pages",
        ));
    }
    let path = directory.join(files::MEMORY);
    let reading = |e| SnapshotError::file("reading", &path)(e);
    let file = files::open(&path).map_err(reading)?;
    let found = file.metadata().map_err(reading)?;
    if !found.is_file() || found.len() != memory.size {
        let what = format!("has {} bytes instead of {}", found.len(), memory.size);
        return Err(SnapshotError::damaged(&path, what));
    }
    Ok(FoundLayer {
        path,
        file,
        list: list_of,
        digest: memory.digest.clone(),
    })
}

/// Where it was, or beside the snapshot.
fn find_parent(
    child: &Path,
    parent: &manifest::Parent,
) -> Result<(PathBuf, Manifest), SnapshotError> {
    let beside = child.parent().zip(parent.directory.file_name());
    let beside = beside.map(|(directory, name)| directory.join(name));
    let mut missing = None;
    for place in beside.into_iter().chain([parent.directory.clone()]) {
        match Manifest::read(&place) {
            Ok(found) if found.id == parent.id => return Ok((place, found)),
            Ok(_) => {}
            Err(error) => missing = Some(error),
        }
    }
    Err(SnapshotError::Unfit {
        path: child.to_owned(),
        reason: match missing {
            Some(error) => format!("it builds on another one, and {error}"),
            None => format!(
                "it builds on {}, where there is another snapshot now",
                parent.directory.display()
            ),
        },
    })
}
