//! What a store cannot do.

use std::path::PathBuf;

use crate::{LeaseId, Revision};

/// Why an operation had no effect. Nothing was changed, unless the variant
/// says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition of a change did not hold.
    #[error("{key} is not as expected: {}", state(.found))]
    Conflict {
        /// The document.
        key: String,
        /// Its revision now; `None`: it does not exist.
        found: Option<Revision>,
    },
    /// The events after this revision are no longer kept: list again, and
    /// watch from the revision of that list.
    #[error("the history before revision {oldest} is gone; list again and watch from there")]
    Compacted {
        /// Oldest revision to watch after.
        oldest: Revision,
    },
    /// The lease does not exist, or no longer.
    #[error("lease {0} has ended")]
    NoLease(LeaseId),
    /// A key, a value or a change beyond the limits.
    #[error("the store refuses {what}: {reason}")]
    Refused {
        /// Key or kind of thing.
        what: String,
        /// Which limit.
        reason: &'static str,
    },
    /// The store's file was written by a newer version.
    #[error(
        "{file} has schema version {found}, and this holm knows versions up to {known}; use the holm that wrote it, or a newer one"
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// The file is no store.
    #[error("{file} is not a store of holm: {reason}")]
    Foreign {
        /// The file.
        file: PathBuf,
        /// How that is known.
        reason: String,
    },
    /// Another process has the store open for writing.
    #[error(
        "{file} is in use by another daemon; stop it, or choose another state directory with --state"
    )]
    InUse {
        /// The file.
        file: PathBuf,
    },
    /// The database or the host failed. Whether a change was made is not
    /// known: read before trying again.
    #[error("{doing}: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        reason: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

fn state(revision: &Option<Revision>) -> String {
    match revision {
        None => "it does not exist".into(),
        Some(r) => format!("it is at revision {r}"),
    }
}

impl StoreError {
    pub(crate) fn failed(doing: &'static str, source: impl std::fmt::Display) -> Self {
        Self::Failed {
            doing,
            reason: source.to_string(),
        }
    }
}
