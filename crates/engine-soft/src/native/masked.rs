//! Gathers and masked moves: only the elements that the mask selects touch
//! memory, so the operand cannot be copied as a whole.

use arch::Exception;
use iced_x86::{Instruction, OpKind, Register};

use super::form::{Form, Gather};
use super::{buffer, run, x87};
use crate::core::{Core, Exec};
use crate::cpu::seg;
use crate::interpret::operand;

/// Number of the vector register that is operand `op`.
fn vector(i: &Instruction, op: u32) -> usize {
    i.op_register(op).number() & 15
}

/// Element `n` of `size` (4 or 8) bytes of a vector register, sign-extended.
fn element(core: &Core, register: usize, n: usize, size: usize) -> i64 {
    let b = &core.cpu.ymm[register].0;
    let mut v = [0; 8];
    if let Some(e) = b.get(n * size..(n + 1) * size) {
        v[..size].copy_from_slice(e);
    }
    if size == 4 {
        i64::from(i64::from_le_bytes(v) as i32)
    } else {
        i64::from_le_bytes(v)
    }
}

fn set_element(core: &mut Core, register: usize, n: usize, size: usize, v: u64) {
    if let Some(e) = core.cpu.ymm[register].0.get_mut(n * size..(n + 1) * size) {
        e.copy_from_slice(&v.to_le_bytes()[..size]);
    }
}

/// VEX gathers (SDM vol. 2C, VPGATHERDD and the others): elements in order; a
/// fault keeps the elements already loaded and clears their mask.
pub(super) fn gather(core: &mut Core, i: &Instruction, shape: Gather) -> Exec {
    let (dest, mask, index) = (vector(i, 0), vector(i, 2), i.memory_index().number() & 15);
    if dest == mask || dest == index || mask == index {
        return Err(Exception::ud().into());
    }
    let s = operand::seg_index(i.memory_segment()).unwrap_or(seg::DS);
    let (size, index_size) = (usize::from(shape.element), usize::from(shape.index));
    let count = usize::from(shape.count);
    let base = match i.memory_base() {
        Register::None => 0,
        r => operand::read_gpr(&core.cpu, r),
    }
    .wrapping_add(i.memory_displacement64());
    let address_mask = vsib_address_mask(core, i);
    for n in 0..count {
        if element(core, mask, n, size) < 0 {
            let offset =
                element(core, index, n, index_size).wrapping_mul(i64::from(i.memory_index_scale()));
            let ea = base.wrapping_add(offset as u64) & address_mask;
            let la = operand::linear(core, s, ea, size, false)?;
            let v = core.read(la, size)?;
            set_element(core, dest, n, size, v);
        }
        set_element(core, mask, n, size, 0);
    }
    core.cpu.ymm[mask].0.fill(0);
    core.cpu.ymm[dest].0[count * size..].fill(0);
    Ok(())
}

/// Address size of a VSIB operand: that of its base register or displacement.
fn vsib_address_mask(core: &Core, i: &Instruction) -> u64 {
    let size = match i.memory_base() {
        Register::None => match i.memory_displ_size() {
            8 => 8,
            4 => 4,
            _ if core.cpu.is64() => 8,
            _ => 4,
        },
        r => operand::gpr_size(r),
    };
    if size == 4 { 0xffff_ffff } else { u64::MAX }
}

/// Address of a masked memory operand, of which `from..to` is accessed.
fn masked_address(
    core: &Core,
    i: &Instruction,
    op: u32,
    from: usize,
    to: usize,
    write: bool,
) -> Exec<u64> {
    let (s, offset) = operand::segment_offset(core, i, op);
    let la = operand::linear(core, s, offset.wrapping_add(from as u64), to - from, write)?;
    Ok(la.wrapping_sub(from as u64))
}

/// Calls `f` with every run of selected elements, as byte range.
fn runs(
    bytes: usize,
    size: usize,
    selected: impl Fn(usize) -> bool,
    mut f: impl FnMut(usize, usize) -> Exec,
) -> Exec {
    let n = bytes / size;
    let mut from = 0;
    while from < n {
        if !selected(from) {
            from += 1;
            continue;
        }
        let mut to = from + 1;
        while to < n && selected(to) {
            to += 1;
        }
        f(from * size, to * size)?;
        from = to;
    }
    Ok(())
}

/// `vmaskmov*`, `vpmaskmov*` that load: the selected elements go into the
/// buffer, then the host does the rest.
pub(super) fn load(core: &mut Core, i: &Instruction, form: &Form, size: u8, stub: u32) -> Exec {
    let size = usize::from(size);
    let mask = vector(i, 1);
    let bytes = if i.op_register(0).is_ymm() { 32 } else { 16 };
    let masks = core.cpu.ymm[mask];
    let mut b = [0; 32];
    runs(
        bytes,
        size,
        |n| masks.0[(n + 1) * size - 1] & 0x80 != 0,
        |from, to| {
            let la = masked_address(core, i, 2, from, to, false)?;
            core.read_bytes(la.wrapping_add(from as u64), &mut b[from..to])
        },
    )?;
    buffer(core)[..32].copy_from_slice(&b);
    run(core, form, stub)
}

/// `vmaskmov*`, `vpmaskmov*` that store.
pub(super) fn store(core: &mut Core, i: &Instruction, size: u8) -> Exec {
    let size = usize::from(size);
    let masks = core.cpu.ymm[vector(i, 1)];
    let data = core.cpu.ymm[vector(i, 2)];
    let bytes = if i.op_register(2).is_ymm() { 32 } else { 16 };
    let selected = |n: usize| masks.0[(n + 1) * size - 1] & 0x80 != 0;
    store_selected(core, i, size, &data.0[..bytes], selected)
}

/// `maskmovdqu`, `maskmovq`: bytes whose mask byte has its top bit set.
pub(super) fn byte_store(core: &mut Core, i: &Instruction) -> Exec {
    let (source, mask) = (i.op_register(1), i.op_register(2));
    if !source.is_mm() {
        let (data, masks) = (core.cpu.ymm[vector(i, 1)], core.cpu.ymm[vector(i, 2)]);
        return store_selected(core, i, 1, &data.0[..16], |n| masks.0[n] & 0x80 != 0);
    }
    let image = x87::current(core);
    let mm = |r: Register| {
        let mut b = [0; 8];
        b.copy_from_slice(&image.0[32 + 16 * (r.number() & 7)..][..8]);
        b
    };
    let (data, masks) = (mm(source), mm(mask));
    store_selected(core, i, 1, &data, |n| masks[n] & 0x80 != 0)?;
    x87::become_mmx();
    Ok(())
}

fn store_selected(
    core: &mut Core,
    i: &Instruction,
    size: usize,
    data: &[u8],
    selected: impl Fn(usize) -> bool + Copy,
) -> Exec {
    debug_assert!(i.op_kind(0) != OpKind::Register);
    runs(data.len(), size, selected, |from, to| {
        let la = masked_address(core, i, 0, from, to, true)?;
        core.probe_write(la.wrapping_add(from as u64), to - from)
    })?;
    runs(data.len(), size, selected, |from, to| {
        let la = masked_address(core, i, 0, from, to, true)?;
        core.write_bytes(la.wrapping_add(from as u64), &data[from..to])
    })
}
