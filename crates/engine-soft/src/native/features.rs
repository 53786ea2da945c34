//! Which instruction-set extensions a guest may use, as CPUID shows them.

use std::arch::x86_64::__cpuid_count;

use arch::cpuid::{CpuidTable, Dynamic};
use iced_x86::CpuidFeature;

/// A CPUID register.
#[derive(Clone, Copy)]
enum Reg {
    A,
    B,
    C,
    D,
}

/// The extensions that [`super::execute`] can run, with the CPUID leaf,
/// subleaf, register and bit that show them (SDM vol. 2A, CPUID).
const SHOWN: [(CpuidFeature, u32, u32, Reg, u32); 26] = [
    (CpuidFeature::FPU, 1, 0, Reg::D, 0),
    (CpuidFeature::FPU287, 1, 0, Reg::D, 0),
    (CpuidFeature::FPU387, 1, 0, Reg::D, 0),
    (CpuidFeature::CMOV, 1, 0, Reg::D, 15),
    (CpuidFeature::MMX, 1, 0, Reg::D, 23),
    (CpuidFeature::FXSR, 1, 0, Reg::D, 24),
    (CpuidFeature::SSE, 1, 0, Reg::D, 25),
    (CpuidFeature::SSE2, 1, 0, Reg::D, 26),
    (CpuidFeature::SSE3, 1, 0, Reg::C, 0),
    (CpuidFeature::PCLMULQDQ, 1, 0, Reg::C, 1),
    (CpuidFeature::SSSE3, 1, 0, Reg::C, 9),
    (CpuidFeature::FMA, 1, 0, Reg::C, 12),
    (CpuidFeature::SSE4_1, 1, 0, Reg::C, 19),
    (CpuidFeature::SSE4_2, 1, 0, Reg::C, 20),
    (CpuidFeature::AES, 1, 0, Reg::C, 25),
    (CpuidFeature::XSAVE, 1, 0, Reg::C, 26),
    (CpuidFeature::AVX, 1, 0, Reg::C, 28),
    (CpuidFeature::F16C, 1, 0, Reg::C, 29),
    (CpuidFeature::AVX2, 7, 0, Reg::B, 5),
    (CpuidFeature::SHA, 7, 0, Reg::B, 29),
    (CpuidFeature::GFNI, 7, 0, Reg::C, 8),
    (CpuidFeature::VAES, 7, 0, Reg::C, 9),
    (CpuidFeature::VPCLMULQDQ, 7, 0, Reg::C, 10),
    (CpuidFeature::AVX_VNNI, 7, 1, Reg::A, 4),
    (CpuidFeature::XSAVEOPT, 13, 1, Reg::A, 0),
    (CpuidFeature::XSAVEC, 13, 1, Reg::A, 1),
];

/// Extensions that need the host's operating system to keep ymm registers.
const NEED_YMM: [CpuidFeature; 7] = [
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
    CpuidFeature::VAES,
    CpuidFeature::VPCLMULQDQ,
    CpuidFeature::AVX_VNNI,
];

/// A set of instruction-set extensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features([u64; 3]);

impl Features {
    /// What a CPUID table shows; `leaf` gives eax, ebx, ecx, edx of a leaf and
    /// subleaf.
    pub fn from_cpuid(leaf: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let mut set = Self::default();
        let top = leaf(0, 0)[0];
        for (f, n, sub, reg, bit) in SHOWN {
            if n <= top && leaf(n, sub)[reg as usize] >> bit & 1 != 0 {
                set.insert(f);
            }
        }
        set
    }

    /// What a guest's CPUID shows.
    pub fn of(table: &CpuidTable) -> Self {
        Self::from_cpuid(|leaf, sub| table.lookup(leaf, sub, 0, &Dynamic::default()))
    }

    /// What this host can run.
    pub fn host() -> Self {
        let mut set = Self::from_cpuid(|n, sub| {
            let r = __cpuid_count(n, sub);
            [r.eax, r.ebx, r.ecx, r.edx]
        });
        if !std::is_x86_feature_detected!("avx") {
            for f in NEED_YMM {
                set.0[f as usize / 64] &= !(1 << (f as usize % 64));
            }
        }
        set
    }

    /// What both sets have.
    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    fn insert(&mut self, f: CpuidFeature) {
        self.0[f as usize / 64] |= 1 << (f as usize % 64);
    }

    /// Whether it has one extension.
    pub fn has(&self, f: CpuidFeature) -> bool {
        self.0
            .get(f as usize / 64)
            .is_some_and(|w| w >> (f as usize % 64) & 1 != 0)
    }

    /// Whether it has all the extensions of an instruction.
    pub fn has_all(&self, all: &[CpuidFeature]) -> bool {
        all.iter().all(|f| self.has(*f))
    }
}
