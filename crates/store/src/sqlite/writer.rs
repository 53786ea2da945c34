//! Writing: one thread, many changes to a transaction.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{oneshot, watch};

use super::schema;
use crate::{Change, Expect, LeaseId, Revision, StoreError, Write};

/// Most requests in one transaction.
const TOGETHER: usize = 256;
/// Changes whose events are kept for watches that come back.
const HISTORY: u64 = 50_000;
/// How many changes may pass before the history is cut again.
const CUT_EVERY: u64 = 1000;

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    Commit(Change, Answer<Revision>),
    Grant(Duration, Answer<LeaseId>),
    KeepAlive(LeaseId, Answer<()>),
    Revoke(LeaseId, Answer<()>),
}

/// The writing thread's inbox; it ends when this is dropped.
pub(super) struct Writer {
    inbox: Option<Sender<Request>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    pub fn start(
        connection: Connection,
        tell: watch::Sender<Revision>,
    ) -> Result<Self, StoreError> {
        let (inbox, requests) = mpsc::channel();
        let state = State::new(connection, tell)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || state.run(&requests))
            .map_err(|e| StoreError::failed("starting the store's thread", e))?;
        Ok(Self {
            inbox: Some(inbox),
            thread: Some(thread),
        })
    }

    pub fn send(&self, request: Request) -> Result<(), StoreError> {
        let inbox = self.inbox.as_ref().ok_or(StoreError::Closed)?;
        inbox.send(request).map_err(|_| StoreError::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.inbox.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported already.
            let _ = thread.join();
        }
    }
}

struct Lease {
    time_to_live: Duration,
    ends: Instant,
}

struct State {
    connection: Connection,
    tell: watch::Sender<Revision>,
    leases: HashMap<LeaseId, Lease>,
    revision: Revision,
    oldest: Revision,
}

/// An answer that waits for the transaction's end.
type Reply = Box<dyn FnOnce(Option<&StoreError>) + Send>;

impl State {
    fn new(connection: Connection, tell: watch::Sender<Revision>) -> Result<Self, StoreError> {
        let clock = schema::clock(&connection)?;
        let failed = |e| StoreError::failed("reading leases", e);
        let leases = {
            let mut statement = connection
                .prepare("SELECT id, time_to_live_ms FROM leases")
                .map_err(failed)?;
            let rows = statement.query_map([], |row| {
                let time_to_live = Duration::from_millis(row.get(1)?);
                let ends = Instant::now() + time_to_live;
                Ok((row.get(0)?, Lease { time_to_live, ends }))
            });
            rows.map_err(failed)?
                .collect::<rusqlite::Result<HashMap<_, _>>>()
                .map_err(failed)?
        };
        Ok(Self {
            connection,
            tell,
            leases,
            revision: clock.revision,
            oldest: clock.oldest,
        })
    }

    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let ends = self.leases.values().map(|l| l.ends).min();
            let first = match ends {
                None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => requests.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let first = match first {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let waiting = first
                .into_iter()
                .chain(requests.try_iter())
                .take(TOGETHER)
                .collect();
            self.together(waiting);
        }
    }

    /// Serves requests in one transaction; answers when it is durable.
    fn together(&mut self, requests: Vec<Request>) {
        let before = (self.revision, self.oldest);
        let mut replies: Vec<Reply> = Vec::new();
        let mut ended = Vec::new();
        let leases_before: Vec<LeaseId> = self.leases.keys().copied().collect();
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        let done = begun.and_then(|()| {
            let now = Instant::now();
            let over = |(id, lease): (&LeaseId, &Lease)| (lease.ends <= now).then_some(*id);
            ended = self.leases.iter().filter_map(over).collect();
            for lease in &ended {
                self.end_lease(*lease)?;
            }
            for request in requests {
                replies.push(self.serve(request, &mut ended)?);
            }
            self.cut_history()?;
            self.connection.execute_batch("COMMIT")
        });
        let error = done.err().map(|e| {
            // Without a transaction there is nothing to take back.
            let _ = self.connection.execute_batch("ROLLBACK");
            (self.revision, self.oldest) = before;
            tracing::error!(error = %e, "the store cannot write");
            StoreError::failed("writing to the store", e)
        });
        if error.is_none() {
            self.leases.retain(|id, _| !ended.contains(id));
            if self.revision != before.0 {
                self.tell.send_replace(self.revision);
            }
        } else {
            self.leases.retain(|id, _| leases_before.contains(id));
            // Not at once again: the disk may be full for a while.
            let later = Instant::now() + Duration::from_secs(1);
            self.leases
                .values_mut()
                .for_each(|l| l.ends = l.ends.max(later));
        }
        for reply in replies {
            reply(error.as_ref());
        }
    }

    /// Does one request, whose error is its own; a database's error is all's.
    fn serve(&mut self, request: Request, ended: &mut Vec<LeaseId>) -> rusqlite::Result<Reply> {
        Ok(match request {
            Request::Commit(change, answer) => {
                let result = self.commit(&change, ended)?;
                reply(answer, result)
            }
            Request::Grant(time_to_live, answer) => {
                let ms = time_to_live.as_millis().clamp(1, 1 << 40) as i64;
                self.connection
                    .prepare_cached("INSERT INTO leases (time_to_live_ms) VALUES (?1)")?
                    .execute([ms])?;
                let id = self.connection.last_insert_rowid() as LeaseId;
                let time_to_live = Duration::from_millis(ms as u64);
                let ends = Instant::now() + time_to_live;
                self.leases.insert(id, Lease { time_to_live, ends });
                reply(answer, Ok(id))
            }
            Request::KeepAlive(id, answer) => {
                let lease = self.leases.get_mut(&id).filter(|_| !ended.contains(&id));
                let result = lease.ok_or(StoreError::NoLease(id)).map(|lease| {
                    lease.ends = Instant::now() + lease.time_to_live;
                });
                reply(answer, result)
            }
            Request::Revoke(id, answer) => {
                let known = self.leases.contains_key(&id) && !ended.contains(&id);
                if known {
                    self.end_lease(id)?;
                    ended.push(id);
                }
                reply(answer, known.then_some(()).ok_or(StoreError::NoLease(id)))
            }
        })
    }

    fn commit(
        &mut self,
        change: &Change,
        ended: &[LeaseId],
    ) -> rusqlite::Result<Result<Revision, StoreError>> {
        for (key, expect) in &change.expect {
            let found = self.revision_of(key)?;
            let holds = match expect {
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
                Expect::At(revision) => found == Some(*revision),
            };
            if !holds {
                let key = key.clone();
                return Ok(Err(StoreError::Conflict { key, found }));
            }
        }
        let leases = change.writes.iter().filter_map(|w| match w {
            Write::Put { lease, .. } => *lease,
            Write::Delete { .. } => None,
        });
        for lease in leases {
            if !self.leases.contains_key(&lease) || ended.contains(&lease) {
                return Ok(Err(StoreError::NoLease(lease)));
            }
        }
        let revision = self.revision + 1;
        let mut wrote = false;
        for write in &change.writes {
            wrote |= match write {
                Write::Put { key, value, lease } => self.put(revision, key, value, *lease)?,
                Write::Delete { key } => self.delete(revision, key)?,
            };
        }
        if wrote {
            self.set_revision(revision)?;
        }
        Ok(Ok(self.revision))
    }

    fn revision_of(&self, key: &str) -> rusqlite::Result<Option<Revision>> {
        self.connection
            .prepare_cached("SELECT revision FROM documents WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()
    }

    fn put(
        &self,
        revision: Revision,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> rusqlite::Result<bool> {
        let created: Revision = self
            .connection
            .prepare_cached(
                "INSERT INTO documents VALUES (?1, ?2, ?3, ?3, ?4)
                 ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3, lease = ?4
                 RETURNING created",
            )?
            .query_row(params![key, value, revision, lease], |row| row.get(0))?;
        self.connection
            .prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![revision, key, value, created, lease])?;
        Ok(true)
    }

    fn delete(&self, revision: Revision, key: &str) -> rusqlite::Result<bool> {
        let existed = self
            .connection
            .prepare_cached("DELETE FROM documents WHERE key = ?1")?
            .execute([key])?;
        if existed > 0 {
            self.connection
                .prepare_cached("INSERT INTO history VALUES (?1, ?2, NULL, 0, NULL)")?
                .execute(params![revision, key])?;
        }
        Ok(existed > 0)
    }

    fn end_lease(&mut self, lease: LeaseId) -> rusqlite::Result<()> {
        let revision = self.revision + 1;
        let keys = {
            let mut statement = self
                .connection
                .prepare_cached("SELECT key FROM documents WHERE lease = ?1")?;
            let rows = statement.query_map([lease], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        for key in &keys {
            self.delete(revision, key)?;
        }
        self.connection
            .prepare_cached("DELETE FROM leases WHERE id = ?1")?
            .execute([lease])?;
        if !keys.is_empty() {
            self.set_revision(revision)?;
        }
        Ok(())
    }

    fn set_revision(&mut self, revision: Revision) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE clock SET revision = ?1")?
            .execute([revision])?;
        self.revision = revision;
        Ok(())
    }

    fn cut_history(&mut self) -> rusqlite::Result<()> {
        let oldest = self.revision.saturating_sub(HISTORY);
        if oldest < self.oldest + CUT_EVERY {
            return Ok(());
        }
        self.connection
            .execute("DELETE FROM history WHERE revision <= ?1", [oldest])?;
        self.connection
            .execute("UPDATE clock SET oldest = ?1", [oldest])?;
        self.oldest = oldest;
        Ok(())
    }
}

fn reply<T: Send + 'static>(answer: Answer<T>, result: Result<T, StoreError>) -> Reply {
    Box::new(move |error| {
        let result = match error {
            None => result,
            Some(e) => Err(StoreError::failed("writing to the store", e)),
        };
        // Who asked may have gone.
        let _ = answer.send(result);
    })
}
