//! The engine contract on KVM, and the probe that says whether this host's KVM
//! is worth using.
//!
//! Local APICs are the kernel's; I/O APIC, 8259 pair and 8254 stay the
//! machine's own (KVM's "split" interrupt controllers), so that the state of
//! all devices is the same under every engine.

mod clock;
mod debug;
mod doorbells;
mod engine;
mod interrupts;
mod kick;
pub mod probe;
mod registers;
mod state;
mod vcpu;

pub use engine::KvmEngine;
pub use probe::{KvmVerdict, probe};

/// Name of this engine.
const NAME: &str = "kvm";

/// Something that KVM refused.
fn failed(what: impl std::fmt::Display, error: kvm_ioctls::Error) -> ::engine::EngineError {
    ::engine::EngineError::Host {
        engine: NAME,
        reason: format!("KVM cannot {what}: {error}"),
    }
}
