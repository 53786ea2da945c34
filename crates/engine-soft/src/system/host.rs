//! The host's CPU, as CPUID shows it, for the CPU models of `arch`.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use arch::cpuid::{CpuChoice, CpuidTable, HostCpu, ModelUnavailable};

fn words(r: CpuidResult) -> [u32; 4] {
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Reads the host's CPUID.
pub fn host_cpu() -> HostCpu {
    let last = |range: u32| __cpuid(range).eax;
    let (basic, extended) = (last(0), last(0x8000_0000));
    HostCpu::read(|leaf, subleaf| {
        let exists = leaf <= if leaf < 0x8000_0000 { basic } else { extended };
        if exists {
            words(__cpuid_count(leaf, subleaf))
        } else {
            [0; 4]
        }
    })
}

/// What CPUID shows in a machine of this model on this host.
///
/// # Errors
/// If the host lacks what the model promises.
pub fn host_table(cpu: impl Into<CpuChoice>, vcpus: u32) -> Result<CpuidTable, ModelUnavailable> {
    CpuidTable::new(
        cpu,
        &host_cpu(),
        vcpus,
        crate::system::clock::host_tsc_khz(),
    )
}
