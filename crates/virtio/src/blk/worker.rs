//! The I/O thread of a block device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use disk::{BlockError, BlockQueue, Completion, Op, SERIAL_MAX, Waker};
use memory::GuestRam;

use super::request::{Ask, Parsed, Request, Status, Table, parse};
use super::{FailureHook, IoFailure};
use crate::device::{ActivateError, Doorbell, Signal};
use crate::queue::{self, Chain, QueueError, VirtQueue};

/// Longest time to look for work before sleeping.
const SPIN_MAX: Duration = Duration::from_micros(50);
/// First such time when looking begins to pay.
const SPIN_FIRST: Duration = Duration::from_micros(10);

/// What other threads tell the I/O thread.
pub(super) struct Control {
    waker: Arc<Waker>,
    stop: AtomicBool,
    durable: AtomicBool,
}

impl Control {
    pub(super) fn new(waker: Arc<Waker>, durable: bool) -> Self {
        Self {
            waker,
            stop: AtomicBool::new(false),
            durable: AtomicBool::new(durable),
        }
    }

    pub(super) fn set_durable(&self, durable: bool) {
        self.durable.store(durable, Ordering::SeqCst);
    }
}

impl Doorbell for Control {
    fn ring(&self, _queue: u16) {
        self.waker.wake();
    }
}

/// The running I/O thread.
pub(super) struct WorkerHandle {
    pub control: Arc<Control>,
    thread: JoinHandle<Vec<Option<VirtQueue>>>,
}

impl WorkerHandle {
    pub(super) fn start(worker: Worker, control: Arc<Control>) -> Result<Self, ActivateError> {
        let thread = std::thread::Builder::new()
            .name("virtio-blk".into())
            .stack_size(512 * 1024)
            .spawn(move || worker.run())
            .map_err(ActivateError::Thread)?;
        Ok(Self { control, thread })
    }

    /// Ends the thread after what is in flight; the queues.
    pub(super) fn stop(self) -> Vec<Option<VirtQueue>> {
        self.control.stop.store(true, Ordering::SeqCst);
        self.control.waker.wake();
        self.thread.join().unwrap_or_default()
    }
}

/// A queue and what the thread remembers of it.
pub(super) struct Queue {
    queue: Option<VirtQueue>,
    chain: Chain,
    /// The driver was told that it need not notify.
    quiet: bool,
    /// Chains were given back since the last interrupt.
    used: bool,
}

impl Queue {
    pub(super) fn new(queue: Option<VirtQueue>) -> Self {
        Self {
            queue,
            chain: Chain::default(),
            quiet: false,
            used: false,
        }
    }
}

/// The state of the I/O thread.
pub(super) struct Worker {
    pub queues: Vec<Queue>,
    pub disk: Box<dyn BlockQueue>,
    pub ram: Arc<GuestRam>,
    pub signal: Arc<dyn Signal>,
    pub control: Arc<Control>,
    pub features: u64,
    pub serial: String,
    pub on_failure: Option<FailureHook>,
    pub requests: Table,
    pub completions: Vec<Completion>,
    /// The rings are not touched any more.
    pub broken: bool,
}

impl Worker {
    fn run(mut self) -> Vec<Option<VirtQueue>> {
        let mut spin = Duration::ZERO;
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
            if busy || (!stopping && self.spin(spin)) {
                continue;
            }
            if !stopping && self.guard(Self::listen) {
                continue;
            }
            let asleep = Instant::now();
            if let Err(error) = self.disk.wait(&mut self.completions) {
                self.fail(&format!("disk I/O has failed: {error}"));
                break;
            }
            spin = next_spin(spin, asleep.elapsed());
        }
        // Dropping the disk queue waits for operations that a failed queue
        // may still have.
        drop(self.disk);
        self.queues.into_iter().map(|queue| queue.queue).collect()
    }

    /// Runs a step on the rings; a broken ring stops the device.
    fn guard(&mut self, step: fn(&mut Self) -> Result<bool, QueueError>) -> bool {
        if self.broken {
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
        self.broken = true;
        self.signal.needs_reset(reason);
    }

    /// Takes what is available off the rings and submits it.
    fn take_requests(&mut self) -> Result<bool, QueueError> {
        let mut busy = false;
        for index in 0..self.queues.len() {
            let Some(slot) = self.queues.get_mut(index) else {
                break;
            };
            let mut chain = std::mem::take(&mut slot.chain);
            let taken = self.take_from(index, &mut chain);
            if let Some(slot) = self.queues.get_mut(index) {
                slot.chain = chain;
            }
            busy |= taken?;
        }
        Ok(busy)
    }

    /// At most one queue's size at a time, so that completions come back in
    /// between.
    fn take_from(&mut self, index: usize, chain: &mut Chain) -> Result<bool, QueueError> {
        let mut busy = false;
        let mut budget = u16::MAX;
        while budget > 0 {
            let Some(Queue {
                queue: Some(queue),
                quiet,
                ..
            }) = self.queues.get_mut(index)
            else {
                break;
            };
            budget = budget.min(queue.size()) - 1;
            if !queue.pop(chain)? {
                break;
            }
            if !*quiet {
                queue.disable_notification()?;
                *quiet = true;
            }
            busy = true;
            self.start(index, chain)?;
        }
        Ok(busy)
    }

    /// Starts the request in a chain, or ends it at once.
    fn start(&mut self, index: usize, chain: &mut Chain) -> Result<(), QueueError> {
        let head = chain.head;
        let Parsed {
            ask,
            status,
            writable,
        } = parse(chain, &self.ram, self.features)?;
        let mut request = Request {
            queue: index,
            head,
            status,
            writable: 0,
            sector: 0,
            write: true,
        };
        let durable = self.control.durable.load(Ordering::Relaxed);
        let op = match ask {
            Ask::Read { sector, to } => {
                (request.sector, request.write, request.writable) = (sector, false, writable);
                Op::Read { sector, to }
            }
            Ask::Write { sector, from } => {
                request.sector = sector;
                Op::Write {
                    sector,
                    from,
                    durable,
                }
            }
            Ask::Flush => Op::Flush,
            Ask::Discard { sector, count } => {
                request.sector = sector;
                Op::Discard { sector, count }
            }
            Ask::WriteZeroes {
                sector,
                count,
                unmap,
            } => {
                request.sector = sector;
                Op::WriteZeroes {
                    sector,
                    count,
                    unmap,
                    durable,
                }
            }
            Ask::Serial { to } => {
                let mut serial = [0; SERIAL_MAX];
                for (to, from) in serial.iter_mut().zip(self.serial.bytes()) {
                    *to = from;
                }
                request.writable = queue::write(&self.ram, to, &serial) as u32;
                return self.finish(request, Status::Ok);
            }
            Ask::Refuse(status) => return self.finish(request, status),
        };
        let tag = self.requests.insert(request);
        match self.disk.submit(tag, op) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.requests.remove(tag);
                tracing::debug!(%error, ?request, "a block request cannot be done");
                let status = status_of(error);
                self.finish(request, status)
            }
        }
    }

    /// Gives completed requests back and interrupts once per queue.
    fn give_back(&mut self) -> Result<bool, QueueError> {
        let mut completions = std::mem::take(&mut self.completions);
        let busy = !completions.is_empty();
        for Completion { tag, result } in completions.drain(..) {
            let Some(request) = self.requests.remove(tag) else {
                continue;
            };
            let status = match result {
                Ok(_) => Status::Ok,
                Err(error) => {
                    self.report(&request, error);
                    status_of(error)
                }
            };
            self.finish(request, status)?;
        }
        self.completions = completions;
        for slot in &mut self.queues {
            if let Some(queue) = slot.queue.as_mut().filter(|_| slot.used) {
                slot.used = false;
                queue.notify()?;
            }
        }
        Ok(busy)
    }

    fn report(&self, request: &Request, error: BlockError) {
        let failure = IoFailure {
            sector: request.sector,
            write: request.write,
            error,
        };
        tracing::warn!(?failure, "disk I/O failed; the guest sees an I/O error");
        if let Some(hook) = &self.on_failure {
            hook(failure);
        }
    }

    /// Writes the status and puts the chain on the used ring.
    fn finish(&mut self, request: Request, status: Status) -> Result<(), QueueError> {
        if self.ram.write(request.status, &[status as u8]).is_err() {
            return Err(QueueError::Request {
                head: request.head,
                what: "the status is not in RAM",
            });
        }
        if let Some(slot) = self.queues.get_mut(request.queue)
            && let Some(queue) = &mut slot.queue
        {
            queue.push(request.head, request.writable.saturating_add(1))?;
            slot.used = true;
        }
        Ok(())
    }

    /// Asks for notifications before sleep; `true` if there is work already.
    fn listen(&mut self) -> Result<bool, QueueError> {
        let mut busy = false;
        for slot in &mut self.queues {
            if let Some(queue) = &mut slot.queue {
                slot.quiet = false;
                busy |= queue.enable_notification()?;
            }
        }
        Ok(busy)
    }

    /// Looks for work for a while; whether there is any.
    fn spin(&mut self, time: Duration) -> bool {
        if time.is_zero() || self.broken {
            return false;
        }
        let end = Instant::now() + time;
        loop {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            let available = self
                .queues
                .iter()
                .filter_map(|slot| slot.queue.as_ref())
                .any(|queue| queue.has_available() == Ok(true));
            // A failed poll is met again outside.
            let polled = self.disk.poll(&mut self.completions);
            if available || !self.completions.is_empty() || polled.is_err() {
                return true;
            }
            if self.control.stop.load(Ordering::Relaxed) || Instant::now() >= end {
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

/// How long to look for work before the next sleep: longer when the last
/// sleep was so short that looking would have met its end, else shorter.
fn next_spin(spin: Duration, slept: Duration) -> Duration {
    if slept <= SPIN_MAX {
        (spin * 2).clamp(SPIN_FIRST, SPIN_MAX)
    } else if spin > SPIN_FIRST {
        spin / 2
    } else {
        Duration::ZERO
    }
}
