//! 32-bit code as 64-bit code: the form of an instruction that has the same
//! effect there, given that the upper halves of all registers are zero.
//!
//! Only addresses differ: they are cut to 32 bits where they are computed
//! (see `emit_check`). An instruction whose `code_size` is 32 bits was made
//! here; what 64-bit code cannot express is not translated (see `classify`).

use iced_x86::{Code, CodeSize, Instruction, OpKind, Register};

use crate::cpu::{Cpu, Seg, seg};

/// Added to addresses through a segment that generated code must leave to the
/// interpreter: no address is canonical then.
const POISON: u64 = 1 << 63;

/// Whether an instruction is of 32-bit code.
pub(crate) fn is_32(i: &Instruction) -> bool {
    i.code_size() == CodeSize::Code32
}

/// Bytes of a register that addresses are made of, and of a stack slot.
pub(crate) fn word(i: &Instruction) -> usize {
    if is_32(i) { 4 } else { 8 }
}

/// Whether an operand of 32-bit code is in memory where generated code does
/// not look: 16-bit addresses, and CS, which may not be readable.
pub(crate) fn is_odd(i: &Instruction) -> bool {
    let memory = (0..i.op_count()).any(|k| i.op_kind(k) == OpKind::Memory);
    let (base, index) = (i.memory_base(), i.memory_index());
    let none = base == Register::None && index == Register::None;
    let short = base.size() == 2 || index.size() == 2 || none && i.memory_displ_size() == 2;
    memory && (short || i.memory_segment() == Register::CS)
}

/// Gives an instruction of 32-bit code its form in 64-bit code.
pub(crate) fn lower(i: &mut Instruction) {
    i.set_code(code(i.code()));
    if !(0..i.op_count()).any(|k| i.op_kind(k) == OpKind::Memory) {
        return;
    }
    let wide = |r: Register| match r {
        Register::None => r,
        r => r.full_register(),
    };
    i.set_memory_base(wide(i.memory_base()));
    i.set_memory_index(wide(i.memory_index()));
    let disp = i.memory_displacement32() as i32;
    i.set_memory_displacement64(i64::from(disp) as u64);
    let none = i.memory_base() == Register::None && i.memory_index() == Register::None;
    i.set_memory_displ_size(match disp {
        0 if !none => 0,
        d if !none && i8::try_from(d).is_ok() => 1,
        _ => 8,
    });
}

/// Encodings of one instruction that 64-bit code does not have.
fn code(c: Code) -> Code {
    match c {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        c => c,
    }
}

/// Data, writable, not expand-down, all of the address space.
fn is_whole(s: &Seg) -> bool {
    const RIGHTS: u32 = 1 << 16 | 1 << 7 | 1 << 4 | 0xe;
    s.limit == u32::MAX && s.rights & RIGHTS == 1 << 7 | 1 << 4 | 2
}

/// Whether 32-bit code runs with the segments that its translation counts on.
pub(crate) fn is_flat(c: &Cpu) -> bool {
    let cs = &c.seg[seg::CS];
    let data = [seg::DS, seg::ES, seg::SS].map(|s| &c.seg[s]);
    cs.base == 0
        && cs.limit == u32::MAX
        && data.iter().all(|s| s.base == 0 && is_whole(s))
        && c.seg[seg::SS].big()
}

/// Makes the state what translated 32-bit code counts on. The upper halves of
/// registers are undefined after a switch from 64-bit mode (SDM vol. 1,
/// 3.4.1.1).
pub(crate) fn prepare(c: &mut Cpu) {
    for r in &mut c.gpr[..8] {
        *r &= 0xffff_ffff;
    }
    for (s, poison) in [seg::FS, seg::GS].into_iter().zip(&mut c.jit.poison) {
        *poison = if is_whole(&c.seg[s]) { 0 } else { POISON };
    }
}
