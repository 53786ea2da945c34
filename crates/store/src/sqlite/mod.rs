//! One host's store: an SQLite file in write-ahead mode.
//!
//! One thread writes; changes that arrive together share one transaction and
//! one sync of the disk, and are acknowledged after it. Readers see whole
//! transactions and wait for nobody.

mod reader;
mod schema;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    Change, Document, LeaseId, PAGE_MAX, Page, Revision, Store, StoreError, Watch, WatchBatch,
};
use reader::Readers;
use writer::{Request, Writer};

/// The file of the store in a directory.
#[must_use]
pub fn file(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Writes a copy of the store in a directory to a file, whether another process
/// uses the store or not.
///
/// # Errors
/// [`StoreError::Foreign`], [`StoreError::Newer`], [`StoreError::Failed`]; an
/// older file of that name is then unharmed.
pub fn backup(directory: &Path, to: &Path) -> Result<(), StoreError> {
    schema::backup(&file(directory), to)
}

pub use schema::{CheckReport, SCHEMA_VERSION, check, restore};

/// Name of the file in its directory.
const FILE: &str = "holm.db";

/// The store of one host. Clones are the same store; the file is closed with
/// the last one.
#[derive(Clone)]
pub struct Sqlite {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    readers: Readers,
    writer: Writer,
    revision: watch::Receiver<Revision>,
    /// Held locked while the store is open.
    _lock: File,
}

impl Sqlite {
    /// Opens the store in a directory, which is made if it does not exist.
    /// Blocks for a moment.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Newer`], [`StoreError::Foreign`],
    /// [`StoreError::Failed`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory)
            .map_err(|e| StoreError::failed("making the store's directory", e))?;
        let path = directory.join(FILE);
        let lock = lock(&path)?;
        let connection = schema::open(&path)?;
        let revision = schema::clock(&connection)?.revision;
        let (tell, told) = watch::channel(revision);
        Ok(Self {
            inner: Arc::new(Inner {
                readers: Readers::new(path.clone()),
                writer: Writer::start(connection, tell)?,
                path,
                revision: told,
                _lock: lock,
            }),
        })
    }

    /// Writes a copy of the store as it is now to a file, while it is in use.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; an older file of that name is then unharmed.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let (from, to) = (self.inner.path.clone(), to.to_owned());
        blocking("backing the store up", move || schema::backup(&from, &to)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(writer::Answer<T>) -> Request,
    ) -> Result<T, StoreError> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.inner.writer.send(request(answer))?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

fn lock(store: &Path) -> Result<File, StoreError> {
    let path = store.with_extension("lock");
    let failed = |e| StoreError::failed("locking the store", e);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse {
            file: store.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(StoreError::failed(doing, e)),
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        let (inner, key) = (self.inner.clone(), key.to_owned());
        blocking("reading a document", move || inner.readers.get(&key)).await
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        let (inner, prefix, after) = (self.inner.clone(), prefix.to_owned(), after.to_owned());
        let limit = limit.min(PAGE_MAX);
        blocking("listing documents", move || {
            inner.readers.list(&prefix, &after, limit)
        })
        .await
    }

    async fn commit(&self, change: Change) -> Result<Revision, StoreError> {
        change.check()?;
        self.ask(|answer| Request::Commit(change, answer)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let inner = self.inner.clone();
        let oldest = blocking("watching", move || inner.readers.oldest()).await?;
        if after < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        Ok(Box::new(SqliteWatch {
            inner: self.inner.clone(),
            prefix: prefix.to_owned(),
            after,
            revision: self.inner.revision.clone(),
        }))
    }

    async fn grant(&self, time_to_live: Duration) -> Result<LeaseId, StoreError> {
        self.ask(|answer| Request::Grant(time_to_live, answer))
            .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|answer| Request::KeepAlive(lease, answer)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|answer| Request::Revoke(lease, answer)).await
    }
}

struct SqliteWatch {
    inner: Arc<Inner>,
    prefix: String,
    after: Revision,
    revision: watch::Receiver<Revision>,
}

#[async_trait]
impl Watch for SqliteWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            let now = *self.revision.borrow_and_update();
            if now > self.after {
                let (inner, prefix, after) = (self.inner.clone(), self.prefix.clone(), self.after);
                let batch = blocking("reading the history", move || {
                    inner.readers.history(&prefix, after)
                })
                .await?;
                self.after = batch.revision;
                if !batch.events.is_empty() {
                    return Ok(batch);
                }
                continue;
            }
            self.revision
                .changed()
                .await
                .map_err(|_| StoreError::Closed)?;
        }
    }
}
