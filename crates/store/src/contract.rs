//! The contract of a store. It is what both an embedded database and etcd can
//! keep.

use std::time::Duration;

use async_trait::async_trait;

use crate::StoreError;

/// Longest key, in bytes.
pub const KEY_MAX: usize = 512;
/// Longest value, in bytes.
pub const VALUE_MAX: usize = 1 << 20;
/// Most conditions, and most writes, of one change.
pub const WRITES_MAX: usize = 100;
/// Most documents in one page of a list.
pub const PAGE_MAX: usize = 10_000;

/// A moment in the life of a store: it grows by one with each change.
pub type Revision = u64;
/// Name of a lease.
pub type LeaseId = u64;

/// A document as it was last written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its name: parts of printable ASCII joined by `/`.
    pub key: String,
    /// Its content.
    pub value: Vec<u8>,
    /// When it was last written.
    pub revision: Revision,
    /// When it came into being.
    pub created: Revision,
    /// With whose end it goes.
    pub lease: Option<LeaseId>,
}

/// What must be true for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The document does not exist.
    Absent,
    /// It exists.
    Present,
    /// It was last written then.
    At(Revision),
}

/// One effect of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Writes a document.
    Put {
        /// Its name.
        key: String,
        /// Its content.
        value: Vec<u8>,
        /// Deletes it when this lease ends; `None`: it stays.
        lease: Option<LeaseId>,
    },
    /// Deletes a document; no effect if it does not exist.
    Delete {
        /// Its name.
        key: String,
    },
}

/// Conditions, and what is done if all hold: all of it or nothing. No key may
/// be written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What must be true.
    pub expect: Vec<(String, Expect)>,
    /// What is done then.
    pub writes: Vec<Write>,
}

impl Change {
    /// A change without conditions or effects.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn expect(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.expect.push((key.into(), expect));
        self
    }

    /// Adds a document to be written.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.push(Write::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Adds a document that goes with a lease.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Vec<u8>>,
        lease: LeaseId,
    ) -> Self {
        self.writes.push(Write::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    /// Adds a document to be deleted.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let refused = |what: &str, reason| {
            Err(StoreError::Refused {
                what: what.chars().take(80).collect(),
                reason,
            })
        };
        if self.writes.len() > WRITES_MAX || self.expect.len() > WRITES_MAX {
            return refused("a change", "it has more than 100 conditions or effects");
        }
        let mut written = std::collections::HashSet::new();
        for write in &self.writes {
            let key = match write {
                Write::Put { key, value, .. } => {
                    if value.len() > VALUE_MAX {
                        return refused(key, "its value is longer than 1 MiB");
                    }
                    key
                }
                Write::Delete { key } => key,
            };
            if !written.insert(key) {
                return refused(key, "one change cannot write it twice");
            }
        }
        let conditions = self.expect.iter().map(|(key, _)| key);
        for key in written.into_iter().chain(conditions) {
            if !is_key(key) {
                return refused(key, "a key is 1 to 512 printable ASCII characters");
            }
        }
        Ok(())
    }
}

fn is_key(key: &str) -> bool {
    (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())
}

/// Documents in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The documents.
    pub documents: Vec<Document>,
    /// The store's revision that they show: watch from here.
    pub revision: Revision,
    /// There are more: list again after the last one's key.
    pub more: bool,
}

/// What happened to a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put(Document),
    /// It was deleted, or its lease ended.
    Delete {
        /// Its name.
        key: String,
        /// When.
        revision: Revision,
    },
}

impl Event {
    /// The document's name.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(document) => &document.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// When it happened.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(document) => document.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Events in order, and up to which revision they are complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// At least one; never a part of a change.
    pub events: Vec<Event>,
    /// To watch again after.
    pub revision: Revision,
}

/// Events as they happen.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next events. May be dropped while it waits: nothing is
    /// lost.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when this watch was too slow.
    async fn next(&mut self) -> Result<WatchBatch, StoreError>;
}

/// A store. What it has acknowledged survives the death of process and host.
#[async_trait]
pub trait Store: Send + Sync {
    /// A document; `None` if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn get(&self, key: &str) -> Result<Option<Document>, StoreError>;

    /// The documents whose keys begin with `prefix` and come after `after`
    /// (empty: all), at most `limit` (and [`PAGE_MAX`]) of them.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError>;

    /// Makes a change, if all its conditions hold; the store's revision then.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::NoLease`],
    /// [`StoreError::Refused`], [`StoreError::Failed`].
    async fn commit(&self, change: Change) -> Result<Revision, StoreError>;

    /// Watches the documents whose keys begin with `prefix` for what happens
    /// after a revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`].
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// A lease that ends this long after it was last kept alive. A restart of
    /// the store counts as that.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn grant(&self, time_to_live: Duration) -> Result<LeaseId, StoreError>;

    /// Gives a lease its full time again.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] if it has ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease now, with its documents.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] if it has ended.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
