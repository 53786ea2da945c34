//! Code for single guest instructions.

use std::mem::offset_of;

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, OpKind, Register,
};

use crate::cpu::{Cpu, View};
use crate::translate::asm::{Asm, Ea, reg};
use crate::translate::cache::Common;
use crate::translate::emit_slow::{Slow, SlowKind};
use crate::translate::flags::Flags;
use crate::translate::group::Member;
use crate::translate::relocate::{Relocs, What};

/// Offset of a guest general register in the state.
pub(crate) const fn gpr(n: u8) -> usize {
    offset_of!(Cpu, gpr) + n as usize * 8
}

const fn spill(n: usize) -> usize {
    offset_of!(Cpu, jit.spill) + n * 8
}

pub(super) const TARGET: usize = spill(1);
pub(super) const LOW_SAVE: usize = spill(2);
/// Where in the cache the last indirect branch was (for a target that is not
/// canonical: the branch itself must fault).
pub(super) const BRANCHED: usize = spill(3);

/// Number of a general register of any size (AH..BH count as rax..rbx).
pub(crate) fn number(r: Register) -> u8 {
    r.full_register() as u8 - Register::RAX as u8
}

fn is_high_byte(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

pub(super) fn spilled(r: u8) -> bool {
    r == reg::T0 || r == reg::T1
}

/// Where a checked operand is, in host registers.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) base: u8,
    pub(super) index: Option<u8>,
    /// Log2 of the index's scale.
    pub(super) scale: u8,
    pub(super) disp: i32,
}

impl Place {
    /// Where `check` leaves an operand.
    pub(super) const CHECKED: Self = Self {
        base: reg::T0,
        index: Some(reg::T1),
        scale: 0,
        disp: 0,
    };

    /// An operand whose host address is in the first scratch register.
    pub(super) const fn at_scratch() -> Self {
        Self {
            base: reg::T0,
            index: None,
            scale: 0,
            disp: 0,
        }
    }

    pub(super) const fn ea(self) -> Ea {
        Ea {
            base: Some(self.base),
            index: match self.index {
                Some(i) => Some((i, self.scale)),
                None => None,
            },
            disp: self.disp,
        }
    }
}

/// Emits one block.
pub(crate) struct Emitter {
    pub hot: Asm,
    pub cold: Asm,
    pub slows: Vec<Slow>,
    pub view: u8,
    /// Flat 32-bit code: addresses and stack slots have 32 bits.
    pub code32: bool,
    pub common: Common,
    pub encoder: Encoder,
    pub info: InstructionInfoFactory,
    pub bmi2: bool,
    /// Index of the instruction being emitted.
    pub insn: usize,
    /// Its part in a group.
    pub member: Option<Member>,
    /// Where live flags are.
    pub flags: Flags,
    /// The instruction being emitted reads flags, or changes only some of
    /// those that are live.
    pub needs_flags: bool,
    /// Mask of scratch registers that hold their guest register's value (as
    /// memory does too), so that it need not be loaded again.
    pub holds: u32,
    /// Instructions behind which a held register is relied on: if one is
    /// interpreted, the block is left.
    pub relied: Vec<usize>,
    /// What a copy of the block must set anew.
    pub relocs: Relocs,
    /// A later member needs the scratch registers as they are now: leaving
    /// here must not come back behind the instruction.
    pub in_group: bool,
}

impl Emitter {
    /// Copies the instruction's own bytes.
    fn copy(&mut self, i: &Instruction, bytes: &[u8]) {
        self.settle();
        if !self.code32 {
            self.hot.bytes(bytes);
        } else if matches!(i.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) {
            self.zero_vectors(i.mnemonic() == Mnemonic::Vzeroall);
        } else if !self.encode(i) {
            self.emulate();
        }
    }

    /// `vzeroall` or `vzeroupper` of 32-bit code, which has eight registers.
    fn zero_vectors(&mut self, all: bool) {
        for n in 0..8u8 {
            let both = 0xc0 | n << 3 | n;
            self.hot.bytes(&match all {
                // vxorps xmm, xmm, xmm
                true => [0xc5, 0xf8 - n * 8, 0x57, both],
                // vmovaps xmm, xmm
                false => [0xc5, 0xf8, 0x28, both],
            });
        }
    }

    /// Bytes of a stack slot.
    pub(super) fn word(&self) -> usize {
        if self.code32 { 4 } else { 8 }
    }

    pub(super) fn encode(&mut self, i: &Instruction) -> bool {
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
        self.holds = 0;
        let jump = self.hot.jmp();
        let resume = !self.in_group;
        self.slow(jump, SlowKind::Emulate { resume });
        // What comes next is entered from outside.
        self.flags = Flags::Both;
    }

    pub(super) fn slow(&mut self, jump: usize, what: SlowKind) {
        self.slows.push(Slow {
            jump,
            insn: self.insn,
            home: self.flags == Flags::Home,
            what,
        });
    }

    /// An instruction without memory operand.
    pub fn plain(&mut self, i: &Instruction, bytes: &[u8]) {
        let (r, w) = self.spilled_operands(i);
        if i.is_ip_rel_memory_operand() {
            return self.lea_constant(i);
        }
        for t in [reg::T0, reg::T1] {
            if r & 1 << t != 0 {
                self.want(t);
            }
        }
        self.copy(i, bytes);
        for t in [reg::T0, reg::T1] {
            if w & 1 << t != 0 {
                self.hot.store(t, gpr(t));
            }
        }
        self.holds |= w;
    }

    /// Loads a spilled guest register into its host register, unless it is
    /// there.
    pub(super) fn want(&mut self, t: u8) {
        if self.holds & 1 << t == 0 {
            self.hot.load(t, gpr(t));
            self.holds |= 1 << t;
        }
    }

    /// `lea reg, [rip + disp]`.
    fn lea_constant(&mut self, i: &Instruction) {
        let address = i.ip_rel_memory_address();
        if i.memory_base() == Register::EIP {
            self.relocs.fix();
        }
        let d = i.op0_register();
        let n = number(d);
        match d.size() {
            8 => {
                self.mov_linear(n, address);
            }
            4 => {
                self.hot.mov_imm(n, address & 0xffff_ffff);
                self.mark(What::LowLinear, 4, 0);
            }
            _ => return self.emulate(),
        }
        if spilled(n) {
            self.hot.store(n, gpr(n));
            self.holds |= 1 << n;
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
        let place = self.operand(i, writes, size, live);
        if high {
            self.access_with_low_base(i, fixed, place);
        } else if operand_regs == 0 {
            self.access(i, place);
        } else {
            self.access_spilled(i, operand_regs, place);
        }
    }

    /// Emits the instruction with its memory operand at `place`.
    pub(super) fn access(&mut self, i: &Instruction, place: Place) {
        self.settle();
        let mut o = *i;
        o.set_memory_base(wide(place.base));
        o.set_memory_index(place.index.map_or(Register::None, wide));
        o.set_memory_index_scale(1 << place.scale);
        o.set_memory_displacement64(place.disp as i64 as u64);
        o.set_memory_displ_size(match place.disp {
            0 => 0,
            d if i8::try_from(d).is_ok() => 1,
            _ => 8,
        });
        o.set_segment_prefix(Register::None);
        if !self.encode(&o) {
            // Cannot happen for what `classify` lets through; if it does, the
            // interpreter takes the instruction.
            self.emulate();
        }
    }

    /// The other operand is a spilled guest register, whose host register
    /// becomes that operand; the address moves to the other scratch register.
    fn access_spilled(&mut self, i: &Instruction, operand: u32, place: Place) {
        let (value, address) = if operand == 1 << reg::T0 {
            (reg::T0, reg::T1)
        } else {
            (reg::T1, reg::T0)
        };
        self.hot.lea(address, place.ea(), true);
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
        let at = Place {
            base: address,
            index: None,
            scale: 0,
            disp: 0,
        };
        self.access(i, at);
        if written & 1 << value != 0 {
            self.hot.store(value, gpr(value));
        }
        self.holds = 1 << value;
        self.relied.push(self.insn);
    }

    /// AH..BH cannot be encoded next to r14 or r15: borrow a low register.
    fn access_with_low_base(&mut self, i: &Instruction, used: u32, place: Place) {
        const LOW: [u8; 4] = [6, 7, 5, 3];
        let Some(&n) = LOW.iter().find(|n| used & 1 << **n == 0) else {
            return self.emulate();
        };
        self.hot.lea(reg::T0, place.ea(), true);
        self.hot.store(n, LOW_SAVE);
        self.hot.mov(n, reg::T0);
        let at = Place {
            base: n,
            index: None,
            scale: 0,
            disp: 0,
        };
        self.access(i, at);
        self.hot.load(n, LOW_SAVE);
    }

    pub(super) fn move_rsp(&mut self, by: i32) {
        let ea = Ea {
            base: Some(reg::RSP),
            index: None,
            disp: by,
        };
        self.hot.lea(reg::RSP, ea, !self.code32);
    }

    /// `push` of a whole slot.
    pub fn push(&mut self, i: &Instruction, live: bool) {
        let (word, wide) = (self.word(), !self.code32);
        if i.op0_kind() == OpKind::Memory {
            let place = self.operand(i, false, word, live);
            self.hot.op_mem(&[0x8b], reg::T0, place.ea(), wide, false);
            self.hot.store(reg::T0, TARGET);
        }
        let place = self.stack_place(-(word as i32), true, live);
        match i.op0_kind() {
            OpKind::Register => self.store_register(number(i.op0_register()), place),
            OpKind::Memory => {
                self.hot.lea(reg::T0, place.ea(), true);
                self.hot.load(reg::T1, TARGET);
                self.hot.op_mem(&[0x89], reg::T1, at_t0(), wide, false);
            }
            _ => self.store_imm(i.immediate(0), place),
        }
        self.move_rsp(-(word as i32));
    }

    fn store_register(&mut self, n: u8, place: Place) {
        if spilled(n) {
            self.hot.lea(reg::T0, place.ea(), true);
            self.hot.load(reg::T1, gpr(n));
            self.hot.op_mem(&[0x89], reg::T1, at_t0(), true, false);
        } else {
            self.hot.op_mem(&[0x89], n, place.ea(), !self.code32, false);
        }
    }

    pub(super) fn store_imm(&mut self, v: u64, place: Place) {
        if self.code32 || v as i64 == i64::from(v as i32) {
            self.hot.op_mem(&[0xc7], 0, place.ea(), !self.code32, false);
            self.hot.dword(v as u32);
        } else {
            self.hot.lea(reg::T0, place.ea(), true);
            self.hot.mov_imm(reg::T1, v);
            self.hot.op_mem(&[0x89], reg::T1, at_t0(), true, false);
        }
    }

    /// `pop` of a whole slot into a register.
    pub fn pop(&mut self, i: &Instruction, live: bool) {
        let n = number(i.op0_register());
        let wide = !self.code32;
        let place = self.stack_place(0, false, live);
        if n == reg::RSP {
            self.hot.op_mem(&[0x8b], reg::RSP, place.ea(), wide, false);
            return;
        }
        let d = if spilled(n) { reg::T0 } else { n };
        self.hot.op_mem(&[0x8b], d, place.ea(), wide, false);
        if spilled(n) {
            self.hot.store(reg::T0, gpr(n));
        }
        self.move_rsp(self.word() as i32);
    }

    /// `leave`.
    pub fn leave(&mut self, live: bool) {
        self.hot.mov(reg::T0, reg::RBP);
        let (word, wide) = (self.word(), !self.code32);
        self.check(false, word, live);
        self.hot
            .op_mem(&[0x8b], reg::T0, Place::CHECKED.ea(), wide, false);
        let ea = Ea {
            base: Some(reg::RBP),
            index: None,
            disp: word as i32,
        };
        self.hot.lea(reg::RSP, ea, wide);
        self.hot.mov(reg::RBP, reg::T0);
    }
}

pub(super) const fn at_t0() -> Ea {
    Ea {
        base: Some(reg::T0),
        index: None,
        disp: 0,
    }
}

/// The 64-bit register with this number.
fn wide(n: u8) -> Register {
    Register::RAX + u32::from(n)
}

const _: () = assert!(View::User as u8 == 0 && MemorySize::Unknown as u32 == 0);
