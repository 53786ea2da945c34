//! String instructions, with and without repetition.
//!
//! A repeated one runs a bounded number of iterations and then returns with
//! `rip` still on itself, so that interrupts get through. Forward `movs` and
//! `stos` work in runs within pages.

use std::sync::atomic::Ordering;

use iced_x86::{Instruction, OpKind};

use super::alu;
use super::integer::set_status;
use super::operand::*;
use crate::core::{Core, Exec};
use crate::cpu::flag::{DF, TF, ZF};
use crate::cpu::seg;

/// Iterations before a repeated instruction lets interrupts through.
const MAX_ITERATIONS: u64 = 4096;
/// Page runs before a bulk copy or fill lets interrupts through.
const MAX_RUNS: u32 = 16;
/// Iterations one by one after an element that is not in plain RAM (or
/// crosses a page).
const SLOW_STRETCH: u64 = 8;

/// The string instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    Ins,
    Outs,
}

/// What stays the same over all iterations.
struct Plan {
    kind: Kind,
    /// Element size in bytes.
    size: usize,
    /// Address size in bytes.
    width: usize,
    /// Segment of the source.
    source: usize,
    /// What an iteration adds to rSI and rDI.
    delta: u64,
}

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

impl Plan {
    fn new(core: &Core, i: &Instruction, kind: Kind, size: usize) -> Self {
        let op = if i.op0_kind() == OpKind::Register {
            i.op1_kind()
        } else {
            i.op0_kind()
        };
        let width = match op {
            OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
            _ => 8,
        };
        let source = match kind {
            Kind::Movs | Kind::Lods | Kind::Cmps | Kind::Outs => {
                seg_index(i.memory_segment()).unwrap_or(seg::DS)
            }
            _ => seg::DS,
        };
        let delta = if core.cpu.rflags & DF == 0 {
            size as u64
        } else {
            (size as u64).wrapping_neg()
        };
        Self {
            kind,
            size,
            width,
            source,
            delta,
        }
    }

    fn source(&self, core: &Core, size: usize) -> Exec<u64> {
        let offset = read_reg(&core.cpu, RSI, self.width);
        linear(core, self.source, offset, size, false)
    }

    fn target(&self, core: &Core, size: usize, write: bool) -> Exec<u64> {
        let offset = read_reg(&core.cpu, RDI, self.width);
        linear(core, seg::ES, offset, size, write)
    }

    fn advance(&self, core: &mut Core, reg: usize, delta: u64) {
        let v = read_reg(&core.cpu, reg, self.width).wrapping_add(delta);
        write_reg(&mut core.cpu, reg, self.width, v);
    }
}

/// Executes a string instruction with elements of `size` bytes.
pub(super) fn string(core: &mut Core, i: &Instruction, next: u64, kind: Kind, size: usize) -> Exec {
    let plan = Plan::new(core, i, kind, size);
    if !i.has_rep_prefix() && !i.has_repne_prefix() {
        iteration(core, &plan)?;
        core.cpu.rip = next;
        return Ok(());
    }
    let mut count = read_reg(&core.cpu, RCX, plan.width);
    let stepping = core.cpu.rflags & TF != 0;
    let bulk = matches!(kind, Kind::Movs | Kind::Stos) && core.cpu.rflags & DF == 0 && !stepping;
    let mut runs = 0;
    let mut single = 0;
    // Iterations to do one by one before the next attempt at a run.
    let mut slow = 0;
    let limit = if stepping { 1 } else { MAX_ITERATIONS };
    while count != 0 {
        let mut done = 0;
        if bulk && slow == 0 {
            done = run(core, &plan, count)?;
            if done == 0 {
                slow = SLOW_STRETCH;
            } else {
                runs += 1;
            }
        }
        if done == 0 {
            iteration(core, &plan)?;
            done = 1;
            single += 1;
            slow = u64::saturating_sub(slow, 1);
        }
        count -= done;
        write_reg(&mut core.cpu, RCX, plan.width, count);
        if ended(core, i, kind) {
            break;
        }
        let waiting = core.cpu.pending.load(Ordering::Relaxed) != 0;
        if count != 0 && (single >= limit || runs >= MAX_RUNS || waiting) {
            return Ok(());
        }
    }
    core.cpu.rip = next;
    Ok(())
}

/// Whether `repe` or `repne` ends here because of ZF.
#[inline]
fn ended(core: &Core, i: &Instruction, kind: Kind) -> bool {
    if !matches!(kind, Kind::Scas | Kind::Cmps) {
        return false;
    }
    let zf = core.cpu.rflags & ZF != 0;
    if i.has_repne_prefix() { zf } else { !zf }
}

/// One iteration; a fault leaves everything as before it.
fn iteration(core: &mut Core, p: &Plan) -> Exec {
    let size = p.size;
    match p.kind {
        Kind::Movs => {
            let v = core.read(p.source(core, size)?, size)?;
            core.write(p.target(core, size, true)?, size, v)?;
        }
        Kind::Stos => {
            let v = read_reg(&core.cpu, 0, size);
            core.write(p.target(core, size, true)?, size, v)?;
        }
        Kind::Lods => {
            let v = core.read(p.source(core, size)?, size)?;
            write_reg(&mut core.cpu, 0, size, v);
        }
        Kind::Scas => {
            let v = core.read(p.target(core, size, false)?, size)?;
            let (_, f) = alu::sub(read_reg(&core.cpu, 0, size), v, 0, size);
            set_status(core, f);
        }
        Kind::Cmps => {
            let a = core.read(p.source(core, size)?, size)?;
            let b = core.read(p.target(core, size, false)?, size)?;
            let (_, f) = alu::sub(a, b, 0, size);
            set_status(core, f);
        }
        Kind::Ins => {
            let port = core.cpu.gpr[2] as u16;
            core.check_io(port, size)?;
            let la = p.target(core, size, true)?;
            // The device must not be asked if the store would fault.
            core.probe_write(la, size)?;
            let v = core.io_read(port, size);
            core.write(la, size, u64::from(v))?;
        }
        Kind::Outs => {
            let port = core.cpu.gpr[2] as u16;
            core.check_io(port, size)?;
            let v = core.read(p.source(core, size)?, size)?;
            core.io_write(port, size, v as u32);
        }
    }
    if matches!(p.kind, Kind::Movs | Kind::Lods | Kind::Cmps | Kind::Outs) {
        p.advance(core, RSI, p.delta);
    }
    if !matches!(p.kind, Kind::Lods | Kind::Outs) {
        p.advance(core, RDI, p.delta);
    }
    Ok(())
}

/// Bytes from an offset to the end of its address space, at most a page.
fn room(offset: u64, width: usize) -> u64 {
    (mask(width) - offset).saturating_add(1).min(4096)
}

/// Runs as many forward iterations of `movs` or `stos` as lie in plain RAM in
/// the current pages; says how many (0: run one by itself).
fn run(core: &mut Core, p: &Plan, count: u64) -> Exec<u64> {
    let size = p.size as u64;
    let di = read_reg(&core.cpu, RDI, p.width);
    let mut bytes = count.saturating_mul(size).min(room(di, p.width));
    let from = if p.kind == Kind::Movs {
        bytes = bytes.min(room(read_reg(&core.cpu, RSI, p.width), p.width));
        bytes = bytes.min(page_rest(p.source(core, p.size)?));
        if bytes < size {
            return Ok(0);
        }
        // A run that breaks a segment limit is for the slow path to find.
        let Ok(la) = p.source(core, bytes as usize) else {
            return Ok(0);
        };
        match core.host_run(la, false, bytes as usize)? {
            Some((pointer, n)) => {
                bytes = n as u64;
                Some(pointer)
            }
            None => return Ok(0),
        }
    } else {
        None
    };
    bytes = bytes.min(page_rest(p.target(core, p.size, true)?));
    bytes -= bytes % size;
    if bytes == 0 {
        return Ok(0);
    }
    let Ok(la) = p.target(core, bytes as usize, true) else {
        return Ok(0);
    };
    let Some((to, n)) = core.host_run(la, true, bytes as usize)? else {
        return Ok(0);
    };
    let bytes = n - n % p.size;
    if bytes == 0 {
        return Ok(0);
    }
    match from {
        // SAFETY: both are `bytes` bytes of RAM, as `host_run` says; they may
        // overlap.
        Some(from) => unsafe { copy_forward(from, to, bytes, p.size) },
        // SAFETY: `to` is `bytes` writable bytes of RAM.
        None => unsafe { fill(to, bytes, core.cpu.gpr[0], p.size) },
    }
    if from.is_some() {
        p.advance(core, RSI, bytes as u64);
    }
    p.advance(core, RDI, bytes as u64);
    Ok((bytes / p.size) as u64)
}

fn page_rest(la: u64) -> u64 {
    4096 - (la & 0xfff)
}

/// Copies element by element in ascending order, as the CPU does.
///
/// # Safety
/// `bytes` bytes can be read at `from` and written at `to`; `bytes` is a
/// multiple of `size` (1, 2, 4 or 8).
unsafe fn copy_forward(from: *const u8, to: *mut u8, bytes: usize, size: usize) {
    let ahead = (to as usize).wrapping_sub(from as usize);
    if ahead == 0 || ahead >= bytes {
        // SAFETY: by contract.
        unsafe { std::ptr::copy(from, to, bytes) };
        return;
    }
    // The target begins inside the source: elements written are read again.
    let mut n = 0;
    while n < bytes {
        // SAFETY: by contract.
        unsafe {
            match size {
                1 => to.add(n).write(from.add(n).read()),
                2 => element::<u16>(from, to, n),
                4 => element::<u32>(from, to, n),
                _ => element::<u64>(from, to, n),
            }
        }
        n += size;
    }
}

/// # Safety
/// A `T` can be read `n` bytes after `from` and written `n` bytes after `to`.
#[inline]
unsafe fn element<T: Copy>(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: by contract.
    unsafe {
        let v = from.add(n).cast::<T>().read_unaligned();
        to.add(n).cast::<T>().write_unaligned(v);
    }
}

/// Fills with copies of the low `size` bytes of `value`.
///
/// # Safety
/// `bytes` bytes can be written at `to`; `bytes` is a multiple of `size`.
unsafe fn fill(to: *mut u8, bytes: usize, value: u64, size: usize) {
    let v = value & mask(size);
    let byte = v & 0xff;
    if byte * (mask(size) / 0xff) == v {
        // SAFETY: by contract.
        unsafe { std::ptr::write_bytes(to, byte as u8, bytes) };
        return;
    }
    let mut n = 0;
    while n < bytes {
        // SAFETY: by contract.
        unsafe {
            match size {
                2 => to.add(n).cast::<u16>().write_unaligned(v as u16),
                4 => to.add(n).cast::<u32>().write_unaligned(v as u32),
                _ => to.add(n).cast::<u64>().write_unaligned(v),
            }
        }
        n += size;
    }
}
