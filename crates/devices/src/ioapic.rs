//! The I/O APIC (Intel 82093AA, with the EOI register of version 0x20).

use std::sync::Arc;

use arch::layout;
use engine::{InterruptSink, MsiMessage};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::state::{StateError, Version};
use crate::versioned;

const PINS: usize = layout::IOAPIC_PINS as usize;
/// Bytes of the register window.
pub const WINDOW_SIZE: u64 = 0x1000;

const REG_SELECT: u64 = 0x00;
const REG_DATA: u64 = 0x10;
const REG_EOI: u64 = 0x40;
const INDEX_ID: u8 = 0;
const INDEX_VERSION: u8 = 1;
const INDEX_ARBITRATION: u8 = 2;
const INDEX_REDIRECTION: u8 = 0x10;
/// Version 0x20, last pin in bits 23:16.
const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;

const RTE_DELIVERY_STATUS: u64 = 1 << 12;
const RTE_REMOTE_IRR: u64 = 1 << 14;
const RTE_LEVEL: u64 = 1 << 15;
const RTE_MASKED: u64 = 1 << 16;
const RTE_READ_ONLY: u64 = RTE_DELIVERY_STATUS | RTE_REMOTE_IRR;
/// Delivery mode "lowest priority"; higher ones have no EOI.
const DELIVERY_LOWEST: u64 = 1;

struct Registers {
    select: u8,
    id: u8,
    /// Input levels: active or not, whatever the polarity.
    lines: u32,
    redirection: [u64; PINS],
}

/// The I/O APIC.
pub struct IoApic {
    registers: Mutex<Registers>,
    sink: Arc<dyn InterruptSink>,
}

impl IoApic {
    /// An I/O APIC with all pins masked, sending to `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn InterruptSink>) -> Arc<Self> {
        Arc::new(Self {
            registers: Mutex::new(Registers::new()),
            sink,
        })
    }

    /// Sets whether pin `pin` is active (polarity is the wiring's business).
    pub fn set_line(&self, pin: u8, active: bool) {
        let index = usize::from(pin);
        if index >= PINS {
            return;
        }
        let mut registers = self.registers.lock();
        let rises = registers.set_line(index, active);
        let message = registers.service(index, rises);
        drop(registers);
        self.send(message);
    }

    /// A local APIC's EOI of `vector`: level-triggered pins that sent it may
    /// send again.
    pub fn end_of_interrupt(&self, vector: u8) {
        for index in 0..PINS {
            let mut registers = self.registers.lock();
            let entry = &mut registers.redirection[index];
            let waits = *entry & RTE_REMOTE_IRR != 0 && *entry as u8 == vector;
            if !waits {
                continue;
            }
            *entry &= !RTE_REMOTE_IRR;
            let message = registers.service(index, false);
            drop(registers);
            self.send(message);
        }
    }

    fn send(&self, message: Option<MsiMessage>) {
        if let Some(message) = message {
            self.sink.send(message);
        }
    }

    /// All registers, for a snapshot.
    #[must_use]
    pub fn save(&self) -> IoApicState {
        let registers = self.registers.lock();
        IoApicState {
            version: Version::current(),
            select: registers.select,
            id: registers.id,
            lines: registers.lines,
            redirection: registers.redirection.to_vec(),
        }
    }

    /// Takes back a saved state.
    ///
    /// # Errors
    /// [`StateError`] if it has another number of pins.
    pub fn restore(&self, state: &IoApicState) -> Result<(), StateError> {
        let redirection = state.redirection.as_slice().try_into().map_err(|_| {
            StateError::invalid::<IoApicState>(format!(
                "it has {} pins, not {PINS}",
                state.redirection.len()
            ))
        })?;
        *self.registers.lock() = Registers {
            select: state.select,
            id: state.id,
            lines: state.lines,
            redirection,
        };
        Ok(())
    }

    /// Masks everything, as at power-on. Lines keep their levels.
    pub fn reset(&self) {
        let mut registers = self.registers.lock();
        *registers = Registers {
            lines: registers.lines,
            ..Registers::new()
        };
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = self.registers.lock();
        match offset {
            REG_SELECT => registers.select.into(),
            REG_DATA => registers.read(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            REG_SELECT => self.registers.lock().select = value as u8,
            REG_DATA => {
                let message = self.registers.lock().write(value);
                self.send(message);
            }
            REG_EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

impl Registers {
    fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            lines: 0,
            redirection: [RTE_MASKED; PINS],
        }
    }

    /// Whether the pin rose.
    fn set_line(&mut self, index: usize, active: bool) -> bool {
        let bit = 1 << index;
        let was = self.lines & bit != 0;
        if active {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        active && !was
    }

    /// The message pin `index` has to send now. An edge while masked is lost,
    /// as on hardware.
    fn service(&mut self, index: usize, rises: bool) -> Option<MsiMessage> {
        let active = self.lines & 1 << index != 0;
        let entry = self.redirection.get_mut(index)?;
        if *entry & RTE_MASKED != 0 {
            return None;
        }
        let delivery = *entry >> 8 & 7;
        let level = *entry & RTE_LEVEL != 0 && delivery <= DELIVERY_LOWEST;
        if level {
            if !active || *entry & RTE_REMOTE_IRR != 0 {
                return None;
            }
            *entry |= RTE_REMOTE_IRR;
        } else if !rises {
            return None;
        }
        Some(message(*entry, delivery, level))
    }

    /// Pin and whether the upper half, of a redirection register.
    fn redirection_index(&self) -> Option<(usize, bool)> {
        let offset = self.select.checked_sub(INDEX_REDIRECTION)?;
        let index = usize::from(offset / 2);
        (index < PINS).then_some((index, offset % 2 != 0))
    }

    fn read(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => u32::from(self.id) << 24,
            INDEX_VERSION => VERSION_VALUE,
            _ => self.redirection_index().map_or(0, |(index, upper)| {
                (self.redirection[index] >> if upper { 32 } else { 0 }) as u32
            }),
        }
    }

    fn write(&mut self, value: u32) -> Option<MsiMessage> {
        if self.select == INDEX_ID {
            self.id = (value >> 24) as u8 & 0xf;
            return None;
        }
        let (index, upper) = self.redirection_index()?;
        let entry = &mut self.redirection[index];
        if upper {
            *entry = *entry & 0xffff_ffff | u64::from(value) << 32;
            return None;
        }
        let writable = 0x1_ffff & !RTE_READ_ONLY;
        let kept = *entry & !0x1_ffff | *entry & RTE_READ_ONLY;
        *entry = kept | u64::from(value) & writable;
        if *entry & RTE_LEVEL == 0 {
            // How kernels without the EOI register make up for a lost EOI.
            *entry &= !RTE_REMOTE_IRR;
        }
        self.service(index, false)
    }
}

/// The message of a redirection entry (SDM vol. 3A, 11.11).
fn message(entry: u64, delivery: u64, level: bool) -> MsiMessage {
    let destination = entry >> 56;
    let logical = entry >> 11 & 1;
    let hint = u64::from(delivery == DELIVERY_LOWEST);
    let trigger = if level { 0xc000 } else { 0 };
    MsiMessage {
        address: layout::LAPIC_BASE | destination << 12 | hint << 3 | logical << 2,
        data: trigger | (delivery as u32) << 8 | (entry as u32 & 0xff),
    }
}

impl MmioDevice for IoApic {
    fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = self.read_register(offset & !3).to_le_bytes();
        for (to, from) in data.iter_mut().zip(value.iter().skip(offset as usize & 3)) {
            *to = *from;
        }
    }

    /// Registers are written whole, or from their lowest byte.
    fn mmio_write(&self, offset: u64, data: &[u8]) {
        let value = data
            .iter()
            .take(4)
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte));
        if offset & 3 == 0 {
            self.write_register(offset, value);
        }
    }
}

/// Saved I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Format.
    pub version: Version<IoApicState>,
    /// Index of the register in the data window.
    pub select: u8,
    /// APIC ID.
    pub id: u8,
    /// Active inputs.
    pub lines: u32,
    /// Redirection table.
    pub redirection: Vec<u64>,
}
versioned!(IoApicState, "I/O APIC", 1);
