//! What every engine promises, on both: stops, interrupts, timers, debuggers.

use std::arch::asm;
use std::os::fd::AsFd;
use std::time::Duration;

use arch::{CpuState, Injected, MpState};
use engine::{DebugRequest, DebugStop, Exit, MsiMessage, Watchpoint};
use rustix::event::{EventfdFlags, eventfd};

use super::lab::{CODE, DATA, EngineKind, HANDLERS, Lab, MMIO, Mode, start};
use super::programs::code;

const APIC: u64 = 0xfee0_0000;

/// Name, and what fails if the promise is broken.
type Check = (&'static str, fn(&mut Lab));

/// All promises, on one engine.
pub fn all(kind: EngineKind) {
    let checks: [Check; 15] = [
        ("a kick is kept", a_kick_is_kept),
        (
            "a kick ends a loop and a halt",
            a_kick_ends_a_loop_and_a_halt,
        ),
        ("a message wakes", a_message_wakes_a_halted_vcpu),
        ("a level interrupt ends", a_level_interrupt_tells_of_its_end),
        ("the 8259 pair interrupts", the_8259_pair_interrupts),
        ("nmi", an_nmi_interrupts_even_a_halted_vcpu),
        ("the timer fires", the_timer_fires_after_a_restore),
        ("a debugger steps", a_debugger_steps),
        ("a debugger stops", a_debugger_stops_the_guest),
        ("what was begun", what_was_begun_is_delivered),
        ("doorbells ring", doorbells_ring_by_themselves),
        ("lines send", lines_send_what_changes),
        ("lines lose nothing", lines_lose_nothing),
        ("failures are told", what_kvm_cannot_do_is_told),
        ("time stands", time_stands_while_it_is_stopped),
    ];
    for (name, check) in checks {
        println!("{kind:?}: {name}");
        check(&mut Lab::new(kind, 1));
    }
    println!("{kind:?}: a second vCPU starts");
    a_second_vcpu_starts(&mut Lab::new(kind, 2));
}

/// A kernel with its local APIC on, about to run this code, with interrupts
/// allowed or not.
fn begin(lab: &mut Lab, code: &[u8], interrupts: bool) -> CpuState {
    lab.load(code);
    let mut state = start(&lab.reset, Mode::Kernel);
    state.lapic.base = APIC | 0xd00;
    state.lapic.regs[0xf] = 0x1ff;
    if interrupts {
        state.rflags |= 0x200;
    }
    lab.vcpus[0].restore(&state).unwrap();
    state
}

fn handler(vector: u64) -> u64 {
    // Past `out`.
    HANDLERS + vector * 16 + 2
}

fn rip(lab: &mut Lab) -> u64 {
    lab.vcpus[0].save().unwrap().rip
}

fn later(f: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        f();
    })
}

fn a_kick_is_kept(lab: &mut Lab) {
    begin(lab, &code!("2: jmp 2b"), false);
    lab.vcpus[0].handle().kick();
    assert_eq!(lab.run(), Exit::Kicked);
    assert_eq!(rip(lab), CODE);
}

fn a_kick_ends_a_loop_and_a_halt(lab: &mut Lab) {
    for (code, halted) in [(code!("2: jmp 2b"), false), (code!("hlt"), true)] {
        begin(lab, &code, true);
        let handle = lab.vcpus[0].handle();
        let kick = later(move || handle.kick());
        assert_eq!(lab.run(), Exit::Kicked);
        kick.join().unwrap();
        let state = lab.vcpus[0].save().unwrap();
        assert_eq!(state.mp_state == MpState::Halted, halted);
    }
}

fn a_message_wakes_a_halted_vcpu(lab: &mut Lab) {
    begin(lab, &code!("hlt", "ud2"), true);
    let sink = lab.engine.interrupts();
    let send = later(move || {
        sink.send(MsiMessage {
            address: APIC,
            data: 0x51,
        });
    });
    assert_eq!(lab.run(), Exit::Kicked);
    send.join().unwrap();
    let state = lab.vcpus[0].save().unwrap();
    assert_eq!(state.rip, handler(0x51));
    assert_eq!(state.lapic.regs[0x12], 1 << 17, "in service");
}

fn a_level_interrupt_tells_of_its_end(lab: &mut Lab) {
    begin(lab, &code!("2: jmp 2b"), true);
    // The handler ends the interrupt.
    let eoi = code!(
        "mov ecx, 0x80b",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "out 0x80, al"
    );
    lab.ram.write(HANDLERS + 0x61 * 16, &eoi).unwrap();
    let level = MsiMessage {
        address: APIC,
        data: 0xc061,
    };
    lab.engine.interrupts().send(level);
    assert_eq!(lab.run(), Exit::Kicked);
    let seen = lab.bus.seen.lock().unwrap().join(" ");
    assert!(seen.contains("eoi 0x61"), "{seen}");
    // In service in a state that is restored, it ends just so.
    begin(lab, &eoi, false);
    let mut state = lab.vcpus[0].save().unwrap();
    state.lapic.regs[0x13] = 1 << 2;
    state.lapic.regs[0x1b] = 1 << 2;
    lab.vcpus[0].restore(&state).unwrap();
    assert_eq!(lab.run(), Exit::Kicked);
    let seen = lab.bus.seen.lock().unwrap().join(" ");
    assert!(seen.contains("eoi 0x62"), "{seen}");
}

fn the_8259_pair_interrupts(lab: &mut Lab) {
    // While it runs with interrupts off and then on, and while it is halted.
    let waits = code!(
        "mov ecx, 1000000",
        "2: dec ecx",
        "jnz 2b",
        "sti",
        "nop",
        "3: jmp 3b"
    );
    for (code, interrupts) in [(waits, false), (code!("hlt"), true)] {
        let mut state = begin(lab, &code, interrupts);
        state.lapic.regs[0x35] = 0x700;
        lab.vcpus[0].restore(&state).unwrap();
        *lab.bus.extint.lock().unwrap() = Some(0x28);
        let sink = lab.engine.interrupts();
        let rise = later(move || sink.set_extint(true));
        assert_eq!(lab.run(), Exit::Kicked);
        rise.join().unwrap();
        lab.engine.interrupts().set_extint(false);
        assert_eq!(rip(lab), handler(0x28));
    }
}

fn an_nmi_interrupts_even_a_halted_vcpu(lab: &mut Lab) {
    for code in [code!("2: jmp 2b"), code!("hlt")] {
        begin(lab, &code, false);
        let handle = lab.vcpus[0].handle();
        let nmi = later(move || handle.nmi());
        assert_eq!(lab.run(), Exit::Kicked);
        nmi.join().unwrap();
        let state = lab.vcpus[0].save().unwrap();
        assert_eq!(state.rip, handler(2));
        assert!(state.nmi_blocked);
    }
}

fn the_timer_fires_after_a_restore(lab: &mut Lab) {
    let mut state = begin(lab, &code!("hlt"), true);
    let now = lab.vcpus[0].save().unwrap().tsc;
    state.tsc = now;
    state.lapic.regs[0x32] = 0x4_0071;
    state.lapic.tsc_deadline = now + u64::from(lab.engine.cpu().tsc_khz) * 50;
    lab.vcpus[0].restore(&state).unwrap();
    let saved = lab.vcpus[0].save().unwrap();
    assert_eq!(saved.lapic.tsc_deadline, state.lapic.tsc_deadline);
    assert_eq!(lab.run(), Exit::Kicked);
    let fired = lab.vcpus[0].save().unwrap();
    assert_eq!(fired.rip, handler(0x71));
    assert!(fired.tsc >= state.lapic.tsc_deadline);
    // By count, and periodically.
    state.tsc = fired.tsc;
    state.lapic.tsc_deadline = 0;
    state.lapic.regs[0x32] = 0x2_0072;
    state.lapic.regs[0x3e] = 0xb;
    state.lapic.regs[0x38] = 20_000_000;
    state.lapic.regs[0x39] = 10_000_000;
    lab.vcpus[0].restore(&state).unwrap();
    assert_eq!(lab.run(), Exit::Kicked);
    assert_eq!(rip(lab), handler(0x72));
}

fn a_debugger_stops_the_guest(lab: &mut Lab) {
    if lab.engine.name() == "kvm" {
        let many = DebugRequest {
            breakpoints: (0..5).collect(),
            ..DebugRequest::default()
        };
        let refused = lab.vcpus[0].set_debug(&many).unwrap_err().to_string();
        assert!(refused.contains("4 places"), "{refused}");
        // VMRUN of QEMU before 9.1 takes the guest's DR7 and does not arm what
        // it says.
        if std::env::var_os("DEBUG_REGISTERS").is_none_or(|arms| arms != "1") {
            return;
        }
        println!("Kvm: the debug registers are armed");
    }
    let code = code!(
        "nop",
        "mov [rsi + 8], rax",
        "nop",
        "mov rcx, [rsi + 16]",
        "2: jmp 2b"
    );
    begin(lab, &code, false);
    let watch = |address, read, write| Watchpoint {
        address,
        len: 8,
        read,
        write,
    };
    let mut request = DebugRequest {
        breakpoints: vec![CODE + 1],
        watchpoints: vec![watch(DATA + 8, false, true), watch(DATA + 16, true, true)],
        step: false,
    };
    lab.vcpus[0].set_debug(&request).unwrap();
    assert_eq!(lab.run(), Exit::Debug(DebugStop::Breakpoint));
    let at = lab.vcpus[0].save().unwrap();
    assert_eq!((at.rip, at.rflags), (CODE + 1, 0x3002));
    request.breakpoints.clear();
    lab.vcpus[0].set_debug(&request).unwrap();
    for (watchpoint, rip_then) in [(0, CODE + 5), (1, CODE + 10)] {
        let stop = DebugStop::Watchpoint(request.watchpoints[watchpoint]);
        assert_eq!(lab.run(), Exit::Debug(stop));
        assert_eq!(rip(lab), rip_then);
    }
}

fn a_debugger_steps(lab: &mut Lab) {
    let code = code!("nop", "mov [rsi + 8], rax", "nop", "2: jmp 2b");
    begin(lab, &code, false);
    let step = DebugRequest {
        step: true,
        ..DebugRequest::default()
    };
    for after in [1, 5, 6] {
        lab.vcpus[0].set_debug(&step).unwrap();
        assert_eq!(lab.run(), Exit::Debug(DebugStop::Step));
        let state = lab.vcpus[0].save().unwrap();
        assert_eq!((state.rip, state.rflags), (CODE + after, 0x3002));
    }
    lab.vcpus[0].set_debug(&DebugRequest::default()).unwrap();
    lab.vcpus[0].handle().kick();
    assert_eq!(lab.run(), Exit::Kicked);
    // What the guest itself has in its debug registers is left alone.
    assert_eq!(lab.vcpus[0].save().unwrap().dr[7], 0x400);
}

/// A state may have been saved in the middle of a delivery.
fn what_was_begun_is_delivered(lab: &mut Lab) {
    for (vector, exception, error) in [(0x55, false, None), (14, true, Some(2)), (1, true, None)] {
        let mut state = begin(lab, &code!("2: jmp 2b"), true);
        state.cr2 = 0x1234;
        state.injected = Some(Injected {
            vector,
            exception,
            error,
        });
        lab.vcpus[0].restore(&state).unwrap();
        let saved = lab.vcpus[0].save().unwrap();
        assert_eq!(saved.injected, state.injected);
        assert_eq!(lab.run(), Exit::Kicked);
        let end = lab.vcpus[0].save().unwrap();
        assert_eq!((end.rip, end.cr2), (handler(vector.into()), 0x1234));
        assert_eq!(end.injected, None);
        // SS, RSP, RFLAGS, CS, RIP, and perhaps an error code.
        let frame = 40 + 8 * u64::from(error.is_some());
        assert_eq!(end.gpr[4], state.gpr[4] - frame);
    }
}

/// KVM's only: a store signals an event, and the guest does not leave.
fn doorbells_ring_by_themselves(lab: &mut Lab) {
    let Some(doorbells) = lab.engine.interrupts().doorbells() else {
        assert_eq!(lab.engine.name(), "soft");
        return;
    };
    let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let code = code!(
        "mov ebx, 0xd0000000",
        "mov [rbx + 0x100], ax",
        "mov [rbx + 0x104], ax",
        "out 0x80, al"
    );
    for attached in [true, false] {
        match attached {
            true => doorbells.attach(MMIO + 0x100, event.as_fd()).unwrap(),
            false => doorbells.detach(MMIO + 0x100, event.as_fd()).unwrap(),
        }
        begin(lab, &code, false);
        lab.bus.seen.lock().unwrap().clear();
        assert_eq!(lab.run(), Exit::Kicked);
        let seen = lab.bus.seen.lock().unwrap().join(" ");
        assert_eq!(seen.contains("store 0xd0000100"), !attached, "{seen}");
        assert!(seen.contains("store 0xd0000104"), "{seen}");
        let rung = rustix::io::read(&event, &mut [0; 8]);
        assert_eq!(rung.is_ok(), attached);
    }
}

/// Events that are open in this process.
fn events() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    names
        .filter(|name| name.to_string_lossy().contains("[eventfd]"))
        .count()
}

/// Vectors that wait at the first vCPU's local APIC.
fn requested(lab: &mut Lab) -> Vec<u8> {
    let state = lab.vcpus[0].save().unwrap();
    let has = |v: &u8| state.lapic.regs[0x20 + usize::from(v / 32)] >> (v % 32) & 1 != 0;
    (0..=255).filter(has).collect()
}

/// KVM's only: an event per source, whose message the guest may change.
fn lines_send_what_changes(lab: &mut Lab) {
    let sink = lab.engine.interrupts();
    let Some(line) = sink.line() else {
        assert_eq!(lab.engine.name(), "soft");
        return;
    };
    let message = |data| MsiMessage {
        address: APIC,
        data,
    };
    let before = events();
    // The same twice, another, one that no event can send, and the first.
    for (data, vector) in [
        (0x51, 0x51),
        (0x51, 0x51),
        (0x52, 0x52),
        (0x400, 2),
        (0x51, 0x51),
    ] {
        begin(lab, &code!("hlt", "ud2"), true);
        let line = line.clone();
        let send = later(move || line.send(message(data)));
        assert_eq!(lab.run(), Exit::Kicked);
        send.join().unwrap();
        assert_eq!(rip(lab), handler(vector));
        assert_eq!(events(), before + 1);
    }
    // What KVM refuses does not stand in the way of others, a level-triggered
    // one neither.
    begin(lab, &code!("2: jmp 2b"), false);
    let nowhere = APIC | 1 << 32;
    let other = sink.line().unwrap();
    for (address, data) in [
        (nowhere, 0x60),
        (nowhere, 0xc061),
        (APIC, 0xc062),
        (APIC, 0x63),
    ] {
        other.send(MsiMessage { address, data });
    }
    line.send(message(0x54));
    assert_eq!(requested(lab), [0x54, 0x62, 0x63]);
    drop((line, other));
    assert_eq!(events(), before);
}

/// KVM's only: what was sent is in a saved state, and a host without room for
/// events has the messages arrive all the same.
fn lines_lose_nothing(lab: &mut Lab) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let sink = lab.engine.interrupts();
    if sink.line().is_none() {
        assert_eq!(lab.engine.name(), "soft");
        return;
    }
    begin(lab, &code!("2: jmp 2b"), false);
    let lines: Vec<_> = (0..24).map(|_| sink.line().unwrap()).collect();
    // The lowest descriptor that is free, and a few more.
    let free = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let old = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(std::os::fd::AsRawFd::as_raw_fd(&free) as u64 + 8),
        ..old
    };
    drop(free);
    let before = events();
    setrlimit(Resource::Nofile, few).unwrap();
    let everyone = APIC | 0xff << 12 | 1 << 2;
    for (vector, line) in (0x40..).zip(&lines) {
        line.send(MsiMessage {
            address: if vector % 2 == 0 { APIC } else { everyone },
            data: vector,
        });
    }
    setrlimit(Resource::Nofile, old).unwrap();
    let made = events() - before;
    assert!((1..=8).contains(&made), "{made}");
    let expected: Vec<_> = (0x40..0x40 + lines.len() as u8).collect();
    assert_eq!(requested(lab), expected);
    // After the state was saved, they send as before; many threads at once.
    begin(lab, &code!("2: jmp 2b"), false);
    std::thread::scope(|scope| {
        for (vector, line) in (0x40..).zip(&lines).chain((0x80..).zip(&lines)) {
            let message = MsiMessage {
                address: APIC,
                data: vector,
            };
            scope.spawn(move || line.send(message));
        }
    });
    let expected: Vec<_> = (0x40..0x58).chain(0x80..0x98).collect();
    assert_eq!(requested(lab), expected);
}

/// KVM's only: it cannot run code in a device's memory.
fn what_kvm_cannot_do_is_told(lab: &mut Lab) {
    if lab.engine.name() == "soft" {
        return;
    }
    begin(lab, &code!("mov eax, 0xd0000000", "jmp rax"), false);
    let error = lab.vcpus[0].run().unwrap_err().to_string();
    println!("Kvm: {error}");
    for expected in [
        "internal error 1 of KVM",
        "cannot emulate an instruction",
        "vCPU 0 was at rip 0xd0000000",
        "--engine soft",
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

fn time_stands_while_it_is_stopped(lab: &mut Lab) {
    begin(lab, &code!("rdtsc", "out 0x80, al"), false);
    assert_eq!(lab.run(), Exit::Kicked);
    lab.engine.stop_time();
    let (first, since) = (lab.vcpus[0].save().unwrap(), std::time::Instant::now());
    std::thread::sleep(Duration::from_millis(300));
    let second = lab.vcpus[0].save().unwrap();
    assert_eq!(
        (first.tsc, first.system_time),
        (second.tsc, second.system_time)
    );
    lab.engine.resume_time();
    // The guest's own eyes see the same.
    let mut again = second.clone();
    again.rip = CODE;
    again.tsc = 0;
    lab.vcpus[0].restore(&again).unwrap();
    assert_eq!(lab.run(), Exit::Kicked);
    let third = lab.vcpus[0].save().unwrap();
    let read = third.gpr[0] & 0xffff_ffff | third.gpr[2] << 32;
    assert!(
        (second.tsc..third.tsc).contains(&read),
        "{} {read}",
        second.tsc
    );
    let khz = u64::from(lab.engine.cpu().tsc_khz);
    let passed = Duration::from_micros((third.tsc - second.tsc) * 1000 / khz);
    let most = since.elapsed() - Duration::from_millis(200);
    assert!(passed < most, "{passed:?} {most:?}");
    let clocks = [&second, &third].map(|s| s.system_time.unwrap());
    assert!(clocks[0] <= clocks[1] && Duration::from_nanos(clocks[1] - clocks[0]) < most);
}

/// INIT and SIPI by the first vCPU's local APIC, and an interrupt back.
fn a_second_vcpu_starts(lab: &mut Lab) {
    let first = code!(
        "mov ecx, 0x830",
        "mov edx, 1",
        "mov eax, 0x4500",
        "wrmsr",
        "mov eax, 0x4608",
        "wrmsr",
        "sti",
        "2: hlt",
        "jmp 2b",
    );
    begin(lab, &first, false);
    // At 0x8000, in real mode: turns its APIC on and answers.
    let second = code!(
        ".code16",
        "mov ecx, 0x1b",
        "rdmsr",
        "or eax, 0xc00",
        "wrmsr",
        "mov ecx, 0x80f",
        "mov eax, 0x1ff",
        "xor edx, edx",
        "wrmsr",
        "mov ecx, 0x830",
        "mov eax, 0x4077",
        "wrmsr",
        "cli",
        "2: hlt",
        "jmp 2b",
    );
    lab.ram.write(0x8000, &second).unwrap();
    let mut ap = lab.vcpus.pop().unwrap();
    let ap = std::thread::spawn(move || {
        assert_eq!(ap.run().unwrap(), Exit::Kicked);
        ap.save().unwrap()
    });
    assert_eq!(lab.run(), Exit::Kicked);
    assert_eq!(rip(lab), handler(0x77));
    let ap = ap.join().unwrap();
    assert_eq!(
        (ap.segments[1].selector, ap.segments[1].base),
        (0x800, 0x8000)
    );
    assert!(ap.rip > 0 && ap.rip <= second.len() as u64);
}
