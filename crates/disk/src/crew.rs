//! A few threads that do the blocking work of one disk queue.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::{DiskError, Waker};

/// Threads of one queue at most; each has one job under way.
const THREADS: usize = 8;
const STACK: usize = 512 * 1024;

/// What one thread does with its jobs; it may keep buffers from one to the next.
type Hand<J, D> = Box<dyn FnMut(J) -> D>;

struct Work<J> {
    jobs: VecDeque<J>,
    threads: usize,
    idle: usize,
    stop: bool,
}

struct Shared<J, D> {
    work: Mutex<Work<J>>,
    more: Condvar,
    done: Mutex<Vec<D>>,
    waker: Arc<Waker>,
    make: Box<dyn Fn() -> Hand<J, D> + Send + Sync>,
}

/// Threads that turn jobs into results, in any order. It has one at first, and
/// gets more when jobs wait.
pub(crate) struct Crew<J, D> {
    name: &'static str,
    shared: Arc<Shared<J, D>>,
    /// Submitted, and not yet taken back by [`Self::finished`].
    in_flight: usize,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static, D: Send + 'static> Crew<J, D> {
    /// `make` is called on each new thread; `waker` is woken after each job.
    ///
    /// # Errors
    /// [`DiskError::Queue`] if the host gives no thread.
    pub(crate) fn new(
        name: &'static str,
        waker: Arc<Waker>,
        make: impl Fn() -> Hand<J, D> + Send + Sync + 'static,
    ) -> Result<Self, DiskError> {
        let mut crew = Self {
            name,
            shared: Arc::new(Shared {
                work: Mutex::new(Work {
                    jobs: VecDeque::new(),
                    threads: 0,
                    idle: 0,
                    stop: false,
                }),
                more: Condvar::new(),
                done: Mutex::new(Vec::new()),
                waker,
                make: Box::new(make),
            }),
            in_flight: 0,
            threads: Vec::new(),
        };
        crew.add_thread().map_err(|source| DiskError::Queue {
            what: "a thread",
            source,
        })?;
        Ok(crew)
    }

    fn add_thread(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let handle = std::thread::Builder::new()
            .name(self.name.into())
            .stack_size(STACK)
            .spawn(move || work(&shared))?;
        self.shared.work.lock().threads += 1;
        self.threads.push(handle);
        Ok(())
    }

    /// Gives a job to the next free thread.
    pub(crate) fn submit(&mut self, job: J) {
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
    }

    /// Moves the results so far to an empty list.
    pub(crate) fn finished(&mut self, results: &mut Vec<D>) {
        std::mem::swap(results, &mut *self.shared.done.lock());
        self.in_flight -= results.len();
    }

    /// Sleeps until a job is done or the waker is woken, unless either came
    /// since the last sleep.
    ///
    /// # Errors
    /// The host's, of waiting for the event.
    pub(crate) fn sleep(&self) -> io::Result<()> {
        let waker = &self.shared.waker;
        if !waker.try_sleep() {
            return Ok(());
        }
        // A job may have ended between a look at the results and going to
        // sleep, but then its thread's wake has ended the sleep or ends it now.
        let slept = waker.sleep();
        waker.awake();
        slept
    }

    /// Jobs whose results were not taken yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl<J, D> Crew<J, D> {
    /// Waits for all jobs and ends the threads, so that guest memory is at rest.
    pub(crate) fn stop(&mut self) {
        self.shared.work.lock().stop = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // Threads end when no job is left.
            let _ = thread.join();
        }
    }
}

impl<J, D> Drop for Crew<J, D> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn work<J, D>(shared: &Shared<J, D>) {
    let mut hand = (shared.make)();
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
        let result = hand(job);
        shared.done.lock().push(result);
        shared.waker.wake();
        work = shared.work.lock();
    }
}
