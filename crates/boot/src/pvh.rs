//! PVH: the direct boot of Xen, which Linux, FreeBSD and small kernels offer
//! (Xen `docs/misc/pvh.pandoc`, `arch-x86/hvm/start_info.h`).

use memory::GuestRam;

use crate::entry::Entry;
use crate::linux::{check_cmdline, load_elf_segments, put_cmdline};
use crate::map::{ACPI, CMDLINE_MAX, INFO, memory_map, put};
use crate::{BootError, Loaded, Request, initrd};

const MAGIC: u32 = 0x336e_c578;
const MODULES: u64 = INFO + 0x100;
const MEMORY_MAP: u64 = INFO + 0x200;

/// Loads an ELF kernel that is entered at its PVH note's address.
pub fn load(ram: &GuestRam, entry: u32, request: &Request<'_>) -> Result<Loaded, BootError> {
    check_cmdline(request.cmdline, CMDLINE_MAX - 1)?;
    let (elf, end) = load_elf_segments(ram, request.kernel)?;
    if !elf.contains(u64::from(entry)) {
        return Err(BootError::BadKernel {
            format: "ELF kernel",
            path: request.kernel.path().into(),
            reason: format!("its PVH entry point {entry:#x} is in none of its segments"),
        });
    }
    let initrd = initrd::load(ram, request.initrd, end, 0x7fff_ffff)?;
    let line = put_cmdline(ram, request.cmdline)?;
    if let Some((start, size)) = initrd {
        let module = [start, size, 0, 0];
        let module: Vec<u8> = module.iter().flat_map(|v| v.to_le_bytes()).collect();
        put(ram, "PVH module list", MODULES, &module)?;
    }
    let map = memory_map(ram);
    let mut table = Vec::new();
    for r in &map {
        table.extend(r.start.to_le_bytes());
        table.extend(r.size.to_le_bytes());
        table.extend((r.kind as u32).to_le_bytes());
        table.extend(0u32.to_le_bytes());
    }
    put(ram, "PVH memory map", MEMORY_MAP, &table)?;
    let mut info = Vec::new();
    let modules = u32::from(initrd.is_some());
    for v in [MAGIC, 1, 0, modules] {
        info.extend(v.to_le_bytes());
    }
    let list = if modules > 0 { MODULES } else { 0 };
    for v in [list, line, ACPI, MEMORY_MAP] {
        info.extend(v.to_le_bytes());
    }
    info.extend((map.len() as u32).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    put(ram, "PVH start info", INFO, &info)?;
    Ok(Loaded {
        format: "ELF kernel with PVH entry",
        entry: Entry::Protected {
            eip: entry,
            eax: 0,
            ebx: INFO as u32,
            esi: 0,
        },
    })
}
