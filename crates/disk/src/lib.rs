//! Disks behind one asynchronous block interface.
//!
//! A [`BlockBackend`] is a disk; a [`BlockQueue`] is one thread's way to it.
//! Requests name guest memory by guest-physical address: the queue resolves
//! it, keeps the RAM alive while the host works on it, and tells
//! [`memory::GuestRam::wrote`] after reads, so that dirty tracking and the
//! CPU engine hear of every change.
//!
//! [`open`] opens a disk of any format: [`RawDisk`], a raw file or block
//! device, or a qcow2 image with all that it builds on, an [`Image`].

mod capture;
mod crew;
mod error;
mod format;
mod image;
mod layer;
pub mod manage;
mod open;
mod qcow2;
mod raw;
mod waker;

use std::fs::File;
use std::io;
use std::sync::Arc;

use memory::GuestRam;

pub use capture::{CapturableDisk, Capture, CaptureTarget};
pub use error::{BlockError, DiskError};
pub use format::{ATTRIBUTE, ForeignFormat, Format, Looks};
pub use image::{Extent, Image, ImageOptions, Origin};
pub use layer::MAX_LAYERS;
pub use open::{DiskOptions, open};
pub use qcow2::check::Report;
pub use raw::{Aio, Caching, RawDisk, RawOptions, io_uring_usable};
pub use waker::Waker;

/// Bytes in a sector, the unit of all positions and lengths on a disk.
pub const SECTOR: u64 = 512;

/// Longest serial number, in bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_ID_BYTES).
pub const SERIAL_MAX: usize = 20;

/// Most parts of guest memory in one request (the kernel's UIO_MAXIOV).
pub const MAX_RANGES: usize = 1024;

/// Part of a request's buffer: contiguous guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
}

/// What a disk looks like to its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Capacity in sectors of 512 bytes when it was opened; see
    /// [`BlockBackend::sectors`].
    pub sectors: u64,
    /// Smallest unit the guest addresses, in bytes (512 or 4096).
    pub logical_block: u32,
    /// Unit the host writes without reading first, in bytes, a power of two.
    pub physical_block: u32,
    /// Best size of a transfer in bytes; 0: not known.
    pub optimal_io: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// At most [`SERIAL_MAX`] bytes of ASCII; may be empty.
    pub serial: String,
    /// Discarded ranges give their space back to the host.
    pub discard: bool,
    /// Alignment and unit of useful discards, in bytes.
    pub discard_granularity: u32,
}

/// An operation on a disk. Positions and lengths are in sectors.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Reads consecutive sectors into guest memory.
    Read {
        /// First sector.
        sector: u64,
        /// Where to; the lengths add up to a multiple of 512.
        to: &'a [GuestRange],
    },
    /// Writes consecutive sectors from guest memory.
    Write {
        /// First sector.
        sector: u64,
        /// Where from; the lengths add up to a multiple of 512.
        from: &'a [GuestRange],
        /// Complete only when the data is on stable storage (write-through).
        durable: bool,
    },
    /// Makes all writes that have completed so far durable.
    Flush,
    /// Gives up the contents of a range; a hint.
    Discard {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        count: u64,
    },
    /// Makes a range read as zeroes.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        count: u64,
        /// The space may be given back to the host.
        unmap: bool,
        /// As for [`Op::Write`].
        durable: bool,
    },
}

/// The end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to [`BlockQueue::submit`].
    pub tag: u64,
    /// Bytes transferred between guest memory and disk, or why it failed.
    pub result: Result<u64, BlockError>,
}

/// A disk. Shared by all its users.
pub trait BlockBackend: Send + Sync {
    /// Size, block sizes, serial and abilities; constant while open.
    fn info(&self) -> &BlockInfo;

    /// Capacity in sectors now. Only [`Self::grow`] changes it.
    fn sectors(&self) -> u64 {
        self.info().sectors
    }

    /// Makes the disk larger while it is in use; what is new reads as zeroes.
    /// On a block device, which its owner makes larger, takes note of it.
    ///
    /// # Errors
    /// [`DiskError::Grow`]: it would become smaller, has not whole blocks, or
    /// cannot grow.
    fn grow(&self, sectors: u64) -> Result<(), DiskError> {
        let _ = sectors;
        Err(DiskError::Grow {
            disk: self.describe(),
            why: "this format cannot grow while it is in use".into(),
        })
    }

    /// Opens a queue for operations on `ram`.
    ///
    /// # Errors
    /// [`DiskError::Queue`] if the host has no resources for it.
    fn open_queue(&self, ram: Arc<GuestRam>) -> Result<Box<dyn BlockQueue>, DiskError>;

    /// Reads `out.len()` bytes at byte `offset`, waiting for them. For the
    /// monitor's own use (boot entries, partition tables), not for the guest's.
    ///
    /// # Errors
    /// The host's error; `UnexpectedEof` past the end.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all and marks an image as closed, when the disk's last queue is
    /// gone: nothing may be written afterwards.
    ///
    /// # Errors
    /// The host's error; the image is mended when it is opened again.
    fn close(&self) -> io::Result<()> {
        Ok(())
    }

    /// Format and ways of access in a few words, for logs.
    fn describe(&self) -> String;

    /// The file whose bytes are the disk's sectors, if there is one.
    fn raw_file(&self) -> Option<&File> {
        None
    }

    /// The image that the disk is, if it is one of another format than raw.
    fn image(&self) -> Option<&Arc<Image>> {
        None
    }

    /// The disk as one that can be copied while it is written.
    fn capturable(&self) -> Option<&CapturableDisk> {
        None
    }
}

/// One thread's queue to a disk. Operations complete in any order. Dropping a
/// queue waits for those in flight; their completions are lost.
pub trait BlockQueue: Send {
    /// Takes an operation; it starts with the next [`Self::poll`] or
    /// [`Self::wait`] at the latest.
    ///
    /// # Errors
    /// Why the operation cannot be done at all; it will not complete then.
    fn submit(&mut self, tag: u64, op: Op<'_>) -> Result<(), BlockError>;

    /// Starts what was submitted and moves what has completed to `out`,
    /// without waiting.
    ///
    /// # Errors
    /// The host's error when the queue as a whole has failed.
    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()>;

    /// As [`Self::poll`], but waits until an operation has completed or
    /// [`Waker::wake`] was called (possibly before this call). May return
    /// early with nothing.
    ///
    /// # Errors
    /// As [`Self::poll`].
    fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()>;

    /// Operations submitted and not yet handed out as completed.
    fn in_flight(&self) -> usize;

    /// Ends a [`Self::wait`] from another thread.
    fn waker(&self) -> Arc<Waker>;
}
