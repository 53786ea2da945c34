//! Registers and priorities of one local APIC (SDM vol. 3A, 11.4 to 11.8).

use std::time::{Duration, Instant};

/// Register numbers: xAPIC offset / 16, x2APIC MSR - 0x800.
pub(crate) mod reg {
    #![allow(missing_docs)]
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const LVT_CMCI: u32 = 0x2f;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Version 0x14, six LVT entries.
const VERSION: u32 = 0x0005_0014;
/// LVT entries from LVT_TIMER on.
pub(crate) const LVT_TIMER: usize = 0;
/// LINT0.
pub(crate) const LVT_LINT0: usize = 3;
/// LINT1.
pub(crate) const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
/// LVT mask bit.
pub(crate) const MASKED: u32 = 1 << 16;
/// APIC_BASE: bootstrap processor.
pub(crate) const BASE_BSP: u64 = 1 << 8;
/// APIC_BASE: x2APIC mode.
pub(crate) const BASE_X2APIC: u64 = 1 << 10;
/// APIC_BASE: enabled.
pub(crate) const BASE_ENABLE: u64 = 1 << 11;
/// Shortest period, so that a guest cannot keep the timer thread busy.
const MIN_PERIOD: Duration = Duration::from_micros(100);

const ESR_SEND_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_VECTOR: u32 = 1 << 6;
const ESR_REGISTER: u32 = 1 << 7;

/// 256 bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bits([u64; 4]);

impl Bits {
    fn set(&mut self, v: u8) {
        self.0[v as usize >> 6] |= 1 << (v & 63);
    }
    fn clear(&mut self, v: u8) {
        self.0[v as usize >> 6] &= !(1 << (v & 63));
    }
    fn get(&self, v: u8) -> bool {
        self.0[v as usize >> 6] >> (v & 63) & 1 != 0
    }
    fn highest(&self) -> Option<u8> {
        (0..4).rev().find_map(|w| {
            let bits = self.0[w];
            (bits != 0).then(|| (w as u8) << 6 | (63 - bits.leading_zeros() as u8))
        })
    }
    fn word(&self, n: u32) -> u32 {
        (self.0[(n as usize >> 1) & 3] >> ((n & 1) * 32)) as u32
    }
    fn set_word(&mut self, n: u32, v: u32) {
        let (w, shift) = ((n as usize >> 1) & 3, (n & 1) * 32);
        self.0[w] = self.0[w] & !(0xffff_ffff << shift) | u64::from(v) << shift;
    }
}

/// What a register write asks for, to be done without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing more.
    None,
    /// EOI of a level-triggered vector.
    Eoi(u8),
    /// Send this interrupt command.
    Send(u64),
    /// The register does not exist or refuses the value.
    Bad,
}

/// Timer as armed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Timer {
    pub(crate) deadline: Option<Instant>,
    /// Of periodic mode.
    period: Duration,
}

/// Everything under the lock.
pub(crate) struct State {
    pub(crate) id: u32,
    pub(crate) base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    esr_next: u32,
    icr: u64,
    pub(crate) lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    pub(crate) tsc_deadline: u64,
    pub(crate) timer: Timer,
    irr: Bits,
    isr: Bits,
    tmr: Bits,
    /// Level of the 8259's INTR at LINT0.
    pub(crate) extint_line: bool,
    /// The guest's time stands still since then.
    pub(crate) frozen: Option<Instant>,
}

impl State {
    pub(crate) fn new(id: u32) -> Self {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        let mut s = Self {
            id,
            base: arch::layout::LAPIC_BASE | BASE_ENABLE | bsp,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            esr: 0,
            esr_next: 0,
            icr: 0,
            lvt: [0; 6],
            initial_count: 0,
            divide: 0,
            tsc_deadline: 0,
            timer: Timer::default(),
            irr: Bits::default(),
            isr: Bits::default(),
            tmr: Bits::default(),
            extint_line: false,
            frozen: None,
        };
        s.reset();
        s
    }

    /// As after INIT: everything but the id and APIC_BASE. The bootstrap
    /// processor's LINT0 is in virtual-wire mode, as firmware leaves it.
    pub(crate) fn reset(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.dfr = 0xffff_ffff;
        self.svr = 0xff;
        self.esr = 0;
        self.esr_next = 0;
        self.icr = 0;
        self.lvt = [MASKED; 6];
        if self.base & BASE_BSP != 0 {
            self.lvt[LVT_LINT0] = 0x700;
            self.lvt[LVT_LINT1] = 0x400;
        }
        self.initial_count = 0;
        self.divide = 0;
        self.tsc_deadline = 0;
        self.timer = Timer::default();
        self.irr = Bits::default();
        self.isr = Bits::default();
        self.tmr = Bits::default();
        if self.x2apic() {
            self.ldr = self.x2apic_ldr();
        }
    }

    pub(crate) fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    fn x2apic_ldr(&self) -> u32 {
        self.id >> 4 << 16 | 1 << (self.id & 15)
    }

    pub(crate) fn hardware_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    pub(crate) fn software_enabled(&self) -> bool {
        self.svr & 0x100 != 0 && self.hardware_enabled()
    }

    /// Processor priority.
    pub(crate) fn ppr(&self) -> u8 {
        let isr = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= isr {
            self.tpr
        } else {
            isr
        }
    }

    pub(crate) fn tpr(&self) -> u8 {
        self.tpr
    }

    pub(crate) fn set_tpr(&mut self, v: u8) {
        self.tpr = v;
    }

    /// The vector that would interrupt the processor now.
    pub(crate) fn deliverable(&self) -> Option<u8> {
        let v = self.irr.highest()?;
        (self.software_enabled() && v >> 4 > self.ppr() >> 4).then_some(v)
    }

    /// Whether the 8259's request reaches the processor.
    pub(crate) fn extint(&self) -> bool {
        let lint0 = self.lvt[LVT_LINT0];
        self.extint_line && (!self.hardware_enabled() || lint0 & (MASKED | 0x700) == 0x700)
    }

    /// Moves a vector from IRR to ISR; `false` if it was not requested.
    pub(crate) fn accept(&mut self, v: u8) -> bool {
        if !self.irr.get(v) {
            return false;
        }
        self.irr.clear(v);
        self.isr.set(v);
        true
    }

    /// A fixed interrupt arrives.
    pub(crate) fn request(&mut self, v: u8, level: bool) {
        if !self.software_enabled() {
            return;
        }
        if v < 16 {
            self.error(ESR_RECEIVE_VECTOR);
            return;
        }
        self.irr.set(v);
        if level {
            self.tmr.set(v);
        } else {
            self.tmr.clear(v);
        }
    }

    fn error(&mut self, bit: u32) {
        let first = self.esr_next & bit == 0;
        self.esr_next |= bit;
        let lvt = self.lvt[LVT_ERROR];
        if first && lvt & MASKED == 0 && lvt as u8 >= 16 {
            self.irr.set(lvt as u8);
            self.tmr.clear(lvt as u8);
        }
    }

    /// EOI: the level-triggered vector to broadcast, if any.
    pub(crate) fn eoi(&mut self) -> Effect {
        let Some(v) = self.isr.highest() else {
            return Effect::None;
        };
        self.isr.clear(v);
        if self.tmr.get(v) {
            Effect::Eoi(v)
        } else {
            Effect::None
        }
    }

    /// Whether this APIC is addressed by an 8-bit (or, `wide`, 32-bit)
    /// destination.
    pub(crate) fn matches(&self, dest: u32, logical: bool, wide: bool) -> bool {
        if !self.hardware_enabled() {
            return false;
        }
        if dest == if wide { !0 } else { 0xff } {
            return true;
        }
        if !logical {
            return dest == self.id;
        }
        if self.x2apic() {
            return dest >> 16 == self.ldr >> 16 && dest & self.ldr & 0xffff != 0;
        }
        let (mda, ldr) = (dest & 0xff, self.ldr >> 24);
        if self.dfr >> 28 == 0xf {
            mda & ldr != 0
        } else {
            (mda >> 4 == ldr >> 4 || mda >> 4 == 0xf) && mda & ldr & 0xf != 0
        }
    }

    pub(crate) fn read(&self, r: u32, now: Instant) -> Option<u32> {
        Some(match r {
            reg::ID if self.x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => u32::from(self.tpr),
            reg::APR => 0,
            reg::PPR => u32::from(self.ppr()),
            reg::LDR => self.ldr,
            reg::DFR if !self.x2apic() => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..=0x17 => self.isr.word(r - reg::ISR),
            reg::TMR..=0x1f => self.tmr.word(r - reg::TMR),
            reg::IRR..=reg::IRR_LAST => self.irr.word(r - reg::IRR),
            reg::ESR => self.esr,
            reg::LVT_CMCI => MASKED,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH if !self.x2apic() => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(r - reg::LVT_TIMER) as usize],
            reg::INITIAL_COUNT => self.initial_count,
            reg::CURRENT_COUNT => self.current_count(now),
            reg::DIVIDE => self.divide,
            _ => return None,
        })
    }

    pub(crate) fn icr(&self) -> u64 {
        self.icr
    }

    /// Writes a register; the ICR of x2APIC mode comes with all its 64 bits.
    pub(crate) fn write(&mut self, r: u32, value: u64, now: Instant) -> Effect {
        let v = value as u32;
        let x2 = self.x2apic();
        if x2 && r != reg::ICR && value >> 32 != 0 {
            return Effect::Bad;
        }
        match r {
            reg::TPR if x2 && v > 0xff => return Effect::Bad,
            reg::TPR => self.tpr = v as u8,
            reg::EOI if x2 && v != 0 => return Effect::Bad,
            reg::EOI => return self.eoi(),
            reg::LDR if !x2 => self.ldr = v & 0xff00_0000,
            reg::DFR if !x2 => self.dfr = v | 0x0fff_ffff,
            reg::SVR => self.write_svr(v),
            reg::ESR if x2 && v != 0 => return Effect::Bad,
            reg::ESR => {
                self.esr = self.esr_next;
                self.esr_next = 0;
            }
            reg::LVT_CMCI => {}
            reg::ICR => return self.write_icr(value),
            reg::ICR_HIGH if !x2 => self.icr = self.icr & 0xffff_ffff | u64::from(v) << 32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt((r - reg::LVT_TIMER) as usize, v),
            reg::INITIAL_COUNT => self.write_count(v, now),
            reg::DIVIDE => self.divide = v & 0xb,
            reg::SELF_IPI if x2 => return Effect::Send(u64::from(v & 0xff) | 1 << 18),
            // xAPIC ids stay what they are; other read-only registers err.
            reg::ID if !x2 => {}
            _ if x2 => return Effect::Bad,
            _ => self.error(ESR_REGISTER),
        }
        Effect::None
    }

    fn write_svr(&mut self, v: u32) {
        self.svr = v & 0x1ff;
        if v & 0x100 == 0 {
            for l in &mut self.lvt {
                *l |= MASKED;
            }
        }
    }

    fn write_icr(&mut self, value: u64) -> Effect {
        let keep = 0xdcfff;
        self.icr = if self.x2apic() {
            value & (0xffff_ffff << 32 | keep)
        } else {
            self.icr & !0xffff_ffff | value & keep
        };
        let vector = value as u8;
        let mode = value >> 8 & 7;
        if mode <= 1 && vector < 16 {
            self.error(ESR_SEND_VECTOR);
            return Effect::None;
        }
        Effect::Send(self.icr)
    }

    fn write_lvt(&mut self, n: usize, v: u32) {
        let valid = match n {
            LVT_TIMER => 0x7_00ff,
            LVT_LINT0 | LVT_LINT1 => 0x1_a7ff,
            LVT_ERROR => 0x1_00ff,
            _ => 0x1_07ff,
        };
        let old_mode = self.timer_mode();
        self.lvt[n] = v & valid | if self.svr & 0x100 == 0 { MASKED } else { 0 };
        let mode = self.timer_mode();
        if n == LVT_TIMER && (old_mode == 2) != (mode == 2) {
            self.timer = Timer::default();
            self.initial_count = 0;
            self.tsc_deadline = 0;
        }
    }

    /// 0 one-shot, 1 periodic, 2 TSC deadline.
    pub(crate) fn timer_mode(&self) -> u32 {
        self.lvt[LVT_TIMER] >> 17 & 3
    }

    fn divisor(&self) -> u32 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }

    /// Time of a count: the bus runs at 1 GHz.
    fn duration(&self, count: u32) -> Duration {
        Duration::from_nanos(u64::from(count) * u64::from(self.divisor()))
    }

    fn write_count(&mut self, v: u32, now: Instant) {
        if self.timer_mode() == 2 {
            return;
        }
        self.initial_count = v;
        if v == 0 {
            self.timer = Timer::default();
            return;
        }
        let period = self.duration(v);
        self.timer = Timer {
            deadline: Some(now + period),
            period: period.max(MIN_PERIOD),
        };
    }

    fn current_count(&self, now: Instant) -> u32 {
        if self.timer_mode() == 2 {
            return 0;
        }
        let Some(at) = self.timer.deadline else {
            return 0;
        };
        let left = at.saturating_duration_since(now).as_nanos() / u128::from(self.divisor());
        u32::try_from(left)
            .unwrap_or(self.initial_count)
            .min(self.initial_count)
    }

    /// Arms or disarms (`None`) the TSC-deadline timer.
    pub(crate) fn set_tsc_deadline(&mut self, tsc: u64, at: Option<Instant>) {
        if self.timer_mode() != 2 {
            return;
        }
        self.tsc_deadline = if at.is_some() { tsc } else { 0 };
        self.timer = Timer {
            deadline: at,
            period: Duration::ZERO,
        };
    }

    /// Fires the timer if its time has come.
    pub(crate) fn expire(&mut self, now: Instant) {
        let Some(at) = self.timer.deadline else {
            return;
        };
        if at > now {
            return;
        }
        if self.timer_mode() == 1 && !self.timer.period.is_zero() {
            let late = now.duration_since(at).as_nanos();
            let skip = u32::try_from(late / self.timer.period.as_nanos()).unwrap_or(u32::MAX - 1);
            self.timer.deadline = Some(at + self.timer.period * (skip + 1));
        } else {
            self.timer.deadline = None;
            self.tsc_deadline = 0;
        }
        let lvt = self.lvt[LVT_TIMER];
        if lvt & MASKED == 0 {
            self.request(lvt as u8, false);
        }
    }

    /// The time by which the timer counts.
    pub(crate) fn now(&self) -> Instant {
        self.frozen.unwrap_or_else(Instant::now)
    }

    /// Time goes on after it was `frozen`.
    pub(crate) fn thaw(&mut self, now: Instant) {
        if let Some(since) = self.frozen.take() {
            let stood = now.saturating_duration_since(since);
            self.timer.deadline = self.timer.deadline.map(|at| at + stood);
        }
    }

    /// Sets APIC_BASE; `false` if the transition is not allowed.
    pub(crate) fn set_base(&mut self, v: u64) -> bool {
        let valid = 0x3fff_ffff_f000 | BASE_BSP | BASE_X2APIC | BASE_ENABLE;
        let mode = |b: u64| b & (BASE_ENABLE | BASE_X2APIC);
        let (old, new) = (mode(self.base), mode(v));
        let both = BASE_ENABLE | BASE_X2APIC;
        let bad = v & !valid != 0
            || new == BASE_X2APIC
            || old == both && new == BASE_ENABLE
            || old == 0 && new == both;
        if bad {
            return false;
        }
        self.base = v & !BASE_BSP | self.base & BASE_BSP;
        if old != new {
            if new == both {
                self.ldr = self.x2apic_ldr();
            } else if new == 0 {
                self.reset();
            }
        }
        true
    }

    /// All registers, as in `arch::LapicState`.
    pub(crate) fn save(&self, now: Instant) -> Vec<u32> {
        (0..64)
            .map(|r| match r {
                reg::ICR_HIGH => (self.icr >> 32) as u32,
                reg::DFR => self.dfr,
                // Pending errors are kept in the unused half of the register.
                reg::ESR => self.esr | self.esr_next << 16,
                _ => self.read(r, now).unwrap_or(0),
            })
            .collect()
    }

    /// Takes registers as [`Self::save`] gives them.
    pub(crate) fn restore(&mut self, regs: &[u32], base: u64, now: Instant) {
        let at = |r: u32| regs.get(r as usize).copied().unwrap_or(0);
        self.reset();
        self.base = base;
        self.tpr = at(reg::TPR) as u8;
        self.ldr = at(reg::LDR);
        self.dfr = at(reg::DFR) | 0x0fff_ffff;
        self.svr = at(reg::SVR) & 0x1ff;
        self.esr = at(reg::ESR) & 0xff;
        self.esr_next = at(reg::ESR) >> 16 & 0xff;
        self.icr = u64::from(at(reg::ICR)) | u64::from(at(reg::ICR_HIGH)) << 32;
        for n in 0..6 {
            self.lvt[n as usize] = at(reg::LVT_TIMER + n);
        }
        self.divide = at(reg::DIVIDE) & 0xb;
        for n in 0..8 {
            self.isr.set_word(n, at(reg::ISR + n));
            self.tmr.set_word(n, at(reg::TMR + n));
            self.irr.set_word(n, at(reg::IRR + n));
        }
        let count = at(reg::INITIAL_COUNT);
        if count != 0 && self.timer_mode() != 2 {
            self.write_count(count, now);
            let left = at(reg::CURRENT_COUNT);
            self.timer.deadline =
                (left != 0 || self.timer_mode() == 1).then(|| now + self.duration(left));
        }
    }
}
