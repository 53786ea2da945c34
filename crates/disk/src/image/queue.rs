//! A disk queue on an image: what lies in a file as it is goes the short way
//! ([`Fast`]); a few threads do everything else through the image's tables.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use memory::GuestRam;
use parking_lot::{Condvar, Mutex};

use super::Image;
use super::fast::{Fast, FastFiles};
use crate::{
    BlockError, BlockInfo, BlockQueue, Completion, DiskError, GuestRange, MAX_RANGES, Op, SECTOR,
    Waker,
};

/// Threads of one queue at most; each has one operation under way.
const THREADS: usize = 8;
/// Data passes through a buffer of this many bytes.
const BUFFER: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { durable: bool },
    Flush,
    Discard,
    Zero { unmap: bool, durable: bool },
}

/// A checked operation.
struct Task<'a> {
    kind: Kind,
    /// First byte on the disk.
    offset: u64,
    length: u64,
    ranges: &'a [GuestRange],
}

/// An operation on its way.
struct Job {
    tag: u64,
    kind: Kind,
    /// First byte on the disk.
    offset: u64,
    length: u64,
    ranges: Vec<GuestRange>,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stop: bool,
}

struct Shared {
    image: Arc<Image>,
    ram: Arc<GuestRam>,
    work: Mutex<Work>,
    more: Condvar,
    done: Mutex<Vec<Completion>>,
    waker: Arc<Waker>,
}

/// See the module.
pub(super) struct ImageQueue {
    shared: Arc<Shared>,
    info: BlockInfo,
    /// `None`: the host has no io_uring for us.
    fast: Option<Fast>,
    /// Operations with the threads.
    in_flight: usize,
    threads: Vec<JoinHandle<()>>,
}

impl ImageQueue {
    pub(super) fn new(
        image: Arc<Image>,
        files: Option<Arc<FastFiles>>,
        info: BlockInfo,
        ram: Arc<GuestRam>,
    ) -> Result<Self, DiskError> {
        let failed = |what| move |source| DiskError::Queue { what, source };
        let fast = match files {
            Some(files) => Some(Fast::new(image.clone(), files, &info, ram.clone())?),
            None => None,
        };
        let waker = match &fast {
            Some(fast) => fast.waker(),
            None => Arc::new(Waker::new().map_err(failed("eventfd"))?),
        };
        let mut queue = Self {
            shared: Arc::new(Shared {
                image,
                ram,
                work: Mutex::default(),
                more: Condvar::new(),
                done: Mutex::default(),
                waker,
            }),
            info,
            fast,
            in_flight: 0,
            threads: Vec::new(),
        };
        queue.add_thread().map_err(failed("a thread"))?;
        Ok(queue)
    }

    fn add_thread(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let handle = std::thread::Builder::new()
            .name("disk-image".into())
            .stack_size(512 * 1024)
            .spawn(move || work(&shared))?;
        self.shared.work.lock().threads += 1;
        self.threads.push(handle);
        Ok(())
    }

    /// Checks an operation.
    fn load<'a>(&self, op: &Op<'a>) -> Result<Task<'a>, BlockError> {
        let none: &[GuestRange] = &[];
        let (kind, sector, length, ranges) = match *op {
            Op::Read { sector, to } => (Kind::Read, sector, self.bytes(to)?, to),
            Op::Write {
                sector,
                from,
                durable,
            } => (Kind::Write { durable }, sector, self.bytes(from)?, from),
            Op::Flush => (Kind::Flush, 0, 0, none),
            Op::Discard { sector, count } => (Kind::Discard, sector, extent(count)?, none),
            Op::WriteZeroes {
                sector,
                count,
                unmap,
                durable,
            } => (Kind::Zero { unmap, durable }, sector, extent(count)?, none),
        };
        if self.info.read_only && !matches!(kind, Kind::Read | Kind::Flush) {
            return Err(BlockError::ReadOnly);
        }
        let offset = sector.checked_mul(SECTOR).ok_or(BlockError::Range)?;
        let end = offset.checked_add(length).ok_or(BlockError::Range)?;
        let block = u64::from(self.info.logical_block);
        let whole = offset.is_multiple_of(block) && length.is_multiple_of(block);
        if end > self.shared.image.size() || !whole {
            return Err(BlockError::Range);
        }
        Ok(Task {
            kind,
            offset,
            length,
            ranges,
        })
    }

    /// Bytes of a buffer that lies in RAM.
    fn bytes(&self, ranges: &[GuestRange]) -> Result<u64, BlockError> {
        if ranges.len() > MAX_RANGES {
            return Err(BlockError::Memory);
        }
        ranges.iter().try_fold(0, |sum, range| {
            let length = u64::from(range.len);
            let there = length == 0 || self.shared.ram.range_ptr(range.gpa, length).is_some();
            there.then_some(sum + length).ok_or(BlockError::Memory)
        })
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut done = self.shared.done.lock();
        self.in_flight -= done.len();
        out.append(&mut done);
    }
}

fn extent(sectors: u64) -> Result<u64, BlockError> {
    sectors.checked_mul(SECTOR).ok_or(BlockError::Range)
}

impl BlockQueue for ImageQueue {
    fn submit(&mut self, tag: u64, op: Op<'_>) -> Result<(), BlockError> {
        let Task {
            kind,
            offset,
            length,
            ranges,
        } = self.load(&op)?;
        let write = match kind {
            Kind::Read => Some(false),
            Kind::Write { durable: false } => Some(true),
            _ => None,
        };
        if matches!(kind, Kind::Flush) && self.shared.image.scratch {
            self.in_flight += 1;
            let result = Ok(0);
            self.shared.done.lock().push(Completion { tag, result });
            return Ok(());
        }
        if let (Some(write), Some(fast)) = (write, &mut self.fast)
            && fast.take(tag, offset, length, ranges, write)
        {
            return Ok(());
        }
        let job = Job {
            tag,
            kind,
            offset,
            length,
            ranges: ranges.to_vec(),
        };
        self.in_flight += 1;
        let crowded = {
            let mut work = self.shared.work.lock();
            work.jobs.push_back(job);
            work.jobs.len() > work.idle && work.threads < THREADS
        };
        self.shared.more.notify_one();
        if crowded && let Err(error) = self.add_thread() {
            tracing::debug!(%error, "no further disk thread");
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.reap(out);
        match &mut self.fast {
            Some(fast) => fast.poll(out),
            None => Ok(()),
        }
    }

    fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        self.poll(out)?;
        if out.len() > before {
            return Ok(());
        }
        if let Some(fast) = &mut self.fast {
            let waited = fast.wait(out);
            self.reap(out);
            return waited;
        }
        if !self.shared.waker.try_sleep() {
            return Ok(());
        }
        // An operation may have ended between the reaping and going to sleep,
        // but then its thread's wake has ended the sleep or ends it now.
        let slept = self.shared.waker.sleep();
        self.shared.waker.awake();
        self.reap(out);
        slept
    }

    fn in_flight(&self) -> usize {
        self.in_flight + self.fast.as_ref().map_or(0, Fast::in_flight)
    }

    fn waker(&self) -> Arc<Waker> {
        self.shared.waker.clone()
    }
}

impl Drop for ImageQueue {
    fn drop(&mut self) {
        // First: threads may wait for what is under way there.
        self.fast = None;
        self.shared.work.lock().stop = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // Threads end when no job is left, so guest memory is at rest.
            let _ = thread.join();
        }
        // Who stops a machine may want to copy its files.
        if let Err(error) = self.shared.image.settle() {
            tracing::error!(%error, "a disk's tables could not be written");
        }
    }
}

fn work(shared: &Shared) {
    let mut buffer = Vec::new();
    let mut work = shared.work.lock();
    loop {
        let Some(job) = work.jobs.pop_front() else {
            if work.stop {
                return;
            }
            work.idle += 1;
            shared.more.wait(&mut work);
            work.idle -= 1;
            continue;
        };
        drop(work);
        let result = do_job(shared, &job, &mut buffer);
        let result = result.map_err(|error| block_error(&error));
        let tag = job.tag;
        shared.done.lock().push(Completion { tag, result });
        shared.waker.wake();
        work = shared.work.lock();
    }
}

fn do_job(shared: &Shared, job: &Job, buffer: &mut Vec<u8>) -> io::Result<u64> {
    let image = &shared.image;
    let durable = match job.kind {
        Kind::Read => {
            transfer(job, buffer, |piece, offset, ranges| {
                image.read(piece, offset)?;
                each(ranges, piece, |gpa, part| shared.ram.write(gpa, part))
            })?;
            return Ok(job.length);
        }
        Kind::Write { durable } => {
            transfer(job, buffer, |piece, offset, ranges| {
                each(ranges, piece, |gpa, part| shared.ram.read(gpa, part))?;
                image.write(piece, offset)
            })?;
            durable
        }
        Kind::Flush => true,
        Kind::Discard => {
            image.discard(job.offset, job.length)?;
            false
        }
        Kind::Zero { unmap, durable } => {
            image.zero(job.offset, job.length, unmap)?;
            durable
        }
    };
    if durable {
        image.flush()?;
    }
    Ok(match job.kind {
        Kind::Write { .. } => job.length,
        _ => 0,
    })
}

/// Moves a job's data through the buffer piece by piece: `step` gets a piece,
/// its place on the disk and its place in guest memory.
fn transfer(
    job: &Job,
    buffer: &mut Vec<u8>,
    mut step: impl FnMut(&mut [u8], u64, &[GuestRange]) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    let mut ranges = job.ranges.iter().copied().collect::<VecDeque<_>>();
    while done < job.length {
        let length = (job.length - done).min(BUFFER as u64) as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let here = take(&mut ranges, length as u64);
        let piece = buffer.get_mut(..length).unwrap_or_default();
        step(piece, job.offset + done, &here)?;
        done += length as u64;
    }
    Ok(())
}

/// Takes the first `length` bytes off a list of ranges.
pub(super) fn take(ranges: &mut VecDeque<GuestRange>, mut length: u64) -> Vec<GuestRange> {
    let mut taken = Vec::new();
    while length > 0
        && let Some(mut range) = ranges.pop_front()
    {
        if u64::from(range.len) > length {
            let rest = GuestRange {
                gpa: range.gpa + length,
                len: range.len - length as u32,
            };
            range.len = length as u32;
            ranges.push_front(rest);
        }
        length -= u64::from(range.len);
        taken.push(range);
    }
    taken
}

/// Calls `step` for each range with its part of the data.
fn each<E>(
    ranges: &[GuestRange],
    mut data: &mut [u8],
    mut step: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> io::Result<()> {
    for range in ranges.iter().filter(|range| range.len > 0) {
        let Some((part, rest)) = data.split_at_mut_checked(range.len as usize) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // The ranges were in RAM when they were submitted, and still are.
        step(range.gpa, part).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
        data = rest;
    }
    Ok(())
}

/// The host's error number, also where it comes wrapped.
fn block_error(error: &io::Error) -> BlockError {
    let number = match error.raw_os_error() {
        Some(number) => number,
        None => match error.kind() {
            io::ErrorKind::StorageFull => libc::ENOSPC,
            io::ErrorKind::QuotaExceeded => libc::EDQUOT,
            io::ErrorKind::FileTooLarge => libc::EFBIG,
            _ => {
                tracing::warn!(%error, "a disk operation failed");
                libc::EIO
            }
        },
    };
    BlockError::Host(number)
}
