//! The same linear page with other code in it: CR3 loads, `invlpg`, and
//! stores into the code, while jumps to it are linked and cached.

use iced_x86::{Code, Instruction as I, MemoryOperand, Register as R};

use super::guest::{BASE, CODE, CODE_GPA, DATA, Guest, Stop, TABLES};
use super::sequence_make::{Op, Program};
use crate::cpu::cr;

/// Where the page lies in the upper half, as seen from the code's own place.
const HIGH: u64 = 0xffff_ffff_8000_0000;
const PAGE_A: u64 = CODE_GPA + 0x2000;
const PAGE_B: u64 = CODE_GPA + 0x3000;
/// Offset of the changing page from `CODE`.
const TARGET: u64 = 0x5000;
const ROUNDS: u64 = 90;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jump {
    Direct,
    Register,
    Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    Cr3,
    Invlpg,
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    jump: Jump,
    switch: Switch,
    high: bool,
    /// Each round changes an immediate in page A.
    stores: bool,
}

fn op(id: u32, insns: Vec<I>, target: Option<u32>) -> Op {
    Op {
        id,
        insns,
        target,
        patch: None,
    }
}

fn encode(ops: Vec<Op>, start: u64) -> Vec<u8> {
    let p = Program {
        ops,
        gpr: [0; 16],
        rflags: 2,
        start,
        memory: 0,
        code32: false,
    };
    p.encode().unwrap()
}

fn branch(code: Code, to: u64) -> I {
    I::with_branch(code, to).unwrap()
}

/// Where the page's second block begins.
const SECOND: u64 = 10;
/// Where its immediate is.
const IMMEDIATE: u64 = SECOND + 11;

/// The page's code: a block that goes on to one of the same page, which can be
/// reached from outside too, and back.
fn page(value: u32, at: u64, jump: Jump) -> Vec<u8> {
    let end = match jump {
        Jump::Call => I::with(Code::Retnq),
        _ => I::with1(Code::Jmp_rm64, R::R10).unwrap(),
    };
    let bytes = encode(
        vec![
            op(
                0,
                vec![I::with2(Code::Mov_r32_imm32, R::ECX, value).unwrap()],
                None,
            ),
            op(1, vec![branch(Code::Jmp_rel32_64, at)], Some(2)),
            // Flags are known dead here, so that nothing before relies on the
            // bytes behind.
            op(
                2,
                vec![I::with2(Code::Test_rm64_r64, R::RSI, R::RSI).unwrap()],
                None,
            ),
            op(3, vec![branch(Code::Je_rel32_64, at)], Some(0)),
            op(
                4,
                vec![I::with2(Code::Add_rm32_imm32, R::ECX, value).unwrap()],
                None,
            ),
            op(5, vec![end], None),
        ],
        at,
    );
    let immediate = &bytes[IMMEDIATE as usize..][..4];
    assert_eq!(immediate, value.to_le_bytes());
    bytes
}

fn jump_to(s: Setup, ops: &mut Vec<Op>, target: u64, by: R) {
    let id = ops.len() as u32;
    let insn = match s.jump {
        Jump::Direct => branch(Code::Jmp_rel32_64, target),
        Jump::Register => I::with1(Code::Jmp_rm64, by).unwrap(),
        Jump::Call if by == R::R8 => I::with1(Code::Call_rm64, by).unwrap(),
        Jump::Call => branch(Code::Call_rel32_64, target),
    };
    let back = I::with2(Code::Mov_r64_imm64, R::R10, target).unwrap();
    ops.push(op(id, vec![back], Some(id + 2)));
    ops.push(op(id + 1, vec![insn], None));
}

fn main_code(s: Setup, code: u64, target: u64) -> Vec<u8> {
    let mut ops = Vec::new();
    let pte = MemoryOperand::with_base(R::R9);
    let page = MemoryOperand::with_base(R::R8);
    let switch = match s.switch {
        Switch::Cr3 => vec![I::with2(Code::Mov_cr_r64, R::CR3, R::RAX).unwrap()],
        Switch::Invlpg => vec![
            I::with2(Code::Mov_rm64_r64, pte, R::RAX).unwrap(),
            I::with1(Code::Invlpg_m, page).unwrap(),
        ],
    };
    ops.push(op(0, switch, None));
    if s.stores {
        // Every third round.
        let at = MemoryOperand::with_base(R::RDI);
        let third = I::with3(
            Code::Imul_r32_rm32_imm32,
            R::R12D,
            R::ESI,
            0xaaaa_aaabu32 as i32,
        );
        let compare = I::with2(Code::Cmp_rm32_imm32, R::R12D, 0x5555_5555);
        ops.push(op(1, vec![third.unwrap(), compare.unwrap()], None));
        ops.push(op(2, vec![branch(Code::Ja_rel32_64, code)], Some(4)));
        ops.push(op(
            3,
            vec![I::with2(Code::Mov_rm32_r32, at, R::ESI).unwrap()],
            None,
        ));
    }
    jump_to(s, &mut ops, target + SECOND, R::R11);
    jump_to(s, &mut ops, target, R::R8);
    let id = ops.len() as u32;
    ops.push(op(
        id,
        vec![
            I::with2(Code::Add_rm64_r64, R::RBX, R::RCX).unwrap(),
            I::with2(Code::Xchg_rm64_r64, R::RAX, R::RDX).unwrap(),
            I::with1(Code::Dec_rm64, R::RSI).unwrap(),
        ],
        None,
    ));
    ops.push(op(id + 1, vec![branch(Code::Jne_rel32_64, code)], Some(0)));
    encode(ops, code)
}

fn guest(s: Setup) -> Guest {
    let mut g = Guest::new(0);
    let second = g.new_root();
    let base = if s.high { HIGH } else { BASE };
    let (code, target) = (base + CODE_GPA, base + CODE_GPA + TARGET);
    let mut pte = 0;
    for (root, page) in [(TABLES, PAGE_A), (second, PAGE_B)] {
        for gpa in [0, 0x1000, 0x2000, 0x3000] {
            g.map_in(root, CODE + gpa, CODE_GPA + gpa, 7);
            g.map_in(root, code + gpa, CODE_GPA + gpa, 3);
        }
        g.map_in(root, DATA, DATA - BASE, 7);
        let at = g.map_in(root, target, page, 3);
        if root == TABLES {
            pte = at;
        }
    }
    for root in [TABLES, second] {
        g.map_in(root, BASE + (pte & !0xfff), pte & !0xfff, 7);
    }
    let bytes = main_code(s, code, target);
    g.put_code(CODE_GPA, &bytes);
    g.put_code(PAGE_A, &page(1000, target, s.jump));
    g.put_code(PAGE_B, &page(3, target, s.jump));
    let c = &mut *g.core.cpu;
    c.rip = code;
    let (a, b) = match s.switch {
        Switch::Cr3 => (TABLES, second),
        Switch::Invlpg => (PAGE_A | 3, PAGE_B | 3),
    };
    c.gpr[0] = a;
    c.gpr[2] = b;
    c.gpr[4] = DATA + 0x800;
    c.gpr[6] = ROUNDS;
    c.cr4 |= cr::CR4_PGE;
    c.gpr[7] = BASE + PAGE_A + IMMEDIATE;
    c.gpr[11] = target + SECOND;
    c.gpr[8] = target;
    c.gpr[9] = BASE + pte;
    g
}

/// The sum that the program ends with. (The interpreter is no oracle alone: it
/// finds code pages as the translator does.)
fn expected(s: Setup) -> u64 {
    let (mut immediate, mut sum) = (1000, 0);
    for round in (1..=ROUNDS).rev() {
        if s.stores && (round as u32).wrapping_mul(0xaaaa_aaab) <= 0x5555_5555 {
            immediate = round;
        }
        let first = (ROUNDS - round).is_multiple_of(2);
        sum += if first { 1000 + immediate } else { 3 + 3 };
    }
    sum
}

#[test]
fn remapped_pages_run_their_own_code() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let mut failures = Vec::new();
    for jump in [Jump::Direct, Jump::Register, Jump::Call] {
        for switch in [Switch::Cr3, Switch::Invlpg] {
            for (high, stores) in [(false, false), (false, true), (true, false), (true, true)] {
                let s = Setup {
                    jump,
                    switch,
                    high,
                    stores,
                };
                let mut a = guest(s);
                let stop = a.interpret(&mut 100_000);
                assert_eq!(stop, Stop::Halt, "{s:?}");
                assert_eq!(a.core.cpu.gpr[3], expected(s), "{s:?}");
                for warm in [false, true] {
                    let mut b = guest(s);
                    if warm {
                        b.core.jit.make_warm();
                    }
                    let stop = b.on_thread(Guest::translate);
                    if stop != Stop::Halt || a.core.cpu.gpr != b.core.cpu.gpr {
                        failures.push(format!(
                            "{s:?} warm {warm}: {stop:?}, sum {:#x}, should be {:#x}",
                            b.core.cpu.gpr[3], a.core.cpu.gpr[3]
                        ));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
