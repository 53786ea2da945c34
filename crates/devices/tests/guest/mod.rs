//! A fake guest: a whole chipset on a manual clock, seen from a vCPU.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod toy;

use std::sync::Arc;

use devices::{Chipset, ChipsetConfig, Clock, PowerEvent, PowerSink, SerialSink};
use engine::{Bus, InterruptSink, MsiMessage};
use parking_lot::Mutex;

/// 2023-11-14 22:13:20 UTC, a Tuesday, in nanoseconds.
pub const START: u64 = 1_700_000_000_000_000_000;
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// Everything the devices tell the machine.
#[derive(Default)]
pub struct Outside {
    pub messages: Mutex<Vec<MsiMessage>>,
    pub extint: Mutex<bool>,
    pub power: Mutex<Vec<PowerEvent>>,
    pub output: Mutex<Vec<u8>>,
    pub ready: Mutex<u32>,
}

impl InterruptSink for Outside {
    fn send(&self, message: MsiMessage) {
        self.messages.lock().push(message);
    }

    fn set_extint(&self, level: bool) {
        *self.extint.lock() = level;
    }
}

impl PowerSink for Outside {
    fn power_event(&self, event: PowerEvent) {
        self.power.lock().push(event);
    }
}

impl SerialSink for Outside {
    fn write(&self, data: &[u8]) {
        self.output.lock().extend_from_slice(data);
    }

    fn input_ready(&self) {
        *self.ready.lock() += 1;
    }
}

pub struct Guest {
    pub chipset: Chipset,
    pub outside: Arc<Outside>,
}

impl Guest {
    pub fn new() -> Self {
        let outside = Arc::new(Outside::default());
        let chipset = Chipset::new(ChipsetConfig {
            interrupts: outside.clone(),
            power: outside.clone(),
            serial: outside.clone(),
            clock: Clock::manual(START),
            low_ram: 1 << 30,
            high_ram: 3 << 30,
            debug_exit: true,
        })
        .unwrap();
        Self { chipset, outside }
    }

    pub fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.chipset.bus.pio_read(port, &mut data);
        data[0]
    }

    pub fn inw(&self, port: u16) -> u16 {
        let mut data = [0; 2];
        self.chipset.bus.pio_read(port, &mut data);
        u16::from_le_bytes(data)
    }

    pub fn inl(&self, port: u16) -> u32 {
        let mut data = [0; 4];
        self.chipset.bus.pio_read(port, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn outb(&self, port: u16, value: u8) {
        self.chipset.bus.pio_write(port, &[value]);
    }

    pub fn outw(&self, port: u16, value: u16) {
        self.chipset.bus.pio_write(port, &value.to_le_bytes());
    }

    pub fn outl(&self, port: u16, value: u32) {
        self.chipset.bus.pio_write(port, &value.to_le_bytes());
    }

    pub fn read32(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.chipset.bus.mmio_read(address, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write32(&self, address: u64, value: u32) {
        self.chipset.bus.mmio_write(address, &value.to_le_bytes());
    }

    /// Lets guest time pass.
    pub fn pass(&self, nanoseconds: u64) {
        self.chipset.timers.advance(nanoseconds);
    }

    /// What a CPU with interrupts enabled takes from the 8259 pair.
    pub fn interrupt(&self) -> Option<u8> {
        if *self.outside.extint.lock() {
            self.chipset.bus.acknowledge_extint()
        } else {
            None
        }
    }

    pub fn messages(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.outside.messages.lock())
    }

    pub fn vectors(&self) -> Vec<u8> {
        self.messages()
            .iter()
            .map(|message| message.data as u8)
            .collect()
    }

    pub fn power(&self) -> Vec<PowerEvent> {
        std::mem::take(&mut self.outside.power.lock())
    }

    /// Programs the 8259 pair as PC kernels do: vectors 0x20 to 0x2f, masks.
    pub fn set_up_pics(&self, masks: [u8; 2], icw4: u8) {
        for (port, vector, cascade) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            self.outb(port, 0x11);
            self.outb(port + 1, vector);
            self.outb(port + 1, cascade);
            self.outb(port + 1, icw4);
        }
        self.outb(0x21, masks[0]);
        self.outb(0xa1, masks[1]);
    }

    pub fn write_ioapic(&self, index: u32, value: u32) {
        self.write32(0xfec0_0000, index);
        self.write32(0xfec0_0010, value);
    }

    pub fn read_ioapic(&self, index: u32) -> u32 {
        self.write32(0xfec0_0000, index);
        self.read32(0xfec0_0010)
    }

    /// Programs an I/O APIC pin: `low` is vector, modes and mask.
    pub fn set_pin(&self, pin: u32, destination: u8, low: u32) {
        self.write_ioapic(0x11 + 2 * pin, u32::from(destination) << 24);
        self.write_ioapic(0x10 + 2 * pin, low);
    }

    pub fn cmos(&self, at: u8) -> u8 {
        self.outb(0x70, at);
        self.inb(0x71)
    }

    pub fn set_cmos(&self, at: u8, value: u8) {
        self.outb(0x70, at);
        self.outb(0x71, value);
    }
}
