//! Operands: registers of all sizes, effective addresses, segmentation, and
//! the stack. Shared with `system` and `native`.

use arch::{Exception, exception};
use iced_x86::{Instruction, OpKind, Register};

use crate::core::{Core, Exec};
use crate::cpu::{Cpu, flag, seg};

/// Bits of an operand of 0, 1, 2, 4 or 8 bytes, by its size.
const MASKS: [u64; 9] = [
    0,
    0xff,
    0xffff,
    0xff_ffff,
    0xffff_ffff,
    0,
    0,
    0,
    0xffff_ffff_ffff_ffff,
];

/// Mask of an operand of `size` bytes (1, 2, 4 or 8).
#[inline(always)]
pub(crate) const fn mask(size: usize) -> u64 {
    MASKS[if size < 9 { size } else { 8 }]
}

/// Sign-extends the low `size` bytes to 64 bits.
#[inline(always)]
pub(crate) const fn sign_extend(v: u64, size: usize) -> u64 {
    let shift = (64 - 8 * (size as u32)) & 63;
    ((v << shift) as i64 >> shift) as u64
}

/// Where a general register lives.
#[derive(Clone, Copy)]
struct Place {
    /// Index into `Cpu::gpr`.
    index: u8,
    /// Bit position: 8 for AH to BH.
    shift: u8,
    /// Bytes; 0: not a general register.
    size: u8,
}

const PLACES: [Place; 256] = places();

const fn places() -> [Place; 256] {
    let mut t = [Place {
        index: 0,
        shift: 0,
        size: 0,
    }; 256];
    let mut n = 0;
    while n < 16 {
        // Byte registers: four low ones, four high ones, then SPL to R15L.
        let at = Register::AL as usize + if n < 4 { n } else { n + 4 };
        t[at] = Place {
            index: n as u8,
            shift: 0,
            size: 1,
        };
        t[Register::AX as usize + n] = Place {
            index: n as u8,
            shift: 0,
            size: 2,
        };
        t[Register::EAX as usize + n] = Place {
            index: n as u8,
            shift: 0,
            size: 4,
        };
        t[Register::RAX as usize + n] = Place {
            index: n as u8,
            shift: 0,
            size: 8,
        };
        n += 1;
    }
    n = 0;
    while n < 4 {
        t[Register::AH as usize + n] = Place {
            index: n as u8,
            shift: 8,
            size: 1,
        };
        n += 1;
    }
    t
}

/// Size in bytes of a general register; 0 if it is none.
#[inline(always)]
pub(crate) fn gpr_size(reg: Register) -> usize {
    PLACES[reg as usize & 255].size as usize
}

/// Value of a general register, zero-extended (0 for `Register::None`).
#[inline(always)]
pub(crate) fn read_gpr(cpu: &Cpu, reg: Register) -> u64 {
    let p = PLACES[reg as usize & 255];
    cpu.gpr[p.index as usize & 15] >> p.shift & mask(p.size as usize)
}

/// Writes a general register: 32-bit writes zero-extend, 8- and 16-bit writes
/// leave the rest. Other registers are left alone.
#[inline(always)]
pub(crate) fn write_gpr(cpu: &mut Cpu, reg: Register, value: u64) {
    let p = PLACES[reg as usize & 255];
    write_index(
        cpu,
        p.index as usize,
        p.shift as u32,
        p.size as usize,
        value,
    );
}

#[inline(always)]
fn write_index(cpu: &mut Cpu, index: usize, shift: u32, size: usize, value: u64) {
    let r = &mut cpu.gpr[index & 15];
    match size {
        8 => *r = value,
        4 => *r = value & 0xffff_ffff,
        0 => {}
        _ => {
            let m = mask(size) << shift;
            *r = *r & !m | value << shift & m;
        }
    }
}

/// Low `size` bytes of general register `index`.
#[inline(always)]
pub(crate) fn read_reg(cpu: &Cpu, index: usize, size: usize) -> u64 {
    cpu.gpr[index & 15] & mask(size)
}

/// Writes the low `size` bytes of general register `index`, as an instruction
/// of that operand size does.
#[inline(always)]
pub(crate) fn write_reg(cpu: &mut Cpu, index: usize, size: usize, value: u64) {
    write_index(cpu, index, 0, size, value);
}

/// Number of a segment register (see `cpu::seg`), if it is one.
#[inline]
pub(crate) fn seg_index(reg: Register) -> Option<usize> {
    let n = (reg as usize).wrapping_sub(Register::ES as usize);
    (n < 6).then_some(n)
}

/// The address of the next instruction, wrapped to the current mode.
#[inline(always)]
pub(crate) fn next_ip(core: &Core, i: &Instruction) -> u64 {
    wrap_ip(core, core.cpu.rip.wrapping_add(i.len() as u64))
}

/// Wraps an instruction pointer to 16 or 32 bits outside 64-bit mode.
#[inline(always)]
pub(crate) fn wrap_ip(core: &Core, ip: u64) -> u64 {
    match core.cpu.bits {
        64 => ip,
        32 => ip & 0xffff_ffff,
        _ => ip & 0xffff,
    }
}

/// Whether bits 63 to 47 are equal (4-level paging).
#[inline(always)]
pub(crate) const fn canonical(a: u64) -> bool {
    (a as i64) << 16 >> 16 == a as i64
}

/// Checks that a near branch may go to `target`.
///
/// # Errors
/// #GP(0): not canonical, or beyond the limit of CS.
#[inline]
pub(crate) fn check_target(core: &Core, target: u64) -> Exec {
    let ok = if core.cpu.is64() {
        canonical(target)
    } else {
        target <= u64::from(core.cpu.seg[seg::CS].limit)
    };
    if ok {
        Ok(())
    } else {
        Err(Exception::gp0().into())
    }
}

/// Mask of the address size of the instruction's memory operand.
#[inline(always)]
pub(crate) fn address_mask(i: &Instruction) -> u64 {
    let base = i.memory_base();
    let size = match gpr_size(base) {
        0 if base == Register::RIP => 8,
        0 if base == Register::EIP => 4,
        0 => match gpr_size(i.memory_index()) {
            0 | 1 => i.memory_displ_size() as usize,
            n => n,
        },
        n => n,
    };
    match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Offset of the memory operand in its segment. A vector index register
/// (gather) counts as zero.
#[inline(always)]
pub(crate) fn effective_address(core: &Core, i: &Instruction) -> u64 {
    let base = i.memory_base();
    let disp = i.memory_displacement64();
    if matches!(base, Register::RIP | Register::EIP) {
        return disp;
    }
    let mut ea = disp;
    if base != Register::None {
        ea = ea.wrapping_add(read_gpr(&core.cpu, base));
    }
    let index = i.memory_index();
    if index != Register::None {
        let scale = i.memory_index_scale();
        ea = ea.wrapping_add(read_gpr(&core.cpu, index).wrapping_mul(u64::from(scale)));
    }
    ea & address_mask(i)
}

/// Exception for a bad access through segment `s`: #SS(0) or #GP(0).
#[cold]
fn segment_fault(s: usize) -> Exception {
    if s == seg::SS {
        Exception::with_error(exception::SS, 0)
    } else {
        Exception::gp0()
    }
}

/// Linear address of `size` bytes at an offset in a segment, with the checks
/// of the current mode: canonical address in 64-bit mode, otherwise usable
/// segment, its type and its limit.
///
/// # Errors
/// #GP(0); #SS(0) for SS.
#[inline(always)]
pub(crate) fn linear(core: &Core, s: usize, offset: u64, size: usize, write: bool) -> Exec<u64> {
    if core.cpu.is64() {
        let la = if s >= seg::FS {
            offset.wrapping_add(core.cpu.seg[s].base)
        } else {
            offset
        };
        if canonical(la) && canonical(la.wrapping_add(size as u64).wrapping_sub(1)) {
            return Ok(la);
        }
        return Err(segment_fault(s).into());
    }
    linear_legacy(core, s, offset, size, write)
}

fn linear_legacy(core: &Core, s: usize, offset: u64, size: usize, write: bool) -> Exec<u64> {
    let g = &core.cpu.seg[s];
    let r = g.rights;
    let mut expand_down = false;
    if core.cpu.protected() && !core.cpu.v86() {
        let code = r & 8 != 0;
        let unusable = r >> 16 & 1 != 0 || r & 0x80 == 0;
        // Type bit 1: a code segment is readable, a data segment writable.
        let open = if write {
            !code && r & 2 != 0
        } else {
            !code || r & 2 != 0
        };
        if unusable || !open {
            return Err(segment_fault(s).into());
        }
        expand_down = !code && r & 4 != 0;
    }
    let limit = u64::from(g.limit);
    let last = offset.wrapping_add(size as u64).wrapping_sub(1);
    let ok = if expand_down {
        let top = if g.big() { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit || limit == 0xffff_ffff
    };
    if !ok {
        return Err(segment_fault(s).into());
    }
    Ok(g.base.wrapping_add(offset) & 0xffff_ffff)
}

/// Segment of the ordinary memory operand. In 64-bit mode prefixes other than
/// FS and GS count for nothing: the base register decides which fault a
/// non-canonical address raises.
#[inline(always)]
pub(crate) fn data_segment(core: &Core, i: &Instruction) -> usize {
    let r = i.memory_segment();
    if core.cpu.is64() && !matches!(r, Register::FS | Register::GS) {
        return match i.memory_base() {
            Register::RSP | Register::RBP | Register::ESP | Register::EBP => seg::SS,
            _ => seg::DS,
        };
    }
    seg_index(r).unwrap_or(seg::DS)
}

/// Segment and offset of operand `op`, which is in memory (string operands
/// included).
#[inline]
pub(crate) fn segment_offset(core: &Core, i: &Instruction, op: u32) -> (usize, u64) {
    let c = &core.cpu;
    let source = |m: u64| {
        let s = seg_index(i.memory_segment()).unwrap_or(seg::DS);
        (s, c.gpr[6] & m)
    };
    match i.op_kind(op) {
        OpKind::MemorySegSI => source(0xffff),
        OpKind::MemorySegESI => source(0xffff_ffff),
        OpKind::MemorySegRSI => source(u64::MAX),
        OpKind::MemorySegDI => (source(0).0, c.gpr[7] & 0xffff),
        OpKind::MemorySegEDI => (source(0).0, c.gpr[7] & 0xffff_ffff),
        OpKind::MemorySegRDI => (source(0).0, c.gpr[7]),
        OpKind::MemoryESDI => (seg::ES, c.gpr[7] & 0xffff),
        OpKind::MemoryESEDI => (seg::ES, c.gpr[7] & 0xffff_ffff),
        OpKind::MemoryESRDI => (seg::ES, c.gpr[7]),
        _ => (data_segment(core, i), effective_address(core, i)),
    }
}

/// Linear address of memory operand `op` for an access of `size` bytes, with
/// all segment checks.
///
/// # Errors
/// #GP(0), #SS(0).
#[inline]
pub(crate) fn linear_operand(
    core: &Core,
    i: &Instruction,
    op: u32,
    size: usize,
    write: bool,
) -> Exec<u64> {
    let (s, offset) = segment_offset(core, i, op);
    linear(core, s, offset, size, write)
}

/// Linear address of the one ordinary memory operand of the instruction (not
/// a string operand).
#[inline(always)]
pub(crate) fn linear_memory(core: &Core, i: &Instruction, size: usize, write: bool) -> Exec<u64> {
    let s = data_segment(core, i);
    linear(core, s, effective_address(core, i), size, write)
}

/// Size in bytes of operand `op`: of the register, of the memory operand, or
/// of the immediate or branch target as encoded (after sign extension).
#[inline]
pub(crate) fn operand_size(i: &Instruction, op: u32) -> usize {
    match i.op_kind(op) {
        OpKind::Register => {
            let r = i.op_register(op);
            match gpr_size(r) {
                0 if seg_index(r).is_some() => 2,
                0 => r.size(),
                n => n,
            }
        }
        OpKind::Immediate8 | OpKind::Immediate8_2nd => 1,
        OpKind::Immediate16 | OpKind::Immediate8to16 | OpKind::NearBranch16 => 2,
        OpKind::Immediate32 | OpKind::Immediate8to32 | OpKind::NearBranch32 => 4,
        OpKind::Immediate64
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64
        | OpKind::NearBranch64 => 8,
        _ => i.memory_size().size(),
    }
}

/// Value of operand `op`: a general or segment register, memory of 1, 2, 4 or
/// 8 bytes (zero-extended), or an immediate (sign-extended as encoded).
///
/// # Errors
/// What the load raises; #UD for operands of other kinds or sizes.
#[inline]
pub(crate) fn read_operand(core: &mut Core, i: &Instruction, op: u32) -> Exec<u64> {
    match i.op_kind(op) {
        OpKind::Register => {
            let r = i.op_register(op);
            if gpr_size(r) != 0 {
                return Ok(read_gpr(&core.cpu, r));
            }
            match seg_index(r) {
                Some(n) => Ok(u64::from(core.cpu.seg[n].selector)),
                None => Err(Exception::ud().into()),
            }
        }
        OpKind::Memory => {
            let size = memory_size(i)?;
            let la = linear_memory(core, i, size, false)?;
            core.read(la, size)
        }
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Ok(i.immediate(op)),
        _ => {
            let size = memory_size(i)?;
            let la = linear_operand(core, i, op, size, false)?;
            core.read(la, size)
        }
    }
}

/// Writes operand `op`: a general register or memory of 1, 2, 4 or 8 bytes.
///
/// # Errors
/// What the store raises; #UD for operands of other kinds or sizes.
#[inline]
pub(crate) fn write_operand(core: &mut Core, i: &Instruction, op: u32, value: u64) -> Exec {
    if i.op_kind(op) == OpKind::Register {
        let r = i.op_register(op);
        if gpr_size(r) == 0 {
            return Err(Exception::ud().into());
        }
        write_gpr(&mut core.cpu, r, value);
        return Ok(());
    }
    let size = memory_size(i)?;
    let la = linear_operand(core, i, op, size, true)?;
    core.write(la, size, value)
}

/// Size of the memory operand, which must be one that `Core::read` takes.
#[inline(always)]
pub(crate) fn memory_size(i: &Instruction) -> Exec<usize> {
    match i.memory_size().size() {
        n @ (1 | 2 | 4 | 8) => Ok(n),
        _ => Err(Exception::ud().into()),
    }
}

/// Bits of RSP that the stack uses: by 64-bit mode and SS.B.
#[inline(always)]
pub(crate) fn stack_mask(core: &Core) -> u64 {
    if core.cpu.is64() {
        u64::MAX
    } else if core.cpu.seg[seg::SS].big() {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// Sets the part of RSP that the stack uses.
#[inline(always)]
pub(crate) fn set_sp(core: &mut Core, sp: u64) {
    let m = stack_mask(core);
    core.cpu.gpr[4] = core.cpu.gpr[4] & !m | sp & m;
}

/// Pushes the low `size` (2, 4 or 8) bytes of a value.
///
/// # Errors
/// #SS, #PF; then nothing has changed.
#[inline]
pub(crate) fn push(core: &mut Core, size: usize, value: u64) -> Exec {
    let sp = core.cpu.gpr[4].wrapping_sub(size as u64) & stack_mask(core);
    let la = linear(core, seg::SS, sp, size, true)?;
    core.write(la, size, value)?;
    set_sp(core, sp);
    Ok(())
}

/// Reads `size` (2, 4 or 8) bytes at `above` bytes over the top of the stack,
/// without popping.
///
/// # Errors
/// #SS, #PF.
#[inline]
pub(crate) fn peek(core: &mut Core, above: u64, size: usize) -> Exec<u64> {
    let sp = core.cpu.gpr[4].wrapping_add(above) & stack_mask(core);
    let la = linear(core, seg::SS, sp, size, false)?;
    core.read(la, size)
}

/// Replaces the bits `which` of RFLAGS.
#[inline(always)]
pub(crate) fn set_flags(core: &mut Core, which: u64, value: u64) {
    core.cpu.rflags = core.cpu.rflags & !which | value & which | flag::ONE;
}
