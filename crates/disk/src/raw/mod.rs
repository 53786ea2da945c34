//! Raw disks: a regular file or a block device, sector for sector.

mod cached;
mod job;
mod lock;
mod open;
mod threads;
mod uring;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::GuestRam;

use crate::{BlockBackend, BlockError, BlockInfo, BlockQueue, Completion, DiskError, Op};
use cached::PageCache;
use job::Job;

use crate::layer::Layer;

pub(crate) use lock::{is_locked, lock};
pub(crate) use open::{check_options, check_type, image_files, open_error};
pub(crate) use uring::UringQueue;
pub use uring::usable as io_uring_usable;

/// How operations reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// io_uring where the host allows it, otherwise threads.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// A small pool of threads with blocking system calls.
    Threads,
}

/// Use of the host's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// Direct I/O where the file system can, otherwise through the cache. What
    /// is in the cache already is read from there.
    #[default]
    Auto,
    /// Direct I/O or an error.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// What to open, and how.
#[derive(Clone, Debug)]
pub struct RawOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Open for reading only; several machines may do so at once.
    pub read_only: bool,
    /// Serial number that the guest sees; ASCII, at most 20 characters.
    pub serial: String,
    /// Logical block size the guest sees, 512 or 4096 bytes.
    pub logical_block: u32,
    /// Use of the page cache.
    pub caching: Caching,
    /// How operations reach the kernel.
    pub aio: Aio,
}

impl RawOptions {
    /// The defaults: read-write, no serial number, 512-byte blocks, the
    /// fastest access that the host allows.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            serial: String::new(),
            logical_block: 512,
            caching: Caching::Auto,
            aio: Aio::Auto,
        }
    }
}

/// The open descriptors of a disk and what they demand.
pub(crate) struct Files {
    /// Through the page cache; holds the lock.
    buffered: Arc<File>,
    direct: Option<Direct>,
    /// Capacity in sectors; it grows only.
    sectors: AtomicU64,
    /// The guest may not make the disk look like one of another format.
    guarded: bool,
}

/// A descriptor with O_DIRECT and its alignment.
struct Direct {
    file: File,
    /// Of addresses and lengths of each part of a buffer, in bytes; power of two.
    memory_align: u64,
    /// Of position and total length, in bytes; power of two.
    offset_align: u64,
    /// To read from the page cache what is there, if that is wanted.
    cached: Option<PageCache>,
}

/// A raw file or block device. The file stays locked while this lives.
pub struct RawDisk {
    files: Arc<Files>,
    info: BlockInfo,
    uring: bool,
}

impl RawDisk {
    /// Opens and locks the file.
    ///
    /// # Errors
    /// [`DiskError`], one for each thing that can be wrong with it.
    pub fn open(options: &RawOptions) -> Result<Self, DiskError> {
        open::open(options)
    }

    /// As [`Self::open`], of a file that is open and locked already.
    pub(crate) fn adopt(options: &RawOptions, layer: Layer) -> Result<Self, DiskError> {
        open::adopt(options, layer)
    }

    /// Whether data passes the host's page cache (no direct I/O).
    pub fn is_buffered(&self) -> bool {
        self.files.direct.is_none()
    }

    /// Whether io_uring is used.
    pub fn uses_uring(&self) -> bool {
        self.uring
    }
}

impl BlockBackend for RawDisk {
    fn info(&self) -> &BlockInfo {
        &self.info
    }

    fn sectors(&self) -> u64 {
        self.files.sectors.load(Ordering::Acquire)
    }

    fn grow(&self, sectors: u64) -> Result<(), DiskError> {
        open::grow(&self.files, &self.info, sectors)
    }

    fn open_queue(&self, ram: Arc<GuestRam>) -> Result<Box<dyn BlockQueue>, DiskError> {
        let (files, info) = (self.files.clone(), self.info.clone());
        Ok(if self.uring {
            Box::new(uring::UringQueue::new(vec![files], info, ram)?)
        } else {
            Box::new(threads::ThreadQueue::new(files, info, ram)?)
        })
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.files.buffered.read_exact_at(out, offset)
    }

    fn describe(&self) -> String {
        let cache = if self.is_buffered() {
            "page cache"
        } else {
            "direct"
        };
        let aio = if self.uring { "io_uring" } else { "threads" };
        format!("raw, {cache}, {aio}")
    }

    fn raw_file(&self) -> Option<&File> {
        Some(&self.files.buffered)
    }
}

/// Jobs ready for use again, so that requests allocate nothing.
#[derive(Default)]
struct Spare(Vec<Job>);

impl Spare {
    /// A job loaded with an operation.
    fn load(
        &mut self,
        tag: u64,
        op: &Op<'_>,
        info: &BlockInfo,
        files: &Files,
        ram: &GuestRam,
    ) -> Result<Job, BlockError> {
        let mut job = self.0.pop().unwrap_or_default();
        match job.load(tag, op, info, files, ram) {
            Ok(()) => Ok(job),
            Err(error) => {
                self.0.push(job);
                Err(error)
            }
        }
    }

    /// Ends a job: tells of the writes to guest memory, hands out its result.
    fn finish(&mut self, job: Job, ram: &GuestRam) -> Completion {
        let completion = job.complete(ram);
        self.0.push(job);
        completion
    }
}
