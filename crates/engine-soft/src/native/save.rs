//! Saving and restoring x87, SSE and AVX state: `fxsave`, the XSAVE family,
//! MXCSR, and the image in `CpuState` (SDM vol. 1, chapter 13).
//!
//! The images are put together here rather than by the host's instructions:
//! the vector registers are in memory anyway, and the host may have more state
//! components than the guest is shown.

use arch::Exception;
use iced_x86::Instruction;

use super::x87::{self, FxImage};
use super::{DEFAULT_MXCSR, MXCSR_MASK, vector_count};
use crate::core::{Core, Exec};
use crate::interpret::operand;

/// Legacy region and header.
const BASE_SIZE: usize = 576;
/// With the upper halves of the ymm registers.
const FULL_SIZE: usize = 832;
/// The header in the image.
const HEADER: usize = 512;
/// XSAVE state components.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// XCOMP_BV: compacted format.
const COMPACTED: u64 = 1 << 63;

/// An image being made or read.
struct Image([u8; FULL_SIZE]);

impl Image {
    fn word(&self, at: usize) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(b)
    }
    fn set_word(&mut self, at: usize, v: u64) {
        self.0[at..at + 8].copy_from_slice(&v.to_le_bytes());
    }
    fn mxcsr(&self) -> u32 {
        self.word(24) as u32
    }
    fn set_mxcsr(&mut self, v: u32) {
        self.set_word(24, u64::from(v) | u64::from(MXCSR_MASK) << 32);
    }

    fn put_x87(&mut self, x: &FxImage) {
        self.0[..24].copy_from_slice(&x.0[..24]);
        self.0[32..160].copy_from_slice(&x.0[32..160]);
    }
    fn put_xmm(&mut self, core: &Core, n: usize) {
        for (k, y) in core.cpu.ymm[..n].iter().enumerate() {
            self.0[160 + 16 * k..][..16].copy_from_slice(&y.0[..16]);
        }
    }
    fn put_ymm_high(&mut self, core: &Core, n: usize) {
        for (k, y) in core.cpu.ymm[..n].iter().enumerate() {
            self.0[BASE_SIZE + 16 * k..][..16].copy_from_slice(&y.0[16..]);
        }
    }
    fn get_xmm(&self, core: &mut Core, n: usize) {
        for (k, y) in core.cpu.ymm[..n].iter_mut().enumerate() {
            y.0[..16].copy_from_slice(&self.0[160 + 16 * k..][..16]);
        }
    }
    fn get_ymm_high(&self, core: &mut Core, n: usize) {
        for (k, y) in core.cpu.ymm[..n].iter_mut().enumerate() {
            y.0[16..].copy_from_slice(&self.0[BASE_SIZE + 16 * k..][..16]);
        }
    }
}

fn gp<T>() -> Exec<T> {
    Err(Exception::gp0().into())
}

/// Address of the memory operand, which must be aligned.
fn area(core: &Core, i: &Instruction, size: usize, align: u16, write: bool) -> Exec<u64> {
    super::aligned_operand(core, i, 0, size, align, write)
}

pub(super) fn ldmxcsr(core: &mut Core, i: &Instruction) -> Exec {
    let la = operand::linear_operand(core, i, 0, 4, false)?;
    let v = core.read(la, 4)? as u32;
    if v & !MXCSR_MASK != 0 {
        return gp();
    }
    core.cpu.mxcsr = v;
    Ok(())
}

pub(super) fn stmxcsr(core: &mut Core, i: &Instruction) -> Exec {
    let la = operand::linear_operand(core, i, 0, 4, true)?;
    core.write(la, 4, u64::from(core.cpu.mxcsr))
}

pub(super) fn fxsave(core: &mut Core, i: &Instruction) -> Exec {
    let la = area(core, i, 512, 16, true)?;
    core.probe_write(la, 512)?;
    let n = vector_count(core);
    let mut image = Image([0; FULL_SIZE]);
    image.put_x87(x87::current(core));
    image.set_mxcsr(core.cpu.mxcsr);
    image.put_xmm(core, n);
    core.write_bytes(la, &image.0[..160 + 16 * n])
}

pub(super) fn fxrstor(core: &mut Core, i: &Instruction) -> Exec {
    let la = area(core, i, 512, 16, false)?;
    let mut image = Image([0; FULL_SIZE]);
    core.read_bytes(la, &mut image.0[..512])?;
    if image.mxcsr() & !MXCSR_MASK != 0 {
        return gp();
    }
    core.cpu.mxcsr = image.mxcsr();
    image.get_xmm(core, vector_count(core));
    x87::replace(core, &image.0[..160]);
    Ok(())
}

/// The components that edx:eax asks for and XCR0 allows.
fn requested(core: &Core) -> u64 {
    (core.cpu.gpr[2] << 32 | core.cpu.gpr[0] & 0xffff_ffff) & core.cpu.xcr0 & (X87 | SSE | AVX)
}

/// Components that are not in their initial configuration (XINUSE). That of
/// x87 and SSE is not tracked: always in use.
fn in_use(core: &Core) -> u64 {
    let n = vector_count(core);
    let upper = core.cpu.ymm[..n].iter().any(|y| y.0[16..] != [0; 16]);
    X87 | SSE | if upper { AVX } else { 0 }
}

/// `xsave`; with `optimize` components in their initial configuration are not
/// written (`xsaveopt`, `xsavec`); with `compact`, `xsavec`. With at most the
/// AVX component beyond the legacy region both formats have the same layout.
pub(super) fn xsave(core: &mut Core, i: &Instruction, optimize: bool, compact: bool) -> Exec {
    let asked = requested(core);
    let size = if asked & AVX != 0 {
        FULL_SIZE
    } else {
        BASE_SIZE
    };
    let la = area(core, i, size, 64, true)?;
    core.probe_write(la, size)?;
    let used = in_use(core) & asked;
    let written = if optimize { used } else { asked };
    let n = vector_count(core);
    let mut image = Image([0; FULL_SIZE]);
    let mut parts = Parts::default();
    if written & X87 != 0 {
        image.put_x87(x87::current(core));
        parts.add(0, 24);
        parts.add(32, 160);
    }
    if asked & if compact { SSE } else { SSE | AVX } != 0 {
        image.set_mxcsr(core.cpu.mxcsr);
        parts.add(24, 32);
    }
    if written & SSE != 0 {
        image.put_xmm(core, n);
        parts.add(160, 160 + 16 * n);
    }
    if written & AVX != 0 {
        image.put_ymm_high(core, n);
        parts.add(BASE_SIZE, BASE_SIZE + 16 * n);
    }
    let old = if compact {
        image.set_word(HEADER + 8, asked | COMPACTED);
        parts.add(HEADER, HEADER + 16);
        0
    } else {
        parts.add(HEADER, HEADER + 8);
        core.read(la + HEADER as u64, 8)?
    };
    image.set_word(HEADER, old & !asked | used);
    parts.write(core, la, &image, size)
}

/// Byte ranges of an image.
#[derive(Default)]
struct Parts {
    ranges: [(usize, usize); 8],
    count: usize,
}

impl Parts {
    fn add(&mut self, from: usize, to: usize) {
        if let Some(r) = self.ranges.get_mut(self.count) {
            *r = (from, to);
            self.count += 1;
        }
    }

    /// Writes them to the guest; `probe_write` of the whole has succeeded.
    fn write(&self, core: &mut Core, la: u64, image: &Image, size: usize) -> Exec {
        let ranges = &self.ranges[..self.count];
        if let Some((host, len)) = core.host_run(la, true, size)?
            && len >= size
        {
            for (from, to) in ranges {
                // SAFETY: `host_run` gave `len` writable bytes of guest RAM,
                // and every range ends before `size`.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        image.0.as_ptr().add(*from),
                        host.add(*from),
                        to - from,
                    );
                }
            }
            return Ok(());
        }
        for (from, to) in ranges {
            core.write_bytes(la.wrapping_add(*from as u64), &image.0[*from..*to])?;
        }
        Ok(())
    }
}

pub(super) fn xrstor(core: &mut Core, i: &Instruction) -> Exec {
    let asked = requested(core);
    let la = area(core, i, BASE_SIZE, 64, false)?;
    let mut image = Image([0; FULL_SIZE]);
    core.read_bytes(la, &mut image.0[..BASE_SIZE])?;
    let (present, layout) = (image.word(HEADER), image.word(HEADER + 8));
    let compact = layout & COMPACTED != 0;
    let xcr0 = core.cpu.xcr0;
    let clear_from = if compact { HEADER + 16 } else { HEADER + 8 };
    let clear_to = if compact { HEADER + 64 } else { HEADER + 24 };
    let bad = present & !xcr0 != 0
        || image.0[clear_from..clear_to].iter().any(|b| *b != 0)
        || compact && layout & !COMPACTED & !xcr0 != 0
        || compact && present & !layout != 0;
    if bad {
        return gp();
    }
    if asked & present & AVX != 0 {
        operand::linear_operand(core, i, 0, FULL_SIZE, false)?;
        core.read_bytes(la + BASE_SIZE as u64, &mut image.0[BASE_SIZE..])?;
    }
    let load_mxcsr = if compact {
        asked & present & SSE != 0
    } else {
        asked & (SSE | AVX) != 0
    };
    if load_mxcsr {
        if image.mxcsr() & !MXCSR_MASK != 0 {
            return gp();
        }
        core.cpu.mxcsr = image.mxcsr();
    } else if compact && asked & SSE != 0 {
        core.cpu.mxcsr = DEFAULT_MXCSR;
    }
    let n = vector_count(core);
    load_components(core, &image, asked, present, n);
    Ok(())
}

/// Loads the components `asked`: from the image if `present`, else initial.
fn load_components(core: &mut Core, image: &Image, asked: u64, present: u64, n: usize) {
    if asked & X87 != 0 {
        let from = if present & X87 != 0 {
            &image.0[..160]
        } else {
            &FxImage::INIT.0[..160]
        };
        x87::replace(core, from);
    }
    if asked & SSE != 0 {
        if present & SSE != 0 {
            image.get_xmm(core, n);
        } else {
            core.cpu.ymm[..n].iter_mut().for_each(|y| y.0[..16].fill(0));
        }
    }
    if asked & AVX != 0 {
        if present & AVX != 0 {
            image.get_ymm_high(core, n);
        } else {
            core.cpu.ymm[..n].iter_mut().for_each(|y| y.0[16..].fill(0));
        }
    }
}

/// The x87, SSE and AVX state as an XSAVE image in standard format, 832 bytes
/// (`CpuState::xsave`).
pub fn save_xsave(core: &mut Core) -> Vec<u8> {
    let mut image = Image([0; FULL_SIZE]);
    image.put_x87(x87::current(core));
    image.set_mxcsr(core.cpu.mxcsr);
    image.put_xmm(core, 16);
    image.put_ymm_high(core, 16);
    image.set_word(HEADER, X87 | SSE | AVX);
    image.0.to_vec()
}

/// Takes such an image; shorter ones (no AVX) leave the rest zero.
///
/// # Errors
/// What is wrong with the image; nothing has changed then.
pub fn restore_xsave(core: &mut Core, bytes: &[u8]) -> Result<(), &'static str> {
    if bytes.len() < BASE_SIZE {
        return Err("XSAVE image is shorter than 576 bytes");
    }
    let mut image = Image([0; FULL_SIZE]);
    let n = bytes.len().min(FULL_SIZE);
    image.0[..n].copy_from_slice(&bytes[..n]);
    let present = image.word(HEADER);
    if image.word(HEADER + 8) & COMPACTED != 0 {
        return Err("XSAVE image is in compacted format");
    }
    if present & (SSE | AVX) != 0 && image.mxcsr() & !MXCSR_MASK != 0 {
        return Err("MXCSR has reserved bits set");
    }
    core.cpu.mxcsr = if present & (SSE | AVX) != 0 {
        image.mxcsr()
    } else {
        DEFAULT_MXCSR
    };
    load_components(core, &image, X87 | SSE | AVX, present, 16);
    Ok(())
}

/// x87, SSE and AVX state after RESET.
pub fn reset(core: &mut Core) {
    x87::replace(core, &FxImage::INIT.0[..160]);
    core.cpu.mxcsr = DEFAULT_MXCSR;
    core.cpu.ymm.fill(crate::cpu::Ymm::default());
}
