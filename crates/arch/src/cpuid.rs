//! CPUID models (SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
//!
//! A model shows exactly what the software engine implements: never AVX-512,
//! AMX, PKU, CET, LA57, MPX or RTM, whatever the host has.

pub(crate) mod hardware;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use hardware::Hardware;

/// Named CPU model (`--cpu`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuModel {
    /// Everything implemented that the host has.
    #[default]
    Host,
    /// x86-64-v2 with what kernels want; the same on every host.
    V2,
    /// x86-64-v3 (AVX2, BMI, FMA …); needs a host that has it.
    V3,
}

/// The CPU that an engine is to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuChoice {
    /// The model.
    pub model: CpuModel,
    /// What it may show at most: a saved machine's guest goes on with what it
    /// knows, and no more.
    pub limit: Option<Features>,
}

impl From<CpuModel> for CpuChoice {
    fn from(model: CpuModel) -> Self {
        Self { model, limit: None }
    }
}

/// A CPU model name that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown CPU model `{0}`: choose host, v2 or v3")]
pub struct UnknownModel(String);

/// The host cannot provide a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CPU model {model} needs {missing}, which this host's CPU lacks: choose --cpu {instead}")]
pub struct ModelUnavailable {
    /// Model asked for.
    pub model: CpuModel,
    /// Feature names.
    pub missing: String,
    /// A model that works here.
    pub instead: CpuModel,
}

impl FromStr for CpuModel {
    type Err = UnknownModel;
    fn from_str(s: &str) -> Result<Self, UnknownModel> {
        match s {
            "host" => Ok(Self::Host),
            "v2" => Ok(Self::V2),
            "v3" => Ok(Self::V3),
            _ => Err(UnknownModel(s.to_owned())),
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::V2 => "v2",
            Self::V3 => "v3",
        })
    }
}

/// Whose CPU it is: decides the few instructions on which vendors differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vendor {
    /// `GenuineIntel`, and any other that is not AMD.
    #[default]
    Intel,
    /// `AuthenticAMD`, `HygonGenuine`.
    Amd,
}

/// Features, as the registers of the leaves that hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Leaf 1 ECX.
    pub l1_ecx: u32,
    /// Leaf 1 EDX.
    pub l1_edx: u32,
    /// Leaf 7.0 EBX.
    pub l7_ebx: u32,
    /// Leaf 7.0 ECX.
    pub l7_ecx: u32,
    /// Leaf 7.0 EDX.
    pub l7_edx: u32,
    /// Leaf 0x8000_0001 ECX.
    pub x1_ecx: u32,
    /// Leaf 0x8000_0001 EDX.
    pub x1_edx: u32,
    /// Leaf 0xd.1 EAX.
    pub xsave: u32,
}

/// The host's CPU, as its CPUID shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostCpu {
    /// Leaf 0 EBX, EDX, ECX as text.
    pub vendor: [u8; 12],
    /// Leaf 1 EAX: family, model, stepping.
    pub signature: u32,
    /// Leaves 0x8000_0002 to 4.
    pub brand: [[u8; 16]; 3],
    /// Features.
    pub features: Features,
    /// Leaf 0x8000_0005 (AMD L1 caches).
    pub amd_l1: [u32; 4],
    /// Leaf 0x8000_0006 (L2, L3).
    pub l2: [u32; 4],
    /// Leaf 0x8000_0008 EBX (AMD).
    pub x8_ebx: u32,
}

/// What depends on the vCPU's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// Bits of [`Features`], by register.
pub mod bit {
    #![allow(missing_docs)]
    /// Leaf 1 ECX.
    pub mod l1c {
        pub const SSE3: u32 = 1;
        pub const PCLMUL: u32 = 1 << 1;
        pub const SSSE3: u32 = 1 << 9;
        pub const FMA: u32 = 1 << 12;
        pub const CX16: u32 = 1 << 13;
        pub const SSE41: u32 = 1 << 19;
        pub const SSE42: u32 = 1 << 20;
        pub const X2APIC: u32 = 1 << 21;
        pub const MOVBE: u32 = 1 << 22;
        pub const POPCNT: u32 = 1 << 23;
        pub const TSC_DEADLINE: u32 = 1 << 24;
        pub const AES: u32 = 1 << 25;
        pub const XSAVE: u32 = 1 << 26;
        pub const OSXSAVE: u32 = 1 << 27;
        pub const AVX: u32 = 1 << 28;
        pub const F16C: u32 = 1 << 29;
        pub const RDRAND: u32 = 1 << 30;
        pub const HYPERVISOR: u32 = 1 << 31;
    }
    /// Leaf 1 EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV
    /// PAT PSE36 CLFSH MMX FXSR SSE SSE2.
    pub const L1D: u32 = 0x078b_fbfd;
    pub const L1D_HTT: u32 = 1 << 28;
    /// Leaf 7.0 EBX.
    pub mod l7b {
        pub const FSGSBASE: u32 = 1;
        pub const TSC_ADJUST: u32 = 1 << 1;
        pub const BMI1: u32 = 1 << 3;
        pub const AVX2: u32 = 1 << 5;
        pub const SMEP: u32 = 1 << 7;
        pub const BMI2: u32 = 1 << 8;
        pub const ERMS: u32 = 1 << 9;
        pub const RDSEED: u32 = 1 << 18;
        pub const ADX: u32 = 1 << 19;
        pub const SMAP: u32 = 1 << 20;
        pub const SHA: u32 = 1 << 29;
    }
    /// Leaf 7.0 ECX.
    pub const L7C_UMIP: u32 = 1 << 2;
    /// GFNI, VAES, VPCLMULQDQ.
    pub const L7C_VECTOR: u32 = 7 << 8;
    pub const L7C_RDPID: u32 = 1 << 22;
    /// Leaf 7.0 EDX.
    pub const L7D_FSRM: u32 = 1 << 4;
    pub const L7D_SPEC_CTRL: u32 = 1 << 26;
    pub const L7D_ARCH_CAP: u32 = 1 << 29;
    /// Leaf 0x8000_0001 ECX.
    pub const X1C_LAHF: u32 = 1;
    pub const X1C_CMP_LEGACY: u32 = 1 << 1;
    pub const X1C_LZCNT: u32 = 1 << 5;
    pub const X1C_PREFETCHW: u32 = 1 << 8;
    /// Leaf 0x8000_0001 EDX.
    pub const X1D_SYSCALL: u32 = 1 << 11;
    pub const X1D_NX: u32 = 1 << 20;
    pub const X1D_PAGE1G: u32 = 1 << 26;
    pub const X1D_RDTSCP: u32 = 1 << 27;
    pub const X1D_LM: u32 = 1 << 29;
    /// Those bits of leaf 1 EDX that AMD repeats in 0x8000_0001 EDX.
    pub const X1D_AMD_COPY: u32 = 0x0183_f3ff;
}

/// Physical address bits shown.
pub const PHYSICAL_BITS: u32 = 46;
/// APIC timer frequency shown and kept, in kHz.
pub const APIC_BUS_KHZ: u32 = 1_000_000;
/// Leaf 0x8000_0008 EBX: IBRS (so that SPEC_CTRL exists), SSB_NO, BTC_NO.
const AMD_SAFE: u32 = 1 << 14 | 1 << 26 | 1 << 29;
/// Leaf 0x8000_0008 EBX: FXRSTOR always restores the x87 error pointers.
const AMD_XSAVEERPTR: u32 = 1 << 2;
/// Leaf 0x8000_0021 EAX and ECX: LFENCE serializing, null selectors clear the
/// base, automatic IBRS, SRSO_NO; TSA_SQ_NO and TSA_L1_NO.
const AMD_X21_SAFE: [u32; 2] = [1 << 2 | 1 << 6 | 1 << 8 | 1 << 29, 1 << 1 | 1 << 2];
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 24;

/// What CPUID shows to one machine's guest code.
#[derive(Clone, Debug, Default)]
pub struct CpuidTable {
    vendor_text: [u8; 12],
    vendor: Vendor,
    signature: u32,
    brand: [[u8; 16]; 3],
    features: Features,
    vcpus: u32,
    tsc_khz: u32,
    amd_l1: [u32; 4],
    l2: [u32; 4],
    x8_ebx: u32,
    /// Leaf 0x8000_0021 EAX, ECX.
    x21: [u32; 2],
    kvm_features: u32,
    physical_bits: u32,
}

const NONE: Features = Features {
    l1_ecx: 0,
    l1_edx: 0,
    l7_ebx: 0,
    l7_ecx: 0,
    l7_edx: 0,
    x1_ecx: 0,
    x1_edx: 0,
    xsave: 0,
};

/// Bits that v2 means, and without which nothing runs.
const V2: Features = Features {
    l1_ecx: bit::l1c::SSE3
        | bit::l1c::SSSE3
        | bit::l1c::CX16
        | bit::l1c::SSE41
        | bit::l1c::SSE42
        | bit::l1c::POPCNT,
    x1_ecx: bit::X1C_LAHF,
    ..NONE
};

/// Bits that v3 adds.
const V3: Features = Features {
    l1_ecx: bit::l1c::FMA | bit::l1c::MOVBE | bit::l1c::AVX | bit::l1c::F16C,
    l7_ebx: bit::l7b::BMI1 | bit::l7b::AVX2 | bit::l7b::BMI2,
    x1_ecx: bit::X1C_LZCNT,
    ..NONE
};

/// What only `host` adds, where the host has it.
const HOST: Features = Features {
    l1_ecx: bit::l1c::PCLMUL | bit::l1c::AES | bit::l1c::RDRAND,
    l7_ebx: bit::l7b::RDSEED | bit::l7b::ADX | bit::l7b::SHA,
    l7_ecx: bit::L7C_VECTOR,
    xsave: 3,
    ..NONE
};

/// What the engine makes itself, on any host.
const SOFT: Features = Features {
    l1_ecx: bit::l1c::X2APIC | bit::l1c::TSC_DEADLINE | bit::l1c::XSAVE | bit::l1c::HYPERVISOR,
    l1_edx: bit::L1D,
    l7_ebx: bit::l7b::FSGSBASE
        | bit::l7b::TSC_ADJUST
        | bit::l7b::SMEP
        | bit::l7b::ERMS
        | bit::l7b::SMAP,
    l7_ecx: bit::L7C_UMIP | bit::L7C_RDPID,
    l7_edx: bit::L7D_FSRM | bit::L7D_ARCH_CAP,
    x1_ecx: bit::X1C_PREFETCHW,
    x1_edx: bit::X1D_SYSCALL | bit::X1D_NX | bit::X1D_PAGE1G | bit::X1D_RDTSCP | bit::X1D_LM,
    ..NONE
};

impl Features {
    fn fields(&self) -> [u32; 8] {
        [
            self.l1_ecx,
            self.l1_edx,
            self.l7_ebx,
            self.l7_ecx,
            self.l7_edx,
            self.x1_ecx,
            self.x1_edx,
            self.xsave,
        ]
    }

    fn zip(self, other: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        let (a, b) = (self.fields(), other.fields());
        let [
            l1_ecx,
            l1_edx,
            l7_ebx,
            l7_ecx,
            l7_edx,
            x1_ecx,
            x1_edx,
            xsave,
        ] = std::array::from_fn(|i| f(a[i], b[i]));
        Self {
            l1_ecx,
            l1_edx,
            l7_ebx,
            l7_ecx,
            l7_edx,
            x1_ecx,
            x1_edx,
            xsave,
        }
    }

    /// Bits in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// Bits in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// These bits without the other's.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    /// Whether all of the other's bits are here.
    pub fn contains(self, other: Self) -> bool {
        self.and(other) == other
    }
}

impl HostCpu {
    fn vendor(&self) -> Vendor {
        match &self.vendor {
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }
}

impl CpuidTable {
    /// The table of a model on a host, for a machine of `vcpus` vCPUs whose
    /// TSC runs at `tsc_khz`.
    ///
    /// # Errors
    /// [`ModelUnavailable`] if the host lacks what the model promises.
    pub fn new(
        cpu: impl Into<CpuChoice>,
        host: &HostCpu,
        vcpus: u32,
        tsc_khz: u32,
    ) -> Result<Self, ModelUnavailable> {
        let CpuChoice { model, limit } = cpu.into();
        let need = match model {
            CpuModel::V3 => V2.or(V3),
            CpuModel::Host | CpuModel::V2 => V2,
        };
        if !host.features.contains(need) {
            return Err(ModelUnavailable {
                model,
                missing: missing_names(need, host.features),
                instead: if model == CpuModel::V3 {
                    CpuModel::Host
                } else {
                    CpuModel::V2
                },
            });
        }
        let native = match model {
            CpuModel::Host => consistent(V2.or(V3).or(HOST).and(host.features)),
            CpuModel::V2 | CpuModel::V3 => need,
        };
        let vendor = host.vendor();
        let mut features = native.or(SOFT);
        match vendor {
            Vendor::Amd => {
                features.x1_edx |= features.l1_edx & bit::X1D_AMD_COPY;
                features.x1_ecx |= bit::X1C_CMP_LEGACY & if vcpus > 1 { !0 } else { 0 };
            }
            Vendor::Intel => features.l7_edx |= bit::L7D_SPEC_CTRL,
        }
        if vcpus > 1 {
            features.l1_edx |= bit::L1D_HTT;
        }
        let (signature, brand) = match (model, vendor) {
            (CpuModel::Host, _) => (host.signature, host.brand),
            // Named models show one processor per vendor: Milan and Cascade
            // Lake, the oldest without errata that kernels work around.
            (_, Vendor::Amd) => (0x00a0_0f11, brand_text(model)),
            (_, Vendor::Intel) => (0x0005_0657, brand_text(model)),
        };
        let mut vendor_text = host.vendor;
        if vendor_text == [0; 12] {
            vendor_text = *b"GenuineIntel";
        }
        Ok(Self {
            vendor_text,
            vendor,
            signature,
            brand,
            features: limit.map_or(features, |limit| features.and(limit)),
            vcpus: vcpus.max(1),
            tsc_khz,
            amd_l1: host.amd_l1,
            l2: host.l2,
            x8_ebx: AMD_SAFE | host.x8_ebx & AMD_XSAVEERPTR,
            x21: AMD_X21_SAFE,
            kvm_features: KVM_FEATURES,
            physical_bits: PHYSICAL_BITS,
        })
    }

    /// What a saved machine needs of it.
    pub fn identity(&self) -> crate::CpuIdentity {
        crate::CpuIdentity {
            vendor: String::from_utf8_lossy(&self.vendor_text).into_owned(),
            features: self.features,
            tsc_khz: self.tsc_khz,
        }
    }

    /// The vendor.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Features shown: what the guest may use; any other instruction is #UD.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Guest TSC frequency, in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Leaf 1 EAX: family, model, stepping (also EDX after INIT).
    pub fn signature(&self) -> u32 {
        self.signature
    }

    /// XCR0 bits that may be set: x87, SSE, and AVX where shown.
    pub fn xcr0_mask(&self) -> u64 {
        if self.features.l1_ecx & bit::l1c::AVX != 0 {
            7
        } else {
            3
        }
    }

    /// EAX, EBX, ECX, EDX of a leaf for vCPU `index`.
    pub fn lookup(&self, leaf: u32, subleaf: u32, index: u32, now: &Dynamic) -> [u32; 4] {
        let max_ext = match self.vendor {
            Vendor::Amd => 0x8000_0021,
            Vendor::Intel => 0x8000_0008,
        };
        match leaf {
            0x4000_0000..=0x4000_00ff => self.hypervisor(leaf),
            0x8000_0000..=0x8000_ffff if leaf <= max_ext => self.extended(leaf, max_ext),
            _ => self.basic(leaf.min(0xd), subleaf, index, now),
        }
    }

    fn basic(&self, leaf: u32, subleaf: u32, index: u32, now: &Dynamic) -> [u32; 4] {
        let f = &self.features;
        match leaf {
            0 => {
                let [b, d, c] = text3(&self.vendor_text);
                [0xd, b, c, d]
            }
            1 => {
                let osxsave = if now.osxsave { bit::l1c::OSXSAVE } else { 0 };
                let logical = self.vcpus.next_power_of_two().min(128);
                [
                    self.signature,
                    index << 24 | logical << 16 | 8 << 8,
                    f.l1_ecx | osxsave,
                    f.l1_edx,
                ]
            }
            2 if self.vendor == Vendor::Intel => [0x00fe_ff01, 0, 0, 0],
            4 if self.vendor == Vendor::Intel => self.intel_cache(subleaf),
            6 => [4, 0, 0, 0],
            7 if subleaf == 0 => [0, f.l7_ebx, f.l7_ecx, f.l7_edx],
            0xb => self.topology(subleaf, index),
            0xd => self.xsave(subleaf, now),
            _ => [0; 4],
        }
    }

    fn id_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    fn topology(&self, subleaf: u32, index: u32) -> [u32; 4] {
        match subleaf {
            0 => [0, 1, 1 << 8, index],
            1 => [self.id_bits(), self.vcpus, 1 | 2 << 8, index],
            n => [0, 0, n & 0xff, index],
        }
    }

    /// Leaf 4: L1D 32 KiB, L1I 32 KiB, L2 1 MiB, L3 16 MiB shared by all.
    fn intel_cache(&self, subleaf: u32) -> [u32; 4] {
        let (kind, level, ways, sets, shared) = match subleaf {
            0 => (1, 1, 8, 64, 0),
            1 => (2, 1, 8, 64, 0),
            2 => (3, 2, 16, 1024, 0),
            3 => (3, 3, 16, 16384, (1u32 << self.id_bits()) - 1),
            _ => return [0; 4],
        };
        let cores = ((1u32 << self.id_bits()) - 1).min(63);
        [
            kind | level << 5 | 1 << 8 | shared << 14 | cores << 26,
            (ways - 1) << 22 | 63,
            sets - 1,
            0,
        ]
    }

    fn xsave(&self, subleaf: u32, now: &Dynamic) -> [u32; 4] {
        let mask = self.xcr0_mask() as u32;
        let size = |xcr0: u64| if xcr0 & 4 != 0 { 832 } else { 576 };
        match subleaf {
            0 => [mask, size(now.xcr0), size(u64::from(mask)), 0],
            1 => [self.features.xsave, size(now.xcr0), 0, 0],
            2 if mask & 4 != 0 => [256, 576, 0, 0],
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32, max: u32) -> [u32; 4] {
        let f = &self.features;
        let amd = self.vendor == Vendor::Amd;
        match leaf {
            0x8000_0000 => {
                let [b, d, c] = text3(&self.vendor_text);
                if amd { [max, b, c, d] } else { [max, 0, 0, 0] }
            }
            0x8000_0001 => [if amd { self.signature } else { 0 }, 0, f.x1_ecx, f.x1_edx],
            0x8000_0002..=0x8000_0004 => {
                let part = &self.brand[(leaf - 0x8000_0002) as usize];
                std::array::from_fn(|i| word(part, i * 4))
            }
            0x8000_0005 if amd => self.amd_l1,
            0x8000_0006 => self.l2,
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => {
                let address = self.physical_bits | 48 << 8;
                if amd {
                    [
                        address,
                        self.x8_ebx,
                        (self.vcpus - 1) | self.id_bits() << 12,
                        0,
                    ]
                } else {
                    [address, 0, 0, 0]
                }
            }
            0x8000_0021 => [self.x21[0], 0, self.x21[1], 0],
            _ => [0; 4],
        }
    }

    fn hypervisor(&self, leaf: u32) -> [u32; 4] {
        match leaf {
            0x4000_0000 => {
                let [b, c, d] = text3(b"KVMKVMKVM\0\0\0");
                [0x4000_0010, b, c, d]
            }
            0x4000_0001 => [self.kvm_features, 0, 0, 0],
            0x4000_0010 => [self.tsc_khz, APIC_BUS_KHZ, 0, 0],
            _ => [0; 4],
        }
    }
}

/// Drops features whose prerequisite is absent.
fn consistent(mut f: Features) -> Features {
    if f.l1_ecx & bit::l1c::AVX == 0 {
        f.l1_ecx &= !(bit::l1c::FMA | bit::l1c::F16C);
        f.l7_ebx &= !bit::l7b::AVX2;
        f.l7_ecx &= !bit::L7C_VECTOR;
    }
    f
}

/// Names of features that a host can lack, with where they are.
const NAMES: [(Features, &str); 15] = {
    const fn l1(bit: u32) -> Features {
        Features {
            l1_ecx: bit,
            ..NONE
        }
    }
    const fn l7(bit: u32) -> Features {
        Features {
            l7_ebx: bit,
            ..NONE
        }
    }
    const fn x1(bit: u32) -> Features {
        Features {
            x1_ecx: bit,
            ..NONE
        }
    }
    [
        (l1(bit::l1c::SSE3), "SSE3"),
        (l1(bit::l1c::SSSE3), "SSSE3"),
        (l1(bit::l1c::FMA), "FMA"),
        (l1(bit::l1c::CX16), "CMPXCHG16B"),
        (l1(bit::l1c::SSE41), "SSE4.1"),
        (l1(bit::l1c::SSE42), "SSE4.2"),
        (l1(bit::l1c::MOVBE), "MOVBE"),
        (l1(bit::l1c::POPCNT), "POPCNT"),
        (l1(bit::l1c::AVX), "AVX"),
        (l1(bit::l1c::F16C), "F16C"),
        (l7(bit::l7b::BMI1), "BMI1"),
        (l7(bit::l7b::AVX2), "AVX2"),
        (l7(bit::l7b::BMI2), "BMI2"),
        (x1(bit::X1C_LAHF), "LAHF"),
        (x1(bit::X1C_LZCNT), "LZCNT"),
    ]
};

pub(crate) fn missing_names(need: Features, have: Features) -> String {
    let missing: Vec<&str> = NAMES
        .iter()
        .filter(|(f, _)| need.contains(*f) && !have.contains(*f))
        .map(|(_, name)| *name)
        .collect();
    missing.join(", ")
}

fn brand_text(model: CpuModel) -> [[u8; 16]; 3] {
    let last = match model {
        CpuModel::V3 => *b"-v3\0\0\0\0\0\0\0\0\0\0\0\0\0",
        _ => *b"-v2\0\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    [*b"Holm virtual CPU", *b" of level x86-64", last]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn text3(t: &[u8; 12]) -> [u32; 3] {
    [word(t, 0), word(t, 4), word(t, 8)]
}

#[cfg(test)]
mod tests;
