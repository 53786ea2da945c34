//! Hardware task switches through 16- and 32-bit TSSs (SDM vol. 3A, 8.3).
//! They do not exist in IA-32e mode.

use arch::Exception;

use crate::core::{Core, Exec};
use crate::cpu::{Seg, cr, flag, seg};
use crate::interpret::operand;
use crate::system::descriptor::{self, Descriptor, UNUSABLE, gp, np, null, ts};
use crate::system::segment::load_flat;

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// `jmp`.
    Jump,
    /// `call`.
    Call,
    /// Exception or interrupt through a task gate.
    Interrupt,
    /// `iret` with NT.
    Return,
}

const BUSY: u64 = 2 << 40;
/// Offsets in a 32-bit TSS.
mod tss32 {
    pub(super) const CR3: u64 = 0x1c;
    pub(super) const EIP: u64 = 0x20;
    pub(super) const EFLAGS: u64 = 0x24;
    pub(super) const REGS: u64 = 0x28;
    pub(super) const SEGS: u64 = 0x48;
    pub(super) const LDT: u64 = 0x60;
    pub(super) const TRAP: u64 = 0x64;
}
/// Offsets in a 16-bit TSS.
mod tss16 {
    pub(super) const IP: u64 = 0x0e;
    pub(super) const FLAGS: u64 = 0x10;
    pub(super) const REGS: u64 = 0x12;
    pub(super) const SEGS: u64 = 0x22;
    pub(super) const LDT: u64 = 0x2a;
}

/// State that a TSS gives.
struct Image {
    wide: bool,
    cr3: u64,
    ip: u64,
    flags: u64,
    regs: [u64; 8],
    segs: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// Switches to the task of a TSS selector; `ip` is what the old task resumes
/// at.
///
/// # Errors
/// #GP, #NP, #TS with the selector before anything has changed; afterwards
/// faults of the new task's segments, in the new task.
pub(crate) fn switch(core: &mut Core, selector: u16, why: Why, ip: u64) -> Exec {
    let d = target(core, selector, why)?;
    let wide = d.kind() & 8 != 0;
    let need = if wide { 0x67 } else { 0x2b };
    if d.limit() < need {
        return Err(ts(selector).into());
    }
    let image = read_image(core, &d, wide)?;
    // Everything that is written must be writable before anything is.
    let old = core.cpu.tr;
    if why == Why::Call || why == Why::Interrupt {
        let back = core.table_address(d.base());
        let keep = core.read_system(back, 2)?;
        core.write_system(back, 2, keep)?;
    }
    save_old(core, ip, why)?;
    if matches!(why, Why::Jump | Why::Return) {
        set_busy(core, old.selector, false)?;
    }
    if why != Why::Return {
        core.write_system(d.at.wrapping_add(5), 1, (d.raw | BUSY) >> 40 & 0xff)?;
    }
    let nested = matches!(why, Why::Call | Why::Interrupt);
    if nested {
        let back = core.table_address(d.base());
        core.write_system(back, 2, u64::from(old.selector))?;
    }
    let busy = Descriptor {
        raw: d.raw | BUSY,
        ..d
    };
    core.cpu.tr = busy.seg(selector);
    load_new(core, &image, nested)
}

/// `iret` with NT set: to the task that the back link names.
pub(crate) fn return_to_previous(core: &mut Core, next: u64) -> Exec {
    let link = core.table_address(core.cpu.tr.base);
    let selector = core.read_system(link, 2)? as u16;
    switch(core, selector, Why::Return, next)
}

fn target(core: &mut Core, selector: u16, why: Why) -> Exec<Descriptor> {
    let bad = if why == Why::Return {
        ts(selector)
    } else {
        gp(selector)
    };
    if null(selector) || selector & 4 != 0 {
        return Err(bad.into());
    }
    let Some(d) = core.descriptor(selector)? else {
        return Err(bad.into());
    };
    let kind = if why == Why::Return { 3 } else { 1 };
    if !d.system() || d.kind() & 7 != kind {
        return Err(bad.into());
    }
    if !d.present() {
        return Err(np(selector).into());
    }
    Ok(d)
}

fn read_image(core: &mut Core, d: &Descriptor, wide: bool) -> Exec<Image> {
    let base = d.base();
    let (size, ip, flags, regs, segs, count, ldt) = if wide {
        (
            4,
            tss32::EIP,
            tss32::EFLAGS,
            tss32::REGS,
            tss32::SEGS,
            6,
            tss32::LDT,
        )
    } else {
        (
            2,
            tss16::IP,
            tss16::FLAGS,
            tss16::REGS,
            tss16::SEGS,
            4,
            tss16::LDT,
        )
    };
    let mut read = |off: u64, n: usize| {
        let la = core.table_address(base.wrapping_add(off));
        core.read_system(la, n)
    };
    let mut image = Image {
        wide,
        cr3: if wide { read(tss32::CR3, 4)? } else { 0 },
        ip: read(ip, size)?,
        flags: read(flags, size)?,
        regs: [0; 8],
        segs: [0; 6],
        ldt: read(ldt, 2)? as u16,
        trap: wide && read(tss32::TRAP, 2)? & 1 != 0,
    };
    for n in 0..8 {
        image.regs[n] = read(regs + (n * size) as u64, size)?;
    }
    for n in 0..count {
        image.segs[n] = read(segs + (n * size) as u64, 2)? as u16;
    }
    Ok(image)
}

fn save_old(core: &mut Core, ip: u64, why: Why) -> Exec {
    let tr = core.cpu.tr;
    let wide = tr.rights & 8 != 0;
    let flags = core.cpu.rflags & if why == Why::Return { !flag::NT } else { !0 };
    let (size, ip_at, flags_at, regs, segs, count) = if wide {
        (4, tss32::EIP, tss32::EFLAGS, tss32::REGS, tss32::SEGS, 6)
    } else {
        (2, tss16::IP, tss16::FLAGS, tss16::REGS, tss16::SEGS, 4)
    };
    let write = |core: &mut Core, off: u64, n: usize, v: u64| {
        let la = core.table_address(tr.base.wrapping_add(off));
        core.write_system(la, n, v)
    };
    write(core, ip_at, size, ip)?;
    write(core, flags_at, size, flags)?;
    for n in 0..8 {
        let v = core.cpu.gpr[n];
        write(core, regs + (n * size) as u64, size, v)?;
    }
    for n in 0..count {
        let v = u64::from(core.cpu.seg[n].selector);
        write(core, segs + (n * size) as u64, 2, v)?;
    }
    Ok(())
}

fn set_busy(core: &mut Core, selector: u16, on: bool) -> Exec {
    let Some(d) = core.descriptor(selector)? else {
        return Err(ts(selector).into());
    };
    let raw = if on { d.raw | BUSY } else { d.raw & !BUSY };
    core.write_system(d.at.wrapping_add(5), 1, raw >> 40 & 0xff)
}

fn load_new(core: &mut Core, image: &Image, nested: bool) -> Exec {
    let c = &mut *core.cpu;
    c.cr0 |= cr::CR0_TS;
    c.rip = image.ip;
    c.rflags = image.flags & 0x3f_7fd5 | flag::ONE;
    if nested {
        c.rflags |= flag::NT;
    }
    if !image.wide {
        c.rflags &= 0xffff;
    }
    for n in 0..8 {
        c.gpr[n] = if image.wide {
            image.regs[n]
        } else {
            c.gpr[n] & 0xffff_0000 | image.regs[n]
        };
    }
    // Selectors first, so that a fault on the way leaves the new task's.
    for n in 0..6 {
        c.seg[n] = Seg::new(image.segs[n], 0, 0, UNUSABLE);
    }
    c.ldtr = Seg::new(image.ldt, 0, 0, UNUSABLE);
    if image.wide && c.paging() && c.cr3 != image.cr3 {
        c.cr3 = image.cr3;
        core.tlb_flush_local();
    }
    core.cpu.dr[7] &= !0x155;
    let v86 = core.cpu.v86();
    core.cpu.cpl = if v86 {
        3
    } else {
        image.segs[seg::CS] as u8 & 3
    };
    core.update_mode();
    load_ldt(core, image.ldt)?;
    if v86 {
        for n in 0..6 {
            load_flat(core, n, image.segs[n]);
        }
        core.update_mode();
    } else {
        load_segments(core, image)?;
    }
    if core.cpu.rip > u64::from(core.cpu.seg[seg::CS].limit) {
        return Err(Exception::gp0().into());
    }
    if image.trap {
        core.cpu.dr[6] |= 1 << 15;
        return Err(Exception::new(arch::exception::DB).into());
    }
    Ok(())
}

fn load_ldt(core: &mut Core, selector: u16) -> Exec {
    if null(selector) {
        return Ok(());
    }
    let found = if selector & 4 == 0 {
        core.descriptor(selector)?
    } else {
        None
    };
    match found {
        Some(d) if d.system() && d.kind() == 2 && d.present() => {
            core.cpu.ldtr = d.seg(selector);
            Ok(())
        }
        _ => Err(ts(selector).into()),
    }
}

fn load_segments(core: &mut Core, image: &Image) -> Exec {
    let cs = image.segs[seg::CS];
    let cpl = core.cpu.cpl;
    let mut d = named(core, cs)?;
    let dpl_ok = if d.conforming() {
        d.dpl() <= cpl
    } else {
        d.dpl() == cpl
    };
    if !d.code() || !dpl_ok {
        return Err(ts(cs).into());
    }
    if !d.present() {
        return Err(np(cs).into());
    }
    core.mark_accessed(&mut d)?;
    core.cpu.seg[seg::CS] = d.seg(cs);
    core.update_mode();
    let ss = image.segs[seg::SS];
    let mut d = named(core, ss)?;
    if !d.writable() || d.dpl() != cpl || ss as u8 & 3 != cpl {
        return Err(ts(ss).into());
    }
    if !d.present() {
        return Err(descriptor::ss(ss).into());
    }
    core.mark_accessed(&mut d)?;
    core.cpu.seg[seg::SS] = d.seg(ss);
    for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let s = image.segs[n];
        if null(s) {
            continue;
        }
        let mut d = named(core, s)?;
        let level = cpl.max(s as u8 & 3);
        if !d.readable() || !d.conforming() && d.dpl() < level {
            return Err(ts(s).into());
        }
        if !d.present() {
            return Err(np(s).into());
        }
        core.mark_accessed(&mut d)?;
        core.cpu.seg[n] = d.seg(s);
    }
    debug_assert!(operand::stack_mask(core) <= 0xffff_ffff);
    Ok(())
}

fn named(core: &mut Core, selector: u16) -> Exec<Descriptor> {
    if null(selector) {
        return Err(ts(selector).into());
    }
    match core.descriptor(selector)? {
        Some(d) => Ok(d),
        None => Err(ts(selector).into()),
    }
}
