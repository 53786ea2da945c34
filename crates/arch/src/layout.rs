//! The machine's guest-physical address map and legacy interrupt lines.
//!
//! | range | what |
//! |---|---|
//! | 0 .. [`LOW_RAM_LIMIT`] | RAM (with the legacy hole 0xa0000..0x100000 reserved in E820) |
//! | [`MMIO32_START`] .. [`MMIO32_END`] | 32-bit PCI memory window |
//! | [`ECAM_START`] .. + [`ECAM_SIZE`] | PCI Express configuration space |
//! | [`IOAPIC_BASE`], [`LAPIC_BASE`] | interrupt controllers |
//! | 4 GiB .. | RAM beyond the hole |
//! | [`MMIO64_START`] .. [`MMIO64_END`] | 64-bit PCI memory window |

/// RAM below 4 GiB ends at most here (3 GiB).
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// 32-bit PCI memory window, first byte.
pub const MMIO32_START: u64 = 0xc000_0000;
/// 32-bit PCI memory window, one past the last byte.
pub const MMIO32_END: u64 = 0xe000_0000;
/// PCI Express enhanced configuration space (MCFG).
pub const ECAM_START: u64 = 0xe000_0000;
/// 256 buses of 1 MiB.
pub const ECAM_SIZE: u64 = 0x1000_0000;
/// I/O APIC registers, one page.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Local APIC registers, one page.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// RAM beyond the PCI hole starts here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// 64-bit PCI memory window, first byte (512 GiB).
pub const MMIO64_START: u64 = 0x80_0000_0000;
/// 64-bit PCI memory window, one past the last byte (1 TiB).
pub const MMIO64_END: u64 = 0x100_0000_0000;

/// Base of the ACPI PM register block (PM1a event, control, timer), I/O ports.
pub const ACPI_PM_BASE: u16 = 0x600;
/// ACPI PM1a event block: status, enable (4 bytes).
pub const ACPI_PM1_EVENT: u16 = ACPI_PM_BASE;
/// ACPI PM1a control block (2 bytes).
pub const ACPI_PM1_CONTROL: u16 = ACPI_PM_BASE + 4;
/// ACPI PM timer (4 bytes, 3.579545 MHz).
pub const ACPI_PM_TIMER: u16 = ACPI_PM_BASE + 8;
/// FADT reset register (as on PCs: write 6 to reset).
pub const RESET_PORT: u16 = 0xcf9;
/// Sleep type of S5 in the DSDT's `_S5` package.
pub const ACPI_S5_SLEEP_TYPE: u8 = 5;
/// ISA IRQ of the ACPI SCI (level, active high in the MADT override).
pub const ACPI_SCI_IRQ: u8 = 9;
/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// ISA IRQ of the first serial port.
pub const COM1_IRQ: u8 = 4;
/// QEMU's isa-debug-exit.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// I/O APIC inputs.
pub const IOAPIC_PINS: u8 = 24;
/// GSI of INTA of a PCI device in slot `n`: 16 + n % 4 (only for devices
/// without MSI-X; level, active low).
pub const PCI_INTX_GSI_BASE: u8 = 16;
/// Most vCPUs one machine may have (x2APIC ids equal vCPU indices).
pub const MAX_VCPUS: u32 = 64;
