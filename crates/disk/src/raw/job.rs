//! One operation on its way: which system call comes next, and what its
//! result means. Shared by io_uring and the thread pool.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;

use memory::GuestRam;

use crate::format::MAGIC;
use crate::raw::Files;
use crate::{BlockError, BlockInfo, Completion, GuestRange, MAX_RANGES, Op, SECTOR};

const ZEROES_LEN: usize = 64 * 1024;
const ZEROES_PARTS: usize = 16;
/// How often a system call that asks to be repeated is repeated.
const RETRIES: u16 = 1000;

#[repr(align(4096))]
struct Zeroes([u8; ZEROES_LEN]);

static ZEROES: Zeroes = Zeroes([0; ZEROES_LEN]);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    #[default]
    Flush,
    Discard,
    WriteZeroes,
}

/// How a range is emptied; each stage falls back to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// FALLOC_FL_PUNCH_HOLE: zeroes that take no space.
    Punch,
    /// FALLOC_FL_ZERO_RANGE: zeroes whose space stays reserved.
    ZeroRange,
    /// Zeroes written like data.
    #[default]
    Data,
    /// fdatasync, where a durable operation has no other way.
    Sync,
}

/// A system call to make. Pointers are good until the job is finished.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Readv {
        fd: RawFd,
        iov: *const libc::iovec,
        count: u32,
        offset: u64,
    },
    Writev {
        fd: RawFd,
        iov: *const libc::iovec,
        count: u32,
        offset: u64,
        flags: i32,
    },
    Sync {
        fd: RawFd,
    },
    Allocate {
        fd: RawFd,
        mode: i32,
        offset: u64,
        len: u64,
    },
}

/// What follows a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Another call: [`Job::step`].
    Again,
    /// Finished, well or not.
    Done,
}

/// An operation and how far it has come.
#[derive(Default)]
pub(crate) struct Job {
    tag: u64,
    /// Which of its queue's files it is for.
    file: usize,
    kind: Kind,
    stage: Stage,
    /// Not direct, because of alignment or because the host refused it.
    buffered: bool,
    durable: bool,
    /// Next byte on the disk.
    offset: u64,
    /// Bytes still to do.
    left: u64,
    total: u64,
    iov: Vec<libc::iovec>,
    /// First part of `iov` not finished.
    at: usize,
    /// Guest memory that a read writes.
    ranges: Vec<GuestRange>,
    /// A checked copy of the disk's first block, which `iov` points to.
    head: Vec<u8>,
    error: Option<BlockError>,
    retries: u16,
}

// SAFETY: the pointers in `iov` point into guest RAM, `ZEROES` or `head`, which
// may be used from any thread; the queue that owns the job keeps the RAM mapped.
unsafe impl Send for Job {}

impl Job {
    /// Takes an operation after checking it.
    pub(crate) fn load(
        &mut self,
        tag: u64,
        op: &Op<'_>,
        info: &BlockInfo,
        files: &Files,
        ram: &GuestRam,
    ) -> Result<(), BlockError> {
        self.iov.clear();
        self.ranges.clear();
        (self.tag, self.at, self.error, self.retries) = (tag, 0, None, 0);
        (self.offset, self.left) = (0, 0);
        (self.buffered, self.durable, self.stage) = (false, false, Stage::Data);
        match *op {
            Op::Read { sector, to } => {
                self.kind = Kind::Read;
                self.load_ranges(to, ram)?;
                self.ranges.extend_from_slice(to);
                self.load_position(sector, self.left, info, files)?;
                self.buffered = !files.direct_fits(self.offset, self.left, &self.iov)
                    || files.has_cached(self.offset, self.left);
            }
            Op::Write {
                sector,
                from,
                durable,
            } => {
                self.kind = Kind::Write;
                if files.guarded && sector == 0 {
                    self.load_guarded(from, ram)?;
                } else {
                    self.load_ranges(from, ram)?;
                }
                self.load_position(sector, self.left, info, files)?;
                self.durable = durable;
                self.buffered = !files.direct_fits(self.offset, self.left, &self.iov);
            }
            Op::Flush => self.kind = Kind::Flush,
            Op::Discard { sector, count } => {
                self.kind = Kind::Discard;
                self.load_extent(sector, count, info, files)?;
                self.stage = Stage::Punch;
            }
            Op::WriteZeroes {
                sector,
                count,
                unmap,
                durable,
            } => {
                self.kind = Kind::WriteZeroes;
                self.load_extent(sector, count, info, files)?;
                self.stage = if unmap {
                    Stage::Punch
                } else {
                    Stage::ZeroRange
                };
                self.durable = durable;
            }
        }
        if info.read_only && !matches!(op, Op::Read { .. } | Op::Flush) {
            return Err(BlockError::ReadOnly);
        }
        self.total = self.left;
        Ok(())
    }

    fn load_ranges(&mut self, ranges: &[GuestRange], ram: &GuestRam) -> Result<(), BlockError> {
        if ranges.len() > MAX_RANGES {
            return Err(BlockError::Memory);
        }
        for range in ranges {
            if range.len == 0 {
                continue;
            }
            let len = range.len as usize;
            let base = ram
                .range_ptr(range.gpa, u64::from(range.len))
                .ok_or(BlockError::Memory)?;
            self.left += u64::from(range.len);
            match self.iov.last_mut() {
                Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => {
                    last.iov_len += len;
                }
                _ => self.iov.push(libc::iovec {
                    iov_base: base.cast(),
                    iov_len: len,
                }),
            }
        }
        Ok(())
    }

    /// As [`Self::load_ranges`], for the first block of a disk that nobody said
    /// to be raw: it may not come to look like another format. The guest could
    /// change its memory after a look at it, so the block is copied.
    fn load_guarded(&mut self, ranges: &[GuestRange], ram: &GuestRam) -> Result<(), BlockError> {
        let mut head = Vec::with_capacity(SECTOR as usize);
        let mut rest = Vec::with_capacity(ranges.len());
        for range in ranges {
            let room = SECTOR as usize - head.len();
            let length = room.min(range.len as usize);
            let at = head.len();
            head.resize(at + length, 0);
            ram.read(range.gpa, head.get_mut(at..).unwrap_or_default())
                .map_err(|_| BlockError::Memory)?;
            rest.push(GuestRange {
                gpa: range.gpa + length as u64,
                len: range.len - length as u32,
            });
        }
        if head.starts_with(&MAGIC) {
            tracing::warn!("a guest's write of a qcow2 header to its raw disk was refused");
            return Err(BlockError::Guarded);
        }
        if !head.is_empty() {
            self.head = head;
            self.left += self.head.len() as u64;
            self.iov.push(libc::iovec {
                iov_base: self.head.as_mut_ptr().cast(),
                iov_len: self.head.len(),
            });
        }
        self.load_ranges(&rest, ram)
    }

    fn load_extent(
        &mut self,
        sector: u64,
        count: u64,
        info: &BlockInfo,
        files: &Files,
    ) -> Result<(), BlockError> {
        self.left = count.checked_mul(SECTOR).ok_or(BlockError::Range)?;
        self.load_position(sector, self.left, info, files)
    }

    fn load_position(
        &mut self,
        sector: u64,
        len: u64,
        info: &BlockInfo,
        files: &Files,
    ) -> Result<(), BlockError> {
        let block = u64::from(info.logical_block);
        let end = sector.checked_add(len / SECTOR).ok_or(BlockError::Range)?;
        if end > files.sectors.load(Ordering::Acquire) || !len.is_multiple_of(block) {
            return Err(BlockError::Range);
        }
        self.offset = sector * SECTOR;
        if !self.offset.is_multiple_of(block) {
            return Err(BlockError::Range);
        }
        Ok(())
    }

    pub(crate) fn file(&self) -> usize {
        self.file
    }

    pub(crate) fn set_file(&mut self, file: usize) {
        self.file = file;
    }

    /// Whether there is nothing to do at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0 && self.kind != Kind::Flush
    }

    /// The next system call.
    pub(crate) fn step(&mut self, files: &Files) -> Step {
        match (self.kind, self.stage) {
            (Kind::Flush, _) | (_, Stage::Sync) => Step::Sync {
                fd: files.buffered.as_raw_fd(),
            },
            (Kind::Discard | Kind::WriteZeroes, Stage::Punch) => {
                self.allocate(files, libc::FALLOC_FL_PUNCH_HOLE)
            }
            (Kind::Discard | Kind::WriteZeroes, Stage::ZeroRange) => {
                self.allocate(files, libc::FALLOC_FL_ZERO_RANGE)
            }
            (Kind::Read, _) => Step::Readv {
                fd: files.fd(self.buffered),
                iov: self.iov[self.at..].as_ptr(),
                count: (self.iov.len() - self.at) as u32,
                offset: self.offset,
            },
            (Kind::Write, _) => self.write(files),
            (Kind::Discard | Kind::WriteZeroes, Stage::Data) => {
                self.load_zeroes();
                self.buffered |= !files.direct_fits(self.offset, self.iov_len(), &self.iov);
                self.write(files)
            }
        }
    }

    fn write(&self, files: &Files) -> Step {
        Step::Writev {
            fd: files.fd(self.buffered),
            iov: self.iov[self.at..].as_ptr(),
            count: (self.iov.len() - self.at) as u32,
            offset: self.offset,
            flags: if self.durable { libc::RWF_DSYNC } else { 0 },
        }
    }

    fn allocate(&self, files: &Files, mode: i32) -> Step {
        Step::Allocate {
            fd: files.buffered.as_raw_fd(),
            mode: mode | libc::FALLOC_FL_KEEP_SIZE,
            offset: self.offset,
            len: self.left,
        }
    }

    /// Points `iov` at zeroes for the next part of what is left.
    fn load_zeroes(&mut self) {
        self.iov.clear();
        self.at = 0;
        let mut len = self.left;
        while len > 0 && self.iov.len() < ZEROES_PARTS {
            let part = len.min(ZEROES_LEN as u64);
            self.iov.push(libc::iovec {
                iov_base: ZEROES.0.as_ptr().cast_mut().cast(),
                iov_len: part as usize,
            });
            len -= part;
        }
    }

    fn iov_len(&self) -> u64 {
        self.iov[self.at..].iter().map(|v| v.iov_len as u64).sum()
    }

    /// Takes the result of the last [`Self::step`]: bytes or 0, or minus the
    /// error number.
    pub(crate) fn advance(&mut self, result: i64) -> Progress {
        if result < 0 {
            return self.failed(-result as i32);
        }
        match (self.kind, self.stage) {
            (Kind::Flush, _) | (_, Stage::Sync) => Progress::Done,
            (_, Stage::Punch | Stage::ZeroRange) => {
                self.left = 0;
                self.finish_extent()
            }
            // The file has become shorter, or the device is full.
            _ if result == 0 => self.fail(libc::EIO),
            (kind, _) => {
                self.moved(result as u64);
                if self.left > 0 {
                    Progress::Again
                } else if kind == Kind::WriteZeroes {
                    // Data went with RWF_DSYNC if it had to.
                    self.durable = false;
                    self.finish_extent()
                } else {
                    Progress::Done
                }
            }
        }
    }

    fn finish_extent(&mut self) -> Progress {
        if self.durable {
            self.stage = Stage::Sync;
            return Progress::Again;
        }
        Progress::Done
    }

    fn moved(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.offset += bytes;
        self.left -= bytes;
        let mut rest = bytes as usize;
        while let Some(part) = self.iov.get_mut(self.at) {
            if rest < part.iov_len {
                part.iov_base = part.iov_base.cast::<u8>().wrapping_add(rest).cast();
                part.iov_len -= rest;
                break;
            }
            rest -= part.iov_len;
            self.at += 1;
        }
    }

    fn failed(&mut self, errno: i32) -> Progress {
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV);
        match (self.kind, self.stage) {
            _ if matches!(errno, libc::EINTR | libc::EAGAIN) && self.retries < RETRIES => {
                self.retries += 1;
                Progress::Again
            }
            // A discard is a hint: a host that cannot leaves the data there.
            (Kind::Discard, _) if unsupported => {
                self.left = 0;
                Progress::Done
            }
            (Kind::WriteZeroes, Stage::Punch) if unsupported => {
                self.stage = Stage::ZeroRange;
                Progress::Again
            }
            (Kind::WriteZeroes, Stage::ZeroRange) if unsupported => {
                self.stage = Stage::Data;
                Progress::Again
            }
            // Alignment rules of direct I/O that the host did not tell, or a
            // part transferred up to an odd place.
            (Kind::Read | Kind::Write | Kind::WriteZeroes, Stage::Data)
                if errno == libc::EINVAL && !self.buffered =>
            {
                self.buffered = true;
                Progress::Again
            }
            _ => self.fail(errno),
        }
    }

    fn fail(&mut self, errno: i32) -> Progress {
        self.error = Some(BlockError::Host(errno));
        Progress::Done
    }

    /// The result; reports what a read wrote to guest memory.
    pub(crate) fn complete(&self, ram: &GuestRam) -> Completion {
        // Even a failed read may have written a part of its buffer.
        for range in &self.ranges {
            ram.wrote(range.gpa, u64::from(range.len));
        }
        Completion {
            tag: self.tag,
            result: match self.error {
                Some(error) => Err(error),
                None if matches!(self.kind, Kind::Read | Kind::Write) => Ok(self.total),
                None => Ok(0),
            },
        }
    }
}

impl Files {
    fn fd(&self, buffered: bool) -> RawFd {
        let file: &File = match &self.direct {
            Some(direct) if !buffered => &direct.file,
            _ => &self.buffered,
        };
        file.as_raw_fd()
    }

    /// Whether direct I/O can take this transfer as it is. What it cannot
    /// take goes through the page cache, which the kernel keeps coherent.
    fn direct_fits(&self, offset: u64, len: u64, iov: &[libc::iovec]) -> bool {
        let Some(direct) = &self.direct else {
            return false;
        };
        let parts = iov
            .iter()
            .fold(0, |bits, v| bits | v.iov_base as u64 | v.iov_len as u64);
        (offset | len) & (direct.offset_align - 1) == 0 && parts & (direct.memory_align - 1) == 0
    }

    /// Whether the range can be read from the page cache without I/O. The
    /// kernel keeps it coherent with direct writes.
    fn has_cached(&self, offset: u64, len: u64) -> bool {
        let cached = self
            .direct
            .as_ref()
            .and_then(|direct| direct.cached.as_ref());
        cached.is_some_and(|cached| cached.holds(offset, len))
    }
}
