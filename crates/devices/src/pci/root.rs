//! The root complex: bus 0 with 32 slots, configuration mechanism #1 (ports
//! 0xcf8 and 0xcfc) and ECAM, the placing of BARs, and INTx routing.
//!
//! Functions may be attached and detached while the machine runs. Behind a
//! root port is a bus with one slot.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use arch::layout;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::config::BarWindow;
use super::root_port::RootPort;
use super::{BarKind, ConfigSpaceState, MappedBar, PciError, PciFunction, register};
use crate::bus::{MmioBus, MmioDevice, PioBus, PioDevice};
use crate::irq::{IrqLine, LineDriver};
use crate::state::Version;
use crate::versioned;

/// First port of configuration mechanism #1.
pub const CONFIG_PORT: u16 = 0xcf8;
/// Slots on the bus.
const SLOTS: u8 = 32;
/// First I/O port for BARs.
const IO_START: u64 = 0xc000;
/// One past the last I/O port for BARs.
const IO_END: u64 = 0x1_0000;
/// 64-bit BARs up to this size are put below 4 GiB, where 32-bit kernels
/// reach them too.
const SMALL_BAR: u64 = 1 << 20;
/// Enable bit of the configuration address register.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Memory below 4 GiB for the device behind a root port, in bytes: what Linux
/// reserves, too.
const PORT_WINDOW: u64 = 2 << 20;

struct Slot {
    function: Arc<dyn PciFunction>,
    /// The BARs that are on the buses.
    mapped: Mutex<Vec<MappedBar>>,
    /// Configuration space as it was attached.
    initial: ConfigSpaceState,
}

/// The slots of bus 0, and behind each the one behind its root port.
type Slots = [Option<Arc<Slot>>; 2 * SLOTS as usize];

/// The place behind the root port in slot `port`, where
/// [`PciRoot::attach`], [`PciRoot::detach`] and [`PciRoot::function`] take a
/// slot of bus 0.
#[must_use]
pub const fn behind(port: u8) -> u8 {
    SLOTS + port % SLOTS
}

/// Next free addresses, for the initial placing.
struct Windows {
    memory32: u64,
    memory64: u64,
    io: u64,
}

/// The PCI Express root complex.
pub struct PciRoot {
    slots: ArcSwap<Slots>,
    /// Root ports by slot, ascending.
    ports: ArcSwap<Vec<(u8, Arc<RootPort>)>>,
    windows: Mutex<Windows>,
    /// BARs of functions that were pulled out, with their places.
    ghosts: Mutex<Vec<(u8, MappedBar)>>,
    address: Mutex<u32>,
    mmio: Weak<MmioBus>,
    pio: Weak<PioBus>,
    lines: Arc<dyn LineDriver>,
    /// Serializes changes of slots and mappings.
    change: Mutex<()>,
}

impl PciRoot {
    /// A root complex with an empty bus, whose functions' BARs appear on
    /// `mmio` and `pio` and whose INTx pins drive `lines`. Puts ECAM on
    /// `mmio`; the caller puts [`PciRoot`] on `pio` at [`CONFIG_PORT`].
    ///
    /// # Errors
    /// [`PciError::Bus`] if ECAM's addresses are taken.
    pub fn new(
        mmio: &Arc<MmioBus>,
        pio: &Arc<PioBus>,
        lines: Arc<dyn LineDriver>,
    ) -> Result<Arc<Self>, PciError> {
        let root = Arc::new(Self {
            slots: ArcSwap::from_pointee(std::array::from_fn(|_| None)),
            ports: ArcSwap::default(),
            windows: Mutex::new(Windows {
                memory32: layout::MMIO32_START,
                memory64: layout::MMIO64_START,
                io: IO_START,
            }),
            ghosts: Mutex::default(),
            address: Mutex::new(0),
            mmio: Arc::downgrade(mmio),
            pio: Arc::downgrade(pio),
            lines,
            change: Mutex::new(()),
        });
        let ecam = Arc::new(Ecam(Arc::clone(&root)));
        mmio.insert(layout::ECAM_START, layout::ECAM_SIZE, "PCI ECAM", ecam)?;
        Ok(root)
    }

    /// Puts a root port into slot `slot`, and gives it the next bus number and
    /// a memory window.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_port(&self, slot: u8, port: &Arc<RootPort>) -> Result<(), PciError> {
        let window = self.allocate(BarKind::Memory32, PORT_WINDOW);
        let window = window.ok_or(PciError::AddressSpace {
            slot,
            bar: 0,
            size: PORT_WINDOW,
        })?;
        let mut ports = Vec::clone(&self.ports.load());
        let bus = u8::try_from(ports.len() + 1).unwrap_or(u8::MAX);
        port.program(bus, window, PORT_WINDOW);
        self.attach(slot, Arc::clone(port) as Arc<dyn PciFunction>)?;
        ports.push((slot, Arc::clone(port)));
        ports.sort_by_key(|(slot, _)| *slot);
        self.ports.store(Arc::new(ports));
        Ok(())
    }

    /// Puts a function into slot `slot` (its device number) or [`behind`] a
    /// root port, gives its BARs addresses and connects its interrupt pin to
    /// GSI 16 + slot % 4. A root port does not notice; see [`RootPort::plug`].
    ///
    /// # Errors
    /// [`PciError::Slot`], [`PciError::AddressSpace`].
    pub fn attach(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let _change = self.change.lock();
        let mut slots = Slots::clone(&self.slots.load());
        let place = match slots.get_mut(usize::from(slot)) {
            Some(place @ None) => place,
            _ => return Err(PciError::Slot { slot }),
        };
        self.lay_ghosts(|place| place == slot);
        let config = function.config();
        let mut window = self.port_window(slot)?;
        for (bar, kind, size) in config.bars() {
            let address = match &mut window {
                Some(window) => next_in(window, size),
                None => self.allocate(kind, size),
            };
            let address = address.ok_or(PciError::AddressSpace { slot, bar, size })?;
            config.place(bar, kind, address);
        }
        if config.has_pin() {
            let gsi = layout::PCI_INTX_GSI_BASE + slot % 4;
            let line = IrqLine::new(Arc::clone(&self.lines), gsi);
            config.connect(line, legacy_irq(gsi));
        }
        let attached = Arc::new(Slot {
            initial: config.save(),
            function,
            mapped: Mutex::default(),
        });
        *place = Some(Arc::clone(&attached));
        self.slots.store(Arc::new(slots));
        self.map(&attached);
        Ok(())
    }

    /// Puts a function into the first free slot and returns its number.
    ///
    /// # Errors
    /// As [`PciRoot::attach`].
    pub fn attach_next(&self, function: Arc<dyn PciFunction>) -> Result<u8, PciError> {
        let free = |slot: &u8| {
            let slots = self.slots.load();
            matches!(slots.get(usize::from(*slot)), Some(None))
        };
        let slot = (0..SLOTS)
            .find(free)
            .ok_or(PciError::Slot { slot: SLOTS })?;
        self.attach(slot, function)?;
        Ok(slot)
    }

    /// Takes the function out of a slot, off the buses; `None` if it is empty.
    pub fn detach(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        let _change = self.change.lock();
        let mut slots = Slots::clone(&self.slots.load());
        let attached = slots.get_mut(usize::from(slot))?.take()?;
        self.slots.store(Arc::new(slots));
        self.unmap(&mut attached.mapped.lock(), |_| false);
        attached.function.placed(&[]);
        attached.function.config().set_interrupt(false);
        Some(Arc::clone(&attached.function))
    }

    /// As [`Self::detach`], for a function that is pulled out while its driver
    /// uses it: until the next one is attached there, its memory reads as
    /// zeroes. Linux's virtio driver waits for a register to read 0, and would
    /// wait for ever for the all ones of an address without a device.
    pub fn pull_out(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        let mapped = self.slot(slot)?.mapped.lock().clone();
        let function = self.detach(slot);
        let _change = self.change.lock();
        let mmio = self.mmio.upgrade();
        for bar in mapped.into_iter().filter(|bar| !bar.io) {
            let added = mmio.as_ref().map(|bus| {
                let name = format!("BAR {} of a device pulled out", bar.bar);
                bus.insert(bar.address, bar.size, &name, Arc::new(Ghost))
            });
            if matches!(added, Some(Ok(()))) {
                self.ghosts.lock().push((slot, bar));
            }
        }
        function
    }

    /// Takes away what was left of functions that were pulled out.
    fn lay_ghosts(&self, at: impl Fn(u8) -> bool) {
        self.ghosts.lock().retain(|(place, bar)| {
            let gone = at(*place);
            if gone {
                self.mmio.upgrade().map(|bus| bus.remove(bar.address));
            }
            !gone
        });
    }

    /// The function in a slot.
    #[must_use]
    pub fn function(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        self.slot(slot).map(|slot| Arc::clone(&slot.function))
    }

    /// Makes the buses agree with all BARs, after configuration spaces were
    /// restored.
    pub fn remap(&self) {
        let _change = self.change.lock();
        let slots = self.slots.load();
        for slot in slots.iter().flatten() {
            let wanted = slot.function.config().mapped_bars();
            self.unmap(&mut slot.mapped.lock(), |bar| wanted.contains(bar));
        }
        for slot in slots.iter().flatten() {
            self.map(slot);
        }
    }

    /// Puts all configuration spaces into the state in which the functions
    /// were attached, and the BARs back to their first places.
    pub fn reset(&self) {
        self.lay_ghosts(|_| true);
        for slot in self.slots.load().iter().flatten() {
            // Cannot fail: it is this function's own state.
            let _ = slot.function.config().restore(&slot.initial);
        }
        *self.address.lock() = 0;
        self.remap();
    }

    /// The addresses for the function behind a root port; `None` on bus 0.
    fn port_window(&self, slot: u8) -> Result<Option<(u64, u64)>, PciError> {
        let Some(port) = slot.checked_sub(SLOTS) else {
            return Ok(None);
        };
        let ports = self.ports.load();
        let port = ports.iter().find(|(slot, _)| *slot == port);
        let (_, port) = port.ok_or(PciError::Slot { slot })?;
        let start = port.window();
        Ok(Some((start, start + PORT_WINDOW)))
    }

    /// The place of a function by bus, device and function number.
    fn locate(&self, bus: u8, device: u8, function: u8) -> Option<u8> {
        match (bus, device, function) {
            (0, _, 0) => Some(device),
            (_, 0, 0) => {
                let ports = self.ports.load();
                let mut ports = ports.iter();
                let (slot, port) = ports.find(|(_, port)| port.secondary_bus() == bus)?;
                port.is_linked().then(|| behind(*slot))
            }
            _ => None,
        }
    }

    fn slot(&self, slot: u8) -> Option<Arc<Slot>> {
        self.slots.load().get(usize::from(slot))?.clone()
    }

    /// Addresses for a BAR, never reused: the windows are far larger than 32
    /// functions need.
    fn allocate(&self, kind: BarKind, size: u64) -> Option<u64> {
        let mut windows = self.windows.lock();
        let (next, end) = match kind {
            BarKind::Io => (&mut windows.io, IO_END),
            BarKind::Memory64 { .. } if size > SMALL_BAR => {
                (&mut windows.memory64, layout::MMIO64_END)
            }
            BarKind::Memory32 | BarKind::Memory64 { .. } => {
                (&mut windows.memory32, layout::MMIO32_END)
            }
        };
        let address = next.next_multiple_of(size);
        let after = address.checked_add(size).filter(|&after| after <= end)?;
        *next = after;
        Some(address)
    }

    /// Takes the BARs off the buses that `keep` refuses.
    fn unmap(&self, mapped: &mut Vec<MappedBar>, keep: impl Fn(&MappedBar) -> bool) {
        mapped.retain(|bar| {
            let kept = keep(bar);
            if !kept && bar.io {
                self.pio.upgrade().map(|bus| bus.remove(bar.address as u16));
            } else if !kept {
                self.mmio.upgrade().map(|bus| bus.remove(bar.address));
            }
            kept
        });
    }

    /// Puts the BARs on the buses that decode and are not there. One that
    /// overlaps something else stays off until the guest moves it away.
    fn map(&self, slot: &Slot) {
        let wanted = slot.function.config().mapped_bars();
        let mut mapped = slot.mapped.lock();
        self.unmap(&mut mapped, |bar| wanted.contains(bar));
        for bar in wanted {
            if mapped.contains(&bar) {
                continue;
            }
            let window = Arc::new(BarWindow {
                function: Arc::clone(&slot.function),
                bar: bar.bar,
            });
            let name = format!("BAR {}", bar.bar);
            let done = if bar.io {
                let ports = (u16::try_from(bar.address), u16::try_from(bar.size));
                match (self.pio.upgrade(), ports) {
                    (Some(bus), (Ok(first), Ok(count))) => {
                        bus.insert(first, count, &name, window).is_ok()
                    }
                    _ => false,
                }
            } else {
                self.mmio
                    .upgrade()
                    .is_some_and(|bus| bus.insert(bar.address, bar.size, &name, window).is_ok())
            };
            if done {
                mapped.push(bar);
            } else {
                tracing::debug!(?bar, "a BAR overlaps another device and stays unmapped");
            }
        }
        slot.function.placed(&mapped);
    }

    /// A configuration read; what is not there reads all ones.
    fn read(&self, slot: u8, offset: u16, data: &mut [u8]) {
        match self.slot(slot) {
            Some(slot) => slot.function.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, slot: u8, offset: u16, data: &[u8]) {
        let Some(attached) = self.slot(slot) else {
            return;
        };
        attached.function.config_write(offset, data);
        let command = offset & !1 == register::COMMAND;
        let bars = (register::BAR0..register::BAR0 + 24).contains(&offset);
        if command || bars {
            // Others may have waited for the addresses this one leaves.
            self.remap();
        }
    }

    /// The configuration address register, for a snapshot. Functions are
    /// saved by their owners.
    #[must_use]
    pub fn save(&self) -> PciRootState {
        PciRootState {
            version: Version::current(),
            address: *self.address.lock(),
        }
    }

    /// Takes back a saved state.
    pub fn restore(&self, state: &PciRootState) {
        *self.address.lock() = state.address;
    }

    /// Slot and register that a data port addresses; `None` if nothing.
    fn selected(&self, port: u16) -> Option<(u8, u16)> {
        let address = *self.address.lock();
        if address & ADDRESS_ENABLE == 0 {
            return None;
        }
        let [_, function, bus, _] = address.to_le_bytes();
        let offset = (address & 0xfc) as u16 | (port & 3);
        let place = self.locate(bus, function >> 3, function & 7)?;
        Some((place, offset))
    }
}

/// The next aligned `size` bytes of a window (next address, end).
fn next_in(window: &mut (u64, u64), size: u64) -> Option<u64> {
    let address = window.0.next_multiple_of(size);
    let after = address.checked_add(size).filter(|end| *end <= window.1)?;
    window.0 = after;
    Some(address)
}

/// The ISA IRQ that a PCI interrupt line reaches on the 8259 pair.
#[must_use]
pub fn legacy_irq(gsi: u8) -> u8 {
    if gsi.is_multiple_of(2) { 10 } else { 11 }
}

/// The memory of a function that was pulled out.
struct Ghost;

impl MmioDevice for Ghost {
    fn mmio_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&self, _offset: u64, _data: &[u8]) {}
}

/// Configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2), at
/// [`CONFIG_PORT`], 8 ports. Only a dword reaches the address register.
impl PioDevice for PciRoot {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        if offset >= 4 {
            match self.selected(offset) {
                Some((slot, register)) => self.read(slot, register, data),
                None => data.fill(0xff),
            }
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.lock().to_le_bytes());
        } else {
            data.fill(0xff);
        }
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        if offset >= 4 {
            if let Some((slot, register)) = self.selected(offset) {
                self.write(slot, register, data);
            }
        } else if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            *self.address.lock() = u32::from_le_bytes(address) & (ADDRESS_ENABLE | 0x00ff_fffc);
        }
    }
}

/// The enhanced configuration access mechanism (PCI Express Base 7.2.2).
struct Ecam(Arc<PciRoot>);

impl Ecam {
    /// Place and register of an offset; `None` where nothing is.
    fn decode(&self, offset: u64) -> Option<(u8, u16)> {
        let bus = u8::try_from(offset >> 20).ok()?;
        let (device, function) = ((offset >> 15 & 0x1f) as u8, (offset >> 12 & 7) as u8);
        let place = self.0.locate(bus, device, function)?;
        Some((place, (offset & 0xfff) as u16))
    }
}

impl MmioDevice for Ecam {
    fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        for (at, data) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
            match self.decode(at) {
                Some((slot, register)) => self.0.read(slot, register, data),
                None => data.fill(0xff),
            }
        }
    }

    fn mmio_write(&self, offset: u64, data: &[u8]) {
        for (at, data) in (offset..).step_by(4).zip(data.chunks(4)) {
            if let Some((slot, register)) = self.decode(at) {
                self.0.write(slot, register, data);
            }
        }
    }
}

/// Saved state of the root complex itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciRootState {
    /// Format.
    pub version: Version<PciRootState>,
    /// The configuration address register.
    pub address: u32,
}
versioned!(PciRootState, "PCI root complex", 1);
