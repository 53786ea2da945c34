//! The interpreter: one decoded instruction at a time, in every mode. The
//! reference for correctness.

use iced_x86::Instruction;

use crate::core::{Core, Exec};

pub(crate) mod operand;

/// Executes one instruction that was decoded at the current `rip` in the
/// current mode. On success `rip` is past it (or at the branch target; a
/// repeated string instruction may return with `rip` still on itself after a
/// bounded number of iterations, so that interrupts get through).
///
/// # Errors
/// [`crate::core::Trap`]; a fault leaves the state as it was.
pub fn step(core: &mut Core, i: &Instruction) -> Exec {
    let _ = (core, i);
    Err(arch::Exception::ud().into())
}
