//! A watchdog as the ACPI table WDAT describes it (Microsoft, "Hardware
//! Watchdog Timers Design Specification"; ACPI 6.5, 5.2 reserves the name):
//! the guest's driver knows the registers from the table alone.

use std::sync::{Arc, Weak};

use arch::layout;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::PioDevice;
use crate::state::Version;
use crate::timer::{Clock, Timer, Timers};
use crate::versioned;

/// Ports from [`layout::WATCHDOG_PORT`].
pub const PORTS: u16 = 8;

/// Offsets, as the table in crate `boot` says them.
const CONTROL: u16 = layout::WATCHDOG_CONTROL - layout::WATCHDOG_PORT;
const STATUS: u16 = layout::WATCHDOG_STATUS - layout::WATCHDOG_PORT;
const PING: u16 = layout::WATCHDOG_PING - layout::WATCHDOG_PORT;
const COUNTDOWN: u16 = layout::WATCHDOG_COUNTDOWN - layout::WATCHDOG_PORT;

/// Nanoseconds of one count.
const COUNT: u64 = layout::WATCHDOG_PERIOD_MS as u64 * 1_000_000;

#[derive(Default)]
struct Registers {
    running: bool,
    /// It has expired since the guest last cleared that.
    expired: bool,
    /// Counts from a ping to expiry.
    counts: u32,
    /// Guest nanoseconds at which it expires.
    deadline: u64,
}

/// The watchdog.
pub struct Watchdog {
    registers: Mutex<Registers>,
    clock: Arc<Clock>,
    timer: Timer,
    bite: Box<dyn Fn() + Send + Sync>,
}

impl Watchdog {
    /// A stopped watchdog that calls `bite`, on the timers' thread, when the
    /// guest has not pinged it in time. It must not ask the watchdog anything.
    pub fn new(timers: &Timers, bite: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            Self {
                registers: Mutex::default(),
                clock: Arc::clone(timers.clock()),
                timer: timers.timer(move || {
                    if let Some(this) = this.upgrade() {
                        this.expire();
                    }
                }),
                bite,
            }
        })
    }

    fn expire(&self) {
        let mut registers = self.registers.lock();
        if !registers.running || self.clock.now() < registers.deadline {
            return;
        }
        registers.running = false;
        registers.expired = true;
        // Before the guest can see it: with the registers locked.
        (self.bite)();
    }

    fn ping(&self, registers: &mut Registers) {
        let counts = u64::from(registers.counts.clamp(1, layout::WATCHDOG_MAX_COUNT));
        registers.deadline = self.clock.now().saturating_add(counts * COUNT);
        self.arm(registers);
    }

    fn arm(&self, registers: &Registers) {
        if registers.running {
            self.timer.arm(registers.deadline);
        } else {
            self.timer.cancel();
        }
    }

    /// Stops it, for a reset of the machine; that it expired is kept.
    pub fn reset(&self) {
        let mut registers = self.registers.lock();
        registers.running = false;
        registers.counts = 0;
        self.arm(&registers);
    }

    /// Its registers.
    #[must_use]
    pub fn save(&self) -> WatchdogState {
        let registers = self.registers.lock();
        WatchdogState {
            version: Version::current(),
            running: registers.running,
            expired: registers.expired,
            counts: registers.counts,
            deadline: registers.deadline,
        }
    }

    /// Takes back a saved state, after the clock was set.
    pub fn restore(&self, state: &WatchdogState) {
        let mut registers = self.registers.lock();
        *registers = Registers {
            running: state.running,
            expired: state.expired,
            counts: state.counts,
            deadline: state.deadline,
        };
        self.arm(&registers);
    }
}

impl PioDevice for Watchdog {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        let registers = self.registers.lock();
        let left = registers.deadline.saturating_sub(self.clock.now()) / COUNT;
        let [a, b, c, d] = match registers.running {
            true => u32::try_from(left).unwrap_or(u32::MAX).to_le_bytes(),
            false => registers.counts.to_le_bytes(),
        };
        let mut image = [0; PORTS as usize];
        image[usize::from(CONTROL)] = u8::from(registers.running);
        image[usize::from(STATUS)] = u8::from(registers.expired);
        image[usize::from(COUNTDOWN)..].copy_from_slice(&[a, b, c, d]);
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        let mut registers = self.registers.lock();
        match (offset, data) {
            (CONTROL, [value, ..]) => {
                registers.running = value & 1 != 0;
                self.ping(&mut registers);
            }
            (STATUS, [1, ..]) => registers.expired = false,
            (PING, [_, ..]) => self.ping(&mut registers),
            (COUNTDOWN, &[a, b, c, d]) => {
                registers.counts = u32::from_le_bytes([a, b, c, d]);
                self.ping(&mut registers);
            }
            _ => {}
        }
    }
}

/// Saved watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    /// Format.
    pub version: Version<WatchdogState>,
    /// The guest wants to be watched.
    pub running: bool,
    /// It has expired since the guest last cleared that.
    pub expired: bool,
    /// Counts from a ping to expiry.
    pub counts: u32,
    /// Guest nanoseconds at which it expires.
    pub deadline: u64,
}
versioned!(WatchdogState, "watchdog", 1);
