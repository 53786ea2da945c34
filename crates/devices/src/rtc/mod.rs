//! The MC146818 real-time clock and its CMOS memory (ports 0x70 and 0x71).
//!
//! The clock shows the host's time of day in UTC, shifted by what the guest
//! set, and goes on while the machine is paused or saved, as one with a
//! battery does.

mod calendar;

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::BytePort;
use crate::irq::IrqLine;
use crate::state::{StateError, Version};
use crate::timer::{Clock, SECOND, Timer, Timers};
use crate::versioned;
use calendar::Date;

/// Bytes of memory, with the clock's registers.
const SIZE: usize = 128;

const SECONDS: usize = 0;
const SECONDS_ALARM: usize = 1;
const MINUTES: usize = 2;
const MINUTES_ALARM: usize = 3;
const HOURS: usize = 4;
const HOURS_ALARM: usize = 5;
const WEEKDAY: usize = 6;
const DAY: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
/// Century, where ACPI's FADT says (and PCs have it).
pub const CENTURY: usize = 0x32;

/// Update in progress.
const A_UPDATING: u8 = 0x80;
/// 32.768 kHz, 1024 interrupts per second.
const A_RESET: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_REQUEST: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
/// The battery is good.
const D_VALID: u8 = 0x80;
const PM: u8 = 0x80;
/// Alarm bytes from here on match any value.
const ANY: u8 = 0xc0;
/// How long before a new second "update in progress" shows, in nanoseconds.
const UPDATE_WARNING: u64 = 244_000;
/// Frequency of the clock crystal in Hz.
const CRYSTAL: u64 = 32_768;

struct Registers {
    index: u8,
    memory: [u8; SIZE],
    /// The guest's time of day minus the host's, in nanoseconds.
    offset: i64,
    /// Guest time of the next periodic interrupt.
    periodic: Option<u64>,
    /// Guest time of the next second, if somebody waits for it.
    second: Option<u64>,
    /// Unix time in seconds when register C was last read, for the update
    /// flag of a guest that polls.
    seen: u64,
}

/// The real-time clock.
pub struct Rtc {
    registers: Mutex<Registers>,
    clock: Arc<Clock>,
    timer: Timer,
    line: IrqLine,
}

impl Rtc {
    /// A clock on the host's time; `low_ram` and `high_ram` are the bytes of
    /// RAM below and beyond 4 GiB for the memory size bytes; `line` is ISA
    /// IRQ 8.
    #[must_use]
    pub fn new(timers: &Timers, line: IrqLine, low_ram: u64, high_ram: u64) -> Arc<Self> {
        let mut memory = [0; SIZE];
        memory[REG_A] = A_RESET;
        memory[REG_B] = B_24_HOURS;
        set_memory_size(&mut memory, low_ram, high_ram);
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            Self {
                registers: Mutex::new(Registers {
                    index: 0,
                    memory,
                    offset: 0,
                    periodic: None,
                    second: None,
                    seen: timers.clock().time_of_day() / SECOND,
                }),
                clock: Arc::clone(timers.clock()),
                timer: timers.timer(move || {
                    if let Some(this) = this.upgrade() {
                        this.expire();
                    }
                }),
                line,
            }
        })
    }

    /// The timer's callback.
    fn expire(&self) {
        let mut registers = self.registers.lock();
        let now = self.clock.now();
        if registers.periodic.is_some_and(|due| due <= now) {
            registers.memory[REG_C] |= C_PERIODIC;
            registers.periodic = None;
        }
        if registers.second.is_some_and(|due| due <= now) {
            registers.second = None;
            let time = registers.time(&self.clock);
            let [second, minute, hour, ..] = registers.encode(Date::from_unix(time / SECOND));
            registers.memory[REG_C] |= C_UPDATE;
            let alarm = [
                (SECONDS_ALARM, second),
                (MINUTES_ALARM, minute),
                (HOURS_ALARM, hour),
            ];
            let rings = |&(at, value): &(usize, u8)| {
                registers.memory[at] >= ANY || registers.memory[at] == value
            };
            if alarm.iter().all(rings) {
                registers.memory[REG_C] |= C_ALARM;
            }
        }
        self.update(&mut registers);
    }

    /// Brings the interrupt and the timer up to date.
    fn update(&self, registers: &mut Registers) {
        let now = self.clock.now();
        let control = registers.memory[REG_B];
        let flags = registers.memory[REG_C] & 0x70;
        let request = flags & control & 0x70 != 0;
        registers.memory[REG_C] = flags | if request { C_REQUEST } else { 0 };
        self.line.set(request);
        let period = period(registers.memory[REG_A]);
        registers.periodic = match period {
            // On the crystal's grid, so that none drifts.
            Some(period) if control & B_PERIODIC != 0 => registers.periodic.or(Some(
                (now / period).saturating_add(1).saturating_mul(period),
            )),
            _ => None,
        };
        let ticks = control & B_SET == 0 && control & (B_ALARM | B_UPDATE) != 0;
        registers.second = ticks.then(|| {
            let next = SECOND - registers.time(&self.clock) % SECOND;
            registers.second.unwrap_or(now.saturating_add(next))
        });
        match registers.periodic.into_iter().chain(registers.second).min() {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }

    fn read_register(&self, registers: &mut Registers, at: usize) -> u8 {
        let stopped = registers.memory[REG_B] & B_SET != 0;
        match at {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY if !stopped => {
                registers.show_time(&self.clock);
                registers.memory[at]
            }
            REG_A => {
                let into_second = registers.time(&self.clock) % SECOND;
                let updating = !stopped && into_second >= SECOND - UPDATE_WARNING;
                registers.memory[at] & !A_UPDATING | if updating { A_UPDATING } else { 0 }
            }
            REG_C => {
                let second = registers.time(&self.clock) / SECOND;
                let updated = !stopped && second != registers.seen;
                registers.seen = second;
                let flags = registers.memory[at] | if updated { C_UPDATE } else { 0 };
                registers.memory[at] = 0;
                self.update(registers);
                flags
            }
            REG_D => D_VALID,
            _ => registers.memory.get(at).copied().unwrap_or(0xff),
        }
    }

    fn write_register(&self, registers: &mut Registers, at: usize, value: u8) {
        match at {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                let stopped = registers.memory[REG_B] & B_SET != 0;
                if !stopped {
                    registers.show_time(&self.clock);
                }
                registers.memory[at] = value;
                if !stopped {
                    registers.take_time(&self.clock);
                }
            }
            REG_A => {
                registers.memory[at] = value & !A_UPDATING;
                registers.periodic = None;
            }
            REG_B => self.write_control(registers, value),
            REG_C | REG_D => {}
            _ => {
                if let Some(byte) = registers.memory.get_mut(at) {
                    *byte = value;
                }
            }
        }
        registers.second = None;
        self.update(registers);
    }

    fn write_control(&self, registers: &mut Registers, value: u8) {
        let was = registers.memory[REG_B];
        // The time is shown in the old format and taken in the new one.
        if was & B_SET == 0 && value & B_SET != 0 {
            registers.show_time(&self.clock);
        }
        registers.memory[REG_B] = value;
        if was & B_SET != 0 && value & B_SET == 0 {
            registers.take_time(&self.clock);
        }
        if value & B_SET != 0 {
            registers.memory[REG_B] &= !B_UPDATE;
        }
    }

    /// What a reset does to the clock: interrupts are off, all else stays.
    pub fn reset(&self) {
        let mut registers = self.registers.lock();
        registers.memory[REG_B] &= !(B_PERIODIC | B_ALARM | B_UPDATE);
        registers.memory[REG_C] = 0;
        self.update(&mut registers);
    }

    /// The registers, for a snapshot.
    #[must_use]
    pub fn save(&self) -> RtcState {
        let registers = self.registers.lock();
        RtcState {
            version: Version::current(),
            index: registers.index,
            memory: registers.memory.to_vec(),
            offset: registers.offset,
        }
    }

    /// Takes back a saved state, after the clock was set. The time of day is
    /// now, not when the state was saved.
    ///
    /// # Errors
    /// [`StateError`] if the memory has another size.
    pub fn restore(&self, state: &RtcState) -> Result<(), StateError> {
        let memory = state.memory.as_slice().try_into().map_err(|_| {
            let size = state.memory.len();
            StateError::invalid::<RtcState>(format!("it has {size} bytes, not {SIZE}"))
        })?;
        let mut registers = self.registers.lock();
        *registers = Registers {
            index: state.index & 0x7f,
            memory,
            offset: state.offset,
            periodic: None,
            second: None,
            seen: 0,
        };
        registers.seen = registers.time(&self.clock) / SECOND;
        self.update(&mut registers);
        Ok(())
    }
}

/// The memory size bytes that a BIOS leaves.
fn set_memory_size(memory: &mut [u8; SIZE], low_ram: u64, high_ram: u64) {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let mut word = |at: usize, value: u64| {
        let value = u16::try_from(value).unwrap_or(u16::MAX);
        memory[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    word(0x15, 640);
    // From 1 MiB, at most 63 MiB, in KiB; twice.
    let extended = low_ram.saturating_sub(MIB).min(63 * MIB) / KIB;
    word(0x17, extended);
    word(0x30, extended);
    // From 16 MiB to 4 GiB, in 64 KiB.
    word(0x34, low_ram.saturating_sub(16 * MIB) / (64 * KIB));
    let high = (high_ram / (64 * KIB)).min(0xff_ffff).to_le_bytes();
    memory[0x5b..0x5e].copy_from_slice(&high[..3]);
    // Equipment: an FPU.
    memory[0x14] = 2;
}

/// Period of the periodic interrupt in nanoseconds.
fn period(reg_a: u8) -> Option<u64> {
    let rate = match u32::from(reg_a & 0xf) {
        0 => return None,
        // The two that do not fit the scheme.
        rate @ 1..=2 => rate + 7,
        rate => rate,
    };
    Some(SECOND * (1 << (rate - 1)) / CRYSTAL)
}

impl Registers {
    /// The guest's time of day: Unix time in nanoseconds.
    fn time(&self, clock: &Clock) -> u64 {
        clock.time_of_day().saturating_add_signed(self.offset)
    }

    /// Puts the time into the memory's registers.
    fn show_time(&mut self, clock: &Clock) {
        let date = Date::from_unix(self.time(clock) / SECOND);
        let [second, minute, hour, weekday, day, month, year, century] = self.encode(date);
        self.memory[SECONDS] = second;
        self.memory[MINUTES] = minute;
        self.memory[HOURS] = hour;
        self.memory[WEEKDAY..=YEAR].copy_from_slice(&[weekday, day, month, year]);
        self.memory[CENTURY] = century;
    }

    /// Sets the clock by the memory's registers.
    fn take_time(&mut self, clock: &Clock) {
        let field = |at: usize| self.decode(self.memory[at]);
        let century = self.decode_bcd(self.memory[CENTURY]);
        let date = Date {
            year: century * 100 + field(YEAR),
            month: field(MONTH),
            day: field(DAY),
            weekday: 1,
            hour: self.decode_hour(self.memory[HOURS]),
            minute: field(MINUTES),
            second: field(SECONDS),
        };
        let time = date.to_unix().saturating_mul(SECOND);
        let host = clock.time_of_day();
        self.offset = i64::try_from(i128::from(time) - i128::from(host)).unwrap_or(0);
        self.seen = self.time(clock) / SECOND;
    }

    /// Second, minute, hour, weekday, day, month, year, century as registers.
    fn encode(&self, date: Date) -> [u8; 8] {
        let value = |value: u64| {
            if self.memory[REG_B] & B_BINARY != 0 {
                value as u8
            } else {
                bcd(value)
            }
        };
        let hour = if self.memory[REG_B] & B_24_HOURS != 0 {
            value(date.hour)
        } else {
            let half = if date.hour >= 12 { PM } else { 0 };
            value((date.hour + 11) % 12 + 1) | half
        };
        [
            value(date.second),
            value(date.minute),
            hour,
            value(date.weekday),
            value(date.day),
            value(date.month),
            value(date.year % 100),
            // Always BCD: it is a BIOS's byte, not the chip's.
            bcd(date.year / 100 % 100),
        ]
    }

    fn decode(&self, value: u8) -> u64 {
        if self.memory[REG_B] & B_BINARY != 0 {
            value.into()
        } else {
            self.decode_bcd(value)
        }
    }

    fn decode_bcd(&self, value: u8) -> u64 {
        u64::from(value >> 4) * 10 + u64::from(value & 0xf)
    }

    fn decode_hour(&self, value: u8) -> u64 {
        if self.memory[REG_B] & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let half = if value & PM != 0 { 12 } else { 0 };
        self.decode(value & !PM) % 12 + half
    }
}

fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

/// Ports 0x70 (index; bit 7 would mask NMI) and 0x71 (data).
impl BytePort for Rtc {
    fn read_byte(&self, offset: u16) -> u8 {
        let mut registers = self.registers.lock();
        if offset == 0 {
            return registers.index;
        }
        let at = usize::from(registers.index);
        self.read_register(&mut registers, at)
    }

    fn write_byte(&self, offset: u16, value: u8) {
        let mut registers = self.registers.lock();
        if offset == 0 {
            registers.index = value & 0x7f;
        } else {
            let at = usize::from(registers.index);
            self.write_register(&mut registers, at, value);
        }
    }
}

/// Saved real-time clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Format.
    pub version: Version<RtcState>,
    index: u8,
    memory: Vec<u8>,
    offset: i64,
}
versioned!(RtcState, "real-time clock", 1);
