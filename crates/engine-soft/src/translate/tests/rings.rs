//! From a program into the kernel and back, by `syscall`, and by `sysret` with
//! `verw` on the way or by `iretq`, which also goes from the kernel to itself.

use super::guest::{BASE, CODE, CODE_GPA, DATA, Guest, Stop};
use super::support::{Mode, Random};
use crate::cpu::{Seg, cr, flag, seg};

const KERNEL: u64 = CODE + 0x2000;
/// GDT, selector and log, for the kernel only.
const TABLE: u64 = DATA + 0x1000;
const SELECTOR: u64 = TABLE + 0x100;
/// Three frames: twice to the kernel, then to the program.
const FRAMES: u64 = TABLE + 0x180;
const LOG: u64 = TABLE + 0x200;
const ROUNDS: u64 = 40;
/// As Linux has it.
const SFMASK: u64 = 0x25_7fd5;

/// 1: add eax, ebx; syscall; lahf; add esi, eax; dec edi; jnz 1b; hlt
const PROGRAM: [u8; 12] = [
    0x01, 0xd8, 0x0f, 0x05, 0x9f, 0x01, 0xc6, 0xff, 0xcf, 0x75, 0xf5, 0xf4,
];

/// mov [r8], r11; mov [r8 + 8], rcx; xor r11, r10; verw [r9]; lahf;
/// add ebp, eax; add r8, 16; sysretq
const HANDLER: [u8; 24] = [
    0x4d, 0x89, 0x18, 0x49, 0x89, 0x48, 0x08, 0x4d, 0x31, 0xd3, 0x41, 0x0f, 0x00, 0x29, 0x9f, 0x01,
    0xc5, 0x49, 0x83, 0xc0, 0x10, 0x48, 0x0f, 0x07,
];

/// mov rsp, r13; iretq; lea rsp, [r13 + 40]; iretq; lahf; add ebp, eax;
/// mov rsp, r12; iretq
const BY_IRET: [u8; 19] = [
    0x4c, 0x89, 0xec, 0x48, 0xcf, 0x49, 0x8d, 0x65, 0x28, 0x48, 0xcf, 0x9f, 0x01, 0xc5, 0x4c, 0x89,
    0xe4, 0x48, 0xcf,
];

/// What `iretq` pops.
type Frame = [u64; 5];

struct Setting {
    sfmask: u64,
    cr4: u64,
    efer: u64,
    rflags: u64,
    /// What the kernel changes of the program's flags.
    change: u64,
    selector: u16,
    /// Back by these; else by `sysret`.
    frames: Option<[Frame; 3]>,
    /// ES, DS, FS and GS are as 64-bit programs have them.
    null: bool,
    gdt: [u64; 8],
}

const GDT: [u64; 8] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9100_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f200_0000_ffff,
];

fn guest(s: &Setting) -> Guest {
    let mut g = Guest::new(3);
    g.core.jit.make_warm();
    g.put_code(CODE_GPA, &PROGRAM);
    let by_iret = s.frames.is_some();
    g.put_code(
        KERNEL - BASE,
        if by_iret { &BY_IRET[..] } else { &HANDLER[..] },
    );
    for page in [KERNEL, TABLE] {
        g.map(page, page - BASE, 3);
    }
    for (n, d) in (0..).zip(s.gdt) {
        let at = TABLE - BASE + n * 8;
        g.core.ram.write(at, &d.to_le_bytes()).unwrap();
    }
    for (n, w) in (0..).zip(s.frames.iter().flatten().flatten()) {
        let at = FRAMES - BASE + n * 8;
        g.core.ram.write(at, &w.to_le_bytes()).unwrap();
    }
    let selector = s.selector.to_le_bytes();
    g.core.ram.write(SELECTOR - BASE, &selector).unwrap();
    g.enter(3, Mode::Long);
    let c = &mut *g.core.cpu;
    c.cr4 |= s.cr4;
    c.efer = c.efer & !cr::EFER_SCE | s.efer;
    c.gdt = (TABLE, 63);
    if s.null {
        for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
            c.seg[n] = Seg::new(0, 0, 0, 1 << 16);
        }
    }
    (c.gpr[12], c.gpr[13]) = (FRAMES + 80, FRAMES);
    (c.lstar, c.star, c.sfmask) = (KERNEL, 0x23 << 48 | 8 << 32, s.sfmask);
    c.rip = CODE;
    c.rflags = s.rflags | flag::ONE;
    c.gpr[7] = ROUNDS;
    (c.gpr[8], c.gpr[9], c.gpr[10]) = (LOG, SELECTOR, s.change);
    (c.gpr[0], c.gpr[3]) = (0x7fff_fff0, 0x1234_5679);
    g.core.update_mode();
    g.core.tlb_flush_all();
    g
}

type Seen = (Stop, u64, [u64; 16], u64, [Seg; 6], (u8, u8), Vec<u8>);

fn seen(g: &Guest, stop: Stop) -> Seen {
    let c = &*g.core.cpu;
    let faulted = matches!(stop, Stop::Trap(_)) && c.gpr[7] != 0;
    let rflags = if faulted { 0 } else { c.rflags };
    let log = g.bytes(LOG, ROUNDS * 16);
    (stop, c.rip, c.gpr, rflags, c.seg, (c.cpl, c.view), log)
}

/// Runs both ways; how many instructions translated code left for.
fn compare(s: &Setting) -> u64 {
    let (mut soft, mut jit) = (guest(s), guest(s));
    let stop = soft.interpret(&mut 10_000);
    if stop == Stop::TooLong {
        // Frames that lead round and round.
        return 0;
    }
    let a = seen(&soft, stop);
    let stop = jit.on_thread(Guest::translate);
    let b = seen(&jit, stop);
    assert_eq!(a, b);
    jit.core.jit.emulated
}

#[test]
fn system_calls_and_returns_agree() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let mut random = Random::new(0x5ca1_1e55);
    let usual = Setting {
        sfmask: SFMASK,
        cr4: cr::CR4_SMAP,
        efer: cr::EFER_SCE,
        rflags: flag::IF,
        change: 0,
        selector: 0x10,
        frames: None,
        null: true,
        gdt: GDT,
    };
    let left = compare(&usual);
    assert!(left < 10, "left {left} times in {ROUNDS} rounds");
    for _ in 0..80 {
        let one_in = |random: &mut Random, n| random.below(n) == 0;
        let s = Setting {
            sfmask: match random.below(4) {
                0 => random.next() & 0x3f_7fd5,
                _ => SFMASK,
            },
            cr4: match random.below(8) {
                0 => 0,
                1 => cr::CR4_SMAP | cr::CR4_TSD,
                _ => cr::CR4_SMAP,
            },
            efer: if one_in(&mut random, 16) {
                0
            } else {
                cr::EFER_SCE
            },
            rflags: random.next() & (flag::STATUS | flag::IF | flag::DF | flag::ID | flag::AC),
            change: match random.below(3) {
                0 => 0,
                1 => random.next() & (flag::STATUS | flag::IF | flag::DF | flag::AC | flag::IOPL),
                _ => random.next() & !flag::TF,
            },
            selector: random.pick(&[0x10, 0x10, 8, 0x18, 0, 3, 0x13, 0x14, 0x40, 0xfff8]),
            ..usual
        };
        compare(&s);
    }
}

/// Frames as kernels make them.
fn frames() -> [Frame; 3] {
    let kernel = |rip| [rip, 8, 0x246, DATA + 0x100, 0x10];
    [
        kernel(KERNEL + 5),
        kernel(KERNEL + 11),
        [CODE + 4, 0x33, 0x202, DATA + 0x200, 0x2b],
    ]
}

#[test]
fn interrupt_returns_agree() {
    let _alone = super::ONE_AT_A_TIME.lock();
    let mut random = Random::new(0x1e7_0000);
    let usual = || Setting {
        sfmask: SFMASK,
        cr4: cr::CR4_SMAP,
        efer: cr::EFER_SCE,
        rflags: flag::IF,
        change: 0,
        selector: 0x10,
        frames: Some(frames()),
        null: true,
        gdt: GDT,
    };
    for ss in [0x10, 0] {
        let mut s = usual();
        for frame in s.frames.iter_mut().flatten().take(2) {
            frame[4] = ss;
        }
        let (left, most) = (compare(&s), if ss == 0 { ROUNDS + 10 } else { 10 });
        assert!(left < most, "left {left} times in {ROUNDS} rounds, SS {ss}");
    }
    for _ in 0..150 {
        let mut s = usual();
        let mut frames = frames();
        let odd = random.below(3);
        for (n, frame) in frames.iter_mut().enumerate() {
            let system = flag::TF | flag::VM;
            frame[2] = match random.below(4) {
                0 => random.next() & !flag::TF,
                _ => random.next() & 0x3f_ffff & !system,
            };
            frame[3] = match random.below(4) {
                0 => random.next(),
                _ => DATA + random.below(0x800),
            };
            if n as u64 != odd || random.below(2) == 0 {
                continue;
            }
            match random.below(4) {
                0 => {
                    let any = random.value();
                    frame[0] = random.pick(&[1 << 47, any, CODE]);
                }
                1 => frame[1] = random.pick(&[0, 3, 8, 0xb, 0x10, 0x23, 0x30, 0x33, 0x43, 0x37]),
                _ => {
                    frame[4] = random.pick(&[0, 3, 0x10, 0x13, 0x18, 0x2b, 0x28, 0x3b, 0x43, 0x2f])
                }
            }
        }
        if random.below(8) == 0 {
            let n = random.below(8) as usize;
            s.gdt[n] ^= 1 << (32 + random.below(32));
        }
        s.null = random.below(6) != 0;
        s.frames = Some(frames);
        compare(&s);
    }
}
