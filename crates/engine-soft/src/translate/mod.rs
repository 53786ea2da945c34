//! The translator: guest 64-bit code to host code.
//!
//! * [`classify`]: what to do with an instruction.
//! * [`block`]: decode, flag liveness, one block at a time.
//! * [`emit`] on [`asm`]: the code of single instructions.
//! * `emit_system`: code for frequent system instructions.
//! * [`group`]: one check for several accesses.
//! * [`cache`]: where code lives, and which page it came from.
//! * [`enter`], [`exit`], [`fault`]: getting in and out.
//! * [`dispatch`]: running: finding, making and linking blocks.

pub(crate) mod asm;
pub(crate) mod block;
pub(crate) mod cache;
pub(crate) mod classify;
pub(crate) mod dispatch;
pub(crate) mod emit;
mod emit_system;
pub(crate) mod enter;
pub(crate) mod exit;
pub(crate) mod fault;
mod flags;
pub(crate) mod group;

#[cfg(test)]
mod tests;
