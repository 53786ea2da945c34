//! Block device (virtio 1.2, 5.2) on any [`BlockBackend`].
//!
//! One I/O thread serves each queue of a device: it takes requests off the
//! ring, hands them to its own queue of the disk in batches, and gives a batch
//! of completed ones back with one interrupt. Where the guest's next request
//! comes within microseconds, it looks at the ring before it sleeps.

mod config;
mod held;
mod limit;
mod request;
mod shared;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use devices::{StateError, Version, versioned};
use disk::BlockBackend;
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, read_config_bytes,
};
use crate::queue::VirtQueue;
use config::{WRITEBACK, feature};
use limit::Limiter;
use shared::Shared;
use worker::{Doorbells, Parts, Remains, Worker, WorkerHandle};

pub use held::{HeldRequest, OnError};
pub use limit::{Limit, Limits};
pub use request::RequestKind;
pub use shared::{BlkControl, BlkStats, FailureHook, IoFailure};

/// Requests of one queue.
const QUEUE_SIZE: u16 = 256;
/// Most queues of a device.
const MAX_QUEUES: u16 = 64;

/// How a block device treats its disk.
#[derive(Clone, Default)]
pub struct BlkOptions {
    /// How much may go through.
    pub limits: Limits,
    /// What is done when the host cannot do a request.
    pub on_error: OnError,
    /// Called for the first failed operation after each start.
    pub on_failure: Option<FailureHook>,
}

/// A virtio block device.
pub struct Blk {
    shared: Arc<Shared>,
    queues: u16,
    limits: Limits,
    on_error: OnError,
    /// Write-back rather than write-through, if the driver may choose.
    writeback: bool,
    features: u64,
    /// By queue.
    workers: Vec<Option<WorkerHandle>>,
    /// What the host failed, to be tried again at the next start.
    held: Vec<HeldRequest>,
}

impl Blk {
    /// A device with `queues` request queues (at least 1, at most 64) on
    /// `disk`.
    pub fn new(disk: Arc<dyn BlockBackend>, queues: u16, options: BlkOptions) -> Self {
        Self {
            shared: Arc::new(Shared::new(disk, options.on_failure)),
            queues: queues.clamp(1, MAX_QUEUES),
            limits: options.limits,
            on_error: options.on_error,
            writeback: true,
            features: 0,
            workers: Vec::new(),
            held: Vec::new(),
        }
    }

    /// The owner's view of it.
    pub fn control(&self) -> BlkControl {
        BlkControl(self.shared.clone())
    }

    /// Write-through is what a driver gets that cannot flush; one that can
    /// chooses in the configuration if it knows how (virtio 1.2, 5.2.6.2).
    fn set_durable(&self) {
        let durable = if self.features & feature::CONFIG_WCE != 0 {
            !self.writeback
        } else {
            self.features & feature::FLUSH == 0
        };
        self.shared.durable.store(durable, Ordering::SeqCst);
    }

    fn start(&mut self, activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let limiter = Limiter::new(self.limits).map_err(ActivateError::Thread)?;
        let mut workers = Vec::new();
        for queue in activation.queues.into_iter().flatten() {
            let disk = self.shared.disk.open_queue(activation.ram.clone())?;
            let own = |held: &mut HeldRequest| held.queue == queue.index();
            let held = self.held.extract_if(.., own).collect();
            workers.push(Worker::new(Parts {
                queue,
                disk,
                ram: activation.ram.clone(),
                signal: activation.signal.clone(),
                shared: self.shared.clone(),
                limiter: limiter.clone(),
                features: self.features(),
                on_error: self.on_error,
                held,
            }));
        }
        Ok(workers)
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 2,
            pci_class: 0x01_8000,
            name: "virtio-blk",
        }
    }

    fn features(&self) -> u64 {
        config::features(self.shared.disk.info(), self.queues)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let disk = &self.shared.disk;
        let image = config::image(disk.info(), disk.sectors(), self.queues, self.writeback);
        read_config_bytes(&image, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, &[value]) = (offset, data) {
            self.writeback = value & 1 != 0;
            self.set_durable();
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        if !matches!(activation.queues.first(), Some(Some(_))) {
            return Err(ActivateError::MissingQueue(0));
        }
        self.features = activation.features;
        self.set_durable();
        let (signal, count) = (activation.signal.clone(), activation.queues.len());
        let workers = self.start(activation)?;
        self.shared.connect(Some(signal));
        let mut doorbells = vec![None; count];
        self.workers = (0..count).map(|_| None).collect();
        for worker in workers {
            let index = worker.index();
            let started = WorkerHandle::start(worker).inspect_err(|_| {
                // Those that were started end; the driver must reset.
                self.stop();
            })?;
            if let (Some(bell), Some(place)) =
                (doorbells.get_mut(index), self.workers.get_mut(index))
            {
                *bell = Some(started.control.clone());
                *place = Some(started);
            }
        }
        Ok(Arc::new(Doorbells(doorbells)))
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        let workers = std::mem::take(&mut self.workers);
        workers
            .iter()
            .flatten()
            .for_each(WorkerHandle::tell_to_stop);
        let mut queues = Vec::new();
        for worker in workers {
            let remains = worker.and_then(WorkerHandle::join);
            queues.push(remains.map(|Remains { queue, held }| {
                self.held.extend(held);
                queue
            }));
        }
        self.shared.connect(None);
        queues
    }

    fn reset(&mut self) {
        self.writeback = true;
        self.features = 0;
        self.held.clear();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk(BlkState {
            version: Version::current(),
            sectors: self.shared.told(),
            writeback: self.writeback,
            held: self.held.clone(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let invalid = |reason: String| Err(StateError::invalid::<BlkState>(reason));
        let DeviceState::Blk(state) = state else {
            return invalid("the snapshot has another device here".into());
        };
        let sectors = self.shared.disk.sectors();
        if state.sectors > sectors {
            return invalid(format!(
                "the snapshot was made with a disk of {} sectors, this one has {sectors}",
                state.sectors
            ));
        }
        let most = usize::from(QUEUE_SIZE) * usize::from(self.queues);
        if state.held.len() > most || state.held.iter().any(|held| held.queue >= self.queues) {
            return invalid("more requests wait than its queues can have".into());
        }
        self.shared.set_told(state.sectors);
        self.writeback = state.writeback;
        self.held.clone_from(&state.held);
        Ok(())
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Saved state of a [`Blk`]; nothing is in flight when it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Format.
    pub version: Version<BlkState>,
    /// Capacity of which the guest knows, by which a wrong disk is noticed.
    pub sectors: u64,
    /// Write-back (1) or write-through, as the driver set it.
    pub writeback: bool,
    /// What the host failed and is tried again.
    #[serde(default)]
    pub held: Vec<HeldRequest>,
}
versioned!(BlkState, "virtio block device", 1);
