//! The I/O thread of one queue of a block device.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use disk::{BlockError, BlockQueue, Completion, SERIAL_MAX, Waker};
use memory::GuestRam;

use super::held::{HeldRequest, OnError, can_retry};
use super::limit::Limiter;
use super::request::{Ask, RequestKind, Status, Table, parse};
use super::shared::{IoFailure, Shared};
use crate::device::{ActivateError, Doorbell, Signal};
use crate::queue::{self, Chain, QueueError, VirtQueue};

/// Time to look for the guest's next request before sleeping.
const FOR_GUEST: Duration = Duration::from_micros(50);
/// Time to look for the end of the disk's work: what a fast one needs for a
/// small read.
const FOR_DISK: Duration = Duration::from_micros(100);
/// Fewest and most sleeps after looking in vain before it is tried again.
const REST_FIRST: u32 = 4;
const REST_MAX: u32 = 1024;

/// What other threads tell an I/O thread.
pub(super) struct Control {
    waker: Arc<Waker>,
    stop: AtomicBool,
}

/// Wakes the thread of the queue that is notified.
pub(super) struct Doorbells(pub Vec<Option<Arc<Control>>>);

impl Doorbell for Doorbells {
    fn ring(&self, queue: u16) {
        if let Some(Some(control)) = self.0.get(usize::from(queue)) {
            control.waker.wake();
        }
    }

    fn event(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        let control = self.0.get(usize::from(queue))?.as_ref()?;
        Some(control.waker.event())
    }
}

/// What is left of a queue whose thread has ended.
pub(super) struct Remains {
    pub queue: VirtQueue,
    pub held: Vec<HeldRequest>,
}

/// A running I/O thread.
pub(super) struct WorkerHandle {
    pub control: Arc<Control>,
    thread: JoinHandle<Remains>,
}

impl WorkerHandle {
    pub(super) fn start(worker: Worker) -> Result<Self, ActivateError> {
        let control = worker.control.clone();
        let thread = std::thread::Builder::new()
            .name(format!("virtio-blk-{}", worker.queue.index()))
            .stack_size(512 * 1024)
            .spawn(move || worker.run())
            .map_err(ActivateError::Thread)?;
        Ok(Self { control, thread })
    }

    /// Has the thread end after what is in flight.
    pub(super) fn tell_to_stop(&self) {
        self.control.stop.store(true, Ordering::SeqCst);
        self.control.waker.wake();
    }

    /// Waits for its end.
    pub(super) fn join(self) -> Option<Remains> {
        self.thread.join().ok()
    }
}

/// The state of an I/O thread.
pub(super) struct Worker {
    queue: VirtQueue,
    disk: Box<dyn BlockQueue>,
    ram: Arc<GuestRam>,
    signal: Arc<dyn Signal>,
    control: Arc<Control>,
    shared: Arc<Shared>,
    limiter: Option<Arc<Limiter>>,
    features: u64,
    on_error: OnError,
    requests: Table,
    completions: Vec<Completion>,
    chain: Chain,
    held: Vec<HeldRequest>,
    /// The driver was told that it need not notify.
    quiet: bool,
    /// Chains were given back since the last interrupt.
    used: bool,
    /// A request waits for a limit; the limiter wakes this thread.
    throttled: bool,
}

/// What a worker is made from.
pub(super) struct Parts {
    pub queue: VirtQueue,
    pub disk: Box<dyn BlockQueue>,
    pub ram: Arc<GuestRam>,
    pub signal: Arc<dyn Signal>,
    pub shared: Arc<Shared>,
    pub limiter: Option<Arc<Limiter>>,
    /// Offered by the device.
    pub features: u64,
    pub on_error: OnError,
    /// To be tried again first.
    pub held: Vec<HeldRequest>,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let control = Arc::new(Control {
            waker: parts.disk.waker(),
            stop: AtomicBool::new(false),
        });
        Self {
            queue: parts.queue,
            disk: parts.disk,
            ram: parts.ram,
            signal: parts.signal,
            control,
            shared: parts.shared,
            limiter: parts.limiter,
            features: parts.features,
            on_error: parts.on_error,
            requests: Table::default(),
            completions: Vec::new(),
            chain: Chain::default(),
            held: parts.held,
            quiet: false,
            used: false,
            throttled: false,
        }
    }

    /// Number of its queue.
    pub(super) fn index(&self) -> usize {
        self.queue.index().into()
    }

    fn run(mut self) -> Remains {
        let mut for_guest = Spin::up_to(FOR_GUEST);
        let mut for_disk = Spin::up_to(FOR_DISK);
        self.guard(Self::retry_held);
        loop {
            let stopping = self.control.stop.load(Ordering::SeqCst);
            if stopping && self.disk.in_flight() == 0 && self.completions.is_empty() {
                break;
            }
            let mut busy = false;
            if !stopping {
                busy |= self.guard(Self::take_requests);
            }
            if let Err(error) = self.disk.poll(&mut self.completions) {
                self.fail(&format!("disk I/O has failed: {error}"));
                break;
            }
            busy |= self.guard(Self::give_back);
            // The last operation of a broken queue ends it, too: nothing
            // would wake this thread again.
            let idle = self.disk.in_flight() == 0;
            let spin = if idle { &mut for_guest } else { &mut for_disk };
            if busy || (stopping && idle) || (!stopping && self.spin(spin)) {
                continue;
            }
            if !stopping && !self.throttled && self.guard(Self::listen) {
                continue;
            }
            let asleep = Instant::now();
            if let Err(error) = self.disk.wait(&mut self.completions) {
                self.fail(&format!("disk I/O has failed: {error}"));
                break;
            }
            spin.slept(asleep.elapsed());
        }
        // Dropping the disk queue waits for operations that a failed queue
        // may still have.
        drop(self.disk);
        Remains {
            queue: self.queue,
            held: self.held,
        }
    }

    fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Relaxed)
    }

    /// Runs a step on the ring; a broken ring stops the device.
    fn guard(&mut self, step: fn(&mut Self) -> Result<bool, QueueError>) -> bool {
        if self.is_broken() {
            self.completions.clear();
            return false;
        }
        match step(self) {
            Ok(busy) => busy,
            Err(error) => {
                self.fail(&error.to_string());
                false
            }
        }
    }

    fn fail(&mut self, reason: &str) {
        self.shared.broken.store(true, Ordering::SeqCst);
        self.signal.needs_reset(reason);
    }

    /// Starts again what the host failed before the device was stopped.
    fn retry_held(&mut self) -> Result<bool, QueueError> {
        let held = std::mem::take(&mut self.held);
        self.queue.adopt(held.len());
        for before in &held {
            let (tag, request) = self.requests.claim();
            before.load(request);
            self.submit(tag)?;
        }
        Ok(!held.is_empty())
    }

    /// Takes what is available off the ring and submits it: at most the
    /// queue's size at a time, so that completions come back in between.
    fn take_requests(&mut self) -> Result<bool, QueueError> {
        self.throttled = false;
        let mut chain = std::mem::take(&mut self.chain);
        let mut busy = false;
        let mut result = Ok(false);
        for _ in 0..self.queue.size() {
            result = self.take_one(&mut chain);
            match result {
                Ok(true) => busy = true,
                _ => break,
            }
        }
        self.chain = chain;
        result.map(|_| busy)
    }

    /// Takes one request; `false` if there is none that may go now.
    fn take_one(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if !self.queue.pop(chain)? {
            return Ok(false);
        }
        if !self.quiet {
            self.queue.disable_notification()?;
            self.quiet = true;
        }
        self.start(chain)
    }

    /// Starts the request in a chain, or ends it at once, or puts it back
    /// (`false`) because of a limit.
    fn start(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let head = chain.head;
        let parsed = parse(chain, &self.ram, self.features)?;
        let (tag, request) = self.requests.claim();
        if let Err(status) = request.load(head, &parsed) {
            if let Ask::Serial { to } = parsed.ask {
                let mut serial = [0; SERIAL_MAX];
                let bytes = self.shared.disk.info().serial.bytes();
                for (to, from) in serial.iter_mut().zip(bytes) {
                    *to = from;
                }
                request.writable = queue::write(&self.ram, to, &serial) as u32;
            }
            return self.finish(tag, status).map(|()| true);
        }
        if let Some(limiter) = &self.limiter
            && request.kind != RequestKind::Flush
            && !limiter.admit(request.bytes(), &self.control.waker)
        {
            self.requests.release(tag);
            self.queue.undo_pop();
            self.throttled = true;
            self.shared.throttled();
            return Ok(false);
        }
        self.submit(tag).map(|()| true)
    }

    fn submit(&mut self, tag: u64) -> Result<(), QueueError> {
        let durable = self.shared.durable.load(Ordering::Relaxed);
        let Some(request) = self.requests.get(tag) else {
            return Ok(());
        };
        match self.disk.submit(tag, request.op(durable)) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, ?request, "a block request cannot be done");
                self.finish(tag, status_of(error))
            }
        }
    }

    /// Gives completed requests back and interrupts once.
    fn give_back(&mut self) -> Result<bool, QueueError> {
        let mut completions = std::mem::take(&mut self.completions);
        let busy = !completions.is_empty();
        for Completion { tag, result } in completions.drain(..) {
            match result {
                Ok(bytes) => {
                    if let Some(request) = self.requests.get(tag) {
                        self.shared.done(request.kind, bytes);
                    }
                    self.finish(tag, Status::Ok)?;
                }
                Err(error) => self.failed(tag, error)?,
            }
        }
        self.completions = completions;
        if std::mem::take(&mut self.used) {
            self.queue.notify()?;
        }
        Ok(busy)
    }

    /// Keeps a request that the host failed, or answers it so.
    fn failed(&mut self, tag: u64, error: BlockError) -> Result<(), QueueError> {
        let Some(request) = self.requests.get(tag) else {
            return Ok(());
        };
        let held = self.on_error == OnError::Pause && can_retry(request.kind, error);
        let failure = IoFailure {
            sector: request.sector,
            write: request.kind != RequestKind::Read,
            error,
            held,
        };
        if held {
            let keep = HeldRequest::keep(self.queue.index(), request);
            self.held.push(keep);
            self.requests.release(tag);
            self.shared.failed(failure);
            return Ok(());
        }
        self.shared.failed(failure);
        self.finish(tag, status_of(error))
    }

    /// Writes the status and puts the chain on the used ring.
    fn finish(&mut self, tag: u64, status: Status) -> Result<(), QueueError> {
        let Some(request) = self.requests.get(tag) else {
            return Ok(());
        };
        let (head, written) = (request.head, request.writable.saturating_add(1));
        if self.ram.write(request.status, &[status as u8]).is_err() {
            return Err(QueueError::Request {
                head,
                what: "the status is not in RAM",
            });
        }
        self.requests.release(tag);
        self.used = true;
        self.queue.push(head, written)
    }

    /// Asks for notifications before sleep; `true` if there is work already.
    fn listen(&mut self) -> Result<bool, QueueError> {
        self.quiet = false;
        self.queue.enable_notification()
    }

    /// Looks for work for a while; whether there is any.
    fn spin(&mut self, spin: &mut Spin) -> bool {
        if spin.time.is_zero() || self.throttled || self.is_broken() {
            return false;
        }
        let end = Instant::now() + spin.time;
        loop {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            let available = self.queue.has_available() == Ok(true);
            // A failed poll is met again outside.
            let polled = self.disk.poll(&mut self.completions);
            if available || !self.completions.is_empty() || polled.is_err() {
                spin.paid();
                return true;
            }
            if self.control.stop.load(Ordering::Relaxed) {
                return false;
            }
            if Instant::now() >= end {
                spin.failed();
                return false;
            }
        }
    }
}

fn status_of(error: BlockError) -> Status {
    match error {
        BlockError::Unsupported => Status::Unsupported,
        _ => Status::IoError,
    }
}

/// Whether and how long to look for work before sleep.
///
/// Looking beats sleeping where the next request comes within microseconds.
/// Where the host has more to do than CPUs, it keeps the guest from the very
/// CPU on which that request would be made: after looking in vain, nothing is
/// looked for during the next many sleeps.
struct Spin {
    /// Longest time worth looking.
    most: Duration,
    time: Duration,
    /// Sleeps until it is tried again.
    rest: u32,
    /// Sleeps after the next failure.
    penalty: u32,
}

impl Spin {
    fn up_to(most: Duration) -> Self {
        Self {
            most,
            time: Duration::ZERO,
            rest: 0,
            penalty: 0,
        }
    }

    /// It was looked for in vain.
    fn failed(&mut self) {
        self.time = Duration::ZERO;
        self.penalty = (self.penalty * 2).clamp(REST_FIRST, REST_MAX);
        self.rest = self.penalty;
    }

    /// Something came while it was looked for.
    fn paid(&mut self) {
        self.penalty = 0;
    }

    /// A sleep without looking lasted this long.
    fn slept(&mut self, time: Duration) {
        if self.rest > 0 {
            self.rest -= 1;
        } else if time <= 2 * self.most {
            self.time = self.most;
        }
    }
}
