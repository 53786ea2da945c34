//! Which CPU a saved machine can go on with.

use serde::{Deserialize, Serialize};

use crate::cpuid::hardware::MITIGATIONS;
use crate::cpuid::{Features, bit, missing_names};

/// What a saved machine needs of the CPU that it goes on with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuIdentity {
    /// Leaf 0 EBX, EDX, ECX as text.
    pub vendor: String,
    /// Features that its guest may use.
    pub features: Features,
    /// Frequency of its TSC, in kHz.
    pub tsc_khz: u32,
}

/// What a guest that has seen it can do without: hints of what is fast, and
/// immunities and controls of speculation, whose registers every engine takes.
const HINTS: Features = Features {
    l1_ecx: 0,
    l1_edx: 0,
    l7_ebx: bit::l7b::ERMS,
    l7_ecx: 0,
    l7_edx: bit::L7D_FSRM | bit::L7D_ARCH_CAP | MITIGATIONS,
    x1_ecx: bit::X1C_PREFETCHW,
    x1_edx: 0,
    xsave: 0,
};

/// Why a saved machine cannot go on with a CPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuMismatch {
    /// Another vendor's.
    #[error("its CPU is by {saved}, and this one by {here}")]
    Vendor {
        /// As saved.
        saved: String,
        /// Of this engine and host.
        here: String,
    },
    /// Something is missing.
    #[error(
        "its guest may use {0}, which this CPU lacks; restore it on such a host, or make \
         machines that move with a model that all hosts have (--cpu v2)"
    )]
    Features(String),
    /// Another frequency.
    #[error(
        "its TSC runs at {saved} kHz, and this one at {here} kHz: the guest's clock would go wrong"
    )]
    Frequency {
        /// As saved.
        saved: u32,
        /// Of this engine and host.
        here: u32,
    },
}

impl CpuIdentity {
    /// Largest difference of frequencies that a guest's own correction of its
    /// clock bridges (NTP: 500 parts per million), in parts per million.
    const FREQUENCY_PPM: u64 = 500;

    /// Whether a machine saved with `self` can go on with `here`.
    ///
    /// # Errors
    /// [`CpuMismatch`]: why not.
    pub fn check(&self, here: &Self) -> Result<(), CpuMismatch> {
        if self.vendor != here.vendor {
            return Err(CpuMismatch::Vendor {
                saved: self.vendor.clone(),
                here: here.vendor.clone(),
            });
        }
        let needed = self.features.without(HINTS);
        if !here.features.contains(needed) {
            let names = missing_names(needed, here.features);
            return Err(CpuMismatch::Features(match names.is_empty() {
                true => "features without a name".into(),
                false => names,
            }));
        }
        let off = u64::from(self.tsc_khz.abs_diff(here.tsc_khz));
        if off * 1_000_000 > u64::from(here.tsc_khz) * Self::FREQUENCY_PPM {
            return Err(CpuMismatch::Frequency {
                saved: self.tsc_khz,
                here: here.tsc_khz,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu() -> CpuIdentity {
        CpuIdentity {
            vendor: "GenuineIntel".into(),
            features: Features {
                l1_ecx: 1,
                l7_ebx: 1 << 5,
                ..Features::default()
            },
            tsc_khz: 2_000_000,
        }
    }

    #[test]
    fn a_machine_goes_on_only_with_what_it_knew() {
        let saved = cpu();
        let mut more = cpu();
        more.features.l7_ebx |= 1 << 8;
        more.tsc_khz += 900;
        assert_eq!(saved.check(&more), Ok(()));
        assert!(matches!(more.check(&saved), Err(CpuMismatch::Features(_))));
        let mut other = cpu();
        other.vendor = "AuthenticAMD".into();
        let error = saved.check(&other).unwrap_err().to_string();
        assert!(error.contains("AuthenticAMD"), "{error}");
        let mut fast = cpu();
        fast.tsc_khz = 3_000_000;
        assert!(matches!(
            saved.check(&fast),
            Err(CpuMismatch::Frequency { .. })
        ));
    }
}
