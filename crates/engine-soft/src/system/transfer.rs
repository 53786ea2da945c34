//! Far jumps, calls and returns, and IRET (SDM vol. 2A: JMP, CALL, RET, IRET).

use arch::Exception;
use iced_x86::{Code, Instruction, OpKind};

use crate::core::{Core, Exec};
use crate::cpu::{Seg, flag, seg};
use crate::interpret::operand::{self, canonical, next_ip};
use crate::system::descriptor::{self, Descriptor, UNUSABLE, gp, np, null};
use crate::system::event::{Frame, inner_frame, tss64, unblock_nmi};
use crate::system::segment::{load_flat, null_stack};
use crate::system::task;

/// Target of a far branch.
#[derive(Clone, Copy)]
struct Far {
    selector: u16,
    offset: u64,
    /// Operand size in bytes: 2, 4 or 8.
    size: usize,
}

fn far_operand(core: &mut Core, i: &Instruction) -> Exec<Far> {
    let size = match i.code() {
        Code::Jmp_ptr1616 | Code::Call_ptr1616 | Code::Jmp_m1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        _ => 4,
    };
    let (selector, offset) = match i.op0_kind() {
        OpKind::FarBranch16 => (i.far_branch_selector(), u64::from(i.far_branch16())),
        OpKind::FarBranch32 => (i.far_branch_selector(), u64::from(i.far_branch32())),
        _ => {
            let la = operand::linear_operand(core, i, 0, size + 2, false)?;
            let offset = core.read(la, size)?;
            (core.read(la.wrapping_add(size as u64), 2)? as u16, offset)
        }
    };
    Ok(Far {
        selector,
        offset,
        size,
    })
}

/// `jmp far`, `call far`.
pub(crate) fn branch(core: &mut Core, i: &Instruction, call: bool) -> Exec {
    let far = far_operand(core, i)?;
    let next = next_ip(core, i);
    if core.flat_segments() {
        return branch_flat(core, &far, call.then_some(next));
    }
    if null(far.selector) {
        return Err(Exception::gp0().into());
    }
    let Some(d) = core.system_descriptor(far.selector)? else {
        return Err(gp(far.selector).into());
    };
    if d.code() {
        check_direct(core, far.selector, &d)?;
        return enter_code(core, d, &far, call.then_some(next));
    }
    if !d.system() {
        return Err(gp(far.selector).into());
    }
    let level = core.cpu.cpl.max(far.selector as u8 & 3);
    let long = core.cpu.long_mode();
    let fits = match d.kind() {
        12 => true,
        1 | 4 | 5 | 9 => !long,
        _ => false,
    };
    if !fits || d.dpl() < level {
        return Err(gp(far.selector).into());
    }
    if !d.present() {
        return Err(np(far.selector).into());
    }
    let why = if call {
        task::Why::Call
    } else {
        task::Why::Jump
    };
    match d.kind() {
        1 | 9 => task::switch(core, far.selector, why, next),
        5 => task::switch(core, d.gate_selector(), why, next),
        _ => through_gate(core, &d, call.then_some(next)),
    }
}

fn branch_flat(core: &mut Core, far: &Far, next: Option<u64>) -> Exec {
    let offset = far.offset & operand::mask(far.size);
    if offset > u64::from(core.cpu.seg[seg::CS].limit) {
        return Err(Exception::gp0().into());
    }
    if let Some(next) = next {
        push_return(core, next, far.size)?;
    }
    load_flat(core, seg::CS, far.selector);
    core.cpu.rip = offset;
    core.update_mode();
    Ok(())
}

/// Pushes CS and the return address; RSP is unchanged on a fault.
fn push_return(core: &mut Core, next: u64, size: usize) -> Exec {
    let rsp = core.cpu.gpr[4];
    let cs = u64::from(core.cpu.seg[seg::CS].selector);
    operand::push(core, size, cs)?;
    let r = operand::push(core, size, next);
    if r.is_err() {
        core.cpu.gpr[4] = rsp;
    }
    r
}

/// Privilege checks of a code segment that is named directly.
fn check_direct(core: &Core, selector: u16, d: &Descriptor) -> Exec {
    let cpl = core.cpu.cpl;
    let ok = if d.conforming() {
        d.dpl() <= cpl
    } else {
        selector as u8 & 3 <= cpl && d.dpl() == cpl
    };
    if !ok || core.cpu.long_mode() && d.long() && d.big() {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    Ok(())
}

/// Checks an offset against the code segment it goes to.
fn check_offset(core: &Core, d: &Descriptor, offset: u64) -> Exec {
    let ok = if core.cpu.long_mode() && d.long() {
        canonical(offset)
    } else {
        offset <= u64::from(d.limit())
    };
    if ok {
        Ok(())
    } else {
        Err(Exception::gp0().into())
    }
}

/// Goes to a code segment at the same privilege level.
fn enter_code(core: &mut Core, mut d: Descriptor, far: &Far, next: Option<u64>) -> Exec {
    check_offset(core, &d, far.offset)?;
    core.mark_accessed(&mut d)?;
    if let Some(next) = next {
        push_return(core, next, far.size)?;
    }
    let cpl = core.cpu.cpl;
    commit_code(core, &d, far.selector & !3 | u16::from(cpl), far.offset);
    Ok(())
}

/// Loads CS, CPL (from the selector's RPL) and rip.
fn commit_code(core: &mut Core, d: &Descriptor, selector: u16, ip: u64) {
    core.cpu.seg[seg::CS] = d.seg(selector);
    core.cpu.cpl = selector as u8 & 3;
    core.cpu.rip = ip;
    core.update_mode();
}

/// Through a call gate, already checked for access and presence.
fn through_gate(core: &mut Core, gate: &Descriptor, next: Option<u64>) -> Exec {
    let selector = gate.gate_selector();
    if null(selector) {
        return Err(Exception::gp0().into());
    }
    let Some(mut d) = core.descriptor(selector)? else {
        return Err(gp(selector).into());
    };
    let cpl = core.cpu.cpl;
    let long = core.cpu.long_mode();
    let jump_ok = next.is_some() || d.conforming() || d.dpl() == cpl;
    if !d.code() || d.dpl() > cpl || !jump_ok || long && (!d.long() || d.big()) {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    let size = if long {
        8
    } else if gate.kind() & 8 != 0 {
        4
    } else {
        2
    };
    let offset = gate.gate_offset() & operand::mask(size);
    check_offset(core, &d, offset)?;
    let inner = !d.conforming() && d.dpl() < cpl;
    let level = if inner { d.dpl() } else { cpl };
    core.mark_accessed(&mut d)?;
    if let (Some(next), true) = (next, inner) {
        if long {
            gate_stack_long(core, level, next)?;
        } else {
            gate_stack_legacy(core, level, next, size, (gate.raw >> 32) as u32 & 31)?;
        }
    } else if let Some(next) = next {
        push_return(core, next, size)?;
    }
    commit_code(core, &d, selector & !3 | u16::from(level), offset);
    Ok(())
}

fn gate_stack_long(core: &mut Core, level: u8, next: u64) -> Exec {
    let mut sp = tss64(core, 4 + 8 * u32::from(level))?;
    let frame = [
        u64::from(core.cpu.seg[seg::SS].selector),
        core.cpu.gpr[4],
        u64::from(core.cpu.seg[seg::CS].selector),
        next,
    ];
    for v in frame {
        sp = sp.wrapping_sub(8);
        core.write_as(sp, 8, v, core.level_view(level))?;
    }
    core.cpu.seg[seg::SS] = null_stack(u16::from(level));
    core.cpu.gpr[4] = sp;
    Ok(())
}

fn gate_stack_legacy(core: &mut Core, level: u8, next: u64, size: usize, count: u32) -> Exec {
    let mut params = [0u64; 31];
    for (n, p) in params.iter_mut().take(count as usize).enumerate() {
        *p = operand::peek(core, (n * size) as u64, size)?;
    }
    let mut frame: Frame = inner_frame(core, level)?;
    frame.size = size;
    frame.push(core, u64::from(core.cpu.seg[seg::SS].selector))?;
    frame.push(core, core.cpu.gpr[4])?;
    for p in params[..count as usize].iter().rev() {
        frame.push(core, *p)?;
    }
    frame.push(core, u64::from(core.cpu.seg[seg::CS].selector))?;
    frame.push(core, next)?;
    core.cpu.seg[seg::SS] = frame.ss;
    core.cpu.gpr[4] = frame.sp;
    Ok(())
}

/// The code segment that a far return or IRET goes to.
fn return_code(core: &mut Core, selector: u16) -> Exec<Descriptor> {
    if null(selector) {
        return Err(Exception::gp0().into());
    }
    let Some(mut d) = core.descriptor(selector)? else {
        return Err(gp(selector).into());
    };
    let rpl = selector as u8 & 3;
    let dpl_ok = if d.conforming() {
        d.dpl() <= rpl
    } else {
        d.dpl() == rpl
    };
    let both = core.cpu.long_mode() && d.long() && d.big();
    if !d.code() || rpl < core.cpu.cpl || !dpl_ok || both {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    core.mark_accessed(&mut d)?;
    Ok(d)
}

/// The stack segment that a return to another level (or any IRET of 64-bit
/// mode) loads.
fn return_stack(core: &mut Core, selector: u16, code: &Descriptor, rpl: u8) -> Exec<Seg> {
    if null(selector) {
        let long = core.cpu.long_mode() && code.long();
        if !long || rpl == 3 || selector as u8 & 3 != rpl {
            return Err(Exception::gp0().into());
        }
        return Ok(null_stack(selector));
    }
    let Some(mut d) = core.descriptor(selector)? else {
        return Err(gp(selector).into());
    };
    if selector as u8 & 3 != rpl || d.dpl() != rpl || !d.writable() {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(descriptor::ss(selector).into());
    }
    core.mark_accessed(&mut d)?;
    Ok(d.seg(selector))
}

/// Data segments that the new, less privileged level may not use become null.
fn drop_segments(core: &mut Core) {
    let cpl = core.cpu.cpl;
    for s in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let g = core.cpu.seg[s];
        let conforming = g.rights & 0xc == 0xc;
        if g.rights & UNUSABLE == 0 && !conforming && g.dpl() < cpl {
            core.cpu.seg[s] = Seg::new(0, 0, 0, UNUSABLE);
        }
    }
}

/// RSP of an outer stack: SS decides how much of it counts.
fn set_outer_sp(core: &mut Core, sp: u64) {
    let m = operand::stack_mask(core);
    core.cpu.gpr[4] = core.cpu.gpr[4] & !m | sp & m;
}

/// `retf`, `retf n`.
pub(crate) fn far_return(core: &mut Core, i: &Instruction) -> Exec {
    let (size, extra) = match i.code() {
        Code::Retfw => (2, 0),
        Code::Retfw_imm16 => (2, u64::from(i.immediate16())),
        Code::Retfd => (4, 0),
        Code::Retfd_imm16 => (4, u64::from(i.immediate16())),
        Code::Retfq => (8, 0),
        _ => (8, u64::from(i.immediate16())),
    };
    let n = size as u64;
    let ip = operand::peek(core, 0, size)?;
    let selector = operand::peek(core, n, size)? as u16;
    if core.flat_segments() {
        if ip > u64::from(core.cpu.seg[seg::CS].limit) {
            return Err(Exception::gp0().into());
        }
        let sp = core.cpu.gpr[4].wrapping_add(2 * n + extra);
        operand::set_sp(core, sp);
        load_flat(core, seg::CS, selector);
        core.cpu.rip = ip;
        core.update_mode();
        return Ok(());
    }
    let d = return_code(core, selector)?;
    check_offset(core, &d, ip)?;
    let rpl = selector as u8 & 3;
    if rpl == core.cpu.cpl {
        let sp = core.cpu.gpr[4].wrapping_add(2 * n + extra);
        operand::set_sp(core, sp);
        commit_code(core, &d, selector, ip);
        return Ok(());
    }
    let sp = operand::peek(core, 2 * n + extra, size)?;
    let ss = operand::peek(core, 3 * n + extra, size)? as u16;
    let stack = return_stack(core, ss, &d, rpl)?;
    commit_code(core, &d, selector, ip);
    core.cpu.seg[seg::SS] = stack;
    set_outer_sp(core, sp.wrapping_add(extra));
    drop_segments(core);
    Ok(())
}

/// Flags that an IRET of an operand size may change at the current level.
fn iret_mask(core: &Core, size: usize) -> u64 {
    let mut m = flag::STATUS | flag::TF | flag::DF | flag::NT;
    if size > 2 {
        m |= flag::RF | flag::AC | flag::ID;
    }
    if core.cpu.cpl <= core.cpu.iopl() {
        m |= flag::IF;
    }
    if core.cpu.cpl == 0 {
        m |= flag::IOPL;
        if size > 2 {
            m |= flag::VIF | flag::VIP;
        }
    }
    m
}

fn set_iret_flags(core: &mut Core, image: u64, mask: u64) {
    // RF matters only to code breakpoints; without any it would go stale.
    let drop = if core.cpu.dr[7] & 0xff == 0 {
        flag::RF
    } else {
        0
    };
    core.cpu.rflags = (core.cpu.rflags & !mask | image & mask) & !drop | flag::ONE;
}

/// `iret`, `iretd`, `iretq`.
pub(crate) fn iret(core: &mut Core, i: &Instruction) -> Exec {
    let size = match i.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    let r = if core.cpu.is64() {
        iret64(core, size)
    } else if core.flat_segments() {
        iret_flat(core, size)
    } else {
        iret_protected(core, i, size)
    };
    if r.is_ok() {
        unblock_nmi(core);
    }
    r
}

/// From 64-bit mode: always pops SS:RSP. The way out of every kernel.
fn iret64(core: &mut Core, size: usize) -> Exec {
    if core.cpu.rflags & flag::NT != 0 {
        return Err(Exception::gp0().into());
    }
    let mut w = [0u64; 5];
    let rsp = core.cpu.gpr[4];
    if size == 8 && canonical(rsp) && canonical(rsp.wrapping_add(39)) {
        let mut b = [0u8; 40];
        core.read_bytes(rsp, &mut b)?;
        for (w, b) in w.iter_mut().zip(b.as_chunks::<8>().0) {
            *w = u64::from_le_bytes(*b);
        }
    } else {
        for (n, w) in w.iter_mut().enumerate() {
            *w = operand::peek(core, (n * size) as u64, size)?;
        }
    }
    let [ip, cs, image, sp, ss] = w;
    let cs = cs as u16;
    let code = return_code(core, cs)?;
    check_offset(core, &code, ip)?;
    let rpl = cs as u8 & 3;
    let stack = return_stack(core, ss as u16, &code, rpl)?;
    let mask = iret_mask(core, size);
    set_iret_flags(core, image, mask);
    let outer = rpl > core.cpu.cpl;
    core.cpu.seg[seg::SS] = stack;
    commit_code(core, &code, cs, ip);
    set_outer_sp(core, sp);
    if outer {
        drop_segments(core);
    }
    Ok(())
}

/// Real mode, and v86 at IOPL 3.
fn iret_flat(core: &mut Core, size: usize) -> Exec {
    let v86 = core.cpu.v86();
    if v86 && core.cpu.iopl() < 3 {
        return Err(Exception::gp0().into());
    }
    let n = size as u64;
    let ip = operand::peek(core, 0, size)?;
    let cs = operand::peek(core, n, size)? as u16;
    let image = operand::peek(core, 2 * n, size)?;
    if ip > u64::from(core.cpu.seg[seg::CS].limit) {
        return Err(Exception::gp0().into());
    }
    let mut mask = iret_mask(core, size) | flag::IF;
    if v86 {
        mask &= !(flag::IOPL | flag::VIF | flag::VIP);
    }
    set_iret_flags(core, image, mask);
    let sp = core.cpu.gpr[4].wrapping_add(3 * n);
    operand::set_sp(core, sp);
    load_flat(core, seg::CS, cs);
    core.cpu.rip = ip;
    core.update_mode();
    Ok(())
}

/// From 16- or 32-bit protected mode, and from compatibility mode.
fn iret_protected(core: &mut Core, i: &Instruction, size: usize) -> Exec {
    if core.cpu.rflags & flag::NT != 0 {
        if core.cpu.long_mode() {
            return Err(Exception::gp0().into());
        }
        let next = next_ip(core, i);
        return task::return_to_previous(core, next);
    }
    let n = size as u64;
    let ip = operand::peek(core, 0, size)?;
    let cs = operand::peek(core, n, size)? as u16;
    let image = operand::peek(core, 2 * n, size)?;
    if size == 4 && image & flag::VM != 0 && core.cpu.cpl == 0 && !core.cpu.long_mode() {
        return iret_to_v86(core, ip, cs, image);
    }
    let code = return_code(core, cs)?;
    check_offset(core, &code, ip)?;
    let rpl = cs as u8 & 3;
    let mask = iret_mask(core, size);
    if rpl == core.cpu.cpl {
        set_iret_flags(core, image, mask);
        let sp = core.cpu.gpr[4].wrapping_add(3 * n);
        operand::set_sp(core, sp);
        commit_code(core, &code, cs, ip);
        return Ok(());
    }
    let sp = operand::peek(core, 3 * n, size)?;
    let ss = operand::peek(core, 4 * n, size)? as u16;
    let stack = return_stack(core, ss, &code, rpl)?;
    set_iret_flags(core, image, mask);
    commit_code(core, &code, cs, ip);
    core.cpu.seg[seg::SS] = stack;
    set_outer_sp(core, sp);
    drop_segments(core);
    Ok(())
}

fn iret_to_v86(core: &mut Core, ip: u64, cs: u16, image: u64) -> Exec {
    let mut w = [0u64; 6];
    for (n, w) in w.iter_mut().enumerate() {
        *w = operand::peek(core, 12 + 4 * n as u64, 4)?;
    }
    let [sp, ss, es, ds, fs, gs] = w;
    if ip > 0xffff {
        return Err(Exception::gp0().into());
    }
    let mask = iret_mask(core, 4) | flag::VM;
    set_iret_flags(core, image, mask);
    core.cpu.cpl = 3;
    for (s, v) in [
        (seg::ES, es),
        (seg::CS, u64::from(cs)),
        (seg::SS, ss),
        (seg::DS, ds),
        (seg::FS, fs),
        (seg::GS, gs),
    ] {
        load_flat(core, s, v as u16);
    }
    core.cpu.gpr[4] = sp & 0xffff_ffff;
    core.cpu.rip = ip;
    core.update_mode();
    Ok(())
}
