//! ACPI tables (ACPI 6.4, chapter 5): RSDP, XSDT, FADT, FACS, MADT, MCFG and
//! the DSDT of [`crate::dsdt`].

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use arch::layout;
use memory::GuestRam;

use crate::map::{ACPI, put};
use crate::{BootError, dsdt, wdat};

/// OEM id in all tables.
pub const OEM: [u8; 6] = *b"HOLM  ";
/// OEM table id in all tables.
pub const OEM_TABLE: [u8; 8] = *b"HOLM    ";
const REVISION: u32 = 1;

/// Writes all tables, the RSDP at [`crate::map::ACPI`].
///
/// # Errors
/// [`BootError::TablesTooLarge`], [`BootError::Memory`].
pub fn write(ram: &GuestRam, cpus: u32, watchdog: bool) -> Result<(), BootError> {
    let area = build(ACPI, cpus, watchdog);
    if area.len() as u64 > layout::GENERATION_ID - ACPI {
        return Err(BootError::TablesTooLarge("ACPI"));
    }
    let random = crate::linux::random_32().map_err(BootError::Random)?;
    let id = random.get(..16).unwrap_or_default();
    put(ram, "generation id", layout::GENERATION_ID, id)?;
    put(ram, "ACPI tables", ACPI, &area)
}

/// All tables as they lie in memory from `base` on, the RSDP first.
pub fn build(base: u64, cpus: u32, watchdog: bool) -> Vec<u8> {
    let mut area = vec![0u8; 64];
    let mut add = |table: &[u8]| {
        area.resize(area.len().next_multiple_of(64), 0);
        let at = base + area.len() as u64;
        area.extend_from_slice(table);
        at
    };
    let facs = add(&bytes(&FACS::new()));
    let dsdt = add(dsdt::build(cpus).as_slice());
    let fadt = add(fadt(dsdt, facs).as_slice());
    let madt = add(&madt(cpus));
    let mcfg = add(&mcfg());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    let wdat = watchdog.then(|| add(wdat::build().as_slice()));
    for table in [fadt, madt, mcfg].into_iter().chain(wdat) {
        xsdt.add_entry(table);
    }
    let xsdt = add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    area[..rsdp.len()].copy_from_slice(&rsdp);
    area
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

/// FADT revision 6.3 (ACPI 6.4, table 5.9), for hardware with the fixed
/// registers: no SMI, no general-purpose events, no C-states but HLT.
fn fadt(dsdt: u64, facs: u64) -> Sdt {
    const WBINVD: u32 = 1;
    const PROC_C1: u32 = 1 << 2;
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const FIX_RTC: u32 = 1 << 6;
    const TMR_VAL_EXT: u32 = 1 << 8;
    const RESET_REG_SUP: u32 = 1 << 10;
    // The power button is the fixed one: PWR_BUTTON (bit 4) stays 0.
    const FLAGS: u32 = WBINVD | PROC_C1 | NO_SLEEP_BUTTON | FIX_RTC | TMR_VAL_EXT | RESET_REG_SUP;
    // ISA devices; no VGA; no PCIe ASPM; no 8042 (bit 1); a CMOS RTC (bit 5).
    const BOOT_ARCH: u16 = 1 | 1 << 2 | 1 << 4;
    const BYTE_ACCESS: u8 = 1;
    const WORD_ACCESS: u8 = 2;
    const LONG_ACCESS: u8 = 3;
    let mut t = Sdt::new(*b"FACP", 276, 6, OEM, OEM_TABLE, REVISION);
    t.write_u32(36, facs as u32);
    t.write_u32(40, dsdt as u32);
    t.write_u16(46, u16::from(layout::ACPI_SCI_IRQ));
    t.write_u32(56, u32::from(layout::ACPI_PM1_EVENT));
    t.write_u32(64, u32::from(layout::ACPI_PM1_CONTROL));
    t.write_u32(76, u32::from(layout::ACPI_PM_TIMER));
    t.write_bytes(88, &[4, 2, 0, 4]); // lengths: PM1 event, control, PM2, timer
    t.write_u16(96, 0x0fff); // no C2
    t.write_u16(98, 0xffff); // no C3
    t.write_u8(108, 0x32); // century in CMOS
    t.write_u16(109, BOOT_ARCH);
    t.write_u32(112, FLAGS);
    let gas = |port: u16, bits: u8, access: u8| {
        let mut g = vec![1, bits, 0, access];
        g.extend(u64::from(port).to_le_bytes());
        g
    };
    t.write_bytes(116, &gas(layout::RESET_PORT, 8, BYTE_ACCESS));
    t.write_u8(128, 6); // reset value
    t.write_u8(131, 3); // minor revision
    t.write_u64(132, facs);
    t.write_u64(140, dsdt);
    t.write_bytes(148, &gas(layout::ACPI_PM1_EVENT, 32, WORD_ACCESS));
    t.write_bytes(172, &gas(layout::ACPI_PM1_CONTROL, 16, WORD_ACCESS));
    t.write_bytes(208, &gas(layout::ACPI_PM_TIMER, 32, LONG_ACCESS));
    t.write_bytes(268, b"HOLM\0\0\0\0"); // hypervisor vendor
    t
}

/// MADT (ACPI 6.4, 5.2.12).
fn madt(cpus: u32) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const LEVEL_HIGH: u16 = 0b1101;
    let lapic = LocalInterruptController::Address(layout::LAPIC_BASE as u32);
    let mut t = MADT::new(OEM, OEM_TABLE, REVISION, lapic);
    for id in 0..cpus.min(layout::MAX_VCPUS) as u8 {
        t.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    t.add_structure(IoApic::new(0, layout::IOAPIC_BASE as u32, 0));
    let mut table = bytes(&t);
    let mut add = |entry: &[u8]| table.extend_from_slice(entry);
    let overridden = |irq: u8, gsi: u8, flags: u16| {
        let f = flags.to_le_bytes();
        [2, 10, 0, irq, gsi, 0, 0, 0, f[0], f[1]]
    };
    add(&overridden(0, 2, 0));
    add(&overridden(
        layout::ACPI_SCI_IRQ,
        layout::ACPI_SCI_IRQ,
        LEVEL_HIGH,
    ));
    add(&[4, 6, 0xff, 0, 0, 1]); // NMI on LINT1 of all CPUs
    table[40..44].copy_from_slice(&PCAT_COMPAT.to_le_bytes());
    let len = table.len() as u32;
    table[4..8].copy_from_slice(&len.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    table
}

fn mcfg() -> Vec<u8> {
    let mut t = MCFG::new(OEM, OEM_TABLE, REVISION);
    t.add_ecam(layout::ECAM_START, 0, 0, 0xff);
    bytes(&t)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(area: &[u8], base: u64, at: u64) -> &[u8] {
        let t = &area[(at - base) as usize..];
        let len = u32::from_le_bytes(t[4..8].try_into().unwrap()) as usize;
        &t[..len]
    }

    fn sum(b: &[u8]) -> u8 {
        b.iter().fold(0, |s, b| s.wrapping_add(*b))
    }

    fn quad(b: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
        let base = 0xe0000;
        let area = build(base, 64, true);
        assert!(area.len() < 0x10000, "{:#x}", area.len());
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!(sum(&area[..20]), 0);
        assert_eq!(sum(&area[..36]), 0);
        let xsdt = table(&area, base, quad(&area, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let found: Vec<&[u8]> = xsdt[36..]
            .chunks_exact(8)
            .map(|p| table(&area, base, quad(p, 0)))
            .collect();
        let names: Vec<&[u8]> = found.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, [&b"FACP"[..], b"APIC", b"MCFG", b"WDAT"]);
        assert!(found.iter().all(|t| sum(t) == 0));
        let fadt = found[0];
        let dsdt = table(&area, base, quad(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        let facs = table(&area, base, quad(fadt, 132));
        assert_eq!(&facs[..4], b"FACS");
        assert_eq!(quad(fadt, 132) % 64, 0);
    }

    #[test]
    fn madt_names_each_cpu_and_the_overrides() {
        let t = madt(3);
        let mut at = 44;
        let mut kinds = Vec::new();
        while at < t.len() {
            kinds.push(t[at]);
            at += usize::from(t[at + 1]);
        }
        assert_eq!(at, t.len());
        assert_eq!(kinds, [0, 0, 0, 1, 2, 2, 4]);
    }
}
