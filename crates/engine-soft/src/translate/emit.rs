//! Code for single guest instructions.

use std::mem::{offset_of, size_of};

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, MemorySize, OpAccess, OpKind, Register,
};

use crate::cpu::{Cpu, Seg, TLB_ENTRIES, TlbBank, View, seg};
use crate::translate::asm::{Asm, Ea, cc, reg};
use crate::translate::cache::{Common, Entries};
use crate::translate::exit::{Kind, Record};
use crate::translate::flags::{self, Flags};
use crate::translate::group::Member;

/// Offset of a guest general register in the state.
pub(crate) const fn gpr(n: u8) -> usize {
    offset_of!(Cpu, gpr) + n as usize * 8
}

const fn spill(n: usize) -> usize {
    offset_of!(Cpu, jit.spill) + n * 8
}

pub(super) const TARGET: usize = spill(1);
const LOW_SAVE: usize = spill(2);
/// Where in the cache the last indirect branch was (for a target that is not
/// canonical: the branch itself must fault).
const BRANCHED: usize = spill(3);

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

pub(super) fn spilled(r: u8) -> bool {
    r == reg::T0 || r == reg::T1
}

/// A slow path to be emitted once the hot code stands.
pub(crate) struct Slow {
    /// rel32 that jumps to it.
    pub jump: usize,
    /// Index of the instruction in the block.
    pub insn: usize,
    /// The host's flags are clobbered; the guest's are at home.
    pub home: bool,
    pub what: SlowKind,
}

pub(crate) enum SlowKind {
    Miss {
        write: bool,
        size: u8,
        retry: usize,
        /// The address, if it is a constant.
        constant: Option<u64>,
        /// A group's check: bytes of its range.
        group: Option<u16>,
    },
    Emulate {
        /// Goes on behind the instruction in the same block.
        resume: bool,
    },
    EmulateHere,
    Link {
        target: u64,
        /// Where the rel32 to be linked is.
        at: usize,
        poll: bool,
    },
    Poll,
    /// The indirect entry's check failed: r14 holds the target.
    WrongTarget,
    /// The page is not mapped as it was.
    WrongPage,
}

/// Where a checked operand is, in host registers.
#[derive(Clone, Copy)]
pub(super) struct Place {
    base: u8,
    index: Option<u8>,
    disp: i32,
}

impl Place {
    /// Where `check` leaves an operand.
    pub(super) const CHECKED: Self = Self {
        base: reg::T0,
        index: Some(reg::T1),
        disp: 0,
    };

    /// An operand whose host address is in the first scratch register.
    pub(super) const fn at_scratch() -> Self {
        Self {
            base: reg::T0,
            index: None,
            disp: 0,
        }
    }

    pub(super) const fn ea(self) -> Ea {
        Ea {
            base: Some(self.base),
            index: match self.index {
                Some(i) => Some((i, 0)),
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
    /// A later member needs the scratch registers as they are now: leaving
    /// here must not come back behind the instruction.
    pub in_group: bool,
}

impl Emitter {
    /// Copies the instruction's own bytes.
    fn copy(&mut self, bytes: &[u8]) {
        self.settle();
        self.hot.bytes(bytes);
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
                // Neither a 64-bit displacement nor a zero-extended one (67h).
                && i.memory_displacement64() as i64 == i64::from(i.memory_displacement64() as i32)
                && (i.memory_base() == Register::None || i.memory_index() == Register::None);
            if simple {
                return self.address_segment_simple(i, segment.unwrap_or(0));
            }
            let ea = self.host_ea(i);
            if ea.base.is_none() && ea.index.is_none() {
                let disp = i.memory_displacement64();
                self.hot.mov_imm(reg::T0, disp);
            } else {
                self.move_address(ea, wide);
            }
        }
        self.holds = 0;
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

    /// `lea` into T0, or the cheaper `mov` where that does.
    fn move_address(&mut self, ea: Ea, wide: bool) {
        match ea.base {
            Some(b) if wide && ea.index.is_none() && ea.disp == 0 => {
                if b != reg::T0 {
                    self.hot.mov(reg::T0, b);
                }
            }
            _ => self.hot.lea(reg::T0, ea, wide),
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
        let place = |e: &mut Self, r: Register| {
            let n = number(r);
            if spilled(n) {
                e.want(n);
            }
            n
        };
        let base = (i.memory_base() != Register::None).then(|| place(self, i.memory_base()));
        let index = (i.memory_index() != Register::None).then(|| {
            let r = place(self, i.memory_index());
            (r, i.memory_index_scale().trailing_zeros() as u8)
        });
        Ea {
            base,
            index,
            disp: i.memory_displacement64() as i64 as i32,
        }
    }

    /// Checks an access of `size` bytes at T0. Afterwards T0 + T1 is the host
    /// address. After a miss the check is entered again, with the address in T0.
    pub(super) fn check(&mut self, write: bool, size: usize, live: bool) {
        self.check_range(write, size, live, None);
    }

    fn check_range(&mut self, write: bool, size: usize, live: bool, group: Option<u16>) {
        let b = bank(self.view, write);
        let retry = self.hot.pos;
        self.holds = 0;
        self.guarded(live, |e| {
            e.tlb_index();
            let tags = indexed(b + offset_of!(TlbBank, neg_page));
            e.hot.op_mem(&[0x03], reg::T0, tags, true, true);
            // cmp r14, 4096 - size
            e.hot.bytes(&[0x49, 0x81, 0xfe]);
            e.hot.dword(4096 - size as u32);
            let jump = e.hot.jcc(cc::A);
            let what = SlowKind::Miss {
                write,
                size: size as u8,
                retry,
                constant: None,
                group,
            };
            e.slow(jump, what);
            let hosts = indexed(b + offset_of!(TlbBank, host));
            e.hot.op_mem(&[0x8b], reg::T1, hosts, true, true);
        });
    }

    /// Offset of the TLB entry for the address in T0 into T1.
    fn tlb_index(&mut self) {
        if self.bmi2 {
            self.hot.rorx32(reg::T1, reg::T0, 9);
        } else {
            self.hot.op_reg(&[0x8b], reg::T1, reg::T0, false);
            // shr r15d, 9
            self.hot.bytes(&[0x41, 0xc1, 0xef, 9]);
        }
        // and r15d, 0x1ff8
        self.hot.bytes(&[0x41, 0x81, 0xe7, 0xf8, 0x1f, 0, 0]);
    }

    /// Checks an access at a constant address inside one page; T1 is the host
    /// page afterwards.
    fn check_constant(&mut self, address: u64, write: bool, size: usize, live: bool) -> Place {
        let retry = self.hot.pos;
        self.holds = 0;
        let slot = bank(self.view, write) + ((address >> 12) as usize & (TLB_ENTRIES - 1)) * 8;
        let tag = Ea {
            disp: (slot + offset_of!(TlbBank, neg_page)) as i32,
            ..Ea::default()
        };
        let expected = (address & !0xfff).wrapping_neg();
        self.guarded(live, |e| {
            if expected as i64 == i64::from(expected as i32) {
                e.hot.op_mem(&[0x81], 7, tag, true, true);
                e.hot.dword(expected as u32);
            } else {
                e.hot.mov_imm(reg::T0, expected);
                e.hot.op_mem(&[0x3b], reg::T0, tag, true, true);
            }
            let jump = e.hot.jcc(cc::NE);
            let what = SlowKind::Miss {
                write,
                size: size as u8,
                retry,
                constant: Some(address),
                group: None,
            };
            e.slow(jump, what);
        });
        self.hot.load(reg::T1, slot + offset_of!(TlbBank, host));
        Place {
            base: reg::T1,
            index: None,
            disp: (address & 0xfff) as i32,
        }
    }

    /// Address and check of an ordinary memory operand.
    fn operand(&mut self, i: &Instruction, write: bool, size: usize, live: bool) -> Place {
        if let Some(place) = self.group_place(live) {
            return place;
        }
        let plain = !matches!(i.memory_segment(), Register::FS | Register::GS);
        if i.is_ip_rel_memory_operand() && plain {
            let address = i.ip_rel_memory_address();
            if (address & 0xfff) as usize + size <= 4096 {
                return self.check_constant(address, write, size, live);
            }
        }
        self.address(i);
        self.check(write, size, live);
        Place::CHECKED
    }

    /// A group member's operand; the first one checks.
    fn group_place(&mut self, live: bool) -> Option<Place> {
        let m = self.member?;
        if let Some(c) = m.check {
            let ea = Ea {
                base: Some(c.base),
                index: None,
                disp: c.low,
            };
            self.move_address(ea, true);
            self.check_range(c.write, c.span as usize, live, Some(c.span));
        }
        Some(Place {
            disp: m.offset,
            ..Place::CHECKED
        })
    }

    /// Checks 8 bytes of stack at rsp + `disp`.
    pub(super) fn stack_place(&mut self, disp: i32, write: bool, live: bool) -> Place {
        if let Some(place) = self.group_place(live) {
            return place;
        }
        let ea = Ea {
            base: Some(reg::RSP),
            index: None,
            disp,
        };
        self.move_address(ea, true);
        self.check(write, 8, live);
        Place::CHECKED
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
        self.copy(bytes);
        for t in [reg::T0, reg::T1] {
            if w & 1 << t != 0 {
                self.hot.store(t, gpr(t));
            }
        }
        self.holds |= w;
    }

    /// Loads a spilled guest register into its host register, unless it is
    /// there.
    fn want(&mut self, t: u8) {
        if self.holds & 1 << t == 0 {
            self.hot.load(t, gpr(t));
            self.holds |= 1 << t;
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
        o.set_memory_index_scale(1);
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
        self.hot.lea(reg::RSP, ea, true);
    }

    /// `push`, 64 bits.
    pub fn push(&mut self, i: &Instruction, live: bool) {
        if i.op0_kind() == OpKind::Memory {
            let place = self.operand(i, false, 8, live);
            self.hot.op_mem(&[0x8b], reg::T0, place.ea(), true, false);
            self.hot.store(reg::T0, TARGET);
        }
        let place = self.stack_place(-8, true, live);
        match i.op0_kind() {
            OpKind::Register => self.store_register(number(i.op0_register()), place),
            OpKind::Memory => {
                self.hot.lea(reg::T0, place.ea(), true);
                self.hot.load(reg::T1, TARGET);
                self.hot.op_mem(&[0x89], reg::T1, at_t0(), true, false);
            }
            _ => self.store_imm(i.immediate(0), place),
        }
        self.move_rsp(-8);
    }

    fn store_register(&mut self, n: u8, place: Place) {
        if spilled(n) {
            self.hot.lea(reg::T0, place.ea(), true);
            self.hot.load(reg::T1, gpr(n));
            self.hot.op_mem(&[0x89], reg::T1, at_t0(), true, false);
        } else {
            self.hot.op_mem(&[0x89], n, place.ea(), true, false);
        }
    }

    fn store_imm(&mut self, v: u64, place: Place) {
        if v as i64 == i64::from(v as i32) {
            self.hot.op_mem(&[0xc7], 0, place.ea(), true, false);
            self.hot.dword(v as u32);
        } else {
            self.hot.lea(reg::T0, place.ea(), true);
            self.hot.mov_imm(reg::T1, v);
            self.hot.op_mem(&[0x89], reg::T1, at_t0(), true, false);
        }
    }

    /// `pop` of 64 bits into a register.
    pub fn pop(&mut self, i: &Instruction, live: bool) {
        let n = number(i.op0_register());
        let place = self.stack_place(0, false, live);
        if n == reg::RSP {
            self.hot.op_mem(&[0x8b], reg::RSP, place.ea(), true, false);
            return;
        }
        let d = if spilled(n) { reg::T0 } else { n };
        self.hot.op_mem(&[0x8b], d, place.ea(), true, false);
        if spilled(n) {
            self.hot.store(reg::T0, gpr(n));
        }
        self.move_rsp(8);
    }

    /// `leave`.
    pub fn leave(&mut self, live: bool) {
        self.hot.mov(reg::T0, reg::RBP);
        self.check(false, 8, live);
        self.hot
            .op_mem(&[0x8b], reg::T0, Place::CHECKED.ea(), true, false);
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
        let place = self.stack_place(-8, true, live);
        self.store_imm(next, place);
        self.move_rsp(-8);
    }

    /// `call rel32`.
    pub fn call(&mut self, i: &Instruction, live: bool, page_map: u64) {
        self.push_return(i.next_ip(), live);
        if live {
            self.flags_to_host();
        }
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
            let place = self.operand(i, false, 8, live);
            self.hot.op_mem(&[0x8b], reg::T0, place.ea(), true, false);
        }
    }

    /// Near return, with `imm16` more bytes popped.
    pub fn ret(&mut self, i: &Instruction, live: bool) {
        let place = self.stack_place(0, false, live);
        self.hot.op_mem(&[0x8b], reg::T0, place.ea(), true, false);
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
        self.flags_to_home();
        // mov dword gs:[branched], imm32
        let here = self.hot.pos;
        let branched = Ea {
            disp: BRANCHED as i32,
            ..Ea::default()
        };
        self.hot.op_mem(&[0xc7], 0, branched, false, true);
        self.hot.dword(here as u32);
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

    /// The four entries of a block (see `Entries`); returns their offsets. If
    /// flags are `live` there, the block's own code begins with them in the
    /// host's, or with `home` at home, where an indirect jump leaves them.
    pub fn prologue(&mut self, rip: u64, map: u32, live: bool, home: bool) -> Entries {
        let page = code_page_slot(rip);
        let mut e = Entries {
            cross_page: self.hot.pos as u32,
            ..Default::default()
        };
        self.flags = Flags::Host;
        self.guarded(live, |e| e.check_page(page, map));
        let over = self.skip();
        e.indirect = self.hot.pos as u32;
        self.flags = Flags::Home;
        self.check_target(rip);
        self.check_page(page, map);
        let over = match live {
            false => {
                self.land(over);
                None
            }
            // The next entry comes with the flags in the host's.
            true => Some((over, self.skip())),
        };
        e.poll = self.hot.pos as u32;
        self.flags = Flags::Host;
        self.guarded(live, |e| {
            if let Some((first, second)) = over {
                e.land(first);
                e.land(second);
            }
            e.hot.cmp_state32(offset_of!(Cpu, pending), 0);
            let jump = e.hot.jcc(cc::NE);
            e.slow(jump, SlowKind::Poll);
        });
        if live && home {
            let over = self.skip();
            e.direct = self.hot.pos as u32;
            self.flags = Flags::Host;
            self.flags_to_home();
            self.land(over);
            self.flags = Flags::Home;
        } else {
            if live {
                self.flags_to_host();
            }
            e.direct = self.hot.pos as u32;
            self.flags = Flags::Host;
        }
        e
    }

    /// A short jump, to be landed.
    fn skip(&mut self) -> usize {
        self.hot.bytes(&[0xeb, 0]);
        self.hot.pos
    }

    /// Makes a jump of [`Self::skip`] come here.
    fn land(&mut self, over: usize) {
        let length = (self.hot.pos - over) as u8;
        if !self.hot.full {
            self.hot.patch8(over - 1, length);
        }
    }

    /// Leaves unless the page is mapped as it was.
    fn check_page(&mut self, page: usize, map: u32) {
        self.hot.cmp_state32(page, map);
        let jump = self.hot.jcc(cc::NE);
        self.slow(jump, SlowKind::WrongPage);
    }

    /// Leaves unless r14 is `rip`.
    fn check_target(&mut self, rip: u64) {
        if rip as i64 == i64::from(rip as i32) {
            // cmp r14, imm32
            self.hot.bytes(&[0x49, 0x81, 0xfe]);
            self.hot.dword(rip as u32);
        } else {
            self.hot.mov_imm(reg::T1, rip);
            self.hot.op_reg(&[0x3b], reg::T0, reg::T1, true);
        }
        let jump = self.hot.jcc(cc::NE);
        self.slow(jump, SlowKind::WrongTarget);
    }

    /// Before an instruction that reaches into the next page: interprets it
    /// instead if that page is not mapped as it was.
    pub fn check_second_page(&mut self, rip: u64, map: u32, live: bool) {
        let page = code_page_slot((rip & !0xfff).wrapping_add(4096));
        // A group may need the scratch registers.
        if live {
            self.flags_to_home_by_memory();
        }
        self.guarded(live, |e| {
            e.hot.cmp_state32(page, map);
            let jump = e.hot.jcc(cc::NE);
            e.slow(jump, SlowKind::EmulateHere);
        });
    }

    /// Emits one slow path. `resume(n)` gives the place of instruction `n`,
    /// if the block has it.
    pub fn slow_path(&mut self, s: &Slow, rip: u64, len: u8, next: u32, start: (u64, u32)) {
        let at = self.cold.pos;
        self.hot.patch_rel(s.jump, at);
        let mut group_span = None;
        let record = match s.what {
            SlowKind::Miss {
                write,
                size,
                retry,
                constant,
                group,
            } => {
                if let Some(address) = constant {
                    self.cold.mov_imm(reg::T0, address);
                } else {
                    let array = bank(self.view, write) + offset_of!(TlbBank, neg_page);
                    let tags = indexed(array);
                    self.cold.op_mem(&[0x2b], reg::T0, tags, true, true);
                }
                let kind = if group.is_some() {
                    Kind::GroupMiss
                } else {
                    Kind::TlbMiss
                };
                let mut r = Record::new(kind, rip);
                r.size = size;
                r.entry = u8::from(write);
                r.a = retry as u32;
                group_span = group;
                r
            }
            SlowKind::Emulate { .. } | SlowKind::EmulateHere => Record::new(Kind::Emulate, rip),
            SlowKind::Link { target, at, poll } => {
                let mut r = Record::new(Kind::Link, target);
                r.a = at as u32;
                r.entry = u8::from(poll);
                r
            }
            SlowKind::Poll => Record::new(Kind::Poll, start.0),
            SlowKind::WrongTarget => Record::new(Kind::Indirect, 0),
            SlowKind::WrongPage => {
                let mut r = Record::new(Kind::Poll, start.0);
                r.entry = 1;
                r
            }
        };
        if s.home {
            flags::restore(&mut self.cold);
        }
        let mut record = record;
        record.map = start.1;
        record.len = len;
        record.next = match s.what {
            SlowKind::Emulate { resume: false } => 0,
            _ => group_span.map_or(next, u32::from),
        };
        self.leave_with(record);
    }

    /// `lea r15, [record]; jmp exit`, and the record.
    pub fn leave_with(&mut self, record: Record) {
        self.cold.bytes(&[0x4c, 0x8d, 0x3d, 5, 0, 0, 0]);
        self.cold.jmp_to(self.common.exit);
        record.write(&mut self.cold);
    }
}

/// The entry at T1 of an array of the TLB.
fn indexed(array: usize) -> Ea {
    Ea {
        base: Some(reg::T1),
        index: None,
        disp: array as i32,
    }
}

/// Where generated code finds how a linear page is mapped.
const fn code_page_slot(rip: u64) -> usize {
    let half = if rip >> 63 != 0 { 0 } else { 1024 };
    offset_of!(Cpu, jit.code_pages) + (half + ((rip >> 12) as usize & 1023)) * 4
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

pub(super) const fn segment_base(s: usize) -> usize {
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
