//! What runs in the emulated host: both engines side by side, from the same
//! states.

mod compare;
mod contract;
mod lab;
mod programs;

use lab::EngineKind;

/// All checks. Prints what differs before it fails.
pub fn all() {
    let differences = programs::differ() + programs::states_come_back();
    contract::all(EngineKind::Soft);
    contract::all(EngineKind::Kvm);
    assert_eq!(differences, 0, "the engines differ");
}
