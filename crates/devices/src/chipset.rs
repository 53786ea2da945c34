//! The fixed part of the machine: what every PC has, at its usual place.

use std::sync::{Arc, OnceLock};

use arch::layout;
use engine::InterruptSink;
use serde::{Deserialize, Serialize};

use crate::acpi_pm::{self, AcpiPm, AcpiPmPorts, AcpiPmState};
use crate::bus::{BusError, BytePort, ByteWide, MmioBus, PioBus, PioDevice};
use crate::debug_exit::{self, DebugExit};
use crate::ioapic::{self, IoApic, IoApicState};
use crate::irq::{IrqRouter, LineDriver};
use crate::pci::{
    self, ConfigSpaceState, HostBridge, PciError, PciFunction, PciRoot, PciRootState,
};
use crate::pic::{ElcrPorts, Pic, PicPorts, PicState};
use crate::pit::{Pit, PitState, Port61};
use crate::power::PowerSink;
use crate::pvpanic::PvPanic;
use crate::reset::{KeyboardController, KeyboardControllerState, Port92, ResetRegister};
use crate::rtc::{Rtc, RtcState};
use crate::serial::{self, Serial, SerialSink, SerialState};
use crate::state::{StateError, Version};
use crate::system_bus::SystemBus;
use crate::timer::{Clock, Timers};
use crate::versioned;

/// ISA IRQ of the interval timer.
const TIMER_IRQ: u8 = 0;
/// ISA IRQ of the real-time clock.
const RTC_IRQ: u8 = 8;

/// What the chipset needs of the machine around it.
pub struct ChipsetConfig {
    /// The engine's local APICs.
    pub interrupts: Arc<dyn InterruptSink>,
    /// Takes power-off, reset and debug-exit.
    pub power: Arc<dyn PowerSink>,
    /// Takes the output of the first serial port.
    pub serial: Arc<dyn SerialSink>,
    /// Guest time.
    pub clock: Arc<Clock>,
    /// Bytes of RAM below 4 GiB, for the CMOS memory size.
    pub low_ram: u64,
    /// Bytes of RAM beyond 4 GiB, for the CMOS memory size.
    pub high_ram: u64,
    /// Whether there is a debug-exit port.
    pub debug_exit: bool,
}

/// Why a chipset cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// Two devices at one place.
    #[error("cannot put the chipset on the bus: {0}")]
    Bus(#[from] BusError),
    /// The PCI root complex.
    #[error("cannot build the PCI root: {0}")]
    Pci(#[from] PciError),
    /// No thread for the timers.
    #[error("cannot start the timer thread: {0}; the host is out of threads or memory")]
    Timers(#[from] std::io::Error),
}

/// The fixed devices of a machine, wired.
pub struct Chipset {
    /// For the engine, and to add devices.
    pub bus: Arc<SystemBus>,
    /// For devices that need timers.
    pub timers: Arc<Timers>,
    /// For devices that need interrupt lines.
    pub irq: Arc<IrqRouter>,
    /// For devices on the PCI bus.
    pub pci: Arc<PciRoot>,
    /// The first serial port.
    pub serial: Arc<Serial>,
    /// The power button.
    pub acpi_pm: Arc<AcpiPm>,
    /// The real-time clock.
    pub rtc: Arc<Rtc>,
    pit: Arc<Pit>,
    keyboard: Arc<KeyboardController>,
    host_bridge: Arc<HostBridge>,
    /// As after power-on.
    initial: OnceLock<ChipsetState>,
}

impl Chipset {
    /// Builds and wires the chipset.
    ///
    /// # Errors
    /// [`ChipsetError`].
    pub fn new(config: ChipsetConfig) -> Result<Self, ChipsetError> {
        let pio = Arc::new(PioBus::new());
        let mmio = Arc::new(MmioBus::new());
        let pic = Pic::new(Arc::clone(&config.interrupts));
        let ioapic = IoApic::new(Arc::clone(&config.interrupts));
        let irq = IrqRouter::new(Arc::clone(&pic), Arc::clone(&ioapic));
        let timers = Timers::new(&config.clock)?;
        let pit = Pit::new(&timers, irq.isa(TIMER_IRQ));
        let (low, high) = (config.low_ram, config.high_ram);
        let rtc = Rtc::new(&timers, irq.isa(RTC_IRQ), low, high);
        let serial = Serial::new(irq.isa(layout::COM1_IRQ), config.serial);
        let sci = irq.isa(layout::ACPI_SCI_IRQ);
        let acpi_pm = AcpiPm::new(&timers, sci, Arc::clone(&config.power));
        let reset = ResetRegister::new(Arc::clone(&config.power));
        let keyboard = KeyboardController::new(Arc::clone(&reset));
        let lines = Arc::clone(&irq) as Arc<dyn LineDriver>;
        let pci = PciRoot::new(&mmio, &pio, lines)?;
        let host_bridge = Arc::new(HostBridge::new()?);
        pci.attach(0, Arc::clone(&host_bridge) as Arc<dyn PciFunction>)?;

        let bus = Arc::new(SystemBus {
            pio,
            mmio,
            pic,
            ioapic,
        });
        let chipset = Self {
            bus,
            timers,
            irq,
            pci,
            serial,
            acpi_pm,
            rtc,
            pit,
            keyboard,
            host_bridge,
            initial: OnceLock::new(),
        };
        chipset.wire(reset)?;
        let panic = Arc::new(PvPanic(Arc::clone(&config.power)));
        let pio = &chipset.bus.pio;
        pio.insert(layout::PVPANIC_PORT, 1, "panic", panic)?;
        if config.debug_exit {
            let device = Arc::new(DebugExit(config.power));
            let ports = debug_exit::PORTS;
            chipset
                .bus
                .pio
                .insert(layout::DEBUG_EXIT_PORT, ports, "debug exit", device)?;
        }
        chipset.initial.get_or_init(|| chipset.save());
        Ok(chipset)
    }

    /// Puts the devices on the buses.
    fn wire(&self, reset: Arc<ResetRegister>) -> Result<(), BusError> {
        let SystemBus {
            pio,
            mmio,
            pic,
            ioapic,
        } = &*self.bus;
        let ioapic = Arc::clone(ioapic);
        let size = ioapic::WINDOW_SIZE;
        mmio.insert(layout::IOAPIC_BASE, size, "I/O APIC", ioapic)?;
        let keyboard = || Arc::clone(&self.keyboard);
        let elcr = Arc::new(ElcrPorts(Arc::clone(pic)));
        let port_61 = Arc::new(Port61(Arc::clone(&self.pit)));
        let port_92 = Arc::new(Port92(Arc::clone(&reset)));
        let command = Arc::new(CommandPort(keyboard()));
        let bytes: [(u16, u16, &str, Arc<dyn BytePort>); 10] = [
            (0x20, 2, "first PIC", PicPorts::new(pic, false)),
            (0xa0, 2, "second PIC", PicPorts::new(pic, true)),
            (0x4d0, 2, "ELCR", elcr),
            (0x40, 4, "PIT", self.pit.clone()),
            (0x61, 1, "port 0x61", port_61),
            (0x60, 1, "keyboard data", keyboard()),
            (0x64, 1, "keyboard command", command),
            (0x70, 2, "RTC", self.rtc.clone()),
            (0x92, 1, "port 0x92", port_92),
            (
                layout::COM1_PORT,
                serial::PORTS,
                "COM1",
                self.serial.clone(),
            ),
        ];
        for (first, count, name, device) in bytes {
            pio.insert(first, count, name, Arc::new(ByteWide(device)))?;
        }
        let acpi_pm = Arc::new(AcpiPmPorts(Arc::clone(&self.acpi_pm)));
        pio.insert(layout::ACPI_PM_BASE, acpi_pm::PORTS, "ACPI PM", acpi_pm)?;
        let config = Arc::new(ConfigPorts {
            root: Arc::clone(&self.pci),
            reset,
        });
        pio.insert(pci::CONFIG_PORT, 8, "PCI configuration", config)
    }

    /// The state of all fixed devices and of guest time, for a snapshot. The
    /// clock is paused and no vCPU runs.
    #[must_use]
    pub fn save(&self) -> ChipsetState {
        ChipsetState {
            version: Version::current(),
            guest_time: self.timers.clock().now(),
            pit: self.pit.save(),
            rtc: self.rtc.save(),
            serial: self.serial.save(),
            acpi_pm: self.acpi_pm.save(),
            keyboard: self.keyboard.save(),
            pci: self.pci.save(),
            host_bridge: self.host_bridge.config().save(),
            ioapic: self.bus.ioapic.save(),
            pic: self.bus.pic.save(),
        }
    }

    /// Takes back a saved state, and guest time with it. No vCPU runs.
    ///
    /// # Errors
    /// [`StateError`] if a part does not fit its device; the chipset is then
    /// of no use.
    pub fn restore(&self, state: &ChipsetState) -> Result<(), StateError> {
        self.timers.clock().set(state.guest_time);
        // Masked while the devices drive their lines to what they were.
        self.bus.ioapic.reset();
        self.bus.pic.reset();
        self.pit.restore(&state.pit)?;
        self.rtc.restore(&state.rtc)?;
        self.serial.restore(&state.serial)?;
        self.acpi_pm.restore(&state.acpi_pm);
        self.keyboard.restore(&state.keyboard);
        self.pci.restore(&state.pci);
        self.host_bridge.config().restore(&state.host_bridge)?;
        self.bus.ioapic.restore(&state.ioapic)?;
        self.bus.pic.restore(&state.pic)
    }

    /// Puts all fixed devices and all PCI configuration spaces into the state
    /// after power-on. Guest time, the real-time clock and unread serial input
    /// are kept. No vCPU runs, and the owners of PCI functions have reset
    /// them.
    pub fn reset(&self) {
        self.bus.ioapic.reset();
        self.bus.pic.reset();
        self.rtc.reset();
        self.serial.reset();
        self.pci.reset();
        if let Some(initial) = self.initial.get() {
            // Cannot fail: it is this chipset's own state.
            let _ = self.pit.restore(&initial.pit);
            self.acpi_pm.restore(&initial.acpi_pm);
            self.keyboard.restore(&initial.keyboard);
            self.pci.restore(&initial.pci);
        }
    }
}

/// Port 0x64, which the keyboard controller knows as its port 4.
struct CommandPort(Arc<KeyboardController>);

impl BytePort for CommandPort {
    fn read_byte(&self, _offset: u16) -> u8 {
        self.0.read_byte(4)
    }

    fn write_byte(&self, _offset: u16, value: u8) {
        self.0.write_byte(4, value);
    }
}

/// Configuration mechanism #1, between whose ports is the reset register.
struct ConfigPorts {
    root: Arc<PciRoot>,
    reset: Arc<ResetRegister>,
}

impl ConfigPorts {
    /// Whether an access is to the reset register.
    fn is_reset(offset: u16, size: usize) -> bool {
        offset == layout::RESET_PORT - pci::CONFIG_PORT && size == 1
    }
}

impl PioDevice for ConfigPorts {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        if Self::is_reset(offset, data.len()) {
            data.fill(self.reset.read());
        } else {
            self.root.pio_read(offset, data);
        }
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        match data {
            [value] if Self::is_reset(offset, 1) => self.reset.write(*value),
            _ => self.root.pio_write(offset, data),
        }
    }
}

/// Saved chipset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipsetState {
    /// Format.
    pub version: Version<ChipsetState>,
    /// Guest nanoseconds.
    pub guest_time: u64,
    pit: PitState,
    rtc: RtcState,
    serial: SerialState,
    acpi_pm: AcpiPmState,
    keyboard: KeyboardControllerState,
    pci: PciRootState,
    host_bridge: ConfigSpaceState,
    ioapic: IoApicState,
    pic: PicState,
}
versioned!(ChipsetState, "chipset", 1);
