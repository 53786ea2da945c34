//! Hardware breakpoints (SDM vol. 3B, chapter 18). Only looked at while DR7
//! enables any.

use arch::{Exception, exception};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register};

use crate::core::{Core, Exec};
use crate::cpu::{cr, flag, seg};
use crate::interpret::operand;

/// R/W field of a breakpoint.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const IO: u64 = 2;
const READ_WRITE: u64 = 3;

impl Core {
    /// Breakpoints of DR7 that a range of addresses hits, as bits of DR6, for
    /// the kinds of access in `kinds` (bit n: R/W field n).
    fn breakpoints(&self, at: u64, size: u64, kinds: u64) -> u64 {
        let dr7 = self.cpu.dr[7];
        (0..4)
            .filter(|n| {
                let field = dr7 >> (16 + 4 * n);
                let kind = field & 3;
                if dr7 >> (2 * n) & 3 == 0 || kinds >> kind & 1 == 0 {
                    return false;
                }
                let len = match field >> 2 & 3 {
                    0 => 1,
                    1 => 2,
                    2 => 8,
                    _ => 4,
                };
                let start = self.cpu.dr[*n as usize] & !(len - 1);
                at < start.saturating_add(len) && start < at.saturating_add(size)
            })
            .fold(0, |bits, n| bits | 1 << n)
    }

    /// Whether an enabled code breakpoint is on a linear address.
    pub fn code_breakpoint(&self, la: u64) -> bool {
        self.cpu.dr[7] & 0xff != 0 && self.breakpoints(la, 1, 1 << EXECUTE) != 0
    }
}

/// Data and I/O breakpoints that the instruction at rip hits if it completes,
/// as bits of DR6. Taken from its operands beforehand, so that loads and
/// stores need no check of their own.
pub(crate) fn data_breakpoints(core: &Core, i: &Instruction) -> u64 {
    // Anything but code breakpoints?
    if core.cpu.dr[7] & 0x3333_0000 == 0 || core.cpu.dr[7] & 0xff == 0 {
        return 0;
    }
    let mut hits = port_breakpoints(core, i);
    for_each_access(core, i, |start, len, _, writes| {
        let kinds = 1 << READ_WRITE | u64::from(writes) << WRITE;
        hits |= core.breakpoints(start, len, kinds);
    });
    hits
}

/// Calls `f` with first linear address, length, whether it reads and whether
/// it writes, for each access to memory that the instruction at rip makes if
/// it completes.
pub(crate) fn for_each_access(
    core: &Core,
    i: &Instruction,
    mut f: impl FnMut(u64, u64, bool, bool),
) {
    let mut factory = InstructionInfoFactory::new();
    for m in factory.info(i).used_memory() {
        let writes = matches!(
            m.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        let reads = matches!(
            m.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        if !reads && !writes {
            continue;
        }
        let Some(la) = m.virtual_address(0, |r, _, _| Some(register(core, r))) else {
            continue;
        };
        let (start, len) = extent(core, i, la, (m.memory_size().size() as u64).max(1));
        f(start, len, reads, writes);
    }
}

/// Value of a general register, or base of a segment register.
fn register(core: &Core, r: Register) -> u64 {
    match operand::seg_index(r) {
        Some(s) if core.cpu.is64() && s < seg::FS => 0,
        Some(s) => core.cpu.seg[s].base,
        None => operand::read_gpr(&core.cpu, r),
    }
}

/// First byte and length of an access; of all its iterations if repeated.
fn extent(core: &Core, i: &Instruction, la: u64, size: u64) -> (u64, u64) {
    let repeated = i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix());
    if !repeated {
        return (la, size);
    }
    let len = core.cpu.gpr[1].min(1 << 32).saturating_mul(size);
    if core.cpu.rflags & flag::DF != 0 {
        (la.wrapping_add(size).wrapping_sub(len), len)
    } else {
        (la, len)
    }
}

fn port_breakpoints(core: &Core, i: &Instruction) -> u64 {
    let (port, size) = match i.mnemonic() {
        M::In => (1, operand::operand_size(i, 0)),
        M::Out => (0, operand::operand_size(i, 1)),
        M::Insb | M::Outsb => (2, 1),
        M::Insw | M::Outsw => (2, 2),
        M::Insd | M::Outsd => (2, 4),
        _ => return 0,
    };
    if core.cpu.cr4 & cr::CR4_DE == 0 {
        return 0;
    }
    let port = if port < 2 && i.op_kind(port) == OpKind::Immediate8 {
        u64::from(i.immediate8())
    } else {
        core.cpu.gpr[2] & 0xffff
    };
    core.breakpoints(port, size as u64, 1 << IO)
}

/// The check before an instruction while DR7 enables anything: a code
/// breakpoint at the current instruction is a fault, unless RF is set.
///
/// # Errors
/// #DB, with DR6 saying which.
pub fn code_breakpoint(core: &mut Core) -> Exec {
    if core.cpu.dr[7] & 0xff == 0 || core.cpu.rflags & flag::RF != 0 {
        return Ok(());
    }
    let hits = core.breakpoints(core.linear_rip(), 1, 1 << EXECUTE);
    if hits == 0 {
        return Ok(());
    }
    core.cpu.dr[6] = core.cpu.dr[6] & !15 | hits;
    Err(Exception::new(exception::DB).into())
}
