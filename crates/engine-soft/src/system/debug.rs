//! Hardware breakpoints (SDM vol. 3B, chapter 18). Only looked at while DR7
//! enables any.

use arch::{Exception, exception};

use crate::core::{Core, Exec};
use crate::cpu::{flag, seg};

/// R/W field of a breakpoint.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const IO: u64 = 2;

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

    /// Whether an enabled data breakpoint is hit; sets DR6. The #DB comes
    /// after the instruction.
    pub fn data_breakpoint(&mut self, la: u64, size: u64, write: bool) -> bool {
        if self.cpu.dr[7] & 0xff == 0 {
            return false;
        }
        let hits = self.breakpoints(la, size, 1 << 3 | u64::from(write) << WRITE);
        self.cpu.dr[6] |= hits;
        hits != 0
    }

    /// As [`Self::data_breakpoint`], for ports (CR4.DE).
    pub fn io_breakpoint(&mut self, port: u16, size: u64) -> bool {
        if self.cpu.dr[7] & 0xff == 0 || self.cpu.cr4 & crate::cpu::cr::CR4_DE == 0 {
            return false;
        }
        let hits = self.breakpoints(u64::from(port), size, 1 << IO);
        self.cpu.dr[6] |= hits;
        hits != 0
    }
}

/// The check before an instruction while DR7 enables anything: a code
/// breakpoint at the current instruction is a fault, unless RF is set.
///
/// # Errors
/// #DB, with DR6 saying which.
pub fn code_breakpoint(core: &mut Core) -> Exec<bool> {
    if core.cpu.dr[7] & 0xff == 0 || core.cpu.rflags & flag::RF != 0 {
        return Ok(false);
    }
    let base = core.cpu.seg[seg::CS].base;
    let la = if core.cpu.is64() {
        core.cpu.rip
    } else {
        base.wrapping_add(core.cpu.rip) & 0xffff_ffff
    };
    let hits = core.breakpoints(la, 1, 1 << EXECUTE);
    if hits == 0 {
        return Ok(false);
    }
    core.cpu.dr[6] = core.cpu.dr[6] & !15 | hits;
    Err(Exception::new(exception::DB).into())
}
