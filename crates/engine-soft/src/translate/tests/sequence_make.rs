//! Random programs: what they are made of, and their bytes.

use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess,
    OpCodeOperandKind as K, OpKind, Register,
};

use super::guest::{CODE, DATA, MMIO, READ_ONLY, STACK, STACK_SIZE, UNMAPPED};
use super::support::case::undefined_flags;
use super::support::corpus::Maker;
use super::support::forms::forms;
use super::support::{Mode, Random};
use crate::translate::classify::{Class, classify};

/// A step of a program: some instructions that stay together, the first of
/// which may be a branch to another step.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub id: u32,
    pub insns: Vec<Instruction>,
    /// The first instruction's branch target (or its 64-bit immediate).
    pub target: Option<u32>,
    /// The first instruction's operand: this many bytes into another step.
    pub patch: Option<(u32, u8)>,
}

/// A program and the registers that it starts with.
#[derive(Clone)]
pub(super) struct Program {
    pub ops: Vec<Op>,
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub start: u64,
    pub memory: u64,
    /// Of 32-bit code.
    pub code32: bool,
}

impl Program {
    /// The bytes at `start`, `None` if a short branch does not reach.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut at = vec![self.start; self.ops.len() + 1];
        let mut out = Vec::new();
        for pass in 0..2 {
            out.clear();
            let mut encoder = Encoder::new(if self.code32 { 32 } else { 64 });
            for (n, op) in self.ops.iter().enumerate() {
                at[n] = self.start + out.len() as u64;
                for (k, i) in op.insns.iter().enumerate() {
                    let mut i = *i;
                    let rip = self.start + out.len() as u64;
                    let place = |t| {
                        let place = self.ops.iter().position(|o| o.id >= t);
                        let place = place.unwrap_or(self.ops.len());
                        if pass == 0 { rip } else { at[place] }
                    };
                    if let (0, Some((t, by))) = (k, op.patch) {
                        i.set_memory_displacement64(place(t) + u64::from(by));
                    }
                    if let (0, Some(t)) = (k, op.target) {
                        let to = place(t);
                        if i.op_count() == 2 {
                            i.set_immediate_u64(1, to);
                        } else if self.code32 {
                            i.set_near_branch32(to as u32);
                        } else {
                            i.set_near_branch64(to);
                        }
                    }
                    encoder.encode(&i, rip).ok()?;
                    out.append(&mut encoder.take_buffer());
                }
            }
            at[self.ops.len()] = self.start + out.len() as u64;
        }
        out.push(0xf4);
        Some(out)
    }

    pub fn listing(&self) -> String {
        let mut s = format!("start {:#x}, rflags {:#x}\n", self.start, self.rflags);
        for (n, v) in self.gpr.iter().enumerate() {
            s += &format!("  {:?}={v:#x}", Register::RAX + n as u32);
        }
        s += "\n";
        for op in &self.ops {
            for (k, i) in op.insns.iter().enumerate() {
                let to = op.target.or(op.patch.map(|p| p.0)).filter(|_| k == 0);
                s += &match to {
                    Some(t) => format!("  {:>3}: {:?} -> {t}\n", op.id, i.code()),
                    None => format!("  {:>3}: {i}    ({:?})\n", op.id, i.code()),
                };
            }
        }
        s
    }
}

/// Makes programs.
pub(super) struct Generator {
    rng: Random,
    maker: Maker,
    integer: Vec<Code>,
    vector: Vec<Code>,
    info: InstructionInfoFactory,
    pointers: Vec<u32>,
    index: u32,
    counter: u32,
    data: Vec<u32>,
    base: Register,
    /// In a leaf routine: its return address must stay.
    leaf: bool,
    /// Makes programs of 32-bit code.
    code32: bool,
    /// Programs change their own code.
    pub changing: bool,
    id: u32,
}

fn wanted(code: Code) -> Option<bool> {
    let mut i = Instruction::new();
    i.set_code(code);
    let class = classify(&i);
    let info = code.op_code();
    let text = format!("{:?}", i.mnemonic());
    // x87 and MMX are compared one by one; these have undefined results.
    let skip = info.mnemonic() == Mnemonic::INVALID
        || matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
        || text.starts_with('F')
        || text.starts_with("Shld")
        || text.starts_with("Shrd")
        || code.cpuid_features().contains(&iced_x86::CpuidFeature::MMX);
    let kind = matches!(class, Class::Plain | Class::Memory | Class::BitString);
    if skip || !kind || i.flow_control() != iced_x86::FlowControl::Next {
        return None;
    }
    let vectors = info.op_kinds().iter().any(|k| {
        let k = format!("{k:?}");
        k.contains("mm_")
    });
    let mmx = |k| format!("{k:?}").starts_with("mm_");
    if info.op_kinds().iter().any(mmx) {
        return None;
    }
    Some(vectors)
}

impl Generator {
    pub fn new(seed: u64, mode: Mode) -> Self {
        let all: Vec<_> = forms(mode)
            .into_iter()
            .filter_map(|c| Some((c, wanted(c)?)))
            .collect();
        let of = |v: bool| {
            all.iter()
                .filter(|(_, x)| *x == v)
                .map(|(c, _)| *c)
                .collect()
        };
        Self {
            rng: Random::new(seed),
            maker: Maker::new(mode, seed ^ 0x55),
            code32: mode != Mode::Long,
            integer: of(false),
            vector: of(true),
            info: InstructionInfoFactory::new(),
            pointers: Vec::new(),
            index: 0,
            counter: 0,
            data: Vec::new(),
            base: Register::RSP,
            leaf: false,
            changing: false,
            id: 0,
        }
    }

    fn word(&self) -> u32 {
        if self.code32 { 4 } else { 8 }
    }

    fn register(&self, n: u32) -> Register {
        match self.code32 {
            true => Register::EAX + n,
            false => Register::RAX + n,
        }
    }

    fn absolute(&self, at: u64) -> MemoryOperand {
        let base = match self.code32 {
            true => Register::None,
            false => Register::RIP,
        };
        let (none, size) = (Register::None, self.word());
        MemoryOperand::new(base, none, 1, at as i64, size, false, none)
    }

    /// What stands for a form of 64-bit code.
    fn of(&self, code: Code) -> Code {
        if !self.code32 {
            return code;
        }
        // Conditional jumps have theirs beside it.
        if code.is_jcc_near() {
            return Code::values().nth(code as usize - 1).unwrap();
        }
        match code {
            Code::Jmp_rel32_64 => Code::Jmp_rel32_32,
            Code::Call_rel32_64 => Code::Call_rel32_32,
            Code::Loop_rel8_64_RCX => Code::Loop_rel8_32_ECX,
            Code::Loope_rel8_64_RCX => Code::Loope_rel8_32_ECX,
            Code::Loopne_rel8_64_RCX => Code::Loopne_rel8_32_ECX,
            Code::Loop_rel8_64_ECX => Code::Loop_rel8_32_CX,
            Code::Jrcxz_rel8_64 => Code::Jecxz_rel8_32,
            Code::Jecxz_rel8_64 => Code::Jcxz_rel8_32,
            Code::Mov_r64_imm64 => Code::Mov_r32_imm32,
            Code::Push_r64 => Code::Push_r32,
            Code::Pop_r64 => Code::Pop_r32,
            Code::Call_rm64 => Code::Call_rm32,
            Code::Lea_r64_m => Code::Lea_r32_m,
            Code::Retnq => Code::Retnd,
            Code::Jmp_rm64 => Code::Jmp_rm32,
            Code::Pushq_imm32 => Code::Pushd_imm32,
            Code::Push_rm64 => Code::Push_rm32,
            Code::Add_rm64_imm8 => Code::Add_rm32_imm8,
            Code::Sub_rm64_imm8 => Code::Sub_rm32_imm8,
            Code::Pushfq => Code::Pushfd,
            Code::Mov_rm64_r64 => Code::Mov_rm32_r32,
            Code::Leaveq => Code::Leaved,
            Code::Pop_rm64 => Code::Pop_rm32,
            Code::Cmp_rm64_r64 => Code::Cmp_rm32_r32,
            Code::Inc_rm64 => Code::Inc_r32,
            Code::Dec_rm64 => Code::Dec_r32,
            Code::Mov_r64_rm64 => Code::Mov_r32_rm32,
            code => code,
        }
    }

    /// A program of 2 to 40 steps.
    pub fn program(&mut self) -> Program {
        let all = if self.code32 { 8 } else { 16 };
        let mut numbers: Vec<u32> = (0..all).filter(|n| *n != 4).collect();
        for n in (1..numbers.len()).rev() {
            numbers.swap(n, self.rng.below(n as u64 + 1) as usize);
        }
        let pointers = if self.code32 { 2 } else { 4 };
        self.pointers = numbers[..pointers].to_vec();
        self.index = numbers[pointers];
        self.counter = numbers[pointers + 1];
        self.data = numbers[pointers + 2..].to_vec();
        self.base = self.register(4);
        self.id = 0;
        self.leaf = false;
        let mut gpr = [0; 16];
        for r in &mut gpr {
            *r = self.rng.value();
        }
        for n in 0..pointers {
            gpr[self.pointers[n] as usize] = self.pointer();
        }
        gpr[self.index as usize] = self.rng.below(48).wrapping_sub(8);
        gpr[self.counter as usize] = 1 + self.rng.below(4);
        gpr[4] = STACK + 0x1000 + self.rng.below(64) * 8 - 256;
        match self.rng.below(12) {
            0 => gpr[4] += self.rng.below(8),
            1 => gpr[4] = STACK + STACK_SIZE - self.rng.below(8) * 8,
            2 => gpr[4] = STACK + self.rng.below(8) * 8,
            _ => {}
        }
        if self.code32 {
            for (n, r) in gpr.iter_mut().enumerate() {
                *r = if n < 8 { *r & 0xffff_ffff } else { 0 };
            }
        }
        let length = 2 + self.rng.below(39) as u32;
        let ops = self.ops(length);
        Program {
            ops,
            gpr,
            rflags: self.rng.next() & 0x8d5 | 2,
            start: CODE
                + match self.rng.below(4) {
                    0 => 0x1000 - self.rng.below(200),
                    _ => self.rng.below(64),
                },
            memory: self.rng.next(),
            code32: self.code32,
        }
    }

    fn pointer(&mut self) -> u64 {
        match self.rng.below(20) {
            0..9 => DATA + 0x1000 + self.rng.below(0x800),
            9..12 => DATA + 0x1000 + self.rng.below(0x80) * 16,
            12..16 => DATA + 0x2000 - self.rng.below(80),
            16 => READ_ONLY + self.rng.below(0x100),
            17 => MMIO + 0x100 + self.rng.below(0x40) * 8,
            18 => UNMAPPED - 0x1000 - 32 + self.rng.below(64),
            _ => UNMAPPED - 32 + self.rng.below(64),
        }
    }

    fn ops(&mut self, length: u32) -> Vec<Op> {
        let mut ops = Vec::new();
        // Leaf routines stand behind the program's end.
        let leaves = 1000;
        let mut open: Option<u32> = None;
        let mut calls = false;
        while (self.id) < length {
            let id = self.id;
            if self.changing && self.rng.below(6) == 0 {
                self.change(&mut ops);
                continue;
            }
            match self.rng.below(100) {
                0..8 => self.stack(&mut ops),
                8..17 => self.move_pointer(&mut ops),
                17..25 => {
                    let code = self.jcc();
                    let to = id + 1 + self.rng.below(6) as u32;
                    self.branch(&mut ops, code, to);
                }
                25..27 => {
                    let to = id + 1 + self.rng.below(6) as u32;
                    self.branch(&mut ops, Code::Jmp_rel32_64, to);
                }
                27 => {
                    let code = self.rng.pick(&[
                        Code::Loop_rel8_64_RCX,
                        Code::Loope_rel8_64_RCX,
                        Code::Loopne_rel8_64_RCX,
                        Code::Jrcxz_rel8_64,
                        Code::Jecxz_rel8_64,
                        Code::Loop_rel8_64_ECX,
                    ]);
                    if self.data.contains(&1) || code == Code::Jrcxz_rel8_64 {
                        let to = id + 1 + self.rng.below(4) as u32;
                        self.branch(&mut ops, code, to);
                    }
                }
                28..32 => match open.take() {
                    None => {
                        let r = self.register(self.counter);
                        let k = 2 + self.rng.below(9) as u32;
                        let i = Instruction::with2(Code::Mov_r32_imm32, r.full_register32(), k);
                        self.put(&mut ops, vec![i.unwrap()], None);
                        open = Some(self.id);
                    }
                    Some(top) => self.close(&mut ops, top),
                },
                32..34 => {
                    calls = true;
                    self.branch(&mut ops, Code::Call_rel32_64, leaves + self.id % 2 * 10);
                }
                34..37 => calls |= self.indirect(&mut ops, leaves),
                37 => self.special(&mut ops),
                _ => self.data_op(&mut ops),
            }
        }
        if let Some(top) = open {
            self.close(&mut ops, top);
        }
        let halt = Instruction::with(Code::Hlt);
        self.put(&mut ops, vec![halt], None);
        if calls {
            for leaf in [leaves, leaves + 10] {
                self.id = leaf;
                self.leaf = true;
                for _ in 0..self.rng.below(4) {
                    self.data_op(&mut ops);
                }
                let i = Instruction::with(self.of(Code::Retnq));
                self.put(&mut ops, vec![i], None);
            }
        }
        ops
    }

    fn close(&mut self, ops: &mut Vec<Op>, top: u32) {
        let r = self.register(self.counter);
        let i = Instruction::with1(self.of(Code::Dec_rm64), r).unwrap();
        self.put(ops, vec![i], None);
        self.branch(ops, Code::Jne_rel32_64, top);
    }

    fn put(&mut self, ops: &mut Vec<Op>, insns: Vec<Instruction>, target: Option<u32>) {
        ops.push(Op {
            id: self.id,
            insns,
            target,
            patch: None,
        });
        self.id += 1;
    }

    fn branch(&mut self, ops: &mut Vec<Op>, code: Code, to: u32) {
        let i = Instruction::with_branch(self.of(code), CODE).unwrap();
        self.put(ops, vec![i], Some(to));
    }

    fn jcc(&mut self) -> Code {
        self.rng.pick(&[
            Code::Jo_rel32_64,
            Code::Jno_rel32_64,
            Code::Jb_rel32_64,
            Code::Jae_rel32_64,
            Code::Je_rel32_64,
            Code::Jne_rel32_64,
            Code::Jbe_rel32_64,
            Code::Ja_rel32_64,
            Code::Js_rel32_64,
            Code::Jns_rel32_64,
            Code::Jp_rel32_64,
            Code::Jnp_rel32_64,
            Code::Jl_rel32_64,
            Code::Jge_rel32_64,
            Code::Jle_rel32_64,
            Code::Jg_rel32_64,
        ])
    }

    fn data64(&mut self) -> Register {
        {
            let n = self.rng.pick(&self.data.clone());
            self.register(n)
        }
    }

    /// Jumps and calls through a register.
    fn indirect(&mut self, ops: &mut Vec<Op>, leaves: u32) -> bool {
        let r = self.data64();
        let call = self.rng.below(2) == 0;
        let to = if call {
            leaves + self.id % 2 * 10
        } else {
            self.id + 1 + self.rng.below(5) as u32
        };
        let load = Instruction::with2(self.of(Code::Mov_r64_imm64), r, CODE).unwrap();
        let mut insns = vec![load];
        match (call, self.rng.below(3)) {
            (true, 0) => {
                insns.push(Instruction::with1(self.of(Code::Push_r64), r).unwrap());
                let m = MemoryOperand::with_base_displ(self.register(4), 0);
                insns.push(Instruction::with1(self.of(Code::Call_rm64), m).unwrap());
                let m = MemoryOperand::with_base_displ(self.register(4), self.word().into());
                insns.push(
                    Instruction::with2(self.of(Code::Lea_r64_m), self.register(4), m).unwrap(),
                );
            }
            (true, _) => insns.push(Instruction::with1(self.of(Code::Call_rm64), r).unwrap()),
            (false, 0) => {
                insns.push(Instruction::with1(self.of(Code::Push_r64), r).unwrap());
                insns.push(Instruction::with(self.of(Code::Retnq)));
            }
            (false, _) => insns.push(Instruction::with1(self.of(Code::Jmp_rm64), r).unwrap()),
        }
        self.put(ops, insns, Some(to));
        call
    }

    fn stack(&mut self, ops: &mut Vec<Op>) {
        let any = self.rng.below(if self.code32 { 8 } else { 16 }) as u32;
        let any = self.register(any);
        let d = self.data64();
        let slot = self.word() as i32;
        let small = self.rng.below(96) as i32 - 48;
        let i = match self.rng.below(9) {
            0..3 => Instruction::with1(self.of(Code::Push_r64), any),
            3..5 => Instruction::with1(self.of(Code::Pop_r64), d),
            5 => Instruction::with1(self.of(Code::Pushq_imm32), self.rng.next() as i32),
            6 => {
                let m = self.memory(8);
                Instruction::with1(self.of(Code::Push_rm64), m)
            }
            7 => Instruction::with2(
                self.of(Code::Add_rm64_imm8),
                self.register(4),
                small & -slot,
            ),
            _ => Instruction::with2(
                self.of(Code::Sub_rm64_imm8),
                self.register(4),
                small & -slot,
            ),
        };
        self.put(ops, vec![i.unwrap()], None);
    }

    fn special(&mut self, ops: &mut Vec<Op>) {
        let i = match self.rng.below(5) {
            0 => Instruction::with(self.of(Code::Pushfq)),
            1 => Instruction::with(Code::Cld),
            // Inside a group this leaves the block.
            2 => {
                let m = self.absolute(CODE);
                let d = Register::AX + self.rng.pick(&self.data.clone());
                Instruction::with2(Code::Lea_r16_m, d, m).unwrap()
            }
            3 if self.data.contains(&5) => {
                let mov = Instruction::with2(
                    self.of(Code::Mov_rm64_r64),
                    self.register(5),
                    self.register(4),
                );
                let leave = Instruction::with(self.of(Code::Leaveq));
                let push = Instruction::with1(self.of(Code::Push_r64), self.register(5)).unwrap();
                let sub =
                    Instruction::with2(self.of(Code::Sub_rm64_imm8), self.register(4), 24).unwrap();
                return self.put(ops, vec![push, mov.unwrap(), sub, leave], None);
            }
            _ => {
                let m = MemoryOperand::with_base_displ(self.register(4), self.word().into());
                Instruction::with1(self.of(Code::Pop_rm64), m).unwrap()
            }
        };
        self.put(ops, vec![i], None);
    }

    /// A store into the code: the immediate of a `mov` or the condition of a
    /// branch, behind (which loops come back to) or ahead.
    fn change(&mut self, ops: &mut Vec<Op>) {
        let fixed: Vec<(u32, u8, u8)> = ops
            .iter()
            .filter_map(|o| match o.insns[0].code() {
                Code::Mov_r32_imm32 => Some((o.id, o.insns[0].len() as u8, 4)),
                c if c.is_jcc_near() => Some((o.id, 1, 1)),
                _ => None,
            })
            .collect();
        if self.rng.below(3) == 0 || fixed.is_empty() {
            // Something to change.
            let d = Register::EAX + self.rng.pick(&self.data.clone());
            let v = self.rng.next() as u32;
            let i = Instruction::with2(Code::Mov_r32_imm32, d, v).unwrap();
            return self.put(ops, vec![i], None);
        }
        let (to, by, size) = self.rng.pick(&fixed);
        let m = self.absolute(CODE);
        let jcc = 0x80 + self.rng.below(16) as u32;
        let insns = match (size, self.rng.below(3)) {
            (1, _) => {
                // The store's own check may lose flags that only the changed
                // code would have read: known flags follow.
                let (a, b) = (self.data64(), self.data64());
                vec![
                    Instruction::with2(Code::Mov_rm8_imm8, m, jcc).unwrap(),
                    Instruction::with2(self.of(Code::Cmp_rm64_r64), a, b).unwrap(),
                ]
            }
            (_, 0) => {
                let v = self.rng.next() as u32;
                vec![Instruction::with2(Code::Mov_rm32_imm32, m, v).unwrap()]
            }
            (_, 1) => vec![Instruction::with1(Code::Inc_rm32, m).unwrap()],
            _ => {
                let d = Register::EAX + self.rng.pick(&self.data.clone());
                vec![Instruction::with2(Code::Mov_rm32_r32, m, d).unwrap()]
            }
        };
        // `mov r32, imm32`: the immediate is behind the opcode (and REX).
        let by = if size == 4 {
            let op = ops.iter().find(|o| o.id == to);
            1 + u8::from(op.is_some_and(|o| o.insns[0].op0_register().number() >= 8))
        } else {
            by
        };
        let ahead = size == 4 && self.rng.below(2) == 0;
        let d = Register::EAX + self.rng.pick(&self.data.clone());
        let (to, by) = if ahead {
            (self.id + 1, 1 + u8::from(d.number() >= 8))
        } else {
            (to, by)
        };
        self.put(ops, insns, None);
        if let Some(op) = ops.last_mut() {
            op.patch = Some((to, by));
        }
        if ahead {
            // What is changed comes next, in the same block.
            let i = Instruction::with2(Code::Mov_r32_imm32, d, 0x1234_5678).unwrap();
            self.put(ops, vec![i], None);
        }
    }

    /// Small changes of a pointer that groups follow, and some they do not.
    fn move_pointer(&mut self, ops: &mut Vec<Op>) {
        let p = {
            let n = self.rng.pick(&self.pointers.clone());
            self.register(n)
        };
        let by = self.rng.below(64) as i32 - 32;
        let i = match self.rng.below(9) {
            0 => Instruction::with2(self.of(Code::Add_rm64_imm8), p, by),
            1 => Instruction::with2(self.of(Code::Sub_rm64_imm8), p, by),
            2 => Instruction::with1(self.of(Code::Inc_rm64), p),
            3 => Instruction::with1(self.of(Code::Dec_rm64), p),
            4 | 5 => {
                let m = MemoryOperand::with_base_displ(p, by.into());
                Instruction::with2(self.of(Code::Lea_r64_m), p, m)
            }
            6 => {
                let m = MemoryOperand::with_base_displ(p, by.into());
                Instruction::with2(Code::Lea_r32_m, p.full_register32(), m)
            }
            7 => Instruction::with2(Code::Add_rm32_imm8, p.full_register32(), by),
            _ => {
                let q = {
                    let n = self.rng.pick(&self.pointers.clone());
                    self.register(n)
                };
                Instruction::with2(self.of(Code::Mov_r64_rm64), p, q)
            }
        };
        self.put(ops, vec![i.unwrap()], None);
    }

    /// An operand at one of the pointers, mostly the one of before.
    fn memory(&mut self, _size: u64) -> MemoryOperand {
        if self.rng.below(3) == 0 {
            self.base = match self.rng.below(self.pointers.len() as u64 + 1) {
                0 => self.register(4),
                n => self.register(self.pointers[n as usize - 1]),
            };
        }
        let p = self.base;
        if (self.leaf || p != self.register(4)) && !self.pointers.contains(&(p.number() as u32)) {
            self.base = self.register(self.pointers[0]);
        }
        let p = self.base;
        let disp = match self.rng.below(6) {
            0 => 0,
            1 => self.rng.below(600) as i64 - 300,
            2 => (self.rng.below(10) as i64 - 3) * 16,
            _ => (self.rng.below(24) as i64 - 8) * 8,
        };
        let segment = Register::None;
        match self.rng.below(12) {
            0 => MemoryOperand::new(
                p,
                self.register(self.index),
                1 << self.rng.below(4),
                disp,
                self.word(),
                false,
                segment,
            ),
            1 => {
                let s = self.rng.pick(&[Register::FS, Register::GS]);
                let i = self.register(self.index);
                MemoryOperand::new(i, Register::None, 1, disp, self.word(), false, s)
            }
            2 => {
                let low = p.full_register32();
                MemoryOperand::new(low, Register::None, 1, disp, 4, false, segment)
            }
            3 => {
                let at = DATA + 0x1000 + self.rng.below(0x1000);
                self.absolute(at)
            }
            _ => MemoryOperand::with_base_displ(p, disp),
        }
    }

    /// Any data instruction whose results go to data registers and memory.
    fn data_op(&mut self, ops: &mut Vec<Op>) {
        for _ in 0..50 {
            let code = if self.rng.below(4) == 0 {
                self.rng.pick(&self.vector)
            } else {
                self.rng.pick(&self.integer)
            };
            let Some((_, i)) = self.maker.instruction(code, CODE) else {
                continue;
            };
            if let Some(insns) = self.adapt(i) {
                return self.put(ops, insns, None);
            }
        }
    }

    fn adapt(&mut self, mut i: Instruction) -> Option<Vec<Instruction>> {
        if matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) && self.rng.below(8) != 0 {
            return None;
        }
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        if memory {
            let offset = |k: &K| matches!(k, K::mem_offs);
            if i.op_code().op_kinds().iter().any(offset) || i.memory_index().is_vector_register() {
                return None;
            }
            let m = self.memory(i.memory_size().size() as u64);
            i.set_memory_base(m.base);
            i.set_memory_index(m.index);
            i.set_memory_index_scale(m.scale);
            i.set_memory_displacement64(m.displacement as u64);
            let full = if m.base.size() == 4 { 4 } else { self.word() };
            let fits = i8::try_from(m.displacement).is_ok();
            i.set_memory_displ_size(match (m.displacement, fits) {
                (0, _) => 0,
                (_, true) if !matches!(m.base, Register::RIP | Register::None) => 1,
                _ => full,
            });
            i.set_segment_prefix(m.segment_prefix);
        }
        let info = self.info.info(&i);
        let fine = info.used_registers().iter().all(|u| {
            let r = u.register();
            let writes = !matches!(
                u.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            !r.is_gpr() || !writes || self.data.contains(&(r.full_register().number() as u32))
        });
        // Register operands of bit strings are offsets into memory.
        let mut before = Vec::new();
        if memory && classify(&i) == Class::BitString {
            let r = i.op1_register();
            let n = r.full_register().number() as u32;
            if !self.data.contains(&n) {
                return None;
            }
            let full = Register::EAX + n;
            before.push(Instruction::with2(Code::And_rm32_imm32, full, 0x3ff).ok()?);
        }
        if !fine {
            return None;
        }
        before.push(i);
        let logic = matches!(
            i.mnemonic(),
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test
        );
        // Undefined even where the count is a multiple of the width.
        let carried = matches!(i.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
        let undefined = carried || undefined_flags(&i) != 0 && !logic;
        if undefined || before.len() > 1 && self.rng.below(2) == 0 {
            let (a, b) = (self.data64(), self.data64());
            before.push(Instruction::with2(self.of(Code::Cmp_rm64_r64), a, b).ok()?);
        }
        Some(before)
    }
}
