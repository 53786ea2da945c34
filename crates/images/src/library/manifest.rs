//! What is written beside an image's disk.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::Kind;
use crate::{Digest, ImagesError};

/// Its file name.
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const KIND: Kind = Kind {
    format: "holm-image",
    version: 1,
};

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of what a guest reads from its disk.
    pub digest: Digest,
    /// Bytes of its disk.
    pub size: u64,
    /// When it came into the library, in seconds since 1970.
    pub created: u64,
    /// Where it came from, for people: a file's name, a URL without what could
    /// be secret in it, or a recipe.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What its users note of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads the text of a manifest; `path` is for the errors.
    ///
    /// # Errors
    /// [`ImagesError::Malformed`] or [`ImagesError::Version`].
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, ImagesError> {
        let manifest: Self = KIND.parse(text, path)?;
        manifest.check(path)?;
        Ok(manifest)
    }

    pub(super) fn read(path: &Path) -> Result<Option<Self>, ImagesError> {
        let manifest: Option<Self> = KIND.read(path)?;
        if let Some(manifest) = &manifest {
            manifest.check(path)?;
        }
        Ok(manifest)
    }

    fn check(&self, path: &Path) -> Result<(), ImagesError> {
        if self.size == 0 || !self.size.is_multiple_of(512) {
            return Err(ImagesError::Malformed {
                path: path.into(),
                reason: format!("no disk has {} bytes", self.size),
            });
        }
        Ok(())
    }
}

/// Writes the manifest of an image in its directory.
pub(crate) fn write(directory: &Path, manifest: &Manifest) -> Result<(), ImagesError> {
    KIND.write(&directory.join(MANIFEST), manifest)
}
