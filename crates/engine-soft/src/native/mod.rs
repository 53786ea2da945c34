//! x87, MMX, SSE, AVX and other pure data instructions: executed by running
//! the same instruction on the host CPU with the guest's registers.
//!
//! [`execute`] recognises the instruction (`form`), makes the checks of the
//! control registers, copies a memory operand into a buffer, runs a small host
//! stub (`stub`) that works on that buffer, and copies the result back. What
//! the host must not run as it is (state saving, masked and gathered memory)
//! is done here: `save`, `masked`. The x87 registers live in the host CPU
//! (`x87`).

mod features;
mod form;
mod masked;
mod save;
mod stub;
mod x87;

use std::mem::offset_of;

use arch::{Exception, exception};
use iced_x86::Instruction;

use crate::core::{Core, Exec};
use crate::cpu::{Cpu, JitState, cr};
use crate::interpret::operand;
use form::{Action, Class, Form, Mem};

pub use features::Features;
pub use save::{reset, restore_xsave, save_xsave};
pub use x87::{enter_thread, leave_thread};

/// Bytes of the buffer that stands for the memory operand.
const BOUNCE_SIZE: usize = 256;
/// Where that buffer lies in [`Cpu`], 64-byte aligned.
const AT_OPERAND: usize =
    (offset_of!(Cpu, jit) + offset_of!(JitState, bounce)).next_multiple_of(64);
/// MXCSR going into and coming out of a stub.
const AT_MXCSR: usize = AT_OPERAND + BOUNCE_SIZE;
/// MXCSR that Rust code runs with.
const AT_DEFAULT_MXCSR: usize = AT_MXCSR + 8;
/// RFLAGS after the instruction.
const AT_FLAGS: usize = AT_MXCSR + 16;
const _: () = assert!(
    AT_FLAGS + 8 <= offset_of!(Cpu, jit) + offset_of!(JitState, bounce) + size_of::<[u64; 128]>()
);

/// MXCSR after reset, and the one that the ABI of the host wants.
const DEFAULT_MXCSR: u32 = 0x1f80;
/// MXCSR bits that the guest may set (FXSAVE's MXCSR_MASK).
const MXCSR_MASK: u32 = 0xffff;

/// What this module keeps for one vCPU.
pub struct NativeState {
    stubs: stub::Stubs,
    features: Features,
    /// The x87 registers while the thread was not entered.
    x87: x87::FxImage,
    /// The x87 registers are in the host CPU of this thread.
    entered: bool,
}

impl NativeState {
    /// State for a vCPU whose guest may use `features` (of which only those
    /// that the host has count).
    ///
    /// # Errors
    /// If the host gives no executable memory.
    pub fn new(features: Features) -> std::io::Result<Self> {
        Ok(Self {
            stubs: stub::Stubs::new()?,
            features: features.and(Features::host()),
            x87: x87::FxImage::INIT,
            entered: false,
        })
    }

    /// What the guest may use.
    pub fn features(&self) -> Features {
        self.features
    }
}

/// Executes an x87/MMX/SSE/AVX instruction (called by `interpret::step`); on
/// success `rip` is past it.
///
/// # Errors
/// [`crate::core::Trap`]; a fault leaves the state as it was.
pub fn execute(core: &mut Core, i: &Instruction) -> Exec {
    let native = &mut core.native;
    let Some(form) = native.stubs.get(i, &native.features) else {
        return Err(Exception::ud().into());
    };
    check(core, form.class)?;
    if form.x87 {
        x87::with_registers(core, |core| {
            if form.waits && x87::exception_pending() {
                pending_exception(core)?;
            }
            dispatch(core, i, &form)
        })?;
    } else {
        dispatch(core, i, &form)?;
    }
    core.cpu.rip = operand::next_ip(core, i);
    Ok(())
}

/// An unmasked x87 exception waits. Without CR0.NE hardware signals it on a
/// pin for an interrupt controller that our machine does not wire: ignored.
#[cold]
fn pending_exception(core: &mut Core) -> Exec {
    if core.cpu.cr0 & cr::CR0_NE != 0 {
        return Err(Exception::new(exception::MF).into());
    }
    x87::clear_exceptions();
    Ok(())
}

#[inline]
fn check(core: &Core, class: Class) -> Exec {
    match class {
        Class::Free => Ok(()),
        Class::X87 | Class::Mmx | Class::Sse if core.cpu.fpu_ok => Ok(()),
        _ => check_slow(core, class),
    }
}

fn check_slow(core: &Core, class: Class) -> Exec {
    let c = &*core.cpu;
    let ts = c.cr0 & cr::CR0_TS != 0;
    let em = c.cr0 & cr::CR0_EM != 0;
    let xsave_on = c.cr4 & cr::CR4_OSXSAVE != 0;
    let (undefined, unavailable) = match class {
        Class::Free => (false, false),
        Class::X87 => (false, em || ts),
        Class::Wait => (false, ts && c.cr0 & cr::CR0_MP != 0),
        Class::Mmx | Class::Fxsave => (em, ts),
        Class::Sse => (em || c.cr4 & cr::CR4_OSFXSR == 0, ts),
        Class::Xsave => (!xsave_on, ts),
        Class::Vex => (
            !xsave_on || c.xcr0 & 6 != 6 || !c.protected() || c.v86(),
            ts,
        ),
    };
    if undefined {
        Err(Exception::ud().into())
    } else if unavailable {
        Err(Exception::new(exception::NM).into())
    } else {
        Ok(())
    }
}

#[inline]
fn dispatch(core: &mut Core, i: &Instruction, form: &Form) -> Exec {
    match form.action {
        Action::Stub(at) => match &form.mem {
            None => run(core, form, at),
            Some(mem) => run_with_memory(core, i, form, mem, at),
        },
        Action::Nothing => Ok(()),
        Action::Fence => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            Ok(())
        }
        Action::ZeroUpper => {
            zero_upper(core, 16);
            Ok(())
        }
        Action::ZeroAll => {
            zero_upper(core, 0);
            Ok(())
        }
        Action::Ldmxcsr => save::ldmxcsr(core, i),
        Action::Stmxcsr => save::stmxcsr(core, i),
        Action::Fxsave => save::fxsave(core, i),
        Action::Fxrstor => save::fxrstor(core, i),
        Action::Xsave { optimize, compact } => save::xsave(core, i, optimize, compact),
        Action::Xrstor => save::xrstor(core, i),
        Action::Gather(g) => masked::gather(core, i, g),
        Action::MaskedLoad { element, stub } => masked::load(core, i, form, element, stub),
        Action::MaskedStore { element } => masked::store(core, i, element),
        Action::ByteStore => masked::byte_store(core, i),
    }
}

/// Vector registers that exist in the current mode.
fn vector_count(core: &Core) -> usize {
    if core.cpu.is64() { 16 } else { 8 }
}

fn zero_upper(core: &mut Core, from: usize) {
    let n = vector_count(core);
    for y in &mut core.cpu.ymm[..n] {
        y.0[from..].fill(0);
    }
}

/// The buffer that stands for the memory operand.
#[inline]
fn buffer(core: &mut Core) -> &mut [u8; BOUNCE_SIZE] {
    let p = core.cpu.as_ptr().cast::<u8>();
    // SAFETY: `AT_OPERAND` leaves `BOUNCE_SIZE` bytes inside `jit.bounce`
    // (asserted above), borrowed as long as `core`.
    unsafe { &mut *p.add(AT_OPERAND).cast::<[u8; BOUNCE_SIZE]>() }
}

/// The 32-bit cell at an offset of [`Cpu`] behind the buffer.
#[inline]
fn cell(core: &mut Core, at: usize) -> &mut u32 {
    debug_assert!((AT_MXCSR..=AT_FLAGS).contains(&at));
    let p = core.cpu.as_ptr().cast::<u8>();
    // SAFETY: inside `jit.bounce` and 8-byte aligned (see the constants).
    unsafe { &mut *p.add(at).cast::<u32>() }
}

fn run_with_memory(core: &mut Core, i: &Instruction, form: &Form, mem: &Mem, at: u32) -> Exec {
    let size = usize::from(mem.size).min(BOUNCE_SIZE);
    let la = aligned_operand(core, i, u32::from(mem.op), size, mem.align, mem.write)?;
    if mem.write {
        core.probe_write(la, size)?;
    }
    // An x87 store with an unmasked exception stores nothing: then the buffer
    // gives back what was there.
    if mem.read || form.class == Class::X87 {
        read_operand(core, la, size)?;
    }
    run(core, form, at)?;
    if mem.write {
        if form.environment != 0 {
            clean_environment(core, form.environment);
        }
        write_operand(core, la, size)?;
    }
    Ok(())
}

/// Linear address of a memory operand that must be aligned; misalignment comes
/// before all other faults of the operand.
#[inline]
fn aligned_operand(
    core: &Core,
    i: &Instruction,
    op: u32,
    size: usize,
    align: u16,
    write: bool,
) -> Exec<u64> {
    if align > 1 {
        let (s, offset) = operand::segment_offset(core, i, op);
        let la = offset.wrapping_add(core.cpu.seg[s].base);
        if la & (u64::from(align) - 1) != 0 {
            return Err(Exception::gp0().into());
        }
    }
    operand::linear_operand(core, i, op, size, write)
}

/// Copies guest memory into the buffer; sizes of general registers with one
/// load each, so that they are atomic when aligned.
#[inline]
fn read_operand(core: &mut Core, la: u64, size: usize) -> Exec {
    if matches!(size, 1 | 2 | 4 | 8) {
        let v = core.read(la, size)?;
        buffer(core)[..8].copy_from_slice(&v.to_le_bytes());
        return Ok(());
    }
    let mut b = [0; BOUNCE_SIZE];
    core.read_bytes(la, &mut b[..size])?;
    buffer(core)[..size].copy_from_slice(&b[..size]);
    Ok(())
}

#[inline]
fn write_operand(core: &mut Core, la: u64, size: usize) -> Exec {
    let b = *buffer(core);
    if let (1 | 2 | 4 | 8, Some(low)) = (size, b.first_chunk::<8>()) {
        return core.write(la, size, u64::from_le_bytes(*low));
    }
    core.write_bytes(la, &b[..size])
}

/// Clears the instruction and operand pointers of a stored x87 environment:
/// they are addresses of the host. The reserved last two bytes of the 32-bit
/// form stay.
fn clean_environment(core: &mut Core, size: u8) {
    let pointers = if size == 14 { 6..14 } else { 12..26 };
    buffer(core)[pointers].fill(0);
}

#[inline]
fn run(core: &mut Core, form: &Form, at: u32) -> Exec {
    if form.mxcsr {
        return run_simd(core, form, at);
    }
    call(core, form, at);
    Ok(())
}

/// Runs a stub and takes over the flags.
#[inline]
fn call(core: &mut Core, form: &Form, at: u32) {
    let cpu = core.cpu.as_ptr();
    // SAFETY: `at` belongs to the form that `execute` just got; `execute` put
    // the guest's x87 registers in place; the MXCSR cells are set by
    // `run_simd`, which is the only caller for forms that load them.
    unsafe { core.native.stubs.call(at, cpu) };
    if form.flags != 0 {
        let after = u64::from(*cell(core, AT_FLAGS));
        let which = u64::from(form.flags);
        core.cpu.rflags = core.cpu.rflags & !which | after & which;
    }
}

/// Runs a stub with an MXCSR and gives the one that comes out.
#[inline]
fn call_with(core: &mut Core, form: &Form, at: u32, mxcsr: u32) -> u32 {
    *cell(core, AT_MXCSR) = mxcsr & MXCSR_MASK;
    *cell(core, AT_DEFAULT_MXCSR) = DEFAULT_MXCSR;
    call(core, form, at);
    *cell(core, AT_MXCSR)
}

/// MXCSR: exception masks.
const MASKS: u32 = 0x1f80;
/// MXCSR: exception flags.
const RAISED: u32 = 0x3f;
/// MXCSR: underflow flag.
const UNDERFLOW: u32 = 0x10;
/// MXCSR: flush to zero.
const FLUSH: u32 = 0x8000;
/// MXCSR flags of exceptions that are found before computing (invalid,
/// denormal, divide by zero).
const BEFORE: u32 = 7;

#[inline]
fn run_simd(core: &mut Core, form: &Form, at: u32) -> Exec {
    let guest = core.cpu.mxcsr;
    if guest & MASKS == MASKS {
        core.cpu.mxcsr = call_with(core, form, at, guest);
        return Ok(());
    }
    run_unmasked(core, form, at)
}

/// The guest wants some exceptions. The host runs with all of them masked (so
/// that none arrives as a signal); if one that the guest wants was found, the
/// result is undone.
#[cold]
fn run_unmasked(core: &mut Core, form: &Form, at: u32) -> Exec {
    let guest = core.cpu.mxcsr;
    let wanted = !(guest >> 7) & RAISED;
    let masked = (guest | MASKS) & !RAISED;
    let before = Snapshot::take(core, form.x87);
    let mut raised = 0;
    let mut control = masked;
    if wanted & UNDERFLOW != 0 {
        // An exact tiny result raises only unmasked underflow; flushing makes
        // the masked run tell it. Unmasked underflow overrides flushing.
        raised = call_with(core, form, at, masked | FLUSH) & UNDERFLOW;
        before.put_back(core);
        control &= !FLUSH;
    }
    raised |= call_with(core, form, at, control) & RAISED;
    if raised & wanted == 0 {
        core.cpu.mxcsr = guest | raised & !(UNDERFLOW & wanted);
        return Ok(());
    }
    before.put_back(core);
    if raised & wanted & BEFORE != 0 {
        raised &= BEFORE;
    }
    core.cpu.mxcsr = guest | raised;
    let vector = if core.cpu.cr4 & cr::CR4_OSXMMEXCPT != 0 {
        exception::XM
    } else {
        exception::UD
    };
    Err(Exception::new(vector).into())
}

/// What an instruction with SIMD exceptions can change.
struct Snapshot {
    ymm: [crate::cpu::Ymm; 16],
    gpr: [u64; 16],
    rflags: u64,
    operand: [u8; BOUNCE_SIZE],
    x87: Option<x87::FxImage>,
}

impl Snapshot {
    fn take(core: &mut Core, x87: bool) -> Self {
        Self {
            ymm: core.cpu.ymm,
            gpr: core.cpu.gpr,
            rflags: core.cpu.rflags,
            operand: *buffer(core),
            x87: x87.then(|| x87::current(core).clone()),
        }
    }

    fn put_back(&self, core: &mut Core) {
        core.cpu.ymm = self.ymm;
        core.cpu.gpr = self.gpr;
        core.cpu.rflags = self.rflags;
        *buffer(core) = self.operand;
        if let Some(image) = &self.x87 {
            x87::replace(core, &image.0);
        }
    }
}
