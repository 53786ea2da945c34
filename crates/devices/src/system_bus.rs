//! The engine's view of all devices.

use std::sync::Arc;

use crate::bus::{MmioBus, PioBus};
use crate::ioapic::IoApic;
use crate::pic::Pic;

/// Both buses and the interrupt controllers' side of them.
pub struct SystemBus {
    /// Ports.
    pub pio: Arc<PioBus>,
    /// Memory.
    pub mmio: Arc<MmioBus>,
    pub(crate) pic: Arc<Pic>,
    pub(crate) ioapic: Arc<IoApic>,
}

impl engine::Bus for SystemBus {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.pio.read(port, data);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        self.pio.write(port, data);
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.mmio.read(gpa, data);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.mmio.write(gpa, data);
    }

    fn acknowledge_extint(&self) -> Option<u8> {
        self.pic.acknowledge()
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }
}
