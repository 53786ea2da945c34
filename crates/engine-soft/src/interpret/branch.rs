//! Near branches.

use iced_x86::{Code, Instruction, OpKind};

use super::alu;
use super::operand::*;
use crate::core::{Core, Exec};
use crate::cpu::flag::ZF;
use crate::system;

/// Goes to a near target.
#[inline(always)]
pub(super) fn go(core: &mut Core, target: u64) -> Exec {
    check_target(core, target)?;
    core.cpu.rip = target;
    Ok(())
}

/// Operand size of a near branch with an encoded target.
#[inline(always)]
fn target_size(kind: OpKind) -> Option<usize> {
    match kind {
        OpKind::NearBranch64 => Some(8),
        OpKind::NearBranch32 => Some(4),
        OpKind::NearBranch16 => Some(2),
        _ => None,
    }
}

#[inline(always)]
pub(super) fn jcc(core: &mut Core, i: &Instruction, next: u64, cc: u8) -> Exec {
    if alu::condition(cc, core.cpu.rflags) {
        go(core, i.near_branch_target())
    } else {
        core.cpu.rip = next;
        Ok(())
    }
}

/// `jmp`; far forms go to `system`.
#[inline(always)]
pub(super) fn jmp(core: &mut Core, i: &Instruction) -> Exec {
    if target_size(i.op0_kind()).is_some() {
        return go(core, i.near_branch_target());
    }
    match i.code() {
        Code::Jmp_rm16 | Code::Jmp_rm32 | Code::Jmp_rm64 => {
            let target = read_operand(core, i, 0)?;
            go(core, target)
        }
        _ => system::execute(core, i),
    }
}

/// `call`; far forms go to `system`.
#[inline(always)]
pub(super) fn call(core: &mut Core, i: &Instruction, next: u64) -> Exec {
    let (size, target) = match target_size(i.op0_kind()) {
        Some(size) => (size, i.near_branch_target()),
        None => match i.code() {
            Code::Call_rm64 => (8, read_operand(core, i, 0)?),
            Code::Call_rm32 => (4, read_operand(core, i, 0)?),
            Code::Call_rm16 => (2, read_operand(core, i, 0)?),
            _ => return system::execute(core, i),
        },
    };
    check_target(core, target)?;
    push(core, size, next)?;
    core.cpu.rip = target;
    Ok(())
}

/// Near `ret`, with or without a count of bytes to drop.
#[inline(always)]
pub(super) fn ret(core: &mut Core, i: &Instruction) -> Exec {
    let size = match i.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8u64,
    };
    let target = peek(core, 0, size as usize)?;
    check_target(core, target)?;
    let drop = if i.op_count() > 0 {
        u64::from(i.immediate16())
    } else {
        0
    };
    let sp = core.cpu.gpr[4].wrapping_add(size).wrapping_add(drop);
    set_sp(core, sp);
    core.cpu.rip = target;
    Ok(())
}

/// Size of the counter of `loop` and `jcxz`, which is the address size.
fn counter_size(code: Code) -> usize {
    use Code::*;
    match code {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX
        | Loopne_rel8_16_CX | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 2,
        Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX | Loope_rel8_16_ECX
        | Loope_rel8_32_ECX | Loope_rel8_64_ECX | Loopne_rel8_16_ECX | Loopne_rel8_32_ECX
        | Loopne_rel8_64_ECX | Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 => 4,
        _ => 8,
    }
}

/// `loop` (`zf` none), `loope` (`zf` true), `loopne` (`zf` false).
pub(super) fn loop_(core: &mut Core, i: &Instruction, next: u64, zf: Option<bool>) -> Exec {
    let size = counter_size(i.code());
    let n = read_reg(&core.cpu, 1, size).wrapping_sub(1) & mask(size);
    let flag = core.cpu.rflags & ZF != 0;
    let taken = n != 0 && zf.is_none_or(|want| want == flag);
    let target = if taken { i.near_branch_target() } else { next };
    go(core, target)?;
    write_reg(&mut core.cpu, 1, size, n);
    Ok(())
}

/// `jcxz`, `jecxz`, `jrcxz`.
pub(super) fn jcxz(core: &mut Core, i: &Instruction, next: u64) -> Exec {
    let size = counter_size(i.code());
    let taken = read_reg(&core.cpu, 1, size) == 0;
    let target = if taken { i.near_branch_target() } else { next };
    go(core, target)
}
