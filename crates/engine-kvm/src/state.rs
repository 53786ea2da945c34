//! A vCPU's complete state, out of KVM and into it.

use arch::{CpuState, Injected, LapicState, MpState, exception, msr};
use engine::EngineError;
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs,
    kvm_lapic_state, kvm_msr_entry, kvm_sregs, kvm_vcpu_events, kvm_xcr, kvm_xcrs, kvm_xsave,
};

use crate::registers::{
    general, lapic_words, level_vectors, mp_state, put_lapic_words, segment, table, to_general,
    to_mp_state, to_segment, to_table,
};
use crate::vcpu::KvmVcpu;
use crate::{NAME, failed};

/// `kvm_vcpu_events.interrupt.shadow`: after MOV SS, after STI.
const SHADOWS: u8 = 3;
const SHADOW_STI: u8 = 2;
/// IA32_APIC_BASE after power-on: where, enabled, bootstrap processor.
const APIC_ENABLED: u64 = 1 << 11;
const APIC_BSP: u64 = 1 << 8;
/// Offset / 16 of LVT LINT0 and LINT1, and what firmware leaves there on the
/// bootstrap processor.
const LINTS: [(usize, u32); 2] = [(0x35, 0x700), (0x36, 0x400)];

/// Offset / 16 of LVT timer, and its mode.
const LVT_TIMER: usize = 0x32;
const TIMER_MODE: u32 = 3 << 17;

fn bad(reason: impl Into<String>) -> EngineError {
    EngineError::BadState {
        engine: NAME,
        reason: reason.into(),
    }
}

/// A refusal of KVM to take a part of a state.
fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |e| bad(format!("KVM does not take {what}: {e}"))
}

fn cannot(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |e| failed(format_args!("tell {what}"), e)
}

impl KvmVcpu {
    /// The complete state.
    pub(crate) fn save_state(&mut self) -> Result<CpuState, EngineError> {
        self.shared.interrupts.settle();
        // First: it lets KVM act on INIT and SIPI that have arrived.
        let mp = self.fd.get_mp_state().map_err(cannot("what a vCPU does"))?;
        let regs = self.fd.get_regs().map_err(cannot("registers"))?;
        let sregs = self.fd.get_sregs().map_err(cannot("system registers"))?;
        let debug = self
            .fd
            .get_debug_regs()
            .map_err(cannot("debug registers"))?;
        let xsave = self.fd.get_xsave().map_err(cannot("FPU registers"))?;
        let xcrs = self.fd.get_xcrs().map_err(cannot("XCR0"))?;
        let events = self.fd.get_vcpu_events().map_err(cannot("events"))?;
        let lapic = self.fd.get_lapic().map_err(cannot("a local APIC"))?;
        let msrs = self.save_msrs()?;
        let adjust = find(&msrs, msr::TSC_ADJUST).unwrap_or(0);
        let clock = &self.shared.clock;
        let image = xsave.region.iter().take(832 / 4);
        let deadline = self.deadline.or_else(|| self.read_msr(msr::TSC_DEADLINE));
        Ok(CpuState {
            gpr: general(&regs),
            rip: regs.rip,
            rflags: regs.rflags,
            segments: [
                &sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs,
            ]
            .map(segment),
            ldtr: segment(&sregs.ldt),
            tr: segment(&sregs.tr),
            gdtr: table(&sregs.gdt),
            idtr: table(&sregs.idt),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            dr: {
                let [a, b, c, d] = debug.db;
                [a, b, c, d, 0, 0, debug.dr6, debug.dr7]
            },
            xcr0: xcrs.xcrs.first().map_or(1, |x| x.value),
            xsave: image.flat_map(|w| w.to_le_bytes()).collect(),
            msrs,
            lapic: LapicState {
                regs: lapic_words(&lapic),
                base: sregs.apic_base,
                tsc_deadline: deadline.unwrap_or(0),
            },
            mp_state: mp_state(mp),
            tsc: clock.tsc().wrapping_add(adjust),
            system_time: clock.nanoseconds(),
            interrupt_shadow: events.interrupt.shadow & SHADOWS != 0,
            nmi_blocked: events.nmi.masked != 0 && events.nmi.injected == 0,
            nmi_pending: events.nmi.pending != 0 || events.nmi.injected != 0,
            injected: injected(&events),
        })
    }

    /// Which of [`msr::saved`] this KVM has.
    fn msr_list(&self) -> Vec<u32> {
        let list = self.shared.msrs.get_or_init(|| {
            let all = msr::saved().into_iter();
            all.filter(|m| self.read_msr(*m).is_some()).collect()
        });
        list.clone()
    }

    fn save_msrs(&self) -> Result<Vec<(u32, u64)>, EngineError> {
        let entries: Vec<_> = self.msr_list().into_iter().map(entry).collect();
        let mut list =
            Msrs::from_entries(&entries).map_err(|e| bad(format!("too many MSRs: {e:?}")))?;
        let read = self.fd.get_msrs(&mut list).map_err(cannot("MSRs"))?;
        if read != entries.len() {
            return Err(bad(format!(
                "KVM tells only {read} MSRs of {}",
                entries.len()
            )));
        }
        Ok(list.as_slice().iter().map(|m| (m.index, m.data)).collect())
    }

    /// Takes a complete state. If it fails, the vCPU must not run.
    pub(crate) fn restore_state(&mut self, s: &CpuState) -> Result<(), EngineError> {
        if s.xcr0 & !self.shared.cpuid.xcr0_mask() != 0 {
            return Err(bad(format!(
                "XCR0 {:#x} has features that the CPU model lacks; use the model it was saved with",
                s.xcr0
            )));
        }
        let mp = to_mp_state(s.mp_state);
        self.fd
            .set_mp_state(to_mp_state(MpState::Running))
            .map_err(refused("what a vCPU does"))?;
        self.fd
            .set_regs(&to_general(&s.gpr, s.rip, s.rflags | 2))
            .map_err(refused("the registers"))?;
        self.fd
            .set_sregs(&self.system_registers(s))
            .map_err(refused("the system registers"))?;
        self.restore_fpu(s)?;
        self.restore_msrs(&s.msrs)?;
        self.restore_lapic(s)?;
        self.fd
            .set_vcpu_events(&events(s))
            .map_err(refused("the events"))?;
        let debug = kvm_debugregs {
            db: [s.dr[0], s.dr[1], s.dr[2], s.dr[3]],
            dr6: s.dr[6] | 0xffff_0ff0,
            dr7: s.dr[7] | 0x400,
            ..Default::default()
        };
        self.fd
            .set_debug_regs(&debug)
            .map_err(refused("the debug registers"))?;
        self.fd
            .set_mp_state(mp)
            .map_err(refused("what a vCPU does"))?;
        if s.tsc != 0 {
            let adjust = find(&s.msrs, msr::TSC_ADJUST).unwrap_or(0);
            self.restore_time(s.tsc.wrapping_sub(adjust), s.system_time);
        }
        self.fd.get_kvm_run().ready_for_interrupt_injection = 0;
        Ok(())
    }

    fn restore_time(&self, tsc: u64, system_time: Option<u64>) {
        let clock = &self.shared.clock;
        clock.set_tsc(tsc);
        if self.index == 0 {
            let khz = u128::from(self.shared.cpuid.tsc_khz().max(1));
            let counted = u128::from(tsc) * 1_000_000 / khz;
            clock.set_nanoseconds(system_time.unwrap_or(counted as u64));
        }
    }

    fn system_registers(&self, s: &CpuState) -> kvm_sregs {
        let [es, cs, ss, ds, fs, gs] = s.segments.map(|s| to_segment(&s));
        let mut efer = find(&s.msrs, msr::EFER).unwrap_or(0);
        const LME: u64 = 1 << 8;
        const LMA: u64 = 1 << 10;
        efer &= !LMA;
        if efer & LME != 0 && s.cr0 >> 31 & 1 != 0 {
            efer |= LMA;
        }
        kvm_sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr: to_segment(&s.tr),
            ldt: to_segment(&s.ldtr),
            gdt: to_table(&s.gdtr),
            idt: to_table(&s.idtr),
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: s.cr8,
            efer,
            apic_base: match s.lapic.regs.is_empty() {
                false => s.lapic.base,
                true => self.apic_base_at_reset(),
            },
            interrupt_bitmap: [0; 4],
        }
    }

    fn apic_base_at_reset(&self) -> u64 {
        let first = if self.index == 0 { APIC_BSP } else { 0 };
        arch::layout::LAPIC_BASE | APIC_ENABLED | first
    }

    fn restore_fpu(&self, s: &CpuState) -> Result<(), EngineError> {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            reserved: 0,
            value: s.xcr0,
        };
        self.fd.set_xcrs(&xcrs).map_err(refused("XCR0"))?;
        if s.xsave.len() < 576 || s.xsave.len() > 4096 || !s.xsave.len().is_multiple_of(4) {
            return Err(bad(format!(
                "its FPU registers have {} bytes, not 576 to 4096",
                s.xsave.len()
            )));
        }
        let mut xsave = kvm_xsave::default();
        for (to, from) in xsave.region.iter_mut().zip(s.xsave.as_chunks().0) {
            *to = u32::from_le_bytes(*from);
        }
        // SAFETY: no features beyond 4096 bytes were enabled for the guest,
        // so KVM reads no more than the structure.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(refused("the FPU registers"))
    }

    /// Sets all MSRs; what the state does not have is as after power-on. What
    /// this KVM lacks may be missing while it has no effect.
    fn restore_msrs(&self, state: &[(u32, u64)]) -> Result<(), EngineError> {
        let mut entries: Vec<kvm_msr_entry> = self
            .msr_list()
            .into_iter()
            .map(|index| kvm_msr_entry {
                data: find(state, index).unwrap_or_else(|| msr::at_power_on(index)),
                ..entry(index)
            })
            .filter(|m| m.index != msr::EFER)
            .collect();
        for (index, value) in state {
            let known = *index == msr::EFER || entries.iter().any(|m| m.index == *index);
            if !known && *value != msr::at_power_on(*index) {
                return Err(bad(format!("KVM has no MSR {index:#x} here")));
            }
        }
        while !entries.is_empty() {
            let list =
                Msrs::from_entries(&entries).map_err(|e| bad(format!("too many MSRs: {e:?}")))?;
            let set = self.fd.set_msrs(&list).map_err(refused("the MSRs"))?;
            let Some(failed) = entries.get(set) else {
                break;
            };
            let (index, value) = (failed.index, failed.data);
            if value != msr::at_power_on(index) && self.read_msr(index) != Some(value) {
                return Err(bad(format!("MSR {index:#x} cannot be {value:#x} here")));
            }
            tracing::debug!(index, value, "KVM keeps an MSR as it is");
            entries.drain(..=set);
        }
        Ok(())
    }

    fn restore_lapic(&mut self, s: &CpuState) -> Result<(), EngineError> {
        let mut page = self.fd.get_lapic().map_err(cannot("a local APIC"))?;
        let mode =
            |page: &kvm_lapic_state| lapic_words(page).get(LVT_TIMER).map(|v| v & TIMER_MODE);
        let mode_before = mode(&page);
        if s.lapic.regs.is_empty() {
            let mut words = self.reset_lapic.clone();
            if words.is_empty() {
                words = lapic_words(&page);
                self.reset_lapic.clone_from(&words);
            }
            for (at, value) in LINTS.iter().filter(|_| self.index == 0) {
                if let Some(lint) = words.get_mut(*at) {
                    *lint = *value;
                }
            }
            put_lapic_words(&mut page, &words);
        } else {
            put_lapic_words(&mut page, &s.lapic.regs);
        }
        let set = || self.fd.set_lapic(&page).map_err(refused("the local APIC"));
        set()?;
        if mode(&page) != mode_before {
            // Another mode of its timer makes KVM forget the count.
            set()?;
        }
        self.deadline = Some(s.lapic.tsc_deadline);
        for vector in level_vectors(&s.lapic) {
            self.shared.interrupts.expect_end(self.index, vector);
        }
        Ok(())
    }

    /// A halted vCPU goes on.
    pub(crate) fn wake(&mut self) -> Result<(), EngineError> {
        let mp = self.fd.get_mp_state().map_err(cannot("what a vCPU does"))?;
        if mp_state(mp) == MpState::Halted {
            let running = to_mp_state(MpState::Running);
            let done = self.fd.set_mp_state(running);
            done.map_err(|e| failed("wake a vCPU", e))?;
        }
        Ok(())
    }
}

fn entry(index: u32) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        ..Default::default()
    }
}

fn find(msrs: &[(u32, u64)], index: u32) -> Option<u64> {
    msrs.iter().find(|(i, _)| *i == index).map(|(_, v)| *v)
}

/// What KVM had begun to deliver and that does not come back by itself. The
/// instruction of a software interrupt, or of a fault, is executed again.
fn injected(events: &kvm_vcpu_events) -> Option<Injected> {
    let e = &events.exception;
    if e.injected != 0 || e.pending != 0 {
        return (!matches!(e.nr, exception::BP | exception::OF)).then_some(Injected {
            vector: e.nr,
            exception: true,
            error: (e.has_error_code != 0).then_some(e.error_code),
        });
    }
    let i = &events.interrupt;
    (i.injected != 0 && i.soft == 0).then_some(Injected {
        vector: i.nr,
        exception: false,
        error: None,
    })
}

fn events(s: &CpuState) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if s.interrupt_shadow {
        events.interrupt.shadow = SHADOW_STI;
    }
    events.nmi.masked = u8::from(s.nmi_blocked);
    events.nmi.pending = u8::from(s.nmi_pending);
    match s.injected {
        Some(i) if i.exception => {
            events.exception.injected = 1;
            events.exception.nr = i.vector;
            events.exception.has_error_code = u8::from(i.error.is_some());
            events.exception.error_code = i.error.unwrap_or(0);
        }
        Some(i) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = i.vector;
        }
        None => {}
    }
    events
}
