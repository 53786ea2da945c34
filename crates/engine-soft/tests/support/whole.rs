//! The whole engine as an executor: run loop, translator, delivery of the
//! exception that ends the case through a real IDT.

use std::sync::{Arc, OnceLock};

use arch::cpuid::CpuModel;
use arch::{CpuState, DescriptorTable, Exception, Segment, exception};
use engine::{Bus, Engine, Exit, Vcpu, VcpuHandle};
use engine_soft::SoftEngine;
use engine_soft::cpu::cr;
use memory::GuestRam;

use super::case::{Case, End, Executor, MEMORY, Outcome, canonical_xsave};
use super::{CODE, CODE_GPA, DATA, Mode, RAM_SIZE, gpa, make_tables, put64};

/// Supervisor page with GDT, TSS and handlers; the IDT and the handlers' stack
/// in the next two. Linear and guest-physical.
const SYSTEM: u64 = 0x1_8000;
const GDT: u64 = SYSTEM;
const TSS: u64 = SYSTEM + 0x100;
const HANDLERS: u64 = SYSTEM + 0x400;
const IDT: u64 = SYSTEM + 0x1000;
const STACK: u64 = SYSTEM + 0x3000;

/// A port whose writes stop the vCPU.
struct StopPort(OnceLock<Arc<dyn VcpuHandle>>);

impl Bus for StopPort {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {
        if let Some(vcpu) = self.0.get() {
            vcpu.kick();
        }
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn acknowledge_extint(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

/// The software engine with one vCPU.
pub struct Whole {
    _engine: Arc<dyn Engine>,
    vcpu: Box<dyn Vcpu>,
    ram: Arc<GuestRam>,
}

impl Whole {
    /// With its own guest.
    pub fn new() -> Self {
        let ram = GuestRam::new(RAM_SIZE, RAM_SIZE).unwrap();
        make_tables(&ram);
        system_pages(&ram);
        let engine = SoftEngine::new(ram.clone(), 1, CpuModel::Host).unwrap();
        let bus = Arc::new(StopPort(OnceLock::new()));
        engine.connect(bus.clone());
        let vcpu = engine.take_vcpu(0).unwrap();
        let _ = bus.0.set(vcpu.handle());
        Self {
            _engine: engine,
            vcpu,
            ram,
        }
    }

    /// Counters of the vCPU.
    pub fn counter(&self, name: &str) -> u64 {
        let all = self.vcpu.stats().counters;
        all.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v)
    }

    /// How it ended, rip, RFLAGS and rsp: from the exception frame.
    fn end(&self, s: &CpuState, exit: Exit) -> (End, [u64; 3]) {
        let broken = End::Fault(Exception::new(0xff));
        if exit != Exit::Kicked || !(HANDLERS..HANDLERS + 32 * 16).contains(&s.rip) {
            return (broken, [s.rip, s.rflags, s.gpr[4]]);
        }
        let vector = ((s.rip - HANDLERS) / 16) as u8;
        let word = |at: u64| {
            let mut b = [0; 8];
            self.ram.read(at, &mut b).unwrap();
            u64::from_le_bytes(b)
        };
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let frame = STACK - 40;
        let (rip, rflags, rsp) = (word(frame), word(frame + 16), word(frame + 24));
        let error = word(frame - 8) as u32;
        let end = match vector {
            exception::BP => End::Next(rip.wrapping_sub(1)),
            exception::PF if error & 16 != 0 => End::Next(rip),
            exception::PF => End::Fault(Exception::page_fault(error, s.cr2)),
            v if has_error => End::Fault(Exception::with_error(v, error)),
            v => End::Fault(Exception::new(v)),
        };
        let rip = if let End::Next(next) = end { next } else { rip };
        (end, [rip, rflags, rsp])
    }
}

/// GDT, TSS, IDT and handlers, mapped for the supervisor at their physical
/// addresses.
fn system_pages(ram: &GuestRam) {
    let pt = 0x1_c000;
    put64(ram, super::TABLES + 0x2000, pt | 7);
    for page in 0..4 {
        let at = SYSTEM + page * 0x1000;
        put64(ram, pt + (at >> 12) * 8, at | 3);
    }
    for (n, d) in [
        (1, 0x00af_9b00_0000_ffff),
        (2, 0x00cf_9300_0000_ffff),
        (3, 0x00af_fb00_0000_ffff),
        (4, 0x00cf_f300_0000_ffff),
        (5, 0x00cf_fb00_0000_ffff),
        (6, 0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16),
    ] {
        put64(ram, GDT + n * 8, d);
    }
    put64(ram, TSS + 36, STACK);
    for n in 0..32u64 {
        let at = HANDLERS + n * 16;
        // out 0x80, al; hlt; jmp back
        ram.write(at, &[0xe6, 0x80, 0xf4, 0xeb, 0xfd]).unwrap();
        put64(
            ram,
            IDT + n * 16,
            at & 0xffff | 8 << 16 | 0xee01 << 32 | (at >> 16 & 0xffff) << 48,
        );
    }
}

fn state(case: &Case) -> CpuState {
    let mut s = CpuState::reset(true);
    let long = case.mode == Mode::Long;
    let data = Segment {
        selector: 0x23,
        base: 0,
        limit: 0xffff_ffff,
        rights: 0xc0f3,
    };
    s.segments = [data; 6];
    s.segments[1] = Segment {
        selector: if long { 0x1b } else { 0x2b },
        rights: if long { 0xa0fb } else { 0xc0fb },
        ..data
    };
    s.tr = Segment {
        selector: 0x30,
        base: TSS,
        limit: 0x67,
        rights: 0x8b,
    };
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x3f,
    };
    s.idtr = DescriptorTable {
        base: IDT,
        limit: 0x1ff,
    };
    s.gpr = case.gpr;
    s.rip = CODE;
    s.rflags = case.rflags;
    s.cr0 = cr::CR0_PE | cr::CR0_PG | cr::CR0_WP | cr::CR0_ET | cr::CR0_NE | cr::CR0_MP;
    s.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
    s.cr3 = super::TABLES;
    s.xcr0 = 7;
    s.msrs = vec![(
        0xc000_0080,
        cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE | cr::EFER_SCE,
    )];
    s.xsave = case.xsave.to_vec();
    s
}

impl Executor for Whole {
    fn name(&self) -> &'static str {
        "engine"
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn supports(&self, mode: Mode) -> bool {
        matches!(mode, Mode::Long | Mode::Compat)
    }

    fn run(&mut self, case: &Case) -> Outcome {
        let mut code = [0xcc; 0x400];
        code[..case.bytes.len()].copy_from_slice(&case.bytes);
        self.ram.write(CODE_GPA, &code).unwrap();
        self.ram.write(gpa(DATA), &case.memory).unwrap();
        self.vcpu.restore(&state(case)).unwrap();
        let exit = self.vcpu.run().unwrap();
        let s = self.vcpu.save().unwrap();
        let (end, [rip, rflags, rsp]) = self.end(&s, exit);
        let mut gpr = s.gpr;
        gpr[4] = rsp;
        let mut memory = vec![0; MEMORY];
        self.ram.read(gpa(DATA), &mut memory).unwrap();
        Outcome {
            end,
            rip,
            gpr,
            rflags,
            xsave: canonical_xsave(&s.xsave, case.mode),
            memory,
        }
    }
}
