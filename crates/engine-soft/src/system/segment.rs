//! Loading segment registers, and the instructions about segments (SDM
//! vol. 2A: MOV, LDS, LLDT, LTR, VERR, LAR, LSL, ARPL).

use arch::Exception;
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::core::{Core, Exec};
use crate::cpu::{Seg, flag, seg};
use crate::interpret::operand::{self, read_gpr, read_operand, write_gpr, write_operand};
use crate::system::descriptor::{self, Descriptor, UNUSABLE, gp, np, null};

/// Loads ES, SS, DS, FS or GS (number `s` of `cpu::seg`) as `mov` does, by the
/// rules of the current mode.
///
/// # Errors
/// #GP, #NP, #SS with the selector; #PF of the table.
pub fn load_segment(core: &mut Core, s: usize, selector: u16) -> Exec {
    if core.flat_segments() {
        load_flat(core, s, selector);
        return Ok(());
    }
    if null(selector) {
        return load_null(core, s, selector);
    }
    let Some(mut d) = core.descriptor(selector)? else {
        return Err(gp(selector).into());
    };
    check_data(core, s, selector, &d)?;
    core.mark_accessed(&mut d)?;
    core.cpu.seg[s] = d.seg(selector);
    Ok(())
}

/// Real mode and v86.
pub(crate) fn load_flat(core: &mut Core, s: usize, selector: u16) {
    let v86 = core.cpu.v86();
    let old = core.cpu.seg[s];
    let base = u64::from(selector) << 4;
    // Real mode keeps the limit and size that protected mode left ("unreal").
    core.cpu.seg[s] = if v86 {
        Seg::new(selector, base, 0xffff, 0xf3)
    } else if old.rights & UNUSABLE != 0 {
        Seg::new(selector, base, 0xffff, 0x93)
    } else {
        let keep = old.rights & !0xff;
        Seg::new(
            selector,
            base,
            old.limit,
            keep | if s == seg::CS { 0x9b } else { 0x93 },
        )
    };
}

fn load_null(core: &mut Core, s: usize, selector: u16) -> Exec {
    if s == seg::SS {
        let rpl = selector as u8 & 3;
        if !core.cpu.is64() || core.cpu.cpl == 3 || rpl != core.cpu.cpl {
            return Err(Exception::gp0().into());
        }
        core.cpu.seg[s] = null_stack(selector);
        return Ok(());
    }
    core.cpu.seg[s] = Seg::new(selector, 0, 0, UNUSABLE);
    Ok(())
}

/// A null SS of 64-bit mode.
pub(crate) fn null_stack(selector: u16) -> Seg {
    Seg::new(
        selector,
        0,
        0,
        UNUSABLE | 0x93 | u32::from(selector & 3) << 5,
    )
}

fn check_data(core: &Core, s: usize, selector: u16, d: &Descriptor) -> Exec {
    let rpl = selector as u8 & 3;
    let cpl = core.cpu.cpl;
    if s == seg::SS {
        if rpl != cpl || d.dpl() != cpl || !d.writable() {
            return Err(gp(selector).into());
        }
        if !d.present() {
            return Err(descriptor::ss(selector).into());
        }
        return Ok(());
    }
    if !d.readable() || !d.conforming() && d.dpl() < cpl.max(rpl) {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    Ok(())
}

/// Loads LDTR.
///
/// # Errors
/// #GP, #NP with the selector; #PF.
pub(crate) fn load_ldtr(core: &mut Core, selector: u16) -> Exec {
    if null(selector) {
        core.cpu.ldtr = Seg::new(selector, 0, 0, UNUSABLE | 0x82);
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(gp(selector).into());
    }
    let Some(d) = core.system_descriptor(selector)? else {
        return Err(gp(selector).into());
    };
    if !d.system() || d.kind() != 2 || !operand::canonical(d.base()) {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    core.cpu.ldtr = d.seg(selector);
    Ok(())
}

/// Loads TR and marks the TSS busy.
///
/// # Errors
/// #GP, #NP with the selector; #PF.
pub(crate) fn load_tr(core: &mut Core, selector: u16) -> Exec {
    if null(selector) || selector & 4 != 0 {
        return Err(gp(selector).into());
    }
    let Some(mut d) = core.system_descriptor(selector)? else {
        return Err(gp(selector).into());
    };
    let kind_ok = d.kind() == 9 || d.kind() == 1 && !core.cpu.long_mode();
    if !d.system() || !kind_ok || !operand::canonical(d.base()) {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    d.raw |= 2 << 40;
    core.write_system(d.at.wrapping_add(5), 1, d.raw >> 40 & 0xff)?;
    core.cpu.tr = d.seg(selector);
    Ok(())
}

/// `mov Sreg, r/m` and `pop Sreg`: the load, and the shadow of SS.
pub(crate) fn load_and_shadow(core: &mut Core, s: usize, selector: u16) -> Exec {
    if s == seg::CS {
        return Err(Exception::ud().into());
    }
    load_segment(core, s, selector)?;
    if s == seg::SS {
        core.cpu.shadow = true;
    }
    Ok(())
}

/// `mov` to or from a segment register.
pub(crate) fn mov(core: &mut Core, i: &Instruction) -> Exec {
    if let Some(s) = operand::seg_index(i.op0_register()) {
        let selector = read_operand(core, i, 1)? as u16;
        return load_and_shadow(core, s, selector);
    }
    let Some(s) = operand::seg_index(i.op1_register()) else {
        return Err(Exception::ud().into());
    };
    let selector = u64::from(core.cpu.seg[s].selector);
    if i.op0_kind() == OpKind::Register {
        write_gpr(&mut core.cpu, i.op0_register(), selector);
        return Ok(());
    }
    store16(core, i, selector)
}

/// Stores 16 bits to operand 0, whatever the operand size.
pub(crate) fn store16(core: &mut Core, i: &Instruction, value: u64) -> Exec {
    if i.op0_kind() == OpKind::Register {
        return write_operand(core, i, 0, value);
    }
    let la = operand::linear_operand(core, i, 0, 2, true)?;
    core.write(la, 2, value)
}

/// Reads the 16-bit operand 0 (register or memory).
pub(crate) fn read16(core: &mut Core, i: &Instruction, op: u32) -> Exec<u16> {
    if i.op_kind(op) == OpKind::Register {
        return Ok(read_gpr(&core.cpu, i.op_register(op)) as u16);
    }
    let la = operand::linear_operand(core, i, op, 2, false)?;
    Ok(core.read(la, 2)? as u16)
}

fn stack_width(i: &Instruction) -> usize {
    i.stack_pointer_increment().unsigned_abs() as usize
}

/// `push Sreg`.
pub(crate) fn push(core: &mut Core, i: &Instruction) -> Exec {
    let Some(s) = operand::seg_index(i.op0_register()) else {
        return Err(Exception::ud().into());
    };
    let v = u64::from(core.cpu.seg[s].selector);
    operand::push(core, stack_width(i), v)
}

/// `pop Sreg`.
pub(crate) fn pop(core: &mut Core, i: &Instruction) -> Exec {
    let Some(s) = operand::seg_index(i.op0_register()) else {
        return Err(Exception::ud().into());
    };
    let width = stack_width(i);
    let selector = operand::peek(core, 0, width)? as u16;
    // The stack pointer of the old SS moves; a 16-bit SS loaded over a 32-bit
    // one must not change how much of ESP is written.
    let mask = operand::stack_mask(core);
    let sp = core.cpu.gpr[4].wrapping_add(width as u64);
    load_and_shadow(core, s, selector)?;
    core.cpu.gpr[4] = core.cpu.gpr[4] & !mask | sp & mask;
    Ok(())
}

/// `lds`, `les`, `lss`, `lfs`, `lgs`.
pub(crate) fn load_far_pointer(core: &mut Core, i: &Instruction) -> Exec {
    let s = match i.mnemonic() {
        Mnemonic::Les => seg::ES,
        Mnemonic::Lds => seg::DS,
        Mnemonic::Lss => seg::SS,
        Mnemonic::Lfs => seg::FS,
        _ => seg::GS,
    };
    let reg = i.op0_register();
    let size = operand::gpr_size(reg);
    let la = operand::linear_operand(core, i, 1, size + 2, false)?;
    let offset = core.read(la, size)?;
    let selector = core.read(la.wrapping_add(size as u64), 2)? as u16;
    load_segment(core, s, selector)?;
    write_gpr(&mut core.cpu, reg, offset);
    Ok(())
}

fn set_zf(core: &mut Core, on: bool) {
    operand::set_flags(core, flag::ZF, if on { flag::ZF } else { 0 });
}

/// `verr`, `verw`.
pub(crate) fn verify(core: &mut Core, i: &Instruction, write: bool) -> Exec {
    core.need_protected()?;
    let selector = read16(core, i, 0)?;
    let ok = match visible(core, selector)? {
        Some(d) if !d.system() => {
            if write {
                d.writable()
            } else {
                d.readable()
            }
        }
        _ => false,
    };
    set_zf(core, ok);
    Ok(())
}

/// The descriptor of a selector if privilege allows to look at it.
fn visible(core: &mut Core, selector: u16) -> Exec<Option<Descriptor>> {
    if null(selector) {
        return Ok(None);
    }
    let Some(d) = core.descriptor(selector)? else {
        return Ok(None);
    };
    let level = core.cpu.cpl.max(selector as u8 & 3);
    Ok((d.conforming() || d.dpl() >= level).then_some(d))
}

/// `lar`, `lsl`.
pub(crate) fn load_rights_or_limit(core: &mut Core, i: &Instruction, limit: bool) -> Exec {
    core.need_protected()?;
    let selector = read16(core, i, 1)?;
    let long = core.cpu.long_mode();
    let found = visible(core, selector)?.filter(|d| {
        if !d.system() {
            return true;
        }
        match d.kind() {
            2 | 9 | 11 => true,
            1 | 3 => !long,
            4 | 5 => !limit && !long,
            12 => !limit,
            _ => false,
        }
    });
    let Some(d) = found else {
        set_zf(core, false);
        return Ok(());
    };
    let v = if limit {
        u64::from(d.limit())
    } else {
        d.raw >> 32 & 0x00ff_ff00
    };
    set_zf(core, true);
    write_gpr(&mut core.cpu, i.op0_register(), v);
    Ok(())
}

/// `arpl`.
pub(crate) fn arpl(core: &mut Core, i: &Instruction) -> Exec {
    core.need_protected()?;
    let rpl = read_gpr(&core.cpu, i.op1_register()) & 3;
    let old = u64::from(read16(core, i, 0)?);
    let raise = old & 3 < rpl;
    if raise {
        let new = old & !3 | rpl;
        if i.op0_kind() == OpKind::Register {
            let r = i.op0_register().full_register32();
            let v = read_gpr(&core.cpu, r) & !0xffff | new;
            write_gpr(&mut core.cpu, r, v);
        } else {
            store16(core, i, new)?;
        }
    }
    set_zf(core, raise);
    Ok(())
}

/// `lldt`, `ltr`.
pub(crate) fn load_system(core: &mut Core, i: &Instruction, task: bool) -> Exec {
    core.need_protected()?;
    core.need_cpl0()?;
    let selector = read16(core, i, 0)?;
    if task {
        load_tr(core, selector)
    } else {
        load_ldtr(core, selector)
    }
}

/// `sldt`, `str`.
pub(crate) fn store_system(core: &mut Core, i: &Instruction, task: bool) -> Exec {
    core.need_protected()?;
    core.check_umip()?;
    let v = if task {
        core.cpu.tr.selector
    } else {
        core.cpu.ldtr.selector
    };
    store16(core, i, u64::from(v))
}

/// Whether this is a `mov` of a segment register.
pub(crate) fn is_mov(code: Code) -> bool {
    matches!(
        code,
        Code::Mov_rm16_Sreg
            | Code::Mov_r32m16_Sreg
            | Code::Mov_r64m16_Sreg
            | Code::Mov_Sreg_rm16
            | Code::Mov_Sreg_r32m16
            | Code::Mov_Sreg_r64m16
    )
}
