//! The file under an image, as `imago` wants it, with what a crash of the host
//! demands: a table that makes data reachable is written only after the data
//! is durable.
//!
//! Imago orders its writes (refcounts of data before what refers to it), which
//! suffices when only the process dies. The host may write back its cache in
//! any order; so this file knows where L1 and L2 tables are, from the writes it
//! sees, and syncs before it writes one while other writes are not durable.
//! Refcounts need no such care: an image is marked dirty while it is open, and
//! they are rebuilt when it was not closed.
//!
//! What imago does not order are the refcounts of new tables: it refers to
//! them while their refcounts are in its cache only. They are written here,
//! so that a killed process leaves no damage even for who ignores the mark.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;

use super::check::{refcount, set_refcount};
use super::header::{DIRTY, Header, INCOMPATIBLE_AT, read_padded, u32_at, u64_at};
use super::tables::OFFSET_BITS;

/// Bytes of the header that say where the tables are.
const PLACES: usize = 60;

/// Where the tables are.
struct Tables {
    cluster: u64,
    /// First byte and length.
    l1: (u64, u64),
    /// First byte and length.
    reftable: (u64, u64),
    refcount_order: u32,
    /// Host offsets of L2 tables.
    l2: HashSet<u64>,
}

/// What a write is to the tables.
#[derive(Default)]
struct Meaning {
    /// It goes to a table that makes data reachable.
    reaches: bool,
    /// Tables that it refers to.
    tables: Vec<u64>,
}

/// See the module.
struct Barrier {
    tables: Mutex<Tables>,
    /// Something was written since the last sync.
    unsynced: AtomicBool,
}

/// What a file is to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Only read.
    Base,
    /// A qcow2 image: the dirty bit is hidden from imago.
    Image,
    /// Written, and lost with the process: never synced.
    Scratch,
}

/// A file of an image.
pub(crate) struct ImageFile {
    file: Arc<File>,
    path: PathBuf,
    role: Role,
    hide_dirty: bool,
    barrier: Option<Barrier>,
    helper: CommonStorageHelper,
}

impl ImageFile {
    /// A file that is read or written sector for sector.
    pub(crate) fn raw(file: Arc<File>, path: PathBuf, role: Role) -> Self {
        Self {
            file,
            path,
            role,
            hide_dirty: false,
            barrier: None,
            helper: CommonStorageHelper::default(),
        }
    }

    /// The file of a qcow2 image.
    pub(crate) fn qcow2(file: Arc<File>, path: PathBuf, role: Role) -> Self {
        Self {
            hide_dirty: true,
            ..Self::raw(file, path, role)
        }
    }

    /// Adds the barrier, for a qcow2 image that is written.
    pub(crate) fn with_barrier(mut self, header: &Header, l2: HashSet<u64>) -> Self {
        if self.role == Role::Image {
            let reftable = u64::from(header.reftable_clusters) << header.cluster_bits;
            self.barrier = Some(Barrier {
                tables: Mutex::new(Tables {
                    cluster: header.cluster_size(),
                    l1: (header.l1_offset, u64::from(header.l1_entries) * 8),
                    reftable: (header.reftable_offset, reftable),
                    refcount_order: header.refcount_order,
                    l2,
                }),
                unsynced: AtomicBool::new(false),
            });
        }
        self
    }

    /// The open file.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn fdatasync(&self) -> io::Result<()> {
        if self.role != Role::Image {
            return Ok(());
        }
        if let Some(barrier) = &self.barrier {
            // Before the sync: what is written during it counts anew.
            barrier.unsynced.store(false, Ordering::SeqCst);
        }
        self.file.sync_data().inspect_err(|_| {
            if let Some(barrier) = &self.barrier {
                barrier.unsynced.store(true, Ordering::SeqCst);
            }
        })
    }

    /// Writes `data`, by `write`, at `offset` in its place among the others.
    fn ordered(
        &self,
        offset: u64,
        data: &[io::IoSlice<'_>],
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(barrier) = &self.barrier else {
            return write();
        };
        let meaning = {
            let mut tables = barrier.tables.lock();
            let meaning = tables.note(offset, data);
            for table in &meaning.tables {
                tables.count(&self.file, *table)?;
            }
            meaning
        };
        if meaning.reaches {
            if barrier.unsynced.load(Ordering::SeqCst) {
                self.fdatasync()?;
            }
            return write();
        }
        let written = write();
        // Afterwards: a sync during the write may have missed a part of it.
        barrier.unsynced.store(true, Ordering::SeqCst);
        written
    }
}

impl Tables {
    /// Learns from a write, and tells what it means.
    fn note(&mut self, offset: u64, data: &[io::IoSlice<'_>]) -> Meaning {
        let mut meaning = Meaning::default();
        let within = |(from, length): (u64, u64)| offset >= from && offset - from < length;
        if offset == 0 {
            meaning.reaches = true;
            let head: Vec<u8> = data
                .iter()
                .flat_map(|p| p.iter().copied())
                .take(PLACES)
                .collect();
            if head.len() == PLACES {
                self.l1 = (u64_at(&head, 40), u64::from(u32_at(&head, 36)) * 8);
                let clusters = u64::from(u32_at(&head, 56));
                self.reftable = (u64_at(&head, 48), clusters.saturating_mul(self.cluster));
            }
        } else if within(self.l1) {
            meaning.reaches = true;
            meaning.tables = entries(data);
            self.l2.extend(&meaning.tables);
        } else if within(self.reftable) {
            meaning.tables = entries(data);
        } else {
            meaning.reaches = self.l2.contains(&(offset & !(self.cluster - 1)));
        }
        meaning
    }

    /// Sees that a table's cluster counts as used. Refcounts that share a byte
    /// with others are left to imago, which may write that byte now.
    fn count(&self, file: &File, table: u64) -> io::Result<()> {
        if self.refcount_order < 3 {
            return Ok(());
        }
        let width = 1u64 << (self.refcount_order - 3);
        let (cluster, in_block) = (table / self.cluster, self.cluster / width);
        let slot = cluster / in_block * 8;
        if slot >= self.reftable.1 {
            return Ok(());
        }
        let mut entry = [0; 8];
        read_padded(file, &mut entry, self.reftable.0 + slot)?;
        // None: it is about to be written, and counts itself.
        let block = u64_at(&entry, 0) & OFFSET_BITS;
        let place = block + cluster % in_block * width;
        let mut count = vec![0; width as usize];
        read_padded(file, &mut count, place)?;
        if block != 0 && refcount(&count, self.refcount_order, 0) == 0 {
            set_refcount(&mut count, self.refcount_order, 0, 1);
            file.write_all_at(&count, place)?;
        }
        Ok(())
    }
}

/// The tables to which entries refer.
fn entries(data: &[io::IoSlice<'_>]) -> Vec<u64> {
    let offsets = data.iter().flat_map(|part| part.chunks_exact(8));
    offsets
        .map(|entry| u64_at(entry, 0) & OFFSET_BITS)
        .filter(|offset| *offset != 0)
        .collect()
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        super::header::length_of(&self.file)
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut part in bufv.into_inner() {
            super::header::read_padded(&self.file, &mut part, offset)?;
            if self.hide_dirty && offset < INCOMPATIBLE_AT + 8 {
                hide_dirty(&mut part, offset);
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        let parts = bufv.into_inner();
        self.ordered(offset, &parts, || {
            for part in &parts {
                self.file.write_all_at(part, offset)?;
                offset += part.len() as u64;
            }
            Ok(())
        })
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.ordered(offset, &[], || zero(&self.file, offset, length))
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.ordered(offset, &[], || write_zeroes(&self.file, offset, length))
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match punch(&self.file, offset, length) {
            Ok(()) => Ok(()),
            Err(error) if unsupported(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.fdatasync()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, mode: PreallocateMode) -> io::Result<()> {
        let old = self.size()?;
        self.file.set_len(new_size)?;
        match mode {
            // New parts of a file are holes, which read as zeroes.
            PreallocateMode::None | PreallocateMode::Zero => Ok(()),
            _ if new_size <= old => Ok(()),
            PreallocateMode::Allocate => Ok(rustix::fs::fallocate(
                &*self.file,
                FallocateFlags::empty(),
                old,
                new_size - old,
            )?),
            _ => write_zeroes(&self.file, old, new_size - old),
        }
    }
}

/// Clears the dirty bit in what was read of the header.
fn hide_dirty(part: &mut [u8], offset: u64) {
    // The features are big-endian: the dirty bit is in the last byte.
    let at = INCOMPATIBLE_AT + 7;
    let byte = at
        .checked_sub(offset)
        .and_then(|at| usize::try_from(at).ok());
    if let Some(byte) = byte.and_then(|at| part.get_mut(at)) {
        *byte &= !(DIRTY as u8);
    }
}

/// Gives the space of a range back to the host; it reads as zeroes.
pub(crate) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, length)?)
}

/// Makes a range read as zeroes, growing the file if it ends before.
pub(crate) fn zero(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let end = offset.checked_add(length);
    let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let now = super::header::length_of(file)?;
    if offset < now {
        let inside = length.min(now - offset);
        match punch(file, offset, inside) {
            Ok(()) => {}
            Err(error) if unsupported(&error) => write_zeroes(file, offset, inside)?,
            Err(error) => return Err(error),
        }
    }
    if end > now {
        // Not by the file's length: others may make it longer meanwhile.
        file.write_all_at(&[0], end - 1)?;
    }
    Ok(())
}

/// Writes zeroes as data.
pub(crate) fn write_zeroes(file: &File, mut offset: u64, mut length: u64) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    while length > 0 {
        let part = length.min(ZEROES.len() as u64);
        file.write_all_at(ZEROES.get(..part as usize).unwrap_or(&ZEROES), offset)?;
        offset += part;
        length -= part;
    }
    Ok(())
}

/// The file system cannot do it.
pub(crate) fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}
