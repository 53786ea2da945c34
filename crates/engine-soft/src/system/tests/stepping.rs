//! Single-step and breakpoints, through the run loop.

use super::*;

/// Runs guest code (with the CPL 0 handler of #DB at `HANDLER`, which counts in
/// r15 and collects DR6 in r14) until it triple-faults; gives r15 and r14.
fn run_debugged(prepare: impl FnOnce(&mut Core), code: &[u8]) -> (u64, u64) {
    use engine::{Exit, Vcpu};
    let mut core = long();
    gate(&core, 1, 0xe, 0, 0);
    // inc r15; push rax; mov rax, dr6; or r14, rax; pop rax; iretq
    let handler = [
        0x49, 0xff, 0xc7, 0x50, 0x0f, 0x21, 0xf0, 0x49, 0x09, 0xc6, 0x58, 0x48, 0xcf,
    ];
    core.ram.write(HANDLER, &handler).unwrap();
    // ... lidt [rip+1]; ud2; 0
    let mut code = code.to_vec();
    code.extend([0x0f, 0x01, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b]);
    code.extend([0; 10]);
    core.ram.write(CODE, &code).unwrap();
    prepare(&mut core);
    let mut v = crate::vcpu::SoftVcpu::new(core);
    // On a thread of its own, as always.
    std::thread::spawn(move || {
        assert_eq!(v.run().unwrap(), Exit::TripleFault);
        let s = v.save().unwrap();
        (s.gpr[15], s.gpr[14] & 0xf00f)
    })
    .join()
    .unwrap()
}

#[test]
fn single_step_traps_after_each_instruction() {
    // pushfq; or dword [rsp], 0x100; popfq; nop x3; pushfq; and [rsp], ~0x100; popfq
    let code = [
        0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90, 0x90, 0x9c, 0x81, 0x24, 0x24, 0xff,
        0xfe, 0xff, 0xff, 0x9d,
    ];
    assert_eq!(run_debugged(|_| (), &code), (6, 0x4000));
    // The same with an interrupt waiting all the time.
    let wait = |core: &mut Core| {
        core.write_msr(arch::msr::APIC_BASE, core.lapic.base() | 1 << 10)
            .unwrap();
        core.write_msr(arch::msr::X2APIC + 0xf, 0x1ff).unwrap();
        core.lapic.request(0x40, false);
    };
    assert_eq!(run_debugged(wait, &code), (6, 0x4000));
}

#[test]
fn data_breakpoints_trap_after_the_access() {
    // mov [0x7008], rax; mov rbx, [0x7008]; mov [0x7010], rax
    let code = [
        0x48, 0x89, 0x04, 0x25, 8, 0x70, 0, 0, 0x48, 0x8b, 0x1c, 0x25, 8, 0x70, 0, 0, 0x48, 0x89,
        0x04, 0x25, 0x10, 0x70, 0, 0,
    ];
    let arm = |dr7: u64| {
        move |core: &mut Core| {
            core.cpu.dr[1] = 0x700c;
            core.cpu.dr[7] = dr7;
        }
    };
    // Writes of 4 bytes; reads and writes; off.
    assert_eq!(run_debugged(arm(0x00d0_0404), &code), (1, 2));
    assert_eq!(run_debugged(arm(0x00f0_0404), &code), (2, 2));
    assert_eq!(run_debugged(arm(0x00f0_0400), &code), (0, 0));
}

#[test]
fn code_breakpoints_stop_before_the_instruction() {
    // nop; nop, with RF set by the handler's image.
    let code = [0x90, 0x90];
    let arm = |core: &mut Core| {
        core.cpu.dr[0] = CODE + 1;
        core.cpu.dr[7] = 0x401;
        // The handler's image gets RF: or dword [rsp+16], 0x10000; iretq
        let handler = [
            0x49, 0xff, 0xc7, 0x50, 0x0f, 0x21, 0xf0, 0x49, 0x09, 0xc6, 0x58, 0x81, 0x4c, 0x24,
            0x10, 0, 0, 1, 0, 0x48, 0xcf,
        ];
        core.ram.write(HANDLER, &handler).unwrap();
    };
    assert_eq!(run_debugged(arm, &code), (1, 1));
}
