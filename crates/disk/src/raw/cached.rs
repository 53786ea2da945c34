//! Whether a part of a file is in the host's page cache already: then reading
//! it from there beats direct I/O.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const PAGE: u64 = 4096;
/// Longest range looked at; longer ones are left to direct I/O.
const MAX_PAGES: usize = 256;

/// A mapping of the whole file that is never accessed, only asked about.
pub(super) struct PageCache {
    base: *mut libc::c_void,
    len: usize,
}

// SAFETY: the mapping is never accessed through the pointer; the kernel
// answers questions about it from any thread.
unsafe impl Send for PageCache {}
// SAFETY: as above.
unsafe impl Sync for PageCache {}

impl PageCache {
    pub(super) fn new(file: &File, size: u64) -> io::Result<Self> {
        let len = usize::try_from(size).map_err(io::Error::other)?;
        // SAFETY: a new mapping without access rights, at an address of the
        // kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base, len })
    }

    /// Whether all of the range was in the page cache a moment ago.
    pub(super) fn holds(&self, offset: u64, len: u64) -> bool {
        let start = offset / PAGE * PAGE;
        let Some(end) = offset.checked_add(len) else {
            return false;
        };
        let pages = (end - start).div_ceil(PAGE) as usize;
        // Most often nothing is there, which the first page tells quickly.
        end <= self.len as u64
            && (1..=MAX_PAGES).contains(&pages)
            && self.resident(start, 1)
            && (pages == 1 || self.resident(start, pages))
    }

    fn resident(&self, start: u64, pages: usize) -> bool {
        let mut present = [0u8; MAX_PAGES];
        let Some(present) = present.get_mut(..pages) else {
            return false;
        };
        let at = self.base.wrapping_byte_add(start as usize);
        // SAFETY: the pages lie in the mapping (its last page counts whole),
        // and `present` has a byte for each.
        let done = unsafe { libc::mincore(at, pages * PAGE as usize, present.as_mut_ptr()) };
        done == 0 && present.iter().all(|&page| page & 1 != 0)
    }
}

impl Drop for PageCache {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, which nothing else uses.
        unsafe { libc::munmap(self.base, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_read_or_dropped_is_noticed() {
        let dir = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, Into::into);
        let mut file = tempfile::tempfile_in(dir).unwrap();
        file.write_all(&[1; 10 * 4096 + 512]).unwrap();
        file.sync_all().unwrap();
        let size = file.metadata().unwrap().len();
        let cache = PageCache::new(&file, size).unwrap();
        assert!(cache.holds(0, size));
        assert!(cache.holds(4095, 2));
        assert!(!cache.holds(0, size + 1));
        assert!(!cache.holds(u64::MAX, 512));
        assert!(!cache.holds(0, 0));
        // SAFETY: advice on an open descriptor.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        if cache.holds(0, 4096) {
            // A file system in memory keeps everything.
            return;
        }
        file.read_at(&mut [0; 512], 9 * 4096).unwrap();
        assert!(!cache.holds(0, size));
    }
}
