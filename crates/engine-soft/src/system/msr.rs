//! RDMSR and WRMSR (SDM vol. 4). Unknown registers raise #GP(0).

use arch::cpuid::Vendor;
use arch::{Exception, Injected, msr};

use crate::core::{Core, Exec};
use crate::cpu::{cr, seg};
use crate::interpret::operand::canonical;

/// System state that generated code never looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemState {
    /// IA32_TSC_ADJUST: what the guest has added to its TSC.
    pub tsc_adjust: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_default: u64,
    /// Variable MTRRs: base, mask, base …
    pub mtrr_variable: [u64; 16],
    /// Fixed MTRRs: 64K, 2 of 16K, 8 of 4K.
    pub mtrr_fixed: [u64; 11],
    /// KVM_SYSTEM_TIME: address of the vCPU's time structure, bit 0 = on.
    pub kvm_system_time: u64,
    /// KVM_WALL_CLOCK.
    pub kvm_wall_clock: u64,
    /// KVM_STEAL_TIME: a guest that KVM ran before may have set it; what it
    /// points to is left as it is.
    pub kvm_steal_time: u64,
    /// What another engine had begun to deliver: comes first.
    pub injected: Option<Injected>,
    /// An NMI has come while NMIs are blocked: `iret` raises it again. In the
    /// signal it would keep an idle vCPU awake.
    pub nmi_waits: bool,
    /// IA32_BIOS_SIGN_ID.
    pub microcode: u64,
}

impl Default for SystemState {
    fn default() -> Self {
        Self {
            tsc_adjust: 0,
            // Fast strings.
            misc_enable: 1,
            spec_ctrl: 0,
            mcg_status: 0,
            // All memory write-back, as firmware leaves it.
            mtrr_default: 0xc06,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0x0606_0606_0606_0606; 11],
            kvm_system_time: 0,
            kvm_wall_clock: 0,
            kvm_steal_time: 0,
            injected: None,
            nmi_waits: false,
            microcode: 0x0100_0065 << 32,
        }
    }
}

/// 8 variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = 8 | 1 << 8 | 1 << 10;
/// MISC_ENABLE bits that exist.
const MISC_ENABLE_VALID: u64 = 1 | 1 << 3 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 22;

fn fixed_mtrr(index: u32) -> Option<usize> {
    match index {
        msr::MTRR_FIX_64K => Some(0),
        msr::MTRR_FIX_16K_0 | msr::MTRR_FIX_16K_1 => {
            Some((index - msr::MTRR_FIX_16K_0) as usize + 1)
        }
        msr::MTRR_FIX_4K_0..=msr::MTRR_FIX_4K_7 => Some((index - msr::MTRR_FIX_4K_0) as usize + 3),
        _ => None,
    }
}

fn fault<T>() -> Exec<T> {
    Err(Exception::gp0().into())
}

/// Memory types of MTRRs: UC, WC, WT, WP, WB.
fn memory_type(t: u64) -> bool {
    matches!(t & 0xff, 0 | 1 | 4 | 5 | 6)
}

fn pat_valid(v: u64) -> bool {
    v.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7))
}

/// `rdmsr`.
pub(crate) fn rdmsr(core: &mut Core) -> Exec {
    core.need_cpl0()?;
    let v = core.read_msr(core.cpu.gpr[1] as u32)?;
    core.cpu.gpr[0] = v & 0xffff_ffff;
    core.cpu.gpr[2] = v >> 32;
    Ok(())
}

/// `wrmsr`.
pub(crate) fn wrmsr(core: &mut Core) -> Exec {
    core.need_cpl0()?;
    let v = core.cpu.gpr[0] & 0xffff_ffff | core.cpu.gpr[2] << 32;
    core.write_msr(core.cpu.gpr[1] as u32, v)
}

impl Core {
    /// Value of an MSR.
    ///
    /// # Errors
    /// #GP(0) if the CPU model lacks it.
    pub fn read_msr(&mut self, index: u32) -> Exec<u64> {
        let c = &self.cpu;
        let s = &self.system;
        Ok(match index {
            msr::FS_BASE => c.seg[seg::FS].base,
            msr::GS_BASE => c.seg[seg::GS].base,
            msr::KERNEL_GS_BASE => c.kernel_gs_base,
            msr::TSC => self.guest_tsc(),
            msr::TSC_DEADLINE => self.lapic.tsc_deadline(),
            msr::X2APIC..=msr::X2APIC_LAST => return self.lapic_msr_read(index),
            msr::EFER => c.efer,
            msr::STAR => c.star,
            msr::LSTAR => c.lstar,
            msr::CSTAR => c.cstar,
            msr::SFMASK => c.sfmask,
            msr::TSC_AUX => c.tsc_aux,
            msr::TSC_ADJUST => s.tsc_adjust,
            msr::SYSENTER_CS => c.sysenter_cs,
            msr::SYSENTER_ESP => c.sysenter_esp,
            msr::SYSENTER_EIP => c.sysenter_eip,
            msr::APIC_BASE => self.lapic.base(),
            msr::PAT => c.pat,
            msr::SPEC_CTRL => s.spec_ctrl,
            msr::ARCH_CAPABILITIES => msr::ARCH_CAPABILITIES_VALUE,
            msr::BIOS_SIGN_ID => s.microcode,
            msr::MISC_ENABLE => s.misc_enable,
            msr::MTRR_CAP => MTRR_CAP,
            msr::MTRR_DEF_TYPE => s.mtrr_default,
            msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_LAST => {
                s.mtrr_variable[(index - msr::MTRR_PHYS_BASE0) as usize]
            }
            msr::MCG_STATUS => s.mcg_status,
            msr::MCG_CAP | msr::PLATFORM_ID | msr::DEBUG_CTL => 0,
            // Locked, with nothing enabled.
            msr::FEATURE_CONTROL if self.intel() => 1,
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_OLD => s.kvm_system_time,
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_OLD => s.kvm_wall_clock,
            msr::KVM_STEAL_TIME => s.kvm_steal_time,
            // TSC counts at the P0 frequency.
            msr::AMD_HWCR if !self.intel() => 1 << 24,
            // LFENCE serializes.
            msr::AMD_DE_CFG if !self.intel() => 2,
            // Extended configuration through port 0xcf8 is on.
            msr::AMD_NB_CFG if !self.intel() => 1 << 46,
            msr::AMD_SYSCFG | msr::AMD_LS_CFG | msr::AMD_INT_PENDING if !self.intel() => 0,
            _ => match fixed_mtrr(index) {
                Some(n) => s.mtrr_fixed[n],
                None => return fault(),
            },
        })
    }

    /// Sets an MSR.
    ///
    /// # Errors
    /// #GP(0) if the CPU model lacks it, or it cannot have the value.
    pub fn write_msr(&mut self, index: u32, v: u64) -> Exec {
        match index {
            msr::FS_BASE | msr::GS_BASE | msr::KERNEL_GS_BASE => return self.write_base(index, v),
            msr::TSC_DEADLINE => self.set_tsc_deadline(v),
            msr::X2APIC..=msr::X2APIC_LAST => return self.lapic_msr_write(index, v),
            msr::EFER => return self.write_efer(v),
            msr::STAR => self.cpu.star = v,
            msr::LSTAR | msr::CSTAR | msr::SYSENTER_ESP | msr::SYSENTER_EIP => {
                return self.write_entry(index, v);
            }
            msr::SFMASK if v >> 32 == 0 => self.cpu.sfmask = v,
            msr::SYSENTER_CS => self.cpu.sysenter_cs = v & 0xffff_ffff,
            msr::TSC_AUX if v >> 32 == 0 => self.cpu.tsc_aux = v,
            msr::TSC => {
                let delta = v.wrapping_sub(self.guest_tsc());
                self.move_tsc(delta);
            }
            msr::TSC_ADJUST => {
                let delta = v.wrapping_sub(self.system.tsc_adjust);
                self.move_tsc(delta);
            }
            msr::APIC_BASE => return self.write_apic_base(v),
            msr::PAT if pat_valid(v) => self.cpu.pat = v,
            msr::SPEC_CTRL if v & !7 == 0 => self.system.spec_ctrl = v,
            msr::PRED_CMD if v & !1 == 0 => {}
            msr::BIOS_SIGN_ID | msr::BIOS_UPDATE | msr::DEBUG_CTL => {}
            msr::MISC_ENABLE if v & !MISC_ENABLE_VALID == 0 => self.system.misc_enable = v,
            msr::MTRR_DEF_TYPE if v & !0xcff == 0 && memory_type(v) => self.system.mtrr_default = v,
            msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_LAST => {
                return self.write_variable_mtrr(index, v);
            }
            msr::MCG_STATUS if v & !7 == 0 => self.system.mcg_status = v,
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_OLD => {
                self.system.kvm_system_time = v;
                self.write_pvclock();
            }
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_OLD => {
                self.system.kvm_wall_clock = v;
                self.write_wall_clock(v);
            }
            msr::KVM_STEAL_TIME => self.system.kvm_steal_time = v,
            msr::AMD_HWCR
            | msr::AMD_NB_CFG
            | msr::AMD_DE_CFG
            | msr::AMD_SYSCFG
            | msr::AMD_LS_CFG
                if !self.intel() => {}
            _ => {
                let Some(n) = fixed_mtrr(index) else {
                    return fault();
                };
                if !v.to_le_bytes().iter().all(|t| memory_type(u64::from(*t))) {
                    return fault();
                }
                self.system.mtrr_fixed[n] = v;
            }
        }
        Ok(())
    }

    fn intel(&self) -> bool {
        self.shared.cpuid.vendor() == Vendor::Intel
    }

    fn write_base(&mut self, index: u32, v: u64) -> Exec {
        if !canonical(v) {
            return fault();
        }
        match index {
            msr::FS_BASE => self.cpu.seg[seg::FS].base = v,
            msr::GS_BASE => self.cpu.seg[seg::GS].base = v,
            _ => self.cpu.kernel_gs_base = v,
        }
        Ok(())
    }

    fn write_entry(&mut self, index: u32, v: u64) -> Exec {
        if !canonical(v) {
            return fault();
        }
        match index {
            msr::LSTAR => self.cpu.lstar = v,
            msr::CSTAR => self.cpu.cstar = v,
            msr::SYSENTER_ESP => self.cpu.sysenter_esp = v,
            _ => self.cpu.sysenter_eip = v,
        }
        Ok(())
    }

    fn write_efer(&mut self, v: u64) -> Exec {
        let mut valid = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        if !self.intel() {
            valid |= msr::EFER_AUTO_IBRS;
        }
        let old = self.cpu.efer;
        let flips_lme = (old ^ v) & cr::EFER_LME != 0;
        if v & !valid != 0 || flips_lme && self.cpu.paging() {
            return fault();
        }
        self.cpu.efer = v & !cr::EFER_LMA | old & cr::EFER_LMA;
        if (old ^ v) & cr::EFER_NXE != 0 {
            self.tlb_flush_all();
        }
        self.update_mode();
        Ok(())
    }

    fn write_variable_mtrr(&mut self, index: u32, v: u64) -> Exec {
        let mask = index & 1 != 0;
        let low = if mask { 0x800 } else { 0xff };
        let valid = ((1u64 << arch::cpuid::PHYSICAL_BITS) - 1) & !0xfff | low;
        if v & !valid != 0 || !mask && !memory_type(v) {
            return fault();
        }
        self.system.mtrr_variable[(index - msr::MTRR_PHYS_BASE0) as usize] = v;
        Ok(())
    }

    /// Adds to the guest's TSC.
    fn move_tsc(&mut self, delta: u64) {
        self.cpu.tsc_offset = self.cpu.tsc_offset.wrapping_add(delta);
        self.system.tsc_adjust = self.system.tsc_adjust.wrapping_add(delta);
        let deadline = self.lapic.tsc_deadline();
        if deadline != 0 {
            self.set_tsc_deadline(deadline);
        }
        self.write_pvclock();
    }
}
