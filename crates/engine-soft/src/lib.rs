//! The software CPU: runs guest x86-64 code without hardware virtualization.
//!
//! * [`cpu`]: the state of a vCPU as generated code sees it.
//! * [`core`]: a vCPU with everything it reaches; what all modules below take.
//! * [`mmu`]: page walks, the software TLB, loads and stores.
//! * [`interpret`]: one instruction at a time; integer, string, control flow.
//! * [`system`]: segments, events, privileged instructions, MSRs, CPUID.
//! * `translate`: warm 64-bit code to host code.
//! * [`native`]: x87, MMX, SSE, AVX, by running the instruction on the host.
//! * [`lapic`]: local APICs and inter-processor interrupts.
//! * [`world`]: stopping all vCPUs at a safe point.
//! * `halt`: waiting for the next interrupt.

// The support code of the integration tests serves unit tests too.
#[cfg(test)]
extern crate self as engine_soft;

pub mod core;
pub mod cpu;
mod debugger;
mod engine;
mod halt;
pub mod interpret;
pub mod lapic;
pub mod mmu;
pub mod native;
pub mod system;
mod translate;
mod vcpu;
pub mod world;

pub use crate::core::{Core, Shared, Trap};
pub use crate::engine::SoftEngine;
pub use crate::system::clock::expect_tsc_khz;
