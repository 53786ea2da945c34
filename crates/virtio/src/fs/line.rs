//! The requests of a shared folder, one after the other, on a thread that the
//! folder may keep as long as it likes.
//!
//! The thread holds no lock and touches no guest memory while the host works,
//! so that a folder that hangs (a server that is gone) keeps nobody waiting
//! but those who use it: a request that it does not answer is put back into
//! its queue when the device stops, and given its answer when the device works
//! again. In a saved state it is a request that was not yet taken.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use devices::Version;
use parking_lot::{Condvar, Mutex};

use super::server::TRANSFER_MAX;
use super::wire::{IN_HEADER, OUT_HEADER, Reader, Writer, op};
use super::{Folder, FsState, QUEUES};
use crate::device::Doorbell;
use crate::queue::{Chain, QueueError, VirtQueue, read, write};

/// Most bytes of a request.
const REQUEST_MAX: usize = TRANSFER_MAX + 4096;
/// How long a device that stops waits for the request that is being served.
const SETTLE: Duration = Duration::from_millis(200);
/// How long the end of the device waits for the thread.
const END: Duration = Duration::from_secs(1);
/// How long a saved state waits for what the guest knows of the folder, and how
/// long if the folder has not answered a request.
const SAVE: Duration = Duration::from_secs(10);
const SAVE_HANGING: Duration = Duration::from_secs(2);

/// The thread and the way to it.
pub struct Worker(Arc<Shared>);

struct Shared {
    line: Mutex<Line>,
    /// Nothing is being served, or the thread has ended.
    settled: Condvar,
    rung: Mutex<bool>,
    ring: Condvar,
    end: AtomicBool,
}

struct Line {
    queues: [Option<VirtQueue>; QUEUES],
    jobs: VecDeque<Job>,
    serving: Option<Serving>,
    /// Number of the request that was taken last.
    last: u64,
    stopping: bool,
    gone: bool,
}

/// What is to be done with the folder besides requests.
enum Job {
    ForgetAll,
    Restore(Box<FsState>),
    Save(SyncSender<FsState>),
}

/// The request that the folder works on.
struct Serving {
    number: u64,
    queue: usize,
    chain: Chain,
    /// What to answer, once it is known.
    answer: Option<Vec<u8>>,
}

/// A request as it was taken from its queue.
struct Request {
    number: u64,
    op: u32,
    unique: u64,
    node: u64,
    room: usize,
}

enum Task {
    Job(Job),
    Request(Request),
    /// Until the guest or the host wants something.
    Wait,
}

impl Worker {
    pub fn start(folder: Box<dyn Folder>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            line: Mutex::new(Line {
                queues: [None, None],
                jobs: VecDeque::new(),
                serving: None,
                last: 0,
                stopping: false,
                gone: false,
            }),
            settled: Condvar::new(),
            rung: Mutex::new(false),
            ring: Condvar::new(),
            end: AtomicBool::new(false),
        });
        let worker = shared.clone();
        std::thread::Builder::new()
            .name("fs".into())
            .stack_size(512 << 10)
            .spawn(move || {
                worker.work(folder);
                worker.line.lock().gone = true;
                worker.settled.notify_all();
            })?;
        Ok(Self(shared))
    }

    pub fn activate(&self, queues: [Option<VirtQueue>; QUEUES]) -> Arc<dyn Doorbell> {
        let mut line = self.0.line.lock();
        line.queues = queues;
        line.take_up();
        drop(line);
        self.0.wake();
        self.0.clone()
    }

    pub fn stop(&self) -> Vec<Option<VirtQueue>> {
        let mut line = self.0.line.lock();
        line.stopping = true;
        let end = Instant::now() + SETTLE;
        while line.serving.is_some() && !self.0.settled.wait_until(&mut line, end).timed_out() {}
        line.stopping = false;
        line.put_back();
        line.queues.iter_mut().map(Option::take).collect()
    }

    pub fn reset(&self) {
        self.0.line.lock().serving = None;
        self.job(Job::ForgetAll);
    }

    /// What the guest knows; nothing, if the folder does not say it in time:
    /// it is stale after a restore.
    pub fn save(&self) -> FsState {
        let (sender, receiver) = sync_channel(1);
        self.job(Job::Save(sender));
        let patience = match self.0.line.lock().serving {
            Some(_) => SAVE_HANGING,
            None => SAVE,
        };
        receiver.recv_timeout(patience).unwrap_or_else(|_| {
            tracing::warn!(
                "a shared folder does not answer: its files are stale to a guest that is restored"
            );
            FsState {
                version: Version::current(),
                nodes: Vec::new(),
                handles: Vec::new(),
            }
        })
    }

    pub fn restore(&self, state: &FsState) {
        self.0.line.lock().serving = None;
        self.job(Job::Restore(Box::new(state.clone())));
    }

    fn job(&self, job: Job) {
        self.0.line.lock().jobs.push_back(job);
        self.0.wake();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::Release);
        self.0.wake();
        let mut line = self.0.line.lock();
        let end = Instant::now() + END;
        while !line.gone && !self.0.settled.wait_until(&mut line, end).timed_out() {}
        if !line.gone {
            tracing::warn!("a shared folder does not answer: its thread is left to itself");
        }
    }
}

impl Doorbell for Shared {
    fn ring(&self, _queue: u16) {
        self.wake();
    }
}

impl Shared {
    fn wake(&self) {
        *self.rung.lock() = true;
        self.ring.notify_one();
    }

    fn work(&self, mut folder: Box<dyn Folder>) {
        let mut bytes = Vec::new();
        while !self.end.load(Ordering::Acquire) {
            let task = self.line.lock().next(&mut bytes);
            match task {
                Task::Job(Job::ForgetAll) => folder.forget_all(),
                Task::Job(Job::Restore(state)) => folder.restore(&state),
                Task::Job(Job::Save(to)) => {
                    // Who asked may have given up.
                    let _ = to.try_send(folder.save());
                }
                Task::Request(request) => {
                    let answer = request.answer(&mut *folder, &bytes);
                    self.line.lock().answered(request.number, answer);
                    self.settled.notify_all();
                }
                Task::Wait => {
                    let mut rung = self.rung.lock();
                    while !*rung && !self.end.load(Ordering::Acquire) {
                        self.ring.wait(&mut rung);
                    }
                    *rung = false;
                }
            }
        }
    }
}

impl Line {
    fn next(&mut self, bytes: &mut Vec<u8>) -> Task {
        if let Some(job) = self.jobs.pop_front() {
            return Task::Job(job);
        }
        for index in 0..QUEUES {
            if self.stopping {
                break;
            }
            let Some(mut queue) = self.queues.get_mut(index).and_then(Option::take) else {
                continue;
            };
            let mut chain = Chain::default();
            let taken = match take(&mut queue, &mut chain, bytes) {
                Ok(taken) => taken,
                Err(error) => {
                    break_off(&mut queue, &error);
                    None
                }
            };
            if let Some(place) = self.queues.get_mut(index) {
                *place = Some(queue);
            }
            if let Some(mut request) = taken {
                self.last += 1;
                request.number = self.last;
                self.serving = Some(Serving {
                    number: self.last,
                    queue: index,
                    chain,
                    answer: None,
                });
                return Task::Request(request);
            }
        }
        Task::Wait
    }

    /// The folder has answered; nobody waits for it after a reset.
    fn answered(&mut self, number: u64, answer: Vec<u8>) {
        let serving = self.serving.as_mut().filter(|one| one.number == number);
        if let Some(serving) = serving {
            serving.answer = Some(answer);
            self.deliver();
        }
    }

    /// Gives the guest the answer that is there, if the device works.
    fn deliver(&mut self) {
        let Some(serving) = &mut self.serving else {
            return;
        };
        let Some(Some(queue)) = self.queues.get_mut(serving.queue) else {
            return;
        };
        let Some(answer) = serving.answer.take() else {
            return;
        };
        let written = write(queue.ram(), &serving.chain.writable, &answer) as u32;
        let head = serving.chain.head;
        let given = queue.push(head, written).and_then(|()| queue.notify());
        if let Err(error) = given {
            break_off(queue, &error);
        }
        self.serving = None;
    }

    /// Makes the request that is being served one that the queue still has.
    fn put_back(&mut self) {
        if let Some(serving) = &self.serving
            && let Some(Some(queue)) = self.queues.get_mut(serving.queue)
        {
            tracing::warn!("a shared folder does not answer: a request waits beyond the pause");
            queue.undo_pop();
        }
    }

    /// Takes up again what [`Self::put_back`] left.
    fn take_up(&mut self) {
        let Some(serving) = &mut self.serving else {
            return;
        };
        let Some(Some(queue)) = self.queues.get_mut(serving.queue) else {
            return;
        };
        let head = serving.chain.head;
        match queue.pop(&mut serving.chain) {
            Ok(true) if serving.chain.head == head => self.deliver(),
            // Not the queue that it came from: its requests come first.
            Ok(taken) => {
                if taken {
                    queue.undo_pop();
                }
                self.serving = None;
            }
            Err(error) => {
                break_off(queue, &error);
                self.serving = None;
            }
        }
    }
}

fn break_off(queue: &mut VirtQueue, error: &QueueError) {
    queue.break_off();
    queue.signal().needs_reset(&error.to_string());
}

/// Takes the next request of a queue, its bytes into `bytes`.
fn take(
    queue: &mut VirtQueue,
    chain: &mut Chain,
    bytes: &mut Vec<u8>,
) -> Result<Option<Request>, QueueError> {
    if queue.is_broken() {
        return Ok(None);
    }
    while !queue.pop(chain)? {
        if !queue.enable_notification()? {
            return Ok(None);
        }
    }
    let bad = |what| QueueError::Request {
        head: chain.head,
        what,
    };
    let length = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX);
    if !(IN_HEADER..=REQUEST_MAX).contains(&length) {
        return Err(bad("a request is shorter than its header or too long"));
    }
    bytes.resize(length, 0);
    read(queue.ram(), &chain.readable, bytes);
    let mut reader = Reader(bytes);
    let (_, op) = (reader.u32(), reader.u32());
    let (unique, node) = (reader.u64(), reader.u64());
    let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX);
    let room = match room.checked_sub(OUT_HEADER) {
        Some(room) => room,
        None if is_forget(op) => 0,
        None => return Err(bad("an answer has no room for its header")),
    };
    Ok(Some(Request {
        number: 0,
        op,
        unique,
        node,
        room,
    }))
}

fn is_forget(op: u32) -> bool {
    matches!(op, op::FORGET | op::BATCH_FORGET)
}

impl Request {
    /// Has the folder do it; the answer with its header, empty if there is none.
    fn answer(&self, folder: &mut dyn Folder, bytes: &[u8]) -> Vec<u8> {
        let body = Reader(bytes.get(IN_HEADER..).unwrap_or_default());
        if is_forget(self.op) {
            folder.forget(self.op, self.node, body);
            return Vec::new();
        }
        let (mut error, mut data) = match folder.request(self.op, self.node, body, self.room) {
            Ok(data) => (0, data),
            Err(error) => (-error.raw_os_error(), Vec::new()),
        };
        if data.len() > self.room {
            error = -rustix::io::Errno::OVERFLOW.raw_os_error();
            data.clear();
        }
        let mut out = Writer::default();
        out.u32((OUT_HEADER + data.len()) as u32)
            .u32(error as u32)
            .u64(self.unique);
        out.0.append(&mut data);
        out.0
    }
}
