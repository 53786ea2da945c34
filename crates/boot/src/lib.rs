//! How a machine starts: puts a kernel, its parameters and the firmware tables
//! into guest memory, and says in which state the first vCPU begins.
//!
//! Kernels are recognised by content: Linux bzImages, ELF kernels with a PVH
//! note, 64-bit ELF kernels entered as Linux is, and Multiboot 1 kernels. No
//! byte of a file is trusted; every refusal is a [`BootError`].
#![forbid(unsafe_code)]

pub mod acpi;
mod content;
mod dsdt;
mod elf;
mod entry;
mod error;
mod file;
mod initrd;
mod linux;
pub mod map;
mod multiboot;
mod payload;
mod pvh;
pub mod smbios;
mod wdat;

use memory::GuestRam;

pub use entry::Entry;
pub use error::BootError;
pub use file::{ImageFile, Role};
pub use smbios::Identity;

/// What to start.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel.
    pub kernel: &'a ImageFile,
    /// The initial RAM disk; for Multiboot kernels the one module.
    pub initrd: Option<&'a ImageFile>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Number of vCPUs, for the tables.
    pub cpus: u32,
    /// Whether the machine has the watchdog of the table WDAT.
    pub watchdog: bool,
    /// What SMBIOS says of the machine.
    pub identity: &'a Identity,
    /// Whether the monitor unpacks a compressed kernel itself; else, and where
    /// it cannot, the kernel unpacks itself.
    pub unpack: bool,
}

/// What was put into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The kernel's format, for people.
    pub format: &'static str,
    /// How the first vCPU enters it.
    pub entry: Entry,
}

/// Loads the kernel, the initrd, the command line and all tables. May be
/// called again to start the machine anew.
///
/// # Errors
/// [`BootError`], before anything runs.
pub fn load(ram: &GuestRam, request: &Request<'_>) -> Result<Loaded, BootError> {
    const LEAST: u64 = 2 << 20;
    if ram.low_size() < LEAST {
        return Err(BootError::NoRoom {
            what: "machine",
            needed: LEAST,
            available: ram.low_size(),
        });
    }
    let loaded = load_kernel(ram, request)?;
    entry::write_tables(ram, &loaded.entry)?;
    acpi::write(ram, request.cpus, request.watchdog)?;
    smbios::write(ram, request.cpus, request.identity)?;
    Ok(loaded)
}

fn load_kernel(ram: &GuestRam, request: &Request<'_>) -> Result<Loaded, BootError> {
    let file = request.kernel;
    let check_initrd = || request.initrd.map_or(Ok(()), initrd::check);
    let mut head = vec![0; multiboot::SEARCH];
    let n = file.read_at(0, &mut head)?;
    head.truncate(n);
    if linux::is_bzimage(&head) {
        check_initrd()?;
        return linux::load(ram, request);
    }
    if let Some(header) = multiboot::find(&head) {
        return multiboot::load(ram, header, request);
    }
    if !head.starts_with(b"\x7fELF") {
        return Err(BootError::UnknownKernel(file.path().into()));
    }
    let elf = elf::Elf::parse(&mut &*file).map_err(|e| linux::bad_elf(file, e))?;
    if let Some(entry) = elf.pvh_entry(&mut &*file) {
        return pvh::load(ram, entry, request);
    }
    if !elf.is_64 {
        let reason =
            "it has neither a PVH note nor a multiboot header: nothing says how to start it";
        return Err(linux::bad_elf(file, elf::ElfError::Format(reason)));
    }
    check_initrd()?;
    linux::load_elf(ram, request)
}
