//! CPUID where the host's CPU executes guest code itself: what its owner (KVM)
//! supports limits every model, and the truth about speculation is shown, which
//! the software engine has no need of.

use super::{CpuChoice, CpuidTable, Features, HostCpu, ModelUnavailable, bit};

/// Leaf 7.0 EDX: MD_CLEAR, SPEC_CTRL, STIBP, SSBD: what a guest's kernel needs
/// to defend itself, and what the software engine executes too.
pub(crate) const MITIGATIONS: u32 = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 31;
/// Leaf 0x8000_0008 EBX: XSAVEERPTR, IBPB, IBRS, STIBP, their preferred uses,
/// SSBD, SSB_NO, BTC_NO, IBPB_RET.
const AMD_MITIGATIONS: u32 = 1 << 2
    | 1 << 12
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 18
    | 1 << 19
    | 1 << 24
    | 1 << 26
    | 1 << 29
    | 1 << 30;
/// Leaf 0x8000_0021 EAX: LFENCE serializing, null selectors clear the base,
/// automatic IBRS, the SRSO bits, VERW_CLEAR.
const AMD_X21_EAX: u32 = 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 0x1f << 27;
/// Leaf 0x8000_0021 ECX: TSA_SQ_NO, TSA_L1_NO.
const AMD_X21_ECX: u32 = 1 << 1 | 1 << 2;
/// KVM's leaf 0x4000_0001 EAX: both clocks, no I/O delay, steal time, stable
/// clock. None of them leaves a guest behind that the software engine could
/// not take over.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 24;

/// What a host's KVM can give to guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// The CPU, with those features that KVM supports.
    pub cpu: HostCpu,
    /// Leaf 0x4000_0001 EAX as KVM supports it.
    pub kvm_features: u32,
    /// Physical address bits (leaf 0x8000_0008 EAX, 7:0).
    pub physical_bits: u32,
    /// Leaf 0x8000_0021 EAX, ECX.
    pub x21: [u32; 2],
}

impl HostCpu {
    /// Reads EAX, EBX, ECX, EDX of leaves and subleaves; those that do not
    /// exist must read zero.
    #[must_use]
    pub fn read(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let mut vendor = [0; 12];
        let [_, b, c, d] = cpuid(0, 0);
        for (to, from) in vendor.chunks_exact_mut(4).zip([b, d, c]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let mut brand = [[0; 16]; 3];
        for (part, leaf) in brand.iter_mut().zip(0x8000_0002..) {
            for (to, from) in part.chunks_exact_mut(4).zip(cpuid(leaf, 0)) {
                to.copy_from_slice(&from.to_le_bytes());
            }
        }
        let (one, seven, ext) = (cpuid(1, 0), cpuid(7, 0), cpuid(0x8000_0001, 0));
        Self {
            vendor,
            signature: one[0],
            brand,
            features: Features {
                l1_ecx: one[2],
                l1_edx: one[3],
                l7_ebx: seven[1],
                l7_ecx: seven[2],
                l7_edx: seven[3],
                x1_ecx: ext[2],
                x1_edx: ext[3],
                xsave: cpuid(0xd, 1)[0],
            },
            amd_l1: cpuid(0x8000_0005, 0),
            l2: cpuid(0x8000_0006, 0),
            x8_ebx: cpuid(0x8000_0008, 0)[1],
        }
    }
}

impl Hardware {
    /// From what KVM supports (KVM_GET_SUPPORTED_CPUID); whether it has a
    /// TSC-deadline timer is told apart from that.
    #[must_use]
    pub fn read(supported: impl Fn(u32, u32) -> [u32; 4], tsc_deadline: bool) -> Self {
        let mut cpu = HostCpu::read(&supported);
        if tsc_deadline {
            cpu.features.l1_ecx |= bit::l1c::TSC_DEADLINE;
        }
        let x21 = supported(0x8000_0021, 0);
        Self {
            cpu,
            kvm_features: supported(0x4000_0001, 0)[0],
            physical_bits: supported(0x8000_0008, 0)[0] & 0xff,
            x21: [x21[0], x21[2]],
        }
    }
}

impl CpuidTable {
    /// As [`Self::new`], for guest code that the hardware executes.
    ///
    /// # Errors
    /// [`ModelUnavailable`] if the host lacks what the model promises.
    pub fn on_hardware(
        cpu: impl Into<CpuChoice>,
        hardware: &Hardware,
        vcpus: u32,
        tsc_khz: u32,
    ) -> Result<Self, ModelUnavailable> {
        let cpu = cpu.into();
        let mut table = Self::new(cpu, &hardware.cpu, vcpus, tsc_khz)?;
        let own = Features {
            l1_ecx: bit::l1c::X2APIC | bit::l1c::HYPERVISOR,
            l1_edx: bit::L1D_HTT,
            x1_ecx: bit::X1C_CMP_LEGACY,
            ..super::NONE
        };
        let host = hardware.cpu.features;
        table.features = table.features.and(host.or(own));
        table.features.l7_edx |= host.l7_edx & MITIGATIONS;
        if let Some(limit) = cpu.limit {
            table.features = table.features.and(limit);
        }
        table.x8_ebx = hardware.cpu.x8_ebx & AMD_MITIGATIONS;
        table.x21 = [hardware.x21[0] & AMD_X21_EAX, hardware.x21[1] & AMD_X21_ECX];
        table.kvm_features = hardware.kvm_features & KVM_FEATURES;
        if hardware.physical_bits != 0 {
            table.physical_bits = hardware.physical_bits.min(super::PHYSICAL_BITS);
        }
        Ok(table)
    }

    /// All leaves of vCPU `index` at reset, as (leaf, subleaf if the leaf has
    /// any, registers): what KVM is told.
    #[must_use]
    pub fn entries(&self, index: u32) -> Vec<(u32, Option<u32>, [u32; 4])> {
        let now = super::Dynamic {
            osxsave: false,
            xcr0: 1,
        };
        let mut entries = Vec::new();
        let mut add = |leaf, subleaf: Option<u32>| {
            let registers = self.lookup(leaf, subleaf.unwrap_or(0), index, &now);
            entries.push((leaf, subleaf, registers));
        };
        for leaf in 0..=0xd {
            match leaf {
                4 => (0..=4).for_each(|n| add(leaf, Some(n))),
                7 => add(leaf, Some(0)),
                0xb => (0..=2).for_each(|n| add(leaf, Some(n))),
                0xd => (0..=2).for_each(|n| add(leaf, Some(n))),
                _ => add(leaf, None),
            }
        }
        for leaf in [0x4000_0000, 0x4000_0001, 0x4000_0010] {
            add(leaf, None);
        }
        let last = self.lookup(0x8000_0000, 0, index, &now)[0];
        for leaf in 0x8000_0000..=last {
            add(leaf, None);
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CpuModel, Dynamic};
    use super::*;

    fn hardware(l7_edx: u32) -> Hardware {
        let all = Features {
            l1_ecx: !0,
            l1_edx: !0,
            l7_ebx: !0,
            l7_ecx: !0,
            l7_edx,
            x1_ecx: !0,
            x1_edx: !0,
            xsave: !0,
        };
        Hardware {
            cpu: HostCpu {
                vendor: *b"AuthenticAMD",
                features: all,
                ..HostCpu::default()
            },
            kvm_features: !0,
            physical_bits: 40,
            x21: [0; 2],
        }
    }

    #[test]
    fn hardware_shows_no_immunity_that_it_lacks() {
        let now = Dynamic::default();
        let t = CpuidTable::on_hardware(CpuModel::Host, &hardware(1 << 26), 2, 1).unwrap();
        assert_eq!(t.lookup(0x8000_0021, 0, 0, &now), [0; 4]);
        assert_eq!(t.lookup(0x8000_0008, 0, 0, &now)[..2], [40 | 48 << 8, 0]);
        let edx = t.lookup(7, 0, 0, &now)[3];
        assert_eq!(edx & (bit::L7D_ARCH_CAP | bit::L7D_SPEC_CTRL), 1 << 26);
        assert_ne!(t.lookup(0x4000_0001, 0, 0, &now)[0] & 1 << 5, 0);
    }

    #[test]
    fn hardware_limits_what_a_model_shows() {
        let mut hardware = hardware(0);
        hardware.cpu.features.l7_ebx &= !bit::l7b::SMAP;
        hardware.cpu.features.l1_ecx &= !(bit::l1c::TSC_DEADLINE | bit::l1c::HYPERVISOR);
        let t = CpuidTable::on_hardware(CpuModel::V3, &hardware, 1, 1).unwrap();
        assert_eq!(t.features().l7_ebx & bit::l7b::SMAP, 0);
        assert_eq!(t.features().l1_ecx & bit::l1c::TSC_DEADLINE, 0);
        assert_ne!(t.features().l1_ecx & bit::l1c::HYPERVISOR, 0);
        assert_eq!(t.features().l1_ecx & bit::l1c::AES, 0, "v3 has no AES");
    }

    #[test]
    fn the_entries_are_what_lookup_finds() {
        let t = CpuidTable::on_hardware(CpuModel::Host, &hardware(0), 4, 1).unwrap();
        let entries = t.entries(3);
        let find = |leaf, sub| {
            entries
                .iter()
                .find(|e| (e.0, e.1) == (leaf, sub))
                .unwrap()
                .2
        };
        assert_eq!(find(1, None)[1] >> 24, 3);
        assert_eq!(find(0xb, Some(1))[3], 3);
        assert_eq!(find(0, None), t.lookup(0, 0, 3, &Dynamic::default()));
        assert!(entries.iter().any(|e| e.0 == 0x8000_0021));
    }
}
