//! The machine's RAM: one anonymous host mapping, two guest ranges.

use std::sync::Arc;

use parking_lot::RwLock;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

use crate::GuestMemory;
use crate::track::{Pages, Tracker, WriteWatcher};

/// Size of a guest page, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is zero, not a multiple of 4096, or beyond what can be mapped.
    #[error("memory size {0} bytes cannot be used: it must be a non-zero multiple of 4 KiB")]
    BadSize(u64),
    /// The host refused to give the memory.
    #[error("cannot allocate {size} bytes of guest memory: {source}; ask for less with --memory")]
    Allocate {
        /// What was asked for, in bytes.
        size: u64,
        /// The host's error.
        source: std::io::Error,
    },
    /// An access outside RAM.
    #[error("guest-physical address {gpa:#x}, {len} bytes, is not in RAM")]
    OutOfRange {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host does not take pages back.
    #[error("the host does not take guest memory back: {0}")]
    Discard(std::io::Error),
    /// A file with the contents of RAM cannot be used.
    #[error("reading guest memory from its file: {0}")]
    Image(#[source] std::io::Error),
    /// `vm-memory` refused the layout.
    #[error("guest memory layout: {0}")]
    Layout(String),
}

/// All RAM of one machine.
pub struct GuestRam {
    map: GuestMemory,
    pages: Arc<Pages>,
    base: *mut u8,
    size: u64,
    low_size: u64,
    /// How many want no discards.
    holds: RwLock<u32>,
}

/// See [`GuestRam::hold_discards`].
pub struct DiscardHold(Arc<GuestRam>);

impl Drop for DiscardHold {
    fn drop(&mut self) {
        *self.0.holds.write() -= 1;
    }
}

// SAFETY: `base` points to a mapping that lives as long as the
// value; concurrent access to guest memory is by volatile or atomic accesses
// of the users, as with real memory.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

/// First guest-physical address above the PCI hole.
const HIGH_START: u64 = 1 << 32;

impl GuestRam {
    /// Allocates `size` bytes of zeroed RAM, of which at most `low_limit`
    /// bytes lie below the PCI hole and the rest from 4 GiB on.
    ///
    /// # Errors
    /// [`MemoryError::BadSize`] and [`MemoryError::Allocate`].
    pub fn new(size: u64, low_limit: u64) -> Result<Arc<Self>, MemoryError> {
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) || size > 1 << 46 {
            return Err(MemoryError::BadSize(size));
        }
        let alloc = |source| MemoryError::Allocate { size, source };
        // SAFETY: a fresh private mapping; the kernel chooses the address,
        // nothing is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(alloc(std::io::Error::last_os_error()));
        }
        // Guest programs walk large data: with small pages the host's TLB and
        // caches cost up to a fifth. The kernel may refuse.
        // SAFETY: the mapping just made; the advice does not change contents.
        unsafe { libc::madvise(base, size as usize, libc::MADV_HUGEPAGE) };
        let base = base.cast::<u8>();
        let low_size = size.min(low_limit);
        let pages = Pages::new(size);
        let mut regions = vec![region(base, 0, low_size, 0, &pages)?];
        if size > low_size {
            regions.push(region(base, low_size, size - low_size, HIGH_START, &pages)?);
        }
        let map =
            GuestMemory::from_regions(regions).map_err(|e| MemoryError::Layout(e.to_string()))?;
        Ok(Arc::new(Self {
            map,
            pages,
            base,
            size,
            low_size,
            holds: RwLock::new(0),
        }))
    }

    /// RAM as `vm-memory` sees it, for virtqueues and loaders.
    pub fn vm(&self) -> &GuestMemory {
        &self.map
    }

    /// Bytes of RAM in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of RAM below the PCI hole (from guest-physical 0).
    pub fn low_size(&self) -> u64 {
        self.low_size
    }

    /// Bytes of RAM from 4 GiB on.
    pub fn high_size(&self) -> u64 {
        self.size - self.low_size
    }

    /// Offset into RAM of a guest-physical address, if it is RAM.
    #[inline]
    pub fn offset_of(&self, gpa: u64) -> Option<u64> {
        if gpa < self.low_size {
            Some(gpa)
        } else if gpa >= HIGH_START && gpa - HIGH_START < self.size - self.low_size {
            Some(gpa - HIGH_START + self.low_size)
        } else {
            None
        }
    }

    /// Guest-physical address of an offset into RAM.
    pub fn gpa_of(&self, offset: u64) -> u64 {
        if offset < self.low_size {
            offset
        } else {
            offset - self.low_size + HIGH_START
        }
    }

    /// Host address of guest-physical RAM, good to the end of its 4 KiB page.
    #[inline]
    pub fn page_ptr(&self, gpa: u64) -> Option<*mut u8> {
        let off = self.offset_of(gpa)?;
        // SAFETY: `off` is inside the mapping.
        Some(unsafe { self.base.add(off as usize) })
    }

    /// Host address of `len` bytes of guest-physical RAM, all in one range.
    pub fn range_ptr(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        let off = self.offset_of(gpa)?;
        let end = if gpa < self.low_size {
            self.low_size
        } else {
            self.size
        };
        (len <= end - off).then(|| {
            // SAFETY: `off` is inside the mapping.
            unsafe { self.base.add(off as usize) }
        })
    }

    /// First host byte of RAM; the mapping is [`Self::size`] long.
    pub fn host_base(&self) -> *mut u8 {
        self.base
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`] if any byte is not RAM.
    pub fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let len = out.len() as u64;
        self.map
            .read_slice(out, GuestAddress(gpa))
            .map_err(|_| MemoryError::OutOfRange { gpa, len })
    }

    /// Copies into guest memory; marks the pages dirty and tells the watcher.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`] if any byte is not RAM.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        let len = data.len() as u64;
        self.map
            .write_slice(data, GuestAddress(gpa))
            .map_err(|_| MemoryError::OutOfRange { gpa, len })
    }

    /// Says that a device wrote `len` bytes at `gpa` by another way than
    /// [`Self::write`] (for instance `preadv` straight into guest memory).
    pub fn wrote(&self, gpa: u64, len: u64) {
        if let Some(off) = self.offset_of(gpa) {
            self.pages.mark(off as usize, len as usize);
        }
    }

    /// Gives the whole pages within `len` bytes at `gpa` back to the host:
    /// they are zero when they are next read, and cost nothing until they are
    /// written. They are dirty, and watchers hear of them, as if zeroes had
    /// been written. Returns the bytes given back: none while somebody has a
    /// [`Self::hold_discards`].
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; [`MemoryError::Discard`] if the host
    /// refuses, with the contents as they were.
    pub fn discard(&self, gpa: u64, len: u64) -> Result<u64, MemoryError> {
        let outside = MemoryError::OutOfRange { gpa, len };
        let first = gpa.checked_next_multiple_of(PAGE_SIZE);
        let Some((first, end)) = first.zip(gpa.checked_add(len)) else {
            return Err(outside);
        };
        let end = end / PAGE_SIZE * PAGE_SIZE;
        if first >= end {
            return Ok(0);
        }
        let size = end - first;
        let range = self.offset_of(first).zip(self.range_ptr(first, size));
        let Some((offset, start)) = range else {
            return Err(outside);
        };
        let holds = self.holds.read();
        if *holds > 0 {
            return Ok(0);
        }
        // SAFETY: whole pages inside the mapping that this value owns, which
        // stays; private anonymous pages are zero afterwards, and guest memory
        // may change at any time for all its users.
        let done = unsafe { libc::madvise(start.cast(), size as usize, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(MemoryError::Discard(std::io::Error::last_os_error()));
        }
        self.pages.mark(offset as usize, size as usize);
        Ok(size)
    }

    /// Until the value is dropped [`Self::discard`] leaves everything as it is:
    /// for who copies memory behind the guest's back and would miss a page that
    /// vanishes without being written. Returns when no discard is under way.
    pub fn hold_discards(self: &Arc<Self>) -> DiscardHold {
        *self.holds.write() += 1;
        DiscardHold(self.clone())
    }

    /// Marks one page dirty (the CPU engine, when it lets a vCPU write it).
    pub fn set_dirty(&self, ram_page: u64) {
        self.pages.set_dirty(ram_page as usize);
    }

    /// The dirty bitmap (bit n of word w: RAM page 64 w + n), cleared by this.
    pub fn take_dirty(&self) -> Vec<u64> {
        self.pages.take_dirty()
    }

    /// Registers who hears of device writes to watched pages; once only.
    pub fn set_watcher(&self, watcher: Arc<dyn WriteWatcher>) -> bool {
        self.pages.set_watcher(watcher)
    }

    /// Watches or releases a RAM page.
    pub fn watch(&self, ram_page: u64, on: bool) {
        self.pages.watch(ram_page as usize, on);
    }

    /// Whether a RAM page is watched.
    pub fn is_watched(&self, ram_page: u64) -> bool {
        self.pages.is_watched(ram_page as usize)
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and nothing
        // that borrows it outlives `self`.
        unsafe { libc::munmap(self.base.cast(), self.size as usize) };
    }
}

fn region(
    base: *mut u8,
    offset: u64,
    size: u64,
    gpa: u64,
    pages: &Arc<Pages>,
) -> Result<GuestRegionMmap<Tracker>, MemoryError> {
    let layout = |e: String| MemoryError::Layout(e);
    let builder = MmapRegionBuilder::new_with_bitmap(
        size as usize,
        Tracker::new(pages.clone(), offset as usize),
    )
    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
    .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: the range lies in the mapping that `GuestRam::new` made and that
    // lives as long as the `GuestRam` that owns this region.
    let builder = unsafe { builder.with_raw_mmap_pointer(base.add(offset as usize)) };
    let mapped = builder.build().map_err(|e| layout(e.to_string()))?;
    GuestRegionMmap::new(mapped, GuestAddress(gpa))
        .ok_or_else(|| layout(format!("range at {gpa:#x} overflows")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn high_range_follows_low_in_one_mapping() {
        let ram = GuestRam::new(0x8000, 0x3000).unwrap();
        assert_eq!(ram.offset_of(0x2fff), Some(0x2fff));
        assert_eq!(ram.offset_of(0x3000), None);
        assert_eq!(ram.offset_of(HIGH_START), Some(0x3000));
        assert_eq!(ram.offset_of(HIGH_START + 0x5000), None);
        ram.write(HIGH_START + 8, &[1, 2, 3]).unwrap();
        let mut b = [0; 3];
        ram.read(HIGH_START + 8, &mut b).unwrap();
        assert_eq!(b, [1, 2, 3]);
        assert!(ram.write(0x2ffe, &[0; 4]).is_err());
        assert!(ram.range_ptr(0x2000, 0x1001).is_none());
    }

    #[test]
    fn discarded_pages_are_zero_and_dirty() {
        let ram = GuestRam::new(1 << 20, 1 << 20).unwrap();
        ram.write(0, &[7; 1 << 20]).unwrap();
        ram.take_dirty();
        let hold = ram.hold_discards();
        assert_eq!(ram.discard(0, 1 << 20).unwrap(), 0);
        drop(hold);
        // Whole pages only.
        assert_eq!(ram.discard(0x1001, 0x4fff).unwrap(), 0x4000);
        assert_eq!(ram.take_dirty()[0], 0b111100);
        let mut page = [1; 0x1001];
        ram.read(0x1fff, &mut page).unwrap();
        assert_eq!((page[0], page[1], page[0x1000]), (7, 0, 0));
        ram.read(0x5fff, &mut page[..2]).unwrap();
        assert_eq!(page[..2], [0, 7]);
        assert_eq!(ram.discard(0x100, 0x800).unwrap(), 0);
        for (gpa, len) in [(0xff000, 0x2000), (u64::MAX - 4, 4096), (4096, u64::MAX)] {
            assert!(ram.discard(gpa, len).is_err());
        }
    }

    #[test]
    fn a_device_write_marks_dirty_and_tells_the_watcher() {
        struct W(AtomicU64);
        impl WriteWatcher for W {
            fn device_wrote(&self, p: u64) {
                self.0.fetch_add(p, Ordering::SeqCst);
            }
        }
        let ram = GuestRam::new(0x8000, 0x8000).unwrap();
        let w = Arc::new(W(AtomicU64::new(0)));
        assert!(ram.set_watcher(w.clone()));
        ram.watch(3, true);
        ram.write(0x2ff0, &[7; 32]).unwrap();
        assert_eq!(w.0.load(Ordering::SeqCst), 3);
        assert_eq!(ram.take_dirty()[0], 0b1100);
        assert_eq!(ram.take_dirty()[0], 0);
        assert!(GuestRam::new(1, 1).is_err());
    }
}
