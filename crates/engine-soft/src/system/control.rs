//! Control, debug and extended control registers, and the descriptor-table
//! registers (SDM vol. 2A: MOV CR, MOV DR, LMSW, XSETBV, LGDT …; vol. 3A, 2.5).

use arch::{Exception, exception};
use iced_x86::{Instruction, OpKind, Register};

use crate::core::{Core, Exec};
use crate::cpu::{cr, flag, seg};
use crate::interpret::operand::{self, canonical, read_gpr, write_gpr};
use crate::system::segment::{read16, store16};

const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_VALID: u64 = cr::CR0_PE
    | cr::CR0_MP
    | cr::CR0_EM
    | cr::CR0_TS
    | cr::CR0_NE
    | cr::CR0_WP
    | cr::CR0_AM
    | CR0_NW
    | CR0_CD
    | cr::CR0_PG;
const CR4_PCE: u64 = 1 << 8;
/// CR4 bits of what CPUID shows.
const CR4_VALID: u64 = cr::CR4_TSD
    | cr::CR4_DE
    | cr::CR4_PSE
    | cr::CR4_PAE
    | cr::CR4_MCE
    | cr::CR4_PGE
    | CR4_PCE
    | cr::CR4_OSFXSR
    | cr::CR4_OSXMMEXCPT
    | cr::CR4_UMIP
    | cr::CR4_FSGSBASE
    | cr::CR4_OSXSAVE
    | cr::CR4_SMEP
    | cr::CR4_SMAP;
/// CR4 bits that decide how linear addresses translate.
const CR4_PAGING: u64 = cr::CR4_PSE | cr::CR4_PAE | cr::CR4_PGE | cr::CR4_SMEP | cr::CR4_SMAP;

fn fault() -> crate::core::Trap {
    Exception::gp0().into()
}

/// Sets CR0, with its checks and what follows from it.
///
/// # Errors
/// #GP(0).
pub fn write_cr0(core: &mut Core, value: u64) -> Exec {
    let old = core.cpu.cr0;
    let bad = value >> 32 != 0
        || value & cr::CR0_PG != 0 && value & cr::CR0_PE == 0
        || value & CR0_NW != 0 && value & CR0_CD == 0;
    if bad {
        return Err(fault());
    }
    let new = value & CR0_VALID | cr::CR0_ET;
    let c = &mut *core.cpu;
    if new & !old & cr::CR0_PG != 0 && c.efer & cr::EFER_LME != 0 {
        if c.cr4 & cr::CR4_PAE == 0 || c.seg[seg::CS].long() {
            return Err(fault());
        }
        c.efer |= cr::EFER_LMA;
    }
    if old & !new & cr::CR0_PG != 0 {
        if c.bits == 64 {
            return Err(fault());
        }
        c.efer &= !cr::EFER_LMA;
    }
    c.cr0 = new;
    if (old ^ new) & (cr::CR0_PG | cr::CR0_WP | cr::CR0_PE) != 0 {
        core.tlb_flush_all();
    }
    core.update_mode();
    Ok(())
}

/// Loads CR3: drops all but global translations.
///
/// # Errors
/// #GP(0) for reserved bits.
pub fn write_cr3(core: &mut Core, value: u64) -> Exec {
    if value >> arch::cpuid::PHYSICAL_BITS != 0 {
        return Err(fault());
    }
    core.cpu.cr3 = value;
    core.tlb_flush_local();
    Ok(())
}

/// Sets CR4, with its checks and what follows from it.
///
/// # Errors
/// #GP(0).
pub fn write_cr4(core: &mut Core, value: u64) -> Exec {
    let old = core.cpu.cr4;
    if value & !CR4_VALID != 0 || core.cpu.long_mode() && value & cr::CR4_PAE == 0 {
        return Err(fault());
    }
    core.cpu.cr4 = value;
    if (old ^ value) & CR4_PAGING != 0 {
        core.tlb_flush_all();
    }
    core.update_mode();
    Ok(())
}

fn number(reg: Register, first: Register) -> usize {
    (reg as usize).wrapping_sub(first as usize)
}

/// `mov` to or from a control register.
pub(crate) fn mov_cr(core: &mut Core, i: &Instruction) -> Exec {
    let write = i.op0_register().is_cr();
    let reg = if write {
        i.op0_register()
    } else {
        i.op1_register()
    };
    let n = number(reg, Register::CR0);
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::ud().into());
    }
    core.need_cpl0()?;
    if !write {
        let c = &core.cpu;
        let v = match n {
            0 => c.cr0,
            2 => c.cr2,
            3 => c.cr3,
            4 => c.cr4,
            _ => u64::from(core.lapic.tpr() >> 4),
        };
        write_gpr(&mut core.cpu, i.op0_register(), v);
        return Ok(());
    }
    let v = read_gpr(&core.cpu, i.op1_register());
    match n {
        0 => write_cr0(core, v),
        2 => {
            core.cpu.cr2 = v;
            Ok(())
        }
        3 => write_cr3(core, v),
        4 => write_cr4(core, v),
        _ if v > 15 => Err(fault()),
        _ => {
            core.lapic.set_tpr((v as u8) << 4);
            Ok(())
        }
    }
}

/// DR6 bits that are always one.
pub(crate) const DR6_ONES: u64 = 0xffff_0ff0;
/// DR7 bits that are always one.
pub(crate) const DR7_ONES: u64 = 0x400;
const DR7_GD: u64 = 1 << 13;

/// `mov` to or from a debug register.
pub(crate) fn mov_dr(core: &mut Core, i: &Instruction) -> Exec {
    let write = i.op0_register().is_dr();
    let reg = if write {
        i.op0_register()
    } else {
        i.op1_register()
    };
    let mut n = number(reg, Register::DR0);
    if n > 7 || matches!(n, 4 | 5) && core.cpu.cr4 & cr::CR4_DE != 0 {
        return Err(Exception::ud().into());
    }
    core.need_cpl0()?;
    if matches!(n, 4 | 5) {
        n += 2;
    }
    if core.cpu.dr[7] & DR7_GD != 0 {
        core.cpu.dr[7] &= !DR7_GD;
        core.cpu.dr[6] |= 1 << 13;
        return Err(Exception::new(exception::DB).into());
    }
    if !write {
        let v = core.cpu.dr[n];
        write_gpr(&mut core.cpu, i.op0_register(), v);
        return Ok(());
    }
    let v = read_gpr(&core.cpu, i.op1_register());
    if n >= 6 && v >> 32 != 0 {
        return Err(fault());
    }
    core.cpu.dr[n] = match n {
        6 => v & 0xe00f | DR6_ONES,
        7 => v & 0xffff_2bff | DR7_ONES,
        _ => v,
    };
    if n == 7 {
        core.cpu.rflags &= !flag::RF;
    }
    Ok(())
}

/// `lmsw`.
pub(crate) fn lmsw(core: &mut Core, i: &Instruction) -> Exec {
    core.need_cpl0()?;
    let v = u64::from(read16(core, i, 0)?) & 15;
    // PE can be set but not cleared.
    let new = core.cpu.cr0 & !14 | v;
    write_cr0(core, new)
}

/// `smsw`.
pub(crate) fn smsw(core: &mut Core, i: &Instruction) -> Exec {
    core.check_umip()?;
    let v = core.cpu.cr0;
    store16(core, i, v)
}

/// `clts`.
pub(crate) fn clts(core: &mut Core) -> Exec {
    core.need_cpl0()?;
    core.cpu.cr0 &= !cr::CR0_TS;
    core.update_mode();
    Ok(())
}

/// `xgetbv`.
pub(crate) fn xgetbv(core: &mut Core) -> Exec {
    if core.cpu.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(Exception::ud().into());
    }
    if core.cpu.gpr[1] as u32 != 0 {
        return Err(fault());
    }
    core.cpu.gpr[0] = core.cpu.xcr0 & 0xffff_ffff;
    core.cpu.gpr[2] = core.cpu.xcr0 >> 32;
    Ok(())
}

/// `xsetbv`.
pub(crate) fn xsetbv(core: &mut Core) -> Exec {
    if core.cpu.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(Exception::ud().into());
    }
    core.need_cpl0()?;
    let v = core.cpu.gpr[0] & 0xffff_ffff | core.cpu.gpr[2] << 32;
    if core.cpu.gpr[1] as u32 != 0 || !core.xcr0_valid(v) {
        return Err(fault());
    }
    core.cpu.xcr0 = v;
    core.update_mode();
    Ok(())
}

/// `lgdt`, `lidt`.
pub(crate) fn load_table(core: &mut Core, i: &Instruction, idt: bool) -> Exec {
    core.need_cpl0()?;
    let wide = core.cpu.is64();
    let size = if wide { 8 } else { 4 };
    let la = operand::linear_operand(core, i, 0, size + 2, false)?;
    let limit = core.read(la, 2)? as u16;
    let mut base = core.read(la.wrapping_add(2), size)?;
    if wide && !canonical(base) {
        return Err(fault());
    }
    let short = matches!(
        i.code(),
        iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16
    );
    if short {
        base &= 0xff_ffff;
    }
    if idt {
        core.cpu.idt = (base, limit);
    } else {
        core.cpu.gdt = (base, limit);
    }
    Ok(())
}

/// `sgdt`, `sidt`.
pub(crate) fn store_table(core: &mut Core, i: &Instruction, idt: bool) -> Exec {
    core.check_umip()?;
    let (base, limit) = if idt { core.cpu.idt } else { core.cpu.gdt };
    let size = if core.cpu.is64() { 8 } else { 4 };
    let la = operand::linear_operand(core, i, 0, size + 2, true)?;
    let mut b = [0; 10];
    b[..2].copy_from_slice(&limit.to_le_bytes());
    b[2..].copy_from_slice(&base.to_le_bytes());
    core.write_bytes(la, &b[..size + 2])
}

/// `invlpg`.
pub(crate) fn invlpg(core: &mut Core, i: &Instruction) -> Exec {
    core.need_cpl0()?;
    let (s, offset) = operand::segment_offset(core, i, 0);
    let la = if core.cpu.is64() {
        if s >= seg::FS {
            offset.wrapping_add(core.cpu.seg[s].base)
        } else {
            offset
        }
    } else {
        offset.wrapping_add(core.cpu.seg[s].base) & 0xffff_ffff
    };
    core.tlb_flush_page(la);
    Ok(())
}

/// `cli`, `sti`.
pub(crate) fn set_interrupts(core: &mut Core, on: bool) -> Exec {
    if core.cpu.protected() && core.cpu.iopl() < core.cpu.cpl {
        return Err(fault());
    }
    if on {
        if core.cpu.rflags & flag::IF == 0 {
            core.cpu.rflags |= flag::IF;
            core.cpu.shadow = true;
        }
    } else {
        core.cpu.rflags &= !flag::IF;
    }
    Ok(())
}

/// `clac`, `stac`.
pub(crate) fn set_ac(core: &mut Core, on: bool) -> Exec {
    if core.cpu.cpl != 0 || !core.cpu.protected() {
        return Err(Exception::ud().into());
    }
    if on {
        core.cpu.rflags |= flag::AC;
    } else {
        core.cpu.rflags &= !flag::AC;
    }
    core.update_view();
    Ok(())
}

/// `rdfsbase`, `rdgsbase`, `wrfsbase`, `wrgsbase`.
pub(crate) fn segment_base(core: &mut Core, i: &Instruction, s: usize, write: bool) -> Exec {
    if !core.cpu.is64() || core.cpu.cr4 & cr::CR4_FSGSBASE == 0 {
        return Err(Exception::ud().into());
    }
    debug_assert_eq!(i.op0_kind(), OpKind::Register);
    let reg = i.op0_register();
    if write {
        let v = read_gpr(&core.cpu, reg);
        if !canonical(v) {
            return Err(fault());
        }
        core.cpu.seg[s].base = v;
    } else {
        let v = core.cpu.seg[s].base;
        write_gpr(&mut core.cpu, reg, v);
    }
    Ok(())
}

impl Core {
    /// #GP(0) for user code that asks for system addresses under CR4.UMIP.
    pub(crate) fn check_umip(&self) -> Exec {
        if self.cpu.cr4 & cr::CR4_UMIP != 0 && self.cpu.cpl > 0 {
            return Err(fault());
        }
        Ok(())
    }

    /// Whether XCR0 may have this value.
    pub(crate) fn xcr0_valid(&self, v: u64) -> bool {
        v & 1 != 0 && v & !self.shared.cpuid.xcr0_mask() == 0 && (v & 4 == 0 || v & 2 != 0)
    }
}
