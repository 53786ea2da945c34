//! The engine contract on KVM, and the probe that says whether this host's KVM
//! is worth using.

pub mod probe;

pub use probe::{KvmVerdict, probe};

/// Whether this build contains the engine itself, not only the probe.
pub const BUILT_IN: bool = false;
