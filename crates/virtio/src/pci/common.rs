//! The common configuration (virtio 1.2, 4.1.4.3) and the life of a device:
//! negotiation, activation, reset, pause.

use std::sync::Arc;

use devices::pci::{ConfigSpace, MsixTable};
use devices::{StateError, Version};
use memory::GuestRam;

use super::interrupt::{NO_VECTOR, PciSignal, status};
use super::state::VirtioPciState;
use crate::device::{ActivateError, Activation, Doorbell, Signal, VirtioDevice, feature};
use crate::queue::{QueueState, VirtQueue};

/// Bytes of the common configuration.
const LENGTH: usize = 0x40;

/// Features of the transport and the rings.
const RING_FEATURES: u64 =
    feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;

/// A change of status that starts or stops the device.
enum Change {
    Reset,
    Start,
}

/// The registers of the common configuration, and the device behind them.
pub(super) struct Common {
    device: Box<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    signal: Arc<PciSignal>,
    max_sizes: Vec<u16>,
    queues: Vec<QueueState>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    /// The device has the queues and works.
    active: bool,
    /// The machine stands still; a device that would be active is not.
    paused: bool,
    change: Option<Change>,
}

impl Common {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        signal: Arc<PciSignal>,
    ) -> Self {
        let max_sizes = device.queue_sizes();
        Self {
            queues: fresh_queues(&max_sizes),
            max_sizes,
            device,
            ram,
            signal,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            active: false,
            paused: false,
            change: None,
        }
    }

    pub(super) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    pub(super) fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    fn offered(&self) -> u64 {
        self.device.features() | RING_FEATURES
    }

    /// Reads have no effects, so any part of the structure can be read.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut image = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in image.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0x00, &self.device_feature_select.to_le_bytes());
        let offered = half(self.offered(), self.device_feature_select);
        put(0x04, &offered.to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        let accepted = half(self.driver_features, self.driver_feature_select);
        put(0x0c, &accepted.to_le_bytes());
        put(0x10, &self.signal.vector(None).to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.signal.status(), self.signal.generation()]);
        put(0x16, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            let vector = self.signal.vector(Some(self.queue_select));
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.available.to_le_bytes());
            put(0x30, &queue.used.to_le_bytes());
        }
        crate::device::read_config_bytes(&image, offset, data);
    }

    /// Writes a field, in its width (virtio 1.2, 4.1.3.1); `true` if the
    /// device must now start or stop: [`Self::change`].
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = value as u32,
            (0x08, 4) => self.driver_feature_select = value as u32,
            (0x0c, 4) => self.accept_features(value as u32),
            (0x10, 2) => self.signal.set_vector(None, value as u16),
            (0x14, 1) => self.write_status(value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            (0x1a, 2) => self
                .signal
                .set_vector(Some(self.queue_select), value as u16),
            (0x18 | 0x1c, 2) | (0x20..0x38, 4 | 8) => self.write_queue(offset, data.len(), value),
            _ => {}
        }
        self.change.is_some()
    }

    fn accept_features(&mut self, value: u32) {
        if self.signal.status() & status::FEATURES_OK != 0 {
            return;
        }
        let (shift, keep) = match self.driver_feature_select {
            0 => (0, !0 << 32),
            1 => (32, 0xffff_ffff),
            _ => return,
        };
        self.driver_features = self.driver_features & keep | u64::from(value) << shift;
    }

    fn write_queue(&mut self, offset: u64, length: usize, value: u64) {
        let index = usize::from(self.queue_select);
        let max = self.max_sizes.get(index).copied().unwrap_or(0);
        let live = self.signal.status() & status::DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        // An enabled queue stays as it is until the device is reset.
        if queue.enabled || live {
            return;
        }
        let address = match offset & !7 {
            0x20 => &mut queue.descriptors,
            0x28 => &mut queue.available,
            0x30 => &mut queue.used,
            _ if offset == 0x18 => {
                let size = value as u16;
                if size.is_power_of_two() && size <= max {
                    queue.size = size;
                }
                return;
            }
            _ => {
                queue.enabled = value == 1;
                return;
            }
        };
        *address = match (length, offset & 7) {
            (8, 0) => value,
            (4, 0) => *address & !0xffff_ffff | value,
            (4, 4) => *address & 0xffff_ffff | value << 32,
            _ => return,
        };
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.change = Some(Change::Reset);
            return;
        }
        let before = self.signal.status();
        // The driver only sets bits, and NEEDS_RESET is not its to set.
        let mut new = value & !before & !status::NEEDS_RESET;
        if new & status::FEATURES_OK != 0 {
            let unknown = self.driver_features & !self.offered() != 0;
            if unknown || self.driver_features & feature::VERSION_1 == 0 {
                new &= !status::FEATURES_OK;
            }
        }
        let now = before | new;
        if new & status::DRIVER_OK != 0 {
            if now & status::FEATURES_OK == 0 {
                new &= !status::DRIVER_OK;
            } else if now & (status::FAILED | status::NEEDS_RESET) == 0 {
                self.change = Some(Change::Start);
            }
        }
        self.signal.set_status(new);
    }

    /// Carries out what [`Self::write`] announced; the doorbell of the device
    /// if it works now.
    pub(super) fn change(&mut self) -> Option<Arc<dyn Doorbell>> {
        match self.change.take() {
            Some(Change::Reset) => {
                self.reset();
                None
            }
            Some(Change::Start) => self.start(),
            None => None,
        }
    }

    pub(super) fn reset(&mut self) {
        self.stop();
        self.device.reset();
        self.signal.reset();
        self.queues = fresh_queues(&self.max_sizes);
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
    }

    fn start(&mut self) -> Option<Arc<dyn Doorbell>> {
        if self.active || self.paused {
            return None;
        }
        match self.try_start() {
            Ok(doorbell) => {
                self.active = true;
                Some(doorbell)
            }
            Err(error) => {
                self.signal.needs_reset(&error.to_string());
                None
            }
        }
    }

    fn try_start(&mut self) -> Result<Arc<dyn Doorbell>, ActivateError> {
        let signal: Arc<dyn Signal> = self.signal.clone();
        let event_idx = self.driver_features & feature::RING_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for (index, (state, &max)) in (0..).zip(self.queues.iter().zip(&self.max_sizes)) {
            let queue = state.enabled.then(|| {
                let (ram, signal) = (self.ram.clone(), signal.clone());
                VirtQueue::new(index, state, max, event_idx, ram, signal)
            });
            let queue = queue.transpose().map_err(|error| ActivateError::Queue {
                queue: index,
                error,
            })?;
            queues.push(queue);
        }
        self.device.activate(Activation {
            queues,
            ram: self.ram.clone(),
            signal,
            features: self.driver_features,
        })
    }

    /// Stops the device; its queues' positions are kept.
    fn stop(&mut self) {
        if !self.active {
            return;
        }
        self.active = false;
        for queue in self.device.stop().into_iter().flatten() {
            if let Some(state) = self.queues.get_mut(usize::from(queue.index())) {
                (state.next_available, state.next_used) = queue.position();
            }
        }
    }

    pub(super) fn pause(&mut self) -> bool {
        let was_working = !self.paused;
        self.paused = true;
        self.stop();
        was_working
    }

    pub(super) fn resume(&mut self) -> Option<Arc<dyn Doorbell>> {
        self.paused = false;
        let now = self.signal.status();
        let broken = now & (status::FAILED | status::NEEDS_RESET) != 0;
        if now & status::DRIVER_OK != 0 && !broken {
            self.start()
        } else {
            None
        }
    }

    /// The state, while paused.
    pub(super) fn save(&self, config: &ConfigSpace, msix: &MsixTable) -> VirtioPciState {
        let mut queues = self.queues.clone();
        for (index, queue) in (0..).zip(&mut queues) {
            queue.vector = self.signal.vector(Some(index));
        }
        VirtioPciState {
            version: Version::current(),
            device_id: self.device.kind().id,
            config: config.save(),
            msix: msix.save(),
            status: self.signal.status(),
            isr: self.signal.isr(),
            generation: self.signal.generation(),
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            config_vector: self.signal.vector(None),
            queues,
            device: self.device.save(),
        }
    }

    /// Whether a state can be of this function.
    pub(super) fn check(&self, state: &VirtioPciState) -> Result<(), StateError> {
        let invalid = |reason: String| Err(StateError::invalid::<VirtioPciState>(reason));
        let kind = self.device.kind();
        if state.device_id != kind.id {
            return invalid(format!(
                "the snapshot has a virtio device of type {} where this machine has {} ({})",
                state.device_id, kind.id, kind.name
            ));
        }
        if state.queues.len() != self.queues.len() {
            return invalid(format!(
                "the snapshot has {} queues where this machine has {}",
                state.queues.len(),
                self.queues.len()
            ));
        }
        let sizes = state.queues.iter().zip(&self.max_sizes);
        if let Some((queue, max)) = sizes
            .into_iter()
            .find(|(queue, max)| !queue.size.is_power_of_two() || queue.size > **max)
        {
            return invalid(format!("a queue of {} of at most {max}", queue.size));
        }
        if state.driver_features & !self.offered() != 0 && state.status & status::FEATURES_OK != 0 {
            return invalid(format!(
                "the guest uses features {:#x} which this device does not have",
                state.driver_features & !self.offered()
            ));
        }
        Ok(())
    }

    pub(super) fn restore(&mut self, state: &VirtioPciState) -> Result<(), StateError> {
        self.device.restore(&state.device)?;
        self.signal.put_status(state.status);
        self.signal.put_isr(state.isr);
        self.signal.put_generation(state.generation);
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.signal.set_vector(None, state.config_vector);
        self.queues.clone_from(&state.queues);
        for (index, queue) in (0..).zip(&state.queues) {
            self.signal.set_vector(Some(index), queue.vector);
        }
        Ok(())
    }
}

fn fresh_queues(max_sizes: &[u16]) -> Vec<QueueState> {
    max_sizes
        .iter()
        .map(|&size| QueueState {
            size,
            vector: NO_VECTOR,
            ..QueueState::default()
        })
        .collect()
}
