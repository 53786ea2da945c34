//! Bringing disks into the library.

mod bring;
mod checksum;
mod fetch;
mod source;
mod unpack;

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use disk::Format;

use crate::digest::{PIECE, Pieces};
use crate::library::{self, DISK, Library};
use crate::staging::{self, Staging};
use crate::{Digest, ImagesError, ImportFormat, Manifest, Progress, files};

pub use bring::{Location, Stage, StageProgress};
pub use checksum::Checksum;
pub(crate) use source::Source;
use source::open;
pub(crate) use source::open_trusted;
pub use unpack::Compression;

/// What is noted of an image when it is imported.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Its format, if told; else what its file looks like decides.
    pub format: Option<ImportFormat>,
    /// Most bytes of its disk; `None`: any size.
    pub most: Option<u64>,
    /// [`Manifest::source`]; empty: the file's name.
    pub source: String,
    /// [`Manifest::labels`].
    pub labels: BTreeMap<String, String>,
}

impl Library {
    /// Imports a disk from a file that others may have made. It must lead to
    /// no other file. The same contents a second time are the same image.
    ///
    /// Killed at any time, the library is as before, or has the whole image.
    ///
    /// # Errors
    /// [`ImagesError::Refused`], [`ImagesError::Disk`], or the host's.
    pub fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: Progress<'_>,
    ) -> Result<Digest, ImagesError> {
        let mut options = options.clone();
        if options.source.is_empty() {
            let name = path.file_name().unwrap_or_default();
            options.source = name.to_string_lossy().into_owned();
        }
        let disk = open(path, options.format)?;
        self.keep(path, &*disk, &options, progress)
    }

    /// Makes an image of a disk of ours, for instance a volume or a snapshot,
    /// with all that it builds on. No machine may be writing it.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_disk(
        &self,
        path: &Path,
        format: Format,
        options: &ImportOptions,
        progress: Progress<'_>,
    ) -> Result<Digest, ImagesError> {
        let disk = open_trusted(path, format)?;
        self.keep(path, &*disk, options, progress)
    }

    fn keep(
        &self,
        path: &Path,
        disk: &dyn Source,
        options: &ImportOptions,
        progress: Progress<'_>,
    ) -> Result<Digest, ImagesError> {
        let size = disk.size().next_multiple_of(512);
        let most = options.most.unwrap_or(u64::MAX);
        if size == 0 || size > most {
            return Err(ImagesError::Refused(format!(
                "{}: its disk has {size} bytes; an image has more than none and at most {most}",
                path.display()
            )));
        }
        let parent = self.images_directory();
        let staging =
            Staging::begin(&parent).map_err(ImagesError::host(&parent, "make an image in it"))?;
        let goal = staging.path().join(DISK);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&goal)
            .map_err(ImagesError::host(&goal, "make it"))?;
        let digest = copy(disk, size, path, &file, &goal, progress)?;
        let manifest = Manifest {
            digest,
            size,
            created: files::now(),
            source: options.source.clone(),
            labels: options.labels.clone(),
        };
        self.settle(staging, &file, &manifest)
    }

    /// Gives a new image its place.
    fn settle(
        &self,
        staging: Staging,
        file: &File,
        manifest: &Manifest,
    ) -> Result<Digest, ImagesError> {
        let digest = manifest.digest;
        let place = self.image_directory(&digest);
        let failed = |e| ImagesError::host(&place, "make it")(e);
        disk::manage::remember_format(file, Format::Raw);
        file.set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        library::write_manifest(staging.path(), manifest)?;
        library::note(staging.path(), file);
        let _lock = self.lock()?;
        if place.exists() {
            if self.verify(&digest, false, &mut |_, _| {}).is_ok() {
                return Ok(digest);
            }
            // What was there is damaged, and this is the cure.
            staging::remove(&place).map_err(ImagesError::host(&place, "replace it"))?;
        }
        staging.commit(&place).map_err(failed)?;
        Ok(digest)
    }
}

/// Copies a disk to a raw file with holes; the digest of what it shows.
fn copy(
    disk: &dyn Source,
    size: u64,
    path: &Path,
    file: &File,
    goal: &Path,
    progress: Progress<'_>,
) -> Result<Digest, ImagesError> {
    let write = |e| ImagesError::host(goal, "write it")(e);
    let read = |e| ImagesError::host(path, "read it")(e);
    file.set_len(size).map_err(write)?;
    let mut pieces = Pieces::default();
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while at < size {
        // A last sector that is not whole is filled with zeroes.
        let there = disk.size().saturating_sub(at).min(PIECE);
        let mut data = false;
        let mut ask = at;
        while !data && ask < at + there {
            let (found, length) = disk.extent(ask).map_err(read)?;
            data = found;
            ask = ask.saturating_add(length.max(1));
        }
        if !data && ask / PIECE > at / PIECE {
            at = (ask / PIECE * PIECE).min(size);
        } else {
            let length = PIECE.min(size - at);
            if data {
                let bytes = buffer.get_mut(..length as usize).unwrap_or_default();
                let (here, behind) = bytes.split_at_mut(there.min(length) as usize);
                disk.read(here, at).map_err(read)?;
                behind.fill(0);
                if pieces.add(at / PIECE, bytes) {
                    write_data(file, bytes, at).map_err(write)?;
                }
            }
            at += length;
        }
        progress(at, size);
    }
    Ok(pieces.finish(size))
}

/// Writes the parts that are not zero.
fn write_data(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    const GRAIN: usize = 4096;
    let mut run: Option<(usize, usize)> = None;
    let put = |run: Option<(usize, usize)>| match run {
        Some((from, to)) => {
            file.write_all_at(bytes.get(from..to).unwrap_or_default(), at + from as u64)
        }
        None => Ok(()),
    };
    for (start, part) in (0..).step_by(GRAIN).zip(bytes.chunks(GRAIN)) {
        run = match crate::digest::is_zero(part) {
            true => {
                put(run)?;
                None
            }
            false => Some((run.map_or(start, |(from, _)| from), start + part.len())),
        };
    }
    put(run)
}
