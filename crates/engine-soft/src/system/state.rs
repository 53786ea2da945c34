//! The vCPU's complete state as data, and RESET, INIT and SIPI.

use std::sync::atomic::Ordering;

use arch::{CpuState, DescriptorTable, MpState, Segment, msr};
use engine::EngineError;

use crate::core::Core;
use crate::cpu::{Seg, cr, flag, pending, seg};
use crate::native;
use crate::system::SystemState;
use crate::system::control::{DR6_ONES, DR7_ONES};
use crate::system::descriptor::UNUSABLE;

fn bad(reason: impl Into<String>) -> EngineError {
    EngineError::BadState {
        engine: "soft",
        reason: reason.into(),
    }
}

fn to_segment(s: &Seg) -> Segment {
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        rights: s.rights,
    }
}

fn from_segment(s: &Segment) -> Seg {
    Seg::new(s.selector, s.base, s.limit, s.rights)
}

impl Core {
    /// The complete state.
    pub fn save_state(&mut self) -> CpuState {
        let msrs = msr::saved()
            .into_iter()
            .filter_map(|m| self.read_msr(m).ok().map(|v| (m, v)))
            .collect();
        let xsave = native::save_xsave(self);
        let bits = self.signal().peek();
        let tsc = self.stopped_tsc();
        let table = |(base, limit): (u64, u16)| DescriptorTable { base, limit };
        let c = &*self.cpu;
        CpuState {
            gpr: c.gpr,
            rip: c.rip,
            rflags: c.rflags,
            segments: std::array::from_fn(|n| to_segment(&c.seg[n])),
            ldtr: to_segment(&c.ldtr),
            tr: to_segment(&c.tr),
            gdtr: table(c.gdt),
            idtr: table(c.idt),
            cr0: c.cr0,
            cr2: c.cr2,
            cr3: c.cr3,
            cr4: c.cr4,
            cr8: u64::from(self.lapic.tpr() >> 4),
            dr: c.dr,
            xcr0: c.xcr0,
            xsave,
            msrs,
            lapic: self.lapic.save(),
            mp_state: if c.wait_for_sipi {
                MpState::WaitForSipi
            } else if c.halted {
                MpState::Halted
            } else {
                MpState::Running
            },
            tsc,
            system_time: Some(self.system_time(tsc)),
            interrupt_shadow: c.shadow,
            nmi_blocked: c.nmi_blocked,
            nmi_pending: bits & pending::NMI != 0 || self.system.nmi_waits,
            injected: self.system.injected,
        }
    }

    /// The state after power-on, at the machine's time.
    pub(crate) fn power_on(&mut self) {
        native::reset(self);
        self.system = SystemState::default();
        self.restore_registers(&CpuState::reset(self.index == 0));
        self.cpu.gpr[2] = u64::from(self.shared.cpuid.signature());
        self.cpu.pat = msr::PAT_RESET;
        self.cpu.efer = 0;
        self.sync_tsc();
        self.tlb_flush_all();
        self.update_mode();
    }

    /// Takes a complete state.
    ///
    /// # Errors
    /// [`EngineError::BadState`] if this CPU model cannot be in it; the vCPU
    /// must not run then.
    pub fn restore_state(&mut self, s: &CpuState) -> Result<(), EngineError> {
        if !self.xcr0_valid(s.xcr0) {
            return Err(bad(format!(
                "XCR0 {:#x} has features that the CPU model lacks; use the model it was saved with",
                s.xcr0
            )));
        }
        if s.cr0 & cr::CR0_PG != 0 && s.cr0 & cr::CR0_PE == 0 {
            return Err(bad("CR0 has paging without protection"));
        }
        native::restore_xsave(self, &s.xsave).map_err(bad)?;
        self.system = SystemState::default();
        self.restore_registers(s);
        self.restore_msrs(&s.msrs)?;
        if s.tsc != 0 {
            // A saved machine's time goes on; a reset state keeps this one's.
            let tsc = s.tsc.wrapping_sub(self.system.tsc_adjust);
            self.shared.tsc_base.set_tsc(tsc);
            self.restore_system_time(s.tsc, s.system_time);
        }
        self.system.injected = s.injected;
        self.sync_tsc();
        self.restore_apic(s);
        self.tlb_flush_all();
        self.update_mode();
        // The clock of KVM_SYSTEM_TIME is in memory already, and goes on with
        // the frequency by which it was made: another one, however close to it,
        // would be a jump.
        Ok(())
    }

    fn restore_registers(&mut self, s: &CpuState) {
        let c = &mut *self.cpu;
        c.gpr = s.gpr;
        c.rip = s.rip;
        c.rflags = s.rflags & 0x3f_7fd5 | flag::ONE;
        for (to, from) in c.seg.iter_mut().zip(&s.segments) {
            *to = from_segment(from);
        }
        c.ldtr = from_segment(&s.ldtr);
        c.tr = from_segment(&s.tr);
        c.gdt = (s.gdtr.base, s.gdtr.limit);
        c.idt = (s.idtr.base, s.idtr.limit);
        c.cr0 = s.cr0 | cr::CR0_ET;
        c.cr2 = s.cr2;
        c.cr3 = s.cr3;
        c.cr4 = s.cr4;
        c.dr = s.dr;
        c.dr[6] |= DR6_ONES;
        c.dr[7] |= DR7_ONES;
        c.xcr0 = s.xcr0;
        c.cpl = if c.cr0 & cr::CR0_PE == 0 {
            0
        } else if c.rflags & flag::VM != 0 {
            3
        } else if c.seg[seg::SS].rights & UNUSABLE != 0 {
            c.seg[seg::CS].selector as u8 & 3
        } else {
            c.seg[seg::SS].dpl()
        };
        c.shadow = s.interrupt_shadow;
        c.nmi_blocked = s.nmi_blocked;
        c.halted = s.mp_state == MpState::Halted;
        c.wait_for_sipi = s.mp_state == MpState::WaitForSipi;
    }

    fn restore_msrs(&mut self, msrs: &[(u32, u64)]) -> Result<(), EngineError> {
        self.cpu.pat = msr::PAT_RESET;
        self.cpu.efer = 0;
        for &(index, value) in msrs {
            match index {
                msr::EFER => self.cpu.efer = value,
                msr::TSC_ADJUST => self.system.tsc_adjust = value,
                // Restored memory holds the clock already.
                msr::KVM_WALL_CLOCK => self.system.kvm_wall_clock = value,
                msr::KVM_SYSTEM_TIME => self.system.kvm_system_time = value,
                msr::KVM_STEAL_TIME => self.system.kvm_steal_time = value,
                _ => self
                    .write_msr(index, value)
                    .map_err(|_| bad(format!("MSR {index:#x} cannot be {value:#x} here")))?,
            }
        }
        let lma = self.cpu.efer & cr::EFER_LME != 0 && self.cpu.paging();
        if lma {
            self.cpu.efer |= cr::EFER_LMA;
        } else {
            self.cpu.efer &= !cr::EFER_LMA;
        }
        Ok(())
    }

    fn restore_apic(&mut self, s: &CpuState) {
        let signal = self.signal().clone();
        signal.take(pending::NMI | pending::INTERRUPT | pending::INIT | pending::SIPI);
        self.lapic.restore(&s.lapic);
        if s.lapic.tsc_deadline != 0 {
            self.set_tsc_deadline(s.lapic.tsc_deadline);
        }
        self.system.nmi_waits = false;
        if s.nmi_pending {
            signal.raise(pending::NMI);
        }
    }
}

/// Registers after INIT (SDM vol. 3A, table 10-1): as after RESET, but the
/// x87 and vector registers, MSRs, TSC and the caches stay.
pub fn init_reset(core: &mut Core) {
    let reset = CpuState::reset(core.index == 0);
    let (cache, xcr0) = (core.cpu.cr0 & 0x6000_0000, core.cpu.xcr0);
    let efer = core.cpu.efer & !(cr::EFER_LMA | cr::EFER_LME);
    core.restore_registers(&reset);
    core.cpu.gpr[2] = u64::from(core.shared.cpuid.signature());
    core.cpu.cr0 = cache | cr::CR0_ET;
    core.cpu.xcr0 = xcr0;
    core.cpu.efer = efer;
    core.cpu.nmi_blocked = false;
    core.system.nmi_waits = false;
    core.lapic.init();
    core.tlb_flush_all();
    core.update_mode();
}

/// A SIPI starts a processor that waits for it.
pub fn startup(core: &mut Core, vector: u8) {
    let selector = u16::from(vector) << 8;
    core.cpu.seg[seg::CS] = Seg::new(selector, u64::from(selector) << 4, 0xffff, 0x9b);
    core.cpu.rip = 0;
    core.cpu.wait_for_sipi = false;
    core.cpu.halted = false;
    core.update_mode();
    // The signal's bits that came before the start are stale, but an
    // interrupt may already be requested.
    core.cpu
        .pending
        .fetch_or(pending::INTERRUPT, Ordering::SeqCst);
}
