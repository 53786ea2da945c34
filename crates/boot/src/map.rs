//! Where the loader puts things in low memory, and the memory map that the
//! guest is told.
//!
//! | range | what |
//! |---|---|
//! | 0x1000 | boot GDT |
//! | 0x2000 .. 0x6000 | PVH start info or multiboot information |
//! | 0x7000 | Linux boot parameters |
//! | 0x8000 | random seed for Linux |
//! | 0x9000 .. 0xf000 | identity page tables of the first 4 GiB |
//! | 0x20000 .. 0x30000 | command line |
//! | 0xe0000 .. 0xf0000 | ACPI tables, RSDP first |
//! | 0xf0000 .. 0x100000 | SMBIOS anchor and tables |

use arch::layout;
use memory::GuestRam;

use crate::BootError;

/// Boot GDT.
pub const GDT: u64 = 0x1000;
/// PVH start info or multiboot information; up to 0x6000.
pub const INFO: u64 = 0x2000;
/// One past the information area.
pub const INFO_END: u64 = 0x6000;
/// Linux boot parameters ("zero page"), 4 KiB.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Linux setup_data with a random seed.
pub const SETUP_DATA: u64 = 0x8000;
/// Page tables: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of a command line, with its NUL.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// Stack pointer at the start; the area below it is free.
pub const STACK: u64 = 0x1_fff0;
/// End of conventional memory (below the extended BIOS data area).
pub const LOW_END: u64 = 0x9_fc00;
/// RSDP and the ACPI tables.
pub const ACPI: u64 = 0xe_0000;
/// One past the ACPI tables; its last bytes are the generation id.
pub const ACPI_END: u64 = 0xf_0000;
/// SMBIOS 3 anchor and structures.
pub const SMBIOS: u64 = 0xf_0000;
/// One past the SMBIOS structures.
pub const SMBIOS_END: u64 = 0x10_0000;
/// First byte above the legacy hole; kernels are loaded from here on.
pub const HIGH: u64 = 0x10_0000;

/// What a range of guest-physical addresses is (ACPI 6.4, table 15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable RAM.
    Ram = 1,
    /// Not for the guest.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The memory map of a machine with this RAM.
pub fn memory_map(ram: &GuestRam) -> Vec<Range> {
    let range = |start, end: u64, kind| Range {
        start,
        size: end - start,
        kind,
    };
    let mut map = vec![
        range(0, LOW_END, RangeKind::Ram),
        range(LOW_END, HIGH, RangeKind::Reserved),
    ];
    if ram.low_size() > HIGH {
        map.push(range(HIGH, ram.low_size(), RangeKind::Ram));
    }
    map.push(Range {
        start: layout::ECAM_START,
        size: layout::ECAM_SIZE,
        kind: RangeKind::Reserved,
    });
    if ram.high_size() > 0 {
        map.push(Range {
            start: layout::HIGH_RAM_START,
            size: ram.high_size(),
            kind: RangeKind::Ram,
        });
    }
    map
}

/// Writes to guest memory, naming what is written if that fails.
pub fn put(ram: &GuestRam, what: &'static str, at: u64, data: &[u8]) -> Result<(), BootError> {
    ram.write(at, data)
        .map_err(|source| BootError::Memory { what, source })
}

/// Zeroes guest memory.
pub fn put_zeros(
    ram: &GuestRam,
    what: &'static str,
    mut at: u64,
    mut len: u64,
) -> Result<(), BootError> {
    static ZEROS: [u8; 0x1_0000] = [0; 0x1_0000];
    while len > 0 {
        let n = len.min(ZEROS.len() as u64);
        put(ram, what, at, &ZEROS[..n as usize])?;
        at += n;
        len -= n;
    }
    Ok(())
}
