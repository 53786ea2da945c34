//! What runs in the emulated host: both engines side by side, from the same
//! states, and a machine at work.

mod compare;
mod contract;
mod lab;
mod programs;
mod work;

use lab::EngineKind;

/// The step of this name.
pub fn run(step: &str) {
    match step {
        "engines" => engines(),
        "work" => work::all(),
        other => panic!("no step {other}"),
    }
}

/// Prints what differs before it fails.
fn engines() {
    let differences = programs::differ() + programs::states_come_back();
    contract::all(EngineKind::Soft);
    contract::all(EngineKind::Kvm);
    assert_eq!(differences, 0, "the engines differ");
}
