//! `in`, `out` and their permission (SDM vol. 1, chapter 19).

use arch::Exception;
use iced_x86::{Instruction, OpKind, Register};

use crate::core::{Core, Exec};
use crate::interpret::operand::{gpr_size, read_gpr, write_gpr};

impl Core {
    /// Checks that the current code may access `size` (1, 2, 4) ports from
    /// `port`: IOPL, or the I/O permission bitmap of the TSS.
    ///
    /// # Errors
    /// #GP(0); #PF of the TSS.
    #[inline]
    pub fn check_io(&mut self, port: u16, size: usize) -> Exec {
        let c = &self.cpu;
        if !c.protected() || !c.v86() && c.cpl <= c.iopl() {
            return Ok(());
        }
        self.check_io_bitmap(port, size)
    }

    #[cold]
    fn check_io_bitmap(&mut self, port: u16, size: usize) -> Exec {
        let tr = self.cpu.tr;
        let denied = Exception::gp0().into();
        // Only 32- and 64-bit TSSs have a map.
        if tr.rights & 0x80 == 0 || tr.rights & 8 == 0 || tr.limit < 0x67 {
            return Err(denied);
        }
        let start = self.read_system(self.table_address(tr.base.wrapping_add(0x66)), 2)? as u32;
        let at = start + u32::from(port / 8);
        // Always two bytes, as an access may straddle.
        if at + 1 > tr.limit {
            return Err(denied);
        }
        let la = self.table_address(tr.base.wrapping_add(u64::from(at)));
        let bits = self.read_system(la, 2)? >> (port & 7);
        if bits & ((1 << size) - 1) != 0 {
            return Err(denied);
        }
        Ok(())
    }
}

fn port(core: &Core, i: &Instruction, op: u32) -> u16 {
    if i.op_kind(op) == OpKind::Register {
        read_gpr(&core.cpu, Register::DX) as u16
    } else {
        u16::from(i.immediate8())
    }
}

/// `in`.
pub(crate) fn input(core: &mut Core, i: &Instruction) -> Exec {
    let reg = i.op0_register();
    let size = gpr_size(reg);
    let port = port(core, i, 1);
    core.check_io(port, size)?;
    let v = core.io_read(port, size);
    write_gpr(&mut core.cpu, reg, u64::from(v));
    Ok(())
}

/// `out`.
pub(crate) fn output(core: &mut Core, i: &Instruction) -> Exec {
    let reg = i.op1_register();
    let size = gpr_size(reg);
    let port = port(core, i, 0);
    core.check_io(port, size)?;
    let v = read_gpr(&core.cpu, reg) as u32;
    core.io_write(port, size, v);
    Ok(())
}
