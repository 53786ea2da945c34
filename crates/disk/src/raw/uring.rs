//! A disk queue on io_uring: one system call submits a batch and waits.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, OnceLock};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use memory::GuestRam;

use crate::raw::job::{Job, Progress, Step};
use crate::raw::{Files, Spare};
use crate::{BlockError, BlockInfo, BlockQueue, Completion, DiskError, Op, Waker};

/// Submission entries; the completion ring has twice as many.
const ENTRIES: u32 = 256;
/// Operations in the kernel at once, so that the completion ring suffices.
const LIMIT: usize = 2 * ENTRIES as usize - 8;
/// `user_data` of the poll on the waker's event.
const WAKE: u64 = u64::MAX;

/// Whether this host lets us use io_uring with all that a disk needs; the
/// error says why not. Measured once.
///
/// # Errors
/// The reason, for people.
pub fn usable() -> Result<(), String> {
    static PROBED: OnceLock<Result<(), String>> = OnceLock::new();
    PROBED.get_or_init(probe).clone()
}

fn probe() -> Result<(), String> {
    let mut ring = IoUring::new(4).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel or a seccomp filter does not have it".to_owned(),
        Some(libc::EPERM) => "forbidden by kernel.io_uring_disabled or a seccomp filter".to_owned(),
        _ => error.to_string(),
    })?;
    if !ring.params().is_feature_nodrop() {
        return Err("the kernel is too old (5.6 or later is needed)".to_owned());
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|_| "the kernel is too old (5.6 or later is needed)".to_owned())?;
    let needed = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
    ];
    if !needed.iter().all(|&code| probe.is_supported(code)) {
        return Err("the kernel lacks some of its operations".to_owned());
    }
    // A filter may allow the set-up and forbid the use.
    let nop = opcode::Nop::new().build();
    // SAFETY: a no-operation has no pointers.
    unsafe { ring.submission().push(&nop) }.map_err(|e| e.to_string())?;
    ring.submit_and_wait(1).map_err(|e| e.to_string())?;
    match ring.completion().next() {
        Some(done) if done.result() >= 0 => Ok(()),
        _ => Err("a test operation failed".to_owned()),
    }
}

pub(crate) struct UringQueue {
    ring: IoUring,
    /// Of a raw disk one; of an image those of its chain.
    files: Vec<Arc<Files>>,
    info: BlockInfo,
    ram: Arc<GuestRam>,
    /// Jobs in the kernel, by `user_data`.
    slots: Vec<Option<Job>>,
    free: Vec<usize>,
    /// Jobs that wait for a place in the kernel.
    backlog: VecDeque<Job>,
    spare: Spare,
    empty: Vec<Completion>,
    in_flight: usize,
    waker: Arc<Waker>,
    /// A poll on the waker's event is under way.
    armed: bool,
}

impl UringQueue {
    pub(crate) fn new(
        files: Vec<Arc<Files>>,
        info: BlockInfo,
        ram: Arc<GuestRam>,
    ) -> Result<Self, DiskError> {
        let queue = |what| move |source| DiskError::Queue { what, source };
        Ok(Self {
            ring: IoUring::new(ENTRIES).map_err(queue("io_uring"))?,
            files,
            info,
            ram,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            spare: Spare::default(),
            empty: Vec::new(),
            in_flight: 0,
            waker: Arc::new(Waker::new().map_err(queue("eventfd"))?),
            armed: false,
        })
    }

    /// As [`BlockQueue::submit`], to one of several files.
    pub(crate) fn submit_to(
        &mut self,
        file: usize,
        tag: u64,
        op: &Op<'_>,
    ) -> Result<(), BlockError> {
        let files = self.files.get(file).ok_or(BlockError::Unsupported)?;
        let mut job = self.spare.load(tag, op, &self.info, files, &self.ram)?;
        job.set_file(file);
        self.in_flight += 1;
        if job.is_empty() {
            self.empty.push(self.spare.finish(job, &self.ram));
        } else {
            self.backlog.push_back(job);
        }
        Ok(())
    }

    fn in_kernel(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Moves waiting jobs into the submission ring.
    fn fill(&mut self) -> io::Result<()> {
        while self.in_kernel() < LIMIT {
            let Some(job) = self.backlog.pop_front() else {
                break;
            };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            });
            self.slots[slot] = Some(job);
            if let Err(error) = self.push_step(slot) {
                // The kernel has not seen it.
                if let Some(job) = self.slots[slot].take() {
                    self.backlog.push_front(job);
                }
                self.free.push(slot);
                return Err(error);
            }
        }
        Ok(())
    }

    fn push_step(&mut self, slot: usize) -> io::Result<()> {
        let Some(job) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return Ok(());
        };
        let Some(files) = self.files.get(job.file()) else {
            return Ok(());
        };
        let entry = entry(job.step(files)).user_data(slot as u64);
        self.push(&entry)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry points to (iovecs of a job in `slots`,
            // guest RAM, the constant zeroes) stays where it is until the
            // completion; dropping the queue waits for it.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            enter(&self.ring, 0)?;
        }
    }

    /// Takes completions from the ring; follow-up steps are pushed.
    fn reap(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.in_flight -= self.empty.len();
        out.append(&mut self.empty);
        while let Some(done) = self.next_completion() {
            let (tag, result) = done;
            if tag == WAKE {
                self.armed = false;
                self.waker.drain();
                continue;
            }
            let slot = tag as usize;
            let Some(job) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
                continue;
            };
            if job.advance(i64::from(result)) == Progress::Again {
                self.push_step(slot)?;
            } else if let Some(job) = self.slots[slot].take() {
                self.free.push(slot);
                self.in_flight -= 1;
                out.push(self.spare.finish(job, &self.ram));
            }
        }
        Ok(())
    }

    fn next_completion(&mut self) -> Option<(u64, i32)> {
        let done = self.ring.completion().next()?;
        Some((done.user_data(), done.result()))
    }

    fn arm(&mut self) -> io::Result<()> {
        if !self.armed {
            let poll = opcode::PollAdd::new(types::Fd(self.waker.fd()), libc::POLLIN as u32);
            self.push(&poll.build().user_data(WAKE))?;
            self.armed = true;
        }
        Ok(())
    }
}

impl BlockQueue for UringQueue {
    fn submit(&mut self, tag: u64, op: Op<'_>) -> Result<(), BlockError> {
        self.submit_to(0, tag, &op)
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.fill()?;
        if !self.ring.submission().is_empty() {
            enter(&self.ring, 0)?;
        }
        self.reap(out)
    }

    fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        self.poll(out)?;
        if out.len() > before {
            return Ok(());
        }
        self.arm()?;
        if !self.waker.try_sleep() {
            return Ok(());
        }
        let entered = enter(&self.ring, 1);
        self.waker.awake();
        entered?;
        self.reap(out)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        let mut lost = Vec::new();
        while self.in_flight > 0 {
            if let Err(error) = self.poll(&mut lost) {
                tracing::error!(%error, "io_uring failed with disk operations under way");
            }
            if self.in_kernel() > 0 && lost.is_empty() && enter(&self.ring, 1).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            lost.clear();
        }
    }
}

/// Submits, and waits for `want` completions; being interrupted, or the kernel
/// being short of resources until completions are reaped, is no error.
fn enter(ring: &IoUring, want: usize) -> io::Result<()> {
    match ring.submit_and_wait(want) {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(error),
        },
    }
}

fn entry(step: Step) -> squeue::Entry {
    match step {
        Step::Readv {
            fd,
            iov,
            count,
            offset,
        } => opcode::Readv::new(types::Fd(fd), iov, count)
            .offset(offset)
            .build(),
        Step::Writev {
            fd,
            iov,
            count,
            offset,
            flags,
        } => opcode::Writev::new(types::Fd(fd), iov, count)
            .offset(offset)
            .rw_flags(flags)
            .build(),
        Step::Sync { fd } => opcode::Fsync::new(types::Fd(fd))
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Step::Allocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(types::Fd(fd), len)
            .offset(offset)
            .mode(mode)
            .build(),
    }
}
