//! SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS: the hottest system
//! instructions of a kernel, so each is one straight path (SDM vol. 2B; AMD
//! APM vol. 3 for SYSCALL outside 64-bit mode).

use std::mem::swap;

use arch::Exception;
use arch::cpuid::Vendor;
use iced_x86::Instruction;

use crate::core::{Core, Exec};
use crate::cpu::{Seg, cr, flag, seg};
use crate::interpret::operand::{canonical, next_ip};
use crate::system::descriptor::null;

/// Rights of 64-bit code, of CPL 0.
pub(crate) const CODE64: u32 = 0xa09b;
const CODE32: u32 = 0xc09b;
/// Rights of a flat stack, of CPL 0.
pub(crate) const DATA: u32 = 0xc093;
/// What makes either of CPL 3.
pub(crate) const USER: u32 = 3 << 5;

fn flat(selector: u16, rights: u32) -> Seg {
    Seg::new(selector, 0, 0xffff_ffff, rights)
}

/// RFLAGS that SYSRET takes from R11.
pub(crate) const SYSRET_FLAGS: u64 = 0x003c_7fd7;

/// `syscall`.
pub(crate) fn syscall(core: &mut Core, i: &Instruction) -> Exec {
    if core.cpu.efer & cr::EFER_SCE == 0 {
        return Err(Exception::ud().into());
    }
    let next = next_ip(core, i);
    let c = &mut *core.cpu;
    if c.bits == 64 {
        c.rip = c.lstar;
    } else {
        if core.shared.cpuid.vendor() != Vendor::Amd || !c.protected() {
            return Err(Exception::ud().into());
        }
        if !c.long_mode() {
            return syscall_legacy(core, next);
        }
        c.rip = c.cstar;
    }
    c.gpr[1] = next;
    c.gpr[11] = c.rflags & !flag::RF;
    c.rflags = c.rflags & !(c.sfmask | flag::RF) | flag::ONE;
    let cs = (c.star >> 32) as u16 & 0xfffc;
    c.seg[seg::CS] = flat(cs, CODE64);
    c.seg[seg::SS] = flat(cs.wrapping_add(8), DATA);
    c.cpl = 0;
    c.bits = 64;
    core.update_view();
    Ok(())
}

/// Outside IA-32e mode (AMD only).
fn syscall_legacy(core: &mut Core, next: u64) -> Exec {
    let c = &mut *core.cpu;
    c.gpr[1] = next & 0xffff_ffff;
    c.rip = c.star & 0xffff_ffff;
    c.rflags &= !(flag::IF | flag::VM | flag::RF);
    let cs = (c.star >> 32) as u16 & 0xfffc;
    c.seg[seg::CS] = flat(cs, CODE32);
    c.seg[seg::SS] = flat(cs.wrapping_add(8), DATA);
    c.cpl = 0;
    core.update_mode();
    Ok(())
}

/// `sysret` (to compatibility mode) and `sysretq`.
pub(crate) fn sysret(core: &mut Core, wide: bool) -> Exec {
    let c = &mut *core.cpu;
    if c.efer & cr::EFER_SCE == 0 || !c.protected() {
        return Err(Exception::ud().into());
    }
    let amd = core.shared.cpuid.vendor() == Vendor::Amd;
    if c.bits != 64 && !amd {
        return Err(Exception::ud().into());
    }
    if c.cpl != 0 || wide && !canonical(c.gpr[1]) {
        return Err(Exception::gp0().into());
    }
    let base = (c.star >> 48) as u16;
    if wide {
        c.rip = c.gpr[1];
        c.seg[seg::CS] = flat(base.wrapping_add(16) | 3, CODE64 | USER);
        c.bits = 64;
    } else {
        c.rip = c.gpr[1] & 0xffff_ffff;
        c.seg[seg::CS] = flat(base | 3, CODE32 | USER);
        c.bits = 32;
    }
    if c.efer & cr::EFER_LMA != 0 {
        c.rflags = c.gpr[11] & SYSRET_FLAGS | flag::ONE;
    } else {
        c.rflags |= flag::IF;
    }
    c.seg[seg::SS] = flat(base.wrapping_add(8) | 3, DATA | USER);
    c.cpl = 3;
    core.update_view();
    Ok(())
}

/// `swapgs`.
#[inline]
pub(crate) fn swapgs(core: &mut Core) -> Exec {
    let c = &mut *core.cpu;
    if c.bits != 64 {
        return Err(Exception::ud().into());
    }
    if c.cpl != 0 {
        return Err(Exception::gp0().into());
    }
    swap(&mut c.seg[seg::GS].base, &mut c.kernel_gs_base);
    Ok(())
}

fn sysenter_missing(core: &Core) -> bool {
    core.cpu.long_mode() && core.shared.cpuid.vendor() == Vendor::Amd
}

/// `sysenter`.
pub(crate) fn sysenter(core: &mut Core) -> Exec {
    if sysenter_missing(core) {
        return Err(Exception::ud().into());
    }
    let c = &mut *core.cpu;
    let cs = c.sysenter_cs as u16;
    if !c.protected() || null(cs) {
        return Err(Exception::gp0().into());
    }
    let long = c.long_mode();
    let m = if long { u64::MAX } else { 0xffff_ffff };
    c.rflags &= !(flag::VM | flag::IF | flag::RF);
    c.gpr[4] = c.sysenter_esp & m;
    c.rip = c.sysenter_eip & m;
    let cs = cs & 0xfffc;
    c.seg[seg::CS] = flat(cs, if long { CODE64 } else { CODE32 });
    c.seg[seg::SS] = flat(cs.wrapping_add(8), DATA);
    c.cpl = 0;
    core.update_mode();
    Ok(())
}

/// `sysexit`.
pub(crate) fn sysexit(core: &mut Core, wide: bool) -> Exec {
    if sysenter_missing(core) {
        return Err(Exception::ud().into());
    }
    let c = &mut *core.cpu;
    let cs = c.sysenter_cs as u16;
    let (ip, sp) = (c.gpr[2], c.gpr[1]);
    if !c.protected() || c.cpl != 0 || null(cs) || wide && !(canonical(ip) && canonical(sp)) {
        return Err(Exception::gp0().into());
    }
    let (first, rights, m) = if wide {
        (32, CODE64, u64::MAX)
    } else {
        (16, CODE32, 0xffff_ffff)
    };
    let code = cs.wrapping_add(first) | 3;
    c.gpr[4] = sp & m;
    c.rip = ip & m;
    c.seg[seg::CS] = flat(code, rights | USER);
    c.seg[seg::SS] = flat(code.wrapping_add(8), DATA | USER);
    c.cpl = 3;
    core.update_mode();
    Ok(())
}
