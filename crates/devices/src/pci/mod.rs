//! PCI Express: configuration space, BARs, capabilities, MSI-X, and the root
//! complex with both ways to reach configuration space.
//!
//! A device implements [`PciFunction`]: it owns a [`ConfigSpace`] built with
//! [`ConfigBuilder`], answers accesses to its BARs, and signals interrupts
//! through an [`MsixVector`] or [`ConfigSpace::set_interrupt`]. Everything
//! else (decoding, BAR sizing and moving, MSI-X masking) is done here.

mod config;
mod host_bridge;
mod msix;
mod root;
mod root_port;

pub use config::{
    BarKind, ConfigBuilder, ConfigSpace, ConfigSpaceState, Identity, MappedBar, capability,
    register,
};
pub use host_bridge::HostBridge;
pub use msix::{MsixLayout, MsixState, MsixTable, MsixVector};
pub use root::{CONFIG_PORT, PciRoot, PciRootState, behind, legacy_irq};
pub use root_port::{PowerOff, RootPort, RootPortState};

use crate::bus::BusError;

/// One function on the PCI bus; called from several vCPU threads at once.
pub trait PciFunction: Send + Sync {
    /// The function's configuration space.
    fn config(&self) -> &ConfigSpace;

    /// A read of 1, 2 or 4 aligned bytes of configuration space. Overridden
    /// by functions with registers that are not plain storage.
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// A write of 1, 2 or 4 aligned bytes of configuration space. An override
    /// calls [`ConfigSpace::write`] too. The root complex then moves BARs if
    /// this write moved them.
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config().write(offset, data);
    }

    /// A read of 1, 2, 4 or 8 aligned bytes of a BAR, inside its size.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// A write of 1, 2, 4 or 8 aligned bytes of a BAR, inside its size.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// These BARs are on the buses now, and no others.
    fn placed(&self, _bars: &[MappedBar]) {}
}

/// A function that cannot be built or attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// Two BARs in one register, or a 64-bit BAR in the last.
    #[error("BAR {bar} is taken or does not exist")]
    BarTaken {
        /// The BAR's number.
        bar: u8,
    },
    /// Not a power of two, or outside what the kind of BAR can address.
    #[error("BAR {bar} cannot have {size:#x} bytes")]
    BarSize {
        /// The BAR's number.
        bar: u8,
        /// The size asked for.
        size: u64,
    },
    /// The legacy configuration space is full.
    #[error("no room for a capability of {size} bytes")]
    CapabilitySpace {
        /// The capability's size.
        size: usize,
    },
    /// The MSI-X table and pending bits do not fit the BAR.
    #[error("MSI-X with {vectors} vectors does not fit its BAR")]
    Msix {
        /// Vectors asked for.
        vectors: u16,
    },
    /// A device is in that slot, or the slot does not exist.
    #[error("PCI slot {slot} is taken or does not exist; a bus has 32 slots")]
    Slot {
        /// The slot asked for.
        slot: u8,
    },
    /// No address range is left for a BAR.
    #[error("no address range of {size:#x} bytes is left for BAR {bar} in PCI slot {slot}")]
    AddressSpace {
        /// The slot.
        slot: u8,
        /// The BAR's number.
        bar: u8,
        /// The BAR's size.
        size: u64,
    },
    /// The root complex's own registers are taken.
    #[error(transparent)]
    Bus(#[from] BusError),
}
