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

pub mod acpi_pm;
pub mod bus;
pub mod chipset;
pub mod debug_exit;
pub mod ioapic;
pub mod irq;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod power;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod state;
pub mod system_bus;
pub mod timer;
pub mod watchdog;

pub use bus::{BytePort, ByteWide, MmioBus, MmioDevice, PioBus, PioDevice};
pub use chipset::{Chipset, ChipsetConfig, ChipsetError, ChipsetState};
pub use irq::{IrqLine, IrqRouter};
pub use power::{PowerEvent, PowerSink};
pub use serial::{Serial, SerialSink};
pub use state::{StateError, Version, Versioned};
pub use system_bus::SystemBus;
pub use timer::{Clock, Timer, Timers};
