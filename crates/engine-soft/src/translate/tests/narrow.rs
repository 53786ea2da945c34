//! What 32-bit code has and 64-bit code has not: segments that are checked,
//! addresses that wrap, and the other meaning of the same bytes.

use super::guest::{BASE, CODE, CODE_GPA, DATA, Guest, Stop};
use super::support::Mode;
use crate::cpu::{Seg, seg};

const HLT: u8 = 0xf4;

/// Runs `code` to its `hlt` or fault, by the interpreter and translated.
fn both(mode: Mode, code: &[u8], mut set: impl FnMut(&mut Guest)) -> [(Stop, u64, [u64; 16]); 2] {
    [false, true].map(|translated| {
        let mut g = Guest::new(0);
        g.core.jit.make_warm();
        g.put_code(CODE_GPA, code);
        g.core.ram.write(DATA - BASE, &[0x5a; 64]).unwrap();
        g.enter(0, mode);
        g.core.cpu.rip = CODE;
        set(&mut g);
        let stop = match translated {
            true => g.on_thread(Guest::translate),
            false => g.interpret(&mut 1000),
        };
        let made = &g.core.shared.code.translated_blocks;
        let blocks = made.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(blocks > 0, translated);
        (stop, g.core.cpu.rip, g.core.cpu.gpr)
    })
}

#[test]
fn segments_that_are_not_flat_are_checked() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let load = [0x41, 0x65, 0x8b, 0x01, HLT];
    let store = [0x41, 0x65, 0x01, 0x01, HLT];
    let near = DATA - 0x100;
    let cases = [
        (Seg::new(0x10, near, u32::MAX, 0xc093), true, true),
        // Null; too short; read-only; expand-down.
        (Seg::new(0, 0, 0, 1 << 16), false, false),
        (Seg::new(0x10, near, 0xfff, 0x4093), true, true),
        (Seg::new(0x10, near, 0x100, 0x4093), false, false),
        (Seg::new(0x10, near, u32::MAX, 0xc091), true, false),
        (Seg::new(0x10, near, 0xff, 0x4097), true, true),
        (Seg::new(0x10, near, u32::MAX, 0xc097), false, false),
    ];
    for (s, reads, writes) in cases {
        for (code, fine) in [(load, reads), (store, writes)] {
            let [a, b] = both(Mode::Compat, &code, |g| {
                g.core.cpu.seg[seg::GS] = s;
                g.core.cpu.gpr[1] = 0x100;
            });
            assert_eq!(a, b, "{s:?}");
            assert_eq!(a.0 == Stop::Halt, fine, "{s:?} {a:?}");
        }
    }
}

#[test]
fn addresses_wrap_at_32_bits() {
    let _alone = super::ONE_AT_A_TIME.lock();
    // mov eax, [ecx + DATA + 8]; push [esp]; pop edx; mov ebx, gs:[ecx * 2 - 4]; hlt
    let to = (DATA as u32 + 0x20).to_le_bytes();
    let mut code = vec![0x8b, 0x81];
    code.extend(to);
    code.extend([0xff, 0x34, 0x24, 0x5a, 0x65, 0x8b, 0x5c, 0x09, 0xfc, HLT]);
    let [a, b] = both(Mode::Compat, &code, |g| {
        g.core.cpu.gpr[1] = 0xffff_fff0;
        // After a switch from 64-bit mode, anything may be above.
        g.core.cpu.gpr[4] = DATA + 16;
        g.core.cpu.seg[seg::GS].base = DATA + 0x30;
    });
    assert_eq!(a, b);
    assert_eq!(
        (a.0, a.2[0], a.2[2], a.2[3]),
        (Stop::Halt, 0x5a5a_5a5a, 0x5a5a_5a5a, 0x5a5a_5a5a)
    );
}

/// One vCPU runs the same bytes in both modes by turns: each has its own
/// translation, however it is reached.
#[test]
fn the_same_bytes_are_two_programs() {
    let _alone = super::ONE_AT_A_TIME.lock();
    // inc rax (dec eax; inc eax); inc ecx; jmp rdx, which leads to the hlt.
    let code = [0x48, 0xff, 0xc0, 0xff, 0xc1, 0xff, 0xe2, HLT];
    let mut g = Guest::new(0);
    g.core.jit.make_warm();
    g.put_code(CODE_GPA, &code);
    for round in 0..40u64 {
        let mode = if round % 3 == 0 {
            Mode::Compat
        } else {
            Mode::Long
        };
        g.enter(0, mode);
        let c = &mut g.core.cpu;
        (c.rip, c.gpr[0], c.gpr[1], c.gpr[2]) = (CODE, u64::from(u32::MAX), round, CODE + 7);
        assert_eq!(g.on_thread(Guest::translate), Stop::Halt);
        let sum = if mode == Mode::Long {
            1 << 32
        } else {
            u64::from(u32::MAX)
        };
        assert_eq!((g.core.cpu.gpr[0], g.core.cpu.gpr[1]), (sum, round + 1));
    }
}
