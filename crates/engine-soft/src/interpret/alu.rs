//! Arithmetic and its flags, in plain Rust: independent of the host CPU, so
//! that it can be checked against it. Operands have `size` bytes (1, 2, 4 or
//! 8) and are zero-extended; results are too. Flags are RFLAGS bits.
//!
//! Where the manuals leave a flag undefined, it is as AMD Zen leaves it
//! (measured).

use crate::cpu::flag::{AF, CF, OF, PF, SF, ZF};
use crate::interpret::operand::{mask, sign_extend};

/// Sign bit of an operand.
#[inline(always)]
pub(crate) const fn sign_bit(size: usize) -> u64 {
    1 << ((8 * size - 1) & 63)
}

/// Parity flag of a result: its low byte has an even number of ones.
#[inline(always)]
pub(crate) const fn parity(r: u64) -> u64 {
    if (r as u8).count_ones() & 1 == 0 {
        PF
    } else {
        0
    }
}

/// ZF, SF and PF of a result.
#[inline(always)]
pub(crate) fn szp(r: u64, size: usize) -> u64 {
    let z = if r == 0 { ZF } else { 0 };
    let s = r >> (8 * size - 1) << 7 & SF;
    z | s | parity(r)
}

#[inline(always)]
const fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// Result and all six status flags of `a + b + carry`.
#[inline(always)]
pub(crate) fn add(a: u64, b: u64, carry: u64, size: usize) -> (u64, u64) {
    let (b, m) = (b & mask(size), mask(size));
    let r = a.wrapping_add(b).wrapping_add(carry) & m;
    // Carry out of each bit.
    let c = a & b | (a | b) & !r;
    let top = 8 * size - 1;
    let o = (a ^ r) & (b ^ r);
    let f = c >> top & 1 | (c & 8) << 1 | (o >> top & 1) << 11;
    (r, f | szp(r, size))
}

/// Result and all six status flags of `a - b - borrow`.
#[inline(always)]
pub(crate) fn sub(a: u64, b: u64, borrow: u64, size: usize) -> (u64, u64) {
    let (b, m) = (b & mask(size), mask(size));
    let r = a.wrapping_sub(b).wrapping_sub(borrow) & m;
    // Borrow out of each bit.
    let c = !a & b | (!a | b) & r;
    let top = 8 * size - 1;
    let o = (a ^ b) & (a ^ r);
    let f = c >> top & 1 | (c & 8) << 1 | (o >> top & 1) << 11;
    (r, f | szp(r, size))
}

/// Flags of a logical result: CF, OF and AF are clear.
#[inline(always)]
pub(crate) fn logic(r: u64, size: usize) -> (u64, u64) {
    let r = r & mask(size);
    (r, szp(r, size))
}

/// Flags of a shift: which bits of RFLAGS change, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Bits that change.
    pub(crate) which: u64,
    /// Their new values.
    pub(crate) value: u64,
}

impl Change {
    const NONE: Self = Self { which: 0, value: 0 };
}

/// Shifts and rotates, by their encoding in ModRM.reg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// A shift or rotate by `count` (masked here); `cf` is 0 or 1.
#[inline]
pub(crate) fn shift(kind: Shift, a: u64, count: u64, cf: u64, size: usize) -> (u64, Change) {
    let count = count as u32 & if size == 8 { 63 } else { 31 };
    if count == 0 {
        return (a, Change::NONE);
    }
    match kind {
        Shift::Shl | Shift::Shr | Shift::Sar => straight(kind, a, count, size),
        Shift::Rol | Shift::Ror => rotate(kind, a, count, size),
        Shift::Rcl | Shift::Rcr => rotate_carry(kind, a, count, cf, size),
    }
}

fn straight(kind: Shift, a: u64, count: u32, size: usize) -> (u64, Change) {
    let bits = 8 * size as u32;
    let m = mask(size);
    let (r, c) = match kind {
        Shift::Shl => {
            let wide = u128::from(a) << count;
            (wide as u64 & m, wide >> bits & 1 != 0)
        }
        Shift::Shr => {
            let wide = (u128::from(a) << 64) >> count;
            ((wide >> 64) as u64, wide >> 63 & 1 != 0)
        }
        _ => {
            let s = sign_extend(a, size) as i64;
            let r = (i128::from(s) << 64) >> count;
            ((r >> 64) as u64 & m, r >> 63 & 1 != 0)
        }
    };
    let top = sign_bit(size);
    let o = match kind {
        Shift::Shl => (r & top != 0) != c,
        _ => (r & top != 0) != (r & top >> 1 != 0),
    };
    let value = szp(r, size) | AF | when(c, CF) | when(o, OF);
    let which = CF | OF | SF | ZF | PF | AF;
    (r, Change { which, value })
}

fn rotate(kind: Shift, a: u64, count: u32, size: usize) -> (u64, Change) {
    let bits = 8 * size as u32;
    let n = count % bits;
    let left = if kind == Shift::Rol {
        n
    } else {
        (bits - n) % bits
    };
    let r = if left == 0 {
        a
    } else {
        (a << left | a >> (bits - left)) & mask(size)
    };
    let top = r & sign_bit(size) != 0;
    let (c, o) = if kind == Shift::Rol {
        let c = r & 1 != 0;
        (c, top != c)
    } else {
        (top, top != (r & sign_bit(size) >> 1 != 0))
    };
    let value = when(c, CF) | when(o, OF);
    (
        r,
        Change {
            which: CF | OF,
            value,
        },
    )
}

fn rotate_carry(kind: Shift, a: u64, count: u32, cf: u64, size: usize) -> (u64, Change) {
    let bits = 8 * size as u32;
    let n = count % (bits + 1);
    let left = if kind == Shift::Rcl {
        n
    } else {
        (bits + 1 - n) % (bits + 1)
    };
    // The carry is the bit above the operand.
    let wide = u128::from(a) | u128::from(cf & 1) << bits;
    let turned = if left == 0 {
        wide
    } else {
        wide << left | wide >> (bits + 1 - left)
    };
    let r = turned as u64 & mask(size);
    let c = turned >> bits & 1 != 0;
    let top = r & sign_bit(size) != 0;
    let o = if kind == Shift::Rcl {
        top != c
    } else {
        top != (r & sign_bit(size) >> 1 != 0)
    };
    let value = when(c, CF) | when(o, OF);
    (
        r,
        Change {
            which: CF | OF,
            value,
        },
    )
}

/// `shld` (`left`) or `shrd`: shifts `a`, filling from `b`. 16-bit counts over
/// 16 are undefined; then the filler goes around, as on AMD.
pub(crate) fn double_shift(left: bool, a: u64, b: u64, count: u64, size: usize) -> (u64, Change) {
    let count = count as u32 & if size == 8 { 63 } else { 31 };
    if count == 0 {
        return (a, Change::NONE);
    }
    let bits = 8 * size as u32;
    let m = mask(size);
    let top = sign_bit(size);
    let n = if count > bits { count - bits } else { count };
    let (a, b, over) = if count > bits {
        (b, b, true)
    } else {
        (a, b, false)
    };
    let (r, c, o) = if left {
        let wide = u128::from(a) << bits | u128::from(b);
        let r = (wide << n >> bits) as u64 & m;
        let c = !over && a >> (bits - n) & 1 != 0;
        (r, c, (r & top != 0) != c)
    } else {
        let wide = u128::from(b) << bits | u128::from(a);
        let r = (wide >> n) as u64 & m;
        let c = !over && a >> (n - 1) & 1 != 0;
        (r, c, (r & top != 0) != (r & top >> 1 != 0))
    };
    let value = szp(r, size) | AF | when(c, CF) | when(o, OF);
    let which = CF | OF | SF | ZF | PF | AF;
    (r, Change { which, value })
}

/// Unsigned product: low half, high half, and whether the high half is
/// significant (CF and OF).
#[inline]
pub(crate) fn mul(a: u64, b: u64, size: usize) -> (u64, u64, bool) {
    let p = u128::from(a) * u128::from(b);
    let low = p as u64 & mask(size);
    let high = (p >> (8 * size)) as u64 & mask(size);
    (low, high, high != 0)
}

/// Signed product: low half, high half, and whether the low half alone is not
/// the product (CF and OF).
#[inline]
pub(crate) fn imul(a: u64, b: u64, size: usize) -> (u64, u64, bool) {
    let (a, b) = (sign_extend(a, size) as i64, sign_extend(b, size) as i64);
    let p = i128::from(a) * i128::from(b);
    let low = p as u64 & mask(size);
    let high = (p >> (8 * size)) as u64 & mask(size);
    (low, high, p != i128::from(sign_extend(low, size) as i64))
}

/// Unsigned division of `high:low`: quotient and remainder; `None` is #DE.
#[inline]
pub(crate) fn div(high: u64, low: u64, d: u64, size: usize) -> Option<(u64, u64)> {
    if d == 0 || high >= d {
        return None;
    }
    if size < 8 {
        let n = high << (8 * size) | low;
        return Some((n / d, n % d));
    }
    if high == 0 {
        return Some((low / d, low % d));
    }
    let n = u128::from(high) << 64 | u128::from(low);
    let d = u128::from(d);
    Some(((n / d) as u64, (n % d) as u64))
}

/// Signed division of `high:low`: quotient and remainder; `None` is #DE.
#[inline]
pub(crate) fn idiv(high: u64, low: u64, d: u64, size: usize) -> Option<(u64, u64)> {
    let d = i128::from(sign_extend(d, size) as i64);
    let n = if size < 8 {
        i128::from(sign_extend(high << (8 * size) | low, 2 * size) as i64)
    } else {
        (u128::from(high) << 64 | u128::from(low)) as i128
    };
    let (q, r) = (n.checked_div(d)?, n.checked_rem(d)?);
    let low = q as u64 & mask(size);
    (i128::from(sign_extend(low, size) as i64) == q).then_some((low, r as u64 & mask(size)))
}

/// `daa`: new AL and flags.
pub(crate) fn daa(al: u8, flags: u64) -> (u8, u64) {
    let (low, high, by) = correction(al, flags);
    let (r, f) = add(u64::from(al), by, 0, 1);
    // OF is undefined: that of the addition.
    (r as u8, f & !(AF | CF) | when(low, AF) | when(high, CF))
}

/// `das`: new AL and flags.
pub(crate) fn das(al: u8, flags: u64) -> (u8, u64) {
    let (low, high, by) = correction(al, flags);
    let (r, f) = sub(u64::from(al), by, 0, 1);
    // A borrow of the low-digit correction sets CF too.
    let carry = high || low && al < 6;
    (r as u8, f & !(AF | CF) | when(low, AF) | when(carry, CF))
}

/// Which digits of a decimal sum need correction, and the correction.
fn correction(al: u8, flags: u64) -> (bool, bool, u64) {
    let low = al & 15 > 9 || flags & AF != 0;
    let high = al > 0x99 || flags & CF != 0;
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    (low, high, by)
}

/// Deposits the low bits of `v` at the ones of `m` (`pdep`).
pub(crate) fn pdep(v: u64, mut m: u64) -> u64 {
    let (mut r, mut bit) = (0, 0);
    while m != 0 {
        let lowest = m & m.wrapping_neg();
        if v >> bit & 1 != 0 {
            r |= lowest;
        }
        bit += 1;
        m ^= lowest;
    }
    r
}

/// Gathers the bits of `v` at the ones of `m` (`pext`).
pub(crate) fn pext(v: u64, mut m: u64) -> u64 {
    let (mut r, mut bit) = (0, 0);
    while m != 0 {
        let lowest = m & m.wrapping_neg();
        if v & lowest != 0 {
            r |= 1 << bit;
        }
        bit += 1;
        m ^= lowest;
    }
    r
}

/// CRC-32C (polynomial 0x11EDC6F41, reflected) of the low `size` bytes.
pub(crate) fn crc32c(crc: u32, v: u64, size: usize) -> u32 {
    let mut crc = crc;
    for byte in v.to_le_bytes().into_iter().take(size) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    crc
}

/// Conditions of Jcc, SETcc and CMOVcc, by their low four opcode bits.
#[inline(always)]
pub(crate) fn condition(cc: u8, f: u64) -> bool {
    let r = match cc >> 1 {
        0 => f & OF != 0,
        1 => f & CF != 0,
        2 => f & ZF != 0,
        3 => f & (CF | ZF) != 0,
        4 => f & SF != 0,
        5 => f & PF != 0,
        6 => (f & SF != 0) != (f & OF != 0),
        _ => f & ZF != 0 || (f & SF != 0) != (f & OF != 0),
    };
    r != (cc & 1 != 0)
}
