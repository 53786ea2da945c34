//! Linux kernels: the bzImage, and the boot parameters of all Linux entries
//! but PVH's (Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`).

use memory::GuestRam;

use crate::content::Stream;
use crate::elf::{Elf, ElfError};
use crate::entry::Entry;
use crate::file::ImageFile;
use crate::map::{ACPI, BOOT_PARAMS, CMDLINE, CMDLINE_MAX, HIGH, SETUP_DATA, memory_map, put};
use crate::payload::{Compression, MAX_UNPACKED};
use crate::{BootError, Loaded, Request, initrd};

const FORMAT: &str = "Linux bzImage";
/// Largest address of an initrd for kernels that do not say.
const INITRD_MAX: u64 = 0x7fff_ffff;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

/// Whether this is a bzImage (or an old zImage).
pub fn is_bzimage(data: &[u8]) -> bool {
    data.get(0x1fe..0x206)
        .is_some_and(|h| h[..2] == [0x55, 0xaa] && h[4..] == *b"HdrS")
}

/// The setup header's fields that the loader reads.
struct Header {
    version: u16,
    xloadflags: u16,
    cmdline_max: usize,
    initrd_max: u64,
    relocatable: bool,
    alignment: u64,
    preferred: u64,
    init_size: u64,
    /// Offset of the protected-mode code in the file.
    code: usize,
    /// Bytes of the protected-mode code.
    code_size: usize,
    /// Compressed kernel, relative to `code`.
    payload: Option<(usize, usize)>,
    /// Bytes 0x1f1 to the end of the header, to be copied.
    raw: Vec<u8>,
}

impl Header {
    fn parse(data: &[u8]) -> Result<Self, String> {
        let byte = |at: usize| data.get(at).copied().unwrap_or(0);
        let word = |at| u16::from_le_bytes([byte(at), byte(at + 1)]);
        let long = |at| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let quad = |at| u64::from(long(at)) | u64::from(long(at + 4)) << 32;
        if data.len() < 0x400 {
            return Err("it ends inside its setup header".into());
        }
        let version = word(0x206);
        if version < 0x206 {
            return Err(format!(
                "its boot protocol is {}.{:02}, and 2.06 (Linux 2.6.22) or later is needed",
                version >> 8,
                version & 0xff
            ));
        }
        if byte(0x211) & LOADED_HIGH == 0 {
            return Err("it is a zImage, which real-mode loaders alone can start".into());
        }
        let sectors = match byte(0x1f1) {
            0 => 4,
            n => usize::from(n),
        };
        let code = (sectors + 1) * 512;
        let code_size = long(0x1f4) as usize * 16;
        if code_size == 0 || data.len() < code + code_size.saturating_sub(15) {
            return Err(format!(
                "it has {} bytes, and its header speaks of {}: the file is truncated",
                data.len(),
                code + code_size
            ));
        }
        let code_size = code_size.min(data.len() - code);
        let at_least = |v: u16| version >= v;
        let end = (0x202 + usize::from(byte(0x201))).clamp(0x238, 0x290);
        let relocatable = byte(0x234) != 0;
        Ok(Self {
            version,
            xloadflags: if at_least(0x20c) { word(0x236) } else { 0 },
            cmdline_max: long(0x238) as usize,
            initrd_max: u64::from(long(0x22c)),
            relocatable,
            alignment: u64::from(long(0x230)),
            preferred: if at_least(0x20a) { quad(0x258) } else { HIGH },
            init_size: if at_least(0x20a) {
                u64::from(long(0x260))
            } else {
                code_size as u64 * 4
            },
            code,
            code_size,
            payload: at_least(0x208).then(|| (long(0x248) as usize, long(0x24c) as usize)),
            raw: data[0x1f1..end].to_vec(),
        })
    }

    /// Where the protected-mode code goes.
    fn place(&self, ram: &GuestRam) -> Result<u64, String> {
        if !self.relocatable {
            return match self.preferred {
                p if p < HIGH => Ok(HIGH),
                p => Ok(p),
            };
        }
        if !self.alignment.is_power_of_two() || self.alignment > 1 << 30 {
            return Err(format!(
                "its alignment {:#x} makes no sense",
                self.alignment
            ));
        }
        let preferred = self.preferred.max(HIGH).next_multiple_of(self.alignment);
        let fits = |at: u64| {
            at.checked_add(self.init_size)
                .is_some_and(|e| e <= ram.low_size())
        };
        let lowest = HIGH.next_multiple_of(self.alignment);
        Ok(if fits(preferred) || !fits(lowest) {
            preferred
        } else {
            lowest
        })
    }
}

/// Loads a bzImage, the contained kernel directly where that is possible.
pub fn load(ram: &GuestRam, request: &Request<'_>) -> Result<Loaded, BootError> {
    let data = &request.kernel.read(ram.low_size())?[..];
    let path = request.kernel.path();
    let bad = |reason| BootError::BadKernel {
        format: FORMAT,
        path: path.into(),
        reason,
    };
    let header = Header::parse(data).map_err(bad)?;
    let max = header.cmdline_max.clamp(255, CMDLINE_MAX - 1);
    check_cmdline(request.cmdline, max)?;
    let initrd_max = match header.initrd_max {
        0 => INITRD_MAX,
        n => n,
    };
    let (entry, end, format) = match unpack(ram, data, &header, request.unpack) {
        Some((entry, end)) => (
            Entry::Long {
                rip: entry,
                rsi: BOOT_PARAMS,
            },
            end,
            "Linux bzImage, unpacked by the monitor",
        ),
        None => {
            let (entry, end) = load_plain(ram, data, &header).map_err(|e| match e {
                PlainError::Bad(reason) => bad(reason),
                PlainError::Boot(e) => *e,
            })?;
            (entry, end, FORMAT)
        }
    };
    let initrd = initrd::load(ram, request.initrd, end, initrd_max)?;
    write_params(ram, Some(&header.raw), request.cmdline, initrd)?;
    tracing::debug!(
        version = header.version,
        end,
        ?entry,
        format,
        "Linux loaded"
    );
    Ok(Loaded { format, entry })
}

/// Unpacks the ELF kernel inside into its place; `None` means "let it unpack
/// itself".
fn unpack(ram: &GuestRam, data: &[u8], header: &Header, wanted: bool) -> Option<(u64, u64)> {
    if !wanted || header.xloadflags & XLF_KERNEL_64 == 0 {
        return None;
    }
    let (offset, length) = header.payload?;
    let code = &data[header.code..];
    let packed = code.get(offset..offset.checked_add(length)?)?;
    let kind = Compression::detect(packed)?;
    let loaded = load_packed(ram, packed, kind, header);
    match loaded {
        Ok(done) => Some(done),
        Err(error) => {
            tracing::warn!(%error, ?kind, "the kernel will unpack itself");
            None
        }
    }
}

fn load_packed(
    ram: &GuestRam,
    packed: &[u8],
    kind: Compression,
    header: &Header,
) -> Result<(u64, u64), ElfError> {
    let reader = kind
        .reader(packed)
        .map_err(|e| ElfError::Unpack(e.to_string()))?;
    let mut stream = Stream::new(reader, MAX_UNPACKED);
    let elf = Elf::parse(&mut stream)?;
    if !elf.is_64 || !elf.contains(elf.entry) {
        return Err(ElfError::Format(
            "its entry point is not a physical address",
        ));
    }
    let top = elf.load(&mut stream, ram)?;
    let reserved = header.preferred.saturating_add(header.init_size);
    let end = top.max(reserved.min(ram.low_size()));
    Ok((elf.entry, end))
}

enum PlainError {
    Bad(String),
    Boot(Box<BootError>),
}

fn load_plain(ram: &GuestRam, data: &[u8], header: &Header) -> Result<(Entry, u64), PlainError> {
    let at = header.place(ram).map_err(PlainError::Bad)?;
    let size = header.init_size.max(header.code_size as u64);
    let end = at.saturating_add(size);
    if end > ram.low_size() {
        return Err(PlainError::Boot(Box::new(BootError::NoRoom {
            what: "kernel",
            needed: end,
            available: ram.low_size(),
        })));
    }
    let code = &data[header.code..header.code + header.code_size];
    put(ram, "kernel", at, code).map_err(|e| PlainError::Boot(Box::new(e)))?;
    let entry = if header.xloadflags & XLF_KERNEL_64 != 0 {
        Entry::Long {
            rip: at + 0x200,
            rsi: BOOT_PARAMS,
        }
    } else {
        Entry::Protected {
            eip: at as u32,
            eax: 0,
            ebx: 0,
            esi: BOOT_PARAMS as u32,
        }
    };
    Ok((entry, end))
}

/// Starts an ELF kernel by Linux's 64-bit protocol.
pub fn load_elf(ram: &GuestRam, request: &Request<'_>) -> Result<Loaded, BootError> {
    check_cmdline(request.cmdline, 2047)?;
    let (elf, end) = load_elf_segments(ram, request.kernel)?;
    let initrd = initrd::load(ram, request.initrd, end, INITRD_MAX)?;
    write_params(ram, None, request.cmdline, initrd)?;
    Ok(Loaded {
        format: "64-bit ELF kernel",
        entry: Entry::Long {
            rip: elf.physical_entry(),
            rsi: BOOT_PARAMS,
        },
    })
}

/// Loads any ELF kernel; the headers and one past its last address.
pub fn load_elf_segments(ram: &GuestRam, file: &ImageFile) -> Result<(Elf, u64), BootError> {
    let bad = |e| bad_elf(file, e);
    let content = &mut &*file;
    let elf = Elf::parse(content).map_err(bad)?;
    elf.check(ram).map_err(bad)?;
    if !elf.contains(elf.physical_entry()) {
        return Err(bad(ElfError::Format(
            "its entry point is in none of its segments",
        )));
    }
    let end = elf.load(content, ram).map_err(bad)?;
    Ok((elf, end))
}

/// An ELF error of this file, for people.
pub fn bad_elf(file: &ImageFile, error: ElfError) -> BootError {
    match error {
        ElfError::Boot(e) => *e,
        e => BootError::BadKernel {
            format: "ELF kernel",
            path: file.path().into(),
            reason: e.to_string(),
        },
    }
}

/// Refuses command lines that the kernel would cut.
pub fn check_cmdline(cmdline: &str, max: usize) -> Result<(), BootError> {
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    if cmdline.bytes().any(|b| b == 0) {
        return Err(BootError::CmdlineNul);
    }
    Ok(())
}

/// Writes the command line; its address.
pub fn put_cmdline(ram: &GuestRam, cmdline: &str) -> Result<u64, BootError> {
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    put(ram, "command line", CMDLINE, &bytes)?;
    Ok(CMDLINE)
}

fn write_params(
    ram: &GuestRam,
    header: Option<&[u8]>,
    cmdline: &str,
    initrd: Option<(u64, u64)>,
) -> Result<(), BootError> {
    let mut page = vec![0u8; 0x1000];
    let mut set = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    match header {
        Some(raw) => set(0x1f1, raw),
        None => {
            set(0x1fe, &[0x55, 0xaa]);
            set(0x202, b"HdrS");
            set(0x206, &0x20f_u16.to_le_bytes());
            set(0x211, &[LOADED_HIGH]);
            set(0x230, &0x0100_0000_u32.to_le_bytes());
        }
    }
    set(0x210, &[0xff]); // type_of_loader: none of the registered ones
    let line = put_cmdline(ram, cmdline)?;
    set(0x228, &(line as u32).to_le_bytes());
    let (start, size) = initrd.unwrap_or_default();
    set(0x218, &(start as u32).to_le_bytes());
    set(0x21c, &(size as u32).to_le_bytes());
    set(0x070, &ACPI.to_le_bytes()); // acpi_rsdp_addr
    set(0x250, &SETUP_DATA.to_le_bytes());
    let map = memory_map(ram);
    set(0x1e8, &[map.len() as u8]);
    for (i, r) in map.iter().enumerate() {
        let at = 0x2d0 + i * 20;
        set(at, &r.start.to_le_bytes());
        set(at + 8, &r.size.to_le_bytes());
        set(at + 16, &(r.kind as u32).to_le_bytes());
    }
    put(ram, "boot parameters", BOOT_PARAMS, &page)?;
    write_seed(ram)
}

/// A `SETUP_RNG_SEED` record: Linux 6.0 and later need not wait for entropy.
/// Older kernels skip records they do not know.
fn write_seed(ram: &GuestRam) -> Result<(), BootError> {
    const SETUP_RNG_SEED: u32 = 9;
    let mut record = vec![0u8; 8];
    record.extend(SETUP_RNG_SEED.to_le_bytes());
    record.extend(32u32.to_le_bytes());
    record.extend(random_32().map_err(BootError::Random)?);
    put(ram, "random seed", SETUP_DATA, &record)
}

pub fn random_32() -> std::io::Result<[u8; 32]> {
    use std::io::Read;
    let mut seed = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}
