//! Reading, on as many connections as there are readers at once.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::schema;
use crate::{Document, Event, Page, Revision, StoreError, WatchBatch};

/// Connections kept for the next reader.
const IDLE: usize = 8;
/// Most events in one batch of a watch.
const BATCH: usize = 1000;

pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            idle: Mutex::default(),
        }
    }

    fn with<T>(
        &self,
        doing: &'static str,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let known = idle().pop();
        let mut connection = match known {
            Some(c) => c,
            None => schema::open_to_read(&self.path)?,
        };
        // One transaction, so that all statements see the same revision.
        let result = connection.transaction().and_then(|t| f(&t));
        let mut idle = idle();
        if idle.len() < IDLE {
            idle.push(connection);
        }
        result.map_err(|e| StoreError::failed(doing, e))
    }

    pub fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        self.with("reading a document", |c| {
            c.prepare_cached(
                "SELECT key, value, revision, created, lease FROM documents WHERE key = ?1",
            )?
            .query_row([key], document)
            .optional()
        })
    }

    pub fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        self.with("listing documents", |c| {
            let mut statement = c.prepare_cached(
                "SELECT key, value, revision, created, lease FROM documents
                 WHERE key >= ?1 AND key < ?2 AND key > ?3 ORDER BY key LIMIT ?4",
            )?;
            let rows = statement.query_map(
                params![prefix, end_of(prefix), after, limit as i64 + 1],
                document,
            )?;
            let mut documents = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let more = documents.len() > limit;
            documents.truncate(limit);
            Ok(Page {
                documents,
                revision: revision(c)?,
                more,
            })
        })
    }

    pub fn oldest(&self) -> Result<Revision, StoreError> {
        self.with("reading the history", |c| {
            c.query_row("SELECT oldest FROM clock", [], |row| row.get(0))
        })
    }

    /// Whole changes after a revision.
    pub fn history(&self, prefix: &str, after: Revision) -> Result<WatchBatch, StoreError> {
        let (oldest, batch) = self.with("reading the history", |c| {
            let oldest: Revision = c.query_row("SELECT oldest FROM clock", [], |row| row.get(0))?;
            let mut statement = c.prepare_cached(
                "SELECT key, value, revision, created, lease FROM history
                 WHERE revision > ?1 AND key >= ?2 AND key < ?3 ORDER BY revision, key LIMIT ?4",
            )?;
            let rows =
                statement.query_map(params![after, prefix, end_of(prefix), BATCH as i64], event)?;
            let mut events = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let mut up_to = revision(c)?;
            if events.len() == BATCH {
                // The last change may go on behind the limit; one change is
                // always shorter than it.
                let last = events.last().map_or(0, Event::revision);
                events.retain(|e| e.revision() < last);
                up_to = events.last().map_or(after, Event::revision);
            }
            Ok((
                oldest,
                WatchBatch {
                    events,
                    revision: up_to,
                },
            ))
        })?;
        if after < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        Ok(batch)
    }
}

fn revision(c: &Connection) -> rusqlite::Result<Revision> {
    c.query_row("SELECT revision FROM clock", [], |row| row.get(0))
}

/// The first key that does not begin with the prefix and comes after it. Keys
/// are printable ASCII, so every byte can be counted up.
fn end_of(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    match end.pop() {
        Some(last) => end.push(char::from_u32(last as u32 + 1).unwrap_or(char::MAX)),
        None => end.push('\u{7f}'),
    }
    end
}

fn document(row: &Row<'_>) -> rusqlite::Result<Document> {
    Ok(Document {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: row.get(2)?,
        created: row.get(3)?,
        lease: row.get(4)?,
    })
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(match row.get::<_, Option<Vec<u8>>>(1)? {
        Some(value) => Event::Put(Document {
            key: row.get(0)?,
            value,
            revision: row.get(2)?,
            created: row.get(3)?,
            lease: row.get(4)?,
        }),
        None => Event::Delete {
            key: row.get(0)?,
            revision: row.get(2)?,
        },
    })
}
