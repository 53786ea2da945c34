//! Local APICs (SDM vol. 3A, chapter 11): xAPIC and x2APIC mode.
//!
//! One short lock per APIC; what the vCPU asks for all the time (is anything
//! deliverable, does the timer run) is mirrored in atomics.

mod ipi;
mod registers;
mod timer;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use arch::{Exception, LapicState, msr};
use parking_lot::Mutex;

use crate::core::{Core, Exec};
use crate::cpu::pending;
use crate::world::Signal;
use ipi::{Message, send_command};
use registers::{BASE_ENABLE, BASE_X2APIC, Effect, LVT_LINT0, MASKED, State, reg};
use timer::{NEVER, from_ns, to_ns};

pub use ipi::Router;
pub use timer::{TimerThread, Wheel};

/// One vCPU's local APIC. Shared between the vCPU, the other vCPUs (IPIs) and
/// the devices (MSIs).
pub struct Lapic {
    state: Mutex<State>,
    signal: Arc<Signal>,
    wheel: Arc<Wheel>,
    /// 0x100 | the vector that would be delivered now; 0: none.
    ready: AtomicU32,
    /// The 8259's request reaches the processor.
    extint: AtomicBool,
    /// APIC_BASE.
    base: AtomicU64,
    /// Deadline of the timer, as of `timer::to_ns`.
    deadline: AtomicU64,
    /// 0x100 | vector of the last SIPI; 0: none.
    sipi: AtomicU32,
}

impl Lapic {
    /// The APIC of the vCPU that `signal` reaches, with this id; id 0 is the
    /// bootstrap processor's. `wheel` fires its timer.
    pub fn new(id: u32, signal: Arc<Signal>, wheel: Arc<Wheel>) -> Arc<Self> {
        let state = State::new(id);
        let lapic = Arc::new(Self {
            base: AtomicU64::new(state.base),
            state: Mutex::new(state),
            signal,
            wheel: wheel.clone(),
            ready: AtomicU32::new(0),
            extint: AtomicBool::new(false),
            deadline: AtomicU64::new(NEVER),
            sipi: AtomicU32::new(0),
        });
        wheel.add(&lapic);
        lapic
    }

    /// Changes the state, then brings the mirrors up to date and tells the
    /// vCPU and the timer thread.
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut s = self.state.lock();
        let r = f(&mut s);
        let ready = s.deliverable().map_or(0, |v| 0x100 | u32::from(v));
        let extint = s.extint();
        let runs = s.timer.deadline.filter(|_| s.frozen.is_none());
        let deadline = runs.map_or(NEVER, to_ns);
        let was_ready = self.ready.swap(ready, Ordering::SeqCst);
        let was_extint = self.extint.swap(extint, Ordering::SeqCst);
        let was_deadline = self.deadline.swap(deadline, Ordering::SeqCst);
        drop(s);
        if ready > was_ready || extint && !was_extint {
            self.signal.raise(pending::INTERRUPT);
        }
        if deadline < was_deadline || deadline != NEVER && deadline != was_deadline {
            self.wheel.arm(deadline);
        }
        r
    }

    /// Whether a guest-physical address is this APIC's register page now.
    #[inline]
    pub fn claims(&self, gpa: u64) -> bool {
        let base = self.base.load(Ordering::Relaxed);
        base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE && (gpa ^ base) >> 12 == 0
    }

    /// The vector that interrupts the processor now (if RFLAGS.IF lets it).
    #[inline]
    pub fn deliverable(&self) -> Option<u8> {
        let r = self.ready.load(Ordering::SeqCst);
        (r != 0).then_some(r as u8)
    }

    /// Whether the 8259 pair has a request for this processor; then
    /// `Bus::acknowledge_extint` gives the vector.
    #[inline]
    pub fn extint_pending(&self) -> bool {
        self.extint.load(Ordering::SeqCst)
    }

    /// Whether anything could be delivered now.
    #[inline]
    pub fn wants_attention(&self) -> bool {
        self.deliverable().is_some() || self.extint_pending()
    }

    /// The processor takes the vector that [`Self::deliverable`] named.
    pub fn accept(&self, vector: u8) {
        self.with(|s| s.accept(vector));
    }

    /// A fixed interrupt arrives.
    pub fn request(&self, vector: u8, level: bool) {
        self.with(|s| s.request(vector, level));
    }

    /// Level of the 8259 pair's INTR at LINT0.
    pub fn set_extint(&self, level: bool) {
        let nmi = self.with(|s| {
            let rises = level && !s.extint_line;
            s.extint_line = level;
            let lint0 = s.lvt[LVT_LINT0];
            if !rises || lint0 & MASKED != 0 {
                return false;
            }
            match lint0 >> 8 & 7 {
                0 => s.request(lint0 as u8, false),
                4 => return true,
                _ => {}
            }
            false
        });
        if nmi {
            self.signal.raise(pending::NMI);
        }
    }

    /// Vector of a SIPI that arrived, once.
    pub fn take_sipi(&self) -> Option<u8> {
        let v = self.sipi.swap(0, Ordering::SeqCst);
        (v != 0).then_some(v as u8)
    }

    /// When the timer fires next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let d = self.deadline_ns();
        (d != NEVER).then(|| from_ns(d))
    }

    #[inline]
    pub(crate) fn deadline_ns(&self) -> u64 {
        self.deadline.load(Ordering::SeqCst)
    }

    /// Fires the timer if its time has come.
    pub fn poll_timer(&self, now: Instant) {
        let d = self.deadline_ns();
        if d != NEVER && d <= to_ns(now) {
            self.with(|s| s.expire(now));
        }
    }

    /// Task priority register; bits 7 to 4 are CR8.
    pub fn tpr(&self) -> u8 {
        self.state.lock().tpr()
    }

    /// Sets the task priority register.
    pub fn set_tpr(&self, v: u8) {
        self.with(|s| s.set_tpr(v));
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// IA32_TSC_DEADLINE; 0 while disarmed.
    pub fn tsc_deadline(&self) -> u64 {
        self.state.lock().tsc_deadline
    }

    /// INIT (not RESET): all registers but the id and APIC_BASE.
    pub fn init(&self) {
        self.with(State::reset);
    }

    fn set_base(&self, v: u64) -> bool {
        self.with(|s| {
            let ok = s.set_base(v);
            self.base.store(s.base, Ordering::Relaxed);
            ok
        })
    }

    fn priority(&self) -> u8 {
        self.state.lock().ppr()
    }

    fn accepts(&self, m: &Message) -> bool {
        self.state.lock().matches(m.dest, m.logical, m.wide)
    }

    fn read(&self, r: u32) -> Option<u32> {
        let s = self.state.lock();
        s.read(r, s.now())
    }

    /// Holds the timer at this time, until [`Self::thaw`].
    pub(crate) fn freeze(&self, now: Instant) {
        self.with(|s| {
            s.frozen.get_or_insert(now);
        });
    }

    /// The timer goes on: what was due in some time is due in the same time
    /// from `now` on.
    pub(crate) fn thaw(&self, now: Instant) {
        self.with(|s| s.thaw(now));
    }

    /// Registers, for `CpuState`.
    pub fn save(&self) -> LapicState {
        let s = self.state.lock();
        LapicState {
            regs: s.save(s.now()),
            base: s.base,
            tsc_deadline: s.tsc_deadline,
        }
    }

    /// Takes registers; the TSC deadline is armed by the caller.
    pub fn restore(&self, state: &LapicState) {
        self.with(|s| {
            if state.regs.is_empty() {
                s.base = s.base & !(BASE_ENABLE | BASE_X2APIC) | BASE_ENABLE;
                s.reset();
            } else {
                s.restore(&state.regs, state.base, s.now());
            }
            self.base.store(s.base, Ordering::Relaxed);
        });
        // Whatever is deliverable must be seen by the run loop.
        self.signal.raise(pending::INTERRUPT);
    }
}

impl Core {
    /// A load from the APIC page: 32-bit registers at multiples of 16.
    pub(crate) fn lapic_mmio_read(&mut self, gpa: u64, out: &mut [u8]) {
        out.fill(0);
        let word = self.lapic.read((gpa >> 4) as u32 & 0xff).unwrap_or(0);
        let at = (gpa & 15) as usize;
        for (b, v) in out.iter_mut().zip(word.to_le_bytes().iter().skip(at)) {
            *b = *v;
        }
    }

    /// A store to the APIC page: only aligned 32-bit ones count.
    pub(crate) fn lapic_mmio_write(&mut self, gpa: u64, data: &[u8]) {
        let Some(word) = data.first_chunk::<4>() else {
            return;
        };
        if gpa & 15 == 0 {
            let v = u32::from_le_bytes(*word);
            self.lapic_write((gpa >> 4) as u32 & 0xff, u64::from(v));
        }
    }

    /// Writes a register and does what follows from it; `false`: #GP.
    fn lapic_write(&mut self, r: u32, v: u64) -> bool {
        let effect = self.lapic.with(|s| s.write(r, v, s.now()));
        match effect {
            Effect::None => {}
            Effect::Eoi(vector) => self.shared.bus().end_of_interrupt(vector),
            Effect::Send(icr) => {
                let x2apic = self.lapic.base() & BASE_X2APIC != 0;
                send_command(&self.shared.lapics, &self.lapic, icr, x2apic);
            }
            Effect::Bad => return false,
        }
        true
    }

    fn x2apic_register(&self, index: u32) -> Exec<u32> {
        if self.lapic.base() & BASE_X2APIC == 0 {
            return Err(Exception::gp0().into());
        }
        Ok(index - msr::X2APIC)
    }

    /// `rdmsr` of an x2APIC register.
    pub(crate) fn lapic_msr_read(&mut self, index: u32) -> Exec<u64> {
        let r = self.x2apic_register(index)?;
        if r == reg::ICR {
            return Ok(self.lapic.state.lock().icr());
        }
        match self.lapic.read(r) {
            Some(v) if r != reg::APR => Ok(u64::from(v)),
            _ => Err(Exception::gp0().into()),
        }
    }

    /// `wrmsr` of an x2APIC register.
    pub(crate) fn lapic_msr_write(&mut self, index: u32, v: u64) -> Exec {
        let r = self.x2apic_register(index)?;
        if self.lapic_write(r, v) {
            Ok(())
        } else {
            Err(Exception::gp0().into())
        }
    }

    /// `wrmsr` of IA32_APIC_BASE.
    pub(crate) fn write_apic_base(&mut self, v: u64) -> Exec {
        if self.lapic.set_base(v) {
            Ok(())
        } else {
            Err(Exception::gp0().into())
        }
    }

    /// `wrmsr` of IA32_TSC_DEADLINE.
    pub(crate) fn set_tsc_deadline(&mut self, tsc: u64) {
        let at = (tsc != 0).then(|| self.instant_of_tsc(tsc));
        self.lapic.with(|s| s.set_tsc_deadline(tsc, at));
        if at.is_some() {
            // Without a detour through the timer thread if it is due already.
            self.lapic.poll_timer(Instant::now());
        }
    }
}
