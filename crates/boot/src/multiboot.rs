//! Multiboot 1 kernels, ELF or with addresses in their header (Multiboot
//! Specification 0.6.96).

use memory::GuestRam;

use crate::entry::Entry;
use crate::linux::{check_cmdline, load_elf_segments, put_cmdline};
use crate::map::{CMDLINE_MAX, HIGH, INFO, LOW_END, memory_map, put, put_zeros};
use crate::{BootError, Loaded, Request, initrd};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies in the first 8 KiB.
pub const SEARCH: usize = 8192;
const FLAG_VIDEO: u32 = 1 << 2;
const FLAG_ADDRESSES: u32 = 1 << 16;
const MODULE: u64 = INFO + 0x100;
const MODULE_NAME: u64 = INFO + 0x110;
const LOADER_NAME: u64 = INFO + 0x120;
const MEMORY_MAP: u64 = INFO + 0x200;

/// The Multiboot header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Offset in the file.
    offset: usize,
    flags: u32,
    /// header, load, load end, bss end, entry address.
    addresses: Option<[u32; 5]>,
}

/// Finds the header, by its magic and checksum.
pub fn find(data: &[u8]) -> Option<Header> {
    let area = &data[..data.len().min(SEARCH)];
    let long = |at: usize| {
        let b = area.get(at..at + 4)?;
        Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    (0..area.len()).step_by(4).find_map(|offset| {
        let flags = long(offset + 4)?;
        let sum = HEADER_MAGIC
            .wrapping_add(flags)
            .wrapping_add(long(offset + 8)?);
        if long(offset)? != HEADER_MAGIC || sum != 0 {
            return None;
        }
        let mut addresses = None;
        if flags & FLAG_ADDRESSES != 0 {
            let mut a = [0; 5];
            for (i, v) in a.iter_mut().enumerate() {
                *v = long(offset + 12 + i * 4)?;
            }
            addresses = Some(a);
        }
        Some(Header {
            offset,
            flags,
            addresses,
        })
    })
}

/// Loads a Multiboot kernel.
pub fn load(ram: &GuestRam, header: Header, request: &Request<'_>) -> Result<Loaded, BootError> {
    let bad = |reason: String| BootError::BadKernel {
        format: "multiboot kernel",
        path: request.kernel.path().into(),
        reason,
    };
    check_cmdline(request.cmdline, CMDLINE_MAX - 1)?;
    if header.flags & 0xfff8 != 0 {
        return Err(bad(format!(
            "it requires unknown features (header flags {:#x})",
            header.flags
        )));
    }
    if header.flags & FLAG_VIDEO != 0 {
        tracing::warn!("the kernel asks for a video mode; this machine has no display");
    }
    let (eip, end) = match header.addresses {
        Some(a) => {
            let data = request.kernel.read(ram.low_size())?;
            load_flat(ram, &data, header.offset, a, &bad)?
        }
        None => {
            let (elf, end) = load_elf_segments(ram, request.kernel)?;
            (elf.physical_entry() as u32, end)
        }
    };
    let module = initrd::load(ram, request.initrd, end, 0xffff_ffff)?;
    write_info(ram, module, request.cmdline)?;
    Ok(Loaded {
        format: "multiboot kernel",
        entry: Entry::Protected {
            eip,
            eax: LOADER_MAGIC,
            ebx: INFO as u32,
            esi: 0,
        },
    })
}

/// Loads by the addresses in the header.
fn load_flat(
    ram: &GuestRam,
    data: &[u8],
    offset: usize,
    [header, load, load_end, bss_end, entry]: [u32; 5],
    bad: &dyn Fn(String) -> BootError,
) -> Result<(u32, u64), BootError> {
    let before = header.checked_sub(load).map(|n| n as usize);
    let start = before.and_then(|n| offset.checked_sub(n));
    let start = start.ok_or_else(|| bad("its load address lies above its header".into()))?;
    let rest = &data[start..];
    let len = match load_end {
        0 => rest.len(),
        e => (e.checked_sub(load))
            .ok_or_else(|| bad("its load end lies below its load address".into()))?
            as usize,
    };
    let image = rest
        .get(..len)
        .ok_or_else(|| bad("it is truncated: the file ends before its load end".into()))?;
    let loaded = u64::from(load) + len as u64;
    let end = loaded.max(u64::from(bss_end));
    if u64::from(load) < HIGH {
        return Err(bad(
            "it loads below 1 MiB, where the machine keeps its tables".into(),
        ));
    }
    if end > ram.low_size() {
        return Err(BootError::NoRoom {
            what: "kernel",
            needed: end,
            available: ram.low_size(),
        });
    }
    if u64::from(entry) < u64::from(load) || u64::from(entry) >= end {
        return Err(bad("its entry point lies outside what is loaded".into()));
    }
    put(ram, "kernel", u64::from(load), image)?;
    put_zeros(ram, "kernel", loaded, end - loaded)?;
    Ok((entry, end))
}

fn write_info(ram: &GuestRam, module: Option<(u64, u64)>, cmdline: &str) -> Result<(), BootError> {
    const HAS: u32 = 1 | 1 << 2 | 1 << 6 | 1 << 9;
    const HAS_MODULES: u32 = 1 << 3;
    let mut info = vec![0u8; 0x60];
    let mut set = |at: usize, v: u64| info[at..at + 4].copy_from_slice(&(v as u32).to_le_bytes());
    let mut table = Vec::new();
    for r in memory_map(ram) {
        table.extend(20u32.to_le_bytes());
        table.extend(r.start.to_le_bytes());
        table.extend(r.size.to_le_bytes());
        table.extend((r.kind as u32).to_le_bytes());
    }
    set(
        0,
        u64::from(HAS | if module.is_some() { HAS_MODULES } else { 0 }),
    );
    set(4, LOW_END / 1024);
    set(8, ram.low_size().saturating_sub(HIGH) / 1024);
    set(16, put_cmdline(ram, cmdline)?);
    if let Some((start, size)) = module {
        set(20, 1);
        set(24, MODULE);
        let entry = [start, start + size, MODULE_NAME, 0];
        let entry: Vec<u8> = entry
            .iter()
            .flat_map(|v| (*v as u32).to_le_bytes())
            .collect();
        put(ram, "multiboot module list", MODULE, &entry)?;
        put(ram, "multiboot module name", MODULE_NAME, b"module\0")?;
    }
    set(44, table.len() as u64);
    set(48, MEMORY_MAP);
    set(64, LOADER_NAME);
    put(ram, "multiboot loader name", LOADER_NAME, b"Holm\0")?;
    put(ram, "multiboot memory map", MEMORY_MAP, &table)?;
    put(ram, "multiboot information", INFO, &info)
}
