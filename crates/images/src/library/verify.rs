//! Whether an image is still what it was.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{DISK, Library};
use crate::files::Kind;
use crate::{Digest, ImagesError, Progress, digest};

/// Notes how the file was when it was last read whole and found good.
const VERIFIED: &str = "verified.json";
const KIND: Kind = Kind {
    format: "holm-image-verified",
    version: 1,
};

/// A file as the host describes it: another value means that it was changed,
/// restored from a backup, or moved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stamp {
    size: u64,
    inode: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Ok(Self {
            size: meta.len(),
            inode: meta.ino(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// How an image was found to be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// The host says that nobody has changed the file since it was read whole.
    Unchanged,
    /// It was read whole now.
    Read,
}

impl Library {
    /// Checks an image before it is used, and returns its disk's file, in
    /// format raw. It is read whole only if its file was touched since that
    /// was last done.
    ///
    /// # Errors
    /// [`ImagesError::Corrupt`], [`ImagesError::NoImage`], or the host's.
    pub fn use_image(&self, digest: &Digest) -> Result<PathBuf, ImagesError> {
        self.verify(digest, false, &mut |_, _| {})?;
        Ok(self.image_directory(digest).join(DISK))
    }

    /// Checks an image; with `whole` by reading all of it in any case, which
    /// also finds what the host's disk has forgotten.
    ///
    /// # Errors
    /// As [`Self::use_image`].
    pub fn verify(
        &self,
        digest: &Digest,
        whole: bool,
        progress: Progress<'_>,
    ) -> Result<Health, ImagesError> {
        let manifest = self.must(digest)?.manifest;
        let directory = self.image_directory(digest);
        let path = directory.join(DISK);
        let corrupt = |what: String| ImagesError::Corrupt {
            digest: digest.to_string(),
            what,
        };
        let file = File::open(&path).map_err(|e| corrupt(format!("{}: {e}", path.display())))?;
        let failed = |e| ImagesError::host(&path, "read it")(e);
        let now = Stamp::of(&file).map_err(failed)?;
        if now.size != manifest.size {
            return Err(corrupt(format!(
                "its file has {} bytes instead of {}",
                now.size, manifest.size
            )));
        }
        let stamp = directory.join(VERIFIED);
        // One that cannot be read is as good as none.
        let known: Option<Stamp> = KIND.read(&stamp).unwrap_or_default();
        if !whole && known.as_ref() == Some(&now) {
            return Ok(Health::Unchanged);
        }
        let found =
            digest::of_file(&file, progress).map_err(|e| corrupt(format!("reading it: {e}")))?;
        if found != *digest {
            crate::files::remove_file(&stamp)?;
            return Err(corrupt(format!("its contents are those of {found}")));
        }
        if known.as_ref() != Some(&now) {
            note(&directory, &file);
        }
        Ok(Health::Read)
    }
}

/// Notes that an image's file is good as it is now. Without the note it is
/// only read again.
pub(crate) fn note(directory: &Path, file: &File) {
    let noted = Stamp::of(file)
        .map_err(ImagesError::host(directory, "look at it"))
        .and_then(|stamp| KIND.write(&directory.join(VERIFIED), &stamp));
    if let Err(error) = noted {
        tracing::debug!(%error, "an image will be read again before its next use");
    }
}
