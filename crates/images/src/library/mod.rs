//! The library of images.
//!
//! ```text
//! DIRECTORY/by-digest/HEX/disk.img        raw, sparse, never written again
//! DIRECTORY/by-digest/HEX/manifest.json   what it is
//! DIRECTORY/by-digest/HEX/verified.json   the file as it was when last read whole
//! DIRECTORY/names/NAME.json               names, versions, aliases
//! DIRECTORY/downloads/                    parts of downloads
//! DIRECTORY/lock
//! ```

mod manifest;
mod names;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use disk::manage;
use serde::Serialize;

use crate::files;
use crate::staging;
use crate::{Digest, ImagesError};

pub use manifest::Manifest;
pub(crate) use manifest::write as write_manifest;
pub use names::{NameRecord, NameVersion, Reference, Target};
pub use verify::Health;
pub(crate) use verify::note;

const BY_DIGEST: &str = "by-digest";
const NAMES: &str = "names";
pub(crate) const DOWNLOADS: &str = "downloads";
pub(crate) const DISK: &str = "disk.img";

/// An image of a library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// What it is.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// The file of its disk, in format raw.
    pub file: PathBuf,
    /// Bytes that it takes on the host.
    pub allocated: u64,
    /// The names that lead to it, with versions: `debian@2`.
    pub names: Vec<String>,
}

/// An image that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Its digest.
    pub digest: Digest,
    /// Bytes that it took on the host.
    pub allocated: u64,
}

/// A library of images.
#[derive(Clone, Debug)]
pub struct Library {
    directory: PathBuf,
}

impl Library {
    /// Opens or makes a library and removes what killed operations left.
    ///
    /// # Errors
    /// [`ImagesError::Host`].
    pub fn open(directory: &Path) -> Result<Self, ImagesError> {
        for part in [BY_DIGEST, NAMES, DOWNLOADS] {
            files::make_directory(&directory.join(part))?;
        }
        let library = Self {
            directory: files::absolute(directory)?,
        };
        let images = library.images_directory();
        staging::sweep(&images).map_err(ImagesError::host(&images, "tidy it"))?;
        Ok(library)
    }

    /// Opens a library to be looked at; `None`: there is none.
    ///
    /// # Errors
    /// [`ImagesError::Host`].
    pub fn find(directory: &Path) -> Result<Option<Self>, ImagesError> {
        match directory.join(BY_DIGEST).is_dir() {
            true => Ok(Some(Self {
                directory: files::absolute(directory)?,
            })),
            false => Ok(None),
        }
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn images_directory(&self) -> PathBuf {
        self.directory.join(BY_DIGEST)
    }

    pub(crate) fn image_directory(&self, digest: &Digest) -> PathBuf {
        self.images_directory().join(digest.hex())
    }

    /// Keeps others from changing names and removing images.
    pub(crate) fn lock(&self) -> Result<File, ImagesError> {
        files::lock(&self.directory.join("lock"))
    }

    /// Digests of all images, sorted.
    ///
    /// # Errors
    /// [`ImagesError::Host`].
    pub fn digests(&self) -> Result<Vec<Digest>, ImagesError> {
        let names = files::entries(&self.images_directory())?;
        Ok(names.iter().filter_map(|n| Digest::from_hex(n)).collect())
    }

    /// An image; `None`: there is none of this digest.
    ///
    /// # Errors
    /// A manifest that is none, or the host's.
    pub fn get(&self, digest: &Digest) -> Result<Option<Stored>, ImagesError> {
        let names = self.names_by_digest()?;
        self.stored(digest, &names)
    }

    /// All images, by digest. Of those that cannot be read the digest and the
    /// reason are in the second part.
    ///
    /// # Errors
    /// [`ImagesError::Host`]: the library cannot be listed.
    pub fn list(&self) -> Result<(Vec<Stored>, BTreeMap<Digest, ImagesError>), ImagesError> {
        let names = self.names_by_digest()?;
        let (mut found, mut broken) = (Vec::new(), BTreeMap::new());
        for digest in self.digests()? {
            match self.stored(&digest, &names) {
                Ok(stored) => found.extend(stored),
                Err(error) => {
                    broken.insert(digest, error);
                }
            }
        }
        Ok((found, broken))
    }

    fn stored(
        &self,
        digest: &Digest,
        names: &BTreeMap<Digest, Vec<String>>,
    ) -> Result<Option<Stored>, ImagesError> {
        let directory = self.image_directory(digest);
        let path = directory.join(manifest::MANIFEST);
        let Some(manifest) = Manifest::read(&path)? else {
            return Ok(None);
        };
        if manifest.digest != *digest {
            let reason = format!("it is the manifest of {}", manifest.digest);
            return Err(ImagesError::Malformed { path, reason });
        }
        Ok(Some(Stored {
            manifest,
            file: directory.join(DISK),
            allocated: files::allocated(&directory)?,
            names: names.get(digest).cloned().unwrap_or_default(),
        }))
    }

    /// An image that must be there.
    pub(crate) fn must(&self, digest: &Digest) -> Result<Stored, ImagesError> {
        let found = self.get(digest)?;
        found.ok_or_else(|| ImagesError::NoImage(digest.to_string()))
    }

    fn names_by_digest(&self) -> Result<BTreeMap<Digest, Vec<String>>, ImagesError> {
        let mut found: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for record in self.names()? {
            match record.target {
                Target::Versions { versions, .. } => {
                    for version in versions {
                        let name = format!("{}@{}", record.name, version.number);
                        found.entry(version.digest).or_default().push(name);
                    }
                }
                Target::Alias(_) => {
                    let reference = Reference::Name(record.name.clone(), None);
                    if let Ok(digest) = self.resolve(&reference) {
                        found.entry(digest).or_default().push(record.name);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Removes an image to which no name leads and that no volume or machine
    /// uses; nothing if there is none. `used` are disk files that must stay
    /// (see [`crate::Volumes::images_in_use`]).
    ///
    /// # Errors
    /// [`ImagesError::InUse`], or the host's.
    pub fn remove(&self, digest: &Digest, used: &BTreeSet<PathBuf>) -> Result<(), ImagesError> {
        let _lock = self.lock()?;
        let names = self.names_by_digest()?;
        let what = || format!("image {}", digest.short());
        if let Some(names) = names.get(digest) {
            return Err(ImagesError::InUse {
                what: what(),
                by: format!(" by the names {}", names.join(", ")),
            });
        }
        self.remove_unnamed(digest, used)
    }

    fn remove_unnamed(&self, digest: &Digest, used: &BTreeSet<PathBuf>) -> Result<(), ImagesError> {
        let directory = self.image_directory(digest);
        let file = directory.join(DISK);
        let what = format!("image {}", digest.short());
        if used.contains(&file) {
            let by = " by volumes or snapshots that build on it".into();
            return Err(ImagesError::InUse { what, by });
        }
        if file.exists() && manage::in_use(&file)? {
            let by = " by a running machine".into();
            return Err(ImagesError::InUse { what, by });
        }
        staging::remove(&directory).map_err(ImagesError::host(directory, "remove it"))
    }

    /// Removes every image to which no name leads, that is not in `keep`, and
    /// whose disk's file is not in `used` or open in a machine. With
    /// `old_versions`, versions that are not current lose their names first,
    /// but for those that aliases lead to. With `dry` nothing is done but the
    /// answer.
    ///
    /// # Errors
    /// The host's.
    pub fn prune(
        &self,
        keep: &BTreeSet<Digest>,
        used: &BTreeSet<PathBuf>,
        old_versions: bool,
        dry: bool,
    ) -> Result<Vec<Pruned>, ImagesError> {
        let mut named: BTreeSet<Digest> = keep.clone();
        let mut old = Vec::new();
        for record in self.names()? {
            let versions = match record.target {
                Target::Alias(_) => {
                    named.extend(self.resolve(&Reference::Name(record.name, None)).ok());
                    continue;
                }
                Target::Versions {
                    versions, current, ..
                } => versions.into_iter().map(move |v| (v.number == current, v)),
            };
            for (current, version) in versions {
                match current || !old_versions {
                    true => drop(named.insert(version.digest)),
                    false => old.push((record.name.clone(), version)),
                }
            }
        }
        for (name, version) in old {
            let goes = !named.contains(&version.digest);
            if goes && !dry && !used.contains(&self.image_directory(&version.digest).join(DISK)) {
                self.untag(&name, Some(version.number))?;
            }
        }
        self.prune_unnamed(&named, used, dry)
    }

    fn prune_unnamed(
        &self,
        named: &BTreeSet<Digest>,
        used: &BTreeSet<PathBuf>,
        dry: bool,
    ) -> Result<Vec<Pruned>, ImagesError> {
        let _lock = self.lock()?;
        let mut pruned = Vec::new();
        for digest in self.digests()? {
            let directory = self.image_directory(&digest);
            let file = directory.join(DISK);
            let stays = named.contains(&digest)
                || used.contains(&file)
                || (file.exists() && manage::in_use(&file)?);
            if stays {
                continue;
            }
            let allocated = files::allocated(&directory)?;
            if !dry {
                self.remove_unnamed(&digest, used)?;
            }
            pruned.push(Pruned { digest, allocated });
        }
        Ok(pruned)
    }
}
