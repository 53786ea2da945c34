//! The host's CPU, as CPUID shows it, for the CPU models of `arch`.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use arch::cpuid::{CpuModel, CpuidTable, Features, HostCpu, ModelUnavailable};

fn words(r: CpuidResult) -> [u32; 4] {
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Reads the host's CPUID.
pub fn host_cpu() -> HostCpu {
    let basic = |leaf: u32| {
        if leaf <= __cpuid(0).eax {
            words(__cpuid_count(leaf, 0))
        } else {
            [0; 4]
        }
    };
    let extended = |leaf: u32| {
        if leaf <= __cpuid(0x8000_0000).eax {
            words(__cpuid(leaf))
        } else {
            [0; 4]
        }
    };
    let mut vendor = [0; 12];
    let [_, b, c, d] = basic(0);
    for (to, from) in vendor.chunks_exact_mut(4).zip([b, d, c]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    let mut brand = [[0; 16]; 3];
    for (part, leaf) in brand.iter_mut().zip(0x8000_0002..) {
        for (to, from) in part.chunks_exact_mut(4).zip(extended(leaf)) {
            to.copy_from_slice(&from.to_le_bytes());
        }
    }
    let one = basic(1);
    let seven = basic(7);
    let ext = extended(0x8000_0001);
    let xsave = if basic(0xd) == [0; 4] {
        0
    } else {
        __cpuid_count(0xd, 1).eax
    };
    HostCpu {
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
            xsave,
        },
        amd_l1: extended(0x8000_0005),
        l2: extended(0x8000_0006),
        x8_ebx: extended(0x8000_0008)[1],
    }
}

/// What CPUID shows in a machine of this model on this host.
///
/// # Errors
/// If the host lacks what the model promises.
pub fn host_table(model: CpuModel, vcpus: u32) -> Result<CpuidTable, ModelUnavailable> {
    CpuidTable::new(
        model,
        &host_cpu(),
        vcpus,
        crate::system::clock::host_tsc_khz(),
    )
}
