//! A guest for tests: RAM, page tables, and a vCPU in each mode.
#![allow(dead_code, clippy::unwrap_used, clippy::duplicated_attributes)]

pub mod case;
pub mod corpus;
pub mod forms;
pub mod host;
pub mod instruction;
pub mod soft;
pub mod whole;

use std::sync::Arc;

use engine::Bus;
use engine_soft::Core;
use engine_soft::cpu::{Seg, cr, seg};
use memory::GuestRam;

/// RAM of the test guest.
pub const RAM_SIZE: u64 = 2 << 20;
/// Linear address of guest-physical 0 in the modes with paging: the host can
/// map the same addresses.
pub const BASE: u64 = 0x2000_0000;
/// Where test code is put, linear.
pub const CODE: u64 = BASE + CODE_GPA;
/// Where test code is put in RAM.
pub const CODE_GPA: u64 = 0x10_0000;
/// Three pages for operands; nothing else but
/// `CODE` and `READ_ONLY` is mapped.
pub const DATA: u64 = BASE + 0x8000;
/// Bytes of operand pages.
pub const DATA_SIZE: u64 = 0x3000;
/// A linear page that is not mapped.
pub const UNMAPPED: u64 = DATA + DATA_SIZE;
/// A linear page that is mapped read-only.
pub const READ_ONLY: u64 = BASE + 0xd000;
const TABLES: u64 = 0x1000;

/// A bus with nothing on it.
pub struct NoBus;

impl Bus for NoBus {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn acknowledge_extint(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

/// Code size of a test guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// 16-bit protected mode.
    Protected16,
    /// 32-bit protected mode with paging.
    Protected32,
    /// Compatibility mode.
    Compat,
    /// 64-bit mode.
    Long,
}

/// Random numbers from a seed (xorshift64*): the same on every run.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
    /// One of several.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A register value: random, small, or a boundary of some size.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0..4 => self.next(),
            4 => self.below(70),
            5 => (self.below(70) as i64).wrapping_neg() as u64,
            6 => self.pick(&[
                0,
                1,
                0x7f,
                0x80,
                0xff,
                0x7fff,
                0x8000,
                0xffff,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
                0x7fff_ffff_ffff_ffff,
                0x8000_0000_0000_0000,
                u64::MAX,
            ]),
            _ => 1 << self.below(64),
        }
    }
    /// Bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

fn put64(ram: &GuestRam, at: u64, v: u64) {
    ram.write(at, &v.to_le_bytes()).unwrap();
}

fn put32(ram: &GuestRam, at: u64, v: u32) {
    ram.write(at, &v.to_le_bytes()).unwrap();
}

/// Guest-physical address of a linear address of the test guest.
pub fn gpa(linear: u64) -> u64 {
    linear - BASE
}

/// Maps the operand pages, the code page and the read-only page, 4 KiB each. 4-level tables at `TABLES`, 32-bit tables behind.
fn make_tables(ram: &GuestRam) {
    let (pml4, pdpt, pd, pt) = (TABLES, TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000);
    let (pd32, pt32) = (TABLES + 0x4000, TABLES + 0x5000);
    put64(ram, pml4, pdpt | 7);
    put64(ram, pdpt, pd | 7);
    put64(ram, pd + (BASE >> 21) * 8, pt | 7);
    put32(ram, pd32 + (BASE >> 22) * 4, pt32 as u32 | 7);
    for page in 0..RAM_SIZE >> 12 {
        let rights = match (page << 12) + BASE {
            READ_ONLY => 5,
            DATA..UNMAPPED | CODE => 7,
            _ => 0,
        };
        let la = page << 12;
        put64(ram, pt + page * 8, la | rights);
        put32(ram, pt32 + page * 4, (la | rights) as u32);
    }
}

/// A vCPU in a mode, at `CODE`, ready for every instruction that user (CPL 3)
/// or kernel code may run there.
pub fn guest(mode: Mode, cpl: u8) -> Core {
    let ram = GuestRam::new(RAM_SIZE, RAM_SIZE).unwrap();
    make_tables(&ram);
    let mut core = Core::bare(ram, Arc::new(NoBus)).unwrap();
    enter(&mut core, mode, cpl);
    core
}

/// Puts a vCPU of [`guest`] into a mode.
pub fn enter(core: &mut Core, mode: Mode, cpl: u8) {
    let c = &mut *core.cpu;
    let dpl = u32::from(cpl) << 5;
    let (code, data) = match mode {
        Mode::Real => (0x9b, 0x93),
        Mode::Protected16 => (0x009b | dpl, 0x0093 | dpl),
        Mode::Protected32 | Mode::Compat => (0xc09b | dpl, 0xc093 | dpl),
        Mode::Long => (0xa09b | dpl, 0xc093 | dpl),
    };
    let limit = match mode {
        Mode::Real | Mode::Protected16 => 0xffff,
        _ => 0xffff_ffff,
    };
    let base = if limit == 0xffff { CODE_GPA } else { 0 };
    let selector = |n: u16| {
        if mode == Mode::Real {
            (CODE_GPA >> 4) as u16
        } else {
            n | u16::from(cpl)
        }
    };
    let flat = if mode == Mode::Real { base } else { 0 };
    c.seg = [Seg::new(selector(0x10), flat, limit, data); 6];
    c.seg[seg::CS] = Seg::new(selector(8), base, limit, code);
    c.cr0 = cr::CR0_NE | cr::CR0_MP | cr::CR0_ET;
    c.cr4 = cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT;
    c.efer = cr::EFER_SCE;
    c.xcr0 = 7;
    c.cpl = cpl;
    c.rflags = 2;
    c.mxcsr = 0x1f80;
    if mode != Mode::Real {
        c.cr0 |= cr::CR0_PE | cr::CR0_WP;
    }
    match mode {
        Mode::Real | Mode::Protected16 => {}
        Mode::Protected32 => {
            c.cr0 |= cr::CR0_PG;
            c.cr3 = TABLES + 0x4000;
        }
        Mode::Compat | Mode::Long => {
            c.cr0 |= cr::CR0_PG;
            c.cr4 |= cr::CR4_PAE | cr::CR4_OSXSAVE;
            c.efer |= cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
            c.cr3 = TABLES;
        }
    }
    if mode == Mode::Protected32 {
        c.cr4 |= cr::CR4_OSXSAVE;
    }
    c.rip = if base == 0 { CODE } else { 0 };
    core.tlb_flush_all();
    core.update_mode();
}
