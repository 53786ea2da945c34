//! Random bytes and random instructions as guest code, in every mode and at
//! both ends of the privilege scale, on the whole engine: run loop,
//! interpreter, translator, exceptions through a half-sane IDT. Nothing a guest
//! does may crash, hang or escape the monitor: a crash ends the test process,
//! and a vCPU that does not answer a kick fails it by name.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use arch::cpuid::CpuModel;
use arch::{CpuState, DescriptorTable, Segment};
use engine::{Exit, Vcpu, VcpuHandle};
use engine_soft::SoftEngine;
use engine_soft::cpu::cr;
use iced_x86::{Code, EncodingKind, OpCodeOperandKind as K};
use memory::GuestRam;
use support::corpus::Maker;
use support::forms;
use support::{Mode, NoBus, Random};

/// For each mode and ring.
const TIME: Duration = Duration::from_millis(2500);
/// How long one guest runs before it is kicked.
const SLICE: Duration = Duration::from_millis(4);
/// A vCPU that has not stopped so long after its kick hangs.
const PATIENCE: Duration = Duration::from_secs(20);

const RAM: u64 = 2 << 20;
const CODE: u64 = 0x10_0000;
const CODE_SIZE: usize = 0x4000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const TABLES: u64 = 0x4000;
/// Linear address of guest-physical 0 in paged modes; RAM is mapped at 0 too.
const ALIAS: u64 = support::BASE;

/// Kicks the vCPU of the iteration that is announced to it, and ends the
/// process if that does not help.
struct Watch {
    /// Iteration that runs; 0: none.
    now: Arc<AtomicU64>,
    start: mpsc::Sender<(u64, String)>,
}

impl Watch {
    fn new(handle: Arc<dyn VcpuHandle>) -> Self {
        let now = Arc::new(AtomicU64::new(0));
        let (start, started) = mpsc::channel::<(u64, String)>();
        let running = now.clone();
        std::thread::spawn(move || {
            while let Ok((n, name)) = started.recv() {
                let begun = Instant::now();
                while running.load(Ordering::SeqCst) == n {
                    std::thread::sleep(SLICE);
                    if running.load(Ordering::SeqCst) == n {
                        handle.kick();
                    }
                    if begun.elapsed() > PATIENCE {
                        eprintln!("hangs: {name}");
                        std::process::abort();
                    }
                }
            }
        });
        Self { now, start }
    }

    fn run(&self, n: u64, name: String, vcpu: &mut dyn Vcpu) -> Exit {
        self.now.store(n, Ordering::SeqCst);
        self.start.send((n, name)).unwrap();
        let exit = vcpu.run();
        self.now.store(0, Ordering::SeqCst);
        exit.unwrap()
    }
}

/// Forms of every kind, privileged and unknown ones too.
fn all_forms(bits: u32) -> Vec<Code> {
    Code::values()
        .filter(|c| {
            let o = c.op_code();
            // The encoder cannot make the five-operand forms.
            let five = |k: &K| matches!(k, K::imm4_m2z | K::xmm_is5 | K::ymm_is5);
            o.is_instruction()
                && o.is_available_in_mode(bits)
                && o.encoding() != EncodingKind::MVEX
                && !o.op_kinds().iter().any(five)
        })
        .collect()
}

/// Beginnings of instructions that change the mode, segments and tables.
const SYSTEM: [&[u8]; 26] = [
    &[0x0f, 0x01],
    &[0x0f, 0x00],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0x21],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0xcf],
    &[0x48, 0xcf],
    &[0xcd],
    &[0xcb],
    &[0x8e],
    &[0xff],
    &[0x9d],
    &[0xf4],
    &[0xfb],
    &[0x0f, 0xb2],
    &[0xf3, 0xa4],
];

fn code(rng: &mut Random, maker: &mut Maker, forms: &[Code]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CODE_SIZE + 16);
    let chaos = rng.below(8) == 0;
    while out.len() < CODE_SIZE {
        match rng.below(16) {
            _ if chaos => out.extend_from_slice(&rng.next().to_le_bytes()),
            0..12 => {
                let form = rng.pick(forms);
                if let Some((bytes, _)) = maker.instruction(form, CODE) {
                    out.extend_from_slice(&bytes);
                }
            }
            12 | 13 if forms.len() > 2000 => {
                out.extend_from_slice(rng.pick(&SYSTEM));
                out.push(rng.next() as u8);
            }
            // A loop back, so that code gets warm and is translated.
            14 => out.extend_from_slice(&[0xeb, 0xc0 | rng.below(0x38) as u8]),
            _ => out.push(rng.next() as u8),
        }
    }
    out.truncate(CODE_SIZE);
    out
}

fn put(ram: &GuestRam, at: u64, v: u64) {
    ram.write(at, &v.to_le_bytes()).unwrap();
}

/// A descriptor with base 0, or a gate to a place in the code.
fn descriptor(rights: u64, limit: u64, base: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (rights & 0xff) << 40
        | (limit >> 16 & 0xf) << 48
        | (rights >> 12 & 0xf) << 52
        | (base >> 24 & 0xff) << 56
}

/// GDT, IDT, TSS and page tables; with some damage now and then.
fn tables(rng: &mut Random, ram: &GuestRam, mode: Mode) {
    let code = match mode {
        Mode::Long => 0xa09b,
        Mode::Compat | Mode::Protected32 => 0xc09b,
        _ => 0x009b,
    };
    for n in 0..16u64 {
        let (rights, limit, base) = match n {
            1 => (code, 0xfffff, 0),
            2 => (0xc093, 0xfffff, 0),
            3 => (code | 0x60, 0xfffff, 0),
            4 => (0xc0f3, 0xfffff, 0),
            5 => (0x8b, 0x67, TSS),
            _ => (rng.next(), rng.next(), rng.next()),
        };
        put(ram, GDT + n * 8, descriptor(rights, limit, base));
    }
    for n in 0..32u64 {
        let to = CODE + rng.below(CODE_SIZE as u64);
        let kind = rng.pick(&[0x8e, 0x8f, 0xee, 0x85]);
        let gate = to & 0xffff | 8 << 16 | kind << 40 | (to >> 16 & 0xffff) << 48;
        if mode == Mode::Long || mode == Mode::Compat {
            put(ram, IDT + n * 16, gate);
            put(ram, IDT + n * 16 + 8, 0);
        } else {
            put(ram, IDT + n * 8, gate);
        }
    }
    for at in (TSS..TSS + 104).step_by(8) {
        put(ram, at, rng.pick(&[0x8_0000, 0x9_0000, 0x10_0010]));
    }
    page_tables(rng, ram);
}

fn page_tables(rng: &mut Random, ram: &GuestRam) {
    let at = |n: u64| TABLES + n * 0x1000;
    put(ram, at(0), at(1) | 7);
    put(ram, at(1), at(2) | 7);
    put(ram, at(2), at(3) | 7);
    put(ram, at(2) + (ALIAS >> 21) * 8, at(3) | 7);
    put(ram, at(4), at(5) | 7);
    ram.write(at(4) + (ALIAS >> 22) * 4, &(at(5) as u32 | 7).to_le_bytes())
        .unwrap();
    for page in 0..512u64 {
        let mut rights = 7;
        if rng.below(64) == 0 {
            rights = rng.next() & 0x8000_0000_0000_0fff;
        }
        let to = if rng.below(128) == 0 {
            rng.next() & 0x3fff_ffff_f000
        } else {
            page << 12
        };
        put(ram, at(3) + page * 8, to | rights);
        ram.write(at(5) + page * 4, &((to | rights) as u32).to_le_bytes())
            .unwrap();
    }
}

/// A register: often an address in RAM.
fn register(rng: &mut Random) -> u64 {
    match rng.below(4) {
        0 => rng.value(),
        1 => CODE + rng.below(CODE_SIZE as u64),
        _ => 0x8_0000 + rng.below(0x4_0000),
    }
}

fn state(rng: &mut Random, mode: Mode, cpl: u8) -> CpuState {
    let mut s = CpuState::reset(true);
    s.gpr = std::array::from_fn(|_| register(rng));
    s.gpr[4] = 0x9_0000 + rng.below(0x1000) * 8;
    s.rflags = rng.next() & 0x3cd5 | 2 | if rng.below(8) == 0 { 0x100 } else { 0 };
    let small = matches!(mode, Mode::Real | Mode::Protected16);
    let limit = if small { 0xffff } else { 0xffff_ffff };
    let dpl = u32::from(cpl) << 5;
    let data = Segment {
        selector: if mode == Mode::Real {
            0x8000
        } else if cpl == 3 {
            0x23
        } else {
            0x10
        },
        base: if mode == Mode::Real { 0x8_0000 } else { 0 },
        limit,
        rights: if small { 0x93 } else { 0xc093 } | dpl,
    };
    s.segments = [data; 6];
    s.segments[1] = Segment {
        selector: if cpl == 3 { 0x1b } else { 8 },
        base: if small { CODE } else { 0 },
        limit,
        rights: dpl
            | match mode {
                Mode::Long => 0xa09b,
                Mode::Real | Mode::Protected16 => 0x009b,
                _ => 0xc09b,
            },
    };
    s.tr = Segment {
        selector: 0x28,
        base: TSS,
        limit: 0x67,
        rights: 0x8b,
    };
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x7f,
    };
    s.idtr = DescriptorTable {
        base: IDT,
        limit: if rng.below(3) == 0 { 0 } else { 0x1ff },
    };
    s.rip = rng.below(0x200) + if small { 0 } else { CODE };
    control_registers(rng, &mut s, mode);
    let mut vectors = vec![0; 832];
    rng.fill(&mut vectors[160..416]);
    rng.fill(&mut vectors[576..]);
    vectors[..2].copy_from_slice(&(rng.next() as u16 & 0xf3f | 0x40).to_le_bytes());
    vectors[24..28].copy_from_slice(&(rng.next() as u32 & 0xffff).to_le_bytes());
    vectors[512] = 7;
    s.xsave = vectors;
    s
}

fn control_registers(rng: &mut Random, s: &mut CpuState, mode: Mode) {
    let mut efer = 0;
    s.cr0 = cr::CR0_ET | cr::CR0_NE;
    s.cr4 = cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | rng.next() & cr::CR4_SMEP;
    s.xcr0 = 7;
    if mode != Mode::Real {
        s.cr0 |= cr::CR0_PE | cr::CR0_WP;
        s.cr4 |= cr::CR4_OSXSAVE;
    }
    match mode {
        Mode::Protected32 => {
            s.cr0 |= cr::CR0_PG;
            s.cr3 = TABLES + 0x4000;
        }
        Mode::Compat | Mode::Long => {
            s.cr0 |= cr::CR0_PG;
            s.cr4 |= cr::CR4_PAE;
            s.cr3 = TABLES;
            efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE | cr::EFER_SCE;
        }
        _ => {}
    }
    s.msrs = vec![(0xc000_0080, efer)];
}

fn fuzz(mode: Mode, cpl: u8) {
    let ram = GuestRam::new(RAM, RAM).unwrap();
    let engine = SoftEngine::new(ram.clone(), 1, CpuModel::Host).unwrap();
    engine.connect(Arc::new(NoBus));
    let mut vcpu = engine.take_vcpu(0).unwrap();
    let watch = Watch::new(vcpu.handle());
    let bits = if mode == Mode::Long { 64 } else { 32 };
    let corpus = if bits == 64 { Mode::Long } else { Mode::Compat };
    let (wild, mild) = (all_forms(bits), forms::forms(corpus));
    let (mut triple, mut kicked, mut n) = (0, 0, 0);
    let begun = Instant::now();
    // For a soak: seconds for each mode and ring.
    let time = std::env::var("HOLM_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .map_or(TIME, Duration::from_secs);
    while begun.elapsed() < time {
        n += 1;
        let seed = n << 8 | u64::from(cpl) << 4 | mode as u64;
        let mut rng = Random::new(seed);
        let mut maker = Maker::new(corpus, seed);
        ram.write(0, &vec![0; 0x10_0000]).unwrap();
        let forms = if rng.below(2) == 0 { &wild } else { &mild };
        ram.write(CODE, &code(&mut rng, &mut maker, forms)).unwrap();
        tables(&mut rng, &ram, mode);
        let s = state(&mut rng, mode, cpl);
        vcpu.restore(&s).unwrap();
        match watch.run(n, format!("{mode:?} ring {cpl} seed {seed:#x}"), &mut *vcpu) {
            Exit::TripleFault => triple += 1,
            _ => kicked += 1,
        }
        vcpu.save().unwrap();
    }
    println!("{mode:?} ring {cpl}: {n} guests, {triple} triple faults, {kicked} stopped");
    for (name, value) in vcpu.stats().counters {
        print!("{name} {value}, ");
    }
    println!();
    assert!(n > 10 && triple + kicked == n);
}

#[test]
fn real_mode() {
    fuzz(Mode::Real, 0);
}

#[test]
fn protected_16_bit() {
    fuzz(Mode::Protected16, 0);
    fuzz(Mode::Protected16, 3);
}

#[test]
fn protected_32_bit() {
    fuzz(Mode::Protected32, 0);
    fuzz(Mode::Protected32, 3);
}

#[test]
fn compatibility_mode() {
    fuzz(Mode::Compat, 0);
    fuzz(Mode::Compat, 3);
}

#[test]
fn long_mode() {
    fuzz(Mode::Long, 0);
    fuzz(Mode::Long, 3);
}
