//! The host bridge, 00:00.0: says that there is a bus.

use super::config::{ConfigBuilder, ConfigSpace, Identity};
use super::{PciError, PciFunction};

/// The function at 00:00.0. It has no registers of its own.
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// A generic PCI Express host bridge.
    ///
    /// # Errors
    /// None in practice; see [`ConfigBuilder::express`].
    pub fn new() -> Result<Self, PciError> {
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            class: 0x06_0000,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let config = ConfigBuilder::new(identity).express()?.build();
        Ok(Self { config })
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
}
