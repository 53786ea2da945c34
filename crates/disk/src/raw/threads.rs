//! A disk queue on a few threads with blocking system calls, for hosts that
//! forbid io_uring.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use memory::GuestRam;
use parking_lot::{Condvar, Mutex};

use crate::raw::job::{Job, Progress, Step};
use crate::raw::{Files, Spare};
use crate::{BlockError, BlockInfo, BlockQueue, Completion, DiskError, Op, Waker};

/// Threads of one queue at most; each has one system call under way.
const THREADS: usize = 8;

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stop: bool,
}

struct Shared {
    files: Arc<Files>,
    work: Mutex<Work>,
    more: Condvar,
    done: Mutex<Vec<Job>>,
    waker: Arc<Waker>,
}

pub(super) struct ThreadQueue {
    shared: Arc<Shared>,
    info: BlockInfo,
    ram: Arc<GuestRam>,
    spare: Spare,
    finished: Vec<Job>,
    empty: Vec<Completion>,
    in_flight: usize,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl ThreadQueue {
    pub(super) fn new(
        files: Arc<Files>,
        info: BlockInfo,
        ram: Arc<GuestRam>,
    ) -> Result<Self, DiskError> {
        let waker = Waker::new().map_err(|source| DiskError::Queue {
            what: "eventfd",
            source,
        })?;
        let mut queue = Self {
            shared: Arc::new(Shared {
                files,
                work: Mutex::default(),
                more: Condvar::new(),
                done: Mutex::default(),
                waker: Arc::new(waker),
            }),
            info,
            ram,
            spare: Spare::default(),
            finished: Vec::new(),
            empty: Vec::new(),
            in_flight: 0,
            threads: Vec::new(),
        };
        queue.add_thread().map_err(|source| DiskError::Queue {
            what: "a thread",
            source,
        })?;
        Ok(queue)
    }

    fn add_thread(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let handle = std::thread::Builder::new()
            .name("disk-io".into())
            .stack_size(256 * 1024)
            .spawn(move || work(&shared))?;
        self.shared.work.lock().threads += 1;
        self.threads.push(handle);
        Ok(())
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        self.in_flight -= self.empty.len();
        out.append(&mut self.empty);
        std::mem::swap(&mut self.finished, &mut *self.shared.done.lock());
        self.in_flight -= self.finished.len();
        for job in self.finished.drain(..) {
            out.push(self.spare.finish(job, &self.ram));
        }
    }
}

impl BlockQueue for ThreadQueue {
    fn submit(&mut self, tag: u64, op: Op<'_>) -> Result<(), BlockError> {
        let job = self
            .spare
            .load(tag, &op, &self.info, &self.shared.files, &self.ram)?;
        self.in_flight += 1;
        if job.is_empty() {
            self.empty.push(self.spare.finish(job, &self.ram));
            return Ok(());
        }
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
        Ok(())
    }

    fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        self.reap(out);
        if out.len() > before || !self.shared.waker.try_sleep() {
            return Ok(());
        }
        // A job may have ended between the reaping and going to sleep, but
        // then its thread's wake has ended the sleep or ends it now.
        let slept = self.shared.waker.sleep();
        self.shared.waker.awake();
        self.reap(out);
        slept
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn waker(&self) -> Arc<Waker> {
        self.shared.waker.clone()
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        self.shared.work.lock().stop = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // Threads end when no job is left, so guest memory is at rest.
            let _ = thread.join();
        }
        let mut lost = Vec::new();
        self.reap(&mut lost);
    }
}

fn work(shared: &Shared) {
    let mut work = shared.work.lock();
    loop {
        let Some(mut job) = work.jobs.pop_front() else {
            if work.stop {
                return;
            }
            work.idle += 1;
            shared.more.wait(&mut work);
            work.idle -= 1;
            continue;
        };
        drop(work);
        while {
            let step = job.step(&shared.files);
            job.advance(call(step)) == Progress::Again
        } {}
        shared.done.lock().push(job);
        shared.waker.wake();
        work = shared.work.lock();
    }
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
