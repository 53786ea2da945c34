//! A vCPU over a little RAM, in any mode, for tests of the interpreter.
#![allow(dead_code, missing_docs)]

pub mod host;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arch::Exception;
use engine::Bus;
use engine_soft::cpu::{Seg, cr, flag, seg};
use engine_soft::{Core, Trap, interpret};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use memory::GuestRam;

/// Linear (and host) address of the buffer that memory operands use.
pub const BUFFER: u64 = 0x2000_0000;
/// Its size.
pub const BUFFER_SIZE: usize = 0x4000;
/// Guest-physical address of the 2 MiB that the buffer lies in.
const BUFFER_GPA: u64 = 0x20_0000;
/// Linear address of code; a 2 MiB page of its own.
pub const CODE: u64 = 0x40_0000;

/// Guest-physical address of a page of the buffer: neighbours are swapped, so
/// that accesses across a page boundary go to two places.
fn buffer_page(n: u64) -> u64 {
    BUFFER_GPA + ((n ^ 1) << 12)
}

/// Devices: a port that counts its accesses and reads as that count.
#[derive(Default)]
pub struct Ports {
    pub accesses: AtomicU64,
    pub last: AtomicU64,
}

impl Bus for Ports {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        let n = self.accesses.fetch_add(1, Ordering::SeqCst) + 1;
        let len = data.len();
        data.copy_from_slice(&n.to_le_bytes()[..len]);
    }
    fn pio_write(&self, _port: u16, data: &[u8]) {
        let mut b = [0; 8];
        b[..data.len()].copy_from_slice(data);
        self.accesses.fetch_add(1, Ordering::SeqCst);
        self.last.store(u64::from_le_bytes(b), Ordering::SeqCst);
    }
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn acknowledge_extint(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _vector: u8) {}
}

const CODE_RIGHTS: u32 = 0x9b;
const DATA_RIGHTS: u32 = 0x93;
const LONG: u32 = 1 << 13;
const BIG: u32 = 1 << 14;
const PAGES: u32 = 1 << 15;

/// A vCPU with 8 MiB of RAM.
pub struct Machine {
    pub core: Core,
    pub ports: Arc<Ports>,
}

impl Machine {
    fn new() -> Self {
        let ram = GuestRam::new(8 << 20, 8 << 20).expect("RAM");
        let ports = Arc::new(Ports::default());
        let mut core = Core::bare(ram, ports.clone()).expect("a vCPU");
        core.cpu.rip = CODE;
        core.cpu.rflags = 2;
        Self { core, ports }
    }

    fn flat(&mut self, code: u32, data: u32) {
        let c = &mut self.core.cpu;
        for s in &mut c.seg {
            *s = Seg::new(0x10, 0, 0xffff_ffff, data);
        }
        c.seg[seg::CS] = Seg::new(0x8, 0, 0xffff_ffff, code);
    }

    /// 64-bit mode at CPL 0: the first 8 MiB identity-mapped, and the buffer,
    /// of which the page after the last is absent.
    pub fn long() -> Self {
        let mut m = Self::new();
        let put = |gpa: u64, v: u64| m.core.ram.write(gpa, &v.to_le_bytes()).expect("RAM");
        put(0x1000, 0x2003);
        put(0x2000, 0x3003);
        for n in 0..4u64 {
            put(0x3000 + 8 * n, n << 21 | 0x83);
        }
        put(0x3000 + 8 * (BUFFER >> 21), 0x4003);
        for n in 0..(BUFFER_SIZE as u64 >> 12) {
            put(0x4000 + 8 * n, buffer_page(n) | 3);
        }
        let c = &mut m.core.cpu;
        c.cr3 = 0x1000;
        c.cr4 = cr::CR4_PAE;
        c.efer = cr::EFER_LME | cr::EFER_LMA;
        c.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_WP;
        m.flat(CODE_RIGHTS | LONG | PAGES, DATA_RIGHTS | BIG | PAGES);
        m.core.update_mode();
        m
    }

    /// Flat 32-bit protected mode with 32-bit paging: the first 8 MiB
    /// identity-mapped, and the buffer.
    pub fn paged32() -> Self {
        let mut m = Self::protected32();
        let put = |gpa: u64, v: u32| m.core.ram.write(gpa, &v.to_le_bytes()).expect("RAM");
        for n in 0..2u32 {
            put(0x1000 + 4 * u64::from(n), n << 22 | 0x83);
        }
        put(0x1000 + 4 * (BUFFER >> 22), 0x4003);
        for n in 0..(BUFFER_SIZE as u32 >> 12) {
            put(0x4000 + 4 * u64::from(n), buffer_page(n.into()) as u32 | 3);
        }
        let c = &mut m.core.cpu;
        c.cr3 = 0x1000;
        c.cr4 = cr::CR4_PSE;
        c.cr0 |= cr::CR0_PG | cr::CR0_WP;
        m.core.tlb_flush_all();
        m.core.update_mode();
        m
    }

    /// Flat 32-bit protected mode without paging.
    pub fn protected32() -> Self {
        let mut m = Self::new();
        m.core.cpu.cr0 = cr::CR0_PE;
        m.flat(CODE_RIGHTS | BIG | PAGES, DATA_RIGHTS | BIG | PAGES);
        m.core.update_mode();
        m
    }

    /// Virtual-8086 mode with the segments of [`Self::real`], at IOPL 3.
    pub fn v86() -> Self {
        let mut m = Self::real();
        let c = &mut m.core.cpu;
        c.cr0 = cr::CR0_PE;
        c.rflags |= flag::VM | flag::IOPL;
        c.cpl = 3;
        m.core.update_mode();
        m
    }

    /// Real mode, CS base 0x10000, other bases 0x20000.
    pub fn real() -> Self {
        let mut m = Self::new();
        let c = &mut m.core.cpu;
        c.cr0 = 0;
        for s in &mut c.seg {
            *s = Seg::new(0x2000, 0x20000, 0xffff, DATA_RIGHTS);
        }
        c.seg[seg::CS] = Seg::new(0x1000, 0x10000, 0xffff, CODE_RIGHTS);
        c.rip = 0x100;
        m.core.update_mode();
        m
    }

    /// Decodes one instruction as if it lay at the current `rip`.
    pub fn decode(&self, code: &[u8]) -> Instruction {
        let c = &self.core.cpu;
        Decoder::with_ip(u32::from(c.bits), code, c.rip, DecoderOptions::NONE).decode()
    }

    /// Executes one instruction.
    pub fn run(&mut self, code: &[u8]) -> Result<(), Trap> {
        let i = self.decode(code);
        assert_eq!(i.len(), code.len(), "{code:02x?} is {i:?}");
        interpret::step(&mut self.core, &i)
    }

    /// Executes one instruction, which must succeed.
    pub fn ok(&mut self, code: &[u8]) {
        if let Err(e) = self.run(code) {
            panic!("{code:02x?}: {e:?}");
        }
    }

    /// Executes one instruction, which must fault and change nothing.
    pub fn faults(&mut self, code: &[u8]) -> Exception {
        let before = self.registers();
        match self.run(code) {
            Err(Trap::Fault(e)) => {
                assert_eq!(before, self.registers(), "state after a fault");
                e
            }
            other => panic!("{code:02x?}: expected a fault, got {other:?}"),
        }
    }

    /// General registers, rip and rflags.
    pub fn registers(&self) -> ([u64; 16], u64, u64) {
        let c = &self.core.cpu;
        (c.gpr, c.rip, c.rflags)
    }

    /// The buffer's contents.
    pub fn buffer(&self) -> Vec<u8> {
        let mut b = vec![0; BUFFER_SIZE];
        for (n, page) in b.chunks_exact_mut(4096).enumerate() {
            self.core
                .ram
                .read(buffer_page(n as u64), page)
                .expect("RAM");
        }
        b
    }

    /// Replaces the buffer's contents.
    pub fn set_buffer(&mut self, b: &[u8]) {
        for (n, page) in b.chunks_exact(4096).enumerate() {
            self.core
                .ram
                .write(buffer_page(n as u64), page)
                .expect("RAM");
        }
    }

    /// Reads guest-physical memory.
    pub fn peek(&self, gpa: u64, len: usize) -> u64 {
        let mut b = [0; 8];
        self.core.ram.read(gpa, &mut b[..len]).expect("RAM");
        u64::from_le_bytes(b)
    }

    /// Writes guest-physical memory.
    pub fn poke(&mut self, gpa: u64, len: usize, v: u64) {
        self.core
            .ram
            .write(gpa, &v.to_le_bytes()[..len])
            .expect("RAM");
    }
}

/// Deterministic random numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    /// Values at the edges as often as others.
    pub fn value(&mut self) -> u64 {
        let v = self.next();
        match self.below(6) {
            0 => v & 0xff,
            1 => u64::MAX,
            2 => 1 << (v & 63),
            3 => (1u64 << (v & 63)).wrapping_sub(1),
            4 => v & 0xffff_ffff,
            _ => v,
        }
    }
}
