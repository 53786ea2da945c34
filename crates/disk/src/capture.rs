//! A disk that can be copied as it is at one instant while its guest goes on
//! writing: what is about to be overwritten is copied first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use memory::GuestRam;
use parking_lot::{Condvar, Mutex};

use crate::{
    BlockBackend, BlockError, BlockInfo, BlockQueue, Completion, DiskError, Op, SECTOR, Waker,
};

/// Bytes copied at once, a power of two: as much may a write have to wait for.
const CLUSTER: u64 = 256 << 10;

/// States of a cluster.
const TO_DO: u8 = 0;
const BEING_COPIED: u8 = 1;
const DONE: u8 = 2;

/// A disk, and the copy that is being made of it, if one is.
pub struct CapturableDisk {
    inner: Arc<dyn BlockBackend>,
    hook: Arc<Hook>,
}

/// What the queues of a disk look at before they write.
#[derive(Default)]
struct Hook {
    /// Whether there is a copy under way; else nothing else is looked at.
    active: AtomicBool,
    copy: Mutex<Option<Arc<Copy>>>,
}

/// A copy under way.
struct Copy {
    disk: Arc<dyn BlockBackend>,
    target: File,
    size: u64,
    clusters: Vec<AtomicU8>,
    failed: AtomicBool,
    /// Why; and what waiters for a cluster sleep by.
    error: Mutex<Option<io::Error>>,
    changed: Condvar,
}

impl CapturableDisk {
    /// This disk, which from now on is only written through this value.
    pub fn new(inner: Arc<dyn BlockBackend>) -> Self {
        Self {
            inner,
            hook: Arc::default(),
        }
    }
}

impl BlockBackend for CapturableDisk {
    fn info(&self) -> &BlockInfo {
        self.inner.info()
    }

    fn open_queue(&self, ram: Arc<GuestRam>) -> Result<Box<dyn BlockQueue>, DiskError> {
        Ok(Box::new(Queue {
            inner: self.inner.open_queue(ram)?,
            hook: self.hook.clone(),
        }))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, out)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn raw_file(&self) -> Option<&File> {
        self.inner.raw_file()
    }

    fn capture(&self, target: File) -> io::Result<Capture> {
        if let Some(source) = self.inner.raw_file()
            && rustix::fs::ioctl_ficlone(&target, source).is_ok()
        {
            return Ok(Capture(None));
        }
        let size = self.inner.info().sectors * SECTOR;
        target.set_len(size)?;
        let mut slot = self.hook.copy.lock();
        if slot.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let clusters = (0..size.div_ceil(CLUSTER)).map(|_| AtomicU8::new(TO_DO));
        let copy = Arc::new(Copy {
            disk: self.inner.clone(),
            target,
            size,
            clusters: clusters.collect(),
            failed: AtomicBool::new(false),
            error: Mutex::default(),
            changed: Condvar::new(),
        });
        *slot = Some(copy.clone());
        self.hook.active.store(true, Ordering::SeqCst);
        Ok(Capture(Some(Running {
            copy,
            hook: self.hook.clone(),
        })))
    }
}

/// A copy of a disk as it was at one instant. Dropped before its end, it
/// stays incomplete.
pub struct Capture(Option<Running>);

struct Running {
    copy: Arc<Copy>,
    hook: Arc<Hook>,
}

impl Capture {
    /// Whether it shares blocks with the disk and is complete already.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.is_none()
    }

    /// Copies what is left; returns when the copy is complete. What is zero is
    /// left out of the file.
    ///
    /// # Errors
    /// What reading the disk or writing the copy met.
    pub fn finish(self) -> io::Result<()> {
        let Some(Running { copy, .. }) = &self.0 else {
            return Ok(());
        };
        let mut buffer = vec![0; CLUSTER as usize];
        for cluster in 0..copy.clusters.len() {
            copy.ensure(cluster, &mut buffer);
            if copy.failed.load(Ordering::SeqCst) {
                break;
            }
        }
        match copy.error.lock().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.hook.active.store(false, Ordering::SeqCst);
        self.hook.copy.lock().take();
    }
}

impl Copy {
    /// Returns when a cluster is copied, by this thread or another, or the
    /// whole copy has failed: the guest's write goes on in any case.
    fn ensure(&self, index: usize, buffer: &mut [u8]) {
        let Some(state) = self.clusters.get(index) else {
            return;
        };
        match state.compare_exchange(TO_DO, BEING_COPIED, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                let copied = self.copy_cluster(index as u64, buffer);
                let mut error = self.error.lock();
                if let Err(e) = copied {
                    self.failed.store(true, Ordering::SeqCst);
                    error.get_or_insert(e);
                }
                state.store(DONE, Ordering::SeqCst);
                self.changed.notify_all();
            }
            Err(BEING_COPIED) => {
                let mut error = self.error.lock();
                while state.load(Ordering::SeqCst) == BEING_COPIED {
                    self.changed.wait(&mut error);
                }
            }
            Err(_) => {}
        }
    }

    fn copy_cluster(&self, index: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = index * CLUSTER;
        let length = (self.size - at).min(CLUSTER) as usize;
        let Some(bytes) = buffer.get_mut(..length) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.disk.read_at(at, bytes)?;
        match bytes.iter().all(|b| *b == 0) {
            true => Ok(()),
            false => self.target.write_all_at(bytes, at),
        }
    }

    /// Called before sectors are overwritten.
    fn before_write(&self, sector: u64, bytes: u64) {
        let start = sector.saturating_mul(SECTOR);
        let end = start.saturating_add(bytes).min(self.size);
        let mut buffer = Vec::new();
        let mut at = start / CLUSTER * CLUSTER;
        while at < end && !self.failed.load(Ordering::SeqCst) {
            let index = (at / CLUSTER) as usize;
            let done = self.clusters.get(index);
            if done.is_some_and(|s| s.load(Ordering::SeqCst) != DONE) {
                buffer.resize(CLUSTER as usize, 0);
                self.ensure(index, &mut buffer);
            }
            at += CLUSTER;
        }
    }
}

impl Hook {
    #[inline]
    fn before(&self, op: &Op<'_>) {
        if !self.active.load(Ordering::SeqCst) {
            return;
        }
        let copy = self.copy.lock().clone();
        let Some(copy) = copy else { return };
        match op {
            Op::Read { .. } | Op::Flush => {}
            Op::Write { sector, from, .. } => {
                let bytes = from.iter().map(|range| u64::from(range.len)).sum();
                copy.before_write(*sector, bytes);
            }
            Op::Discard { sector, count } | Op::WriteZeroes { sector, count, .. } => {
                copy.before_write(*sector, count.saturating_mul(SECTOR));
            }
        }
    }
}

struct Queue {
    inner: Box<dyn BlockQueue>,
    hook: Arc<Hook>,
}

impl BlockQueue for Queue {
    fn submit(&mut self, tag: u64, op: Op<'_>) -> Result<(), BlockError> {
        self.hook.before(&op);
        self.inner.submit(tag, op)
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.inner.poll(out)
    }

    fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.inner.wait(out)
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn waker(&self) -> Arc<Waker> {
        self.inner.waker()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestRange, RawDisk, RawOptions};

    /// 16 MiB, of which each mebibyte but the last four begins with its number.
    fn disk(directory: &tempfile::TempDir) -> CapturableDisk {
        let path = directory.path().join("disk.img");
        let file = File::create(&path).unwrap();
        file.set_len(16 << 20).unwrap();
        for mib in 0..12u64 {
            file.write_all_at(&[mib as u8 + 1; 4096], mib << 20)
                .unwrap();
        }
        CapturableDisk::new(Arc::new(RawDisk::open(&RawOptions::new(path)).unwrap()))
    }

    fn write(queue: &mut dyn BlockQueue, mib: u64) {
        let from = [GuestRange { gpa: 0, len: 4096 }];
        let op = Op::Write {
            sector: mib << 11,
            from: &from,
            durable: false,
        };
        queue.submit(mib, op).unwrap();
        let mut done: Vec<Completion> = Vec::new();
        while !done.iter().any(|c| c.tag == mib) {
            queue.wait(&mut done).unwrap();
        }
        assert!(done.iter().all(|c| c.result.is_ok()), "{done:?}");
    }

    #[test]
    fn a_copy_is_of_its_instant_whatever_is_written_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(&directory);
        let ram = GuestRam::new(1 << 20, 1 << 20).unwrap();
        ram.write(0, &[99; 4096]).unwrap();
        let mut queue = disk.open_queue(ram).unwrap();
        write(&mut *queue, 3);
        let target = tempfile::tempfile().unwrap();
        let capture = disk.capture(target.try_clone().unwrap()).unwrap();
        let second = disk.capture(tempfile::tempfile().unwrap());
        assert!(capture.is_shared() || second.is_err());
        drop(second);
        for mib in [0, 7, 15] {
            write(&mut *queue, mib);
        }
        let discard = Op::WriteZeroes {
            sector: 9 << 11,
            count: 2 << 11,
            unmap: true,
            durable: false,
        };
        queue.submit(50, discard).unwrap();
        let finishing = std::thread::spawn(move || capture.finish());
        for round in 0..50 {
            write(&mut *queue, round % 9);
        }
        finishing.join().unwrap().unwrap();
        let mut first = [0];
        for mib in 0..16u64 {
            target.read_exact_at(&mut first, mib << 20).unwrap();
            let then = match mib {
                3 => 99,
                12.. => 0,
                _ => mib as u8 + 1,
            };
            assert_eq!(first[0], then, "mebibyte {mib}");
        }
        disk.read_at(0, &mut first).unwrap();
        assert_eq!(first[0], 99);
        drop(disk.capture(tempfile::tempfile().unwrap()).unwrap());
    }

    #[test]
    fn a_copy_that_fails_harms_no_write() {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(&directory);
        let ram = GuestRam::new(1 << 20, 1 << 20).unwrap();
        let mut queue = disk.open_queue(ram).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let copy = Copy {
            disk: disk.inner.clone(),
            target: full,
            size: 16 << 20,
            clusters: (0..64).map(|_| AtomicU8::new(TO_DO)).collect(),
            failed: AtomicBool::new(false),
            error: Mutex::default(),
            changed: Condvar::new(),
        };
        let copy = Arc::new(copy);
        *disk.hook.copy.lock() = Some(copy.clone());
        disk.hook.active.store(true, Ordering::SeqCst);
        write(&mut *queue, 2);
        let capture = Capture(Some(Running {
            copy,
            hook: disk.hook.clone(),
        }));
        assert!(capture.finish().is_err());
        write(&mut *queue, 2);
    }
}
