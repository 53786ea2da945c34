//! The machine's devices: buses, interrupt routing, clock and timers, the
//! chipset of a small PC, and PCI Express.
//!
//! Every device is driven only through its trait ([`PioDevice`],
//! [`MmioDevice`], [`pci::PciFunction`]) from several vCPU threads at once,
//! keeps its own lock, and saves and restores a versioned state ([`state`]).
//!
//! Lock order: a device's own lock, then an [`irq::IrqLine`], then the
//! interrupt controllers. Nothing is sent to the engine while the lock of an
//! interrupt controller is held, and no timer callback runs under a lock of
//! the timer service.
#![forbid(unsafe_code)]

pub mod bus;
pub mod irq;
pub mod pci;
pub mod state;

pub use bus::{BytePort, ByteWide, MmioBus, MmioDevice, PioBus, PioDevice};
pub use irq::IrqLine;
pub use state::{StateError, Version, Versioned};
