//! Delivery of exceptions and interrupts through the IDT (SDM vol. 3A,
//! chapter 6; real mode: vol. 3B, 21.1.4).
//!
//! Everything that can fault is done before any register changes; what was
//! already pushed lies below the old stack pointer and does not count.

use arch::{Exception, exception};
use iced_x86::{Code, Instruction};

use crate::core::{Core, Exec, Trap};
use crate::cpu::{Seg, View, flag, pending, seg};
use crate::interpret::operand::{canonical, next_ip};
use crate::system::descriptor::{Descriptor, UNUSABLE, gp, np, null, ss, ts};
use crate::system::segment::{load_flat, null_stack};
use crate::system::task;

/// What is delivered.
#[derive(Clone, Copy)]
struct Event {
    vector: u8,
    error: Option<u32>,
    /// `int n`, `int3`, `into`: the gate's DPL counts, and faults on the way
    /// have EXT clear.
    software: bool,
    /// RF in the pushed image (faults).
    resume: bool,
    /// Pushed instruction pointer.
    ip: u64,
}

/// Classes of SDM table 6-4.
#[derive(PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        exception::DE | exception::TS..=exception::GP => Class::Contributory,
        exception::PF => Class::PageFault,
        exception::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// Delivers an exception raised by an instruction through the IDT, with
/// double-fault handling. `rip` is on the faulting instruction.
///
/// # Errors
/// `Trap::Shutdown` on a triple fault.
pub fn deliver_exception(core: &mut Core, e: Exception) -> Exec {
    let mut now = e;
    if now.vector == exception::PF {
        core.cpu.cr2 = now.cr2;
    }
    loop {
        let event = Event {
            vector: now.vector,
            error: now.error,
            software: false,
            resume: !matches!(now.vector, exception::DB | exception::DF | exception::MC),
            ip: core.cpu.rip,
        };
        let Err(trap) = deliver(core, &event) else {
            return Ok(());
        };
        let Trap::Fault(next) = trap else {
            return Err(trap);
        };
        core.stats.exceptions += 1;
        if next.vector == exception::PF {
            // Even if it becomes a double fault: the handler finds a stack
            // overflow by it.
            core.cpu.cr2 = next.cr2;
        }
        now = combine(now, next)?;
    }
}

/// What comes of a second exception while the first is being delivered.
fn combine(first: Exception, second: Exception) -> Exec<Exception> {
    let double = match class(first.vector) {
        Class::DoubleFault => return Err(Trap::Shutdown),
        Class::Contributory => class(second.vector) == Class::Contributory,
        Class::PageFault => class(second.vector) != Class::Benign,
        Class::Benign => false,
    };
    Ok(if double {
        Exception::with_error(exception::DF, 0)
    } else {
        second
    })
}

/// Delivers an NMI that was signalled, or keeps it while NMIs are blocked.
pub fn take_nmi(core: &mut Core) -> Exec {
    core.signal().take(pending::NMI);
    if core.cpu.nmi_blocked {
        core.system.nmi_waits = true;
        return Ok(());
    }
    core.cpu.halted = false;
    deliver_interrupt(core, 2, true)
}

/// Ends the time in which NMIs wait; what waited is signalled again.
pub fn unblock_nmi(core: &mut Core) {
    core.cpu.nmi_blocked = false;
    if std::mem::take(&mut core.system.nmi_waits) {
        core.signal().raise(pending::NMI);
    }
}

/// Delivers an external interrupt (`nmi`: the NMI, vector 2).
///
/// # Errors
/// `Trap::Shutdown` on a triple fault.
pub fn deliver_interrupt(core: &mut Core, vector: u8, nmi: bool) -> Exec {
    if nmi {
        core.cpu.nmi_blocked = true;
    }
    let event = Event {
        vector: if nmi { 2 } else { vector },
        error: None,
        software: false,
        resume: false,
        ip: core.cpu.rip,
    };
    match deliver(core, &event) {
        Err(Trap::Fault(e)) => deliver_exception(core, e),
        r => r,
    }
}

/// `int n`, `int3`, `into`, `int1` at the current `rip`.
///
/// # Errors
/// The fault that the gate raises; rip is still on the instruction then.
pub fn software_interrupt(core: &mut Core, i: &Instruction, vector: u8) -> Exec {
    let n = matches!(i.code(), Code::Int_imm8);
    if n && core.cpu.v86() && core.cpu.iopl() < 3 {
        return Err(Exception::gp0().into());
    }
    let event = Event {
        vector,
        error: None,
        software: i.code() != Code::Int1,
        resume: false,
        ip: next_ip(core, i),
    };
    deliver(core, &event)
}

/// The trap after an instruction that ran with RFLAGS.TF (`stepped`: DR6.BS)
/// or hit data breakpoints (`hits`: DR6 bits 0 to 3).
///
/// # Errors
/// `Trap::Shutdown` on a triple fault.
pub fn debug_trap(core: &mut Core, hits: u64, stepped: bool) -> Exec {
    core.cpu.dr[6] |= hits | u64::from(stepped) << 14;
    deliver_exception(core, Exception::new(exception::DB))
}

#[inline]
fn deliver(core: &mut Core, ev: &Event) -> Exec {
    let r = if core.cpu.long_mode() {
        deliver_long(core, ev)
    } else if core.cpu.protected() {
        deliver_legacy(core, ev)
    } else {
        deliver_real(core, ev)
    };
    match r {
        Ok(()) => {
            core.cpu.shadow = false;
            core.cpu.halted = false;
            Ok(())
        }
        Err(Trap::Fault(mut e)) if !ev.software => {
            if matches!(e.vector, exception::TS..=exception::GP) {
                e.error = e.error.map(|code| code | 1);
            }
            Err(Trap::Fault(e))
        }
        r => r,
    }
}

/// Error code for the gate of a vector.
fn gate_error(vector: u8) -> u16 {
    u16::from(vector) << 3 | 2
}

fn gate_fault(kind: u8, vector: u8) -> Trap {
    Exception::with_error(kind, u32::from(gate_error(vector))).into()
}

/// RFLAGS as pushed.
fn image(core: &Core, ev: &Event) -> u64 {
    core.cpu.rflags | if ev.resume { flag::RF } else { 0 }
}

/// RFLAGS that a gate clears.
fn cleared(interrupt_gate: bool) -> u64 {
    flag::TF | flag::NT | flag::RF | flag::VM | if interrupt_gate { flag::IF } else { 0 }
}

fn deliver_long(core: &mut Core, ev: &Event) -> Exec {
    let offset = u32::from(ev.vector) * 16;
    if offset + 15 > u32::from(core.cpu.idt.1) {
        return Err(gate_fault(exception::GP, ev.vector));
    }
    let at = core.cpu.idt.0.wrapping_add(u64::from(offset));
    let raw = core.read_system(at, 8)?;
    let high = core.read_system(at.wrapping_add(8), 8)? & 0xffff_ffff;
    let gate = Descriptor { raw, high, at };
    if !gate.system() || gate.kind() & 0xe != 0xe || ev.software && gate.dpl() < core.cpu.cpl {
        return Err(gate_fault(exception::GP, ev.vector));
    }
    if !gate.present() {
        return Err(gate_fault(exception::NP, ev.vector));
    }
    let (mut code, cpl) = gate_code(core, gate.gate_selector())?;
    let ist = (raw >> 32 & 7) as u32;
    let mut sp = if ist != 0 {
        tss64(core, 28 + 8 * ist)?
    } else if cpl != core.cpu.cpl {
        tss64(core, 4 + 8 * u32::from(cpl))?
    } else {
        core.cpu.gpr[4]
    };
    sp &= !15;
    let mut frame = [0u8; 48];
    let words = [
        u64::from(ev.error.unwrap_or(0)),
        core.frame_ip(ev.ip),
        u64::from(core.cpu.seg[seg::CS].selector),
        image(core, ev),
        core.cpu.gpr[4],
        u64::from(core.cpu.seg[seg::SS].selector),
    ];
    for (b, w) in frame.chunks_exact_mut(8).zip(words) {
        b.copy_from_slice(&w.to_le_bytes());
    }
    let frame = &frame[if ev.error.is_some() { 0 } else { 8 }..];
    sp = sp.wrapping_sub(frame.len() as u64);
    if !canonical(sp) || !canonical(sp.wrapping_add(47)) {
        return Err(ss(0).into());
    }
    let target = gate.gate_offset();
    if !canonical(target) {
        return Err(Exception::gp0().into());
    }
    write_frame(core, sp, frame, cpl)?;
    core.mark_accessed(&mut code)?;
    if cpl != core.cpu.cpl {
        core.cpu.seg[seg::SS] = null_stack(u16::from(cpl));
    }
    core.cpu.gpr[4] = sp;
    core.cpu.rflags &= !cleared(gate.kind() == 0xe);
    core.cpu.seg[seg::CS] = code.seg(gate.gate_selector() & !3 | u16::from(cpl));
    core.cpu.cpl = cpl;
    core.cpu.rip = target;
    core.cpu.bits = 64;
    core.update_view();
    Ok(())
}

/// Writes a frame with the view of its new privilege level.
fn write_frame(core: &mut Core, sp: u64, frame: &[u8], cpl: u8) -> Exec {
    let (bits, view) = (core.cpu.bits, core.cpu.view);
    core.cpu.bits = 64;
    core.cpu.view = if cpl == 3 {
        View::User
    } else {
        core.system_view()
    } as u8;
    let r = core.write_bytes(sp, frame);
    core.cpu.bits = bits;
    core.cpu.view = view;
    r
}

/// The 64-bit code segment of a gate, and the CPL it leads to.
fn gate_code(core: &mut Core, selector: u16) -> Exec<(Descriptor, u8)> {
    if null(selector) {
        return Err(Exception::gp0().into());
    }
    let Some(d) = core.descriptor(selector)? else {
        return Err(gp(selector).into());
    };
    if !d.code() || d.dpl() > core.cpu.cpl {
        return Err(gp(selector).into());
    }
    if core.cpu.long_mode() && (!d.long() || d.big()) {
        return Err(gp(selector).into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    let cpl = if d.conforming() {
        core.cpu.cpl
    } else {
        d.dpl()
    };
    Ok((d, cpl))
}

/// A stack pointer in the 64-bit TSS.
pub(crate) fn tss64(core: &mut Core, offset: u32) -> Exec<u64> {
    let tr = core.cpu.tr;
    if offset + 7 > tr.limit {
        return Err(ts(tr.selector).into());
    }
    let sp = core.read_system(tr.base.wrapping_add(u64::from(offset)), 8)?;
    if !canonical(sp) {
        return Err(ss(0).into());
    }
    Ok(sp)
}

/// A stack that is being filled outside 64-bit mode.
pub(crate) struct Frame {
    /// Segment.
    pub(crate) ss: Seg,
    /// Stack pointer so far, complete.
    pub(crate) sp: u64,
    /// Bytes per push.
    pub(crate) size: usize,
    /// View of memory.
    pub(crate) view: View,
}

impl Frame {
    fn mask(&self) -> u64 {
        if self.ss.big() { 0xffff_ffff } else { 0xffff }
    }

    /// Pushes a value.
    ///
    /// # Errors
    /// #SS, #PF.
    pub(crate) fn push(&mut self, core: &mut Core, value: u64) -> Exec {
        let m = self.mask();
        let sp = self.sp.wrapping_sub(self.size as u64) & m;
        if !stack_fits(&self.ss, sp, self.size) {
            return Err(ss(0).into());
        }
        let la = self.ss.base.wrapping_add(sp) & 0xffff_ffff;
        core.write_as(la, self.size, value, self.view)?;
        self.sp = self.sp & !m | sp;
        Ok(())
    }
}

/// Whether `size` bytes at an offset lie inside a stack segment.
fn stack_fits(s: &Seg, offset: u64, size: usize) -> bool {
    let last = offset + size as u64 - 1;
    let limit = u64::from(s.limit);
    if s.rights & 0xc == 4 {
        offset > limit && last <= if s.big() { 0xffff_ffff } else { 0xffff }
    } else {
        last <= limit
    }
}

fn deliver_legacy(core: &mut Core, ev: &Event) -> Exec {
    let offset = u32::from(ev.vector) * 8;
    if offset + 7 > u32::from(core.cpu.idt.1) {
        return Err(gate_fault(exception::GP, ev.vector));
    }
    let at = core.table_address(core.cpu.idt.0.wrapping_add(u64::from(offset)));
    let raw = core.read_system(at, 8)?;
    let gate = Descriptor { raw, high: 0, at };
    if !gate.system()
        || !matches!(gate.kind(), 5 | 6 | 7 | 14 | 15)
        || ev.software && gate.dpl() < core.cpu.cpl
    {
        return Err(gate_fault(exception::GP, ev.vector));
    }
    if !gate.present() {
        return Err(gate_fault(exception::NP, ev.vector));
    }
    if gate.kind() == 5 {
        return deliver_task(core, ev, gate.gate_selector());
    }
    let selector = gate.gate_selector();
    let (mut code, cpl) = gate_code(core, selector)?;
    let v86 = core.cpu.v86();
    if v86 && cpl != 0 {
        return Err(gp(selector).into());
    }
    let wide = gate.kind() & 8 != 0;
    let target = gate.gate_offset() & if wide { 0xffff_ffff } else { 0xffff };
    let mut frame = if cpl < core.cpu.cpl {
        inner_frame(core, cpl)?
    } else {
        Frame {
            ss: core.cpu.seg[seg::SS],
            sp: core.cpu.gpr[4],
            size: 4,
            view: core.level_view(cpl),
        }
    };
    frame.size = if wide { 4 } else { 2 };
    push_legacy(core, ev, &mut frame, cpl)?;
    if target > u64::from(code.limit()) {
        return Err(Exception::gp0().into());
    }
    core.mark_accessed(&mut code)?;
    if v86 {
        for s in [seg::ES, seg::DS, seg::FS, seg::GS] {
            core.cpu.seg[s] = Seg::new(0, 0, 0, UNUSABLE);
        }
    }
    core.cpu.seg[seg::SS] = frame.ss;
    core.cpu.gpr[4] = frame.sp;
    core.cpu.rflags &= !cleared(gate.kind() & 1 == 0);
    core.cpu.seg[seg::CS] = code.seg(selector & !3 | u16::from(cpl));
    core.cpu.cpl = cpl;
    core.cpu.rip = target;
    core.update_mode();
    Ok(())
}

fn push_legacy(core: &mut Core, ev: &Event, frame: &mut Frame, cpl: u8) -> Exec {
    let selector = |core: &Core, s: usize| u64::from(core.cpu.seg[s].selector);
    if core.cpu.v86() {
        for s in [seg::GS, seg::FS, seg::DS, seg::ES] {
            frame.push(core, selector(core, s))?;
        }
    }
    if cpl < core.cpu.cpl {
        frame.push(core, selector(core, seg::SS))?;
        frame.push(core, core.cpu.gpr[4])?;
    }
    frame.push(core, image(core, ev))?;
    frame.push(core, selector(core, seg::CS))?;
    frame.push(core, ev.ip)?;
    if let Some(e) = ev.error {
        frame.push(core, u64::from(e))?;
    }
    Ok(())
}

/// The stack of a more privileged level, from the TSS (16- or 32-bit).
pub(crate) fn inner_frame(core: &mut Core, cpl: u8) -> Exec<Frame> {
    let tr = core.cpu.tr;
    let wide = tr.rights & 8 != 0;
    let (at, size) = if wide {
        (4 + 8 * u32::from(cpl), 4)
    } else {
        (2 + 4 * u32::from(cpl), 2)
    };
    if at + size * 2 - 1 > tr.limit {
        return Err(ts(tr.selector).into());
    }
    let la = |off: u32| tr.base.wrapping_add(u64::from(off)) & 0xffff_ffff;
    let sp = core.read_system(la(at), size as usize)?;
    let selector = core.read_system(la(at + size), 2)? as u16;
    if null(selector) {
        return Err(ts(selector).into());
    }
    let Some(mut d) = core.descriptor(selector)? else {
        return Err(ts(selector).into());
    };
    if selector as u8 & 3 != cpl || d.dpl() != cpl || !d.writable() {
        return Err(ts(selector).into());
    }
    if !d.present() {
        return Err(ss(selector).into());
    }
    core.mark_accessed(&mut d)?;
    Ok(Frame {
        ss: d.seg(selector),
        sp,
        size: 4,
        view: core.level_view(cpl),
    })
}

/// Through a task gate: the handler is a task of its own.
fn deliver_task(core: &mut Core, ev: &Event, selector: u16) -> Exec {
    task::switch(core, selector, task::Why::Interrupt, ev.ip)?;
    let Some(error) = ev.error else {
        return Ok(());
    };
    let wide = core.cpu.tr.rights & 8 != 0;
    let mut frame = Frame {
        ss: core.cpu.seg[seg::SS],
        sp: core.cpu.gpr[4],
        size: if wide { 4 } else { 2 },
        view: core.view(),
    };
    frame.push(core, u64::from(error))?;
    core.cpu.gpr[4] = frame.sp;
    Ok(())
}

fn deliver_real(core: &mut Core, ev: &Event) -> Exec {
    let offset = u32::from(ev.vector) * 4;
    if offset + 3 > u32::from(core.cpu.idt.1) {
        return Err(gate_fault(exception::GP, ev.vector));
    }
    let at = core.table_address(core.cpu.idt.0.wrapping_add(u64::from(offset)));
    let gate = core.read_system(at, 4)?;
    let mut frame = Frame {
        ss: core.cpu.seg[seg::SS],
        sp: core.cpu.gpr[4],
        size: 2,
        view: core.view(),
    };
    frame.push(core, core.cpu.rflags)?;
    frame.push(core, u64::from(core.cpu.seg[seg::CS].selector))?;
    frame.push(core, ev.ip)?;
    core.cpu.gpr[4] = frame.sp;
    core.cpu.rflags &= !(flag::IF | flag::TF | flag::AC | flag::RF);
    load_flat(core, seg::CS, (gate >> 16) as u16);
    core.cpu.rip = gate & 0xffff;
    core.update_mode();
    Ok(())
}

impl Core {
    /// Instruction pointers are pushed with the width of the mode they ran in.
    fn frame_ip(&self, ip: u64) -> u64 {
        if self.cpu.is64() {
            ip
        } else {
            ip & 0xffff_ffff
        }
    }

    /// View of stack accesses at a privilege level.
    pub(crate) fn level_view(&self, cpl: u8) -> View {
        if cpl == 3 {
            View::User
        } else if cpl == self.cpu.cpl {
            self.view()
        } else {
            self.system_view()
        }
    }
}
