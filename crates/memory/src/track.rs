//! Write tracking: which pages were written (dirty), and which must not be
//! written unnoticed (watched).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

const PAGE_SHIFT: usize = 12;

/// Told when a device (not a vCPU) has written a watched page, after the write.
///
/// The software CPU watches the pages whose code it has translated: DMA into
/// such a page makes the translation stale.
pub trait WriteWatcher: Send + Sync {
    /// The RAM page with this index (byte offset into RAM / 4096) was written.
    fn device_wrote(&self, ram_page: u64);
}

pub(crate) struct Pages {
    dirty: Vec<AtomicU64>,
    watched: Vec<AtomicU64>,
    watcher: OnceLock<Arc<dyn WriteWatcher>>,
    count: usize,
}

impl Pages {
    pub(crate) fn new(ram_size: u64) -> Arc<Self> {
        let count = (ram_size as usize).div_ceil(1 << PAGE_SHIFT);
        let words = count.div_ceil(64);
        Arc::new(Self {
            dirty: (0..words).map(|_| AtomicU64::new(0)).collect(),
            watched: (0..words).map(|_| AtomicU64::new(0)).collect(),
            watcher: OnceLock::new(),
            count,
        })
    }

    pub(crate) fn set_watcher(&self, w: Arc<dyn WriteWatcher>) -> bool {
        self.watcher.set(w).is_ok()
    }

    pub(crate) fn mark(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let first = offset >> PAGE_SHIFT;
        let last = ((offset + len - 1) >> PAGE_SHIFT).min(self.count.saturating_sub(1));
        // The bytes before the look at `watched`: who begins to watch a page
        // reads its bytes afterwards, so one of the two sees the other.
        std::sync::atomic::fence(Ordering::SeqCst);
        for page in first..=last {
            let (word, bit) = (page / 64, 1u64 << (page % 64));
            if self.dirty[word].load(Ordering::Relaxed) & bit == 0 {
                self.dirty[word].fetch_or(bit, Ordering::Relaxed);
            }
            if self.watched[word].load(Ordering::SeqCst) & bit != 0
                && let Some(w) = self.watcher.get()
            {
                w.device_wrote(page as u64);
            }
        }
    }

    pub(crate) fn set_dirty(&self, page: usize) {
        if let Some(w) = self.dirty.get(page / 64) {
            let bit = 1u64 << (page % 64);
            if w.load(Ordering::Relaxed) & bit == 0 {
                w.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn is_dirty(&self, page: usize) -> bool {
        self.dirty
            .get(page / 64)
            .is_some_and(|w| w.load(Ordering::Relaxed) >> (page % 64) & 1 != 0)
    }

    pub(crate) fn take_dirty(&self) -> Vec<u64> {
        self.dirty
            .iter()
            .map(|w| w.swap(0, Ordering::AcqRel))
            .collect()
    }

    pub(crate) fn watch(&self, page: usize, on: bool) {
        if let Some(w) = self.watched.get(page / 64) {
            let bit = 1u64 << (page % 64);
            if on {
                w.fetch_or(bit, Ordering::SeqCst);
            } else {
                w.fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }

    pub(crate) fn is_watched(&self, page: usize) -> bool {
        self.watched
            .get(page / 64)
            .is_some_and(|w| w.load(Ordering::SeqCst) >> (page % 64) & 1 != 0)
    }
}

/// The `vm-memory` bitmap of one RAM range.
#[derive(Clone)]
pub struct Tracker {
    pages: Arc<Pages>,
    base: usize,
}

impl Tracker {
    pub(crate) fn new(pages: Arc<Pages>, base: usize) -> Self {
        Self { pages, base }
    }
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("base", &self.base).finish()
    }
}

/// A [`Tracker`] of a part of a RAM range.
pub type TrackSlice = Tracker;

impl<'a> WithBitmapSlice<'a> for Tracker {
    type S = Tracker;
}

impl BitmapSlice for Tracker {}

impl Bitmap for Tracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.pages.mark(self.base + offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.is_dirty((self.base + offset) >> PAGE_SHIFT)
    }

    fn slice_at(&self, offset: usize) -> Tracker {
        Tracker {
            pages: self.pages.clone(),
            base: self.base + offset,
        }
    }
}
