//! Test kernels on the software engine: what the guest does must be seen.

mod support;

use std::time::{Duration, Instant};

use machine::{
    CpuChoice, Description, MachineError, Nic, NicNetwork, OnReset, Outcome, RunState, UserNic,
    WatchdogAction,
};
use support::{description, kernel, machine, run};

fn soft(
    ram: std::sync::Arc<memory::GuestRam>,
    cpus: u32,
    cpu: CpuChoice,
) -> Result<std::sync::Arc<dyn engine::Engine>, engine::EngineError> {
    engine_soft::SoftEngine::new(ram, cpus, cpu)
}

#[test]
fn hello_on_the_serial_port_and_a_debug_exit() {
    let (outcome, text) = run(description("hello", 1, "the command line"), &soft);
    assert!(matches!(*outcome, Outcome::DebugExit(0x21)), "{outcome:?}");
    assert_eq!(text, "hello from the command line\n");
}

#[test]
fn without_debug_exit_the_port_does_nothing() {
    let mut d = description("hello", 1, "");
    d.debug_exit = false;
    let (m, screen) = machine(d, &soft);
    m.start(Some(Duration::from_secs(2))).unwrap();
    assert!(matches!(*m.wait(), Outcome::TimedOut));
    assert_eq!(screen.text(), "hello from \n");
}

#[test]
fn a_triple_fault_ends_the_machine() {
    let (outcome, _) = run(description("triple", 1, ""), &soft);
    assert!(matches!(*outcome, Outcome::TripleFault(0)), "{outcome:?}");
}

#[test]
fn ten_ticks_of_the_timer_through_the_8259() {
    let (outcome, text) = run(description("timer", 1, ""), &soft);
    assert!(matches!(*outcome, Outcome::DebugExit(0x10)), "{outcome:?}");
    assert_eq!(text, "ten ticks\n");
}

#[test]
fn processors_start_by_init_and_sipi_and_count_together() {
    for cpus in [1, 2, 4, 8] {
        let (outcome, text) = run(description("smp", cpus, &cpus.to_string()), &soft);
        assert!(
            matches!(*outcome, Outcome::DebugExit(0x11)),
            "{cpus}: {outcome:?}"
        );
        assert_eq!(text, "all processors counted\n");
    }
}

#[test]
fn soft_off_by_acpi() {
    let (outcome, _) = run(description("poweroff", 2, ""), &soft);
    assert!(matches!(*outcome, Outcome::PoweredOff), "{outcome:?}");
}

#[test]
fn a_reset_ends_or_reboots() {
    let (outcome, _) = run(description("reboot", 1, ""), &soft);
    assert!(matches!(*outcome, Outcome::Reset), "{outcome:?}");
    let mut d = description("reboot", 2, "");
    d.on_reset = OnReset::Reboot;
    let (outcome, _) = run(d, &soft);
    assert!(matches!(*outcome, Outcome::DebugExit(3)), "{outcome:?}");
}

#[test]
fn a_watchdog_that_nobody_pings_does_what_it_is_for() {
    let with = |action, on_reset| {
        let mut d = description("watchdog", 1, "");
        d.peripherals.watchdog = Some(action);
        d.on_reset = on_reset;
        d
    };
    let ended = |action, on_reset| run(with(action, on_reset), &soft).0;
    // The guest that was only told of goes on, and sees it.
    let outcome = ended(WatchdogAction::Nothing, OnReset::Exit);
    assert!(matches!(*outcome, Outcome::DebugExit(4)), "{outcome:?}");
    let outcome = ended(WatchdogAction::Reset, OnReset::Exit);
    assert!(matches!(*outcome, Outcome::Reset), "{outcome:?}");
    // After the reset the guest knows what it is from.
    let outcome = ended(WatchdogAction::Reset, OnReset::Reboot);
    assert!(matches!(*outcome, Outcome::DebugExit(5)), "{outcome:?}");
    let outcome = ended(WatchdogAction::PowerOff, OnReset::Exit);
    assert!(matches!(*outcome, Outcome::PoweredOff), "{outcome:?}");
    let (m, _) = machine(with(WatchdogAction::Pause, OnReset::Exit), &soft);
    m.start(Some(Duration::from_secs(60))).unwrap();
    while m.run_state() != RunState::Paused {
        assert!(m.wait_for(Duration::from_millis(10)).is_none());
    }
    m.resume();
    let outcome = m.wait();
    assert!(matches!(*outcome, Outcome::DebugExit(4)), "{outcome:?}");
}

#[test]
fn endless_guests_can_be_inspected_paused_timed_out_and_stopped() {
    for name in ["spin", "idle"] {
        let (m, _) = machine(description(name, 2, ""), &soft);
        assert_eq!(m.run_state(), RunState::Created);
        m.start(None).unwrap();
        assert!(m.wait_for(Duration::from_millis(50)).is_none());
        assert!(m.registers(0).unwrap().rip >= 0x10_0000, "{name}");
        assert_eq!(m.stats().unwrap().len(), 2);
        m.pause();
        assert_eq!(m.run_state(), RunState::Paused);
        assert!(m.registers(1).is_ok());
        m.resume();
        assert_eq!(m.run_state(), RunState::Running);
        m.stop();
        assert!(matches!(*m.wait(), Outcome::Stopped));
        assert!(matches!(m.registers(0), Err(MachineError::Ended)));
        let (m, _) = machine(description(name, 1, ""), &soft);
        let start = Instant::now();
        m.start(Some(Duration::from_millis(200))).unwrap();
        assert!(matches!(*m.wait(), Outcome::TimedOut));
        assert!(start.elapsed() >= Duration::from_millis(200));
    }
}

#[test]
fn a_saved_machine_goes_on_in_another_one() {
    let mut described = description("idle", 2, "");
    described.uuid = [5; 16];
    described.nics = vec![Nic::new(NicNetwork::User(UserNic::default())); 2];
    let (m, _) = machine(described.clone(), &soft);
    m.start(None).unwrap();
    assert!(m.wait_for(Duration::from_millis(20)).is_none());
    assert!(m.save().is_err(), "a running machine is not saved");
    m.pause();
    let state = m.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    described.uuid = [6; 16];
    let (n, _) = machine(described, &soft);
    n.pause();
    n.restore(&machine::MachineState::from_json(&text).unwrap())
        .unwrap();
    let again = n.save().unwrap();
    assert_eq!(again.vcpus[0].gpr, state.vcpus[0].gpr);
    assert_eq!(again.vcpus[0].segments, state.vcpus[0].segments);
    let slots: Vec<u8> = state
        .devices
        .user_networks
        .iter()
        .map(|(s, _)| *s)
        .collect();
    assert_eq!(slots, [8, 9]);
    // The guest knows its cards by their addresses.
    let addresses = |m: &machine::Machine| m.nics().map(|n| n.card.mac()).collect::<Vec<_>>();
    assert_eq!(addresses(&m), addresses(&n));
    assert_ne!(addresses(&m)[0], addresses(&m)[1]);
    let newer = text.replacen("\"version\":1", "\"version\":9", 1);
    let error = machine::MachineState::from_json(&newer)
        .unwrap_err()
        .to_string();
    assert!(error.contains("version 9"), "{error}");
}

#[test]
fn bad_descriptions_and_files_are_refused_before_anything_runs() {
    let try_new = |d: Description| {
        let screen = std::sync::Arc::new(support::Screen::default());
        machine::Machine::new(d, &soft, support::consoles(&screen))
            .map(|_| ())
            .unwrap_err()
    };
    let hello = kernel("hello");
    let good = Description::new(1, 32 << 20, &hello);
    let mut d = good.clone();
    d.cpus = 1000;
    assert!(matches!(try_new(d), MachineError::Description(_)));
    let mut d = good.clone();
    d.boot.as_kernel_mut().unwrap().kernel = "/nonexistent".into();
    assert!(matches!(try_new(d), MachineError::Boot(_)));
    let mut d = good.clone();
    d.disks.push(machine::Disk::new("/nonexistent.img"));
    assert!(matches!(try_new(d), MachineError::Disk(_)));
    let mut d = good;
    d.boot.as_kernel_mut().unwrap().initrd = Some("/nonexistent.initrd".into());
    assert!(matches!(try_new(d), MachineError::Boot(_)));
}
