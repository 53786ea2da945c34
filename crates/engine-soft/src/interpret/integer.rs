//! Moves and integer arithmetic.

use arch::{Exception, exception};
use iced_x86::{Instruction, OpKind, Register};

use super::alu::{self, Shift};
use super::operand::*;
use crate::core::{Core, Exec};
use crate::cpu::flag::{AF, CF, OF, PF, SF, STATUS, ZF};

/// Replaces the six status flags.
#[inline(always)]
pub(super) fn set_status(core: &mut Core, f: u64) {
    core.cpu.rflags = core.cpu.rflags & !STATUS | f;
}

/// Reads operand 0, a general register or memory, applies `f` to its value
/// and size, and writes the result back. Locked if the prefix says so.
#[inline(always)]
pub(super) fn modify(
    core: &mut Core,
    i: &Instruction,
    mut f: impl FnMut(u64, usize) -> u64,
) -> Exec {
    if i.op0_kind() == OpKind::Register {
        let r = i.op0_register();
        let v = f(read_gpr(&core.cpu, r), gpr_size(r));
        write_gpr(&mut core.cpu, r, v);
        return Ok(());
    }
    let size = memory_size(i)?;
    let la = linear_memory(core, i, size, true)?;
    core.rmw(la, size, i.has_lock_prefix(), |a| f(a, size))?;
    Ok(())
}

/// `add` to `xor`: operand 0 becomes `op(operand 0, operand 1, CF, size)`.
#[inline(always)]
pub(super) fn binary(
    core: &mut Core,
    i: &Instruction,
    op: impl Fn(u64, u64, u64, usize) -> (u64, u64),
) -> Exec {
    let b = read_operand(core, i, 1)?;
    let carry = core.cpu.rflags & CF;
    let mut status = 0;
    modify(core, i, |a, size| {
        let (r, s) = op(a, b, carry, size);
        status = s;
        r
    })?;
    set_status(core, status);
    Ok(())
}

/// `cmp` and `test`: only the flags of `op(operand 0, operand 1, size)`.
#[inline(always)]
pub(super) fn compare(
    core: &mut Core,
    i: &Instruction,
    op: impl Fn(u64, u64, usize) -> (u64, u64),
) -> Exec {
    let size = if i.op0_kind() == OpKind::Register {
        gpr_size(i.op0_register())
    } else {
        memory_size(i)?
    };
    let a = read_operand(core, i, 0)?;
    let b = read_operand(core, i, 1)?;
    let (_, status) = op(a, b, size);
    set_status(core, status);
    Ok(())
}

/// `inc` and `dec`: all status flags but CF.
#[inline(always)]
pub(super) fn step_by_one(
    core: &mut Core,
    i: &Instruction,
    op: fn(u64, u64, u64, usize) -> (u64, u64),
) -> Exec {
    let mut status = 0;
    modify(core, i, |a, size| {
        let (r, s) = op(a, 1, 0, size);
        status = s;
        r
    })?;
    set_flags(core, STATUS & !CF, status);
    Ok(())
}

pub(super) fn neg(core: &mut Core, i: &Instruction) -> Exec {
    let mut status = 0;
    modify(core, i, |a, size| {
        let (r, s) = alu::sub(0, a, 0, size);
        status = s;
        r
    })?;
    set_status(core, status);
    Ok(())
}

pub(super) fn not(core: &mut Core, i: &Instruction) -> Exec {
    modify(core, i, |a, size| !a & mask(size))
}

/// `mov` between general and segment registers, memory and immediates. Says
/// false, having done nothing, if it writes a segment register or concerns a
/// control or debug register.
#[inline(always)]
pub(super) fn mov(core: &mut Core, i: &Instruction) -> Exec<bool> {
    let other = |r: Register| gpr_size(r) == 0 && seg_index(r).is_none();
    if i.op1_kind() == OpKind::Register && other(i.op1_register()) {
        return Ok(false);
    }
    if i.op0_kind() == OpKind::Register {
        let r = i.op0_register();
        if gpr_size(r) == 0 {
            return Ok(false);
        }
        let v = read_operand(core, i, 1)?;
        write_gpr(&mut core.cpu, r, v);
        return Ok(true);
    }
    let v = read_operand(core, i, 1)?;
    let size = memory_size(i)?;
    let la = linear_memory(core, i, size, true)?;
    core.write(la, size, v)?;
    Ok(true)
}

/// `movsx`, `movsxd`.
#[inline(always)]
pub(super) fn movsx(core: &mut Core, i: &Instruction) -> Exec {
    let size = if i.op1_kind() == OpKind::Register {
        gpr_size(i.op1_register())
    } else {
        memory_size(i)?
    };
    let v = read_operand(core, i, 1)?;
    write_gpr(&mut core.cpu, i.op0_register(), sign_extend(v, size));
    Ok(())
}

/// `movzx`: the register write zero-extends.
#[inline(always)]
pub(super) fn movzx(core: &mut Core, i: &Instruction) -> Exec {
    let v = read_operand(core, i, 1)?;
    write_gpr(&mut core.cpu, i.op0_register(), v);
    Ok(())
}

/// `movbe`.
pub(super) fn movbe(core: &mut Core, i: &Instruction) -> Exec {
    let size = operand_size(i, 0);
    let v = read_operand(core, i, 1)?;
    let shift = (64 - 8 * size as u32) & 63;
    write_operand(core, i, 0, v.swap_bytes() >> shift)
}

/// `bswap`; of a 16-bit register (undefined) it gives zero, as hardware does.
pub(super) fn bswap(core: &mut Core, i: &Instruction) -> Exec {
    let r = i.op0_register();
    let v = read_gpr(&core.cpu, r);
    let v = match gpr_size(r) {
        8 => v.swap_bytes(),
        4 => u64::from((v as u32).swap_bytes()),
        _ => 0,
    };
    write_gpr(&mut core.cpu, r, v);
    Ok(())
}

#[inline(always)]
pub(super) fn lea(core: &mut Core, i: &Instruction) -> Exec {
    let ea = effective_address(core, i);
    write_gpr(&mut core.cpu, i.op0_register(), ea);
    Ok(())
}

/// `cmovcc`: reads its source and, with a 32-bit register, zero-extends even
/// if the condition is false.
#[inline(always)]
pub(super) fn cmov(core: &mut Core, i: &Instruction, cc: u8) -> Exec {
    let v = read_operand(core, i, 1)?;
    let r = i.op0_register();
    let v = if alu::condition(cc, core.cpu.rflags) {
        v
    } else {
        read_gpr(&core.cpu, r)
    };
    write_gpr(&mut core.cpu, r, v);
    Ok(())
}

#[inline(always)]
pub(super) fn setcc(core: &mut Core, i: &Instruction, cc: u8) -> Exec {
    let v = u64::from(alu::condition(cc, core.cpu.rflags));
    write_operand(core, i, 0, v)
}

/// `xchg`: locked with memory.
pub(super) fn xchg(core: &mut Core, i: &Instruction) -> Exec {
    // Either operand may be the memory operand in iced's view.
    if i.op0_kind() == OpKind::Register && i.op1_kind() == OpKind::Register {
        let (ra, rb) = (i.op0_register(), i.op1_register());
        let (a, b) = (read_gpr(&core.cpu, ra), read_gpr(&core.cpu, rb));
        write_gpr(&mut core.cpu, ra, b);
        write_gpr(&mut core.cpu, rb, a);
        return Ok(());
    }
    let reg = if i.op0_kind() == OpKind::Register {
        i.op0_register()
    } else {
        i.op1_register()
    };
    let new = read_gpr(&core.cpu, reg);
    let size = memory_size(i)?;
    let la = linear_memory(core, i, size, true)?;
    let old = core.rmw(la, size, true, |_| new)?;
    write_gpr(&mut core.cpu, reg, old);
    Ok(())
}

pub(super) fn xadd(core: &mut Core, i: &Instruction) -> Exec {
    let reg = i.op1_register();
    let b = read_gpr(&core.cpu, reg);
    let (mut status, mut old) = (0, 0);
    if i.op0_kind() == OpKind::Register {
        // With both the same register, the sum is what stays.
        let r = i.op0_register();
        let a = read_gpr(&core.cpu, r);
        let (sum, s) = alu::add(a, b, 0, gpr_size(r));
        write_gpr(&mut core.cpu, reg, a);
        write_gpr(&mut core.cpu, r, sum);
        set_status(core, s);
        return Ok(());
    }
    modify(core, i, |a, size| {
        let (r, s) = alu::add(a, b, 0, size);
        status = s;
        old = a;
        r
    })?;
    write_gpr(&mut core.cpu, reg, old);
    set_status(core, status);
    Ok(())
}

/// `cmpxchg`: memory is written in any case, so it needs write permission; a
/// register that does not match is not (AMD keeps its high half too).
pub(super) fn cmpxchg(core: &mut Core, i: &Instruction) -> Exec {
    let reg = i.op1_register();
    let size = gpr_size(reg);
    let new = read_gpr(&core.cpu, reg);
    let acc = read_reg(&core.cpu, 0, size);
    let old = if i.op0_kind() == OpKind::Register {
        let old = read_gpr(&core.cpu, i.op0_register());
        if old == acc {
            write_gpr(&mut core.cpu, i.op0_register(), new);
        }
        old
    } else {
        let la = linear_memory(core, i, size, true)?;
        core.rmw(la, size, i.has_lock_prefix(), |a| {
            if a == acc { new } else { a }
        })?
    };
    if old != acc {
        write_reg(&mut core.cpu, 0, size, old);
    }
    let (_, status) = alu::sub(acc, old, 0, size);
    set_status(core, status);
    Ok(())
}

pub(super) fn cmpxchg8b(core: &mut Core, i: &Instruction) -> Exec {
    let c = &core.cpu;
    let pair = |h: usize, l: usize| read_reg(c, h, 4) << 32 | read_reg(c, l, 4);
    let (expected, new) = (pair(2, 0), pair(1, 3));
    let la = linear_memory(core, i, 8, true)?;
    let old = core.rmw(la, 8, i.has_lock_prefix(), |a| {
        if a == expected { new } else { a }
    })?;
    if old != expected {
        write_reg(&mut core.cpu, 0, 4, old);
        write_reg(&mut core.cpu, 2, 4, old >> 32);
    }
    set_flags(core, ZF, if old == expected { ZF } else { 0 });
    Ok(())
}

pub(super) fn cmpxchg16b(core: &mut Core, i: &Instruction) -> Exec {
    let c = &core.cpu;
    let pair = |h: usize, l: usize| u128::from(c.gpr[h]) << 64 | u128::from(c.gpr[l]);
    let (expected, new) = (pair(2, 0), pair(1, 3));
    // Misalignment comes before a bad address.
    let (s, offset) = segment_offset(core, i, 0);
    if offset.wrapping_add(core.cpu.seg[s].base) & 15 != 0 {
        return Err(Exception::gp0().into());
    }
    let la = linear_memory(core, i, 16, true)?;
    let old = core.rmw128(la, |a| if a == expected { new } else { a })?;
    if old != expected {
        core.cpu.gpr[0] = old as u64;
        core.cpu.gpr[2] = (old >> 64) as u64;
    }
    set_flags(core, ZF, if old == expected { ZF } else { 0 });
    Ok(())
}

#[inline(always)]
pub(super) fn shift(core: &mut Core, i: &Instruction, kind: Shift) -> Exec {
    let count = read_operand(core, i, 1)?;
    let carry = core.cpu.rflags & CF;
    let mut change = None;
    modify(core, i, |a, size| {
        let (r, c) = alu::shift(kind, a, count, carry, size);
        change = Some(c);
        r
    })?;
    if let Some(c) = change {
        set_flags(core, c.which, c.value);
    }
    Ok(())
}

pub(super) fn double_shift(core: &mut Core, i: &Instruction, left: bool) -> Exec {
    let b = read_operand(core, i, 1)?;
    let count = read_operand(core, i, 2)?;
    let mut change = None;
    modify(core, i, |a, size| {
        let (r, c) = alu::double_shift(left, a, b, count, size);
        change = Some(c);
        r
    })?;
    if let Some(c) = change {
        set_flags(core, c.which, c.value);
    }
    Ok(())
}

/// CF and OF say whether the high half of a product matters; the other flags
/// are undefined and stay.
#[inline(always)]
fn set_overflow(core: &mut Core, wide: bool) {
    set_flags(core, CF | OF, if wide { CF | OF } else { 0 });
}

/// `mul` and one-operand `imul`.
pub(super) fn mul(
    core: &mut Core,
    i: &Instruction,
    f: fn(u64, u64, usize) -> (u64, u64, bool),
) -> Exec {
    let size = operand_size(i, 0);
    let b = read_operand(core, i, 0)?;
    let (low, high, wide) = f(read_reg(&core.cpu, 0, size), b, size);
    if size == 1 {
        write_reg(&mut core.cpu, 0, 2, high << 8 | low);
    } else {
        write_reg(&mut core.cpu, 0, size, low);
        write_reg(&mut core.cpu, 2, size, high);
    }
    set_overflow(core, wide);
    Ok(())
}

pub(super) fn imul(core: &mut Core, i: &Instruction) -> Exec {
    let first = match i.op_count() {
        1 => return mul(core, i, alu::imul),
        2 => 0,
        _ => 1,
    };
    let r = i.op0_register();
    let a = read_operand(core, i, first)?;
    let b = read_operand(core, i, first + 1)?;
    let (low, _, wide) = alu::imul(a, b, gpr_size(r));
    write_gpr(&mut core.cpu, r, low);
    set_overflow(core, wide);
    Ok(())
}

/// Quotient and remainder of (high, low, divisor, size); `None` is #DE.
type Divide = fn(u64, u64, u64, usize) -> Option<(u64, u64)>;

/// `div` and `idiv`.
pub(super) fn div(core: &mut Core, i: &Instruction, f: Divide) -> Exec {
    let size = operand_size(i, 0);
    let d = read_operand(core, i, 0)?;
    let c = &mut core.cpu;
    let (high, low) = if size == 1 {
        let ax = read_reg(c, 0, 2);
        (ax >> 8, ax & 0xff)
    } else {
        (read_reg(c, 2, size), read_reg(c, 0, size))
    };
    let (q, r) = f(high, low, d, size).ok_or(Exception::new(exception::DE))?;
    if size == 1 {
        write_reg(c, 0, 2, r << 8 | q);
    } else {
        write_reg(c, 0, size, q);
        write_reg(c, 2, size, r);
    }
    // Undefined; as AMD Zen leaves them.
    set_flags(core, SF | ZF | PF | AF, AF);
    Ok(())
}

/// `cbw`, `cwde`, `cdqe`: sign-extends the accumulator to `size` bytes.
pub(super) fn extend_accumulator(core: &mut Core, size: usize) -> Exec {
    let v = sign_extend(read_reg(&core.cpu, 0, size / 2), size / 2);
    write_reg(&mut core.cpu, 0, size, v);
    Ok(())
}

/// `cwd`, `cdq`, `cqo`: the accumulator's sign fills rDX.
pub(super) fn sign_to_rdx(core: &mut Core, size: usize) -> Exec {
    let v = sign_extend(read_reg(&core.cpu, 0, size), size);
    write_reg(&mut core.cpu, 2, size, ((v as i64) >> 63) as u64);
    Ok(())
}

/// `aaa` and `aas`.
pub(super) fn ascii_adjust(core: &mut Core, add: bool) -> Exec {
    let ax = core.cpu.gpr[0] & 0xffff;
    let adjust = ax & 15 > 9 || core.cpu.rflags & AF != 0;
    let (low, high) = if adjust { (6, 0x100) } else { (0, 0) };
    let (al, status) = if add {
        alu::add(ax & 0xff, low, 0, 1)
    } else {
        alu::sub(ax & 0xff, low, 0, 1)
    };
    let whole = if add {
        ax + high + low
    } else {
        ax.wrapping_sub(high + low)
    };
    write_reg(&mut core.cpu, 0, 2, whole & 0xff00 | al & 15);
    // SF, ZF, PF and OF are undefined.
    let carry = if adjust { AF | CF } else { 0 };
    set_status(core, status & !(AF | CF) | carry);
    Ok(())
}

/// `daa` and `das`.
pub(super) fn decimal_adjust(core: &mut Core, f: fn(u8, u64) -> (u8, u64)) -> Exec {
    let (r, status) = f(core.cpu.gpr[0] as u8, core.cpu.rflags);
    write_reg(&mut core.cpu, 0, 1, u64::from(r));
    set_status(core, status);
    Ok(())
}

pub(super) fn aam(core: &mut Core, i: &Instruction) -> Exec {
    let base = i.immediate(0) & 0xff;
    let al = core.cpu.gpr[0] & 0xff;
    let (Some(q), Some(r)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(Exception::new(exception::DE).into());
    };
    write_reg(&mut core.cpu, 0, 2, q << 8 | r);
    set_status(core, alu::szp(r, 1));
    Ok(())
}

pub(super) fn aad(core: &mut Core, i: &Instruction) -> Exec {
    let base = i.immediate(0) & 0xff;
    let ax = core.cpu.gpr[0] & 0xffff;
    let (r, status) = alu::add(ax & 0xff, (ax >> 8) * base, 0, 1);
    write_reg(&mut core.cpu, 0, 2, r);
    set_status(core, status);
    Ok(())
}

/// `salc` (undocumented): AL = CF ? 0xff : 0.
pub(super) fn salc(core: &mut Core) -> Exec {
    let v = (core.cpu.rflags & CF).wrapping_neg();
    write_reg(&mut core.cpu, 0, 1, v);
    Ok(())
}

pub(super) fn xlat(core: &mut Core, i: &Instruction) -> Exec {
    let la = linear_memory(core, i, 1, false)?;
    let v = core.read(la, 1)?;
    write_reg(&mut core.cpu, 0, 1, v);
    Ok(())
}

/// `bound`: #BR if the signed index lies outside the two bounds in memory.
pub(super) fn bound(core: &mut Core, i: &Instruction) -> Exec {
    let r = i.op0_register();
    let size = gpr_size(r);
    let la = linear_memory(core, i, 2 * size, false)?;
    let both = core.read(la, size)? | read_second(core, la, size)? << (8 * size);
    let signed = |v: u64| sign_extend(v & mask(size), size) as i64;
    let index = signed(read_gpr(&core.cpu, r));
    if index < signed(both) || index > signed(both >> (8 * size)) {
        return Err(Exception::new(exception::BR).into());
    }
    Ok(())
}

fn read_second(core: &mut Core, la: u64, size: usize) -> Exec<u64> {
    core.read(la.wrapping_add(size as u64) & 0xffff_ffff, size)
}

/// `lahf`.
pub(super) fn lahf(core: &mut Core) -> Exec {
    let ah = core.cpu.rflags & 0xff | 2;
    write_gpr(&mut core.cpu, Register::AH, ah);
    Ok(())
}

/// `sahf`.
pub(super) fn sahf(core: &mut Core) -> Exec {
    let ah = read_gpr(&core.cpu, Register::AH);
    set_flags(core, SF | ZF | AF | PF | CF, ah);
    Ok(())
}

/// `clflush`, `clflushopt`, `clwb`: nothing but the access check, which is
/// that of a load.
pub(super) fn cache_line(core: &mut Core, i: &Instruction) -> Exec {
    let la = linear_memory(core, i, 1, false)?;
    core.host_run(la, false, 1)?;
    Ok(())
}

/// `pop` to a register or memory; segment registers are `system`'s.
pub(super) fn pop_operand(core: &mut Core, i: &Instruction) -> Exec {
    let size = operand_size(i, 0);
    let v = peek(core, 0, size)?;
    let old = core.cpu.gpr[4];
    set_sp(core, old.wrapping_add(size as u64));
    // An address that uses RSP sees it incremented; `pop rsp` overwrites it.
    let r = write_operand(core, i, 0, v);
    if r.is_err() {
        core.cpu.gpr[4] = old;
    }
    r
}

/// Whether the instruction has a segment register as its operand 0.
#[inline(always)]
pub(super) fn has_segment_operand(i: &Instruction) -> bool {
    i.op0_kind() == OpKind::Register && seg_index(i.op0_register()).is_some()
}

/// `push` of anything.
#[inline(always)]
pub(super) fn push_operand(core: &mut Core, i: &Instruction) -> Exec {
    let v = read_operand(core, i, 0)?;
    let size = match i.op0_kind() {
        OpKind::Register if gpr_size(i.op0_register()) != 0 => gpr_size(i.op0_register()),
        _ => i.stack_pointer_increment().unsigned_abs() as usize,
    };
    push(core, size, v)
}
