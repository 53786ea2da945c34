//! What can go wrong with images and volumes.

use std::io;
use std::path::PathBuf;

use disk::DiskError;

/// An operation that was not done.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// No image of this name, version or digest.
    #[error("there is no image {0:?} in the library; `holm image ls` lists them")]
    NoImage(String),
    /// A shortened digest that several images share.
    #[error("{0:?} begins the digests of several images; give more digits of it")]
    Ambiguous(String),
    /// An image whose contents are not what they were.
    #[error(
        "image {digest} is damaged ({what}): it is not used; import or build it again, which \
         replaces it, or remove it with `holm image rm`"
    )]
    Corrupt {
        /// The digest by which it is known.
        digest: String,
        /// What differs.
        what: String,
    },
    /// A machine or a volume uses it.
    #[error("{what} is in use{by}; end what uses it first")]
    InUse {
        /// What.
        what: String,
        /// By whom, with ` by ` before it, or nothing.
        by: String,
    },
    /// There is another one of this name.
    #[error("there is a {what} {id:?} already, and it is another one: {why}")]
    Exists {
        /// Kind of file.
        what: &'static str,
        /// Its name.
        id: String,
        /// In what it differs.
        why: String,
    },
    /// No such volume or snapshot.
    #[error("there is no {what} {id:?}")]
    Missing {
        /// Kind of file.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// A name that could lead elsewhere.
    #[error(
        "{0:?} is no name here: one has 1 to 64 letters, digits, '-', '_' and '.', and begins \
         with a letter or digit"
    )]
    BadName(String),
    /// A file of ours that says nonsense.
    #[error("{}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of a later Holm.
    #[error("{} has version {version}; this Holm reads version {known}: use a newer Holm", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
        /// The one that is known.
        known: u64,
    },
    /// A download that did not come.
    #[error("downloading {url}: {why}")]
    Fetch {
        /// From where, without what could be secret.
        url: String,
        /// Why not.
        why: String,
    },
    /// A file that is not what it was said to be.
    #[error(
        "{file} has the checksum {found}, not {wanted}: it is damaged or another file; nothing was imported"
    )]
    Checksum {
        /// The file or URL.
        file: String,
        /// What it has.
        found: String,
        /// What was told.
        wanted: String,
    },
    /// What is imported or asked for does not fit.
    #[error("{0}")]
    Refused(String),
    /// A disk file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host's error.
    #[error("{}: cannot {doing}: {source}", .path.display())]
    Host {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

impl ImagesError {
    /// The host's error while something was done to `path`.
    pub(crate) fn host(
        path: impl Into<PathBuf>,
        doing: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Host {
            path,
            doing,
            source,
        }
    }
}
