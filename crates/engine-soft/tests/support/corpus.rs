//! Instances of every instruction form that iced knows and the engine shows to
//! guests, with operands and values from a seed.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic as M, OpAccess, OpCodeOperandKind as K, OpKind, Register,
};

use super::case::{Case, MEMORY, undefined_flags};
use super::instruction::{defined_flags, is_string, may_leave_flags, read_flags};
use super::{BASE, CODE, DATA, DATA_SIZE, Mode, RAM_SIZE, READ_ONLY, Random, UNMAPPED, host};

/// Longest sequence in bytes; branches go beyond it.
const SEQUENCE: u64 = 0x60;
const LONG: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Where an operand lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Aligned,
    Inside,
    Crossing,
    HalfUnmapped,
    Unmapped,
    ReadOnly,
    Noncanonical,
}

/// Makes cases.
pub struct Maker {
    mode: Mode,
    rng: Random,
    info: InstructionInfoFactory,
    /// Register numbers to choose from; empty: all.
    numbers: Vec<u32>,
}

impl Maker {
    /// From a seed.
    pub fn new(mode: Mode, seed: u64) -> Self {
        Self {
            mode,
            rng: Random::new(seed),
            info: InstructionInfoFactory::new(),
            numbers: Vec::new(),
        }
    }

    /// Chooses registers from this list only, as often as they stand in it.
    pub fn with_registers(mut self, numbers: &[u32]) -> Self {
        self.numbers = numbers.to_vec();
        self
    }

    fn bits(&self) -> u32 {
        if self.mode == Mode::Long { 64 } else { 32 }
    }

    fn number(&mut self) -> u32 {
        if !self.numbers.is_empty() {
            return self.rng.pick(&self.numbers);
        }
        let n = if self.mode == Mode::Long { 16 } else { 8 };
        self.rng.pick(&LONG[..n])
    }

    fn gpr(&mut self, size: u32) -> Register {
        let n = self.number();
        match size {
            1 if n < 4 || self.mode != Mode::Long => Register::AL + n,
            1 if self.rng.below(2) == 0 => Register::AH + (n & 3),
            1 => Register::AL + n + 4,
            2 => Register::AX + n,
            4 => Register::EAX + n,
            _ => Register::RAX + n,
        }
    }

    /// One case of a form, or `None` if this try gave none.
    pub fn make(&mut self, code: Code) -> Option<Case> {
        let (bytes, i) = self.instruction(code, CODE)?;
        let mut case = self.blank();
        case.bytes = bytes;
        case.instructions = vec![i];
        case.undefined = undefined_flags(&i);
        if self.rng.below(4) == 0 && is_string(&i) {
            case.rflags |= 0x400;
        }
        self.special_values(&mut case, &i);
        self.addresses(&mut case, &i, 0)?;
        self.narrow(&mut case);
        self.special_memory(&mut case, &i);
        (self.is_safe(&case, &i) && stack_is_safe(&case, &i)).then_some(case)
    }

    /// Registers and memory at random, no code yet.
    fn blank(&mut self) -> Case {
        let mut case = Case {
            mode: self.mode,
            bytes: Vec::new(),
            instructions: Vec::new(),
            undefined: 0,
            gpr: [0; 16],
            rflags: self.rng.next() & 0x8d5 | 0x202,
            xsave: self.vectors(),
            memory: vec![0; MEMORY],
        };
        for r in &mut case.gpr {
            *r = self.rng.value();
        }
        case.gpr[4] = DATA + 0x2000 + self.rng.below(64) * 8;
        self.rng.fill(&mut case.memory);
        case
    }

    /// Registers that the mode does not have, or not in full, are zero.
    fn narrow(&self, case: &mut Case) {
        if self.mode != Mode::Long {
            for (n, r) in case.gpr.iter_mut().enumerate() {
                *r = if n < 8 { *r & 0xffff_ffff } else { 0 };
            }
        }
    }

    /// A few instructions that follow each other, of these forms. Address
    /// registers keep their first value until they are used.
    pub fn sequence(&mut self, forms: &[Code], length: usize) -> Option<Case> {
        let mut case = self.blank();
        let (mut written, mut pinned) = (0u32, 0u32);
        for _ in 0..length * 4 {
            let ip = CODE + case.bytes.len() as u64;
            if case.instructions.len() == length || case.bytes.len() as u64 + 15 > SEQUENCE {
                break;
            }
            let form = self.rng.pick(forms);
            let Some((bytes, i)) = self.instruction(form, ip) else {
                continue;
            };
            let before = case.gpr;
            let Some((address, writes)) = self.fits(&i, written, case.undefined) else {
                continue;
            };
            if self.addresses(&mut case, &i, pinned | written).is_none() || !self.is_safe(&case, &i)
            {
                case.gpr = before;
                continue;
            }
            written |= writes;
            pinned |= address;
            if !may_leave_flags(&i) {
                case.undefined &= !defined_flags(&i);
            }
            case.undefined |= undefined_flags(&i);
            case.bytes.extend_from_slice(&bytes);
            case.instructions.push(i);
            if i.flow_control() != FlowControl::Next {
                break;
            }
        }
        self.narrow(&mut case);
        (case.instructions.len() > 1).then_some(case)
    }

    /// Whether an instruction may follow in a sequence: the registers that
    /// make its addresses, and those that it writes, as bit sets.
    fn fits(&mut self, i: &Instruction, written: u32, undefined: u64) -> Option<(u32, u32)> {
        let direct = matches!(
            i.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
        let special = matches!(
            i.mnemonic(),
            // Images with addresses of the last instruction; bits of MXCSR
            // that the guest is not shown; #MF or not by vendor.
            M::Ldmxcsr
                | M::Vldmxcsr
                | M::Cvtpi2ps
                | M::Fnstenv
                | M::Fnsave
                | M::Popf
                | M::Popfd
                | M::Popfq
                | M::Leave
                | M::Enter
                | M::Xlatb
                | M::Maskmovq
                | M::Maskmovdqu
                | M::Vmaskmovdqu
        );
        let vector_index = i.memory_index().is_vector_register();
        if !direct || special || vector_index || is_string(i) || read_flags(i) & undefined != 0 {
            return None;
        }
        let info = self.info.info(i);
        let bit = |r: Register| match r.is_gpr() {
            true => 1u32 << (r.full_register().number() & 15),
            false => 0,
        };
        let address = info
            .used_memory()
            .iter()
            .fold(0, |all, m| all | bit(m.base()) | bit(m.index()));
        let writes = info
            .used_registers()
            .iter()
            .filter(|u| !matches!(u.access(), OpAccess::Read | OpAccess::CondRead))
            .fold(0, |all, u| all | bit(u.register()));
        let offset = match i.mnemonic() {
            M::Bt | M::Bts | M::Btr | M::Btc if i.op0_kind() == OpKind::Memory => {
                bit(i.op1_register())
            }
            _ => 0,
        };
        ((address | offset) & written == 0).then_some((address | offset, writes))
    }

    /// Encodes an instance of a form at an address, operands at random.
    pub fn instruction(&mut self, code: Code, ip: u64) -> Option<(Vec<u8>, Instruction)> {
        let mut i = Instruction::new();
        i.set_code(code);
        i.set_ip(ip);
        let o = code.op_code();
        for (n, k) in o.op_kinds().iter().enumerate() {
            self.operand(&mut i, n as u32, *k);
        }
        let memory = (0..i.op_count()).any(|op| i.op_kind(op) == OpKind::Memory);
        if memory && i.op0_kind() == OpKind::Memory && o.can_use_lock_prefix() {
            i.set_has_lock_prefix(self.rng.below(2) == 0);
        }
        if o.can_use_rep_prefix() && self.rng.below(2) == 0 {
            i.set_has_rep_prefix(true);
        } else if o.can_use_repne_prefix() && is_string(&i) && self.rng.below(2) == 0 {
            i.set_has_repne_prefix(true);
        }
        let mut encoder = Encoder::new(self.bits());
        encoder.encode(&i, ip).ok()?;
        let bytes = encoder.take_buffer();
        let mut d = Decoder::with_ip(self.bits(), &bytes, ip, DecoderOptions::NONE);
        let i = d.decode();
        (i.len() == bytes.len() && i.code() == code).then_some((bytes, i))
    }

    fn operand(&mut self, i: &mut Instruction, n: u32, k: K) {
        let memory = self.rng.below(5) < 3;
        let mut set = |kind, r| {
            i.set_op_kind(n, kind);
            i.set_op_register(n, r);
        };
        match k {
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem if !memory => {
                let size = match k {
                    K::r8_or_mem => 1,
                    K::r16_or_mem => 2,
                    K::r32_or_mem => 4,
                    _ => 8,
                };
                let r = self.gpr(size);
                set(OpKind::Register, r);
            }
            K::mm_or_mem | K::xmm_or_mem | K::ymm_or_mem if !memory => {
                let r = self.vector(k);
                set(OpKind::Register, r);
            }
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::mem => self.memory(i, n),
            K::mem_offs => {
                i.set_op_kind(n, OpKind::Memory);
                let size = if self.mode == Mode::Long { 8 } else { 4 };
                i.set_memory_displ_size(size);
                let at = self.target(8);
                i.set_memory_displacement64(at);
            }
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => self.vsib(i, n, k),
            K::r8_reg | K::r8_opcode => set(OpKind::Register, self.gpr(1)),
            K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                set(OpKind::Register, self.gpr(2));
            }
            K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                set(OpKind::Register, self.gpr(4));
            }
            K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                set(OpKind::Register, self.gpr(8));
            }
            K::mm_reg
            | K::mm_rm
            | K::xmm_reg
            | K::xmm_rm
            | K::xmm_vvvv
            | K::xmm_is4
            | K::ymm_reg
            | K::ymm_rm
            | K::ymm_vvvv
            | K::ymm_is4 => {
                let r = self.vector(k);
                set(OpKind::Register, r);
            }
            K::al => set(OpKind::Register, Register::AL),
            K::cl => set(OpKind::Register, Register::CL),
            K::ax => set(OpKind::Register, Register::AX),
            K::dx => set(OpKind::Register, Register::DX),
            K::eax => set(OpKind::Register, Register::EAX),
            K::rax => set(OpKind::Register, Register::RAX),
            K::st0 => set(OpKind::Register, Register::ST0),
            K::sti_opcode => {
                let r = Register::ST0 + self.rng.below(8) as u32;
                set(OpKind::Register, r);
            }
            K::seg_reg => {
                let r = Register::ES + self.rng.below(6) as u32;
                set(OpKind::Register, r);
            }
            K::cr_reg => {
                let r = Register::CR0 + self.rng.pick(&[0, 2, 3, 4, 8]);
                set(OpKind::Register, r);
            }
            K::dr_reg => {
                let r = Register::DR0 + self.rng.below(8) as u32;
                set(OpKind::Register, r);
            }
            K::es => set(OpKind::Register, Register::ES),
            K::cs => set(OpKind::Register, Register::CS),
            K::ss => set(OpKind::Register, Register::SS),
            K::ds => set(OpKind::Register, Register::DS),
            K::fs => set(OpKind::Register, Register::FS),
            K::gs => set(OpKind::Register, Register::GS),
            K::farbr2_2 | K::farbr4_2 => {
                let wide = k == K::farbr4_2;
                i.set_op_kind(
                    n,
                    if wide {
                        OpKind::FarBranch32
                    } else {
                        OpKind::FarBranch16
                    },
                );
                i.set_far_branch_selector(self.rng.below(0x60) as u16);
                let to = CODE + self.rng.below(0x1000);
                if wide {
                    i.set_far_branch32(to as u32);
                } else {
                    i.set_far_branch16(to as u16);
                }
            }
            _ => self.immediate_or_string(i, n, k),
        }
    }

    fn vector(&mut self, k: K) -> Register {
        let n = self.number();
        match k {
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + (n & 7),
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + n,
            _ => Register::XMM0 + n,
        }
    }

    fn immediate_or_string(&mut self, i: &mut Instruction, n: u32, k: K) {
        let v = self.rng.value();
        let (long, address) = (self.mode == Mode::Long, self.rng.below(4) == 0);
        let near = i.ip() + SEQUENCE + self.rng.below(16);
        let (kind, v) = match k {
            K::imm8 if n > 0 && i.op_kind(n - 1) == OpKind::Immediate16 => {
                (OpKind::Immediate8_2nd, v & 3)
            }
            K::imm8 | K::imm4_m2z => (OpKind::Immediate8, v & 0xff),
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8sex16 => (OpKind::Immediate8to16, v as i8 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, v as i8 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, v as i8 as u64),
            K::imm16 if i.mnemonic() == M::Enter => (OpKind::Immediate16, v & 0x1f8),
            K::imm16 => (OpKind::Immediate16, v & 0xffff),
            K::imm32 => (OpKind::Immediate32, v & 0xffff_ffff),
            K::imm32sex64 => (OpKind::Immediate32to64, v as i32 as u64),
            K::imm64 => (OpKind::Immediate64, v),
            K::br32_1 | K::br32_4 => return branch(i, OpKind::NearBranch32, near),
            K::br64_1 | K::br64_4 => return branch(i, OpKind::NearBranch64, near),
            K::br16_1 | K::br16_2 => return branch(i, OpKind::NearBranch16, near),
            K::seg_rSI => return i.set_op_kind(n, string_kind(long, address, SI)),
            K::es_rDI => return i.set_op_kind(n, string_kind(long, address, ES_DI)),
            K::seg_rDI => return i.set_op_kind(n, string_kind(long, address, DI)),
            K::seg_rBX_al => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(if long { Register::RBX } else { Register::EBX });
                i.set_memory_index(Register::AL);
                i.set_memory_index_scale(1);
                return;
            }
            _ => return,
        };
        i.set_op_kind(n, kind);
        i.set_immediate_u64(n, v);
    }

    /// An ordinary memory operand: base, index, scale, displacement, address
    /// size, rip-relative.
    fn memory(&mut self, i: &mut Instruction, n: u32) {
        i.set_op_kind(n, OpKind::Memory);
        let long = self.mode == Mode::Long;
        let short = long && self.rng.below(6) == 0;
        let of = if long && !short {
            Register::RAX
        } else {
            Register::EAX
        };
        let shape = self.rng.below(8);
        if long && shape == 0 {
            i.set_memory_base(Register::RIP);
            i.set_memory_displ_size(8);
            let at = self.target(16);
            i.set_memory_displacement64(at);
            return;
        }
        if shape != 1 {
            i.set_memory_base(of + self.number());
        }
        if shape >= 5 || shape == 1 {
            let index = self.number();
            if index != 4 {
                i.set_memory_index(of + index);
                i.set_memory_index_scale(1 << self.rng.below(4));
            }
        }
        let full = if of == Register::RAX { 8 } else { 4 };
        let (size, displacement) = match self.rng.below(3) {
            _ if i.memory_base() == Register::None => (full, self.target(16)),
            0 => (0, 0),
            1 => (1, self.rng.below(256) as i8 as u64),
            _ => (full, (self.rng.below(1 << 20) as i64 - (1 << 19)) as u64),
        };
        i.set_memory_displ_size(size);
        i.set_memory_displacement64(displacement);
        if self.rng.below(6) == 0 {
            i.set_segment_prefix(self.rng.pick(&[Register::DS, Register::ES, Register::SS]));
        }
    }

    fn vsib(&mut self, i: &mut Instruction, n: u32, k: K) {
        i.set_op_kind(n, OpKind::Memory);
        let of = if self.mode == Mode::Long {
            Register::RAX
        } else {
            Register::EAX
        };
        i.set_memory_base(of + self.number());
        let v = if matches!(k, K::mem_vsib32x | K::mem_vsib64x) {
            Register::XMM0
        } else {
            Register::YMM0
        };
        i.set_memory_index(v + self.number());
        i.set_memory_index_scale(1 << self.rng.below(4));
    }

    /// An address for an operand of `size` bytes.
    fn target(&mut self, size: u64) -> u64 {
        let place = match self.rng.below(20) {
            0..7 => Place::Aligned,
            7..12 => Place::Inside,
            12..15 => Place::Crossing,
            15 => Place::HalfUnmapped,
            16 => Place::Unmapped,
            17 => Place::ReadOnly,
            18 if self.mode == Mode::Long => Place::Noncanonical,
            _ => Place::Aligned,
        };
        let size = size.clamp(1, 64);
        match place {
            Place::Aligned => DATA + 0x400 + self.rng.below(8) * 64,
            Place::Inside => DATA + 0x400 + self.rng.below(512),
            Place::Crossing => DATA + 0x1000 - self.rng.below(size),
            Place::HalfUnmapped => UNMAPPED - self.rng.below(size),
            Place::Unmapped => UNMAPPED + self.rng.below(0x800),
            Place::ReadOnly => READ_ONLY + self.rng.below(8) * 64,
            Place::Noncanonical => 0x8000_0000_0000_0000 | self.rng.below(1 << 30),
        }
    }

    /// XSAVE image: any vectors (often special floating-point values), some
    /// valid x87 registers, all exceptions masked.
    fn vectors(&mut self) -> Box<[u8; 832]> {
        let mut x = host::initial();
        self.rng.fill(&mut x[160..416]);
        self.rng.fill(&mut x[576..832]);
        for at in (160..416).chain(576..832).step_by(8) {
            let special = match self.rng.below(10) {
                0 => 0f64.to_bits(),
                1 => (-1.5f64).to_bits(),
                2 => f64::INFINITY.to_bits(),
                3 => f64::NAN.to_bits(),
                4 => 1,
                5 => u64::from(1.25f32.to_bits()) << 32 | u64::from(f32::NEG_INFINITY.to_bits()),
                6 => (self.rng.below(2000) as f64 - 1000.0).to_bits(),
                _ => continue,
            };
            x[at..at + 8].copy_from_slice(&special.to_le_bytes());
        }
        let rounding = (self.rng.below(4) as u16) << 10;
        x[0..2].copy_from_slice(&(0x037f & !0xc00 | rounding).to_le_bytes());
        let top = self.rng.below(8) as u8;
        x[3] = top << 3 | (self.rng.below(8) as u8 & 7);
        x[4] = self.rng.next() as u8;
        for st in 0..8 {
            let exponent: u16 = self
                .rng
                .pick(&[0x3fff, 0x4005, 0x3ff0, 0xbfff, 0x403e, 0, 0x7fff]);
            let mantissa = if exponent == 0 {
                0
            } else {
                self.rng.next() | 1 << 63
            };
            x[32 + st * 16..40 + st * 16].copy_from_slice(&mantissa.to_le_bytes());
            x[40 + st * 16..42 + st * 16].copy_from_slice(&exponent.to_le_bytes());
        }
        let mxcsr =
            0x1f80u32 | (self.rng.below(4) as u32) << 13 | self.rng.pick(&[0, 0, 0x40, 0x8000]);
        x[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        x[512] = 7;
        x
    }

    /// Registers with a meaning that random values would not have.
    fn special_values(&mut self, case: &mut Case, i: &Instruction) {
        let rng = &mut self.rng;
        match rng.below(24) {
            0 => case.gpr[4] = DATA + rng.below(2) * 4,
            1 => case.gpr[4] = UNMAPPED - rng.below(2) * 4,
            _ => {}
        }
        match i.mnemonic() {
            M::Div | M::Idiv if rng.below(4) > 0 => {
                let negative = i.mnemonic() == M::Idiv && rng.below(2) == 0;
                case.gpr[2] = if negative { u64::MAX } else { rng.below(3) };
                case.gpr[0] = match rng.below(3) {
                    0 => rng.below(0x100),
                    1 => rng.below(0x10000) | if negative { !0xffff } else { 0 },
                    _ => case.gpr[0],
                };
            }
            M::Leave | M::Enter => case.gpr[5] = DATA + 0x1800 + rng.below(32) * 8,
            M::Xlatb => case.gpr[3] = DATA + 0x600,
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
                case.gpr[1] = rng.pick(&[0, 1, 2, 1 << 32, 1 << 16, u64::MAX]);
            }
            M::Cmpxchg8b | M::Cmpxchg16b | M::Cmpxchg => {}
            M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => case.gpr[7] = DATA + 0xff8,
            _ if is_string(i) => {
                case.gpr[1] = rng.below(24);
                case.gpr[6] = DATA + 0xf80 + rng.below(256);
                case.gpr[7] = DATA + 0x1f80 + rng.below(256);
                match rng.below(6) {
                    0 => case.gpr[6] = UNMAPPED - rng.below(40),
                    1 => case.gpr[7] = UNMAPPED - rng.below(40),
                    2 => case.gpr[7] = case.gpr[6] + rng.below(12),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Gives base and index registers the values that make the operand lie
    /// where it shall; registers in `fixed` keep theirs.
    fn addresses(&mut self, case: &mut Case, i: &Instruction, fixed: u32) -> Option<()> {
        let is_fixed =
            |r: Register| r.is_gpr() && fixed >> (r.full_register().number() & 15) & 1 != 0;
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        if !memory || i.mnemonic() == M::Xlatb {
            return Some(());
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        if index.is_vector_register() {
            return self.vsib_values(case, i);
        }
        if matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
            && i.op1_kind() == OpKind::Register
        {
            let r = i.op1_register().full_register();
            if r == base.full_register() || r == index.full_register() || is_fixed(r) {
                return None;
            }
            case.gpr[r.number()] = (self.rng.below(0x4000) as i64 - 0x2000) as u64;
        }
        if base == Register::RIP || base == Register::None && index == Register::None {
            return Some(());
        }
        if is_fixed(base) || is_fixed(index) {
            // Whether that lies well is the caller's question.
            return Some(());
        }
        let target = self.target(i.memory_size().size() as u64);
        let scale = u64::from(i.memory_index_scale());
        let mut rest = target.wrapping_sub(i.memory_displacement64());
        if index != Register::None {
            let n = index.full_register().number();
            if index == base {
                if !rest.is_multiple_of(scale + 1) {
                    return None;
                }
                case.gpr[n] = rest / (scale + 1);
                return Some(());
            }
            if base == Register::None {
                case.gpr[n] = self.rng.below(8);
                return Some(());
            }
            case.gpr[n] = self.rng.below(64).wrapping_sub(16);
            rest = rest.wrapping_sub(case.gpr[n].wrapping_mul(scale));
        }
        if base != Register::None {
            case.gpr[base.full_register().number()] = rest;
        }
        Some(())
    }

    fn vsib_values(&mut self, case: &mut Case, i: &Instruction) -> Option<()> {
        let small = 0x100 / u64::from(i.memory_index_scale());
        let index = i.memory_index().number();
        let wide = format!("{:?}", i.mnemonic()).contains("gatherq");
        let step = if wide { 8 } else { 4 };
        for lane in 0..32 / step {
            let at = if lane * step < 16 { 160 } else { 576 - 16 } + index * 16 + lane * step;
            let v = self.rng.below(small).wrapping_sub(8);
            case.xsave[at..at + step].copy_from_slice(&v.to_le_bytes()[..step]);
        }
        let base = self.target(0x100);
        case.gpr[i.memory_base().full_register().number()] =
            base.wrapping_sub(i.memory_displacement64());
        Some(())
    }

    /// Indirect branches and returns go into the code page; popped flags do
    /// not trap.
    fn special_memory(&mut self, case: &mut Case, i: &Instruction) {
        let target = CODE + 0x200 + self.rng.below(256);
        match i.flow_control() {
            FlowControl::Return => put(case, case.gpr[4], target),
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                if i.op0_kind() == OpKind::Register {
                    case.gpr[i.op0_register().full_register().number()] = target;
                } else if let Some(at) = self.addresses_used(case, i).first() {
                    put(case, *at, target);
                }
            }
            _ => {}
        }
        if matches!(i.mnemonic(), M::Ldmxcsr | M::Vldmxcsr)
            && let Some(at) = self.addresses_used(case, i).first()
        {
            // Valid, or with a bit that no CPU has.
            let v = self.rng.next() & 0xffff | self.rng.below(2) << 31;
            put(case, *at, v);
        }
        if matches!(i.mnemonic(), M::Popf | M::Popfd | M::Popfq) {
            let flags = self.rng.next() & 0xcd5 | 0x202;
            put(case, case.gpr[4], flags);
        }
    }

    fn addresses_used(&mut self, case: &Case, i: &Instruction) -> Vec<u64> {
        let mask = if self.mode == Mode::Long {
            u64::MAX
        } else {
            0xffff_ffff
        };
        let used: Vec<_> = self.info.info(i).used_memory().to_vec();
        let lanes = if i.memory_index().is_vector_register() {
            8
        } else {
            1
        };
        let mut out = Vec::new();
        for u in used {
            for lane in 0..lanes {
                let la = u.virtual_address(lane, |r, n, size| {
                    Some(if r.is_segment_register() {
                        0
                    } else if r.is_vector_register() {
                        lane_value(case, r.number(), n, size)
                    } else {
                        let full = case.gpr[r.full_register().number() & 15];
                        match r.size() {
                            1 => full & 0xff,
                            2 => full & 0xffff,
                            4 => full & 0xffff_ffff,
                            _ => full,
                        }
                    })
                });
                out.push(la.unwrap_or(0) & mask);
            }
        }
        out
    }

    /// Whether the host can run the case: everything that it may touch lies
    /// in the test's own pages, or faults for certain.
    fn is_safe(&mut self, case: &Case, i: &Instruction) -> bool {
        self.addresses_used(case, i).iter().all(|a| {
            (BASE + 0x4000..BASE + RAM_SIZE - 0x1000).contains(a)
                && !(CODE - 0x1000..CODE + 0x2000).contains(a)
                || (*a as i64) << 16 >> 16 != *a as i64
        })
    }
}

fn stack_is_safe(case: &Case, i: &Instruction) -> bool {
    !i.is_stack_instruction() || (DATA..DATA + DATA_SIZE + 1).contains(&case.gpr[4])
}

/// Puts a value into the operand pages, as far as it lies there.
fn put(case: &mut Case, at: u64, v: u64) {
    for (n, byte) in v.to_le_bytes().iter().enumerate() {
        let off = at.wrapping_add(n as u64).wrapping_sub(DATA) as usize;
        if let Some(b) = case.memory.get_mut(off) {
            *b = *byte;
        }
    }
}

/// Element of a vector register in the case's image, sign-extended.
fn lane_value(case: &Case, register: usize, n: usize, size: usize) -> u64 {
    let byte = n * size;
    if byte >= 32 {
        return 0;
    }
    let at = if byte < 16 {
        160 + byte
    } else {
        576 + byte - 16
    } + register * 16;
    let mut b = [0; 8];
    b[..size].copy_from_slice(&case.xsave[at..at + size]);
    if size == 4 {
        i64::from(i64::from_le_bytes(b) as i32) as u64
    } else {
        u64::from_le_bytes(b)
    }
}

const SI: [OpKind; 3] = [
    OpKind::MemorySegRSI,
    OpKind::MemorySegESI,
    OpKind::MemorySegSI,
];
const ES_DI: [OpKind; 3] = [OpKind::MemoryESRDI, OpKind::MemoryESEDI, OpKind::MemoryESDI];
const DI: [OpKind; 3] = [
    OpKind::MemorySegRDI,
    OpKind::MemorySegEDI,
    OpKind::MemorySegDI,
];

fn string_kind(long: bool, short: bool, of: [OpKind; 3]) -> OpKind {
    match (long, short) {
        (true, false) => of[0],
        _ => of[1],
    }
}

fn branch(i: &mut Instruction, kind: OpKind, target: u64) {
    i.set_op0_kind(kind);
    match kind {
        OpKind::NearBranch16 => i.set_near_branch16(target as u16),
        OpKind::NearBranch32 => i.set_near_branch32(target as u32),
        _ => i.set_near_branch64(target),
    }
}
