//! Whole machines whose code changes while it runs: devices that write code,
//! another vCPU that writes code, a cache too small for the program.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arch::cpuid::CpuModel;
use arch::{CpuState, Segment};
use engine::{DebugRequest, DebugStop, Engine, Exit, Vcpu, VcpuHandle};
use iced_x86::{Code, Instruction as I, MemoryOperand, Register as R};
use memory::GuestRam;

use super::guest::{BASE, CODE, CODE_GPA, LogBus, RAM_SIZE, TABLES, map_page};
use super::sequence_make::{Op, Program};
use crate::SoftEngine;
use crate::cpu::cr;

/// Shared variables, 64 bytes apart.
const MAILBOX: u64 = 0x6_0000;
/// Linear address of the local APIC.
const APIC: u64 = BASE + RAM_SIZE;
const LIMIT: Duration = Duration::from_secs(30);

/// A vCPU on its thread, which returns it.
type Running = (Arc<dyn VcpuHandle>, JoinHandle<Box<dyn Vcpu>>);

struct Machine {
    ram: Arc<GuestRam>,
    engine: Arc<dyn Engine>,
    running: Vec<Running>,
}

impl Machine {
    fn new(vcpus: u32) -> Self {
        let ram = GuestRam::new(RAM_SIZE, RAM_SIZE).unwrap();
        let mut next = TABLES + 0x1000;
        for gpa in (0x6_0000..RAM_SIZE).step_by(4096) {
            map_page(&ram, TABLES, &mut next, BASE + gpa, gpa, 3);
        }
        map_page(&ram, TABLES, &mut next, APIC, 0xfee0_0000, 3);
        let engine = SoftEngine::new(ram.clone(), vcpus, CpuModel::Host).unwrap();
        engine.connect(Arc::new(LogBus::default()));
        Self {
            ram,
            engine,
            running: Vec::new(),
        }
    }

    fn start(&mut self, index: u32, rip: u64, gpr: &[(usize, u64)]) {
        let mut vcpu = self.engine.take_vcpu(index).unwrap();
        vcpu.restore(&state(rip, index, gpr)).unwrap();
        let handle = vcpu.handle();
        let thread = std::thread::spawn(move || {
            vcpu.run().unwrap();
            vcpu
        });
        self.running.push((handle, thread));
    }

    fn word(&self, n: u64) -> u64 {
        let mut b = [0; 8];
        self.ram.read(MAILBOX + n * 64, &mut b).unwrap();
        u64::from_le_bytes(b)
    }

    fn wait(&self, what: &str, mut f: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !f(self) {
            let words: Vec<_> = (0..8).map(|n| self.word(n)).collect();
            assert!(started.elapsed() < LIMIT, "{what}: {words:x?}");
            std::thread::yield_now();
        }
    }

    /// Stops all; gives a counter of the first vCPU.
    fn stop(self, counter: &str) -> u64 {
        let mut value = 0;
        for (n, (handle, thread)) in self.running.into_iter().enumerate() {
            handle.kick();
            let vcpu = thread.join().unwrap();
            let all = vcpu.stats().counters;
            if n == 0 {
                value = all.iter().find(|c| c.0 == counter).map_or(0, |c| c.1);
            }
        }
        value
    }
}

fn state(rip: u64, index: u32, gpr: &[(usize, u64)]) -> CpuState {
    let mut s = CpuState::reset(true);
    let data = Segment {
        selector: 0x10,
        base: 0,
        limit: 0xffff_ffff,
        rights: 0xc093,
    };
    s.segments = [data; 6];
    s.segments[1] = Segment {
        selector: 8,
        rights: 0xa09b,
        ..data
    };
    s.rip = rip;
    s.rflags = 2;
    s.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_WP | cr::CR0_ET | cr::CR0_NE | cr::CR0_MP;
    s.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT;
    s.cr3 = TABLES;
    s.msrs = vec![(0xc000_0080, cr::EFER_LME | cr::EFER_LMA)];
    s.gpr[4] = BASE + MAILBOX + 0x2000 + u64::from(index) * 0x1000;
    for (n, v) in gpr {
        s.gpr[*n] = *v;
    }
    s
}

fn put(m: &Machine, gpa: u64, ops: Vec<Op>) {
    let p = Program {
        ops,
        gpr: [0; 16],
        rflags: 2,
        start: BASE + gpa,
        memory: 0,
        code32: false,
    };
    m.ram.write(gpa, &p.encode().unwrap()).unwrap();
}

fn op(id: u32, i: I) -> Op {
    Op {
        id,
        insns: vec![i],
        target: None,
        patch: None,
    }
}

fn to(id: u32, code: Code, target: u32) -> Op {
    Op {
        target: Some(target),
        ..op(id, I::with_branch(code, CODE).unwrap())
    }
}

fn call(id: u32, at: u64) -> Op {
    op(id, I::with_branch(Code::Call_rel32_64, at).unwrap())
}

fn cell(n: u64) -> MemoryOperand {
    MemoryOperand::with_base_displ(R::RIP, (BASE + MAILBOX + n * 64) as i64)
}

/// `mov eax, imm32; ret` with the immediate at an aligned address.
fn function(m: &Machine, gpa: u64) -> u64 {
    assert_eq!(gpa % 4, 3);
    m.ram.write(gpa, &[0xb8, 0, 0, 0, 0, 0xc3]).unwrap();
    gpa + 1
}

#[test]
fn devices_that_write_code_are_noticed() {
    let _alone = super::ONE_AT_A_TIME.lock();
    for far in [0x103, 0x1003] {
        let mut m = Machine::new(1);
        let immediate = function(&m, CODE_GPA + far);
        put(
            &m,
            CODE_GPA,
            vec![
                call(0, CODE + far),
                op(1, I::with2(Code::Mov_rm32_r32, cell(0), R::EAX).unwrap()),
                to(2, Code::Jmp_rel32_64, 0),
            ],
        );
        m.start(0, CODE, &[]);
        for k in 1..400u32 {
            m.ram.write(immediate, &k.to_le_bytes()).unwrap();
            m.wait("the new code is not run", |m| m.word(0) == u64::from(k));
            if k % 50 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert!(m.stop("machine_invalidated_blocks") > 10);
    }
}

/// One vCPU changes a function, says so, and goes on; the other calls it and
/// must see at least what was said before it serialized.
#[test]
fn code_that_another_vcpu_writes_is_run() {
    let _alone = super::ONE_AT_A_TIME.lock();
    const CHANGES: u32 = 4000;
    for far in [0x803, 0x1003] {
        let mut m = Machine::new(2);
        let immediate = function(&m, CODE_GPA + far);
        let imm = MemoryOperand::with_base_displ(R::RIP, (BASE + immediate) as i64);
        put(
            &m,
            CODE_GPA,
            vec![
                op(0, I::with1(Code::Inc_rm32, R::ECX).unwrap()),
                op(1, I::with2(Code::Mov_rm32_r32, imm, R::ECX).unwrap()),
                op(2, I::with2(Code::Mov_rm32_r32, cell(0), R::ECX).unwrap()),
                // The writer runs it too.
                call(3, CODE + far),
                op(4, I::with2(Code::Cmp_rm32_r32, R::EAX, R::ECX).unwrap()),
                to(5, Code::Jne_rel32_64, 9),
                op(6, I::with2(Code::Cmp_rm32_imm32, R::ECX, CHANGES).unwrap()),
                to(7, Code::Jne_rel32_64, 0),
                op(8, I::with2(Code::Mov_rm32_imm32, cell(1), 1).unwrap()),
                op(9, I::with2(Code::Mov_rm32_r32, cell(2), R::EAX).unwrap()),
                op(10, I::with(Code::Hlt)),
            ],
        );
        let reader = CODE_GPA + 0x400;
        put(
            &m,
            reader,
            vec![
                op(0, I::with2(Code::Mov_r32_rm32, R::R8D, cell(0)).unwrap()),
                op(1, I::with(Code::Cpuid)),
                call(2, CODE + far),
                op(3, I::with2(Code::Cmp_rm32_r32, R::EAX, R::R8D).unwrap()),
                to(4, Code::Jge_rel32_64, 6),
                op(5, I::with1(Code::Inc_rm32, R::R9D).unwrap()),
                op(6, I::with2(Code::Cmp_rm32_r32, R::EAX, R::R10D).unwrap()),
                to(7, Code::Jge_rel32_64, 9),
                op(8, I::with1(Code::Inc_rm32, R::R9D).unwrap()),
                op(9, I::with2(Code::Mov_r32_rm32, R::R10D, R::EAX).unwrap()),
                op(10, I::with1(Code::Inc_rm32, cell(5)).unwrap()),
                op(11, I::with2(Code::Cmp_rm32_imm32, cell(1), 0).unwrap()),
                to(12, Code::Je_rel32_64, 0),
                op(13, I::with2(Code::Mov_rm32_r32, cell(3), R::R9D).unwrap()),
                op(14, I::with2(Code::Mov_rm32_imm32, cell(4), 1).unwrap()),
                op(15, I::with(Code::Hlt)),
            ],
        );
        m.start(1, BASE + reader, &[]);
        m.start(0, CODE, &[]);
        m.wait("the vCPUs do not end", |m| m.word(4) == 1 && m.word(2) != 0);
        assert_eq!(m.word(2), u64::from(CHANGES), "the writer ran old code");
        assert_eq!(m.word(3), 0, "times that the reader ran old code");
        println!("{} calls by the reader", m.word(5));
        assert!(m.stop("machine_invalidated_blocks") > 100);
    }
}

/// Two vCPUs in a program that the cache cannot hold.
#[test]
fn a_full_cache_is_emptied_under_two_vcpus() {
    let _alone = super::ONE_AT_A_TIME.lock();
    const CHUNKS: u64 = 6000;
    const ROUNDS: u64 = 30;
    crate::translate::cache::ROOM.set(128 << 10);
    let mut m = Machine::new(2);
    crate::translate::cache::ROOM.set(24 << 20);
    let start = CODE_GPA;
    let at = |n: u64| start + n * 64;
    for n in 0..CHUNKS {
        let mut ops = vec![op(
            0,
            I::with2(Code::Add_rm64_imm32, R::RAX, n as i32).unwrap(),
        )];
        if n + 1 == CHUNKS {
            ops.push(op(1, I::with1(Code::Dec_rm64, R::RSI).unwrap()));
            let back = I::with_branch(Code::Jne_rel32_64, BASE + start).unwrap();
            ops.push(op(2, back));
            let result = MemoryOperand::with_base(R::RDI);
            ops.push(op(3, I::with2(Code::Mov_rm64_r64, result, R::RAX).unwrap()));
        } else if n % 3 == 0 {
            let next = (BASE + at(n + 1)) as i32;
            ops.push(op(1, I::with2(Code::Mov_r32_imm32, R::EDX, next).unwrap()));
            ops.push(op(2, I::with1(Code::Jmp_rm64, R::RDX).unwrap()));
        } else {
            let next = I::with_branch(Code::Jmp_rel32_64, BASE + at(n + 1)).unwrap();
            ops.push(op(1, next));
        }
        put(&m, at(n), ops);
    }
    let sum = CHUNKS * (CHUNKS - 1) / 2 * ROUNDS;
    for index in 0..2 {
        let result = BASE + MAILBOX + u64::from(index) * 64;
        m.start(index, CODE, &[(6, ROUNDS), (7, result)]);
    }
    m.wait("the vCPUs do not end", |m| m.word(0) != 0 && m.word(1) != 0);
    assert_eq!((m.word(0), m.word(1)), (sum, sum));
    let blocks = m.stop("machine_translated_blocks");
    println!("{blocks} blocks");
    assert!(blocks > 2 * CHUNKS, "the cache was never emptied: {blocks}");
}

/// A debugger's breakpoint stops code that is hot, however it is reached, each
/// time it is reached.
#[test]
fn breakpoints_stop_hot_code_each_time() {
    let _alone = super::ONE_AT_A_TIME.lock();
    const FAR: u64 = CODE + 0x1010;
    let indirect = op(1, I::with1(Code::Call_rm64, R::RCX).unwrap());
    for reach in [call(1, FAR), indirect] {
        let m = Machine::new(1);
        let ops = vec![
            op(0, I::with1(Code::Inc_rm64, R::RBX).unwrap()),
            reach,
            op(2, I::with2(Code::Mov_rm64_r64, cell(0), R::RBX).unwrap()),
            to(3, Code::Jmp_rel32_64, 0),
        ];
        put(&m, CODE_GPA, ops);
        put(
            &m,
            CODE_GPA + 0x1010,
            vec![
                op(0, I::with1(Code::Inc_rm64, R::RDX).unwrap()),
                op(1, I::with(Code::Retnq)),
            ],
        );
        let mut vcpu = m.engine.take_vcpu(0).unwrap();
        vcpu.restore(&state(CODE, 0, &[(1, FAR)])).unwrap();
        let mut run = |breakpoints: &[u64], step| {
            let breakpoints = breakpoints.to_vec();
            let watchpoints = Vec::new();
            let request = DebugRequest {
                breakpoints,
                watchpoints,
                step,
            };
            vcpu.set_debug(&request).unwrap();
            let handle = vcpu.handle();
            let (done, ended) = std::sync::mpsc::channel();
            let patience = if request.is_empty() { 50 } else { 30_000 };
            let kicker = std::thread::spawn(move || {
                if ended.recv_timeout(Duration::from_millis(patience)).is_err() {
                    handle.kick();
                }
            });
            let exit = vcpu.run().unwrap();
            let _ = done.send(());
            kicker.join().unwrap();
            (exit, vcpu.save().unwrap())
        };
        assert!(matches!(run(&[], false).0, Exit::Kicked));
        let mut before = None;
        for _ in 0..3000 {
            let (exit, at) = run(&[FAR], false);
            assert!(
                matches!(exit, Exit::Debug(DebugStop::Breakpoint)),
                "{exit:?}"
            );
            assert_eq!(at.rip, FAR);
            if let Some(count) = before.replace(at.gpr[2]) {
                assert_eq!(at.gpr[2], count + 1, "went by unseen");
            }
            let (exit, _) = run(&[], true);
            assert!(matches!(exit, Exit::Debug(DebugStop::Step)), "{exit:?}");
        }
    }
}

/// An interrupt that came while they were masked is taken when `iret` lets
/// interrupts in, though what it leads to computes for ever.
#[test]
fn an_interrupt_that_waits_is_taken_after_iret() {
    let _alone = super::ONE_AT_A_TIME.lock();
    const GDT: u64 = 0x7_0000;
    const IDT: u64 = 0x7_1000;
    const HANDLER: u64 = CODE_GPA + 0x800;
    let mut m = Machine::new(1);
    // Enable the APIC (FEE000F0h).
    let enable = [0xc7, 0x87, 0xf0, 0, 0, 0, 0xff, 1, 0, 0];
    let again = [
        &[0xfa_u8][..],
        // Fixed interrupt 40h to self; a loop that is translated and linked to
        // itself; then iretq to that very loop, with far to go.
        &[0xc7, 0x87, 0, 3, 0, 0, 0x40, 0x40, 4, 0],
        &[0xb9, 200, 0, 0, 0, 0x48, 0xff, 0xc9, 0x75, 0xfb],
        &[
            0x48, 0x89, 0xe0, 0x6a, 0x10, 0x50, 0x68, 2, 2, 0, 0, 0x6a, 8,
        ],
        &[0x48, 0x8d, 0x05, 0xe7, 0xff, 0xff, 0xff, 0x50],
        &[0x48, 0x83, 0xc9, 0xff, 0x48, 0xcf],
    ]
    .concat();
    // Count, end of interrupt, drop the frame, again.
    let handler = [
        &[0xff, 0x06, 0xc7, 0x87, 0xb0][..],
        &[0, 0, 0, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 0x28, 0xff, 0xe5],
    ]
    .concat();
    m.ram.write(CODE_GPA, &enable).unwrap();
    m.ram.write(CODE_GPA + 0x100, &again).unwrap();
    m.ram
        .write(CODE_GPA + enable.len() as u64, &[0xff, 0xe5])
        .unwrap();
    m.ram.write(HANDLER, &handler).unwrap();
    let gdt = [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (n, d) in (0..).zip(gdt) {
        m.ram.write(GDT + n * 8, &d.to_le_bytes()).unwrap();
    }
    let at = BASE + HANDLER;
    let gate = at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
    m.ram.write(IDT + 0x400, &gate.to_le_bytes()).unwrap();
    m.ram.write(IDT + 0x408, &(at >> 32).to_le_bytes()).unwrap();
    let mut vcpu = m.engine.take_vcpu(0).unwrap();
    let registers = [(5, CODE + 0x100), (6, BASE + MAILBOX), (7, APIC)];
    let mut s = state(CODE, 0, &registers);
    (s.gdtr.base, s.gdtr.limit) = (BASE + GDT, 23);
    (s.idtr.base, s.idtr.limit) = (BASE + IDT, 0xfff);
    vcpu.restore(&s).unwrap();
    let handle = vcpu.handle();
    let thread = std::thread::spawn(move || {
        vcpu.run().unwrap();
        vcpu
    });
    m.running.push((handle, thread));
    m.wait("an interrupt is not taken", |m| m.word(0) >= 2000);
    m.stop("interrupts");
}
