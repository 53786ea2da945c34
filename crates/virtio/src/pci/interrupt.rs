//! From the device to the driver: status, generation, MSI-X or INTx.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use devices::pci::{ConfigSpace, MsixTable};
use parking_lot::Mutex;

use crate::device::Signal;

/// No MSI-X vector (virtio 1.2, 4.1.4.3).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Device status bits (virtio 1.2, 2.1).
pub(super) mod status {
    pub const FEATURES_OK: u8 = 8;
    pub const DRIVER_OK: u8 = 4;
    pub const NEEDS_RESET: u8 = 0x40;
    pub const FAILED: u8 = 0x80;
}

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The interrupt side of a function, shared with the device's threads.
pub(super) struct PciSignal {
    name: &'static str,
    config: Arc<ConfigSpace>,
    msix: Arc<MsixTable>,
    /// MSI-X vector of each queue.
    queue_vectors: Vec<AtomicU16>,
    config_vector: AtomicU16,
    /// Together with the state of the INTx pin.
    isr: Mutex<u8>,
    status: AtomicU8,
    generation: AtomicU8,
}

impl PciSignal {
    pub(super) fn new(
        name: &'static str,
        config: Arc<ConfigSpace>,
        msix: Arc<MsixTable>,
        queues: usize,
    ) -> Self {
        Self {
            name,
            config,
            msix,
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: Mutex::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        }
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn set_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    pub(super) fn put_status(&self, status: u8) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn put_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Reading ISR clears it and releases INTx (virtio 1.2, 4.1.4.5).
    pub(super) fn take_isr(&self) -> u8 {
        let mut isr = self.isr.lock();
        self.config.set_interrupt(false);
        std::mem::take(&mut *isr)
    }

    pub(super) fn isr(&self) -> u8 {
        *self.isr.lock()
    }

    /// Sets ISR to a saved value; the pin was restored with the
    /// configuration space.
    pub(super) fn put_isr(&self, value: u8) {
        *self.isr.lock() = value;
    }

    /// The register of a vector as the driver reads it back.
    pub(super) fn vector(&self, queue: Option<u16>) -> u16 {
        self.register(queue)
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// Maps a vector; one that does not exist becomes [`NO_VECTOR`], by which
    /// the driver sees that it failed.
    pub(super) fn set_vector(&self, queue: Option<u16>, vector: u16) {
        let exists = vector < self.msix.vectors();
        if let Some(register) = self.register(queue) {
            let vector = if exists { vector } else { NO_VECTOR };
            register.store(vector, Ordering::SeqCst);
        }
    }

    fn register(&self, queue: Option<u16>) -> Option<&AtomicU16> {
        match queue {
            Some(queue) => self.queue_vectors.get(usize::from(queue)),
            None => Some(&self.config_vector),
        }
    }

    /// As after a device reset.
    pub(super) fn reset(&self) {
        self.take_isr();
        self.put_status(0);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    fn interrupt(&self, queue: Option<u16>, cause: u8) {
        if self.msix.is_enabled() {
            let vector = self.vector(queue);
            if vector != NO_VECTOR {
                self.msix.vector(vector).signal();
            }
            if queue.is_some() {
                return;
            }
        }
        // The configuration cause shows in ISR with MSI-X, too.
        let mut isr = self.isr.lock();
        *isr |= cause;
        self.config.set_interrupt(true);
    }
}

impl Signal for PciSignal {
    fn used(&self, queue: u16) {
        self.interrupt(Some(queue), ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.status() & status::DRIVER_OK != 0 {
            self.interrupt(None, ISR_CONFIG);
        }
    }

    fn needs_reset(&self, reason: &str) {
        let before = self.status.fetch_or(status::NEEDS_RESET, Ordering::SeqCst);
        if before & status::NEEDS_RESET != 0 {
            return;
        }
        tracing::warn!(
            device = self.name,
            reason,
            "the device stops until it is reset"
        );
        if before & status::DRIVER_OK != 0 {
            self.interrupt(None, ISR_CONFIG);
        }
    }
}
