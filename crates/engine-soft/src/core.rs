//! A vCPU with everything it reaches: what the interpreter, the system
//! instructions and the translator all work on.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

use arch::Exception;
use engine::Bus;
use memory::GuestRam;

use crate::cpu::{Cpu, View, cr, flag, seg};
use crate::lapic::{Lapic, Wheel};
use crate::translate::cache::CodeCache;
use crate::translate::dispatch::Jit;
use crate::world::{Signal, World};

/// Why an instruction did not simply complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// A fault: the vCPU's state is as before the instruction (string
    /// instructions: as after the last whole iteration).
    Fault(Exception),
    /// `hlt` or `mwait` completed (rip is past it): wait for an interrupt.
    Halt,
    /// Triple fault.
    Shutdown,
}

impl From<Exception> for Trap {
    fn from(e: Exception) -> Self {
        Self::Fault(e)
    }
}

/// Result of everything that guest code can make fail.
pub type Exec<T = ()> = Result<T, Trap>;

/// What all vCPUs of a machine share.
pub struct Shared {
    /// RAM.
    pub ram: Arc<GuestRam>,
    /// Devices; connected before the first run.
    pub bus: OnceLock<Arc<dyn Bus>>,
    /// Local APICs by vCPU index.
    pub lapics: Vec<Arc<Lapic>>,
    /// How to reach each vCPU, by index.
    pub signals: Vec<Arc<Signal>>,
    /// Stopping all vCPUs.
    pub world: World,
    /// What CPUID shows.
    pub cpuid: arch::cpuid::CpuidTable,
    /// The guest's time.
    pub tsc_base: crate::system::clock::TscBase,
    /// Translated code.
    pub(crate) code: CodeCache,
    /// The vCPUs' states, for use while the world stands still.
    pub(crate) cpus: Vec<CpuPtr>,
    /// The paravirtual clock: a TSC value without IA32_TSC_ADJUST, and the
    /// nanoseconds at it.
    pub(crate) pvclock: parking_lot::Mutex<(u64, u64)>,
}

/// Address of a vCPU's state, which its `Core` owns.
#[derive(Clone, Copy)]
pub(crate) struct CpuPtr(pub(crate) *mut Cpu);

// SAFETY: only dereferenced while all vCPUs stand at a safe point.
unsafe impl Send for CpuPtr {}
// SAFETY: as above.
unsafe impl Sync for CpuPtr {}

impl Shared {
    /// The buses.
    ///
    /// # Panics
    /// If the engine was run before it was connected: a fault of the machine's
    /// assembly, not reachable by a guest.
    #[allow(clippy::expect_used)]
    pub fn bus(&self) -> &dyn Bus {
        &**self.bus.get().expect("engine is connected before it runs")
    }
}

/// Memory of a [`Cpu`]; lives as long as anyone may raise its pending bits.
pub(crate) struct CpuMemory(NonNull<Cpu>);

// SAFETY: owns its memory; `Cpu` holds no thread-bound data, and what other
// threads touch through a shared `CpuMemory` is atomic.
unsafe impl Send for CpuMemory {}
// SAFETY: as above.
unsafe impl Sync for CpuMemory {}

impl CpuMemory {
    const LAYOUT: Layout = match Layout::new::<Cpu>().align_to(4096) {
        Ok(l) => l,
        Err(_) => panic!("layout of Cpu"),
    };

    /// The pending word; see `cpu::pending`.
    pub(crate) fn pending(&self) -> &AtomicU32 {
        // SAFETY: valid for the life of `self`; only this atomic is borrowed.
        unsafe { &(*self.0.as_ptr()).pending }
    }
}

impl Drop for CpuMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `CpuBox::new` with the same layout.
        unsafe { dealloc(self.0.as_ptr().cast(), Self::LAYOUT) }
    }
}

/// A [`Cpu`]: pinned, page-aligned, zeroed. The one owner of its registers.
pub struct CpuBox(Arc<CpuMemory>);

impl CpuBox {
    /// A zeroed `Cpu` whose address never changes.
    pub fn new() -> Self {
        // SAFETY: the layout is not zero-sized; all-zero bytes are a valid
        // `Cpu` (integers, bools and byte arrays).
        let p = unsafe { alloc_zeroed(CpuMemory::LAYOUT) }.cast::<Cpu>();
        match NonNull::new(p) {
            Some(p) => Self(Arc::new(CpuMemory(p))),
            None => handle_alloc_error(CpuMemory::LAYOUT),
        }
    }

    /// Its address.
    pub fn as_ptr(&self) -> *mut Cpu {
        self.0.0.as_ptr()
    }

    /// Its memory, for whoever raises its pending bits.
    pub(crate) fn memory(&self) -> Arc<CpuMemory> {
        self.0.clone()
    }
}

impl Default for CpuBox {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for CpuBox {
    type Target = Cpu;
    fn deref(&self) -> &Cpu {
        // SAFETY: valid for the life of the box.
        unsafe { &*self.as_ptr() }
    }
}

impl DerefMut for CpuBox {
    fn deref_mut(&mut self) -> &mut Cpu {
        // SAFETY: valid, and borrowed mutably through the box. Other threads
        // touch only `pending`, an atomic.
        unsafe { &mut *self.as_ptr() }
    }
}

/// One vCPU.
pub struct Core {
    /// Registers and software TLB.
    pub cpu: CpuBox,
    /// Index, which is also the APIC id.
    pub index: u32,
    /// RAM (the same as `shared.ram`).
    pub ram: Arc<GuestRam>,
    /// What all vCPUs share.
    pub shared: Arc<Shared>,
    /// This vCPU's local APIC (the same as `shared.lapics[index]`).
    pub lapic: Arc<Lapic>,
    /// The translator's part.
    pub(crate) jit: Box<Jit>,
    /// System state that generated code never looks at.
    pub system: crate::system::SystemState,
    /// TLB entries in use, so that flushing is cheap.
    pub(crate) tlb_used: crate::mmu::TlbUse,
    /// What `native` keeps: host stubs, x87 registers.
    pub(crate) native: crate::native::NativeState,
    /// What a debugger outside the guest asks for.
    pub(crate) debugger: crate::debugger::Debugger,
    /// Whether a halted vCPU looks for its wake-up before it sleeps.
    pub(crate) halt: crate::halt::HaltPoll,
    /// Counters.
    pub stats: Stats,
}

/// Counters of one vCPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Instructions interpreted.
    pub interpreted: u64,
    /// Exceptions delivered.
    pub exceptions: u64,
    /// Interrupts delivered.
    pub interrupts: u64,
    /// Software-TLB fills.
    pub tlb_fills: u64,
    /// Software-TLB flushes.
    pub tlb_flushes: u64,
    /// MMIO accesses.
    pub mmio: u64,
    /// Port accesses.
    pub pio: u64,
}

impl Shared {
    /// The vCPUs of a machine in their reset state, and what they share.
    ///
    /// # Errors
    /// If the host gives no executable memory.
    pub(crate) fn build(
        ram: Arc<GuestRam>,
        vcpus: u32,
        cpuid: arch::cpuid::CpuidTable,
        wheel: &Arc<Wheel>,
    ) -> std::io::Result<(Arc<Self>, Vec<Core>)> {
        let cpus: Vec<CpuBox> = (0..vcpus).map(|_| CpuBox::new()).collect();
        let signals: Vec<_> = cpus.iter().map(Signal::new).collect();
        let world = World::new();
        for s in &signals {
            world.add(s.clone());
        }
        let lapics: Vec<_> = signals
            .iter()
            .zip(0..)
            .map(|(s, id)| Lapic::new(id, s.clone(), wheel.clone()))
            .collect();
        let features = crate::native::Features::from_cpuid(|leaf, sub| {
            cpuid.lookup(leaf, sub, 0, &arch::cpuid::Dynamic::default())
        })
        .and(crate::native::Features::host());
        let shared = Arc::new(Self {
            ram: ram.clone(),
            bus: OnceLock::new(),
            lapics,
            signals,
            world,
            cpuid,
            tsc_base: crate::system::clock::TscBase::new(),
            code: CodeCache::new()?,
            cpus: cpus.iter().map(|c| CpuPtr(c.as_ptr())).collect(),
            pvclock: parking_lot::Mutex::default(),
        });
        let mut cores = Vec::new();
        for (cpu, index) in cpus.into_iter().zip(0..) {
            let mut core = Core {
                cpu,
                index,
                ram: ram.clone(),
                lapic: shared.lapics[index as usize].clone(),
                shared: shared.clone(),
                jit: Box::new(Jit::new()),
                system: crate::system::SystemState::default(),
                tlb_used: crate::mmu::TlbUse::new(),
                native: crate::native::NativeState::new(features)?,
                debugger: crate::debugger::Debugger::default(),
                halt: crate::halt::HaltPoll::default(),
                stats: Stats::default(),
            };
            core.cpu.pauses_left = 1;
            core.power_on();
            cores.push(core);
        }
        Ok((shared, cores))
    }
}

impl Core {
    /// A lone vCPU on `ram` and `bus` with everything the host can show, for
    /// tests: registers as after RESET, caches empty, nothing running.
    ///
    /// # Errors
    /// If the host gives no executable memory.
    #[doc(hidden)]
    pub fn bare(ram: Arc<GuestRam>, bus: Arc<dyn Bus>) -> std::io::Result<Self> {
        let table = crate::system::host::host_table(arch::cpuid::CpuModel::Host, 1)
            .map_err(std::io::Error::other)?;
        let (shared, mut cores) = Shared::build(ram, 1, table, &Wheel::new())?;
        let _ = shared.bus.set(bus);
        cores
            .pop()
            .ok_or_else(|| std::io::Error::other("no vCPU was built"))
    }

    /// Recomputes what is derived from CS, CR0, CR4, EFER and RFLAGS: `bits`,
    /// `view`, `fpu_ok`. To be called after any change of those (`cpl` itself
    /// is set by whoever loads CS).
    pub fn update_mode(&mut self) {
        let c = &mut *self.cpu;
        let cs = c.seg[seg::CS];
        c.bits = if c.efer & cr::EFER_LMA != 0 && cs.long() {
            64
        } else if c.cr0 & cr::CR0_PE != 0 && c.rflags & flag::VM == 0 && cs.big() {
            32
        } else {
            16
        };
        c.fpu_ok = c.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 && c.cr4 & cr::CR4_OSFXSR != 0;
        self.update_view();
    }

    /// Recomputes `view` only (after a change of CPL or RFLAGS.AC).
    #[inline]
    pub fn update_view(&mut self) {
        let c = &mut *self.cpu;
        c.view = if c.cpl == 3 {
            View::User
        } else if c.cr4 & cr::CR4_SMAP == 0 || c.rflags & flag::AC != 0 {
            View::KernelAc
        } else {
            View::Kernel
        } as u8;
    }

    /// Reads 1, 2 or 4 bytes from a port. Permission is the caller's business.
    pub fn io_read(&mut self, port: u16, size: usize) -> u32 {
        self.stats.pio += 1;
        let mut b = [0xff; 4];
        self.shared.bus().pio_read(port, &mut b[..size]);
        let v = u32::from_le_bytes(b);
        if size < 4 {
            v & ((1 << (size * 8)) - 1)
        } else {
            v
        }
    }

    /// Writes 1, 2 or 4 bytes to a port. Permission is the caller's business.
    pub fn io_write(&mut self, port: u16, size: usize, value: u32) {
        self.stats.pio += 1;
        self.shared
            .bus()
            .pio_write(port, &value.to_le_bytes()[..size]);
    }

    /// `pause`: the guest waits for another vCPU, which may need the host's CPU
    /// that this one runs on.
    pub(crate) fn pause(&mut self) {
        /// As many take some 50 microseconds.
        const BEFORE_OTHERS: u32 = 2048;
        match self.cpu.pauses_left {
            0 | 1 => {
                self.cpu.pauses_left = BEFORE_OTHERS;
                std::thread::yield_now();
            }
            left => self.cpu.pauses_left = left - 1,
        }
    }

    /// This vCPU's signal.
    pub fn signal(&self) -> &Arc<Signal> {
        &self.shared.signals[self.index as usize]
    }
}
