//! A 64-bit guest for the translator's tests: some pages of each kind, a bus
//! that records what it hears, and both ways to run.

use std::sync::Arc;

use engine::Bus;
use memory::GuestRam;
use parking_lot::Mutex;

use super::support::Mode;
use crate::core::{Core, Trap};
use crate::cpu::{Seg, cr, flag, seg};
use crate::translate::dispatch::Next;

pub(super) const RAM_SIZE: u64 = 2 << 20;
/// Linear address of guest-physical 0.
pub(super) const BASE: u64 = 0x2000_0000;
pub(super) const CODE_GPA: u64 = 0x10_0000;
pub(super) const CODE: u64 = BASE + CODE_GPA;
pub(super) const CODE_SIZE: u64 = 0x4000;
pub(super) const DATA: u64 = BASE + 0x4_0000;
pub(super) const DATA_SIZE: u64 = 0x4000;
pub(super) const READ_ONLY: u64 = DATA + DATA_SIZE;
pub(super) const UNMAPPED: u64 = READ_ONLY + 0x1000;
pub(super) const MMIO: u64 = UNMAPPED + 0x1000;
pub(super) const STACK: u64 = MMIO + 0x2000;
pub(super) const STACK_SIZE: u64 = 0x2000;
pub(super) const TABLES: u64 = 0x1000;
const MMIO_GPA: u64 = 0x4000_0000;
const P_RW_US: u64 = 7;
const NX: u64 = 1 << 63;

/// An access that reached the bus: store, address, bytes.
pub(super) type Heard = (bool, u64, Vec<u8>);

/// Remembers every access; loads give bytes that depend on the address and on
/// the number of accesses before.
#[derive(Default)]
pub(super) struct LogBus(pub Mutex<Vec<Heard>>);

impl Bus for LogBus {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        let mut log = self.0.lock();
        for (n, b) in data.iter_mut().enumerate() {
            *b = (gpa as u8).wrapping_mul(31) ^ (n as u8) ^ log.len() as u8;
        }
        log.push((false, gpa, data.to_vec()));
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.0.lock().push((true, gpa, data.to_vec()));
    }
    fn acknowledge_extint(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

/// Maps a page; gives the physical address of its entry.
pub(super) fn map_page(
    ram: &GuestRam,
    root: u64,
    next_table: &mut u64,
    la: u64,
    gpa: u64,
    rights: u64,
) -> u64 {
    let mut table = root;
    for shift in [39, 30, 21] {
        let at = table + (la >> shift & 511) * 8;
        let mut b = [0; 8];
        ram.read(at, &mut b).unwrap();
        let mut e = u64::from_le_bytes(b);
        if e == 0 {
            e = *next_table | 7;
            *next_table += 0x1000;
            ram.write(at, &e.to_le_bytes()).unwrap();
        }
        table = e & !0xfff;
    }
    let at = table + (la >> 12 & 511) * 8;
    ram.write(at, &(gpa | rights).to_le_bytes()).unwrap();
    at
}

/// A vCPU with its memory.
pub(super) struct Guest {
    pub core: Core,
    pub bus: Arc<LogBus>,
    next_table: u64,
}

/// Why a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Halt,
    Trap(Trap),
    TooLong,
}

impl Guest {
    pub fn new(cpl: u8) -> Self {
        let ram = GuestRam::new(RAM_SIZE, RAM_SIZE).unwrap();
        let bus = Arc::new(LogBus::default());
        let core = Core::bare(ram, bus.clone()).unwrap();
        let mut guest = Self {
            core,
            bus,
            next_table: TABLES + 0x1000,
        };
        let pages = |from: u64, size: u64| (from..from + size).step_by(4096);
        for la in pages(CODE, CODE_SIZE) {
            guest.map(la, la - BASE, P_RW_US);
        }
        for la in pages(DATA, DATA_SIZE).chain(pages(STACK, STACK_SIZE)) {
            guest.map(la, la - BASE, P_RW_US | NX);
        }
        guest.map(READ_ONLY, READ_ONLY - BASE, P_RW_US & !2 | NX);
        guest.map(MMIO, MMIO_GPA, P_RW_US | NX);
        guest.enter(cpl, Mode::Long);
        guest
    }

    /// Maps a linear page in the tables at `TABLES`.
    pub fn map(&mut self, la: u64, gpa: u64, rights: u64) {
        self.map_in(TABLES, la, gpa, rights);
    }

    pub fn map_in(&mut self, root: u64, la: u64, gpa: u64, rights: u64) -> u64 {
        let ram = self.core.ram.clone();
        map_page(&ram, root, &mut self.next_table, la, gpa, rights)
    }

    /// An empty top-level table.
    pub fn new_root(&mut self) -> u64 {
        self.next_table += 0x1000;
        self.next_table - 0x1000
    }

    /// Makes the mode 64-bit or compatibility mode.
    pub fn enter(&mut self, cpl: u8, mode: Mode) {
        let c = &mut *self.core.cpu;
        let dpl = u32::from(cpl) << 5;
        c.seg = [Seg::new(0x10 | u16::from(cpl), 0, u32::MAX, 0xc093 | dpl); 6];
        let size = if mode == Mode::Long { 0xa09b } else { 0xc09b };
        c.seg[seg::CS] = Seg::new(8 | u16::from(cpl), 0, u32::MAX, size | dpl);
        c.seg[seg::FS].base = DATA + 0x800;
        c.seg[seg::GS].base = DATA + 0x1ff0;
        c.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_NE | cr::CR0_WP | cr::CR0_MP | cr::CR0_ET;
        c.cr3 = TABLES;
        c.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        c.efer = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        c.xcr0 = 7;
        c.cpl = cpl;
        c.rflags = flag::ONE;
        c.mxcsr = 0x1f80;
        self.core.tlb_flush_all();
        self.core.update_mode();
    }

    /// Puts code at a physical address, as a debugger would: old
    /// translations of it go.
    pub fn put_code(&mut self, gpa: u64, bytes: &[u8]) {
        self.core.ram.write(gpa, bytes).unwrap();
        let (mut at, end) = (gpa, gpa + bytes.len() as u64);
        while at < end {
            let n = (4096 - at % 4096).min(end - at);
            self.core.code_written(at, n as usize);
            at += n;
        }
    }

    fn halted(trap: Trap) -> Stop {
        match trap {
            Trap::Halt => Stop::Halt,
            t => Stop::Trap(t),
        }
    }

    /// Runs with the interpreter alone.
    pub fn interpret(&mut self, budget: &mut u32) -> Stop {
        while *budget > 0 {
            *budget -= 1;
            if let Err(t) = self.core.step_one() {
                return Self::halted(t);
            }
        }
        Stop::TooLong
    }

    /// Runs translated code wherever there can be some.
    pub fn translate(&mut self) -> Stop {
        loop {
            match self.core.run_translated() {
                Ok(Next::Check) if self.core.translatable() => {}
                Ok(_) => {
                    self.core.cpu.shadow = false;
                    if let Err(t) = self.core.step_one() {
                        return Self::halted(t);
                    }
                }
                Err(t) => return Self::halted(t),
            }
        }
    }

    /// Runs `f` with this thread prepared for the guest's translated code.
    pub fn on_thread<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let mut stack = vec![0u8; 64 << 10];
        crate::translate::fault::use_signal_stack(&mut stack).unwrap();
        crate::translate::enter::point_gs(self.core.cpu.as_ptr()).unwrap();
        crate::native::enter_thread(&mut self.core);
        let r = f(self);
        crate::native::leave_thread(&mut self.core);
        crate::translate::fault::drop_signal_stack();
        r
    }

    pub fn bytes(&self, la: u64, size: u64) -> Vec<u8> {
        let mut out = vec![0; size as usize];
        self.core.ram.read(la - BASE, &mut out).unwrap();
        out
    }
}
