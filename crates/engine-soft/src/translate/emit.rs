//! Code for single guest instructions.

use std::mem::{offset_of, size_of};

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, MemorySize, OpAccess, OpKind, Register,
};

use crate::cpu::{Cpu, Seg, TlbBank, View, seg};
use crate::translate::asm::{Asm, Ea, cc, reg};
use crate::translate::cache::Common;
use crate::translate::exit::{Kind, Record};

/// Offset of a guest general register in the state.
pub(crate) const fn gpr(n: u8) -> usize {
    offset_of!(Cpu, gpr) + n as usize * 8
}

const fn spill(n: usize) -> usize {
    offset_of!(Cpu, jit.spill) + n * 8
}

const FLAGS_SAVE: usize = spill(0);
const TARGET: usize = spill(1);
const LOW_SAVE: usize = spill(2);

const fn bank(view: u8, write: bool) -> usize {
    offset_of!(Cpu, tlb) + (view as usize * 2 + write as usize) * size_of::<TlbBank>()
}

/// Number of a general register of any size (AH..BH count as rax..rbx).
pub(crate) fn number(r: Register) -> u8 {
    r.full_register() as u8 - Register::RAX as u8
}

fn is_high_byte(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

fn spilled(r: u8) -> bool {
    r == reg::T0 || r == reg::T1
}

/// A slow path to be emitted once the hot code stands.
pub(crate) struct Slow {
    /// rel32 that jumps to it.
    pub jump: usize,
    /// Index of the instruction in the block.
    pub insn: usize,
    pub what: SlowKind,
}

pub(crate) enum SlowKind {
    Miss {
        write: bool,
        size: u8,
        retry: usize,
        flags_saved: bool,
    },
    Emulate,
    Link {
        target: u64,
        /// Where the rel32 to be linked is.
        at: usize,
        poll: bool,
    },
    Poll {
        flags_saved: bool,
    },
    /// The indirect entry's check failed: r14 holds the target.
    WrongTarget {
        flags_saved: bool,
    },
    /// The page is not mapped as it was.
    WrongPage {
        flags_saved: bool,
    },
}

/// Emits one block.
pub(crate) struct Emitter {
    pub hot: Asm,
    pub cold: Asm,
    pub slows: Vec<Slow>,
    pub view: u8,
    pub common: Common,
    pub encoder: Encoder,
    pub info: InstructionInfoFactory,
    pub bmi2: bool,
    /// Index of the instruction being emitted.
    pub insn: usize,
}

impl Emitter {
    /// Copies the instruction's own bytes.
    fn copy(&mut self, bytes: &[u8]) {
        self.hot.bytes(bytes);
    }

    fn encode(&mut self, i: &Instruction) -> bool {
        match self.encoder.encode(i, 0) {
            Ok(_) => {
                let buffer = self.encoder.take_buffer();
                self.hot.bytes(&buffer);
                let mut buffer = buffer;
                buffer.clear();
                self.encoder.set_buffer(buffer);
                true
            }
            Err(_) => {
                // The encoder keeps what it wrote before it failed.
                drop(self.encoder.take_buffer());
                false
            }
        }
    }

    /// Leaves to the interpreter for this instruction.
    pub fn emulate(&mut self) {
        let jump = self.hot.jmp();
        self.slow(jump, SlowKind::Emulate);
    }

    fn slow(&mut self, jump: usize, what: SlowKind) {
        self.slows.push(Slow {
            jump,
            insn: self.insn,
            what,
        });
    }

    /// Linear address of the memory operand into T0; flag-free.
    pub fn address(&mut self, i: &Instruction) {
        let segment = match i.memory_segment() {
            Register::FS => Some(seg::FS),
            Register::GS => Some(seg::GS),
            _ => None,
        };
        if i.is_ip_rel_memory_operand() {
            self.hot.mov_imm(reg::T0, i.ip_rel_memory_address());
        } else {
            let wide = i.memory_base().size() != 4 && i.memory_index().size() != 4;
            let simple = segment.is_some()
                && wide
                && (i.memory_base() == Register::None || i.memory_index() == Register::None);
            if simple {
                return self.address_segment_simple(i, segment.unwrap_or(0));
            }
            let ea = self.host_ea(i);
            if ea.base.is_none() && ea.index.is_none() {
                let disp = i.memory_displacement64();
                self.hot.mov_imm(reg::T0, disp);
            } else {
                self.hot.lea(reg::T0, ea, wide);
            }
        }
        if let Some(s) = segment {
            self.hot.load(reg::T1, segment_base(s));
            let both = Ea {
                base: Some(reg::T0),
                index: Some((reg::T1, 0)),
                disp: 0,
            };
            self.hot.lea(reg::T0, both, true);
        }
    }

    fn address_segment_simple(&mut self, i: &Instruction, s: usize) {
        let register = if i.memory_base() == Register::None {
            i.memory_index()
        } else {
            i.memory_base()
        };
        let disp = i.memory_displacement64() as i64 as i32;
        let scale = if i.memory_base() == Register::None {
            i.memory_index_scale().trailing_zeros() as u8
        } else {
            0
        };
        self.hot.load(reg::T0, segment_base(s));
        let index = if register == Register::None {
            None
        } else {
            let n = number(register);
            if spilled(n) {
                self.hot.load(reg::T1, gpr(n));
                Some((reg::T1, scale))
            } else if n == reg::RSP {
                // rsp cannot be an index: swap the roles.
                let ea = Ea {
                    base: Some(reg::RSP),
                    index: Some((reg::T0, 0)),
                    disp,
                };
                self.hot.lea(reg::T0, ea, true);
                return;
            } else {
                Some((n, scale))
            }
        };
        if index.is_some() || disp != 0 {
            let ea = Ea {
                base: Some(reg::T0),
                index,
                disp,
            };
            self.hot.lea(reg::T0, ea, true);
        }
    }

    /// The operand's address in host registers; loads spilled ones.
    fn host_ea(&mut self, i: &Instruction) -> Ea {
        let place = |e: &mut Self, r: Register, scratch: u8| {
            let n = number(r);
            if spilled(n) {
                e.hot.load(scratch, gpr(n));
                scratch
            } else {
                n
            }
        };
        let base =
            (i.memory_base() != Register::None).then(|| place(self, i.memory_base(), reg::T0));
        let index = (i.memory_index() != Register::None).then(|| {
            let r = place(self, i.memory_index(), reg::T1);
            (r, i.memory_index_scale().trailing_zeros() as u8)
        });
        Ea {
            base,
            index,
            disp: i.memory_displacement64() as i64 as i32,
        }
    }

    /// Checks an access of `size` bytes at T0. Afterwards T0 + T1 is the host
    /// address. `retry` is where the address computation began.
    pub fn check(&mut self, retry: usize, write: bool, size: usize, live: bool) {
        let b = bank(self.view, write);
        if live {
            self.hot.store(reg::RAX, FLAGS_SAVE);
            self.hot.flags_to_ax();
        }
        if self.bmi2 {
            self.hot.rorx32(reg::T1, reg::T0, 9);
        } else {
            self.hot.op_reg(&[0x8b], reg::T1, reg::T0, false);
            // shr r15d, 9
            self.hot.bytes(&[0x41, 0xc1, 0xef, 9]);
        }
        // and r15d, 0x1ff8
        self.hot.bytes(&[0x41, 0x81, 0xe7, 0xf8, 0x1f, 0, 0]);
        let at = |array: usize| Ea {
            base: Some(reg::T1),
            index: None,
            disp: (b + array) as i32,
        };
        let tags = at(offset_of!(TlbBank, neg_page));
        self.hot.op_mem(&[0x03], reg::T0, tags, true, true);
        // cmp r14, 4096 - size
        self.hot.bytes(&[0x49, 0x81, 0xfe]);
        self.hot.dword(4096 - size as u32);
        let jump = self.hot.jcc(cc::A);
        self.slow(
            jump,
            SlowKind::Miss {
                write,
                size: size as u8,
                retry,
                flags_saved: live,
            },
        );
        let hosts = at(offset_of!(TlbBank, host));
        self.hot.op_mem(&[0x8b], reg::T1, hosts, true, true);
        if live {
            self.hot.flags_from_ax();
            self.hot.load(reg::RAX, FLAGS_SAVE);
        }
    }

    const HOST: Ea = Ea {
        base: Some(reg::T0),
        index: Some((reg::T1, 0)),
        disp: 0,
    };

    /// An instruction without memory operand.
    pub fn plain(&mut self, i: &Instruction, bytes: &[u8]) {
        let (r, w) = self.spilled_operands(i);
        if i.is_ip_rel_memory_operand() {
            return self.lea_constant(i);
        }
        for t in [reg::T0, reg::T1] {
            if r & 1 << t != 0 {
                self.hot.load(t, gpr(t));
            }
        }
        self.copy(bytes);
        for t in [reg::T0, reg::T1] {
            if w & 1 << t != 0 {
                self.hot.store(t, gpr(t));
            }
        }
    }

    /// `lea reg, [rip + disp]`.
    fn lea_constant(&mut self, i: &Instruction) {
        let address = i.ip_rel_memory_address();
        let d = i.op0_register();
        let n = number(d);
        match d.size() {
            8 => {
                self.hot.mov_imm(n, address);
            }
            4 => self.hot.mov_imm(n, address & 0xffff_ffff),
            _ => return self.emulate(),
        }
        if spilled(n) {
            self.hot.store(n, gpr(n));
        }
    }

    /// Masks of spilled guest registers that the operands read and write.
    fn spilled_operands(&mut self, i: &Instruction) -> (u32, u32) {
        let mentions = |r: Register| r.is_gpr() && spilled(number(r));
        let any = (0..i.op_count()).any(|k| match i.op_kind(k) {
            OpKind::Register => mentions(i.op_register(k)),
            OpKind::Memory => mentions(i.memory_base()) || mentions(i.memory_index()),
            _ => false,
        });
        if !any {
            return (0, 0);
        }
        let (mut read, mut written) = (0, 0);
        for used in self.info.info(i).used_registers() {
            let r = used.register();
            if !mentions(r) {
                continue;
            }
            let bit = 1 << number(r);
            let a = used.access();
            // A partial or conditional write keeps the rest.
            if a != OpAccess::Write || r.size() < 4 {
                read |= bit;
            }
            if !matches!(
                a,
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            ) {
                written |= bit;
            }
        }
        (read, written)
    }

    /// An instruction with one memory operand.
    pub fn memory(&mut self, i: &Instruction, live: bool) {
        let info = self.info.info(i);
        let writes = info.used_memory().iter().any(|m| {
            !matches!(
                m.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            )
        });
        let size = i.memory_size().size();
        let mut operand_regs = 0u32;
        let mut high = false;
        let mut fixed = 0u32;
        for used in info.used_registers() {
            if used.register().is_gpr() {
                fixed |= 1 << number(used.register());
            }
        }
        for k in 0..i.op_count() {
            if i.op_kind(k) == OpKind::Register && i.op_register(k).is_gpr() {
                let r = i.op_register(k);
                high |= is_high_byte(r);
                if spilled(number(r)) {
                    operand_regs |= 1 << number(r);
                }
            }
        }
        if operand_regs == 1 << reg::T0 | 1 << reg::T1 || high && operand_regs != 0 {
            return self.emulate();
        }
        let retry = self.hot.pos;
        self.address(i);
        self.check(retry, writes, size, live);
        if high {
            self.access_with_low_base(i, fixed);
        } else if operand_regs == 0 {
            self.access(i, Register::R14, Register::R15);
        } else {
            self.access_spilled(i, operand_regs);
        }
    }

    /// Emits the instruction with its memory operand at `base + index`.
    fn access(&mut self, i: &Instruction, base: Register, index: Register) {
        let mut o = *i;
        o.set_memory_base(base);
        o.set_memory_index(index);
        o.set_memory_index_scale(1);
        o.set_memory_displacement64(0);
        o.set_memory_displ_size(0);
        o.set_segment_prefix(Register::None);
        if !self.encode(&o) {
            // Cannot happen for what `classify` lets through; if it does, the
            // interpreter takes the instruction.
            self.emulate();
        }
    }

    /// The other operand is a spilled guest register, whose host register
    /// becomes that operand; the address moves to the other scratch register.
    fn access_spilled(&mut self, i: &Instruction, operand: u32) {
        let (value, address, name) = if operand == 1 << reg::T0 {
            (reg::T0, reg::T1, Register::R15)
        } else {
            (reg::T1, reg::T0, Register::R14)
        };
        self.hot.lea(address, Self::HOST, true);
        let (read, written) = {
            let mut o = *i;
            o.set_memory_base(Register::None);
            o.set_memory_index(Register::None);
            o.set_memory_displ_size(8);
            self.spilled_operands(&o)
        };
        if read & 1 << value != 0 {
            self.hot.load(value, gpr(value));
        }
        self.access(i, name, Register::None);
        if written & 1 << value != 0 {
            self.hot.store(value, gpr(value));
        }
    }

    /// AH..BH cannot be encoded next to r14 or r15: borrow a low register.
    fn access_with_low_base(&mut self, i: &Instruction, used: u32) {
        const LOW: [(u8, Register); 4] = [
            (6, Register::RSI),
            (7, Register::RDI),
            (5, Register::RBP),
            (3, Register::RBX),
        ];
        let Some(&(n, name)) = LOW.iter().find(|(n, _)| used & 1 << n == 0) else {
            return self.emulate();
        };
        self.hot.lea(reg::T0, Self::HOST, true);
        self.hot.store(n, LOW_SAVE);
        self.hot.mov(n, reg::T0);
        self.access(i, name, Register::None);
        self.hot.load(n, LOW_SAVE);
    }

    fn stack_top(&mut self, disp: i32) -> usize {
        let retry = self.hot.pos;
        let ea = Ea {
            base: Some(reg::RSP),
            index: None,
            disp,
        };
        self.hot.lea(reg::T0, ea, true);
        retry
    }

    fn move_rsp(&mut self, by: i32) {
        let ea = Ea {
            base: Some(reg::RSP),
            index: None,
            disp: by,
        };
        self.hot.lea(reg::RSP, ea, true);
    }

    /// `push`, 64 bits.
    pub fn push(&mut self, i: &Instruction, live: bool) {
        if i.op0_kind() == OpKind::Memory {
            let retry = self.hot.pos;
            self.address(i);
            self.check(retry, false, 8, live);
            self.hot.op_mem(&[0x8b], reg::T0, Self::HOST, true, false);
            self.hot.store(reg::T0, TARGET);
        }
        let retry = self.stack_top(-8);
        self.check(retry, true, 8, live);
        match i.op0_kind() {
            OpKind::Register => {
                let n = number(i.op0_register());
                self.store_register(n);
            }
            OpKind::Memory => {
                self.hot.lea(reg::T0, Self::HOST, true);
                self.hot.load(reg::T1, TARGET);
                let at = Ea {
                    base: Some(reg::T0),
                    ..Ea::default()
                };
                self.hot.op_mem(&[0x89], reg::T1, at, true, false);
            }
            _ => self.store_imm(i.immediate(0)),
        }
        self.move_rsp(-8);
    }

    fn store_register(&mut self, n: u8) {
        if spilled(n) {
            self.hot.lea(reg::T0, Self::HOST, true);
            self.hot.load(reg::T1, gpr(n));
            let at = Ea {
                base: Some(reg::T0),
                ..Ea::default()
            };
            self.hot.op_mem(&[0x89], reg::T1, at, true, false);
        } else {
            self.hot.op_mem(&[0x89], n, Self::HOST, true, false);
        }
    }

    fn store_imm(&mut self, v: u64) {
        if v as i64 == i64::from(v as i32) {
            self.hot.op_mem(&[0xc7], 0, Self::HOST, true, false);
            self.hot.dword(v as u32);
        } else {
            self.hot.lea(reg::T0, Self::HOST, true);
            self.hot.mov_imm(reg::T1, v);
            let at = Ea {
                base: Some(reg::T0),
                ..Ea::default()
            };
            self.hot.op_mem(&[0x89], reg::T1, at, true, false);
        }
    }

    /// `pop` of 64 bits into a register.
    pub fn pop(&mut self, i: &Instruction, live: bool) {
        let n = number(i.op0_register());
        let retry = self.stack_top(0);
        self.check(retry, false, 8, live);
        if n == reg::RSP {
            self.hot.op_mem(&[0x8b], reg::RSP, Self::HOST, true, false);
            return;
        }
        let d = if spilled(n) { reg::T0 } else { n };
        self.hot.op_mem(&[0x8b], d, Self::HOST, true, false);
        if spilled(n) {
            self.hot.store(reg::T0, gpr(n));
        }
        self.move_rsp(8);
    }

    /// `leave`.
    pub fn leave(&mut self, live: bool) {
        let retry = self.hot.pos;
        self.hot.mov(reg::T0, reg::RBP);
        self.check(retry, false, 8, live);
        self.hot.op_mem(&[0x8b], reg::T0, Self::HOST, true, false);
        let ea = Ea {
            base: Some(reg::RBP),
            index: None,
            disp: 8,
        };
        self.hot.lea(reg::RSP, ea, true);
        self.hot.mov(reg::RBP, reg::T0);
    }

    /// Pushes the return address.
    fn push_return(&mut self, next: u64, live: bool) {
        let retry = self.stack_top(-8);
        self.check(retry, true, 8, live);
        self.store_imm(next);
        self.move_rsp(-8);
    }

    /// `call rel32`.
    pub fn call(&mut self, i: &Instruction, live: bool, page_map: u64) {
        self.push_return(i.next_ip(), live);
        self.goto(i.near_branch_target(), i.ip(), page_map);
    }

    /// `call r/m64`.
    pub fn call_indirect(&mut self, i: &Instruction, live: bool) {
        self.load_target(i, live);
        self.hot.store(reg::T0, TARGET);
        self.push_return(i.next_ip(), live);
        self.hot.load(reg::T0, TARGET);
        self.dispatch();
    }

    /// `jmp r/m64`.
    pub fn jump_indirect(&mut self, i: &Instruction, live: bool) {
        self.load_target(i, live);
        self.dispatch();
    }

    fn load_target(&mut self, i: &Instruction, live: bool) {
        if i.op0_kind() == OpKind::Register {
            let n = number(i.op0_register());
            if spilled(n) {
                self.hot.load(reg::T0, gpr(n));
            } else {
                self.hot.mov(reg::T0, n);
            }
        } else {
            let retry = self.hot.pos;
            self.address(i);
            self.check(retry, false, 8, live);
            self.hot.op_mem(&[0x8b], reg::T0, Self::HOST, true, false);
        }
    }

    /// Near return, with `imm16` more bytes popped.
    pub fn ret(&mut self, i: &Instruction, live: bool) {
        let retry = self.stack_top(0);
        self.check(retry, false, 8, live);
        self.hot.op_mem(&[0x8b], reg::T0, Self::HOST, true, false);
        let extra = if i.op_count() > 0 {
            i32::from(i.immediate16())
        } else {
            0
        };
        self.move_rsp(8 + extra);
        self.dispatch();
    }

    /// Jumps to the translation of the address in T0.
    fn dispatch(&mut self) {
        let table = offset_of!(Cpu, jit.jump_cache) + self.view as usize * 65536 * 8;
        // movzx r15d, r14w
        self.hot.bytes(&[0x45, 0x0f, 0xb7, 0xfe]);
        let at = Ea {
            base: None,
            index: Some((reg::T1, 3)),
            disp: table as i32,
        };
        self.hot.op_mem(&[0xff], 4, at, false, true);
    }

    /// Direct jump to guest code, linked on first use.
    pub fn goto(&mut self, target: u64, from: u64, _page_map: u64) {
        self.hot.align_rel(1);
        let at = self.hot.jmp();
        self.slow(
            at,
            SlowKind::Link {
                target,
                at,
                poll: target <= from,
            },
        );
    }

    /// Conditional branch: linked like [`Self::goto`] when taken, else runs on.
    pub fn branch(&mut self, i: &Instruction, bytes: &[u8]) {
        let (target, from) = (i.near_branch_target(), i.ip());
        if i.is_jcc_short_or_near() {
            self.hot.align_rel(2);
            let at = self.hot.jcc(condition(i));
            self.slow(
                at,
                SlowKind::Link {
                    target,
                    at,
                    poll: target <= from,
                },
            );
            return;
        }
        // loop, loope, loopne, jrcxz have only rel8 forms.
        let mut copy = [0u8; 15];
        let n = bytes.len().min(15);
        copy[..n].copy_from_slice(&bytes[..n]);
        copy[n - 1] = 2;
        self.hot.bytes(&copy[..n]);
        self.hot.bytes(&[0xeb, 0]);
        let skip = self.hot.pos - 1;
        let start = self.hot.pos;
        self.goto(target, from, 0);
        let length = (self.hot.pos - start) as u8;
        if !self.hot.full {
            self.hot.patch8(skip, length);
        }
    }

    /// The four entries of a block (see `Entries`); returns their offsets.
    pub fn prologue(&mut self, rip: u64, map: u32, live: bool) -> crate::translate::cache::Entries {
        let mut e = crate::translate::cache::Entries {
            indirect: self.hot.pos as u32,
            ..Default::default()
        };
        let slot = ((rip >> 12) as usize & 1023) + if rip >> 63 != 0 { 0 } else { 1024 };
        let page = offset_of!(Cpu, jit.code_pages) + slot * 4;
        self.guarded(live, |e| {
            if rip as i64 == i64::from(rip as i32) {
                // cmp r14, imm32
                e.hot.bytes(&[0x49, 0x81, 0xfe]);
                e.hot.dword(rip as u32);
            } else {
                e.hot.mov_imm(reg::T1, rip);
                // cmp r14, r15
                e.hot.bytes(&[0x4d, 0x39, 0xfe]);
            }
            let jump = e.hot.jcc(cc::NE);
            e.slow(jump, SlowKind::WrongTarget { flags_saved: live });
        });
        e.cross_page = self.hot.pos as u32;
        self.guarded(live, |e| {
            e.hot.cmp_state32(page, map);
            let jump = e.hot.jcc(cc::NE);
            e.slow(jump, SlowKind::WrongPage { flags_saved: live });
        });
        e.poll = self.hot.pos as u32;
        self.guarded(live, |e| {
            e.hot.cmp_state32(offset_of!(Cpu, pending), 0);
            let jump = e.hot.jcc(cc::NE);
            e.slow(jump, SlowKind::Poll { flags_saved: live });
        });
        e.direct = self.hot.pos as u32;
        e
    }

    fn guarded(&mut self, live: bool, f: impl FnOnce(&mut Self)) {
        if live {
            self.hot.store(reg::RAX, FLAGS_SAVE);
            self.hot.flags_to_ax();
        }
        f(self);
        if live {
            self.hot.flags_from_ax();
            self.hot.load(reg::RAX, FLAGS_SAVE);
        }
    }

    /// `rdtsc` with the guest's offset; clobbers flags.
    pub fn rdtsc(&mut self) {
        // rdtsc; shl rdx, 32; or rax, rdx
        self.hot
            .bytes(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0]);
        let offset = Ea {
            disp: offset_of!(Cpu, tsc_offset) as i32,
            ..Ea::default()
        };
        self.hot.op_mem(&[0x03], reg::RAX, offset, true, true);
        // mov rdx, rax; shr rdx, 32; mov eax, eax
        self.hot
            .bytes(&[0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x20, 0x89, 0xc0]);
    }

    /// Emits one slow path. `resume(n)` gives the place of instruction `n`,
    /// if the block has it.
    pub fn slow_path(&mut self, s: &Slow, rip: u64, len: u8, next: u32, start: (u64, u32)) {
        let at = self.cold.pos;
        self.hot.patch_rel(s.jump, at);
        let record = match s.what {
            SlowKind::Miss {
                write,
                size,
                retry,
                flags_saved,
            } => {
                let tags = Ea {
                    base: Some(reg::T1),
                    index: None,
                    disp: (bank(self.view, write) + offset_of!(TlbBank, neg_page)) as i32,
                };
                self.cold.op_mem(&[0x2b], reg::T0, tags, true, true);
                self.restore_flags(flags_saved);
                let mut r = Record::new(Kind::TlbMiss, rip);
                r.access = size | u8::from(write) << 7;
                r.a = retry as u32;
                r
            }
            SlowKind::Emulate => Record::new(Kind::Emulate, rip),
            SlowKind::Link { target, at, poll } => {
                let mut r = Record::new(Kind::Link, target);
                r.a = at as u32;
                r.entry = u8::from(poll);
                r
            }
            SlowKind::Poll { flags_saved } => {
                self.restore_flags(flags_saved);
                Record::new(Kind::Poll, start.0)
            }
            SlowKind::WrongTarget { flags_saved } => {
                self.restore_flags(flags_saved);
                Record::new(Kind::Indirect, 0)
            }
            SlowKind::WrongPage { flags_saved } => {
                self.restore_flags(flags_saved);
                let mut r = Record::new(Kind::Poll, start.0);
                r.entry = 1;
                r
            }
        };
        let mut record = record;
        record.map = start.1;
        record.len = len;
        record.next = next;
        self.leave_with(record);
    }

    fn restore_flags(&mut self, saved: bool) {
        if saved {
            self.cold.flags_from_ax();
            self.cold.load(reg::RAX, FLAGS_SAVE);
        }
    }

    /// `lea r15, [record]; jmp exit`, and the record.
    pub fn leave_with(&mut self, record: Record) {
        self.cold.bytes(&[0x4c, 0x8d, 0x3d, 5, 0, 0, 0]);
        self.cold.jmp_to(self.common.exit);
        record.write(&mut self.cold);
    }
}

fn segment_base(s: usize) -> usize {
    offset_of!(Cpu, seg) + s * size_of::<Seg>() + offset_of!(Seg, base)
}

/// Condition code of a `jcc`.
fn condition(i: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match i.condition_code() {
        C::None | C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}

const _: () = assert!(View::User as u8 == 0 && MemorySize::Unknown as u32 == 0);
