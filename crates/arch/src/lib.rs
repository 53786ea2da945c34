//! What x86-64 is: CPU state as plain, versioned data, CPUID models,
//! exceptions, and the guest-physical address map. No behaviour.
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod exception;
mod identity;
pub mod layout;
pub mod msr;
pub mod state;

pub use exception::Exception;
pub use identity::{CpuIdentity, CpuMismatch};
pub use state::{CpuState, DescriptorTable, Injected, LapicState, MpState, Segment};
