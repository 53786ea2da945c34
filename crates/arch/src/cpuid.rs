//! CPUID models (SDM vol. 2A, CPUID).

/// What CPUID shows to one vCPU's guest code.
#[derive(Clone, Debug, Default)]
pub struct CpuidTable {}
