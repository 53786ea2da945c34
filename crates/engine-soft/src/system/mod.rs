//! Segments, events, privileged instructions, MSRs, CPUID.
//!
//! * `descriptor`, [`segment`]: descriptor tables, segment registers.
//! * [`event`]: delivery through the IDT. `task`: hardware task switches.
//! * `transfer`, `syscall`: far transfers and the fast system calls.
//! * [`control`]: control and debug registers. [`msr`]: MSRs. `io`: ports.
//! * [`clock`]: TSC and the paravirtual clock. [`state`]: save and restore.

pub mod clock;
pub mod control;
mod debug;
pub(crate) mod descriptor;
pub mod event;
pub mod host;
mod io;
pub mod msr;
pub mod segment;
pub mod state;
pub(crate) mod syscall;
mod task;
mod transfer;

#[cfg(test)]
mod tests;

use arch::Exception;
use iced_x86::{Instruction, Mnemonic as M};

use crate::core::{Core, Exec, Trap};
use crate::cpu::{cr, seg};
use crate::interpret::operand::{next_ip, write_gpr};

pub use debug::code_breakpoint;
pub(crate) use debug::{data_breakpoints, for_each_access};
pub use event::{debug_trap, deliver_exception, deliver_interrupt, software_interrupt, take_nmi};
pub use msr::SystemState;
pub use segment::load_segment;
pub use state::{init_reset, startup};

/// Executes a system instruction (called by `interpret::step`) at the current
/// `rip`, and sets `rip` to where execution goes on.
///
/// # Errors
/// [`crate::core::Trap`]; a fault leaves the state as it was.
pub fn execute(core: &mut Core, i: &Instruction) -> Exec {
    match i.mnemonic() {
        M::Syscall => return syscall::syscall(core, i),
        M::Sysretq => return syscall::sysret(core, true),
        M::Iretq | M::Iretd | M::Iret => return transfer::iret(core, i),
        M::Sysret => return syscall::sysret(core, false),
        M::Sysenter => return syscall::sysenter(core),
        M::Sysexit => return syscall::sysexit(core, false),
        M::Sysexitq => return syscall::sysexit(core, true),
        M::Int => return event::software_interrupt(core, i, i.immediate8()),
        M::Int3 => return event::software_interrupt(core, i, 3),
        M::Int1 => return event::software_interrupt(core, i, 1),
        M::Into if core.cpu.rflags & crate::cpu::flag::OF != 0 => {
            return event::software_interrupt(core, i, 4);
        }
        M::Jmp => return transfer::branch(core, i, false),
        M::Call => return transfer::branch(core, i, true),
        M::Retf => return transfer::far_return(core, i),
        M::Hlt => {
            core.need_cpl0()?;
            core.cpu.rip = next_ip(core, i);
            return Err(Trap::Halt);
        }
        _ => {}
    }
    let next = next_ip(core, i);
    straight(core, i)?;
    core.cpu.rip = next;
    Ok(())
}

/// Instructions after which execution goes on with the next one.
fn straight(core: &mut Core, i: &Instruction) -> Exec {
    match i.mnemonic() {
        M::Swapgs => syscall::swapgs(core),
        M::Cli => control::set_interrupts(core, false),
        M::Sti => control::set_interrupts(core, true),
        M::Wrmsr => msr::wrmsr(core),
        M::Rdmsr => msr::rdmsr(core),
        M::Rdtsc => rdtsc(core, false),
        M::Rdtscp => rdtsc(core, true),
        M::Invlpg => control::invlpg(core, i),
        M::In => io::input(core, i),
        M::Out => io::output(core, i),
        M::Stac => control::set_ac(core, true),
        M::Clac => control::set_ac(core, false),
        M::Cpuid => {
            cpuid(core);
            Ok(())
        }
        M::Mov => mov(core, i),
        M::Push => segment::push(core, i),
        M::Pop => segment::pop(core, i),
        M::Rdfsbase => control::segment_base(core, i, seg::FS, false),
        M::Rdgsbase => control::segment_base(core, i, seg::GS, false),
        M::Wrfsbase => control::segment_base(core, i, seg::FS, true),
        M::Wrgsbase => control::segment_base(core, i, seg::GS, true),
        M::Rdpid => {
            let v = core.cpu.tsc_aux;
            write_gpr(&mut core.cpu, i.op0_register(), v);
            Ok(())
        }
        M::Xgetbv => control::xgetbv(core),
        M::Xsetbv => control::xsetbv(core),
        M::Clts => control::clts(core),
        M::Wbinvd | M::Invd => core.need_cpl0(),
        M::Into => Ok(()),
        _ => rare(core, i),
    }
}

/// Instructions of boot code, old programs, and those that this CPU lacks.
fn rare(core: &mut Core, i: &Instruction) -> Exec {
    match i.mnemonic() {
        M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => segment::load_far_pointer(core, i),
        M::Lgdt => control::load_table(core, i, false),
        M::Lidt => control::load_table(core, i, true),
        M::Sgdt => control::store_table(core, i, false),
        M::Sidt => control::store_table(core, i, true),
        M::Lldt => segment::load_system(core, i, false),
        M::Ltr => segment::load_system(core, i, true),
        M::Sldt => segment::store_system(core, i, false),
        M::Str => segment::store_system(core, i, true),
        M::Smsw => control::smsw(core, i),
        M::Lmsw => control::lmsw(core, i),
        M::Verr => segment::verify(core, i, false),
        M::Verw => segment::verify(core, i, true),
        M::Lar => segment::load_rights_or_limit(core, i, false),
        M::Lsl => segment::load_rights_or_limit(core, i, true),
        M::Arpl => segment::arpl(core, i),
        // WBNOINVD decodes as WBINVD where it is not shown.
        M::Wbnoinvd => core.need_cpl0(),
        M::Rdpmc => Err(Exception::gp0().into()),
        // The KVM hypercall: no call exists (-KVM_ENOSYS).
        M::Vmcall | M::Vmmcall if core.cpu.protected() => {
            core.cpu.gpr[0] = 1000u64.wrapping_neg();
            Ok(())
        }
        _ => Err(Exception::ud().into()),
    }
}

fn mov(core: &mut Core, i: &Instruction) -> Exec {
    if segment::is_mov(i.code()) {
        return segment::mov(core, i);
    }
    if i.op0_register().is_cr() || i.op1_register().is_cr() {
        control::mov_cr(core, i)
    } else if i.op0_register().is_dr() || i.op1_register().is_dr() {
        control::mov_dr(core, i)
    } else {
        Err(Exception::ud().into())
    }
}

fn rdtsc(core: &mut Core, with_aux: bool) -> Exec {
    if core.cpu.cr4 & cr::CR4_TSD != 0 && core.cpu.cpl > 0 {
        return Err(Exception::gp0().into());
    }
    let t = core.guest_tsc();
    core.cpu.gpr[0] = t & 0xffff_ffff;
    core.cpu.gpr[2] = t >> 32;
    if with_aux {
        core.cpu.gpr[1] = core.cpu.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

fn cpuid(core: &mut Core) {
    let c = &core.cpu;
    let now = arch::cpuid::Dynamic {
        osxsave: c.cr4 & cr::CR4_OSXSAVE != 0,
        xcr0: c.xcr0,
    };
    let leaf = c.gpr[0] as u32;
    let r = core
        .shared
        .cpuid
        .lookup(leaf, c.gpr[1] as u32, core.index, &now);
    let [a, b, c, d] = r.map(u64::from);
    core.cpu.gpr[0] = a;
    core.cpu.gpr[3] = b;
    core.cpu.gpr[1] = c;
    core.cpu.gpr[2] = d;
}
