//! What a running machine knows of its memory's pages, for snapshots.

use std::path::PathBuf;

use memory::PageSet;

use super::SnapshotError;
use crate::machine::Inner;

/// Which pages may hold anything, and which have changed.
pub(crate) struct Ledger {
    /// Pages that were ever written; all others are zero.
    pub written: PageSet,
    /// Pages written since the last snapshot, or since the machine was made.
    pub since: PageSet,
    /// The last snapshot.
    pub last: Option<Last>,
}

/// A snapshot that the next one can build on.
#[derive(Clone)]
pub(crate) struct Last {
    pub id: String,
    pub directory: PathBuf,
    /// How many build on each other, itself included.
    pub depth: usize,
}

impl Ledger {
    /// Of a machine whose memory is zero.
    pub fn new(pages: u64) -> Self {
        Self {
            written: PageSet::none(pages),
            since: PageSet::none(pages),
            last: None,
        }
    }

    /// Of a machine with the memory of a snapshot.
    pub fn restored(written: PageSet, last: Last) -> Self {
        Self {
            since: PageSet::none(written.capacity()),
            written,
            last: Some(last),
        }
    }

    /// Notes the pages written since this was last called, and returns them.
    /// `None`: the engine does not know; any may have been.
    pub fn collect(&mut self, machine: &Inner) -> Result<Option<PageSet>, SnapshotError> {
        let ram = machine.ram();
        let (known, bitmap) = machine.control().quiesce(|| {
            // Both while no vCPU runs: a page written between would be lost.
            (machine.engine().collect_dirty(), ram.take_dirty())
        });
        let known = known.map_err(|e| SnapshotError::Refused(e.to_string()))?;
        let pages = match known {
            true => PageSet::from_bitmap(bitmap, ram.pages()),
            false => PageSet::all(ram.pages()),
        };
        self.written.union(&pages);
        self.since.union(&pages);
        Ok(known.then_some(pages))
    }
}
