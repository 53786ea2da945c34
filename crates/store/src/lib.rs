//! Versioned documents with compare-and-swap, watches and leases.
//!
//! [`Store`] is the contract: what a daemon keeps, it keeps here. [`Sqlite`]
//! is one host's store, a file; a fleet's is etcd, behind the same contract
//! and the same tests (`tests/contract`). [`Records`] reads and writes typed
//! documents on top of either.
#![forbid(unsafe_code)]

mod contract;
mod error;
mod records;
mod sqlite;

pub use contract::{
    Change, Document, Event, Expect, LeaseId, Page, Revision, Store, Watch, WatchBatch, Write,
};
pub use contract::{KEY_MAX, PAGE_MAX, VALUE_MAX, WRITES_MAX};
pub use error::StoreError;
pub use records::{Found, Record, RecordError, Records};
pub use sqlite::{CheckReport, SCHEMA_VERSION, Sqlite, backup, check, file, restore};
