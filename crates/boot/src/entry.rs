//! The state in which the first vCPU enters the kernel.

use arch::state::{CpuState, DescriptorTable, MpState, Segment};
use memory::GuestRam;

use crate::BootError;
use crate::map::{GDT, PAGE_TABLES, STACK, put};

/// IA32_EFER (SDM vol. 4).
const EFER: u32 = 0xc000_0080;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
const CR0_PE_ET_NE: u64 = 0x31;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// Selectors that the Linux boot protocol asks for.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TSS: u16 = 0x20;
/// Flat descriptors: null, unused, code, data, TSS.
const RIGHTS_CODE32: u32 = 0xc09b;
const RIGHTS_CODE64: u32 = 0xa09b;
const RIGHTS_DATA: u32 = 0xc093;
const RIGHTS_TSS: u32 = 0x008b;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, identity-mapped below 4 GiB; the Linux 64-bit protocol.
    Long {
        /// Entry point.
        rip: u64,
        /// Boot parameters.
        rsi: u64,
    },
    /// 32-bit protected mode, flat segments, no paging: Linux's 32-bit
    /// protocol (esi), PVH (ebx) and multiboot (eax, ebx).
    Protected {
        /// Entry point.
        eip: u32,
        /// Multiboot's magic, else 0.
        eax: u32,
        /// Start info or multiboot information, else 0.
        ebx: u32,
        /// Boot parameters, else 0.
        esi: u32,
    },
}

impl Entry {
    /// Changes a first vCPU's reset state into the kernel's start state.
    pub fn apply(&self, state: &mut CpuState) {
        let flat = |selector, rights| Segment {
            selector,
            base: 0,
            limit: 0xffff_ffff,
            rights,
        };
        state.gpr = [0; 16];
        state.gpr[4] = STACK;
        state.rflags = 2;
        state.segments = [flat(DATA, RIGHTS_DATA); 6];
        state.gdtr = DescriptorTable {
            base: GDT,
            limit: 5 * 8 - 1,
        };
        // No vector works until the kernel loads its own table.
        state.idtr = DescriptorTable { base: 0, limit: 0 };
        state.tr = Segment {
            selector: TSS,
            base: 0,
            limit: 0x67,
            rights: RIGHTS_TSS,
        };
        state.cr2 = 0;
        state.cr8 = 0;
        state.mp_state = MpState::Running;
        match *self {
            Self::Long { rip, rsi } => {
                state.rip = rip;
                state.gpr[6] = rsi;
                state.segments[1] = flat(CODE, RIGHTS_CODE64);
                state.cr0 = CR0_PE_ET_NE | CR0_PG;
                state.cr3 = PAGE_TABLES;
                state.cr4 = CR4_PAE;
                set_msr(state, EFER, EFER_LME_LMA);
            }
            Self::Protected { eip, eax, ebx, esi } => {
                state.rip = u64::from(eip);
                state.gpr[0] = u64::from(eax);
                state.gpr[3] = u64::from(ebx);
                state.gpr[6] = u64::from(esi);
                state.segments[1] = flat(CODE, RIGHTS_CODE32);
                state.cr0 = 0x11;
                state.cr3 = 0;
                state.cr4 = 0;
                set_msr(state, EFER, 0);
            }
        }
        virtual_wire(state);
    }
}

/// The local APIC as firmware leaves it: the 8259 pair reaches the first CPU
/// through LINT0 (MultiProcessor Specification 1.4, 3.6.2.2).
fn virtual_wire(state: &mut CpuState) {
    const SVR: usize = 0xf;
    const LINT0: usize = 0x35;
    const LINT1: usize = 0x36;
    if state.lapic.regs.len() > LINT1 {
        state.lapic.regs[SVR] = 0x10f;
        state.lapic.regs[LINT0] = 0x700;
        state.lapic.regs[LINT1] = 0x400;
    }
}

fn set_msr(state: &mut CpuState, index: u32, value: u64) {
    match state.msrs.binary_search_by_key(&index, |m| m.0) {
        Ok(i) => state.msrs[i].1 = value,
        Err(i) => state.msrs.insert(i, (index, value)),
    }
}

/// Writes the GDT that the segment registers were loaded from, and for
/// [`Entry::Long`] the identity page tables of the first 4 GiB.
///
/// # Errors
/// [`BootError::Memory`].
pub fn write_tables(ram: &GuestRam, entry: &Entry) -> Result<(), BootError> {
    let code = match entry {
        Entry::Long { .. } => RIGHTS_CODE64,
        Entry::Protected { .. } => RIGHTS_CODE32,
    };
    let flat = |rights: u32| u64::from(rights) << 40 | 0x000f_0000_0000_ffff;
    let gdt = [0, 0, flat(code), flat(RIGHTS_DATA), 0x0000_8b00_0000_0067];
    put(ram, "boot GDT", GDT, &words(gdt))?;
    if matches!(entry, Entry::Long { .. }) {
        const TABLE: u64 = 3;
        const LARGE: u64 = 0x83;
        let pdpt = PAGE_TABLES + 0x1000;
        let directories = PAGE_TABLES + 0x2000;
        let mut pml4 = vec![0u8; 0x1000];
        pml4[..8].copy_from_slice(&(pdpt | TABLE).to_le_bytes());
        let mut tables = pml4;
        let mut second = words((0..4).map(|i| (directories + i * 0x1000) | TABLE));
        second.resize(0x1000, 0);
        tables.extend(second);
        tables.extend(words((0..4 * 512u64).map(|i| i << 21 | LARGE)));
        put(ram, "boot page tables", PAGE_TABLES, &tables)?;
    }
    Ok(())
}

fn words(values: impl IntoIterator<Item = u64>) -> Vec<u8> {
    values.into_iter().flat_map(u64::to_le_bytes).collect()
}
