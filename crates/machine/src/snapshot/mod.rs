//! Snapshots: a machine's memory, state and disks at one instant, as a
//! directory; and machines made from them.
//!
//! A directory holds `manifest.json` ([`Manifest`]), `memory` (pages at their
//! offsets into RAM), `memory.pages` (which pages those are), `state.json`
//! ([`crate::MachineState`]) and a file per disk. An incremental snapshot's
//! `memory` holds the pages that changed since the snapshot it names.
//! docs/snapshots.md has the format and the reasons.

mod capture;
mod disks;
mod files;
mod ledger;
mod manifest;
mod one_disk;
mod open;

use std::io;
use std::path::{Path, PathBuf};

pub use capture::SnapshotMade;
pub use manifest::{DiskFile, DiskKept, FileBelow, Manifest, MemoryFile, Parent, StateFile};
pub use open::Snapshot;

pub(crate) use capture::create;
pub(crate) use ledger::Ledger;
pub(crate) use one_disk::copy_disk;

/// Why a snapshot cannot be made, or not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file cannot be read or written.
    #[error("{doing} {path}: {source}", path = path.display())]
    File {
        /// Such as "writing".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// A file is not what the manifest says.
    #[error(
        "the snapshot is damaged: {path} {what}; use another copy of it",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        what: String,
    },
    /// Another version.
    #[error(
        "the snapshot {path} has format version {found}, but this holm reads version {}; \
         use the holm that made it, or a newer one",
        manifest::FORMAT_VERSION,
        path = path.display()
    )]
    Version {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// It cannot be used here or so.
    #[error("the snapshot {path} cannot be used: {reason}", path = path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// Why, and what can be done.
        reason: String,
    },
    /// A disk's image cannot be read or copied.
    #[error(transparent)]
    Disk(disk::DiskError),
    /// No snapshot can be made now.
    #[error("no snapshot was made: {0}")]
    Refused(String),
}

impl SnapshotError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }

    fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
