//! The serial console on the user's terminal.

pub mod input;
pub mod keys;
pub mod log;
pub mod monitor;
pub mod output;
pub mod terminal;
