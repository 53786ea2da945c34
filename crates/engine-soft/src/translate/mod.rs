//! The translator: guest code, 64-bit and flat 32-bit, to host code.
//!
//! * [`classify`]: what to do with an instruction; [`lower`]: 32-bit code as
//!   64-bit code.
//! * [`block`]: decode, flag liveness, one block at a time.
//! * [`emit`] on [`asm`]: the code of single instructions.
//! * `emit_check`: memory operands; `emit_jump`: jumps and block entries;
//!   `emit_slow`: what is out of the way of hot code; `flags`: where the
//!   guest's flags are meanwhile.
//! * `emit_system`: code for frequent system instructions; `emit_syscall`,
//!   `emit_iret`; `emit_string`.
//! * [`group`]: one check for several accesses.
//! * `loops`: checks once per page in loops.
//! * [`relocate`]: copies of blocks for other linear addresses.
//! * [`cache`]: where code lives, and which page it came from.
//! * [`enter`], [`exit`], [`fault`]: getting in and out.
//! * `fetch`: the instruction at rip, for the interpreter.
//! * [`dispatch`]: running: finding, making and linking blocks.

pub(crate) mod asm;
pub(crate) mod block;
pub(crate) mod cache;
pub(crate) mod classify;
pub(crate) mod dispatch;
pub(crate) mod emit;
mod emit_check;
mod emit_iret;
mod emit_jump;
mod emit_slow;
mod emit_string;
mod emit_syscall;
mod emit_system;
pub(crate) mod enter;
pub(crate) mod exit;
pub(crate) mod fault;
mod fetch;
mod flags;
pub(crate) mod group;
mod loops;
pub(crate) mod lower;
pub(crate) mod relocate;

#[cfg(test)]
mod tests;
