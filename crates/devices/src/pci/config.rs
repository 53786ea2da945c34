//! A function's configuration space (PCI Local Bus 3.0, chapter 6; PCI
//! Express Base, chapter 7): type 0 header, BARs and capability list.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::msix::{MsixLayout, MsixTable};
use super::{PciError, PciFunction};
use crate::irq::IrqLine;
use crate::state::{StateError, Version};
use crate::versioned;

/// Bytes of configuration space, with the PCI Express extension.
const SIZE: usize = 4096;
/// Where the capability list begins.
const FIRST_CAPABILITY: usize = 0x40;
/// Where the legacy configuration space ends.
const LEGACY_END: usize = 0x100;

/// Offsets of the type 0 header.
pub mod register {
    /// Vendor, then device.
    pub const VENDOR: u16 = 0x00;
    /// Command: see [`super::command`](super::ConfigSpace::command).
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// Revision, then the three bytes of the class.
    pub const REVISION: u16 = 0x08;
    /// Cache line size.
    pub const CACHE_LINE: u16 = 0x0c;
    /// First of six base address registers.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor, then subsystem.
    pub const SUBSYSTEM: u16 = 0x2c;
    /// Header type: 1 for a bridge.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// Of a bridge: primary, secondary and subordinate bus number.
    pub const BUS_NUMBERS: u16 = 0x18;
    /// Of a bridge: base, then limit of its memory window.
    pub const MEMORY_WINDOW: u16 = 0x20;
    /// Of a bridge: bridge control.
    pub const BRIDGE_CONTROL: u16 = 0x3e;
    /// Head of the capability list.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line: scratch for firmware and kernels.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin: 0 none, 1 INTA.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Capability identifiers.
pub mod capability {
    /// Vendor specific (virtio).
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// One lane at 2.5 GT/s, in link capabilities and link status.
pub(super) const LINK_SPEED_AND_WIDTH: u16 = 1 | 1 << 4;
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 2;
const COMMAND_BUS_MASTER: u16 = 4;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// I/O, memory, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class << 16 | subclass << 8 | programming interface.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// What a base address register addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes this register and the next one.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// A BAR that decodes addresses now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedBar {
    /// Number of the (first) register.
    pub bar: u8,
    /// First address or port.
    pub address: u64,
    /// Bytes or ports.
    pub size: u64,
    /// I/O ports rather than memory.
    pub io: bool,
}

struct Registers {
    bytes: Box<[u8; SIZE]>,
    writable: Box<[u8; SIZE]>,
    bars: [Option<Bar>; 6],
    /// What the device wants of its INTx pin.
    interrupt: bool,
}

/// A function's configuration space. Safe to use from several threads.
pub struct ConfigSpace {
    registers: Mutex<Registers>,
    /// Offset of the MSI-X capability, and the table it controls.
    msix: Option<(u16, Arc<MsixTable>)>,
    /// Set by the root complex if there is an interrupt pin.
    line: OnceLock<IrqLine>,
}

/// Assembles a [`ConfigSpace`].
pub struct ConfigBuilder {
    registers: Registers,
    msix: Option<(u16, Arc<MsixTable>)>,
    next: usize,
    last: usize,
}

impl ConfigBuilder {
    /// A type 0 header without BARs and capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut builder = Self::any(identity);
        builder.put(
            register::SUBSYSTEM,
            &identity.subsystem_vendor.to_le_bytes(),
        );
        builder.put(register::SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        builder
    }

    /// A type 1 header (PCI-to-PCI Bridge 1.2, 3.2): a bridge with one window,
    /// for memory below 4 GiB. Only the first two BARs exist.
    #[must_use]
    pub fn bridge(identity: Identity) -> Self {
        const PARITY_AND_SERR: u16 = 3;
        let mut builder = Self::any(identity);
        builder.put(register::HEADER_TYPE, &[1]);
        builder.allow(register::BUS_NUMBERS, &[0xff; 3]);
        builder.allow(register::MEMORY_WINDOW, &[0xf0, 0xff, 0xf0, 0xff]);
        // Closed: the base is above the limit.
        builder.put(register::MEMORY_WINDOW, &[0xf0, 0xff, 0, 0]);
        builder.allow(register::BRIDGE_CONTROL, &PARITY_AND_SERR.to_le_bytes());
        builder
    }

    fn any(identity: Identity) -> Self {
        let mut builder = Self {
            registers: Registers {
                bytes: Box::new([0; SIZE]),
                writable: Box::new([0; SIZE]),
                bars: [None; 6],
                interrupt: false,
            },
            msix: None,
            next: FIRST_CAPABILITY,
            last: register::CAPABILITIES.into(),
        };
        builder.put(register::VENDOR, &identity.vendor.to_le_bytes());
        builder.put(register::VENDOR + 2, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        builder.put(register::REVISION, &class.to_le_bytes());
        builder.allow(register::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        builder.allow(register::CACHE_LINE, &[0xff]);
        builder.allow(register::INTERRUPT_LINE, &[0xff]);
        builder
    }

    fn put(&mut self, offset: u16, data: &[u8]) {
        store(&mut self.registers.bytes[..], offset.into(), data);
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        store(&mut self.registers.writable[..], offset.into(), mask);
    }

    /// Adds a base address register of `size` bytes (or ports), a power of
    /// two; memory BARs have at least a page, so that no two share one.
    ///
    /// # Errors
    /// [`PciError::BarTaken`], [`PciError::BarSize`].
    pub fn bar(mut self, bar: u8, kind: BarKind, size: u64) -> Result<Self, PciError> {
        let taken = PciError::BarTaken { bar };
        let index = usize::from(bar);
        let wide = matches!(kind, BarKind::Memory64 { .. });
        let below_is_wide = index
            .checked_sub(1)
            .and_then(|below| self.registers.bars.get(below).copied().flatten())
            .is_some_and(|bar| matches!(bar.kind, BarKind::Memory64 { .. }));
        let above_is_free = matches!(self.registers.bars.get(index + 1), Some(None));
        if below_is_wide || (wide && !above_is_free) {
            return Err(taken);
        }
        let sizes = match kind {
            BarKind::Io => 4..=0x100,
            BarKind::Memory32 => 0x1000..=0x1000_0000,
            BarKind::Memory64 { .. } => 0x1000..=0x20_0000_0000,
        };
        if !size.is_power_of_two() || !sizes.contains(&size) {
            return Err(PciError::BarSize { bar, size });
        }
        match self.registers.bars.get_mut(index) {
            Some(free @ None) => *free = Some(Bar { kind, size }),
            _ => return Err(taken),
        }
        let (flags, fixed) = match kind {
            BarKind::Io => (1_u64, 3_u64),
            BarKind::Memory32 => (0, 0xf),
            BarKind::Memory64 { prefetchable } => (if prefetchable { 0xc } else { 4 }, 0xf),
        };
        let offset = register::BAR0 + 4 * u16::from(bar);
        let bytes = if wide { 8 } else { 4 };
        let mask = !(size - 1) & !fixed;
        self.put(offset, &flags.to_le_bytes()[..bytes]);
        self.allow(offset, &mask.to_le_bytes()[..bytes]);
        Ok(self)
    }

    /// Appends a capability: `body` and the mask of bits the guest may write
    /// begin after the two bytes of identifier and link. Returns its offset.
    ///
    /// # Errors
    /// [`PciError::CapabilitySpace`].
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, PciError> {
        let size = body.len() + 2;
        let end = self.next + size;
        if end > LEGACY_END || writable.len() > body.len() {
            return Err(PciError::CapabilitySpace { size });
        }
        let offset = self.next;
        self.registers.bytes[self.last] = offset as u8;
        self.last = offset + 1;
        self.registers.bytes[offset] = id;
        store(&mut self.registers.bytes[..], offset + 2, body);
        store(&mut self.registers.writable[..], offset + 2, writable);
        self.registers.bytes[usize::from(register::STATUS)] |= STATUS_CAPABILITIES;
        self.next = end.next_multiple_of(4);
        Ok(offset as u16)
    }

    /// Adds the PCI Express capability of a root complex integrated endpoint
    /// (PCI Express Base 7.8.3), by which kernels know of the extended
    /// configuration space.
    ///
    /// # Errors
    /// [`PciError::CapabilitySpace`].
    pub fn express(mut self) -> Result<Self, PciError> {
        const VERSION_2: u16 = 2;
        const ROOT_COMPLEX_ENDPOINT: u16 = 9 << 4;
        // Role-based error reporting, the one device capability demanded.
        const DEVICE_CAPABILITIES: u32 = 1 << 15;
        let mut body = [0; 0x3a];
        store(
            &mut body,
            0,
            &(VERSION_2 | ROOT_COMPLEX_ENDPOINT).to_le_bytes(),
        );
        store(&mut body, 2, &DEVICE_CAPABILITIES.to_le_bytes());
        self.add_capability(capability::EXPRESS, &body, &[])?;
        Ok(self)
    }

    /// Adds the PCI Express capability of an endpoint behind a port, with a
    /// link of one lane at 2.5 GT/s.
    ///
    /// # Errors
    /// [`PciError::CapabilitySpace`].
    pub fn express_endpoint(mut self) -> Result<Self, PciError> {
        const VERSION_2: u16 = 2;
        const DEVICE_CAPABILITIES: u32 = 1 << 15;
        let mut body = [0; 0x3a];
        store(&mut body, 0, &VERSION_2.to_le_bytes());
        store(&mut body, 2, &DEVICE_CAPABILITIES.to_le_bytes());
        // Link capabilities, status, and the speeds of link capabilities 2.
        store(&mut body, 0x0a, &LINK_SPEED_AND_WIDTH.to_le_bytes());
        store(&mut body, 0x10, &LINK_SPEED_AND_WIDTH.to_le_bytes());
        store(&mut body, 0x2a, &[2]);
        self.add_capability(capability::EXPRESS, &body, &[])?;
        Ok(self)
    }

    /// Adds the MSI-X capability of `table`, whose registers the function
    /// serves in a BAR with [`MsixTable::bar_read`] and
    /// [`MsixTable::bar_write`].
    ///
    /// # Errors
    /// [`PciError::CapabilitySpace`], or [`PciError::Msix`] if the table does
    /// not lie inside its BAR.
    pub fn msix(mut self, table: &Arc<MsixTable>) -> Result<Self, PciError> {
        let layout = table.layout();
        let bar = self.registers.bars.get(usize::from(layout.bar));
        let size = bar.copied().flatten().map_or(0, |bar| bar.size);
        if !layout.fits(table.vectors(), size) {
            return Err(PciError::Msix {
                vectors: table.vectors(),
            });
        }
        let mut body = [0; 10];
        store(&mut body, 0, &(table.vectors() - 1).to_le_bytes());
        let MsixLayout {
            bar,
            table_offset,
            pending_offset,
        } = layout;
        store(&mut body, 2, &(table_offset | u32::from(bar)).to_le_bytes());
        store(
            &mut body,
            6,
            &(pending_offset | u32::from(bar)).to_le_bytes(),
        );
        let offset = self.add_capability(capability::MSIX, &body, &[0, 0xc0])?;
        self.msix = Some((offset, Arc::clone(table)));
        Ok(self)
    }

    /// Gives the function the interrupt pin INTA.
    #[must_use]
    pub fn interrupt_pin(mut self) -> Self {
        self.put(register::INTERRUPT_PIN, &[1]);
        self
    }

    /// The finished configuration space.
    #[must_use]
    pub fn build(self) -> ConfigSpace {
        ConfigSpace {
            registers: Mutex::new(self.registers),
            msix: self.msix,
            line: OnceLock::new(),
        }
    }
}

impl ConfigSpace {
    /// Reads bytes; beyond the end all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let registers = self.registers.lock();
        let start = usize::from(offset);
        for (at, byte) in (start..).zip(data) {
            *byte = registers.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes the writable bits of bytes as the guest does.
    pub fn write(&self, offset: u16, data: &[u8]) {
        let mut registers = self.registers.lock();
        let start = usize::from(offset);
        for (at, &byte) in (start..).zip(data) {
            registers.write_byte(at, byte);
        }
        let end = start + data.len();
        let command = usize::from(register::COMMAND);
        if start < command + 2 && end > command {
            self.drive_line(&registers);
        }
        if let Some((at, table)) = &self.msix {
            let control = usize::from(*at) + 2;
            if start < control + 2 && end > control {
                table.set_control(registers.word(control));
                self.drive_line(&registers);
            }
        }
    }

    /// Sets registers from the device's side, writable by the guest or not.
    pub fn set(&self, offset: u16, data: &[u8]) {
        let mut registers = self.registers.lock();
        store(&mut registers.bytes[..], offset.into(), data);
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.registers.lock().word(register::COMMAND.into())
    }

    /// Whether the guest lets the function access memory (bus mastering).
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.command() & COMMAND_BUS_MASTER != 0
    }

    /// Asserts or releases the interrupt pin INTA. The line follows unless the
    /// guest disabled it or enabled MSI-X.
    pub fn set_interrupt(&self, asserted: bool) {
        let mut registers = self.registers.lock();
        registers.interrupt = asserted;
        let status = usize::from(register::STATUS);
        registers.bytes[status] &= !STATUS_INTERRUPT;
        if asserted {
            registers.bytes[status] |= STATUS_INTERRUPT;
        }
        self.drive_line(&registers);
    }

    fn drive_line(&self, registers: &Registers) {
        if let Some(line) = self.line.get() {
            let disabled = registers.word(register::COMMAND.into()) & COMMAND_INTX_DISABLE != 0;
            let msix = self
                .msix
                .as_ref()
                .is_some_and(|(_, msix)| msix.is_enabled());
            line.set(registers.interrupt && !disabled && !msix);
        }
    }

    /// Whether the function has an interrupt pin.
    pub(super) fn has_pin(&self) -> bool {
        let registers = self.registers.lock();
        registers.bytes[usize::from(register::INTERRUPT_PIN)] != 0
    }

    /// Connects the interrupt pin, once.
    pub(super) fn connect(&self, line: IrqLine, legacy_irq: u8) {
        self.set(register::INTERRUPT_LINE, &[legacy_irq]);
        let _ = self.line.set(line);
    }

    /// One byte.
    pub(super) fn byte(&self, offset: u16) -> u8 {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0]
    }

    /// One little-endian word.
    pub(super) fn word(&self, offset: u16) -> u16 {
        self.registers.lock().word(offset.into())
    }

    /// All BARs: number, kind and size.
    pub(super) fn bars(&self) -> Vec<(u8, BarKind, u64)> {
        let registers = self.registers.lock();
        (0..)
            .zip(registers.bars)
            .filter_map(|(index, bar)| bar.map(|bar| (index, bar.kind, bar.size)))
            .collect()
    }

    /// Programs a BAR and turns its decoding on, as firmware does.
    pub(super) fn place(&self, bar: u8, kind: BarKind, address: u64) {
        let offset = register::BAR0 + 4 * u16::from(bar);
        let (bytes, decode) = match kind {
            BarKind::Io => (4, COMMAND_IO),
            BarKind::Memory32 => (4, COMMAND_MEMORY),
            BarKind::Memory64 { .. } => (8, COMMAND_MEMORY),
        };
        self.write(offset, &address.to_le_bytes()[..bytes]);
        let command = self.command() | decode;
        self.write(register::COMMAND, &command.to_le_bytes());
    }

    /// The BARs that decode addresses now. A BAR at zero does not.
    #[must_use]
    pub fn mapped_bars(&self) -> Vec<MappedBar> {
        let registers = self.registers.lock();
        let command = registers.word(register::COMMAND.into());
        let mut mapped = Vec::new();
        for (bar, index) in (0_u8..).zip(0..registers.bars.len()) {
            let Some(Bar { kind, size }) = registers.bars[index] else {
                continue;
            };
            let low = registers.bar_register(index);
            let (address, decode) = match kind {
                BarKind::Io => (low & 0xfffc, COMMAND_IO),
                BarKind::Memory32 => (low & !0xf, COMMAND_MEMORY),
                BarKind::Memory64 { .. } => {
                    let high = registers.bar_register(index + 1);
                    (high << 32 | (low & !0xf), COMMAND_MEMORY)
                }
            };
            if command & decode != 0 && address != 0 {
                mapped.push(MappedBar {
                    bar,
                    address,
                    size,
                    io: kind == BarKind::Io,
                });
            }
        }
        mapped
    }

    /// The registers, for a snapshot. MSI-X tables are saved on their own.
    #[must_use]
    pub fn save(&self) -> ConfigSpaceState {
        let registers = self.registers.lock();
        let dwords = (0_u16..)
            .step_by(4)
            .zip(registers.bytes.chunks_exact(4))
            .map(|(offset, dword)| (offset, dword.iter().rev().fold(0, fold_byte)))
            .filter(|&(_, dword)| dword != 0)
            .collect();
        ConfigSpaceState {
            version: Version::current(),
            dwords,
            interrupt: registers.interrupt,
        }
    }

    /// Takes back a saved state. The caller then has the root complex move
    /// the BARs ([`super::PciRoot::remap`]).
    ///
    /// # Errors
    /// [`StateError`] if it is the state of another kind of function.
    pub fn restore(&self, state: &ConfigSpaceState) -> Result<(), StateError> {
        let invalid = |reason: String| StateError::invalid::<ConfigSpaceState>(reason);
        let mut saved = vec![0; SIZE];
        for &(offset, dword) in &state.dwords {
            if usize::from(offset) + 4 > SIZE {
                return Err(invalid(format!("there is no register {offset:#x}")));
            }
            store(&mut saved, offset.into(), &dword.to_le_bytes());
        }
        let mut registers = self.registers.lock();
        if saved[..4] != registers.bytes[..4] {
            return Err(invalid(format!(
                "the snapshot has device {:02x?} where this machine has {:02x?}",
                &saved[..4],
                &registers.bytes[..4]
            )));
        }
        for (at, byte) in saved.into_iter().enumerate() {
            registers.write_byte(at, byte);
        }
        registers.interrupt = state.interrupt;
        if let Some((at, table)) = &self.msix {
            table.set_control(registers.word(usize::from(*at) + 2));
        }
        drop(registers);
        self.set_interrupt(state.interrupt);
        Ok(())
    }
}

fn fold_byte(value: u32, byte: &u8) -> u32 {
    value << 8 | u32::from(*byte)
}

impl Registers {
    fn write_byte(&mut self, at: usize, value: u8) {
        if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
            *byte = (*byte & !mask) | (value & mask);
        }
    }

    fn word(&self, at: usize) -> u16 {
        let byte = |at| u16::from(self.bytes.get(at).copied().unwrap_or(0));
        byte(at) | byte(at + 1) << 8
    }

    fn bar_register(&self, index: usize) -> u64 {
        let at = usize::from(register::BAR0) + 4 * index;
        u64::from(self.word(at)) | u64::from(self.word(at + 2)) << 16
    }
}

/// Copies what fits.
fn store(bytes: &mut [u8], offset: usize, data: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
        *to = *from;
    }
}

/// Saved registers of a [`ConfigSpace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceState {
    /// Format.
    pub version: Version<ConfigSpaceState>,
    /// Offset and value of every register that is not zero.
    pub dwords: Vec<(u16, u32)>,
    /// What the device wants of its INTx pin.
    pub interrupt: bool,
}
versioned!(ConfigSpaceState, "PCI configuration space", 1);

/// The memory or ports behind one BAR, on a bus.
pub(super) struct BarWindow {
    pub(super) function: Arc<dyn PciFunction>,
    pub(super) bar: u8,
}

impl crate::bus::MmioDevice for BarWindow {
    fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(self.bar, offset, data);
    }

    fn mmio_write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(self.bar, offset, data);
    }
}

impl crate::bus::PioDevice for BarWindow {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        self.function.bar_read(self.bar, offset.into(), data);
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        self.function.bar_write(self.bar, offset.into(), data);
    }
}
