//! Memory balloon (virtio 1.2, 5.5): gives memory that the guest does not need
//! back to the host, by what the guest puts into the balloon and by what it
//! reports as free.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devices::{StateError, Version, versioned};
use memory::{GuestRam, PAGE_SIZE};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, Signal, VirtioDevice,
    read_config_bytes, serve_later,
};
use crate::queue::{Chain, QueueError, VirtQueue, read, skip};

const INFLATE: u16 = 0;
// Queue 1 deflates.
const STATISTICS: u16 = 2;
const REPORTING: u16 = 3;
const QUEUES: u16 = 4;
const QUEUE_SIZE: u16 = 128;
/// Chains served on the vCPU's own time.
const BUDGET: u32 = 4 * QUEUE_SIZE as u32;
/// Most page numbers looked at in one chain; Linux sends 256.
const NUMBERS_MAX: usize = 16 * 1024;

const FEATURE_STATISTICS: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_REPORTING: u64 = 1 << 5;

/// Memory that a guest keeps whatever the target is: with less it could not
/// even give its memory back.
pub const FLOOR: u64 = 64 << 20;

/// What the guest says of its memory (virtio 1.2, 5.5.6.3), in bytes; `None`
/// where it said nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Not used for anything.
    pub free: Option<u64>,
    /// In all.
    pub total: Option<u64>,
    /// Free, or can be freed without swapping.
    pub available: Option<u64>,
    /// Caches of files.
    pub caches: Option<u64>,
    /// Swapped in.
    pub swapped_in: Option<u64>,
    /// Swapped out.
    pub swapped_out: Option<u64>,
    /// Page faults that read a disk (a count).
    pub major_faults: Option<u64>,
    /// Other page faults (a count).
    pub minor_faults: Option<u64>,
}

/// How a balloon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonReport {
    /// The guest's driver works.
    pub driver: bool,
    /// Bytes that the host asked for.
    pub target: u64,
    /// Bytes that the guest has given.
    pub actual: u64,
    /// Bytes reported free and discarded, since the machine started.
    pub reported: u64,
    /// As the guest last said.
    pub statistics: Statistics,
}

struct Shared {
    ram: Arc<GuestRam>,
    state: Mutex<State>,
    /// New statistics.
    told: Condvar,
    this: Weak<Shared>,
    /// See [`serve_later`].
    later: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    queues: [Option<VirtQueue>; QUEUES as usize],
    features: u64,
    signal: Option<Arc<dyn Signal>>,
    chain: Chain,
    numbers: Vec<u8>,
    /// Pages asked for, and given.
    target: u32,
    actual: u32,
    reported: u64,
    statistics: Statistics,
    /// How often statistics came.
    told: u64,
    /// The statistics buffer, which the device keeps until it wants new ones.
    asked: Option<u16>,
}

/// A virtio balloon.
pub struct Balloon {
    shared: Arc<Shared>,
}

/// The host's side of a [`Balloon`]. Clones are the same balloon.
#[derive(Clone)]
pub struct BalloonControl(Arc<Shared>);

impl Balloon {
    /// An empty balloon in this memory.
    pub fn new(ram: Arc<GuestRam>) -> (Self, BalloonControl) {
        let shared = Arc::new_cyclic(|this| Shared {
            ram,
            state: Mutex::default(),
            told: Condvar::new(),
            this: this.clone(),
            later: Arc::default(),
        });
        (
            Self {
                shared: shared.clone(),
            },
            BalloonControl(shared),
        )
    }
}

impl BalloonControl {
    /// Asks the guest to do with `memory` bytes, at least [`FLOOR`]; the bytes
    /// asked for in the balloon. The guest gives as it can.
    pub fn set_memory(&self, memory: u64) -> u64 {
        let size = self.0.ram.size();
        let bytes = size.saturating_sub(memory.max(FLOOR));
        let mut state = self.0.state.lock();
        state.target = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        let target = u64::from(state.target) * PAGE_SIZE;
        let signal = state.signal.clone();
        drop(state);
        if let Some(signal) = signal {
            signal.config_changed();
        }
        target
    }

    /// How it is, with the statistics as the guest last gave them.
    pub fn report(&self) -> BalloonReport {
        self.0.state.lock().report()
    }

    /// As [`Self::report`], but asks the guest for new statistics and waits
    /// for them at most `patience`.
    pub fn fresh_report(&self, patience: Duration) -> BalloonReport {
        let deadline = Instant::now() + patience;
        let mut state = self.0.state.lock();
        let before = state.told;
        if state.ask().is_ok() {
            while state.told == before && state.signal.is_some() {
                if self.0.told.wait_until(&mut state, deadline).timed_out() {
                    break;
                }
            }
        }
        state.report()
    }
}

impl State {
    fn report(&self) -> BalloonReport {
        BalloonReport {
            driver: self.signal.is_some(),
            target: u64::from(self.target) * PAGE_SIZE,
            actual: u64::from(self.actual) * PAGE_SIZE,
            reported: self.reported,
            statistics: self.statistics,
        }
    }

    /// Gives the guest its statistics buffer back, which asks for new ones.
    fn ask(&mut self) -> Result<(), QueueError> {
        let head = self.asked.take();
        if let (Some(head), Some(queue)) = (head, self.queue(STATISTICS)) {
            queue.push(head, 0)?;
            queue.notify()?;
        }
        Ok(())
    }

    fn queue(&mut self, index: u16) -> Option<&mut VirtQueue> {
        let queue = self.queues.get_mut(usize::from(index))?.as_mut();
        queue.filter(|queue| !queue.is_broken())
    }

    fn break_off(&mut self, error: &QueueError) {
        for queue in self.queues.iter_mut().flatten() {
            queue.break_off();
        }
        if let Some(signal) = &self.signal {
            signal.needs_reset(&error.to_string());
        }
    }
}

impl Doorbell for Shared {
    fn ring(&self, _queue: u16) {
        if !self.serve() {
            serve_later(&self.this, &self.later, Shared::serve);
        }
    }
}

impl Shared {
    /// Serves all queues; `false` if there may be more.
    fn serve(&self) -> bool {
        let mut state = self.state.lock();
        let mut done = true;
        for index in 0..QUEUES {
            match self.serve_queue(&mut state, index) {
                Ok(finished) => done &= finished,
                Err(error) => {
                    state.break_off(&error);
                    return true;
                }
            }
        }
        done
    }

    fn serve_queue(&self, state: &mut State, index: u16) -> Result<bool, QueueError> {
        let mut chain = std::mem::take(&mut state.chain);
        let result = self.serve_with(state, index, &mut chain);
        state.chain = chain;
        result
    }

    fn serve_with(
        &self,
        state: &mut State,
        index: u16,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        let mut left = BUDGET;
        loop {
            while left > 0 {
                let Some(queue) = state.queue(index) else {
                    return Ok(true);
                };
                if !queue.pop(chain)? {
                    break;
                }
                left -= 1;
                let kept = self.take(state, index, chain)?;
                if let Some(queue) = state.queue(index).filter(|_| !kept) {
                    queue.push(chain.head, 0)?;
                }
            }
            let Some(queue) = state.queue(index) else {
                return Ok(true);
            };
            queue.notify()?;
            if left == 0 {
                return Ok(false);
            }
            if !queue.enable_notification()? {
                return Ok(true);
            }
        }
    }

    /// Does what a chain asks for; whether the device keeps it.
    fn take(&self, state: &mut State, index: u16, chain: &mut Chain) -> Result<bool, QueueError> {
        match index {
            INFLATE => self.inflate(state, chain),
            REPORTING => {
                for range in &chain.writable {
                    state.reported += self.discard(range.gpa, u64::from(range.len));
                }
            }
            STATISTICS => {
                take_statistics(&self.ram, chain, &mut state.statistics);
                state.told += 1;
                self.told.notify_all();
                if state.asked.replace(chain.head).is_some() {
                    return Err(QueueError::Request {
                        head: chain.head,
                        what: "statistics come in one buffer only",
                    });
                }
                return Ok(true);
            }
            // What comes out of the balloon is zeroes until it is written.
            _ => {}
        }
        Ok(false)
    }

    fn inflate(&self, state: &mut State, chain: &mut Chain) {
        let mut numbers = std::mem::take(&mut state.numbers);
        numbers.resize(NUMBERS_MAX * 4, 0);
        let length = read(&self.ram, &chain.readable, &mut numbers);
        let pages = numbers.get(..length).unwrap_or_default().chunks_exact(4);
        let mut pages: Vec<u32> = pages
            .filter_map(|bytes| <[u8; 4]>::try_from(bytes).ok())
            .map(u32::from_le_bytes)
            .collect();
        state.numbers = numbers;
        // Neighbours go to the host in one call.
        pages.sort_unstable();
        for run in pages.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            if let Some(&first) = run.first() {
                let length = run.len() as u64 * PAGE_SIZE;
                self.discard(u64::from(first) * PAGE_SIZE, length);
            }
        }
    }

    /// Gives the whole pages of a range to the host; how many bytes.
    fn discard(&self, gpa: u64, length: u64) -> u64 {
        match self.ram.discard(gpa, length) {
            Ok(bytes) => bytes,
            // A place that is no RAM, or a host that keeps the memory: the
            // guest has lost nothing that it did not give away.
            Err(error) => {
                tracing::debug!(%error, "balloon: pages not returned to the host");
                0
            }
        }
    }
}

/// Statistics are entries of a tag (2 bytes) and a value (8 bytes).
fn take_statistics(ram: &GuestRam, chain: &mut Chain, statistics: &mut Statistics) {
    let mut bytes = [0; 10 * 64];
    let length = read(ram, &chain.readable, &mut bytes);
    skip(&mut chain.readable, length as u64);
    for entry in bytes.get(..length).unwrap_or_default().chunks_exact(10) {
        let [t0, t1, value @ ..] = entry else {
            continue;
        };
        let value = <[u8; 8]>::try_from(value).map_or(0, u64::from_le_bytes);
        let field = match u16::from_le_bytes([*t0, *t1]) {
            0 => &mut statistics.swapped_in,
            1 => &mut statistics.swapped_out,
            2 => &mut statistics.major_faults,
            3 => &mut statistics.minor_faults,
            4 => &mut statistics.free,
            5 => &mut statistics.total,
            6 => &mut statistics.available,
            7 => &mut statistics.caches,
            _ => continue,
        };
        *field = Some(value);
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 5,
            pci_class: 0xff_0000,
            name: "virtio-balloon",
        }
    }

    fn features(&self) -> u64 {
        FEATURE_STATISTICS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(QUEUES)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.shared.state.lock();
        let mut image = state.target.to_le_bytes().to_vec();
        image.extend(state.actual.to_le_bytes());
        read_config_bytes(&image, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // `actual`, always written whole (virtio 1.2, 5.5.6.1).
        if let (4, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            let pages = self.shared.ram.size() / PAGE_SIZE;
            let most = u32::try_from(pages).unwrap_or(u32::MAX);
            self.shared.state.lock().actual = u32::from_le_bytes(bytes).min(most);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let mut given = activation.queues.into_iter();
        let mut state = self.shared.state.lock();
        // Queues of features that were not accepted are left out, and those
        // after them take their numbers (virtio 1.2, 5.5.2).
        let statistics = activation.features & FEATURE_STATISTICS != 0;
        let reporting = activation.features & FEATURE_REPORTING != 0;
        for index in 0..QUEUES {
            let used = match index {
                STATISTICS => statistics,
                REPORTING => reporting,
                _ => true,
            };
            let queue = if used { given.next().flatten() } else { None };
            if queue.is_none() && index < STATISTICS {
                return Err(ActivateError::MissingQueue(index));
            }
            if let Some(place) = state.queues.get_mut(usize::from(index)) {
                *place = queue;
            }
        }
        state.features = activation.features;
        state.signal = Some(activation.signal);
        drop(state);
        self.shared.ring(0);
        Ok(self.shared.clone())
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        let mut state = self.shared.state.lock();
        state.signal = None;
        // The buffer that is kept goes back to the available ones, so that it
        // is found there again.
        if state.asked.take().is_some()
            && let Some(queue) = state.queue(STATISTICS)
        {
            queue.undo_pop();
        }
        self.shared.told.notify_all();
        let mut queues: Vec<_> = state.queues.iter_mut().map(Option::take).collect();
        if state.features & FEATURE_STATISTICS == 0 {
            queues.remove(usize::from(STATISTICS));
        }
        queues
    }

    fn reset(&mut self) {
        let mut state = self.shared.state.lock();
        state.actual = 0;
        state.statistics = Statistics::default();
    }

    fn save(&self) -> DeviceState {
        let state = self.shared.state.lock();
        DeviceState::Balloon(BalloonState {
            version: Version::current(),
            target: state.target,
            actual: state.actual,
            statistics: state.statistics,
        })
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Balloon(saved) = saved else {
            return Err(StateError::invalid::<BalloonState>(
                "the snapshot has another device here",
            ));
        };
        let mut state = self.shared.state.lock();
        state.target = saved.target;
        state.actual = saved.actual;
        state.statistics = saved.statistics;
        Ok(())
    }
}

/// Saved state of a [`Balloon`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Format.
    pub version: Version<BalloonState>,
    /// Pages asked for.
    pub target: u32,
    /// Pages given.
    pub actual: u32,
    /// As the guest last gave them.
    pub statistics: Statistics,
}
versioned!(BalloonState, "virtio balloon", 1);
