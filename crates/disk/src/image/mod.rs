//! An image in any format, with all that it builds on, for use from many
//! threads. Virtual disks in other formats than raw, and the operations on
//! image files, work on this.

mod access;
mod disk;
mod fast;
mod gate;
mod queue;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::format::PreallocateMode;
use imago::{FormatAccess, Mapping, ShallowMapping};
use parking_lot::{Mutex, RwLock};
use rustix::fs::SeekFrom;

use crate::DiskError;
use crate::format::Format;
use crate::layer::{Access, Layer, open_chain};
use crate::qcow2::header::Header;
use crate::qcow2::storage::{ImageFile, punch, unsupported, zero};
use gate::{Gate, Inside};

pub(crate) use disk::open_image_disk;

/// Zeroes are written as data in pieces of this many bytes.
const PIECE: usize = 1 << 20;

/// What to open, and how.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// The file.
    pub path: PathBuf,
    /// Its format; `None`: decided safely, see `format`.
    pub format: Option<Format>,
    /// Nothing is written.
    pub read_only: bool,
    /// What is written need not survive the host: nothing is ever synced.
    pub scratch: bool,
}

impl ImageOptions {
    /// To read an image of a format that is found out.
    pub fn read(path: impl Into<PathBuf>, format: Option<Format>) -> Self {
        Self {
            path: path.into(),
            format,
            read_only: true,
            scratch: false,
        }
    }

    /// To read and write it.
    pub fn write(path: impl Into<PathBuf>, format: Option<Format>) -> Self {
        Self {
            read_only: false,
            ..Self::read(path, format)
        }
    }
}

/// What a part of an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Data, in this image or below it.
    Data,
    /// Nothing but zeroes.
    Zero,
}

/// Where a part of an image comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Data in the image itself.
    Own,
    /// Zeroes that the image itself says.
    OwnZero,
    /// What it builds on, or nothing.
    Below,
}

/// A part of a range: in a file, or zeroes.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    file: Option<usize>,
    offset: u64,
    length: u64,
}

/// Most parts of a range that is transferred without its tables.
const MAX_PLACES: usize = 8;

/// The parts of a range, in order.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    list: [Place; MAX_PLACES],
    count: usize,
}

impl Places {
    /// Adds a part; whether there was room.
    fn push(&mut self, place: Place) -> bool {
        let Some(slot) = self.list.get_mut(self.count) else {
            return false;
        };
        *slot = place;
        self.count += 1;
        true
    }

    fn iter(&self) -> impl Iterator<Item = &Place> {
        self.list.iter().take(self.count)
    }
}

/// An open image. Writes are durable after [`Image::flush`].
pub struct Image {
    /// Nothing but `drop` takes it.
    access: FormatAccess<ImageFile>,
    layers: Vec<Layer>,
    /// The header as it is in the file, of a qcow2 image that is written.
    header: Mutex<Option<Header>>,
    read_only: bool,
    scratch: bool,
    gate: Gate,
    /// Held by what may allocate; alone by a flush: else a table could be
    /// written whose newest clusters have no refcounts in the file yet.
    allocating: RwLock<()>,
    /// Tables changed since the last flush.
    tables_changed: AtomicBool,
    /// The format's code has failed in an unknown state.
    failed: AtomicBool,
}

impl Image {
    /// Opens an image with all that it builds on. A qcow2 image that is to be
    /// written is checked, and repaired if it was not closed.
    ///
    /// # Errors
    /// [`DiskError`], one for each thing that can be wrong with it.
    pub fn open(options: &ImageOptions) -> Result<Self, DiskError> {
        let access = Access {
            read_only: options.read_only,
            unlocked: false,
        };
        let layers = open_chain(&options.path, options.format, access)?;
        Self::from_layers(layers, options)
    }

    pub(crate) fn from_layers(
        layers: Vec<Layer>,
        options: &ImageOptions,
    ) -> Result<Self, DiskError> {
        let (access, header) = access::build(&layers, options)?;
        Ok(Self {
            access,
            layers,
            header: Mutex::new(header),
            read_only: options.read_only,
            scratch: options.scratch,
            gate: Gate::default(),
            allocating: RwLock::default(),
            tables_changed: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        })
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.access.size()
    }

    /// The image's own format.
    pub fn format(&self) -> Format {
        self.top().format
    }

    /// The files, the image itself first.
    pub fn files(&self) -> impl Iterator<Item = (&Path, Format)> {
        self.layers.iter().map(|l| (l.path.as_path(), l.format))
    }

    /// Nothing can be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn top(&self) -> &Layer {
        // A chain has its first file at least.
        &self.layers[0]
    }

    /// Bytes that the image allocates at once.
    pub(crate) fn granularity(&self) -> u64 {
        let header = self.top().header.as_ref();
        header.map_or(4096, Header::cluster_size)
    }

    /// Whether discarded clusters can be told from data (qcow2 version 2 has
    /// no zero clusters).
    pub(crate) fn can_discard(&self) -> bool {
        let header = self.top().header.as_ref();
        !self.read_only && header.is_none_or(|h| h.version >= 3)
    }

    /// Runs the format's code, which may have faults that a hostile image
    /// finds: a panic ends this image's use, not the process.
    fn run<T>(&self, code: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|_| {
            self.failed.store(true, Ordering::Relaxed);
            tracing::error!(
                path = %self.top().path.display(),
                "the code for this disk's format failed; the disk gives errors from here on"
            );
            Err(io::Error::from_raw_os_error(libc::EIO))
        })
    }

    /// Reads; the range must lie on the disk.
    ///
    /// # Errors
    /// The host's error, or what is wrong with the image.
    pub fn read(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let _inside = Inside::new(&self.gate);
        self.run(|| self.access.read(out, offset))
    }

    /// Writes; the range must lie on the disk.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let _inside = Inside::new(&self.gate);
        let _allocating = self.allocating.read();
        self.tables_change(|| self.access.write(data, offset))
    }

    /// Runs what may change tables.
    fn tables_change<T>(&self, code: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let done = self.run(code);
        // Afterwards: a flush that began meanwhile may have missed it.
        self.tables_changed.store(true, Ordering::SeqCst);
        done
    }

    /// Where in which file a range lies that can be read, or written in place,
    /// without the tables; `None`: not so, or only in many parts. The gate must
    /// be held from before this until the data was transferred.
    fn places(&self, mut offset: u64, length: u64, write: bool) -> Option<Places> {
        let end = offset + length;
        let mut places = Places::default();
        while offset < end {
            let at = self.run(|| self.access.get_mapping(offset, end - offset));
            let (mapping, length) = at.ok()?;
            let length = length.min(end - offset);
            let place = match mapping {
                Mapping::Raw {
                    storage,
                    offset,
                    writable,
                    ..
                } if writable || !write => {
                    let file = |l: &Layer| Arc::ptr_eq(&l.file, storage.file());
                    Place {
                        file: Some(self.layers.iter().position(file)?),
                        offset,
                        length,
                    }
                }
                Mapping::Zero { .. } if !write => Place {
                    file: None,
                    offset: 0,
                    length,
                },
                _ => return None,
            };
            let whole = place.offset.is_multiple_of(512) && length.is_multiple_of(512);
            if length == 0 || !whole || !places.push(place) {
                return None;
            }
            offset += length;
        }
        Some(places)
    }

    /// Makes a range read as zeroes; with `unmap` its space goes back to the
    /// host where that is possible.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.gate.alone(|| {
            let zeroed = self.tables_change(|| self.zero_alone(offset, length, unmap));
            match zeroed {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    self.tables_change(|| self.zero_as_data(offset, length))
                }
                other => other,
            }
        })
    }

    /// Gives up the contents of a range.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        if !self.can_discard() || length == 0 {
            return Ok(());
        }
        self.gate
            .alone(|| self.tables_change(|| self.zero_alone(offset, length, true)))
    }

    fn zero_alone(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.format() == Format::Raw {
            return zero(&self.top().file, offset, length);
        }
        if !unmap {
            return self.access.write_zeroes(offset, length);
        }
        // Whole clusters go first: the parts of others at the ends may need
        // new clusters, and take some of those that were freed.
        let (start, end) = self.whole_clusters(offset, length);
        if start >= end {
            return self.access.write_zeroes(offset, length);
        }
        let freed = self.own_clusters(start, end)?;
        // SAFETY: the gate keeps all others out, so nobody holds mappings.
        unsafe { self.access.discard_to_zero_unsafe(start, end - start) }?;
        for (at, length) in freed {
            match punch(&self.top().file, at, length) {
                Err(error) if !unsupported(&error) => return Err(error),
                _ => {}
            }
        }
        self.access.write_zeroes(offset, start - offset)?;
        self.access.write_zeroes(end, offset + length - end)
    }

    /// The part of a range that is whole clusters; the last one of the disk
    /// counts as whole.
    fn whole_clusters(&self, offset: u64, length: u64) -> (u64, u64) {
        let (cluster, size) = (self.granularity(), self.size());
        let end = offset.saturating_add(length).min(size);
        let whole = if end == size {
            end
        } else {
            end / cluster * cluster
        };
        (offset.next_multiple_of(cluster), whole)
    }

    /// Places in the image's file that a range of whole clusters occupies.
    fn own_clusters(&self, mut at: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        while at < end {
            let (mapping, length) = self.access.get_shallow_mapping(at, end - at)?;
            if length == 0 {
                break;
            }
            if let ShallowMapping::Raw {
                offset,
                writable: true,
                ..
            } = mapping
            {
                found.push((offset, length));
            }
            at += length;
        }
        Ok(found)
    }

    fn zero_as_data(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let zeroes = vec![0; PIECE.min(length as usize)];
        while length > 0 {
            let part = length.min(zeroes.len() as u64);
            let piece = zeroes.get(..part as usize).unwrap_or_default();
            self.access.write(piece, offset)?;
            offset += part;
            length -= part;
        }
        Ok(())
    }

    /// Makes all that was written so far durable; nothing for a scratch image.
    ///
    /// # Errors
    /// As [`Self::read`]; then nothing is known to be durable.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only || self.scratch {
            return Ok(());
        }
        self.settle()?;
        let _inside = Inside::new(&self.gate);
        self.run(|| self.access.sync())
    }

    /// Writes to the files what is only in this process, so that a copy of
    /// them is a copy of the disk.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn settle(&self) -> io::Result<()> {
        let _inside = Inside::new(&self.gate);
        if !self.tables_changed.load(Ordering::SeqCst) {
            return Ok(());
        }
        // Tables come after their data: most of it goes before others wait.
        self.run(|| self.access.sync())?;
        let _alone = self.allocating.write();
        if !self.tables_changed.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let written = self.run(|| self.access.flush());
        written.inspect_err(|_| self.tables_changed.store(true, Ordering::SeqCst))
    }

    /// What is at `offset`, and for how many bytes, at most `max`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn extent(&self, offset: u64, max: u64) -> io::Result<(Extent, u64)> {
        let _inside = Inside::new(&self.gate);
        let (mapping, length) = self.run(|| self.access.get_mapping(offset, max))?;
        let length = length.min(max);
        Ok(match mapping {
            Mapping::Zero { .. } => (Extent::Zero, length),
            Mapping::Eof { .. } => (Extent::Zero, max),
            Mapping::Raw {
                storage, offset, ..
            } => holes(storage, offset, length),
            // Compressed data, or what a later imago has.
            _ => (Extent::Data, length),
        })
    }

    /// Where the bytes at `offset` come from, and for how many, at most `max`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn origin(&self, offset: u64, max: u64) -> io::Result<(Origin, u64)> {
        let _inside = Inside::new(&self.gate);
        let (mapping, length) = self.run(|| self.access.get_shallow_mapping(offset, max))?;
        Ok(match mapping {
            ShallowMapping::Zero { explicit: true, .. } => (Origin::OwnZero, length),
            ShallowMapping::Zero { .. } | ShallowMapping::Indirect { .. } => {
                (Origin::Below, length)
            }
            ShallowMapping::Eof { .. } => (Origin::Below, max),
            _ => (Origin::Own, length),
        })
    }

    /// Makes the disk larger, while it is in use; what is new reads as zeroes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn grow(&self, size: u64) -> io::Result<()> {
        // What a longer backing file has there must not show.
        let old = self.size();
        self.gate.alone(|| {
            self.tables_change(|| self.access.resize_grow(size, PreallocateMode::None))
        })?;
        let below = self
            .layers
            .get(1)
            .map_or(0, |l| l.size().unwrap_or(u64::MAX));
        if below > old {
            self.zero(old, size.min(below) - old, true)?;
        }
        self.flush()
    }

    /// Makes the disk smaller; what lay behind is lost.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn shrink(&mut self, size: u64) -> io::Result<()> {
        self.access.resize_shrink(size)?;
        self.tables_changed.store(true, Ordering::SeqCst);
        self.flush()
    }

    /// Writes and syncs all, and marks a qcow2 image as closed.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn close(self) -> io::Result<()> {
        self.finish()
    }

    pub(crate) fn finish(&self) -> io::Result<()> {
        self.settle()?;
        self.flush()?;
        let mut header = self.header.lock();
        if let Some(header) = header.take().as_mut() {
            let file = &self.top().file;
            header.mark_dirty(file, false)?;
            file.sync_data()?;
        }
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::error!(
                path = %self.top().path.display(), %error,
                "closing the disk: it will be checked when it is opened again"
            );
        }
    }
}

/// Which of data and a hole a file has at a place, and for how long.
fn holes(storage: &ImageFile, offset: u64, length: u64) -> (Extent, u64) {
    let file = &**storage.file();
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => (Extent::Zero, length.min(data - offset)),
        Ok(_) => match rustix::fs::seek(file, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => (Extent::Data, length.min(hole - offset)),
            _ => (Extent::Data, length),
        },
        Err(rustix::io::Errno::NXIO) => (Extent::Zero, length),
        Err(_) => (Extent::Data, length),
    }
}
