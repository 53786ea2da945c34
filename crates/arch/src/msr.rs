//! Model-specific register numbers (SDM vol. 4; AMD APM vol. 2, appendix A;
//! Linux Documentation/virt/kvm/x86/msr.rst for the KVM ones).
#![allow(missing_docs)]

pub const TSC: u32 = 0x10;
pub const PLATFORM_ID: u32 = 0x17;
pub const APIC_BASE: u32 = 0x1b;
pub const FEATURE_CONTROL: u32 = 0x3a;
pub const TSC_ADJUST: u32 = 0x3b;
pub const SPEC_CTRL: u32 = 0x48;
pub const PRED_CMD: u32 = 0x49;
pub const BIOS_UPDATE: u32 = 0x79;
pub const BIOS_SIGN_ID: u32 = 0x8b;
pub const MTRR_CAP: u32 = 0xfe;
pub const ARCH_CAPABILITIES: u32 = 0x10a;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const MCG_CAP: u32 = 0x179;
pub const MCG_STATUS: u32 = 0x17a;
pub const MISC_ENABLE: u32 = 0x1a0;
pub const DEBUG_CTL: u32 = 0x1d9;
/// First of 8 pairs of base and mask.
pub const MTRR_PHYS_BASE0: u32 = 0x200;
pub const MTRR_PHYS_LAST: u32 = 0x20f;
pub const MTRR_FIX_64K: u32 = 0x250;
pub const MTRR_FIX_16K_0: u32 = 0x258;
pub const MTRR_FIX_16K_1: u32 = 0x259;
/// First of 8.
pub const MTRR_FIX_4K_0: u32 = 0x268;
pub const MTRR_FIX_4K_7: u32 = 0x26f;
pub const PAT: u32 = 0x277;
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
pub const TSC_DEADLINE: u32 = 0x6e0;
/// First x2APIC register: 0x800 + xAPIC offset / 16.
pub const X2APIC: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x83f;

pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const TSC_AUX: u32 = 0xc000_0103;

pub const AMD_SYSCFG: u32 = 0xc001_0010;
pub const AMD_HWCR: u32 = 0xc001_0015;
pub const AMD_NB_CFG: u32 = 0xc001_001f;
pub const AMD_LS_CFG: u32 = 0xc001_1020;
pub const AMD_DE_CFG: u32 = 0xc001_1029;
pub const AMD_INT_PENDING: u32 = 0xc001_0055;

pub const KVM_WALL_CLOCK_OLD: u32 = 0x11;
pub const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
pub const KVM_STEAL_TIME: u32 = 0x4b56_4d03;

/// EFER bit 21 (AMD): automatic IBRS.
pub const EFER_AUTO_IBRS: u64 = 1 << 21;
/// What this CPU says of itself in IA32_ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO. All hold for
/// an engine that never executes guest code speculatively in another
/// privilege's name: guest privilege levels exist in software only.
pub const ARCH_CAPABILITIES_VALUE: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// IA32_PAT after RESET.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// The MSRs in `CpuState::msrs`, in ascending order. Those of APIC, TSC and
/// XCR0 have fields of their own.
#[must_use]
pub fn saved() -> Vec<u32> {
    let mut list = vec![
        TSC_ADJUST,
        SPEC_CTRL,
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
        MCG_STATUS,
        MISC_ENABLE,
    ];
    list.extend(MTRR_PHYS_BASE0..=MTRR_PHYS_LAST);
    list.push(MTRR_FIX_64K);
    list.extend([MTRR_FIX_16K_0, MTRR_FIX_16K_1]);
    list.extend(MTRR_FIX_4K_0..=MTRR_FIX_4K_7);
    list.extend([
        PAT,
        MTRR_DEF_TYPE,
        KVM_WALL_CLOCK,
        KVM_SYSTEM_TIME,
        KVM_STEAL_TIME,
        EFER,
        STAR,
        LSTAR,
        CSTAR,
        SFMASK,
        KERNEL_GS_BASE,
        TSC_AUX,
    ]);
    list
}

/// What an MSR of [`saved`] holds when a machine is switched on: fast strings,
/// and all memory write-back, as firmware leaves it.
#[must_use]
pub fn at_power_on(index: u32) -> u64 {
    match index {
        MISC_ENABLE => 1,
        MTRR_DEF_TYPE => 0xc06,
        MTRR_FIX_64K | MTRR_FIX_16K_0 | MTRR_FIX_16K_1 | MTRR_FIX_4K_0..=MTRR_FIX_4K_7 => {
            0x0606_0606_0606_0606
        }
        PAT => PAT_RESET,
        _ => 0,
    }
}
