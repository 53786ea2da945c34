//! A machine of one or two vCPUs without devices, on either engine: page
//! tables, descriptor tables and handlers in two megabytes of memory.
//!
//! The code under test ends with a write to port 0x80; exception handlers do
//! the same, each at a place of its own.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arch::cpuid::CpuModel;
use arch::{CpuState, DescriptorTable, Segment, msr};
use engine::{Bus, Engine, Exit, Vcpu, VcpuHandle};
use memory::GuestRam;

pub const RAM: u64 = 2 << 20;
const PML4: u64 = 0x1000;
pub const GDT: u64 = 0x5000;
pub const IDT64: u64 = 0x6000;
pub const TSS64: u64 = 0x7000;
pub const TSS32: u64 = 0x7100;
pub const LDT: u64 = 0x7800;
pub const IDT32: u64 = 0x9000;
pub const HANDLERS: u64 = 0x1_0000;
pub const KERNEL_STACK: u64 = 0x2_8000;
pub const STACK: u64 = 0x2_c000;
pub const CODE: u64 = 0x3_0000;
pub const DATA: u64 = 0x4_0000;
/// Port whose write ends a run.
pub const END: u16 = 0x80;
/// A device's memory.
pub const MMIO: u64 = 0xd000_0000;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    Soft,
    Kvm,
}

/// What the guest did to the outside.
#[derive(Default)]
pub struct LabBus {
    pub seen: Mutex<Vec<String>>,
    handles: OnceLock<Vec<Arc<dyn VcpuHandle>>>,
    /// The 8259 pair's next vector.
    pub extint: Mutex<Option<u8>>,
}

impl LabBus {
    fn note(&self, text: String) {
        self.seen.lock().unwrap().push(text);
    }
}

impl Bus for LabBus {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8 ^ 0x5a);
        self.note(format!("in {port:#x} {}", data.len()));
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.note(format!("out {port:#x} {data:x?}"));
        if port == END {
            self.handles.get().unwrap().iter().for_each(|h| h.kick());
        }
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        for (at, byte) in (gpa..).zip(data.iter_mut()) {
            *byte = at as u8 ^ 0xa5;
        }
        self.note(format!("load {gpa:#x} {}", data.len()));
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.note(format!("store {gpa:#x} {data:x?}"));
    }
    fn acknowledge_extint(&self) -> Option<u8> {
        self.extint.lock().unwrap().take()
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.note(format!("eoi {vector:#x}"));
    }
}

pub struct Lab {
    pub ram: Arc<GuestRam>,
    pub engine: Arc<dyn Engine>,
    pub vcpus: Vec<Box<dyn Vcpu>>,
    pub bus: Arc<LabBus>,
    /// The first vCPU as it was made.
    pub reset: CpuState,
}

impl Lab {
    pub fn new(kind: EngineKind, vcpus: u32) -> Self {
        let ram = GuestRam::new(RAM, RAM).unwrap();
        let model = CpuModel::Host;
        let engine = match kind {
            EngineKind::Soft => engine_soft::SoftEngine::new(ram.clone(), vcpus, model),
            EngineKind::Kvm => engine_kvm::KvmEngine::new(ram.clone(), vcpus, model),
        };
        let engine = engine.unwrap();
        let bus = Arc::new(LabBus::default());
        engine.connect(bus.clone());
        let mut vcpus: Vec<_> = (0..vcpus).map(|n| engine.take_vcpu(n).unwrap()).collect();
        let handles = vcpus.iter().map(|v| v.handle()).collect();
        bus.handles.set(handles).ok().unwrap();
        let lab = Self {
            reset: vcpus[0].save().unwrap(),
            ram,
            engine,
            vcpus,
            bus,
        };
        lab.ram.write(0, &image()).unwrap();
        lab
    }

    /// Memory as at the start, with this code.
    pub fn load(&self, code: &[u8]) {
        self.ram.write(0, &image()).unwrap();
        self.ram.write(CODE, code).unwrap();
    }

    /// Runs the first vCPU until it leaves; a guest that does not end is a
    /// failure.
    pub fn run(&mut self) -> Exit {
        let (done, waits) = mpsc::channel::<()>();
        let handle = self.vcpus[0].handle();
        let watch = std::thread::spawn(move || {
            let late = waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
            if late {
                handle.kick();
            }
            late
        });
        let exit = self.vcpus[0].run().unwrap();
        drop(done);
        let late = watch.join().unwrap();
        if late {
            println!("{:x?}", self.vcpus[0].save());
        }
        assert!(!late, "the guest did not end");
        exit
    }

    pub fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        self.ram.read(0, &mut bytes).unwrap();
        bytes
    }
}

fn put(image: &mut [u8], at: u64, bytes: &[u8]) {
    image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

fn put64(image: &mut [u8], at: u64, value: u64) {
    put(image, at, &value.to_le_bytes());
}

/// The memory at the start.
pub fn image() -> Vec<u8> {
    let mut m = vec![0; RAM as usize];
    // Two megabytes at linear 0, and the device's memory where it is.
    put64(&mut m, PML4, 0x2007);
    put64(&mut m, 0x2000, 0x3007);
    put64(&mut m, 0x2000 + 3 * 8, 0x4007);
    put64(&mut m, 0x3000, 0xe7);
    put64(&mut m, 0x4000 + (MMIO >> 21 & 511) * 8, MMIO | 0xe7);
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,               // 08: code, 64 bits
        0x00cf_9300_0000_ffff,               // 10: data
        0x00cf_fb00_0000_ffff,               // 18: user code, 32 bits
        0x00cf_f300_0000_ffff,               // 20: user data
        0x00af_fb00_0000_ffff,               // 28: user code, 64 bits
        0x0000_8900_0000_0067 | TSS64 << 16, // 30: task, two slots
        0,
        0x00cf_9b00_0000_ffff,             // 40: code, 32 bits
        0x0000_9b00_0000_ffff,             // 48: code, 16 bits
        0x0000_9300_0000_ffff,             // 50: data, 16 bits
        0x0000_8200_0000_001f | LDT << 16, // 58: LDT, two slots
        0,
        0x0000_8900_0000_0067 | TSS32 << 16, // 68: task, 32 bits
        0x0000_1b00_0000_ffff,               // 70: code that is not present
    ];
    for (n, descriptor) in (0..).zip(descriptors) {
        put64(&mut m, GDT + n * 8, descriptor);
    }
    put64(&mut m, LDT + 8, 0x00cf_9300_1000_ffff);
    put64(&mut m, TSS64 + 4, KERNEL_STACK);
    put(&mut m, TSS32 + 4, &(KERNEL_STACK as u32).to_le_bytes());
    put(&mut m, TSS32 + 8, &0x10u32.to_le_bytes());
    for vector in 0..256u64 {
        let handler = HANDLERS + vector * 16;
        // out 0x80, al; hlt
        put(&mut m, handler, &[0xe6, 0x80, 0xf4]);
        let dpl = if vector == 0x80 || vector == 3 {
            0xee
        } else {
            0x8e
        };
        let low = handler & 0xffff | dpl << 40 | (handler & 0xffff_0000) << 32;
        put64(&mut m, IDT64 + vector * 16, low | 0x08 << 16);
        put64(&mut m, IDT32 + vector * 8, low | 0x40 << 16);
        // Real mode: segment 0x1000.
        let real = (vector * 16) | (0x1000 << 16);
        put(&mut m, vector * 4, &(real as u32).to_le_bytes());
    }
    for at in 0..0x1000 {
        m[(DATA + at) as usize] = (at * 7 + 3) as u8;
    }
    m
}

/// Where a program starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit kernel.
    Kernel,
    /// 64-bit user.
    User,
    /// 32-bit code of a 64-bit kernel's user.
    Compat,
    /// 32-bit kernel without paging.
    Protected,
    /// As after power-on, in segment 0x3000.
    Real,
}

fn seg(selector: u16, rights: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        rights,
    }
}

/// The state in which a program starts, made from a vCPU's reset state.
pub fn start(reset: &CpuState, mode: Mode) -> CpuState {
    let mut s = reset.clone();
    s.tsc = 0;
    s.gpr = std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(n as u32 * 5) | 1);
    s.gpr[4] = STACK;
    s.gpr[5] = STACK + 0x400;
    s.gpr[6] = DATA;
    s.gpr[7] = DATA + 0x800;
    s.rip = CODE;
    s.rflags = 0x3002;
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 15 * 8 - 1,
    };
    s.idtr = DescriptorTable {
        base: IDT64,
        limit: 0xfff,
    };
    s.tr = Segment {
        selector: 0x30,
        base: TSS64,
        limit: 0x67,
        rights: 0x8b,
    };
    s.cr0 = 0x8005_0033;
    s.cr3 = PML4;
    s.cr4 = 0x620;
    let user = matches!(mode, Mode::User | Mode::Compat);
    let data = if user {
        seg(0x23, 0xc0f3)
    } else {
        seg(0x10, 0xc093)
    };
    s.segments = [data; 6];
    s.segments[1] = match mode {
        Mode::Kernel => seg(0x08, 0xa09b),
        Mode::User => seg(0x2b, 0xa0fb),
        Mode::Compat => seg(0x1b, 0xc0fb),
        Mode::Protected | Mode::Real => seg(0x40, 0xc09b),
    };
    s.segments[4].base = DATA + 0x100;
    s.segments[5].base = DATA + 0x200;
    let mut set = |index, value| match s.msrs.iter_mut().find(|(i, _)| *i == index) {
        Some(found) => found.1 = value,
        None => s.msrs.push((index, value)),
    };
    set(msr::EFER, 0xd01);
    set(msr::STAR, 0x0018_0008 << 32);
    set(msr::LSTAR, HANDLERS + 0xf00);
    set(msr::SFMASK, 0x300);
    set(msr::KERNEL_GS_BASE, DATA + 0x300);
    if mode == Mode::Protected {
        s.cr0 = 0x33;
        s.cr4 = 0x600;
        s.idtr.base = IDT32;
        s.tr = Segment {
            selector: 0x68,
            base: TSS32,
            limit: 0x67,
            rights: 0x8b,
        };
        set_efer(&mut s, 0);
        low_halves(&mut s);
    }
    if mode == Mode::Compat {
        low_halves(&mut s);
    }
    if mode == Mode::Real {
        real(&mut s);
    }
    s.msrs.sort_unstable();
    s
}

fn set_efer(s: &mut CpuState, value: u64) {
    s.msrs.retain(|(index, _)| *index != msr::EFER);
    s.msrs.push((msr::EFER, value));
}

fn low_halves(s: &mut CpuState) {
    for r in &mut s.gpr {
        *r &= 0xffff_ffff;
    }
    s.gpr[8..].fill(0);
}

fn real(s: &mut CpuState) {
    set_efer(s, 0);
    low_halves(s);
    s.cr0 = 0x32;
    s.cr4 = 0x600;
    s.rflags = 2;
    s.rip = 0;
    let segment = |selector: u16| Segment {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        rights: 0x93,
    };
    s.segments = [segment(0x4000); 6];
    s.segments[1] = Segment {
        rights: 0x9b,
        ..segment(0x3000)
    };
    s.segments[2] = segment(0x2000);
    s.gpr[4] = 0xc000;
    s.gpr[6] = 0x10;
    s.gpr[7] = 0x800;
    s.idtr = DescriptorTable {
        base: 0,
        limit: 0x3ff,
    };
}
