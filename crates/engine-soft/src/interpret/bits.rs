//! Bit instructions: `bt` and family, bit scans, BMI1, BMI2, ADX, `crc32`.

use arch::Exception;
use iced_x86::{Instruction, OpKind};

use super::alu;
use super::integer::set_status;
use super::operand::*;
use crate::core::{Core, Exec};
use crate::cpu::flag::{AF, CF, OF, PF, SF, STATUS, ZF};

/// What `bt` and family do to the bit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

/// `bt`, `bts`, `btr`, `btc`. A register offset into memory is signed and
/// reaches beyond the operand.
pub(super) fn bit_test(core: &mut Core, i: &Instruction, what: Bit) -> Exec {
    let offset = read_operand(core, i, 1)?;
    let change = |a: u64, bit: u64| match what {
        Bit::Test => a,
        Bit::Set => a | 1 << bit,
        Bit::Reset => a & !(1 << bit),
        Bit::Complement => a ^ 1 << bit,
    };
    let old;
    let bit;
    if i.op0_kind() == OpKind::Register {
        let r = i.op0_register();
        bit = offset & (8 * gpr_size(r) as u64 - 1);
        old = read_gpr(&core.cpu, r);
        if what != Bit::Test {
            write_gpr(&mut core.cpu, r, change(old, bit));
        }
    } else {
        let size = memory_size(i)?;
        bit = offset & (8 * size as u64 - 1);
        let la = bit_address(core, i, offset, size, what != Bit::Test)?;
        old = if what == Bit::Test {
            core.read(la, size)?
        } else {
            core.rmw(la, size, i.has_lock_prefix(), |a| change(a, bit))?
        };
    }
    set_flags(core, CF, old >> bit & 1);
    Ok(())
}

fn bit_address(core: &Core, i: &Instruction, offset: u64, size: usize, write: bool) -> Exec<u64> {
    if i.op1_kind() != OpKind::Register {
        return linear_memory(core, i, size, write);
    }
    let element = (sign_extend(offset, size) as i64) >> (3 + size.trailing_zeros());
    let bytes = (element as u64).wrapping_mul(size as u64);
    let ea = effective_address(core, i).wrapping_add(bytes) & address_mask(i);
    let s = data_segment(core, i);
    linear(core, s, ea, size, write)
}

/// `bsf` and `bsr`: a zero source leaves the destination alone. The other
/// flags are undefined; as AMD Zen leaves them.
pub(super) fn bit_scan(core: &mut Core, i: &Instruction, reverse: bool) -> Exec {
    let v = read_operand(core, i, 1)?;
    if v == 0 {
        set_status(core, ZF | PF);
        return Ok(());
    }
    let r = if reverse {
        63 - v.leading_zeros()
    } else {
        v.trailing_zeros()
    };
    write_gpr(&mut core.cpu, i.op0_register(), u64::from(r));
    set_status(core, alu::parity(u64::from(r)));
    Ok(())
}

/// `tzcnt` and `lzcnt`. SF, AF and PF are undefined and cleared, OF stays.
pub(super) fn count_zeros(core: &mut Core, i: &Instruction, leading: bool) -> Exec {
    let v = read_operand(core, i, 1)?;
    let d = i.op0_register();
    let bits = 8 * gpr_size(d) as u32;
    let n = if leading {
        v.leading_zeros() - (64 - bits)
    } else {
        v.trailing_zeros().min(bits)
    };
    write_gpr(&mut core.cpu, d, u64::from(n));
    let f = if v == 0 { CF } else { 0 } | if n == 0 { ZF } else { 0 };
    set_flags(core, STATUS & !OF, f);
    Ok(())
}

pub(super) fn popcnt(core: &mut Core, i: &Instruction) -> Exec {
    let v = read_operand(core, i, 1)?;
    write_gpr(&mut core.cpu, i.op0_register(), u64::from(v.count_ones()));
    set_status(core, if v == 0 { ZF } else { 0 });
    Ok(())
}

/// VEX-encoded instructions do not exist in real and virtual-8086 mode.
fn needs_protected(core: &Core) -> Exec {
    if !core.cpu.protected() || core.cpu.v86() {
        return Err(Exception::ud().into());
    }
    Ok(())
}

/// BMI instructions with one result: `f(operand 1, operand 2, size)` gives it
/// and the status flags; operand 2 is 0 if there is none.
#[inline(always)]
pub(super) fn bmi(
    core: &mut Core,
    i: &Instruction,
    f: impl Fn(u64, u64, usize) -> (u64, u64),
) -> Exec {
    let r = plain_bmi(core, i, &f)?;
    set_status(core, r);
    Ok(())
}

/// As [`bmi`], for those that leave the flags alone.
#[inline(always)]
pub(super) fn bmi_no_flags(
    core: &mut Core,
    i: &Instruction,
    f: impl Fn(u64, u64, usize) -> u64,
) -> Exec {
    plain_bmi(core, i, |a, b, size| (f(a, b, size), 0))?;
    Ok(())
}

#[inline(always)]
fn plain_bmi(
    core: &mut Core,
    i: &Instruction,
    f: impl Fn(u64, u64, usize) -> (u64, u64),
) -> Exec<u64> {
    needs_protected(core)?;
    let a = read_operand(core, i, 1)?;
    let b = if i.op_count() > 2 {
        read_operand(core, i, 2)?
    } else {
        0
    };
    let d = i.op0_register();
    let (r, status) = f(a, b, gpr_size(d));
    write_gpr(&mut core.cpu, d, r);
    Ok(status)
}

pub(super) fn andn(a: u64, b: u64, size: usize) -> (u64, u64) {
    alu::logic(!a & b, size)
}

/// `bextr`; SF and AF (and PF) are undefined: as AMD Zen leaves them.
pub(super) fn bextr(v: u64, control: u64, _size: usize) -> (u64, u64) {
    let (start, len) = (control & 0xff, control >> 8 & 0xff);
    let r = if start < 64 { v >> start } else { 0 };
    let r = if len < 64 { r & ((1 << len) - 1) } else { r };
    (r, if r == 0 { ZF } else { 0 } | AF | alu::parity(r))
}

pub(super) fn blsi(v: u64, _: u64, size: usize) -> (u64, u64) {
    let (r, f) = alu::logic(v & v.wrapping_neg(), size);
    (r, f | if v != 0 { CF } else { 0 })
}

pub(super) fn blsmsk(v: u64, _: u64, size: usize) -> (u64, u64) {
    let (r, f) = alu::logic(v ^ v.wrapping_sub(1), size);
    (r, f | if v == 0 { CF } else { 0 })
}

pub(super) fn blsr(v: u64, _: u64, size: usize) -> (u64, u64) {
    let (r, f) = alu::logic(v & v.wrapping_sub(1), size);
    (r, f | if v == 0 { CF } else { 0 })
}

pub(super) fn bzhi(v: u64, index: u64, size: usize) -> (u64, u64) {
    let n = index & 0xff;
    let over = n >= 8 * size as u64;
    let r = if over { v } else { v & ((1 << n) - 1) };
    let (r, f) = alu::logic(r, size);
    (r, f | if over { CF } else { 0 })
}

pub(super) fn rorx(v: u64, count: u64, size: usize) -> u64 {
    if size == 8 {
        v.rotate_right(count as u32 & 63)
    } else {
        u64::from((v as u32).rotate_right(count as u32 & 31))
    }
}

fn count(c: u64, size: usize) -> u64 {
    c & (8 * size as u64 - 1)
}

pub(super) fn sarx(v: u64, c: u64, size: usize) -> u64 {
    ((sign_extend(v, size) as i64) >> count(c, size)) as u64
}

pub(super) fn shlx(v: u64, c: u64, size: usize) -> u64 {
    v << count(c, size)
}

pub(super) fn shrx(v: u64, c: u64, size: usize) -> u64 {
    v >> count(c, size)
}

/// `mulx`: high half to operand 0, low half to operand 1; if they are the
/// same, the high half stays.
pub(super) fn mulx(core: &mut Core, i: &Instruction) -> Exec {
    needs_protected(core)?;
    let (dh, dl) = (i.op0_register(), i.op1_register());
    let size = gpr_size(dh);
    let b = read_operand(core, i, 2)?;
    let (low, high, _) = alu::mul(read_reg(&core.cpu, 2, size), b, size);
    write_gpr(&mut core.cpu, dl, low);
    write_gpr(&mut core.cpu, dh, high);
    Ok(())
}

/// `adcx` (carry flag CF) and `adox` (OF).
pub(super) fn add_carry_flag(core: &mut Core, i: &Instruction, flag: u64) -> Exec {
    let b = read_operand(core, i, 1)?;
    let d = i.op0_register();
    let carry = u64::from(core.cpu.rflags & flag != 0);
    let (r, f) = alu::add(read_gpr(&core.cpu, d), b, carry, gpr_size(d));
    write_gpr(&mut core.cpu, d, r);
    set_flags(core, flag, if f & CF != 0 { flag } else { 0 });
    Ok(())
}

pub(super) fn crc32(core: &mut Core, i: &Instruction) -> Exec {
    let size = operand_size(i, 1);
    let v = read_operand(core, i, 1)?;
    let d = i.op0_register();
    let r = alu::crc32c(read_gpr(&core.cpu, d) as u32, v, size);
    write_gpr(&mut core.cpu, d, u64::from(r));
    Ok(())
}

/// `rdrand` and `rdseed`: from the host's random number generator.
pub(super) fn random(core: &mut Core, i: &Instruction) -> Exec {
    let mut b = [0u8; 8];
    // SAFETY: `b` is 8 writable bytes.
    let n = unsafe { libc::getrandom(b.as_mut_ptr().cast(), b.len(), libc::GRND_NONBLOCK) };
    let ok = n == 8;
    let v = if ok { u64::from_le_bytes(b) } else { 0 };
    let d = i.op0_register();
    write_gpr(&mut core.cpu, d, v & mask(gpr_size(d)));
    set_flags(core, CF | OF | SF | ZF | AF | PF, u64::from(ok));
    Ok(())
}
