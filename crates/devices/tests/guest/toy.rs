//! A PCI function to put into the fake guest.

use std::sync::Arc;

use devices::pci::{
    BarKind, ConfigBuilder, ConfigSpace, Identity, MsixLayout, MsixTable, PciFunction,
};
use parking_lot::Mutex;

use super::Guest;

pub const VECTORS: u16 = 3;

/// A function like a virtio device: a 64-bit BAR with MSI-X in its second
/// page, a 32-bit BAR and an I/O BAR.
pub struct Toy {
    config: ConfigSpace,
    pub msix: Arc<MsixTable>,
    pub written: Mutex<Vec<(u8, u64, u64)>>,
}

impl Toy {
    pub fn new(guest: &Guest) -> Arc<Self> {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        };
        let layout = MsixLayout {
            bar: 0,
            table_offset: 0x1000,
            pending_offset: 0x1800,
        };
        let msix = MsixTable::new(VECTORS, layout, guest.outside.clone());
        let mut config = ConfigBuilder::new(identity)
            .bar(0, BarKind::Memory64 { prefetchable: true }, 0x4000)
            .unwrap()
            .bar(2, BarKind::Memory32, 0x1000)
            .unwrap()
            .bar(3, BarKind::Io, 0x20)
            .unwrap()
            .msix(&msix)
            .unwrap()
            .express()
            .unwrap()
            .interrupt_pin();
        let at = config.add_capability(9, &[14, 1, 2, 3], &[]).unwrap();
        assert!(at >= 0x40);
        Arc::new(Self {
            config: config.build(),
            msix,
            written: Mutex::default(),
        })
    }
}

impl PciFunction for Toy {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if !self.msix.bar_read(bar, offset, data) {
            data.fill(bar + 0x40);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if !self.msix.bar_write(bar, offset, data) {
            let value = data
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.written.lock().push((bar, offset, value));
        }
    }
}
