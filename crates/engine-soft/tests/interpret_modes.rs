//! The interpreter in each mode: addresses, segments, stack, branches, string
//! instructions and their faults.

mod interpret_support;

use std::sync::atomic::Ordering;

use arch::exception;
use engine_soft::cpu::{cr, flag, seg};
use interpret_support::{BUFFER, BUFFER_SIZE, CODE, Machine};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
/// First byte after the buffer: not mapped.
const END: u64 = BUFFER + BUFFER_SIZE as u64;

#[test]
fn rip_relative_and_absolute_addresses() {
    let mut m = Machine::long();
    m.poke(CODE + 7 + 0x10, 8, 0x1122_3344_5566_7788);
    m.ok(&[0x48, 0x8b, 0x05, 0x10, 0, 0, 0]);
    assert_eq!(m.core.cpu.gpr[RAX], 0x1122_3344_5566_7788);
    assert_eq!(m.core.cpu.rip, CODE + 7);
    // mov eax, [0x5000] (moffs64)
    m.poke(0x5000, 4, 0xdead_beef);
    m.ok(&[0xa1, 0x00, 0x50, 0, 0, 0, 0, 0, 0]);
    assert_eq!(m.core.cpu.gpr[RAX], 0xdead_beef);
}

#[test]
fn fs_base_counts_in_64_bit_mode_and_ds_base_does_not() {
    let mut m = Machine::long();
    m.core.cpu.seg[seg::FS].base = BUFFER;
    m.core.cpu.seg[seg::DS].base = 0x1234_0000;
    m.core.cpu.gpr[RBX] = 0x10;
    m.core.cpu.gpr[RAX] = 0x77;
    m.ok(&[0x64, 0x48, 0x89, 0x03]);
    assert_eq!(m.buffer()[0x10], 0x77);
    m.core.cpu.gpr[RBX] = BUFFER + 0x20;
    m.ok(&[0x48, 0x89, 0x03]);
    assert_eq!(m.buffer()[0x20], 0x77);
}

#[test]
fn non_canonical_addresses_fault() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RBX] = 0x8000_0000_0000;
    assert_eq!(m.faults(&[0x48, 0x89, 0x03]), arch::Exception::gp0());
    m.core.cpu.gpr[RBP] = 0x8000_0000_0000;
    let e = m.faults(&[0x48, 0x89, 0x45, 0x00]);
    assert_eq!((e.vector, e.error), (exception::SS, Some(0)));
    m.core.cpu.gpr[RSP] = 0x8000_0000_0010;
    assert_eq!(m.faults(&[0x50]).vector, exception::SS);
    // jmp rbx, call rbx, ret
    assert_eq!(m.faults(&[0xff, 0xe3]).vector, exception::GP);
    m.core.cpu.gpr[RSP] = BUFFER + 0x100;
    assert_eq!(m.faults(&[0xff, 0xd3]).vector, exception::GP);
    m.core.cpu.gpr[RSP] = BUFFER + 0x100;
    let mut b = m.buffer();
    b[0x107] = 0x80;
    m.set_buffer(&b);
    assert_eq!(m.faults(&[0xc3]).vector, exception::GP);
}

#[test]
fn page_faults_leave_the_registers_alone() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RBX] = END - 4;
    m.core.cpu.gpr[RAX] = u64::MAX;
    // add [rbx], rax crosses into the missing page.
    let e = m.faults(&[0x48, 0x01, 0x03]);
    assert_eq!((e.vector, e.error, e.cr2), (exception::PF, Some(2), END));
    assert!(m.buffer().iter().all(|&b| b == 0));
    // push and pop at the edge, xchg, cmpxchg (a store even if unequal).
    m.core.cpu.gpr[RSP] = END;
    assert_eq!(m.faults(&[0x58]).error, Some(0));
    m.core.cpu.gpr[RBX] = END;
    assert_eq!(m.faults(&[0x48, 0x87, 0x03]).error, Some(2));
    assert_eq!(m.faults(&[0x48, 0x0f, 0xb1, 0x03]).error, Some(2));
    // pop [rbx]: the stack is readable, the target is not writable.
    m.core.cpu.gpr[RSP] = END - 8;
    assert_eq!(m.faults(&[0x8f, 0x03]).error, Some(2));
}

#[test]
fn pop_to_memory_sees_the_incremented_stack_pointer() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RSP] = BUFFER;
    let mut b = m.buffer();
    b[0] = 0x5a;
    m.set_buffer(&b);
    // pop qword [rsp+8] writes at old rsp + 16.
    m.ok(&[0x8f, 0x44, 0x24, 0x08]);
    assert_eq!(m.buffer()[16], 0x5a);
    assert_eq!(m.core.cpu.gpr[RSP], BUFFER + 8);
    // push rsp pushes the old value.
    m.ok(&[0x54]);
    assert_eq!(m.buffer()[..8], (BUFFER + 8).to_le_bytes());
    // pop rsp keeps what it loads.
    m.ok(&[0x5c]);
    assert_eq!(m.core.cpu.gpr[RSP], BUFFER + 8);
}

#[test]
fn divide_errors() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RDX] = 1;
    m.core.cpu.gpr[RCX] = 1;
    assert_eq!(m.faults(&[0x48, 0xf7, 0xf1]).vector, exception::DE);
    m.core.cpu.gpr[RCX] = 0;
    assert_eq!(m.faults(&[0xf6, 0xf1]).vector, exception::DE);
    // idiv: the most negative number by -1.
    m.core.cpu.gpr[RAX] = 1 << 63;
    m.core.cpu.gpr[RDX] = u64::MAX;
    m.core.cpu.gpr[RCX] = u64::MAX;
    assert_eq!(m.faults(&[0x48, 0xf7, 0xf9]).vector, exception::DE);
    let mut m = Machine::protected32();
    assert_eq!(m.faults(&[0xd4, 0x00]).vector, exception::DE);
}

#[test]
fn calls_and_returns_of_each_size() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RSP] = BUFFER + 0x100;
    m.ok(&[0xe8, 0xfb, 0x0f, 0, 0]);
    assert_eq!(m.core.cpu.rip, CODE + 0x1000);
    m.ok(&[0xc2, 0x10, 0x00]);
    assert_eq!(m.core.cpu.rip, CODE + 5);
    assert_eq!(m.core.cpu.gpr[RSP], BUFFER + 0x110);

    let mut m = Machine::protected32();
    m.core.cpu.gpr[RSP] = 0x8000;
    m.ok(&[0xe8, 0xfb, 0x0f, 0, 0]);
    assert_eq!(m.core.cpu.gpr[RSP], 0x7ffc);
    assert_eq!(m.peek(0x7ffc, 4), CODE + 5);
    m.ok(&[0xc3]);
    assert_eq!(m.core.cpu.rip, CODE + 5);
    // 16-bit operand size truncates the target.
    m.core.cpu.gpr[RBX] = 0xaaaa_1234;
    m.ok(&[0x66, 0xff, 0xe3]);
    assert_eq!(m.core.cpu.rip, 0x1234);

    let mut m = Machine::real();
    m.core.cpu.gpr[RSP] = 0;
    m.ok(&[0xe8, 0x00, 0xff]);
    assert_eq!(m.core.cpu.rip, 0x103 - 0x100);
    assert_eq!(m.core.cpu.gpr[RSP], 0xfffe);
    assert_eq!(m.peek(0x2fffe, 2), 0x103);
}

#[test]
fn branches_beyond_the_code_segment_fault() {
    let mut m = Machine::protected32();
    m.core.cpu.seg[seg::CS].limit = 0x40_ffff;
    m.core.cpu.gpr[RSP] = 0x8000;
    m.core.cpu.gpr[RBX] = 0x41_0000;
    assert_eq!(m.faults(&[0xff, 0xe3]).vector, exception::GP);
    assert_eq!(m.faults(&[0xff, 0xd3]).vector, exception::GP);
}

#[test]
fn loops_use_the_counter_of_the_address_size() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RCX] = 0xffff_ffff_0000_0001;
    m.ok(&[0x67, 0xe2, 0x10]);
    assert_eq!(m.core.cpu.rip, CODE + 3, "ecx reached zero");
    assert_eq!(m.core.cpu.gpr[RCX], 0);
    m.ok(&[0xe3, 0x10]);
    assert_eq!(m.core.cpu.rip, CODE + 3 + 2 + 0x10);
    m.core.cpu.gpr[RCX] = 5;
    m.core.cpu.rflags |= flag::ZF;
    let at = m.core.cpu.rip;
    m.ok(&[0xe0, 0x10]);
    assert_eq!((m.core.cpu.rip, m.core.cpu.gpr[RCX]), (at + 2, 4));
}

#[test]
fn segment_limits_types_and_null_selectors() {
    let mut m = Machine::protected32();
    m.core.cpu.seg[seg::DS].limit = 0xfff;
    m.core.cpu.gpr[RBX] = 0xffc;
    m.ok(&[0x89, 0x03]);
    m.core.cpu.gpr[RBX] = 0xffd;
    assert_eq!(m.faults(&[0x89, 0x03]), arch::Exception::gp0());
    // Expand-down: valid above the limit only.
    m.core.cpu.seg[seg::DS].rights |= 4;
    m.core.cpu.gpr[RBX] = 0xfff;
    assert_eq!(m.faults(&[0x89, 0x03]).vector, exception::GP);
    m.core.cpu.gpr[RBX] = 0x1000;
    m.ok(&[0x89, 0x03]);
    // Read-only data, then unusable.
    m.core.cpu.seg[seg::ES].rights &= !2;
    assert_eq!(m.faults(&[0x26, 0x89, 0x03]).vector, exception::GP);
    m.ok(&[0x26, 0x8b, 0x03]);
    m.core.cpu.seg[seg::ES].rights |= 1 << 16;
    assert_eq!(m.faults(&[0x26, 0x8b, 0x03]).vector, exception::GP);
    // Code segments are never writable.
    assert_eq!(m.faults(&[0x2e, 0x89, 0x03]).vector, exception::GP);
    m.ok(&[0x2e, 0x8b, 0x03]);
    // Stack segment.
    m.core.cpu.seg[seg::SS].limit = 0xff;
    m.core.cpu.gpr[RSP] = 0x200;
    assert_eq!(m.faults(&[0x50]).vector, exception::SS);
}

#[test]
fn real_mode_addresses() {
    let mut m = Machine::real();
    m.core.cpu.gpr[RBX] = 0xffff_fff0;
    m.core.cpu.gpr[RSI] = 0x20;
    m.core.cpu.gpr[RAX] = 0xabcd;
    // mov [bx+si], ax wraps at 64 KiB.
    m.ok(&[0x89, 0x00]);
    assert_eq!(m.peek(0x20010, 2), 0xabcd);
    // A word at 0xffff breaks the limit.
    m.core.cpu.gpr[RBX] = 0xffff;
    assert_eq!(m.faults(&[0x89, 0x07]).vector, exception::GP);
    // mov eax, [ebx] with a 32-bit address above 64 KiB.
    m.core.cpu.gpr[RBX] = 0x1_0000;
    assert_eq!(m.faults(&[0x66, 0x67, 0x8b, 0x03]).vector, exception::GP);
    // Unless the limit was raised before ("unreal" mode).
    m.core.cpu.seg[seg::DS].limit = 0xffff_ffff;
    m.poke(0x30000, 4, 0x1357_9bdf);
    m.ok(&[0x66, 0x67, 0x8b, 0x03]);
    assert_eq!(m.core.cpu.gpr[RAX], 0x1357_9bdf);
}

#[test]
fn pusha_and_popa() {
    let mut m = Machine::protected32();
    for n in 0..8 {
        m.core.cpu.gpr[n] = 0x100 + n as u64;
    }
    m.core.cpu.gpr[RSP] = 0x9000;
    m.ok(&[0x60]);
    assert_eq!(m.core.cpu.gpr[RSP], 0x8fe0);
    assert_eq!(m.peek(0x8fe0, 4), 0x107);
    assert_eq!(m.peek(0x8fec, 4), 0x9000);
    assert_eq!(m.peek(0x8ffc, 4), 0x100);
    for n in [0, 1, 2, 3, 5, 6, 7] {
        m.core.cpu.gpr[n] = 0;
    }
    m.ok(&[0x61]);
    assert_eq!(m.core.cpu.gpr[RSP], 0x9000);
    assert_eq!(m.core.cpu.gpr[RDI], 0x107);
    assert_eq!(m.core.cpu.gpr[RAX], 0x100);
    // 16-bit, where the stack wraps inside the frame.
    let mut m = Machine::real();
    m.core.cpu.gpr[RAX] = 0x1111;
    m.core.cpu.gpr[RDI] = 0x7777;
    m.core.cpu.gpr[RSP] = 8;
    m.ok(&[0x60]);
    assert_eq!(m.core.cpu.gpr[RSP], 0xfff8);
    assert_eq!(m.peek(0x20006, 2), 0x1111);
    assert_eq!(m.peek(0x2fff8, 2), 0x7777);
}

#[test]
fn popf_respects_privilege() {
    let mut m = Machine::protected32();
    let all = flag::IF | flag::IOPL | flag::AC | flag::ID | flag::DF | flag::CF;
    let popf = |m: &mut Machine, cpl: u8, old: u64, new: u64| {
        m.core.cpu.cpl = cpl;
        m.core.cpu.rflags = old | 2;
        m.core.cpu.gpr[RSP] = 0x9000;
        m.poke(0x9000, 4, new);
        m.ok(&[0x9d]);
        m.core.cpu.rflags & !2
    };
    assert_eq!(popf(&mut m, 0, 0, all), all);
    // CPL 3, IOPL 0: neither IF nor IOPL change.
    let kept = flag::AC | flag::ID | flag::DF | flag::CF;
    assert_eq!(popf(&mut m, 3, 0, all), kept);
    assert_eq!(popf(&mut m, 3, flag::IF, 0), flag::IF);
    // CPL 3, IOPL 3: IF does.
    assert_eq!(popf(&mut m, 3, flag::IOPL | flag::IF, 0), flag::IOPL);
    // VM and RF are never set by it.
    assert_eq!(popf(&mut m, 0, 0, flag::VM | flag::RF), 0);
    // Virtual-8086 mode needs IOPL 3.
    m.core.cpu.rflags = 2 | flag::VM;
    m.core.update_mode();
    assert_eq!(m.faults(&[0x9d]).vector, exception::GP);
    assert_eq!(m.faults(&[0x9c]).vector, exception::GP);
}

#[test]
fn popf_of_ac_changes_the_view_of_memory() {
    let mut m = Machine::long();
    m.core.cpu.cr4 |= cr::CR4_SMAP;
    m.core.update_view();
    assert_eq!(m.core.cpu.view, 1);
    m.core.cpu.gpr[RSP] = BUFFER;
    let mut b = m.buffer();
    b[2] = 4;
    m.set_buffer(&b);
    m.ok(&[0x9d]);
    assert_eq!(m.core.cpu.view, 2);
}

#[test]
fn enter_and_leave_with_nesting() {
    let mut m = Machine::protected32();
    m.core.cpu.gpr[RBP] = 0x9100;
    m.core.cpu.gpr[RSP] = 0x9000;
    m.poke(0x90fc, 4, 0xaaaa);
    m.ok(&[0xc8, 0x10, 0x00, 0x02]);
    assert_eq!(m.peek(0x8ffc, 4), 0x9100);
    assert_eq!(m.peek(0x8ff8, 4), 0xaaaa);
    assert_eq!(m.peek(0x8ff4, 4), 0x8ffc);
    assert_eq!(m.core.cpu.gpr[RBP], 0x8ffc);
    assert_eq!(m.core.cpu.gpr[RSP], 0x8fe4);
    m.ok(&[0xc9]);
    assert_eq!(m.core.cpu.gpr[RBP], 0x9100);
    assert_eq!(m.core.cpu.gpr[RSP], 0x9000);
}

#[test]
fn bound_and_into() {
    let mut m = Machine::protected32();
    m.poke(0x9000, 4, (-5i32) as u32 as u64);
    m.poke(0x9004, 4, 5);
    m.core.cpu.gpr[RBX] = 0x9000;
    for (index, good) in [(-5i32, true), (5, true), (6, false), (-6, false)] {
        m.core.cpu.gpr[RAX] = u64::from(index as u32);
        if good {
            m.ok(&[0x62, 0x03]);
        } else {
            assert_eq!(m.faults(&[0x62, 0x03]).vector, exception::BR);
        }
    }
    let at = m.core.cpu.rip;
    m.ok(&[0xce]);
    assert_eq!(m.core.cpu.rip, at + 1, "into without overflow");
}

#[test]
fn decimal_instructions() {
    // AL, flags in, opcode, AX and CF, AF out (SDM examples and corners).
    let cases: &[(u64, u64, u8, u64, u64)] = &[
        (0x79, 0, 0x27, 0x79, 0),
        (0xae, 0, 0x27, 0x14, flag::CF | flag::AF),
        (0x2e, 0, 0x27, 0x34, flag::AF),
        (0x9a, 0, 0x27, 0x00, flag::CF | flag::AF),
        (0xee, flag::CF, 0x2f, 0x88, flag::CF | flag::AF),
        (0x04, flag::AF, 0x2f, 0xfe, flag::CF | flag::AF),
        (0x0b, 0, 0x37, 0x101, flag::CF | flag::AF),
        (0xfa, 0, 0x37, 0x200, flag::CF | flag::AF),
        (0x05, 0, 0x37, 0x005, 0),
        (0x20b, 0, 0x3f, 0x105, flag::CF | flag::AF),
    ];
    let mut m = Machine::protected32();
    for &(ax, flags, op, want, status) in cases {
        m.core.cpu.gpr[RAX] = ax;
        m.core.cpu.rflags = 2 | flags;
        m.ok(&[op]);
        assert_eq!(m.core.cpu.gpr[RAX], want, "{op:#x} of {ax:#x}");
        let got = m.core.cpu.rflags & (flag::CF | flag::AF);
        assert_eq!(got, status, "{op:#x} of {ax:#x}");
    }
    m.core.cpu.gpr[RAX] = 63;
    m.ok(&[0xd4, 10]);
    assert_eq!(m.core.cpu.gpr[RAX], 0x603);
    m.ok(&[0xd5, 10]);
    assert_eq!(m.core.cpu.gpr[RAX], 63);
}

/// Runs a repeated instruction until it is done; says how many steps it took.
fn repeat(m: &mut Machine, code: &[u8]) -> u32 {
    let at = m.core.cpu.rip;
    let mut steps = 0;
    while m.core.cpu.rip == at {
        m.ok(code);
        steps += 1;
        assert!(steps < 100_000);
    }
    steps
}

#[test]
fn long_copies_let_interrupts_through() {
    let mut m = Machine::long();
    for n in 0..0x10_0000u64 {
        m.poke(0x10_0000 + n, 1, n % 251);
    }
    m.core.cpu.gpr[RSI] = 0x10_0003;
    m.core.cpu.gpr[RDI] = 0x40_0001;
    m.core.cpu.gpr[RCX] = 0x8_0000;
    let steps = repeat(&mut m, &[0xf3, 0xa4]);
    assert!(steps > 2, "{steps}");
    assert_eq!(m.core.cpu.gpr[RCX], 0);
    assert_eq!(m.core.cpu.gpr[RSI], 0x18_0003);
    assert_eq!(m.core.cpu.gpr[RDI], 0x48_0001);
    for n in 0..0x8_0000u64 {
        assert_eq!(m.peek(0x40_0001 + n, 1), (n + 3) % 251);
    }
}

#[test]
fn overlapping_forward_copy_repeats_the_pattern() {
    let mut m = Machine::long();
    m.poke(0x10_0000, 8, 0x0706_0504_0302_0100);
    m.core.cpu.gpr[RSI] = 0x10_0000;
    m.core.cpu.gpr[RDI] = 0x10_0003;
    m.core.cpu.gpr[RCX] = 9000;
    repeat(&mut m, &[0xf3, 0xa4]);
    for n in 0..9003 {
        assert_eq!(m.peek(0x10_0000 + n, 1), n % 3);
    }
}

#[test]
fn faults_inside_a_repetition_keep_the_iterations_before() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RDI] = END - 20;
    m.core.cpu.gpr[RCX] = 10;
    m.core.cpu.gpr[RAX] = 0x1122_3344_5566_7788;
    let at = m.core.cpu.rip;
    let mut result = Ok(());
    for _ in 0..10 {
        result = m.run(&[0xf3, 0x48, 0xab]);
        if result.is_err() {
            break;
        }
    }
    let Err(engine_soft::Trap::Fault(e)) = result else {
        panic!("{result:?}");
    };
    assert_eq!((e.vector, e.cr2), (exception::PF, END));
    assert_eq!(m.core.cpu.rip, at);
    assert_eq!(m.core.cpu.gpr[RCX], 8);
    assert_eq!(m.core.cpu.gpr[RDI], END - 4);
    let b = m.buffer();
    assert_eq!(b[BUFFER_SIZE - 20], 0x88);
    assert_eq!(b[BUFFER_SIZE - 4..], [0; 4], "no half of an element");
}

#[test]
fn single_step_stops_after_each_iteration() {
    let mut m = Machine::long();
    m.core.cpu.rflags |= flag::TF;
    m.core.cpu.gpr[RDI] = BUFFER;
    m.core.cpu.gpr[RCX] = 3;
    assert_eq!(repeat(&mut m, &[0xf3, 0xaa]), 3);
}

#[test]
fn repeated_compare_and_scan_end_by_the_flag() {
    let mut m = Machine::long();
    let mut b = m.buffer();
    b[..5].copy_from_slice(b"abcd\0");
    b[0x100..0x105].copy_from_slice(b"abxd\0");
    m.set_buffer(&b);
    m.core.cpu.gpr[RDI] = BUFFER;
    m.core.cpu.gpr[RCX] = u64::MAX;
    repeat(&mut m, &[0xf2, 0xae]);
    assert_eq!(m.core.cpu.gpr[RCX], u64::MAX - 5);
    m.core.cpu.gpr[RSI] = BUFFER;
    m.core.cpu.gpr[RDI] = BUFFER + 0x100;
    m.core.cpu.gpr[RCX] = 5;
    repeat(&mut m, &[0xf3, 0xa6]);
    assert_eq!(m.core.cpu.gpr[RCX], 2);
    assert_eq!(m.core.cpu.rflags & flag::ZF, 0);
    // A count of zero leaves the flags alone.
    m.core.cpu.gpr[RCX] = 0;
    m.core.cpu.rflags |= flag::ZF;
    repeat(&mut m, &[0xf3, 0xa6]);
    assert_ne!(m.core.cpu.rflags & flag::ZF, 0);
}

#[test]
fn string_addresses_wrap_in_16_bit_code() {
    let mut m = Machine::real();
    m.core.cpu.gpr[RDI] = 0xffff_fffe;
    m.core.cpu.gpr[RCX] = 0xdead_0004;
    m.core.cpu.gpr[RAX] = 0x5a;
    repeat(&mut m, &[0xf3, 0xaa]);
    assert_eq!(m.peek(0x2fffe, 2), 0x5a5a);
    assert_eq!(m.peek(0x20000, 2), 0x5a5a);
    assert_eq!(m.core.cpu.gpr[RDI], 0xffff_0002);
    assert_eq!(m.core.cpu.gpr[RCX], 0xdead_0000);
}

#[test]
fn port_strings_do_not_touch_the_device_before_a_fault() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RDX] = 0x60;
    m.core.cpu.gpr[RDI] = BUFFER;
    m.core.cpu.gpr[RCX] = 3;
    repeat(&mut m, &[0xf3, 0x6c]);
    assert_eq!(m.buffer()[..4], [1, 2, 3, 0]);
    m.core.cpu.gpr[RDI] = END;
    assert_eq!(m.faults(&[0x6c]).vector, exception::PF);
    assert_eq!(m.ports.accesses.load(Ordering::SeqCst), 3);
    m.core.cpu.gpr[RSI] = BUFFER + 1;
    m.ok(&[0x6f]);
    assert_eq!(m.ports.last.load(Ordering::SeqCst), 0x0302);
}

#[test]
fn bit_offsets_reach_beyond_the_operand() {
    let mut m = Machine::long();
    m.core.cpu.gpr[RBX] = BUFFER + 0x100;
    m.core.cpu.gpr[RAX] = (-1i64) as u64;
    m.ok(&[0x48, 0x0f, 0xab, 0x03]);
    assert_eq!(m.buffer()[0xff], 0x80);
    m.core.cpu.gpr[RAX] = 1000;
    m.ok(&[0xf0, 0x48, 0x0f, 0xab, 0x03]);
    assert_eq!(m.buffer()[0x100 + 125], 1);
    assert_eq!(m.core.cpu.rflags & flag::CF, 0);
}

#[test]
fn vector_extended_integer_instructions_need_protected_mode() {
    // andn eax, ebx, ecx
    let andn = [0xc4, 0xe2, 0x60, 0xf2, 0xc1];
    let mut m = Machine::protected32();
    m.core.cpu.gpr[RBX] = 0xf0;
    m.core.cpu.gpr[RCX] = 0xff;
    m.ok(&andn);
    assert_eq!(m.core.cpu.gpr[RAX], 0x0f);
    let mut m = Machine::real();
    assert_eq!(m.faults(&andn).vector, exception::UD);
}

#[test]
fn invalid_instructions() {
    let mut m = Machine::long();
    assert_eq!(m.faults(&[0x0f, 0x0b]).vector, exception::UD);
    // lock mov
    let i = m.decode(&[0xf0, 0x89, 0x03]);
    assert!(i.is_invalid());
    let r = engine_soft::interpret::step(&mut m.core, &i);
    assert_eq!(r, Err(arch::Exception::ud().into()));
}

#[test]
fn random_numbers() {
    let mut m = Machine::long();
    let mut seen = Vec::new();
    for _ in 0..4 {
        m.ok(&[0x48, 0x0f, 0xc7, 0xf0]);
        assert_ne!(m.core.cpu.rflags & flag::CF, 0);
        seen.push(m.core.cpu.gpr[RAX]);
    }
    seen.dedup();
    assert_eq!(seen.len(), 4);
}
