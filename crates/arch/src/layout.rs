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
/// 64-bit PCI memory window, first byte (256 GiB).
pub const MMIO64_START: u64 = 0x40_0000_0000;
/// 64-bit PCI memory window, one past the last byte (512 GiB): CPUs with 39
/// physical address bits, on which KVM's guests have no more, reach it too.
pub const MMIO64_END: u64 = 0x80_0000_0000;

/// Most RAM of one machine: what fits below the 64-bit window (255 GiB).
pub const MAX_RAM: u64 = LOW_RAM_LIMIT + MMIO64_START - HIGH_RAM_START;

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
/// QEMU's pvpanic on ISA: one port.
pub const PVPANIC_PORT: u16 = 0x505;
/// Registers of the watchdog that the ACPI table WDAT describes (8 ports).
pub const WATCHDOG_PORT: u16 = 0x620;
/// Watchdog: 1 runs it, 0 stops it (1 byte).
pub const WATCHDOG_CONTROL: u16 = WATCHDOG_PORT;
/// Watchdog: 1 if it has expired; writing 1 clears that (1 byte).
pub const WATCHDOG_STATUS: u16 = WATCHDOG_PORT + 1;
/// Watchdog: any write starts the time anew (1 byte).
pub const WATCHDOG_PING: u16 = WATCHDOG_PORT + 2;
/// Watchdog: counts until it expires (4 bytes).
pub const WATCHDOG_COUNTDOWN: u16 = WATCHDOG_PORT + 4;
/// Watchdog: milliseconds of one count.
pub const WATCHDOG_PERIOD_MS: u32 = 100;
/// Watchdog: most counts.
pub const WATCHDOG_MAX_COUNT: u32 = 36_000;
/// GSI of the generic event device (edge): the generation id has changed.
pub const GENERATION_GSI: u8 = 20;
/// The generation id of the machine, 16 bytes of RAM that is reserved.
pub const GENERATION_ID: u64 = 0xe_fff0;
/// QEMU's isa-debug-exit.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;
/// I/O APIC inputs.
pub const IOAPIC_PINS: u8 = 24;
/// GSI of INTA of a PCI device in slot `n`: 16 + n % 4 (only for devices
/// without MSI-X; level, active low).
pub const PCI_INTX_GSI_BASE: u8 = 16;
/// Most vCPUs one machine may have (x2APIC ids equal vCPU indices).
pub const MAX_VCPUS: u32 = 64;
