//! The 8254 interval timer and port 0x61 (Intel 8254 data sheet).
//!
//! Counters are not run but computed from guest time. Channel 0 interrupts on
//! ISA IRQ 0; channel 2 is gated and read through port 0x61.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::BytePort;
use crate::irq::IrqLine;
use crate::state::{StateError, Version};
use crate::timer::{Clock, Timer, Timers, ticks, time_of_ticks};
use crate::versioned;

/// Input frequency in Hz.
pub const PIT_HERTZ: u64 = 1_193_182;
/// Shortest time between two interrupts in nanoseconds: a guest cannot keep
/// the host busy with a tiny divisor.
const SHORTEST_PERIOD: u64 = 50_000;
/// Half a period of the DRAM refresh signal in nanoseconds.
const REFRESH_TOGGLE: u64 = 15_085;

/// Port 0x61: gate of channel 2.
const GATE_2: u8 = 1;
/// Port 0x61: bits a guest can write.
const PORT_61_WRITABLE: u8 = 0x0f;
const PORT_61_REFRESH: u8 = 0x10;
const PORT_61_OUT_2: u8 = 0x20;

/// Which bytes of the count an access means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

/// One of the three counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    /// 0 to 5.
    mode: u8,
    bcd: bool,
    access: Access,
    /// 1 to 0x10000 (binary), as loaded.
    count: u32,
    /// The low byte of a count of which the high byte is still to come.
    written_low: Option<u8>,
    /// The next read of a two-byte count gives its high byte.
    read_high: bool,
    /// Count frozen by a latch command.
    latched: Option<u16>,
    /// Status frozen by a read-back command.
    latched_status: Option<u8>,
    gate: bool,
    /// Guest time at which counting began; `None` if it has not.
    started: Option<u64>,
    /// Ticks counted when the gate fell in modes 0 and 4.
    held: Option<u64>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Both,
            count: 0x1_0000,
            written_low: None,
            read_high: false,
            latched: None,
            latched_status: None,
            gate,
            started: None,
            held: None,
        }
    }

    /// Ticks since counting began.
    fn elapsed(&self, now: u64) -> Option<u64> {
        let running = |started| ticks(now.saturating_sub(started), PIT_HERTZ);
        self.held.or(self.started.map(running))
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// The counting element, in binary.
    fn counter(&self, now: u64) -> u16 {
        let count = u64::from(self.count);
        let Some(elapsed) = self.elapsed(now) else {
            return self.count as u16;
        };
        match self.mode {
            2 => (count - elapsed % count) as u16,
            // Counts down by two, twice a period.
            3 => ((count - 2 * elapsed % count) & !1) as u16,
            _ => {
                let size = if self.bcd { 10_000 } else { 0x1_0000 };
                ((count + size - elapsed % size) % size) as u16
            }
        }
    }

    fn output(&self, now: u64) -> bool {
        let count = u64::from(self.count);
        match (self.mode, self.elapsed(now)) {
            (0, None) => false,
            (_, None) => true,
            (0 | 1, Some(elapsed)) => elapsed >= count,
            (2, Some(elapsed)) => !self.gate || elapsed % count != count - 1,
            (3, Some(elapsed)) => !self.gate || elapsed % count < count.div_ceil(2),
            (_, Some(elapsed)) => elapsed != count,
        }
    }

    fn encode(&self, value: u16) -> u16 {
        if !self.bcd {
            return value;
        }
        let digit = |unit: u16| value / unit % 10;
        digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
    }

    fn decode(&self, value: u16) -> u32 {
        let value = u32::from(value);
        let (count, size) = if self.bcd {
            let digit = |shift: u32| value >> shift & 0xf;
            let count = digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0);
            // Digits beyond 9 would count further than a BCD counter can.
            (count.min(9999), 10_000)
        } else {
            (value, 0x1_0000)
        };
        if count == 0 { size } else { count }
    }

    fn set_mode(&mut self, control: u8) {
        self.access = match control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = control >> 1 & 7;
        self.mode = if mode > 5 { mode - 4 } else { mode };
        self.bcd = control & 1 != 0;
        self.written_low = None;
        self.read_high = false;
        self.latched = None;
        self.latched_status = None;
        self.started = None;
        self.held = None;
    }

    fn status(&self, now: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let null = u8::from(self.started.is_none());
        u8::from(self.output(now)) << 7
            | null << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.encode(self.counter(now)));
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self
            .latched
            .unwrap_or_else(|| self.encode(self.counter(now)));
        let [low, high] = value.to_le_bytes();
        let (byte, finished) = match (self.access, self.read_high) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::Both, false) => (low, false),
            (Access::Both, true) => (high, true),
        };
        self.read_high = !finished;
        if finished {
            self.latched = None;
        }
        byte
    }

    /// Takes a byte of the count; whether counting begins anew.
    fn write(&mut self, value: u8, now: u64) -> bool {
        let count = match (self.access, self.written_low.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.written_low = Some(value);
                if self.mode == 0 {
                    self.started = None;
                    self.held = None;
                }
                return self.mode == 0;
            }
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.count = self.decode(count);
        // Modes 1 and 5 wait for the gate.
        self.held = None;
        self.started = match self.mode {
            1 | 5 => self.started,
            _ => Some(now),
        };
        if !self.gate && !matches!(self.mode, 1 | 5) {
            self.held = Some(0);
        }
        true
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        if gate {
            let counted = time_of_ticks(self.held.unwrap_or(0), PIT_HERTZ);
            self.started = match self.mode {
                0 | 4 => self.started.map(|_| now.saturating_sub(counted)),
                2 | 3 => self.started.map(|_| now),
                _ => Some(now),
            };
            self.held = None;
        } else if !matches!(self.mode, 1 | 5) {
            self.held = self.elapsed(now);
        }
        self.gate = gate;
    }

    /// Guest time of the next rising edge of the output after `now`.
    fn next_edge(&self, now: u64) -> Option<u64> {
        if self.held.is_some() {
            return None;
        }
        let (started, elapsed) = (self.started?, self.elapsed(now)?);
        let count = u64::from(self.count);
        let edge = if self.is_periodic() {
            (elapsed / count + 1) * count
        } else if elapsed < count {
            count
        } else {
            return None;
        };
        Some(started.saturating_add(time_of_ticks(edge, PIT_HERTZ)))
    }

    fn is_sound(&self) -> bool {
        // Longer than any machine runs, and nothing computed from it overflows.
        let possible = |ticks| ticks < 1 << 60;
        self.mode <= 5 && (1..=0x1_0000).contains(&self.count) && self.held.is_none_or(possible)
    }
}

struct Counters {
    channels: [Channel; 3],
    port_61: u8,
    /// Guest time of the next interrupt.
    deadline: Option<u64>,
}

/// The interval timer, at 0x40 to 0x43; [`Port61`] is its other port.
pub struct Pit {
    counters: Mutex<Counters>,
    clock: Arc<Clock>,
    timer: Timer,
    line: IrqLine,
}

impl Pit {
    /// A timer of which no channel counts yet; `line` is ISA IRQ 0.
    #[must_use]
    pub fn new(timers: &Timers, line: IrqLine) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            Self {
                counters: Mutex::new(Counters {
                    channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
                    port_61: 0,
                    deadline: None,
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
        let mut counters = self.counters.lock();
        let now = self.clock.now();
        if counters.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        // Interrupts the host was too late for are not made up.
        if counters.channels[0].mode <= 1 {
            self.line.set(true);
        } else {
            self.line.pulse();
        }
        self.schedule(&mut counters, now);
    }

    fn schedule(&self, counters: &mut Counters, now: u64) {
        let channel = &counters.channels[0];
        let edge = channel.next_edge(now);
        counters.deadline = edge.map(|edge| {
            if channel.is_periodic() {
                edge.max(now.saturating_add(SHORTEST_PERIOD))
            } else {
                edge
            }
        });
        match counters.deadline {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }

    /// Channel 0 was programmed.
    fn restart(&self, counters: &mut Counters, now: u64) {
        self.line.set(false);
        self.schedule(counters, now);
    }

    fn control(&self, counters: &mut Counters, value: u8, now: u64) {
        let select = usize::from(value >> 6);
        if select == 3 {
            for (index, channel) in counters.channels.iter_mut().enumerate() {
                if value & 2 << index == 0 {
                    continue;
                }
                if value & 0x20 == 0 {
                    channel.latch(now);
                }
                if value & 0x10 == 0 && channel.latched_status.is_none() {
                    channel.latched_status = Some(channel.status(now));
                }
            }
        } else if let Some(channel) = counters.channels.get_mut(select) {
            if value & 0x30 == 0 {
                channel.latch(now);
            } else {
                channel.set_mode(value);
                if select == 0 {
                    self.restart(counters, now);
                }
            }
        }
    }

    /// All counters, for a snapshot.
    #[must_use]
    pub fn save(&self) -> PitState {
        let counters = self.counters.lock();
        PitState {
            version: Version::current(),
            channels: counters.channels.clone(),
            port_61: counters.port_61,
        }
    }

    /// Takes back a saved state, after the clock was set.
    ///
    /// # Errors
    /// [`StateError`] if registers have impossible values.
    pub fn restore(&self, state: &PitState) -> Result<(), StateError> {
        if !state.channels.iter().all(Channel::is_sound) {
            return Err(StateError::invalid::<PitState>(
                "impossible register values",
            ));
        }
        let now = self.clock.now();
        let mut counters = self.counters.lock();
        counters.channels.clone_from(&state.channels);
        counters.port_61 = state.port_61;
        let channel = &counters.channels[0];
        let high = channel.mode <= 1 && channel.started.is_some() && channel.output(now);
        self.line.set(high);
        self.schedule(&mut counters, now);
        Ok(())
    }
}

impl BytePort for Pit {
    fn read_byte(&self, offset: u16) -> u8 {
        let mut counters = self.counters.lock();
        match counters.channels.get_mut(usize::from(offset)) {
            Some(channel) => channel.read(self.clock.now()),
            None => 0xff,
        }
    }

    fn write_byte(&self, offset: u16, value: u8) {
        let mut counters = self.counters.lock();
        let now = self.clock.now();
        match counters.channels.get_mut(usize::from(offset)) {
            Some(channel) => {
                if channel.write(value, now) && offset == 0 {
                    self.restart(&mut counters, now);
                }
            }
            None => self.control(&mut counters, value, now),
        }
    }
}

/// Port 0x61: gate and output of channel 2, speaker, refresh toggle.
pub struct Port61(pub Arc<Pit>);

impl BytePort for Port61 {
    fn read_byte(&self, _offset: u16) -> u8 {
        let counters = self.0.counters.lock();
        let now = self.0.clock.now();
        let mut value = counters.port_61;
        if (now / REFRESH_TOGGLE) & 1 != 0 {
            value |= PORT_61_REFRESH;
        }
        if counters.channels[2].output(now) {
            value |= PORT_61_OUT_2;
        }
        value
    }

    fn write_byte(&self, _offset: u16, value: u8) {
        let mut counters = self.0.counters.lock();
        counters.port_61 = value & PORT_61_WRITABLE;
        counters.channels[2].set_gate(value & GATE_2 != 0, self.0.clock.now());
    }
}

/// Saved interval timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// Format.
    pub version: Version<PitState>,
    channels: [Channel; 3],
    port_61: u8,
}
versioned!(PitState, "8254 interval timer", 1);
