//! The file: its tables, their versions, backup and check.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::{Revision, StoreError};

/// Version of the tables that this program writes.
pub const SCHEMA_VERSION: i64 = 1;

/// In the file's header, so that no other program's database is taken for
/// ours: "Holm".
const APPLICATION_ID: i64 = 0x486f_6c6d;

/// What makes version n + 1 of version n.
const MIGRATIONS: [&str; SCHEMA_VERSION as usize] = ["
    CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        revision INTEGER NOT NULL,
        oldest INTEGER NOT NULL
    );
    INSERT INTO clock VALUES (1, 0, 0);
    CREATE TABLE leases (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time_to_live_ms INTEGER NOT NULL
    );
    CREATE TABLE documents (
        key TEXT PRIMARY KEY,
        value BLOB NOT NULL,
        revision INTEGER NOT NULL,
        created INTEGER NOT NULL,
        lease INTEGER REFERENCES leases (id)
    ) WITHOUT ROWID;
    CREATE INDEX documents_by_lease ON documents (lease) WHERE lease IS NOT NULL;
    CREATE TABLE history (
        revision INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB,
        created INTEGER NOT NULL,
        lease INTEGER,
        PRIMARY KEY (revision, key)
    ) WITHOUT ROWID;
"];

/// The store's own time.
pub(super) struct Clock {
    /// Of the last change.
    pub revision: Revision,
    /// Events up to and with this one are forgotten.
    pub oldest: Revision,
}

pub(super) fn clock(connection: &Connection) -> Result<Clock, StoreError> {
    connection
        .query_row("SELECT revision, oldest FROM clock", [], |row| {
            Ok(Clock {
                revision: row.get(0)?,
                oldest: row.get(1)?,
            })
        })
        .map_err(|e| StoreError::failed("reading the store's revision", e))
}

/// Opens the file for writing; makes and upgrades what is needed.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let doing = "opening the store";
    let failed = |e| StoreError::failed(doing, e);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection
        .busy_timeout(Duration::from_secs(10))
        .map_err(failed)?;
    let (application, version) = header(&connection, path)?;
    let empty = application == 0 && version == 0 && has_no_tables(&connection).map_err(failed)?;
    if !empty {
        belongs(path, application, version)?;
    }
    // Full: the host may die right after a change was acknowledged.
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;",
        )
        .map_err(failed)?;
    if version < SCHEMA_VERSION {
        let transaction = connection.transaction().map_err(failed)?;
        for migration in &MIGRATIONS[version as usize..] {
            transaction.execute_batch(migration).map_err(failed)?;
        }
        transaction
            .execute_batch(&format!(
                "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
            ))
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
        tracing::info!(from = version, to = SCHEMA_VERSION, file = %path.display(), "store schema");
    }
    Ok(connection)
}

/// Opens the file for reading only.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    let failed = |e| StoreError::failed("opening the store to read", e);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection
        .busy_timeout(Duration::from_secs(10))
        .map_err(failed)?;
    Ok(connection)
}

fn header(connection: &Connection, path: &Path) -> Result<(i64, i64), StoreError> {
    let read = |name| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0));
    let both = read("application_id").and_then(|a| Ok((a, read("user_version")?)));
    both.map_err(|e| StoreError::Foreign {
        file: path.to_owned(),
        reason: e.to_string(),
    })
}

fn has_no_tables(connection: &Connection) -> rusqlite::Result<bool> {
    let one = connection
        .query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(()))
        .optional()?;
    Ok(one.is_none())
}

fn belongs(path: &Path, application: i64, version: i64) -> Result<(), StoreError> {
    if application != APPLICATION_ID || version < 1 {
        return Err(StoreError::Foreign {
            file: path.to_owned(),
            reason: format!("its application id is {application:#x}"),
        });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            file: path.to_owned(),
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    Ok(())
}

/// Copies a store in use to a file, whole or not at all.
pub(super) fn backup(from: &Path, to: &Path) -> Result<(), StoreError> {
    let doing = "backing the store up";
    let failed = |e: rusqlite::Error| StoreError::failed(doing, e);
    let io = |e: std::io::Error| StoreError::failed(doing, format!("{}: {e}", to.display()));
    let unfinished = beside(to);
    let _ = std::fs::remove_file(&unfinished);
    {
        let source = open_to_read(from)?;
        let mut copy = Connection::open(&unfinished).map_err(failed)?;
        let backup = rusqlite::backup::Backup::new(&source, &mut copy).map_err(failed)?;
        backup
            .run_to_completion(1024, Duration::ZERO, None)
            .map_err(failed)?;
    }
    finish(&unfinished, to).map_err(io)
}

/// Makes the store in a directory from a backup. There must be none.
///
/// # Errors
/// [`StoreError::Foreign`], [`StoreError::Newer`], [`StoreError::Failed`];
/// the directory is then as before.
pub fn restore(backup: &Path, directory: &Path) -> Result<CheckReport, StoreError> {
    let doing = "restoring the store";
    let io = |e: std::io::Error| StoreError::failed(doing, e);
    let to = directory.join(super::FILE);
    if to.exists() {
        return Err(StoreError::failed(
            doing,
            format!("{} exists; move it away first", to.display()),
        ));
    }
    let report = check(backup)?;
    if !report.faults.is_empty() {
        return Err(StoreError::Foreign {
            file: backup.to_owned(),
            reason: report.faults.join("; "),
        });
    }
    std::fs::create_dir_all(directory).map_err(io)?;
    let unfinished = beside(&to);
    std::fs::copy(backup, &unfinished).map_err(io)?;
    finish(&unfinished, &to).map_err(io)?;
    Ok(report)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    name.into()
}

fn finish(unfinished: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::File::open(unfinished)?.sync_all()?;
    std::fs::rename(unfinished, to)?;
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckReport {
    /// Of the tables.
    pub schema_version: i64,
    /// Of the last change.
    pub revision: Revision,
    /// Number of documents.
    pub documents: u64,
    /// What is wrong; empty: nothing.
    pub faults: Vec<String>,
}

/// Checks a store's file, whether in use or not.
///
/// # Errors
/// [`StoreError::Foreign`], [`StoreError::Newer`], [`StoreError::Failed`] if
/// it cannot even be read.
pub fn check(path: &Path) -> Result<CheckReport, StoreError> {
    let failed = |e| StoreError::failed("checking the store", e);
    let connection = open_to_read(path)?;
    let (application, version) = header(&connection, path)?;
    belongs(path, application, version)?;
    let mut faults = Vec::new();
    let mut statement = connection
        .prepare("PRAGMA integrity_check")
        .map_err(failed)?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0));
    for line in lines.map_err(failed)? {
        let line = line.map_err(failed)?;
        if line != "ok" {
            faults.push(line);
        }
    }
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
    for (sql, fault) in [
        (
            "SELECT count(*) FROM documents, clock WHERE documents.revision > clock.revision",
            "documents are from after the last change",
        ),
        (
            "SELECT count(*) FROM documents
             WHERE lease IS NOT NULL AND lease NOT IN (SELECT id FROM leases)",
            "documents belong to leases that do not exist",
        ),
        (
            "SELECT count(*) FROM history h JOIN documents d ON d.key = h.key
             WHERE h.revision > d.revision",
            "documents are older than their history",
        ),
    ] {
        let wrong = count(sql).map_err(failed)?;
        if wrong > 0 {
            faults.push(format!("{wrong} {fault}"));
        }
    }
    Ok(CheckReport {
        schema_version: version,
        revision: clock(&connection)?.revision,
        documents: count("SELECT count(*) FROM documents").map_err(failed)?,
        faults,
    })
}
