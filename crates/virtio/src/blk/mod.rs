//! Block device (virtio 1.2, 5.2) on any [`BlockBackend`].
//!
//! One I/O thread serves all queues of a device: it takes requests off the
//! rings, hands them to the disk in batches, and gives a batch of completed
//! ones back with one interrupt. While requests come and go quickly it looks
//! at the rings for a few microseconds before it sleeps.

mod config;
mod request;
mod worker;

use std::sync::Arc;

use devices::{StateError, Version, versioned};
use disk::{BlockBackend, BlockError};
use serde::{Deserialize, Serialize};

use crate::device::{
    ActivateError, Activation, DeviceKind, DeviceState, Doorbell, VirtioDevice, read_config_bytes,
};
use crate::queue::VirtQueue;
use config::{WRITEBACK, feature};
use worker::{Control, Worker, WorkerHandle};

/// Requests of one queue.
const QUEUE_SIZE: u16 = 256;

/// An operation that the disk could not do and the guest was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFailure {
    /// First sector of the request.
    pub sector: u64,
    /// It was a write, discard or flush: data may be lost.
    pub write: bool,
    /// What happened.
    pub error: BlockError,
}

/// Hears of failed operations, on the device's thread.
pub type FailureHook = Arc<dyn Fn(IoFailure) + Send + Sync>;

/// A virtio block device.
pub struct Blk {
    disk: Arc<dyn BlockBackend>,
    queues: u16,
    on_failure: Option<FailureHook>,
    /// Write-back rather than write-through, if the driver may choose.
    writeback: bool,
    features: u64,
    worker: Option<WorkerHandle>,
}

impl Blk {
    /// A device with `queues` request queues (at least 1, at most 64) on `disk`.
    pub fn new(disk: Arc<dyn BlockBackend>, queues: u16) -> Self {
        Self {
            disk,
            queues: queues.clamp(1, 64),
            on_failure: None,
            writeback: true,
            features: 0,
            worker: None,
        }
    }

    /// Calls `hook` for every operation that the host fails.
    #[must_use]
    pub fn on_failure(mut self, hook: FailureHook) -> Self {
        self.on_failure = Some(hook);
        self
    }

    /// Write-through is what a driver gets that cannot flush; one that can
    /// chooses in the configuration if it knows how (virtio 1.2, 5.2.6.2).
    fn durable(&self) -> bool {
        if self.features & feature::CONFIG_WCE != 0 {
            !self.writeback
        } else {
            self.features & feature::FLUSH == 0
        }
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
        config::features(self.disk.info(), self.queues)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let image = config::image(self.disk.info(), self.queues, self.writeback);
        read_config_bytes(&image, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, &[value]) = (offset, data) {
            self.writeback = value & 1 != 0;
            if let Some(worker) = &self.worker {
                worker.control.set_durable(self.durable());
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let Activation {
            queues,
            ram,
            signal,
            features,
        } = activation;
        if !matches!(queues.first(), Some(Some(_))) {
            return Err(ActivateError::MissingQueue(0));
        }
        self.features = features;
        let disk = self.disk.open_queue(ram.clone())?;
        let control = Arc::new(Control::new(disk.waker(), self.durable()));
        let worker = Worker {
            queues: queues.into_iter().map(worker::Queue::new).collect(),
            disk,
            ram,
            signal,
            control: control.clone(),
            features: self.features(),
            serial: self.disk.info().serial.clone(),
            on_failure: self.on_failure.clone(),
            requests: request::Table::default(),
            completions: Vec::new(),
            broken: false,
        };
        self.worker = Some(WorkerHandle::start(worker, control.clone())?);
        Ok(control)
    }

    fn stop(&mut self) -> Vec<Option<VirtQueue>> {
        self.worker
            .take()
            .map(WorkerHandle::stop)
            .unwrap_or_default()
    }

    fn reset(&mut self) {
        self.writeback = true;
        self.features = 0;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk(BlkState {
            version: Version::current(),
            sectors: self.disk.info().sectors,
            writeback: self.writeback,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let invalid = |reason: String| Err(StateError::invalid::<BlkState>(reason));
        let DeviceState::Blk(state) = state else {
            return invalid("the snapshot has another device here".into());
        };
        let sectors = self.disk.info().sectors;
        if state.sectors != sectors {
            return invalid(format!(
                "the snapshot was made with a disk of {} sectors, this one has {sectors}",
                state.sectors
            ));
        }
        self.writeback = state.writeback;
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
    /// Capacity of the disk, by which a wrong one is noticed.
    pub sectors: u64,
    /// Write-back (1) or write-through, as the driver set it.
    pub writeback: bool,
}
versioned!(BlkState, "virtio block device", 1);
