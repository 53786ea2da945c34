//! The translator against the interpreter: compiled programs, every
//! instruction form, random sequences, changing code.

mod engine;
mod guest;
mod programs;
mod remap;
mod sequence;
mod sequence_make;
mod single;

#[allow(dead_code, unused_imports, missing_docs)]
#[path = "../../../tests/support/mod.rs"]
mod support;
