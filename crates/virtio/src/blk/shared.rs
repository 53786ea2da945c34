//! What all queues of a block device and its owner share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use disk::{BlockBackend, BlockError};
use parking_lot::Mutex;
use serde::Serialize;

use super::request::RequestKind;
use crate::device::Signal;

/// An operation that the host could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFailure {
    /// First sector of the request.
    pub sector: u64,
    /// It was a write, discard or flush: data may be lost.
    pub write: bool,
    /// What happened.
    pub error: BlockError,
    /// The request is kept and the guest waits; otherwise the guest sees an
    /// I/O error.
    pub held: bool,
}

/// Hears of the first failed operation since the device was started, on a
/// thread of the device.
pub type FailureHook = Arc<dyn Fn(IoFailure) + Send + Sync>;

/// What went through a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkStats {
    /// Reads done.
    pub reads: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Discards and write-zeroes done.
    pub discards: u64,
    /// Operations that the host failed, each time.
    pub errors: u64,
    /// How often a queue had to wait for a limit.
    pub throttled: u64,
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
    throttled: AtomicU64,
}

/// A block device as its queues and its owner see it.
pub(super) struct Shared {
    pub disk: Arc<dyn BlockBackend>,
    counters: Counters,
    /// Write-through.
    pub durable: AtomicBool,
    /// The rings are not touched any more.
    pub broken: AtomicBool,
    /// The way to the guest while the device works.
    signal: Mutex<Option<Arc<dyn Signal>>>,
    /// Capacity of which the guest has been told.
    told: AtomicU64,
    on_failure: Option<FailureHook>,
    failure: Mutex<Option<IoFailure>>,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Shared {
    pub(super) fn new(disk: Arc<dyn BlockBackend>, on_failure: Option<FailureHook>) -> Self {
        Self {
            told: AtomicU64::new(disk.sectors()),
            disk,
            counters: Counters::default(),
            durable: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            signal: Mutex::default(),
            on_failure,
            failure: Mutex::default(),
        }
    }

    /// The device works from now on, or no longer.
    pub(super) fn connect(&self, signal: Option<Arc<dyn Signal>>) {
        let works = signal.is_some();
        *self.signal.lock() = signal;
        if works {
            self.broken.store(false, Ordering::SeqCst);
            *self.failure.lock() = None;
            self.tell_size();
        }
    }

    /// Tells the guest of another capacity, if it is one.
    pub(super) fn tell_size(&self) {
        let sectors = self.disk.sectors();
        if let Some(signal) = &*self.signal.lock()
            && self.told.swap(sectors, Ordering::SeqCst) != sectors
        {
            signal.config_changed();
        }
    }

    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }

    pub(super) fn set_told(&self, sectors: u64) {
        self.told.store(sectors, Ordering::SeqCst);
    }

    pub(super) fn done(&self, kind: RequestKind, bytes: u64) {
        let c = &self.counters;
        match kind {
            RequestKind::Read => {
                add(&c.reads, 1);
                add(&c.read_bytes, bytes);
            }
            RequestKind::Write => {
                add(&c.writes, 1);
                add(&c.written_bytes, bytes);
            }
            RequestKind::Flush => add(&c.flushes, 1),
            RequestKind::Discard | RequestKind::WriteZeroes | RequestKind::Unmap => {
                add(&c.discards, 1);
            }
        }
    }

    pub(super) fn throttled(&self) {
        add(&self.counters.throttled, 1);
    }

    /// Takes note of a failure; the first is told.
    pub(super) fn failed(&self, failure: IoFailure) {
        add(&self.counters.errors, 1);
        let first = {
            let mut known = self.failure.lock();
            let first = known.is_none();
            known.get_or_insert(failure);
            first
        };
        tracing::debug!(?failure, first, "a disk operation failed");
        if !first {
            return;
        }
        if let Some(hook) = &self.on_failure {
            hook(failure);
        }
    }

    fn stats(&self) -> BlkStats {
        let c = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlkStats {
            reads: get(&c.reads),
            writes: get(&c.writes),
            read_bytes: get(&c.read_bytes),
            written_bytes: get(&c.written_bytes),
            flushes: get(&c.flushes),
            discards: get(&c.discards),
            errors: get(&c.errors),
            throttled: get(&c.throttled),
        }
    }
}

/// The owner's view of a block device that is in a machine.
#[derive(Clone)]
pub struct BlkControl(pub(super) Arc<Shared>);

impl BlkControl {
    /// The disk behind the device.
    pub fn disk(&self) -> &Arc<dyn BlockBackend> {
        &self.0.disk
    }

    /// Whether a driver in the guest uses the device. While the machine is
    /// paused, none does.
    pub fn is_in_use(&self) -> bool {
        self.0.signal.lock().is_some()
    }

    /// What went through.
    pub fn stats(&self) -> BlkStats {
        self.0.stats()
    }

    /// The first operation that failed since the device was last started:
    /// since the last resume, if the machine was paused for it.
    pub fn failure(&self) -> Option<IoFailure> {
        *self.0.failure.lock()
    }

    /// Makes the disk larger and tells the guest, now or when it runs again.
    ///
    /// # Errors
    /// As [`BlockBackend::grow`].
    pub fn grow(&self, sectors: u64) -> Result<(), disk::DiskError> {
        self.0.disk.grow(sectors)?;
        self.0.tell_size();
        Ok(())
    }
}
