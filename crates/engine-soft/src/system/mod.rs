//! Segments, events, privileged instructions, MSRs, CPUID.

use arch::Exception;
use iced_x86::Instruction;

use crate::core::{Core, Exec};

/// Executes a system instruction (called by `interpret::step`).
///
/// # Errors
/// [`crate::core::Trap`]; a fault leaves the state as it was.
pub fn execute(core: &mut Core, i: &Instruction) -> Exec {
    let _ = (core, i);
    Err(Exception::ud().into())
}

/// Delivers an exception raised by an instruction through the IDT, with
/// double-fault handling.
///
/// # Errors
/// `Trap::Shutdown` on a triple fault.
pub fn deliver_exception(core: &mut Core, e: Exception) -> Exec {
    let _ = (core, e);
    Err(crate::core::Trap::Shutdown)
}

/// Delivers an external interrupt (`nmi`: the NMI, vector 2).
///
/// # Errors
/// `Trap::Shutdown` on a triple fault.
pub fn deliver_interrupt(core: &mut Core, vector: u8, nmi: bool) -> Exec {
    let _ = (core, vector, nmi);
    Err(crate::core::Trap::Shutdown)
}
