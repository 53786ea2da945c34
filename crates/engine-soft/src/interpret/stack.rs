//! Stack instructions beyond plain push and pop.

use arch::Exception;
use iced_x86::{Code, Instruction};

use super::operand::*;
use crate::core::{Core, Exec};
use crate::cpu::flag::{AC, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VIF, VIP, VM};
use crate::cpu::seg;

/// `pusha`, `pushad`.
pub(super) fn push_all(core: &mut Core, size: usize) -> Exec {
    let m = stack_mask(core);
    let total = 8 * size;
    let sp = core.cpu.gpr[4].wrapping_sub(total as u64) & m;
    if sp.wrapping_add(total as u64) & m > sp {
        let la = linear(core, seg::SS, sp, total, true)?;
        let mut b = [0u8; 32];
        for (n, cell) in b[..total].chunks_exact_mut(size).enumerate() {
            // RDI is at the lowest address.
            cell.copy_from_slice(&core.cpu.gpr[7 - n].to_le_bytes()[..size]);
        }
        core.write_bytes(la, &b[..total])?;
        set_sp(core, sp);
        return Ok(());
    }
    let old = core.cpu.gpr[4];
    for n in 0..8 {
        let v = if n == 4 { old } else { core.cpu.gpr[n] };
        push(core, size, v).inspect_err(|_| core.cpu.gpr[4] = old)?;
    }
    Ok(())
}

/// `popa`, `popad`: the stack's copy of SP is dropped.
pub(super) fn pop_all(core: &mut Core, size: usize) -> Exec {
    let mut v = [0; 8];
    for (n, cell) in v.iter_mut().enumerate() {
        *cell = peek(core, (n * size) as u64, size)?;
    }
    for (n, value) in v.into_iter().enumerate() {
        if n != 3 {
            write_reg(&mut core.cpu, 7 - n, size, value);
        }
    }
    let sp = core.cpu.gpr[4].wrapping_add(8 * size as u64);
    set_sp(core, sp);
    Ok(())
}

/// In virtual-8086 mode, `pushf` and `popf` need IOPL 3 (there is no VME).
fn check_v86(core: &Core) -> Exec {
    if core.cpu.v86() && core.cpu.iopl() < 3 {
        return Err(Exception::gp0().into());
    }
    Ok(())
}

/// `pushf`, `pushfd`, `pushfq`.
pub(super) fn push_flags(core: &mut Core, size: usize) -> Exec {
    check_v86(core)?;
    push(core, size, core.cpu.rflags & !(VM | RF))
}

/// `popf`, `popfd`, `popfq` (SDM vol. 2B, POPF).
pub(super) fn pop_flags(core: &mut Core, size: usize) -> Exec {
    check_v86(core)?;
    let v = peek(core, 0, size)?;
    let c = &core.cpu;
    let mut which = STATUS | TF | DF | NT;
    if size > 2 {
        which |= AC | ID | RF;
    }
    if !c.protected() || c.cpl == 0 {
        which |= IOPL | IF;
        if size > 2 && !c.v86() {
            which |= VIF | VIP;
        }
    } else if c.cpl <= c.iopl() {
        which |= IF;
    }
    if c.v86() {
        which &= !IOPL;
    }
    let sp = core.cpu.gpr[4].wrapping_add(size as u64);
    set_sp(core, sp);
    set_flags(core, which, v & !(RF | VIF | VIP));
    core.update_view();
    Ok(())
}

/// `enter`.
pub(super) fn enter(core: &mut Core, i: &Instruction) -> Exec {
    let size = match i.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let old = core.cpu.gpr[4];
    let r = enter_frame(core, i, size);
    if r.is_err() {
        core.cpu.gpr[4] = old;
    }
    r
}

fn enter_frame(core: &mut Core, i: &Instruction, size: usize) -> Exec {
    let m = stack_mask(core);
    let level = i.immediate8_2nd() & 31;
    let mut bp = core.cpu.gpr[5];
    push(core, size, bp)?;
    let frame = core.cpu.gpr[4];
    if level > 0 {
        for _ in 1..level {
            bp = bp.wrapping_sub(size as u64);
            let la = linear(core, seg::SS, bp & m, size, false)?;
            let v = core.read(la, size)?;
            push(core, size, v)?;
        }
        push(core, size, frame)?;
    }
    let sp = core.cpu.gpr[4].wrapping_sub(u64::from(i.immediate16()));
    let la = linear(core, seg::SS, sp & m, size, true)?;
    core.probe_write(la, size)?;
    set_sp(core, sp);
    let width = if core.cpu.is64() { 8 } else { size };
    write_reg(&mut core.cpu, 5, width, frame);
    Ok(())
}

/// `leave`.
pub(super) fn leave(core: &mut Core, i: &Instruction) -> Exec {
    let size = match i.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    let bp = core.cpu.gpr[5] & stack_mask(core);
    let la = linear(core, seg::SS, bp, size, false)?;
    let v = core.read(la, size)?;
    set_sp(core, bp.wrapping_add(size as u64));
    write_reg(&mut core.cpu, 5, size, v);
    Ok(())
}
