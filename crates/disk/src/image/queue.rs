//! A disk queue on an image: what lies in a file as it is goes the short way
//! ([`Fast`]); a few threads do everything else through the image's tables.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use memory::GuestRam;

use super::Image;
use super::fast::{Fast, FastFiles};
use crate::crew::Crew;
use crate::{
    BlockError, BlockInfo, BlockQueue, Completion, DiskError, GuestRange, MAX_RANGES, Op, SECTOR,
    Waker,
};

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

/// See the module.
pub(super) struct ImageQueue {
    image: Arc<Image>,
    ram: Arc<GuestRam>,
    info: BlockInfo,
    /// `None`: the host has no io_uring for us.
    fast: Option<Fast>,
    waker: Arc<Waker>,
    crew: Crew<Job, Completion>,
    finished: Vec<Completion>,
    /// Flushes of an image that is never flushed.
    empty: Vec<Completion>,
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
        let (of_threads, guest) = (image.clone(), ram.clone());
        let crew = Crew::new("disk-image", waker.clone(), move || {
            let (image, ram) = (of_threads.clone(), guest.clone());
            let mut buffer = Vec::new();
            Box::new(move |job: Job| {
                let result = do_job(&image, &ram, &job, &mut buffer);
                Completion {
                    tag: job.tag,
                    result: result.map_err(|error| block_error(&error)),
                }
            })
        })?;
        Ok(Self {
            image,
            ram,
            info,
            fast,
            waker,
            crew,
            finished: Vec::new(),
            empty: Vec::new(),
        })
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
        if end > self.image.size() || !whole {
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
            let there = length == 0 || self.ram.range_ptr(range.gpa, length).is_some();
            there.then_some(sum + length).ok_or(BlockError::Memory)
        })
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.empty);
        self.crew.finished(&mut self.finished);
        out.append(&mut self.finished);
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
        if matches!(kind, Kind::Flush) && self.image.scratch {
            let result = Ok(0);
            self.empty.push(Completion { tag, result });
            return Ok(());
        }
        if let (Some(write), Some(fast)) = (write, &mut self.fast)
            && fast.take(tag, offset, length, ranges, write)
        {
            return Ok(());
        }
        self.crew.submit(Job {
            tag,
            kind,
            offset,
            length,
            ranges: ranges.to_vec(),
        });
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
        let slept = self.crew.sleep();
        self.reap(out);
        slept
    }

    fn in_flight(&self) -> usize {
        self.crew.in_flight() + self.empty.len() + self.fast.as_ref().map_or(0, Fast::in_flight)
    }

    fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }
}

impl Drop for ImageQueue {
    fn drop(&mut self) {
        // First: threads may wait for what is under way there.
        self.fast = None;
        self.crew.stop();
        // Who stops a machine may want to copy its files.
        if let Err(error) = self.image.settle() {
            tracing::error!(%error, "a disk's tables could not be written");
        }
    }
}

fn do_job(image: &Image, ram: &GuestRam, job: &Job, buffer: &mut Vec<u8>) -> io::Result<u64> {
    let durable = match job.kind {
        Kind::Read => {
            transfer(job, buffer, |piece, offset, ranges| {
                image.read(piece, offset)?;
                each(ranges, piece, |gpa, part| ram.write(gpa, part))
            })?;
            return Ok(job.length);
        }
        Kind::Write { durable } => {
            transfer(job, buffer, |piece, offset, ranges| {
                each(ranges, piece, |gpa, part| ram.read(gpa, part))?;
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
