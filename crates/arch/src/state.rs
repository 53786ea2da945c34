//! The complete architectural state of one vCPU, as data.
//!
//! Engines give and take it ([`CpuState`]); snapshots and migration store it.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part (SDM vol. 3A, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (granularity applied).
    pub limit: u32,
    /// Access rights as in bits 8..23 of the descriptor's high word: type 0-3,
    /// S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15; bit 16 = unusable.
    pub rights: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit: offset of the last byte.
    pub limit: u16,
}

/// Multiprocessor state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Executing.
    #[default]
    Running,
    /// After `hlt` (or `mwait`): waits for an interrupt.
    Halted,
    /// An application processor after INIT: waits for SIPI.
    WaitForSipi,
}

/// The local APIC's registers: the 4 KiB register page as in xAPIC mode
/// (SDM vol. 3A, table 11-1), of which each 16th 32-bit word is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// 64 32-bit registers, by offset / 16; in x2APIC mode too.
    pub regs: Vec<u32>,
    /// IA32_APIC_BASE.
    pub base: u64,
    /// IA32_TSC_DEADLINE (guest TSC; 0: disarmed).
    pub tsc_deadline: u64,
}

/// An event whose delivery had begun, so that its source has forgotten it: it
/// comes before anything else. Hardware may be stopped at such a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Vector.
    pub vector: u8,
    /// An exception; else an external interrupt that was acknowledged.
    pub exception: bool,
    /// Error code of an exception that has one. A page fault's address is in
    /// CR2 already.
    pub error: Option<u32>,
}

/// Everything a vCPU is. Version 1; fields are only ever added, with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15 (encoding order).
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS (encoding order).
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table root.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority (CR8).
    pub cr8: u64,
    /// Debug registers 0 to 7 (4 and 5 unused).
    pub dr: [u64; 8],
    /// XCR0.
    pub xcr0: u64,
    /// XSAVE image in standard format (x87, SSE, AVX): 832 bytes.
    pub xsave: Vec<u8>,
    /// MSRs by index, those that the CPU model has, in ascending order.
    pub msrs: Vec<(u32, u64)>,
    /// Local APIC.
    pub lapic: LapicState,
    /// Multiprocessor state.
    pub mp_state: MpState,
    /// Guest TSC minus host TSC at the time of saving is not kept: this is the
    /// guest TSC at that time.
    pub tsc: u64,
    /// Nanoseconds of KVM's paravirtual clock at that time, on the machine's
    /// first vCPU; `None`: as many as the TSC has counted.
    #[serde(default)]
    pub system_time: Option<u64>,
    /// STI or MOV SS blocks interrupts for one instruction.
    pub interrupt_shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI is pending.
    pub nmi_pending: bool,
    /// An event half delivered.
    #[serde(default)]
    pub injected: Option<Injected>,
}

impl CpuState {
    /// State after power-on or RESET (SDM vol. 3A, table 10-1).
    pub fn reset(bsp: bool) -> Self {
        let data = |selector, base, rights| Segment {
            selector,
            base,
            limit: 0xffff,
            rights,
        };
        let mut s = Self {
            rip: 0xfff0,
            rflags: 2,
            cr0: 0x6000_0010,
            segments: [data(0, 0, 0x93); 6],
            ldtr: data(0, 0, 0x82),
            tr: data(0, 0, 0x8b),
            gdtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            idtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            xcr0: 1,
            mp_state: if bsp {
                MpState::Running
            } else {
                MpState::WaitForSipi
            },
            ..Self::default()
        };
        s.segments[1] = data(0xf000, 0xffff_0000, 0x9b);
        s.dr[6] = 0xffff_0ff0;
        s.dr[7] = 0x400;
        s.xsave = initial_xsave();
        s
    }
}

/// XSAVE image of a just-initialized FPU: FCW 0x37f, MXCSR 0x1f80.
pub fn initial_xsave() -> Vec<u8> {
    let mut x = vec![0u8; 832];
    x[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    x[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    x[512] = 7;
    x
}
