//! The DSDT: what of the machine is not found by probing PCI.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, IO,
    Interrupt, Memory32Fixed, Method, Name, Notify, Package, PackageBuilder, Path,
    ResourceTemplate, Return, Scope,
};
use acpi_tables::sdt::Sdt;
use arch::layout;

use crate::acpi::{OEM, OEM_TABLE};

/// Builds the table.
pub fn build(cpus: u32) -> Sdt {
    let mut t = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    let mut body = Vec::new();
    s5(&mut body);
    pci_root(&mut body);
    board(&mut body);
    isa(&mut body);
    host(&mut body);
    processors(&mut body, cpus);
    t.append_slice(&body);
    t
}

/// Soft off: the sleep type for PM1a and PM1b control.
fn s5(out: &mut Vec<u8>) {
    let kind = layout::ACPI_S5_SLEEP_TYPE;
    let zero = 0u8;
    let package = Package::new(vec![&kind, &kind, &zero, &zero]);
    Name::new("_S5_".into(), &package).to_aml_bytes(out);
}

/// PCI Express root bridge 0000:00, its windows and its INTx routing.
fn pci_root(out: &mut Vec<u8>) {
    let memory32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::MMIO32_START as u32,
        (layout::MMIO32_END - 1) as u32,
        None,
    );
    let memory64 = AddressSpace::new_memory(
        AddressSpaceCacheable::Cacheable,
        true,
        layout::MMIO64_START,
        layout::MMIO64_END - 1,
        None,
    );
    let buses = AddressSpace::<u16>::new_bus_number(0, 0xff);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let low_ports = AddressSpace::<u16>::new_io(0, 0xcf7, None);
    let high_ports = AddressSpace::<u16>::new_io(0xd00, 0xffff, None);
    let windows = ResourceTemplate::new(vec![
        &buses,
        &config,
        &low_ports,
        &high_ports,
        &memory32,
        &memory64,
    ]);
    let mut routing = PackageBuilder::new();
    for slot in 0..32u32 {
        for pin in 0..4u32 {
            let address = slot << 16 | 0xffff;
            let gsi = u32::from(layout::PCI_INTX_GSI_BASE) + (slot + pin) % 4;
            routing.add_element(&Package::new(vec![&address, &pin, &0u8, &gsi]));
        }
    }
    // _OSC (PCI Firmware 3.3, 4.5): of what the kernel asks for it gets native
    // hot-plug (bit 0) and the PCI Express capabilities (bit 4); the rest does
    // not exist. It asks in the third word of the fourth argument.
    let (control, asked) = (Path::new("CTRL"), Arg(3));
    let field = CreateDWordField::new(&control, &asked, &8u8);
    let grant = And::new(&control, &control, &0x11u32);
    let answer = Return::new(&asked);
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CCA".into(), &1u8),
            &Name::new("_CRS".into(), &windows),
            &Name::new("_PRT".into(), &routing),
            &Method::new("_OSC".into(), 4, true, vec![&field, &grant, &answer]),
        ],
    )
    .to_aml_bytes(out);
}

/// Motherboard resources: configuration space, and the fixed ACPI ports.
fn board(out: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, layout::ECAM_START as u32, layout::ECAM_SIZE as u32);
    let ports = IO::new(layout::ACPI_PM_BASE, layout::ACPI_PM_BASE, 1, 0x10);
    let crs = ResourceTemplate::new(vec![&ecam, &ports]);
    Device::new(
        "_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &crs),
        ],
    )
    .to_aml_bytes(out);
}

fn isa(out: &mut Vec<u8>) {
    let edge = |irq: u8| Interrupt::new(true, true, false, false, u32::from(irq));
    let ports = IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8);
    let irq = edge(layout::COM1_IRQ);
    let com1 = ResourceTemplate::new(vec![&ports, &irq]);
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &1u8),
            &Name::new("_CRS".into(), &com1),
        ],
    )
    .to_aml_bytes(out);
    let (ports, irq) = (IO::new(0x70, 0x70, 1, 8), edge(8));
    let rtc = ResourceTemplate::new(vec![&ports, &irq]);
    Device::new(
        "_SB_.RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &rtc),
        ],
    )
    .to_aml_bytes(out);
}

/// What the guest has of its host: the panic port, and the generation id
/// (Microsoft, "Virtual Machine Generation ID") with the event that it has
/// changed, from a generic event device (ACPI 6.4, 5.6.9).
fn host(out: &mut Vec<u8>) {
    let port = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    Device::new(
        "_SB_.PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    )
    .to_aml_bytes(out);
    let (low, high) = (layout::GENERATION_ID as u32, 0u32);
    Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"HOLMVGID"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(out);
    let line = Interrupt::new(true, true, false, false, layout::GENERATION_GSI.into());
    let (device, changed) = (Path::new("\\_SB_.VGEN"), 0x80u8);
    let notify = Notify::new(&device, &changed);
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line])),
            &Method::new("_EVT".into(), 1, true, vec![&notify]),
        ],
    )
    .to_aml_bytes(out);
}

/// Processor devices, whose `_UID` is that of the MADT.
fn processors(out: &mut Vec<u8>, cpus: u32) {
    for id in 0..cpus.min(layout::MAX_VCPUS) {
        let name = format!("C{id:03}");
        Scope::new(
            "_SB_".into(),
            vec![&Device::new(
                name.as_str().into(),
                vec![
                    &Name::new("_HID".into(), &"ACPI0007"),
                    &Name::new("_UID".into(), &id),
                ],
            )],
        )
        .to_aml_bytes(out);
    }
}
