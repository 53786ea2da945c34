//! Random bytes as code, with random registers and segments, in every mode:
//! whatever the guest executes, the interpreter returns, and a fault leaves
//! the registers alone.

mod interpret_support;

use engine_soft::cpu::{Seg, flag, seg};
use engine_soft::{Trap, interpret};
use interpret_support::{BUFFER, CODE, Machine, Random};

/// Instructions per mode.
const CASES: u32 = 150_000;

/// Sizes that matter at the edges of segments and address spaces.
fn segment(r: &mut Random, mut s: Seg) -> Seg {
    if r.below(3) == 0 {
        s.limit = match r.below(4) {
            0 => 0xffff,
            1 => 0xffff_ffff,
            2 => r.next() as u32 & 0xfff,
            _ => r.next() as u32,
        };
        s.rights = s.rights & !0x1_400e | r.next() as u32 & 0x1_400e;
    }
    if r.below(4) == 0 {
        s.base = r.next() & 0xffff_ffff;
    }
    s
}

fn register(r: &mut Random) -> u64 {
    match r.below(6) {
        0 => BUFFER + r.below(0x5000),
        1 => CODE + r.below(0x1000),
        2 => r.below(0x1_0000),
        3 => u64::MAX - r.below(64),
        4 => 0x7fff_ffff_ffff - r.below(32),
        _ => r.value(),
    }
}

fn code(r: &mut Random) -> [u8; 15] {
    let mut b: [u8; 15] = std::array::from_fn(|_| r.next() as u8);
    if r.below(2) == 0 {
        b[0] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x0f, 0x64][r.below(8) as usize];
    }
    b
}

/// What a random instruction may change besides registers and memory.
fn mode(m: &Machine) -> impl PartialEq + use<> {
    let c = &m.core.cpu;
    let control = (c.cr0, c.cr3, c.cr4, c.efer, c.xcr0, c.dr);
    let tables = (c.gdt, c.idt, c.ldtr, c.tr);
    let flags = c.rflags & (flag::VM | flag::IOPL);
    (
        control,
        tables,
        c.cpl,
        c.bits,
        c.halted,
        c.wait_for_sipi,
        flags,
    )
}

fn fuzz(make: fn() -> Machine, seed: u64) {
    let mut r = Random(seed);
    let mut m = make();
    let start = m.core.cpu.rip;
    let (segments, flags, first) = (m.core.cpu.seg, m.core.cpu.rflags, mode(&m));
    let (mut done, mut faulted) = (0, 0);
    for n in 0..CASES {
        // Page tables and modes do not survive random stores for long.
        if n % 2000 == 1999 || mode(&m) != first {
            m = make();
        }
        let c = &mut m.core.cpu;
        c.gpr = std::array::from_fn(|_| register(&mut r));
        c.rip = start;
        c.rflags = flags | r.next() & (flag::STATUS | flag::DF);
        for (n, s) in segments.iter().enumerate() {
            c.seg[n] = if n == seg::CS {
                *s
            } else {
                segment(&mut r, *s)
            };
        }
        m.core.update_mode();
        let bytes = code(&mut r);
        let i = m.decode(&bytes);
        let before = m.registers();
        match interpret::step(&mut m.core, &i) {
            Ok(()) => done += 1,
            Err(Trap::Fault(_)) => {
                faulted += 1;
                let same = m.registers() == before || i.is_string_instruction();
                assert!(same, "{i:?} {bytes:02x?} changed registers");
            }
            Err(Trap::Halt | Trap::Shutdown) => {}
        }
    }
    assert!(
        done > 5_000 && faulted > 1_000,
        "{done} done, {faulted} faulted"
    );
}

#[test]
fn long_mode_survives_random_code() {
    fuzz(Machine::long, 1);
}

#[test]
fn protected_mode_survives_random_code() {
    fuzz(Machine::paged32, 2);
    fuzz(Machine::protected32, 3);
}

#[test]
fn real_and_virtual_8086_mode_survive_random_code() {
    fuzz(Machine::real, 4);
    fuzz(Machine::v86, 5);
}
