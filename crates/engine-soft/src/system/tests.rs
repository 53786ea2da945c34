//! System instructions and events on a bare vCPU.

mod nmi;
mod stepping;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arch::exception;
use engine::Bus;
use iced_x86::{Decoder, DecoderOptions};
use memory::GuestRam;

use super::descriptor::UNUSABLE;
use super::*;
use crate::cpu::{Seg, flag};

/// Ports remember the last value written.
struct Ports(AtomicU32);

impl Bus for Ports {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        let v = self.0.load(Ordering::SeqCst).to_le_bytes();
        let n = data.len();
        data.copy_from_slice(&v[..n]);
    }
    fn pio_write(&self, _port: u16, data: &[u8]) {
        let mut v = [0; 4];
        v[..data.len()].copy_from_slice(data);
        self.0.store(u32::from_le_bytes(v), Ordering::SeqCst);
    }
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn acknowledge_extint(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _vector: u8) {}
}

const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
const TSS: u64 = 0x6000;
const CODE: u64 = 0x10000;
const HANDLER: u64 = 0x20000;
const STACK0: u64 = 0x3_0000;
const STACK_IST: u64 = 0x4_0000;
const USER_STACK: u64 = 0x5_0000;

const K_CODE: u16 = 0x08;
const K_DATA: u16 = 0x10;
const U_CODE32: u16 = 0x1b;
const U_DATA: u16 = 0x23;
const U_CODE64: u16 = 0x2b;
const TSS_SEL: u16 = 0x30;
const ABSENT: u16 = 0x40;
const K_CODE32: u16 = 0x48;

fn put(core: &Core, at: u64, v: u64) {
    core.ram.write(at, &v.to_le_bytes()).unwrap();
}

fn get(core: &Core, at: u64) -> u64 {
    let mut b = [0; 8];
    core.ram.read(at, &mut b).unwrap();
    u64::from_le_bytes(b)
}

fn bare() -> Core {
    let ram = GuestRam::new(16 << 20, 3 << 30).unwrap();
    Core::bare(ram, Arc::new(Ports(AtomicU32::new(0)))).unwrap()
}

fn tables(core: &mut Core) {
    for (n, d) in [
        (K_CODE, 0x00af_9b00_0000_ffff),
        (K_DATA, 0x00cf_9300_0000_ffff),
        (U_CODE32, 0x00cf_fb00_0000_ffff),
        (U_DATA, 0x00cf_f300_0000_ffff),
        (U_CODE64, 0x00af_fb00_0000_ffff),
        (TSS_SEL, 0x0000_8900_6000_0067),
        (ABSENT, 0x00cf_7300_0000_ffff),
        (K_CODE32, 0x00cf_9b00_0000_ffff),
    ] {
        put(core, GDT + u64::from(n & !7), d);
    }
    core.cpu.gdt = (GDT, 0x4f);
    core.cpu.idt = (IDT, 0xfff);
}

/// 64-bit mode at CPL 0, the first GiB mapped one to one for all.
fn long() -> Core {
    let mut core = bare();
    put(&core, 0x1000, 0x2007);
    put(&core, 0x2000, 0x87);
    tables(&mut core);
    core.write_msr(arch::msr::EFER, cr::EFER_LME | cr::EFER_SCE | cr::EFER_NXE)
        .unwrap();
    control::write_cr4(&mut core, cr::CR4_PAE | cr::CR4_OSFXSR).unwrap();
    control::write_cr3(&mut core, 0x1000).unwrap();
    control::write_cr0(&mut core, cr::CR0_PE | cr::CR0_PG | cr::CR0_WP).unwrap();
    core.cpu.seg[seg::CS] = Seg::new(K_CODE, 0, !0, 0xa09b);
    core.cpu.seg[seg::SS] = Seg::new(K_DATA, 0, !0, 0xc093);
    core.update_mode();
    segment::load_tr(&mut core, TSS_SEL).unwrap();
    put(&core, TSS + 4, STACK0);
    put(&core, TSS + 0x24, STACK_IST);
    core.cpu.rip = CODE;
    core.cpu.gpr[4] = STACK0;
    assert!(core.cpu.long_mode() && core.cpu.is64());
    core
}

/// The same in 64-bit user mode.
fn user() -> Core {
    let mut core = long();
    core.cpu.seg[seg::CS] = Seg::new(U_CODE64, 0, !0, 0xa0fb);
    core.cpu.seg[seg::SS] = Seg::new(U_DATA, 0, !0, 0xc0f3);
    core.cpu.cpl = 3;
    core.cpu.gpr[4] = USER_STACK;
    core.cpu.rflags |= flag::IF;
    core.update_mode();
    core
}

/// 32-bit protected mode at CPL 0, no paging.
fn protected() -> Core {
    let mut core = bare();
    tables(&mut core);
    put(&core, GDT + u64::from(K_CODE), 0x00cf_9b00_0000_ffff);
    control::write_cr0(&mut core, cr::CR0_PE).unwrap();
    core.cpu.seg[seg::CS] = Seg::new(K_CODE, 0, !0, 0xc09b);
    core.cpu.seg[seg::SS] = Seg::new(K_DATA, 0, !0, 0xc093);
    core.update_mode();
    segment::load_tr(&mut core, TSS_SEL).unwrap();
    core.cpu.rip = CODE;
    core.cpu.gpr[4] = STACK0;
    core
}

fn gate(core: &Core, vector: u64, kind: u64, dpl: u64, ist: u64) {
    let at = IDT + vector * 16;
    let low = HANDLER & 0xffff
        | u64::from(K_CODE) << 16
        | ist << 32
        | (0x80 | dpl << 5 | kind) << 40
        | (HANDLER >> 16 & 0xffff) << 48;
    put(core, at, low);
    put(core, at + 8, 0);
}

fn gate32(core: &Core, vector: u64, kind: u64, dpl: u64) {
    let low = HANDLER & 0xffff
        | u64::from(K_CODE) << 16
        | (0x80 | dpl << 5 | kind) << 40
        | (HANDLER >> 16 & 0xffff) << 48;
    put(core, IDT + vector * 8, low);
}

fn run(core: &mut Core, code: &[u8]) -> Exec {
    let mut d = Decoder::with_ip(
        u32::from(core.cpu.bits),
        code,
        core.cpu.rip,
        DecoderOptions::NONE,
    );
    let i = d.decode();
    crate::interpret::step(core, &i)
}

fn fault(r: Exec) -> (u8, u32) {
    match r {
        Err(Trap::Fault(e)) => (e.vector, e.error.unwrap_or(0)),
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn loading_data_segments_checks_type_privilege_and_presence() {
    let mut core = protected();
    load_segment(&mut core, seg::DS, K_DATA).unwrap();
    assert_eq!(core.cpu.seg[seg::DS].limit, u32::MAX);
    let before = core.cpu.seg[seg::DS];
    assert_eq!(
        fault(load_segment(&mut core, seg::DS, ABSENT)),
        (exception::NP, 0x40)
    );
    assert_eq!(
        fault(load_segment(&mut core, seg::DS, 0x58)),
        (exception::GP, 0x58)
    );
    assert_eq!(
        fault(load_segment(&mut core, seg::DS, TSS_SEL)),
        (exception::GP, 0x30)
    );
    assert_eq!(
        fault(load_segment(&mut core, seg::DS, 0x0c)),
        (exception::GP, 0x0c)
    );
    assert_eq!(core.cpu.seg[seg::DS], before);
    assert_eq!(
        fault(load_segment(&mut core, seg::SS, 0)),
        (exception::GP, 0)
    );
    assert_eq!(
        fault(load_segment(&mut core, seg::SS, U_DATA)),
        (exception::GP, 0x20)
    );
    // CPL 3 may not use a kernel's data.
    core.cpu.cpl = 3;
    assert_eq!(
        fault(load_segment(&mut core, seg::ES, K_DATA)),
        (exception::GP, 0x10)
    );
    load_segment(&mut core, seg::ES, 0).unwrap();
    assert_ne!(core.cpu.seg[seg::ES].rights & UNUSABLE, 0);
}

#[test]
fn a_load_sets_the_accessed_bit() {
    let mut core = protected();
    put(&core, GDT + u64::from(K_DATA), 0x00cf_9200_0000_ffff);
    load_segment(&mut core, seg::DS, K_DATA).unwrap();
    assert_eq!(get(&core, GDT + u64::from(K_DATA)) >> 40 & 0xff, 0x93);
    assert_eq!(core.cpu.seg[seg::DS].rights & 0xff, 0x93);
}

#[test]
fn mov_and_pop_ss_hold_interrupts_off() {
    let mut core = protected();
    core.cpu.gpr[0] = u64::from(K_DATA);
    run(&mut core, &[0x8e, 0xd0]).unwrap();
    assert!(core.cpu.shadow);
    assert_eq!(core.cpu.rip, CODE + 2);
    core.cpu.shadow = false;
    put(&core, STACK0, u64::from(K_DATA));
    run(&mut core, &[0x17]).unwrap();
    assert!(core.cpu.shadow);
    assert_eq!(core.cpu.gpr[4], STACK0 + 4);
}

#[test]
fn ltr_marks_the_tss_busy_and_refuses_a_busy_one() {
    let mut core = long();
    assert_eq!(get(&core, GDT + 0x30) >> 40 & 15, 11);
    assert_eq!(
        fault(segment::load_tr(&mut core, TSS_SEL)),
        (exception::GP, 0x30)
    );
}

#[test]
fn an_interrupt_from_user_mode_switches_the_stack() {
    let mut core = user();
    gate(&core, 0x40, 0xe, 0, 0);
    core.cpu.rflags |= flag::TF | flag::AC;
    let flags = core.cpu.rflags;
    deliver_interrupt(&mut core, 0x40, false).unwrap();
    assert_eq!((core.cpu.rip, core.cpu.cpl), (HANDLER, 0));
    assert_eq!(core.cpu.gpr[4], STACK0 - 40);
    assert_eq!(core.cpu.seg[seg::SS].selector, 0);
    assert_eq!(core.cpu.rflags & (flag::IF | flag::TF), 0);
    assert_ne!(core.cpu.rflags & flag::AC, 0);
    let sp = core.cpu.gpr[4];
    assert_eq!(get(&core, sp), CODE);
    assert_eq!(get(&core, sp + 8), u64::from(U_CODE64));
    assert_eq!(get(&core, sp + 16), flags);
    assert_eq!(get(&core, sp + 24), USER_STACK);
    assert_eq!(get(&core, sp + 32), u64::from(U_DATA));
    // And back.
    run(&mut core, &[0x48, 0xcf]).unwrap();
    assert_eq!((core.cpu.rip, core.cpu.cpl), (CODE, 3));
    assert_eq!(core.cpu.gpr[4], USER_STACK);
    assert_eq!(core.cpu.rflags, flags);
    assert_eq!(core.cpu.seg[seg::SS].selector, U_DATA);
    assert_eq!(core.cpu.view, crate::cpu::View::User as u8);
}

#[test]
fn a_fault_pushes_its_error_code_with_rf_on_an_aligned_stack() {
    let mut core = long();
    gate(&core, 14, 0xe, 0, 0);
    core.cpu.gpr[4] = STACK0 - 5;
    deliver_exception(&mut core, Exception::page_fault(2, 0xdead_0000)).unwrap();
    assert_eq!(core.cpu.cr2, 0xdead_0000);
    assert_eq!(core.cpu.gpr[4], ((STACK0 - 5) & !15) - 48);
    assert_eq!(get(&core, core.cpu.gpr[4]), 2);
    assert_ne!(get(&core, core.cpu.gpr[4] + 24) & flag::RF, 0);
    assert_eq!(get(&core, core.cpu.gpr[4] + 32), STACK0 - 5);
}

#[test]
fn a_fault_on_a_bad_stack_becomes_a_double_fault() {
    let mut core = user();
    gate(&core, 14, 0xe, 0, 0);
    gate(&core, 8, 0xe, 0, 1);
    // Kernel stack in unmapped memory: #PF while delivering #PF.
    put(&core, TSS + 4, 0x60_0000_0000);
    let (rip, rsp) = (core.cpu.rip, core.cpu.gpr[4]);
    deliver_exception(&mut core, Exception::page_fault(4, 0x1234)).unwrap();
    assert_eq!(core.cpu.gpr[4], STACK_IST - 48);
    assert_eq!(get(&core, STACK_IST - 48), 0);
    assert_eq!(get(&core, STACK_IST - 40), rip);
    assert_eq!(get(&core, STACK_IST - 16), rsp);
    assert_eq!(core.cpu.cr2, 0x60_0000_0000 - 48);
}

#[test]
fn no_double_fault_handler_is_a_shutdown() {
    let mut core = user();
    gate(&core, 14, 0xe, 0, 0);
    put(&core, TSS + 4, 0x60_0000_0000);
    let before = (core.cpu.rip, core.cpu.gpr[4], core.cpu.cpl);
    let r = deliver_exception(&mut core, Exception::page_fault(4, 0x1234));
    assert_eq!(r, Err(Trap::Shutdown));
    assert_eq!((core.cpu.rip, core.cpu.gpr[4], core.cpu.cpl), before);
}

#[test]
fn an_absent_gate_gives_np_with_idt_and_ext_bits() {
    let mut core = long();
    gate(&core, 11, 0xe, 0, 0);
    gate(&core, 0x50, 0xe, 0, 0);
    let at = IDT + 0x500;
    put(&core, at, get(&core, at) & !(0x80 << 40));
    deliver_interrupt(&mut core, 0x50, false).unwrap();
    assert_eq!(get(&core, core.cpu.gpr[4]), 0x50 << 3 | 3);
}

#[test]
fn int_n_needs_the_gate_to_allow_it() {
    let mut core = user();
    gate(&core, 3, 0xf, 3, 0);
    gate(&core, 0x80, 0xf, 0, 0);
    assert_eq!(
        fault(run(&mut core, &[0xcd, 0x80])),
        (exception::GP, 0x80 << 3 | 2)
    );
    assert_eq!(core.cpu.rip, CODE);
    run(&mut core, &[0xcc]).unwrap();
    assert_eq!(core.cpu.rip, HANDLER);
    assert_eq!(get(&core, core.cpu.gpr[4]), CODE + 1);
    // A trap gate leaves IF.
    assert_ne!(core.cpu.rflags & flag::IF, 0);
}

#[test]
fn syscall_and_sysret_round_trip() {
    let mut core = user();
    core.write_msr(arch::msr::STAR, 0x0018_0008 << 32).unwrap();
    core.write_msr(arch::msr::LSTAR, HANDLER).unwrap();
    core.write_msr(arch::msr::SFMASK, flag::IF | flag::TF)
        .unwrap();
    let flags = core.cpu.rflags;
    run(&mut core, &[0x0f, 0x05]).unwrap();
    assert_eq!((core.cpu.rip, core.cpu.cpl), (HANDLER, 0));
    assert_eq!((core.cpu.gpr[1], core.cpu.gpr[11]), (CODE + 2, flags));
    assert_eq!(core.cpu.seg[seg::CS].selector, 8);
    assert_eq!(core.cpu.seg[seg::SS].selector, 0x10);
    assert_eq!(core.cpu.rflags & flag::IF, 0);
    core.cpu.gpr[1] = 1 << 63;
    assert_eq!(
        fault(run(&mut core, &[0x48, 0x0f, 0x07])),
        (exception::GP, 0)
    );
    core.cpu.gpr[1] = CODE + 2;
    run(&mut core, &[0x48, 0x0f, 0x07]).unwrap();
    assert_eq!((core.cpu.rip, core.cpu.cpl), (CODE + 2, 3));
    assert_eq!(core.cpu.seg[seg::CS].selector, U_CODE64);
    assert_eq!(core.cpu.seg[seg::SS].selector, U_DATA);
    assert_eq!(core.cpu.rflags, flags);
    assert!(core.cpu.is64());
}

#[test]
fn iretq_refuses_bad_frames_and_changes_nothing() {
    let mut core = long();
    let frame = |core: &mut Core, cs: u64, ip: u64, ss: u64| {
        for (n, v) in [ip, cs, 2, USER_STACK, ss].into_iter().enumerate() {
            put(core, STACK0 + 8 * n as u64, v);
        }
        fault(run(core, &[0x48, 0xcf]))
    };
    let ok_cs = u64::from(U_CODE64);
    let ok_ss = u64::from(U_DATA);
    assert_eq!(frame(&mut core, 0, CODE, ok_ss), (exception::GP, 0));
    assert_eq!(frame(&mut core, ok_ss, CODE, ok_ss), (exception::GP, 0x20));
    assert_eq!(frame(&mut core, ok_cs, 1 << 50, ok_ss), (exception::GP, 0));
    assert_eq!(
        frame(&mut core, ok_cs, CODE, u64::from(K_DATA)),
        (exception::GP, 0x10)
    );
    assert_eq!(frame(&mut core, ok_cs, CODE, 0), (exception::GP, 0));
    assert_eq!(
        (core.cpu.rip, core.cpu.cpl, core.cpu.gpr[4]),
        (CODE, 0, STACK0)
    );
    core.cpu.rflags |= flag::NT;
    assert_eq!(frame(&mut core, ok_cs, CODE, ok_ss), (exception::GP, 0));
}

#[test]
fn iretq_to_compatibility_mode_runs_32_bit_code() {
    let mut core = long();
    let frame = [
        CODE,
        u64::from(U_CODE32),
        0x202,
        USER_STACK,
        u64::from(U_DATA),
    ];
    for (n, v) in frame.into_iter().enumerate() {
        put(&core, STACK0 + 8 * n as u64, v);
    }
    run(&mut core, &[0x48, 0xcf]).unwrap();
    assert_eq!((core.cpu.bits, core.cpu.cpl), (32, 3));
    // Interrupted there, the kernel is entered in 64-bit mode.
    gate(&core, 0x80, 0xf, 3, 0);
    run(&mut core, &[0xcd, 0x80]).unwrap();
    assert_eq!(
        (core.cpu.bits, core.cpu.cpl, core.cpu.rip),
        (64, 0, HANDLER)
    );
    assert_eq!(get(&core, core.cpu.gpr[4] + 8), u64::from(U_CODE32));
}

#[test]
fn protected_mode_interrupt_to_inner_level_and_back() {
    let mut core = protected();
    gate32(&core, 0x21, 0xe, 0);
    put(&core, TSS + 4, STACK0 | u64::from(K_DATA) << 32);
    core.cpu.seg[seg::CS] = Seg::new(U_CODE32, 0, !0, 0xc0fb);
    core.cpu.seg[seg::SS] = Seg::new(U_DATA, 0, !0, 0xc0f3);
    core.cpu.seg[seg::DS] = Seg::new(K_DATA, 0, !0, 0xc093);
    core.cpu.cpl = 3;
    core.cpu.gpr[4] = USER_STACK;
    core.update_mode();
    deliver_interrupt(&mut core, 0x21, false).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.cpl, core.cpu.gpr[4]),
        (HANDLER, 0, STACK0 - 20)
    );
    assert_eq!(get(&core, STACK0 - 20), CODE | u64::from(U_CODE32) << 32);
    run(&mut core, &[0xcf]).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.cpl, core.cpu.gpr[4]),
        (CODE, 3, USER_STACK)
    );
    // The kernel's data segment does not survive.
    assert_ne!(core.cpu.seg[seg::DS].rights & UNUSABLE, 0);
}

#[test]
fn v86_enters_and_leaves_through_the_kernel() {
    let mut core = protected();
    gate32(&core, 13, 0xe, 0);
    put(&core, TSS + 4, STACK0 | u64::from(K_DATA) << 32);
    let frame = [
        0x100,
        0x200,
        flag::VM | 2,
        0x80,
        0x300,
        0x400,
        0x500,
        0x600,
        0x700,
    ];
    for (n, v) in frame.into_iter().enumerate() {
        core.ram
            .write(STACK0 + 4 * n as u64, &(v as u32).to_le_bytes())
            .unwrap();
    }
    run(&mut core, &[0xcf]).unwrap();
    assert!(core.cpu.v86());
    assert_eq!((core.cpu.cpl, core.cpu.bits, core.cpu.rip), (3, 16, 0x100));
    assert_eq!(core.cpu.seg[seg::CS].base, 0x2000);
    assert_eq!(core.cpu.seg[seg::GS].base, 0x7000);
    assert_eq!(fault(run(&mut core, &[0xfa])), (exception::GP, 0));
    deliver_exception(&mut core, Exception::gp0()).unwrap();
    assert_eq!(
        (core.cpu.cpl, core.cpu.bits, core.cpu.rip),
        (0, 32, HANDLER)
    );
    assert!(!core.cpu.v86());
    assert_eq!(core.cpu.gpr[4], STACK0 - 40);
    assert_eq!(get(&core, STACK0 - 40) >> 32, 0x100);
}

#[test]
fn real_mode_interrupt_and_iret() {
    let mut core = bare();
    core.cpu.idt = (0, 0x3ff);
    core.cpu.seg[seg::CS] = Seg::new(0x1000, 0x10000, 0xffff, 0x9b);
    core.cpu.rip = 0x10;
    core.cpu.gpr[4] = 0x8000;
    core.ram.write(0x21 * 4, &[0x34, 0x12, 0x00, 0x20]).unwrap();
    core.cpu.rflags |= flag::IF;
    run(&mut core, &[0xcd, 0x21]).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.seg[seg::CS].base),
        (0x1234, 0x20000)
    );
    assert_eq!(core.cpu.rflags & flag::IF, 0);
    assert_eq!(core.cpu.gpr[4], 0x7ffa);
    run(&mut core, &[0xcf]).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.seg[seg::CS].selector),
        (0x12, 0x1000)
    );
    assert_ne!(core.cpu.rflags & flag::IF, 0);
}

#[test]
fn control_registers_refuse_what_the_architecture_forbids() {
    let mut core = long();
    for v in [0x8000_0000, 1 << 32 | 1, 0x2000_0011] {
        assert_eq!(
            fault(control::write_cr0(&mut core, v)),
            (exception::GP, 0),
            "{v:#x}"
        );
    }
    // No leaving paging or PAE from 64-bit mode; no LA57, PCID or CET.
    assert_eq!(fault(control::write_cr0(&mut core, 1)), (exception::GP, 0));
    for v in [0, 0x20 | 1 << 12, 0x20 | 1 << 17, 0x20 | 1 << 23] {
        assert_eq!(
            fault(control::write_cr4(&mut core, v)),
            (exception::GP, 0),
            "{v:#x}"
        );
    }
    assert!(core.write_msr(arch::msr::EFER, cr::EFER_SCE).is_err());
    core.cpu.gpr[0] = 5;
    core.cpu.gpr[2] = 0;
    core.cpu.gpr[1] = 0;
    assert_eq!(fault(run(&mut core, &[0x0f, 0x01, 0xd1])).0, exception::UD);
    control::write_cr4(&mut core, cr::CR4_PAE | cr::CR4_OSXSAVE).unwrap();
    assert_eq!(
        fault(run(&mut core, &[0x0f, 0x01, 0xd1])),
        (exception::GP, 0)
    );
    core.cpu.gpr[0] = 3;
    run(&mut core, &[0x0f, 0x01, 0xd1]).unwrap();
    assert_eq!(core.cpu.xcr0, 3);
}

#[test]
fn user_mode_gets_no_privileged_instruction() {
    let codes: [&[u8]; 12] = [
        &[0xf4],
        &[0xfa],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0x22, 0xd8],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x23, 0xf8],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x01, 0x38],
        &[0x0f, 0x09],
        &[0x0f, 0x06],
        &[0x0f, 0x01, 0x10],
    ];
    for code in codes {
        let mut core = user();
        core.cpu.gpr[0] = CODE;
        let before = core.cpu.gpr;
        assert_eq!(fault(run(&mut core, code)), (exception::GP, 0), "{code:x?}");
        assert_eq!((core.cpu.rip, core.cpu.gpr), (CODE, before));
    }
}

#[test]
fn io_permission_comes_from_iopl_or_the_bitmap() {
    let mut core = user();
    core.cpu.gpr[0] = 0x5a;
    put(&core, TSS + 0x60, 0x68 << 48);
    assert_eq!(fault(run(&mut core, &[0xe6, 0x80])), (exception::GP, 0));
    // Bitmap right behind the TSS: ports 0x80 to 0x87 allowed.
    core.cpu.tr.limit = 0x68 + 0x20;
    put(&core, TSS + 0x60, 0x68 << 48);
    put(&core, TSS + 0x68 + 0x10, 0xff00);
    run(&mut core, &[0xe6, 0x80]).unwrap();
    run(&mut core, &[0xe5, 0x84]).unwrap();
    assert_eq!(core.cpu.gpr[0], 0x5a);
    assert_eq!(fault(run(&mut core, &[0xe5, 0x85])), (exception::GP, 0));
    core.cpu.rflags |= flag::IOPL;
    run(&mut core, &[0xe5, 0x85]).unwrap();
}

#[test]
fn msrs_check_their_values() {
    use arch::msr;
    let mut core = long();
    for (m, v) in [
        (msr::FS_BASE, 1 << 50),
        (msr::LSTAR, 1 << 50),
        (msr::PAT, 2),
        (msr::EFER, 1 << 12),
        (msr::APIC_BASE, 1 << 50),
        (msr::SPEC_CTRL, 8),
        (0x1234_5678, 0),
        (msr::X2APIC + 8, 0),
    ] {
        assert_eq!(core.write_msr(m, v), Err(Exception::gp0().into()), "{m:#x}");
    }
    assert!(core.read_msr(0x1234_5678).is_err());
    core.write_msr(msr::TSC, 1 << 40).unwrap();
    let t = core.read_msr(msr::TSC).unwrap();
    assert!((1 << 40..(1 << 40) + (1 << 36)).contains(&t));
    let moved = core.read_msr(msr::TSC_ADJUST).unwrap();
    core.write_msr(msr::TSC_ADJUST, 0).unwrap();
    assert!(core.read_msr(msr::TSC).unwrap() < (1u64 << 40).wrapping_sub(moved) + (1 << 36));
}

#[test]
fn the_paravirtual_clock_gives_the_time() {
    use arch::msr;
    let mut core = long();
    core.write_msr(msr::KVM_SYSTEM_TIME, 0x7000 | 1).unwrap();
    core.write_msr(msr::KVM_WALL_CLOCK, 0x7100).unwrap();
    let version = get(&core, 0x7000) as u32;
    assert!(version != 0 && version & 1 == 0);
    let (mul, shift) = (get(&core, 0x7018) as u32, (get(&core, 0x7018) >> 32) as i8);
    assert_eq!(get(&core, 0x7018) >> 40 & 1, 1);
    let ticks = core.guest_tsc().wrapping_sub(get(&core, 0x7008));
    let ticks = if shift < 0 {
        ticks >> -shift
    } else {
        ticks << shift
    };
    let ns = get(&core, 0x7010) + ((u128::from(ticks) * u128::from(mul)) >> 32) as u64;
    let wall = get(&core, 0x7100) >> 32;
    let guest = wall as f64 + f64::from(get(&core, 0x7108) as u32) / 1e9 + ns as f64 / 1e9;
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!((guest - host).abs() < 0.1, "guest {guest} host {host}");
}

#[test]
fn far_jumps_change_mode_and_check_their_target() {
    let mut core = protected();
    // jmp ABSENT:0
    let to = |sel: u16| [0xea, 0, 0, 2, 0, sel as u8, 0];
    assert_eq!(fault(run(&mut core, &to(ABSENT))), (exception::GP, 0x40));
    assert_eq!(fault(run(&mut core, &to(U_CODE32))), (exception::GP, 0x18));
    run(&mut core, &to(K_CODE32)).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.seg[seg::CS].selector),
        (HANDLER, K_CODE32)
    );
    // call K_CODE:CODE and retf
    run(&mut core, &[0x9a, 0, 0, 1, 0, K_CODE as u8, 0]).unwrap();
    assert_eq!((core.cpu.rip, core.cpu.gpr[4]), (CODE, STACK0 - 8));
    run(&mut core, &[0xcb]).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.seg[seg::CS].selector),
        (HANDLER + 7, K_CODE32)
    );
    assert_eq!(core.cpu.gpr[4], STACK0);
}

#[test]
fn a_task_gate_switches_tasks_and_iret_goes_back() {
    let mut core = protected();
    const NEW: u64 = 0x8000;
    put(&core, GDT + 0x50, 0x0000_8900_8000_0067);
    core.cpu.gdt.1 = 0x57;
    put(&core, IDT + 8 * 9, 0x50 << 16 | 0x85 << 40);
    let fields: [(u64, u32); 9] = [
        (0x20, HANDLER as u32),
        (0x24, 2),
        (0x38, STACK_IST as u32),
        (0x48, u32::from(K_DATA)),
        (0x4c, u32::from(K_CODE)),
        (0x50, u32::from(K_DATA)),
        (0x54, u32::from(K_DATA)),
        (0x58, 0),
        (0x5c, 0),
    ];
    for (off, v) in fields {
        core.ram.write(NEW + off, &v.to_le_bytes()).unwrap();
    }
    core.cpu.gpr[3] = 77;
    load_segment(&mut core, seg::DS, K_DATA).unwrap();
    deliver_interrupt(&mut core, 9, false).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.gpr[4], core.cpu.gpr[3]),
        (HANDLER, STACK_IST, 0)
    );
    assert_eq!(core.cpu.tr.selector, 0x50);
    assert_ne!(core.cpu.rflags & flag::NT, 0);
    assert_ne!(core.cpu.cr0 & cr::CR0_TS, 0);
    assert_eq!(get(&core, NEW) as u16, TSS_SEL);
    run(&mut core, &[0xcf]).unwrap();
    assert_eq!(
        (core.cpu.rip, core.cpu.gpr[4], core.cpu.gpr[3]),
        (CODE, STACK0, 77)
    );
    assert_eq!(core.cpu.tr.selector, TSS_SEL);
    assert_eq!(core.cpu.rflags & flag::NT, 0);
}

#[test]
fn code_breakpoints_hit_once_per_resume() {
    let mut core = long();
    core.cpu.dr[0] = CODE;
    core.cpu.dr[7] = 0x401;
    assert_eq!(fault(code_breakpoint(&mut core)).0, exception::DB);
    assert_eq!(core.cpu.dr[6] & 15, 1);
    core.cpu.rflags |= flag::RF;
    assert_eq!(code_breakpoint(&mut core), Ok(()));
    assert!(core.code_breakpoint(CODE) && !core.code_breakpoint(CODE + 1));
}

#[test]
fn power_on_starts_the_clock_and_the_memory_types() {
    let mut core = bare();
    assert_eq!(core.read_msr(arch::msr::PAT), Ok(0x0007_0406_0007_0406));
    let khz = u64::from(core.shared.cpuid.tsc_khz());
    assert!(core.guest_tsc() < khz * 1000 * 60);
    assert_eq!(
        (core.cpu.rip, core.cpu.seg[seg::CS].base),
        (0xfff0, 0xffff_0000)
    );
}

#[test]
fn init_and_sipi_start_a_processor_in_real_mode() {
    let mut core = long();
    core.cpu.gpr[0] = 1;
    init_reset(&mut core);
    assert_eq!((core.cpu.rip, core.cpu.bits), (0xfff0, 16));
    assert_eq!(core.cpu.gpr[2], u64::from(core.shared.cpuid.signature()));
    assert!(!core.cpu.long_mode() && !core.cpu.paging());
    startup(&mut core, 0x9a);
    assert_eq!((core.cpu.rip, core.cpu.seg[seg::CS].base), (0, 0x9a000));
    assert!(!core.cpu.wait_for_sipi);
}

#[test]
fn a_saved_state_restores_and_bad_ones_are_refused() {
    let mut core = user();
    core.write_msr(arch::msr::LSTAR, 0x1234).unwrap();
    core.write_msr(arch::msr::TSC_ADJUST, 1 << 44).unwrap();
    core.lapic.set_tpr(0x30);
    let saved = core.save_state();
    let mut other = bare();
    other.restore_state(&saved).unwrap();
    let mut again = other.save_state();
    assert!(again.tsc >= saved.tsc && again.tsc - saved.tsc < 1 << 34);
    assert!(again.system_time >= saved.system_time);
    again.tsc = saved.tsc;
    again.system_time = saved.system_time;
    assert!(again == saved);
    assert_eq!((other.cpu.cpl, other.cpu.bits), (3, 64));
    let mut bad = saved.clone();
    bad.xcr0 = 1 << 17 | 1;
    assert!(
        other
            .restore_state(&bad)
            .unwrap_err()
            .to_string()
            .contains("XCR0")
    );
    let mut bad = saved;
    bad.msrs.push((arch::msr::LSTAR, 1 << 50));
    assert!(
        other
            .restore_state(&bad)
            .unwrap_err()
            .to_string()
            .contains("0xc0000082")
    );
}

#[test]
fn lar_lsl_and_verw_look_at_descriptors() {
    let mut core = protected();
    core.cpu.gpr[1] = u64::from(K_DATA);
    run(&mut core, &[0x0f, 0x02, 0xc1]).unwrap();
    assert_eq!(core.cpu.gpr[0], 0x00cf_9300 & 0x00ff_ff00);
    assert_ne!(core.cpu.rflags & flag::ZF, 0);
    run(&mut core, &[0x0f, 0x03, 0xc1]).unwrap();
    assert_eq!(core.cpu.gpr[0], 0xffff_ffff);
    run(&mut core, &[0x0f, 0x00, 0xe9]).unwrap();
    assert_ne!(core.cpu.rflags & flag::ZF, 0);
    core.cpu.gpr[1] = u64::from(K_CODE);
    run(&mut core, &[0x0f, 0x00, 0xe9]).unwrap();
    assert_eq!(core.cpu.rflags & flag::ZF, 0);
}
