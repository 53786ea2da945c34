//! A disk queue on a few threads with blocking system calls, for hosts that
//! forbid io_uring.

use std::io;
use std::sync::Arc;

use memory::GuestRam;

use crate::crew::Crew;
use crate::raw::job::{Job, Progress, Step};
use crate::raw::{Files, Spare};
use crate::{BlockError, BlockInfo, BlockQueue, Completion, DiskError, Op, Waker};

pub(super) struct ThreadQueue {
    files: Arc<Files>,
    info: BlockInfo,
    ram: Arc<GuestRam>,
    spare: Spare,
    finished: Vec<Job>,
    empty: Vec<Completion>,
    waker: Arc<Waker>,
    crew: Crew<Job, Job>,
}

impl ThreadQueue {
    pub(super) fn new(
        files: Arc<Files>,
        info: BlockInfo,
        ram: Arc<GuestRam>,
    ) -> Result<Self, DiskError> {
        let waker = Arc::new(Waker::new().map_err(|source| DiskError::Queue {
            what: "eventfd",
            source,
        })?);
        let of_threads = files.clone();
        let crew = Crew::new("disk-io", waker.clone(), move || {
            let files = of_threads.clone();
            Box::new(move |job| complete(job, &files))
        })?;
        Ok(Self {
            files,
            info,
            ram,
            spare: Spare::default(),
            finished: Vec::new(),
            empty: Vec::new(),
            waker,
            crew,
        })
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.empty);
        self.crew.finished(&mut self.finished);
        for job in self.finished.drain(..) {
            out.push(self.spare.finish(job, &self.ram));
        }
    }
}

impl BlockQueue for ThreadQueue {
    fn submit(&mut self, tag: u64, op: Op<'_>) -> Result<(), BlockError> {
        let job = self
            .spare
            .load(tag, &op, &self.info, &self.files, &self.ram)?;
        if job.is_empty() {
            self.empty.push(self.spare.finish(job, &self.ram));
        } else {
            self.crew.submit(job);
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.reap(out);
        Ok(())
    }

    fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        self.reap(out);
        if out.len() > before {
            return Ok(());
        }
        let slept = self.crew.sleep();
        self.reap(out);
        slept
    }

    fn in_flight(&self) -> usize {
        self.crew.in_flight() + self.empty.len()
    }

    fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        self.crew.stop();
        // What guest memory got is told to its watchers all the same.
        let mut lost = Vec::new();
        self.reap(&mut lost);
    }
}

/// Makes all system calls of a job.
fn complete(mut job: Job, files: &Files) -> Job {
    while {
        let step = job.step(files);
        job.advance(call(step)) == Progress::Again
    } {}
    job
}

/// Makes a system call; bytes or 0, or minus the error number.
fn call(step: Step) -> i64 {
    // SAFETY: the job that made the step lives until this returns and keeps
    // its iovecs; they point to guest RAM, which the queue keeps mapped and
    // which may change at any time, or to constant zeroes, which are only
    // read. Descriptors are open as long as the queue.
    let result = unsafe {
        match step {
            Step::Readv {
                fd,
                iov,
                count,
                offset,
            } => libc::preadv64(fd, iov, count as i32, offset as i64) as i64,
            Step::Writev {
                fd,
                iov,
                count,
                offset,
                flags,
            } => libc::pwritev2(fd, iov, count as i32, offset as i64, flags) as i64,
            Step::Sync { fd } => i64::from(libc::fdatasync(fd)),
            Step::Allocate {
                fd,
                mode,
                offset,
                len,
            } => i64::from(libc::fallocate64(fd, mode, offset as i64, len as i64)),
        }
    };
    if result < 0 {
        let errno = io::Error::last_os_error().raw_os_error();
        return -i64::from(errno.unwrap_or(libc::EIO));
    }
    result
}
