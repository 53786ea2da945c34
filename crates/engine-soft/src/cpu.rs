//! The state of one vCPU in the layout that generated code addresses
//! (`gs:[offset]`). Plain data; behaviour lives in the other modules.

use std::sync::atomic::{AtomicU32, Ordering};

/// A segment register with its hidden part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seg {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// As `arch::Segment::rights`: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13,
    /// D/B 14, G 15, unusable 16.
    pub rights: u32,
    /// Visible selector.
    pub selector: u16,
    pad: [u16; 3],
}

impl Seg {
    /// A segment register.
    pub const fn new(selector: u16, base: u64, limit: u32, rights: u32) -> Self {
        Self {
            base,
            limit,
            rights,
            selector,
            pad: [0; 3],
        }
    }
    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        (self.rights >> 5 & 3) as u8
    }
    /// D/B: 32-bit default operand size (CS) or stack pointer (SS).
    pub const fn big(&self) -> bool {
        self.rights >> 14 & 1 != 0
    }
    /// L: 64-bit code.
    pub const fn long(&self) -> bool {
        self.rights >> 13 & 1 != 0
    }
}

/// Segment register numbers, in encoding order.
pub mod seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}

/// RFLAGS bits.
pub mod flag {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const ONE: u64 = 1 << 1;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single-step.
    pub const TF: u64 = 1 << 8;
    /// Interrupt enable.
    pub const IF: u64 = 1 << 9;
    /// Direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level, two bits.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check / access control.
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt.
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID available.
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags: the only ones that generated code keeps in
    /// the host's flags.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Control register and EFER bits.
pub mod cr {
    #![allow(missing_docs)]
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_VME: u64 = 1 << 0;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_SCE: u64 = 1 << 0;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
}

/// Entries of each software-TLB bank (direct-mapped).
pub const TLB_ENTRIES: usize = 1024;

/// One direct-mapped bank: translations for one privilege view and one kind of
/// access. Entry `i` serves linear pages whose number is `i` modulo the size.
#[repr(C)]
pub struct TlbBank {
    /// Minus the linear address of the page: adding it to an address inside
    /// the page gives the offset, 0 to 4095; any other result is a miss.
    pub neg_page: [u64; TLB_ENTRIES],
    /// Host address of the page.
    pub host: [u64; TLB_ENTRIES],
}

/// Whose view of memory an access has: the first index of [`Cpu::tlb`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum View {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2 with SMAP in force.
    Kernel = 1,
    /// CPL 0 to 2 with RFLAGS.AC set (or SMAP off): user pages reachable.
    KernelAc = 2,
}

/// Number of [`View`]s.
pub const VIEWS: usize = 3;

/// Which part of [`JitState::jump_cache`] serves code of a [`View`], of 32 or
/// of 64 bits: generated code of one kind never leads to the other.
pub const fn jump_table(view: u8, code32: bool) -> usize {
    view as usize + if code32 { VIEWS } else { 0 }
}

/// 32-byte vector register.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ymm(pub [u8; 32]);

/// Bits of [`Cpu::pending`].
pub mod pending {
    /// The local APIC (or the 8259) may have an interrupt to deliver.
    pub const INTERRUPT: u32 = 1;
    /// `VcpuHandle::kick`.
    pub const KICK: u32 = 2;
    /// Non-maskable interrupt.
    pub const NMI: u32 = 4;
    /// Another vCPU asks for all to stop (`world`).
    pub const WORLD: u32 = 8;
    /// INIT was received.
    pub const INIT: u32 = 16;
    /// SIPI was received (vector in the LAPIC).
    pub const SIPI: u32 = 32;
    /// A device wrote a page that holds translated code.
    pub const CODE: u32 = 64;
}

/// State of one vCPU. While Rust runs, everything is here, except the x87
/// registers, which stay in the host CPU as long as the vCPU runs on its
/// thread (Rust code uses none). `mxcsr` and `ymm` are here.
#[repr(C, align(64))]
pub struct Cpu {
    /// General registers in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8..r15.
    pub gpr: [u64; 16],
    /// Instruction pointer (offset into CS).
    pub rip: u64,
    /// RFLAGS, complete.
    pub rflags: u64,
    /// Polled by generated code at loops and indirect branches; see [`pending`].
    pub pending: AtomicU32,
    /// Not 0: an interrupt waits for RFLAGS.IF.
    pub interrupt_waits: u32,
    /// `pause` instructions until the host's CPU is given to others.
    pub pauses_left: u32,
    /// Guest MXCSR.
    pub mxcsr: u32,
    /// Segment registers; see [`seg`].
    pub seg: [Seg; 6],
    /// Control registers.
    pub cr0: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Page-table root.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended features (EFER).
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// Guest TSC minus host TSC.
    pub tsc_offset: u64,
    /// IA32_KERNEL_GS_BASE (swapgs).
    pub kernel_gs_base: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// Code size of the current mode: 16, 32 or 64.
    pub bits: u8,
    /// [`View`] of ordinary data accesses now, as a number.
    pub view: u8,
    /// STI or MOV SS: no interrupt before the next instruction has finished.
    pub shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Waiting in `hlt`.
    pub halted: bool,
    /// Waiting for SIPI.
    pub wait_for_sipi: bool,
    /// FPU and vector instructions may run without a check (no EM, TS; OSFXSR).
    pub fpu_ok: bool,
    /// Local descriptor table.
    pub ldtr: Seg,
    /// Task register.
    pub tr: Seg,
    /// GDT base and limit.
    pub gdt: (u64, u16),
    /// IDT base and limit.
    pub idt: (u64, u16),
    /// Debug registers.
    pub dr: [u64; 8],
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// Vector registers.
    pub ymm: [Ymm; 16],
    /// Used by generated code and its entry and exit sequences only.
    pub jit: JitState,
    /// Software TLB: by [`View`], then 0 = read, 1 = write.
    pub tlb: [[TlbBank; 2]; 3],
}

/// Scratch of generated code.
#[repr(C)]
pub struct JitState {
    /// Host stack pointer while generated code runs.
    pub host_rsp: u64,
    /// Where to enter.
    pub entry: u64,
    /// Arithmetic flags in `lahf`/`seto` form: AH = SF ZF AF PF CF, AL = OF.
    pub flags_ax: u64,
    /// Arithmetic flags in the same form while the host's are clobbered.
    pub flags_home: u64,
    /// Why generated code was left, and the number that goes with it.
    pub exit: u64,
    /// Linear address of the access that missed, or target of the branch.
    pub exit_addr: u64,
    /// Value of r14 on entry.
    pub operand: u64,
    /// Iterations of the loop that runs without checks.
    pub loop_count: u64,
    /// Value of its counting register at their end.
    pub loop_limit: u64,
    /// Host address minus guest address of its streams, or minus the part of
    /// it that moves.
    pub loop_streams: [u64; 6],
    /// Spill slots.
    pub spill: [u64; 4],
    /// Added to addresses through FS and GS in 32-bit code.
    pub poison: [u64; 2],
    /// Host address of a hardware exception inside generated code.
    pub fault_pc: u64,
    /// Bounce buffer of `native`.
    pub bounce: [u64; 128],
    /// Generated code's view of which code page is mapped where: identity of
    /// the mapping by linear page number modulo the size; kernel, then user.
    pub code_pages: [[u32; 1024]; 2],
    /// Host entry by [`jump_table`] and low 16 bits of the target address.
    pub jump_cache: [[u64; 65536]; 2 * VIEWS],
}

impl Cpu {
    /// Whether protected mode is on.
    pub fn protected(&self) -> bool {
        self.cr0 & cr::CR0_PE != 0
    }
    /// Virtual-8086 mode.
    pub fn v86(&self) -> bool {
        self.rflags & flag::VM != 0
    }
    /// IA-32e mode (64-bit or compatibility).
    pub fn long_mode(&self) -> bool {
        self.efer & cr::EFER_LMA != 0
    }
    /// 64-bit mode.
    pub fn is64(&self) -> bool {
        self.bits == 64
    }
    /// Paging is on.
    pub fn paging(&self) -> bool {
        self.cr0 & cr::CR0_PG != 0
    }
    /// I/O privilege level.
    pub fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }
    /// Raises bits of [`pending`] (from any thread that holds a reference).
    pub fn raise(&self, bits: u32) {
        self.pending.fetch_or(bits, Ordering::SeqCst);
    }
}
