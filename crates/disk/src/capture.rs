//! A disk that can be copied as it is at one instant while its guest goes on
//! writing: what is about to be overwritten is copied first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use memory::GuestRam;
use parking_lot::{Condvar, Mutex};
use rustix::fs::SeekFrom;

use crate::{
    BlockBackend, BlockError, BlockInfo, BlockQueue, Completion, DiskError, Extent, Format, Image,
    ImageOptions, Op, Origin, SECTOR, Waker, format, manage,
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
    /// One cluster at a time; gone when the copy is complete.
    target: Mutex<Option<Target>>,
    size: u64,
    clusters: Vec<AtomicU8>,
    failed: AtomicBool,
    /// Why; and what waiters for a cluster sleep by.
    error: Mutex<Option<io::Error>>,
    changed: Condvar,
}

enum Target {
    /// All sectors, with holes where they are zero.
    Raw(File),
    /// An image on the same backing file as the disk's, with what is the
    /// disk's own.
    Overlay(Box<Image>),
}

/// An empty file for a copy of a disk.
pub struct CaptureTarget {
    target: Target,
    /// The file, for blocks to be shared with.
    file: File,
    below: Vec<PathBuf>,
}

impl CapturableDisk {
    /// This disk, which from now on is only written through this value.
    pub fn new(inner: Arc<dyn BlockBackend>) -> Self {
        Self {
            inner,
            hook: Arc::default(),
        }
    }

    /// Makes a file for a copy: raw, or of an image that builds on others an
    /// overlay on those. What the disk has still to write is written, so that
    /// [`Self::capture`] takes little time.
    ///
    /// # Errors
    /// [`DiskError`]: the file cannot be made.
    pub fn prepare(&self, path: &Path) -> Result<CaptureTarget, DiskError> {
        let wrong = |e| DiskError::Image {
            path: path.to_owned(),
            reason: format!("cannot make it: {e}"),
        };
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(path).map_err(wrong)?;
        let size = self.inner.sectors() * SECTOR;
        if let Some(image) = self.inner.image() {
            let files: Vec<_> = image.files().collect();
            if let Some((below, format)) = files.get(1) {
                let shared = Arc::new(file.try_clone().map_err(wrong)?);
                let made = manage::create_overlay_in(&shared, below, Some(*format))?;
                format::remember(&file, Format::Qcow2);
                let mut how = ImageOptions::write(path, Some(Format::Qcow2));
                // It is synced as a whole at the end.
                how.scratch = true;
                let overlay = Image::open(&how)?;
                if made < size {
                    overlay.grow(size).map_err(wrong)?;
                }
                return Ok(CaptureTarget {
                    target: Target::Overlay(Box::new(overlay)),
                    file,
                    below: files
                        .iter()
                        .skip(1)
                        .map(|(path, _)| (*path).to_owned())
                        .collect(),
                });
            }
        }
        if let Some(raw) = self.inner.raw_file() {
            raw.sync_data().map_err(wrong)?;
        }
        file.set_len(size).map_err(wrong)?;
        format::remember(&file, Format::Raw);
        Ok(CaptureTarget {
            target: Target::Raw(file.try_clone().map_err(wrong)?),
            file,
            below: Vec::new(),
        })
    }

    /// Begins a copy of the disk as it is now. No write may be under way;
    /// those that come later do not reach the copy.
    ///
    /// # Errors
    /// `AlreadyExists` if another copy is being made.
    pub fn capture(&self, to: CaptureTarget) -> io::Result<Capture> {
        if let (Some(source), Target::Raw(_)) = (self.inner.raw_file(), &to.target)
            && rustix::fs::ioctl_ficlone(&to.file, source).is_ok()
        {
            return Ok(Capture(None));
        }
        let size = self.inner.sectors() * SECTOR;
        let mut slot = self.hook.copy.lock();
        if slot.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let clusters = (0..size.div_ceil(CLUSTER)).map(|_| AtomicU8::new(TO_DO));
        let copy = Arc::new(Copy {
            disk: self.inner.clone(),
            target: Mutex::new(Some(to.target)),
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

impl BlockBackend for CapturableDisk {
    fn info(&self) -> &BlockInfo {
        self.inner.info()
    }

    fn sectors(&self) -> u64 {
        self.inner.sectors()
    }

    fn grow(&self, sectors: u64) -> Result<(), DiskError> {
        self.inner.grow(sectors)
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

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn capturable(&self) -> Option<&CapturableDisk> {
        Some(self)
    }
}

impl CaptureTarget {
    /// The format of the copy.
    #[must_use]
    pub fn format(&self) -> Format {
        match self.target {
            Target::Raw(_) => Format::Raw,
            Target::Overlay(_) => Format::Qcow2,
        }
    }

    /// The files that the copy will build on, the nearest first.
    #[must_use]
    pub fn below(&self) -> &[PathBuf] {
        &self.below
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
        let target = copy.target.lock().take();
        match (copy.error.lock().take(), target) {
            (Some(error), _) => Err(error),
            (None, Some(Target::Raw(file))) => file.sync_all(),
            (None, Some(Target::Overlay(image))) => image.close(),
            (None, None) => Ok(()),
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
        let length = (self.size - at).min(CLUSTER);
        let target = self.target.lock();
        match (&*target, self.disk.image()) {
            (Some(Target::Raw(file)), _) => {
                if self.is_hole(at, length) {
                    return Ok(());
                }
                let bytes = part(buffer, length)?;
                self.disk.read_at(at, bytes)?;
                match bytes.iter().all(|b| *b == 0) {
                    true => Ok(()),
                    false => file.write_all_at(bytes, at),
                }
            }
            (Some(Target::Overlay(to)), Some(from)) => copy_own(from, to, at, length, buffer),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether there is nothing but zeroes, told without reading them.
    fn is_hole(&self, at: u64, length: u64) -> bool {
        if let Some(image) = self.disk.image() {
            let there = image.extent(at, length);
            return there.is_ok_and(|(extent, there)| extent == Extent::Zero && there >= length);
        }
        let data = |file| rustix::fs::seek(file, SeekFrom::Data(at));
        match self.disk.raw_file().map(data) {
            Some(Ok(next)) => next >= at + length,
            Some(Err(error)) => error == rustix::io::Errno::NXIO,
            None => false,
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

fn part(buffer: &mut [u8], length: u64) -> io::Result<&mut [u8]> {
    let part = usize::try_from(length)
        .ok()
        .and_then(|n| buffer.get_mut(..n));
    part.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Copies what a part of an image does not have from below.
fn copy_own(
    from: &Image,
    to: &Image,
    mut at: u64,
    length: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    let end = at + length;
    while at < end {
        let (origin, length) = from.origin(at, end - at)?;
        let length = length.min(end - at);
        match origin {
            Origin::Below => {}
            Origin::OwnZero => to.zero(at, length, false)?,
            Origin::Own => {
                let bytes = part(buffer, length)?;
                from.read(bytes, at)?;
                to.write(bytes, at)?;
            }
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += length;
    }
    Ok(())
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

    fn check(copy: &Path, format: Format) {
        let image = Image::open(&ImageOptions::read(copy, Some(format))).unwrap();
        let mut first = [0];
        for mib in 0..16u64 {
            image.read(&mut first, mib << 20).unwrap();
            let then = match mib {
                3 => 99,
                12.. => 0,
                _ => mib as u8 + 1,
            };
            assert_eq!(first[0], then, "mebibyte {mib}");
        }
    }

    fn captured_while_written(disk: &CapturableDisk, directory: &tempfile::TempDir) -> Capture {
        let ram = GuestRam::new(1 << 20, 1 << 20).unwrap();
        ram.write(0, &[99; 4096]).unwrap();
        let mut queue = disk.open_queue(ram).unwrap();
        write(&mut *queue, 3);
        let target = disk.prepare(&directory.path().join("copy")).unwrap();
        let capture = disk.capture(target).unwrap();
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
        for round in 0..50 {
            write(&mut *queue, round % 9);
        }
        let mut first = [0];
        disk.read_at(0, &mut first).unwrap();
        assert_eq!(first[0], 99);
        capture
    }

    #[test]
    fn a_copy_is_of_its_instant_whatever_is_written_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(&directory);
        let capture = captured_while_written(&disk, &directory);
        let other = disk.prepare(&directory.path().join("other")).unwrap();
        let second = disk.capture(other);
        assert!(capture.is_shared() || second.is_err());
        drop(second);
        capture.finish().unwrap();
        check(&directory.path().join("copy"), Format::Raw);
        let again = disk.prepare(&directory.path().join("again")).unwrap();
        drop(disk.capture(again).unwrap());
    }

    #[test]
    fn a_copy_of_an_overlay_builds_on_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let (base, top) = (
            directory.path().join("disk.img"),
            directory.path().join("top"),
        );
        drop(disk(&directory));
        let options = manage::CreateOptions::overlay(&base, Some(Format::Raw));
        manage::create(&top, &options).unwrap();
        let mut options = crate::DiskOptions::new(&top);
        options.format = Some(Format::Qcow2);
        let disk = CapturableDisk::new(crate::open(&options).unwrap());
        let copy = directory.path().join("copy");
        let capture = captured_while_written(&disk, &directory);
        capture.finish().unwrap();
        check(&copy, Format::Qcow2);
        let image = Image::open(&ImageOptions::read(&copy, Some(Format::Qcow2))).unwrap();
        assert_eq!(image.files().nth(1).unwrap().0, base);
        let size = std::fs::metadata(&copy).unwrap().len();
        assert!(size < 4 << 20, "it has what is below: {size} bytes");
    }

    #[test]
    fn a_copy_that_fails_harms_no_write() {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(&directory);
        let ram = GuestRam::new(1 << 20, 1 << 20).unwrap();
        let mut queue = disk.open_queue(ram).unwrap();
        let mut target = disk.prepare(&directory.path().join("copy")).unwrap();
        let full = || File::options().write(true).open("/dev/full").unwrap();
        (target.target, target.file) = (Target::Raw(full()), full());
        let capture = disk.capture(target).unwrap();
        write(&mut *queue, 2);
        assert!(capture.finish().is_err());
        write(&mut *queue, 2);
    }
}
