//! RAM frozen at one instant, by the host's copy-on-write: a forked child
//! sees it as it was and writes it to a file while the guest runs on.
//!
//! The child shares all of this process's memory as of the fork, locks that
//! other threads held included, so it makes system calls and nothing else: no
//! allocation, no lock, no panic.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::PageSet;
use crate::image::{ImageWriter, is_zero};
use crate::ram::{GuestRam, PAGE_SIZE};

/// Most pages in one write.
const RUN: u64 = 256;

/// Memory that parent and child share: a bitmap of the pages that the child
/// has stored, and behind it how it ended.
struct Report {
    base: *mut u8,
    words: usize,
}

/// The child has not ended in order.
const UNFINISHED: i32 = -1;

impl Report {
    fn new(pages: u64) -> io::Result<Self> {
        let words = pages.div_ceil(64) as usize;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * 8 + 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let report = Self {
            base: base.cast(),
            words,
        };
        report.status().store(UNFINISHED, Ordering::SeqCst);
        Ok(report)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < self.words);
        // SAFETY: inside the mapping, aligned, and only used as an atomic.
        unsafe { AtomicU64::from_ptr(self.base.cast::<u64>().add(index)) }
    }

    fn status(&self) -> &AtomicI32 {
        // SAFETY: as above; the mapping has room behind the bitmap.
        unsafe { AtomicI32::from_ptr(self.base.cast::<u64>().add(self.words).cast()) }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, which nothing borrows any more.
        unsafe { libc::munmap(self.base.cast(), self.words * 8 + 8) };
    }
}

/// RAM as it was when this was made. A child process writes the pages asked
/// for to the file; it ends with the thread that made it.
pub struct FrozenRam {
    child: libc::pid_t,
    report: Report,
    written: PageSet,
}

impl FrozenRam {
    /// Freezes RAM and begins to write pages of it. Nothing may write RAM
    /// meanwhile: vCPUs and devices stand still until this returns.
    ///
    /// # Errors
    /// The host gives no process or no memory for it.
    pub fn write(ram: &GuestRam, set: &PageSet, to: &ImageWriter) -> io::Result<Self> {
        let report = Report::new(ram.pages())?;
        let fd = to.file().as_raw_fd();
        let skip = to.stored();
        // SAFETY: takes no arguments.
        let parent = unsafe { libc::getpid() };
        let others = Unforked::new(ram, set);
        // SAFETY: the child only runs `serve`, which makes system calls and
        // touches no page of RAM but those of the set.
        let child = unsafe { libc::fork() };
        if child != 0 {
            drop(others);
        }
        match child {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let status = serve(ram, set, skip, fd, parent, &report);
                report.status().store(status, Ordering::SeqCst);
                // SAFETY: ends this process without running any of its code.
                unsafe { libc::_exit(0) }
            }
            child => Ok(Self {
                child,
                report,
                written: set.clone(),
            }),
        }
    }

    /// Waits until all is written, and notes what `to` holds now.
    ///
    /// # Errors
    /// What the child met, for instance a full disk.
    pub fn wait(mut self, to: &mut ImageWriter) -> io::Result<()> {
        self.reap();
        match self.report.status().load(Ordering::SeqCst) {
            0 => {}
            UNFINISHED => return Err(io::Error::other("the writing process was killed")),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let words = (0..self.report.words).map(|i| self.report.word(i).load(Ordering::Relaxed));
        let stored = PageSet::from_bitmap(words.collect(), self.written.capacity());
        to.add(&self.written, &stored);
        Ok(())
    }

    fn reap(&mut self) {
        if self.child == 0 {
            return;
        }
        let mut status = 0;
        // SAFETY: waits for our own child; the status is a valid place.
        while unsafe { libc::waitpid(self.child, &mut status, 0) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        self.child = 0;
    }
}

impl Drop for FrozenRam {
    fn drop(&mut self) {
        if self.child != 0 {
            // SAFETY: a child of ours that was not waited for yet.
            unsafe { libc::kill(self.child, libc::SIGKILL) };
            self.reap();
        }
    }
}

/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;
/// Most parts of RAM that are forked.
const MOST_PARTS: usize = 256;

/// The parts of RAM around a set of pages, which `fork` leaves out while this
/// lives: it takes time for all that it copies the page tables of.
struct Unforked {
    parts: Vec<(*mut libc::c_void, usize)>,
}

impl Unforked {
    fn new(ram: &GuestRam, set: &PageSet) -> Self {
        let mut parts = Vec::new();
        let mut start = 0;
        for part in huge_parts(ram, set) {
            parts.push((start, part.start));
            start = part.end;
        }
        parts.push((start, ram.size()));
        let parts = parts.into_iter().filter(|(start, end)| start < end);
        let address = |at: u64| ram.host_base().wrapping_add(at as usize).cast();
        let unforked = Self {
            parts: parts
                .map(|(start, end)| (address(start), (end - start) as usize))
                .collect(),
        };
        unforked.advise(libc::MADV_DONTFORK);
        unforked
    }

    fn advise(&self, advice: libc::c_int) {
        for &(start, length) in &self.parts {
            // SAFETY: whole pages of RAM's own mapping; the advice changes
            // nothing in this process. Without it `fork` takes longer.
            unsafe { libc::madvise(start, length, advice) };
        }
    }
}

impl Drop for Unforked {
    fn drop(&mut self) {
        self.advise(libc::MADV_DOFORK);
    }
}

/// The ranges of RAM, in bytes, with whole huge pages around a set's pages.
fn huge_parts(ram: &GuestRam, set: &PageSet) -> Vec<std::ops::Range<u64>> {
    let mut gap = HUGE;
    loop {
        let mut parts: Vec<std::ops::Range<u64>> = Vec::new();
        for run in set.runs() {
            let start = run.start * PAGE_SIZE / HUGE * HUGE;
            let end = (run.end * PAGE_SIZE).next_multiple_of(HUGE).min(ram.size());
            match parts.last_mut() {
                Some(last) if start <= last.end.saturating_add(gap) => last.end = end,
                _ => parts.push(start..end),
            }
        }
        if parts.len() <= MOST_PARTS {
            return parts;
        }
        gap *= 2;
    }
}

impl GuestRam {
    /// Puts the small pages of a set together to huge ones where the host can
    /// and most of a huge page is in the set, so that [`FrozenRam::write`]
    /// takes less time. The guest may run.
    pub fn collapse(&self, set: &PageSet) {
        const MADV_COLLAPSE: libc::c_int = 25;
        for first in set.dense_parts() {
            let start = self.host_base().wrapping_add((first * PAGE_SIZE) as usize);
            // SAFETY: whole pages of RAM's own mapping, whose contents stay.
            // What cannot be put together stays as it is.
            unsafe { libc::madvise(start.cast(), HUGE as usize, MADV_COLLAPSE) };
        }
    }
}

/// The child's whole life; 0 or an errno.
fn serve(
    ram: &GuestRam,
    set: &PageSet,
    held: &PageSet,
    fd: i32,
    parent: libc::pid_t,
    report: &Report,
) -> i32 {
    // SAFETY: system calls on integers. Descriptor 0 becomes the file, and all
    // others are closed: this process holds nothing of the machine's.
    let ready = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NAME, c"holm-snapshot".as_ptr());
        let alive = libc::getppid() == parent;
        let own = libc::dup2(fd, 0) == 0;
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
        alive && own
    };
    if !ready {
        return libc::ESRCH;
    }
    for run in set.runs() {
        let mut page = run.start;
        while page < run.end {
            if skippable(ram, held, page) {
                page += 1;
                continue;
            }
            let limit = run.end.min(page + RUN);
            let mut end = page + 1;
            while end < limit && !skippable(ram, held, end) {
                end += 1;
            }
            let error = write_run(ram, page, end);
            if error != 0 {
                return error;
            }
            for stored in page..end {
                let bit = 1 << (stored % 64);
                let word = report.word((stored / 64) as usize);
                word.fetch_or(bit, Ordering::Relaxed);
            }
            page = end;
        }
    }
    0
}

fn bytes(ram: &GuestRam, first: u64, end: u64) -> &[u8] {
    let start = ram.host_base().wrapping_add((first * PAGE_SIZE) as usize);
    // SAFETY: pages of a set lie in RAM, whose mapping is one piece; in the
    // child nothing writes it.
    unsafe { std::slice::from_raw_parts(start, ((end - first) * PAGE_SIZE) as usize) }
}

fn skippable(ram: &GuestRam, held: &PageSet, page: u64) -> bool {
    !held.contains(page) && is_zero(bytes(ram, page, page + 1))
}

/// Writes pages at their place in descriptor 0; 0 or an errno.
fn write_run(ram: &GuestRam, first: u64, end: u64) -> i32 {
    let mut data = bytes(ram, first, end);
    let mut at = first * PAGE_SIZE;
    while !data.is_empty() {
        // SAFETY: the slice is readable; descriptor 0 is the file.
        let n = unsafe { libc::pwrite(0, data.as_ptr().cast(), data.len(), at as libc::off_t) };
        match usize::try_from(n) {
            Ok(0) => return libc::EIO,
            Ok(n) => {
                data = data.get(n..).unwrap_or_default();
                at += n as u64;
            }
            Err(_) => {
                // SAFETY: reads this thread's errno.
                let error = unsafe { *libc::__errno_location() };
                if error != libc::EINTR {
                    return error;
                }
            }
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn ram_is_written_as_it_was_while_it_changes() {
        let ram = GuestRam::new(8 << 20, 8 << 20).unwrap();
        ram.write(0, &[1; 4 << 20]).unwrap();
        let mut to = ImageWriter::new(tempfile::tempfile().unwrap(), &ram).unwrap();
        let frozen = FrozenRam::write(&ram, &PageSet::all(ram.pages()), &to).unwrap();
        ram.write(0, &[2; 8 << 20]).unwrap();
        frozen.wait(&mut to).unwrap();
        assert_eq!(to.stored().runs().next(), Some(0..1024));
        assert_eq!(to.stored().count(), 1024);
        let image = to.finish().unwrap();
        assert_eq!(image.zero.runs().next(), Some(1024..2048));
        let file = image.file;
        let mut bytes = vec![7; 8 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..4 << 20].iter().all(|b| *b == 1));
        assert!(bytes[4 << 20..].iter().all(|b| *b == 0));
    }

    #[test]
    fn what_stops_the_child_is_told() {
        let ram = GuestRam::new(1 << 20, 1 << 20).unwrap();
        ram.write(0, &[1; 4096]).unwrap();
        let place = tempfile::NamedTempFile::new().unwrap();
        let mut to = ImageWriter::new(place.reopen().unwrap(), &ram).unwrap();
        let read_only = std::fs::File::open(place.path()).unwrap();
        to = to.with_file(read_only);
        let frozen = FrozenRam::write(&ram, &PageSet::all(ram.pages()), &to).unwrap();
        assert!(frozen.wait(&mut to).is_err());
        let abandoned = FrozenRam::write(&ram, &PageSet::all(ram.pages()), &to).unwrap();
        drop(abandoned);
    }
}
