//! The translator against the interpreter: compiled programs, every
//! instruction form, random sequences, changing code.

mod engine;
mod guest;
mod narrow;
mod programs;
mod relocate;
mod remap;
mod rings;
mod sequence;
mod sequence_make;
mod single;

#[allow(dead_code, unused_imports, missing_docs)]
#[path = "../../../tests/support/mod.rs"]
mod support;

/// The host as an oracle reports through process-wide signal handlers: the
/// tests of this module run one at a time.
static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
