//! The guest's x87 and MMX registers, which live in the host CPU while the
//! vCPU's thread runs it: loading, storing, and the images that instructions
//! and snapshots exchange.

use std::arch::asm;

use crate::core::Core;

/// An `fxsave64` image (SDM vol. 1, 10.5.1).
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct FxImage(pub(crate) [u8; 512]);

impl FxImage {
    /// x87 state after `fninit`, default MXCSR.
    pub(crate) const INIT: Self = {
        let mut b = [0; 512];
        b[0] = 0x7f;
        b[1] = 0x03;
        b[24] = 0x80;
        b[25] = 0x1f;
        Self(b)
    };

    /// Clears the pointers to the last x87 instruction and its operand, which
    /// are addresses of host code, and the opcode.
    pub(crate) fn forget_pointers(&mut self) {
        self.0[6..24].fill(0);
    }

    /// Takes the x87 part (bytes 0 to 23 and 32 to 159) of another image,
    /// without its pointers.
    pub(crate) fn take_x87(&mut self, from: &[u8]) {
        if let (Some(control), Some(registers)) = (from.get(..5), from.get(32..160)) {
            self.0[..5].copy_from_slice(control);
            self.0[5] = 0;
            self.forget_pointers();
            self.0[32..160].copy_from_slice(registers);
        }
    }

    /// The host's registers.
    pub(crate) fn store(&mut self) {
        // SAFETY: 512 bytes, 64-byte aligned; registers are only read.
        unsafe { asm!("fxsave64 [{}]", in(reg) self.0.as_mut_ptr(), options(nostack)) };
        self.forget_pointers();
        // Rust's own arithmetic raises flags in it.
        self.0[24..28].copy_from_slice(&Self::INIT.0[24..28]);
    }

    /// Loads the x87 part into the host's registers.
    pub(crate) fn load(&self) {
        debug_assert_eq!(self.0[24..28], [0x80, 0x1f, 0, 0]);
        // SAFETY: 512 bytes, 64-byte aligned. MXCSR in the image is the one
        // that Rust runs with (every image starts as `INIT`, and nothing but
        // `store` and `take_x87` writes to one), and the xmm registers are
        // declared as overwritten; compiled Rust does not use x87.
        unsafe {
            asm!(
                "fxrstor64 [{}]", in(reg) self.0.as_ptr(),
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack, readonly),
            );
        }
    }
}

/// Loads this vCPU's x87 registers into the host CPU. To be called on the
/// vCPU's thread before it runs guest code; the thread must not run foreign
/// code that uses x87 (`long double` in C) until [`leave_thread`].
pub fn enter_thread(core: &mut Core) {
    if !core.native.entered {
        core.native.x87.load();
        core.native.entered = true;
    }
}

/// Stores this vCPU's x87 registers and gives the thread clean ones back.
pub fn leave_thread(core: &mut Core) {
    if core.native.entered {
        core.native.x87.store();
        core.native.entered = false;
        // SAFETY: x87 state as the ABI wants it; compiled Rust does not use it.
        unsafe { asm!("fninit", options(nomem, nostack)) };
    }
}

/// Runs `f` with the guest's x87 registers in the host CPU, whether or not
/// the thread was entered.
#[inline]
pub(super) fn with_registers<R>(core: &mut Core, f: impl FnOnce(&mut Core) -> R) -> R {
    if core.native.entered {
        return f(core);
    }
    enter_thread(core);
    let r = f(core);
    leave_thread(core);
    r
}

/// The x87 part of the state, current whether or not the thread was entered.
pub(super) fn current(core: &mut Core) -> &FxImage {
    if core.native.entered {
        core.native.x87.store();
    }
    &core.native.x87
}

/// Replaces the x87 part of the state (bytes 0 to 159 of an FXSAVE or XSAVE
/// image).
pub(super) fn replace(core: &mut Core, image: &[u8]) {
    core.native.x87.take_x87(image);
    if core.native.entered {
        core.native.x87.load();
    }
}

/// Whether an unmasked x87 exception waits for the next instruction. The
/// guest's registers must be in the host CPU.
#[inline]
pub(super) fn exception_pending() -> bool {
    let status: u16;
    // SAFETY: only reads the x87 status word.
    unsafe { asm!("fnstsw ax", out("ax") status, options(nomem, nostack, preserves_flags)) };
    status & 0x80 != 0
}

/// What every MMX instruction does to the x87 state: all registers valid, top
/// of stack zero.
pub(super) fn become_mmx() {
    // SAFETY: changes the guest's x87 tags and status only.
    unsafe { asm!("movd {0:e}, mm0", out(reg) _, options(nomem, nostack, preserves_flags)) };
}

/// `fnclex`.
pub(super) fn clear_exceptions() {
    // SAFETY: changes the guest's x87 status word only.
    unsafe { asm!("fnclex", options(nomem, nostack, preserves_flags)) };
}
