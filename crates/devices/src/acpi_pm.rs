//! ACPI power management: PM1a event and control blocks and the PM timer
//! (ACPI 6.5, 4.8.3), always in ACPI mode (there is no SMI command port).

use std::sync::{Arc, Weak};

use arch::layout;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::BytePort;
use crate::irq::IrqLine;
use crate::power::{PowerEvent, PowerSink};
use crate::state::Version;
use crate::timer::{Clock, Timer, Timers, ticks, time_of_ticks};
use crate::versioned;

/// Ports from [`layout::ACPI_PM_BASE`].
pub const PORTS: u16 = 12;
/// Frequency of the PM timer in Hz.
pub const PM_TIMER_HERTZ: u64 = 3_579_545;

const CONTROL: u16 = layout::ACPI_PM1_CONTROL - layout::ACPI_PM_BASE;
const TIMER: u16 = layout::ACPI_PM_TIMER - layout::ACPI_PM_BASE;

/// Status: the top bit of the 32-bit timer changed.
const TIMER_CARRY: u16 = 1;
/// Status: the power button was pressed.
const POWER_BUTTON: u16 = 1 << 8;
/// Status bits that exist: timer, global lock, buttons, RTC, wake.
const STATUS_BITS: u16 = 0x8721;
const ENABLE_BITS: u16 = 0x0721;
const SCI_ENABLE: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u32 = 10;
/// Bus master reload and the sleep type can be written.
const CONTROL_BITS: u16 = 0x1c02;
/// Bit of the timer whose changes are the carry (the FADT has TMR_VAL_EXT).
const CARRY_SHIFT: u32 = 31;

struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    /// PM timer >> [`CARRY_SHIFT`] when the carry status was last cleared.
    carry: u64,
}

/// The ACPI PM registers, at [`layout::ACPI_PM_BASE`].
pub struct AcpiPm {
    registers: Mutex<Registers>,
    clock: Arc<Clock>,
    timer: Timer,
    sci: IrqLine,
    power: Arc<dyn PowerSink>,
}

impl AcpiPm {
    /// The registers in ACPI mode; `sci` is a level-triggered line.
    #[must_use]
    pub fn new(timers: &Timers, sci: IrqLine, power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            Self {
                registers: Mutex::new(Registers {
                    status: 0,
                    enable: 0,
                    control: SCI_ENABLE,
                    carry: 0,
                }),
                clock: Arc::clone(timers.clock()),
                timer: timers.timer(move || {
                    if let Some(this) = this.upgrade() {
                        this.update(&mut this.registers.lock());
                    }
                }),
                sci,
                power,
            }
        })
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        let mut registers = self.registers.lock();
        registers.status |= POWER_BUTTON;
        self.update(&mut registers);
    }

    fn pm_timer(&self) -> u64 {
        ticks(self.clock.now(), PM_TIMER_HERTZ)
    }

    /// Brings the carry status, the SCI and the timer for the next carry up
    /// to date.
    fn update(&self, registers: &mut Registers) {
        let carry = self.pm_timer() >> CARRY_SHIFT;
        if carry != registers.carry {
            registers.status |= TIMER_CARRY;
        }
        self.sci.set(registers.status & registers.enable != 0);
        if registers.enable & !registers.status & TIMER_CARRY != 0 {
            let next = (carry + 1) << CARRY_SHIFT;
            self.timer.arm(time_of_ticks(next, PM_TIMER_HERTZ));
        } else {
            self.timer.cancel();
        }
    }

    fn write_control(&self, value: u16) -> Option<PowerEvent> {
        let sleep_type = value >> SLEEP_TYPE_SHIFT & 7;
        let off = value & SLEEP_ENABLE != 0 && sleep_type == u16::from(layout::ACPI_S5_SLEEP_TYPE);
        off.then_some(PowerEvent::PowerOff)
    }

    /// The registers, for a snapshot.
    #[must_use]
    pub fn save(&self) -> AcpiPmState {
        let mut registers = self.registers.lock();
        self.update(&mut registers);
        AcpiPmState {
            version: Version::current(),
            status: registers.status,
            enable: registers.enable,
            control: registers.control,
        }
    }

    /// Takes back a saved state, after the clock was set.
    pub fn restore(&self, state: &AcpiPmState) {
        let mut registers = self.registers.lock();
        *registers = Registers {
            status: state.status & STATUS_BITS,
            enable: state.enable & ENABLE_BITS,
            control: state.control & CONTROL_BITS | SCI_ENABLE,
            carry: self.pm_timer() >> CARRY_SHIFT,
        };
        self.update(&mut registers);
    }
}

impl BytePort for AcpiPm {
    fn read_byte(&self, offset: u16) -> u8 {
        let mut registers = self.registers.lock();
        let word = match offset {
            0..2 => {
                self.update(&mut registers);
                registers.status
            }
            2..4 => registers.enable,
            CONTROL..TIMER if offset < CONTROL + 2 => registers.control,
            _ => 0,
        };
        word.to_le_bytes()[usize::from(offset & 1)]
    }

    fn write_byte(&self, offset: u16, value: u8) {
        let mut registers = self.registers.lock();
        let high = offset & 1 != 0;
        let (bits, written) = if high {
            (0xff00, u16::from(value) << 8)
        } else {
            (0x00ff, u16::from(value))
        };
        let mut event = None;
        match offset {
            0..2 => {
                self.update(&mut registers);
                registers.status &= !written;
                if written & TIMER_CARRY != 0 {
                    registers.carry = self.pm_timer() >> CARRY_SHIFT;
                }
            }
            2..4 => registers.enable = registers.enable & !bits | written & ENABLE_BITS,
            CONTROL..TIMER if offset < CONTROL + 2 => {
                registers.control = registers.control & !bits | written & CONTROL_BITS | SCI_ENABLE;
                if high {
                    event = self.write_control(written);
                }
            }
            _ => {}
        }
        self.update(&mut registers);
        drop(registers);
        if let Some(event) = event {
            self.power.power_event(event);
        }
    }
}

/// The whole block, so that the timer is read at one instant.
pub struct AcpiPmPorts(pub Arc<AcpiPm>);

impl crate::bus::PioDevice for AcpiPmPorts {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        let timer = self.0.pm_timer() as u32;
        for (port, byte) in (offset..).zip(data) {
            *byte = match port.checked_sub(TIMER) {
                Some(at) => timer.to_le_bytes()[usize::from(at & 3)],
                None => self.0.read_byte(port),
            };
        }
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            self.0.write_byte(port, *byte);
        }
    }
}

/// Saved ACPI PM registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    /// Format.
    pub version: Version<AcpiPmState>,
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control.
    pub control: u16,
}
versioned!(AcpiPmState, "ACPI power management", 1);
