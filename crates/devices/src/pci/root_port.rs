//! A root port with a hot-plug slot (PCI Express Base 5.0, 6.7, 7.5.1.3 and
//! 7.5.3): the bridge to a bus with one device, which may come and go.
//!
//! The slot has an attention button, by which the guest is asked to give the
//! device up, a power controller, by which the guest says that it has, and
//! indicators, which only show. Removal without asking is possible as well.

use std::sync::Arc;

use engine::InterruptSink;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::config::{LINK_SPEED_AND_WIDTH, register};
use super::{
    BarKind, ConfigBuilder, ConfigSpace, ConfigSpaceState, Identity, MsixLayout, MsixState,
    MsixTable, PciError, PciFunction, capability,
};
use crate::state::{StateError, Version};
use crate::versioned;

const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x1000;

// Offsets in the PCI Express capability.
const LINK_CONTROL: u16 = 0x10;
const LINK_STATUS: u16 = 0x12;
const SLOT_CONTROL: u16 = 0x18;
const SLOT_STATUS: u16 = 0x1a;

/// Link control: the link is off.
const LINK_DISABLE: u16 = 1 << 4;
/// Link status: there is a device that answers.
const LINK_ACTIVE: u16 = 1 << 13;

/// Slot status.
mod status {
    pub const ATTENTION_BUTTON: u16 = 1;
    pub const PRESENCE_CHANGED: u16 = 1 << 3;
    pub const COMMAND_COMPLETED: u16 = 1 << 4;
    pub const PRESENT: u16 = 1 << 6;
    pub const LINK_CHANGED: u16 = 1 << 8;
    /// What the guest clears by writing ones.
    pub const EVENTS: u16 = 0x011f;
}

/// Slot control.
mod control {
    pub const COMMAND_COMPLETED_ENABLE: u16 = 1 << 4;
    pub const INTERRUPT_ENABLE: u16 = 1 << 5;
    pub const ATTENTION_BUTTON_ENABLE: u16 = 1;
    pub const POWER_INDICATOR: u16 = 3 << 8;
    pub const POWER_INDICATOR_BLINKS: u16 = 2 << 8;
    pub const POWER_OFF: u16 = 1 << 10;
    pub const LINK_CHANGED_ENABLE: u16 = 1 << 12;
    /// Enable bits that are where their events are.
    pub const SAME_PLACE: u16 = 0x000f;
}

/// Hears when the guest has turned the slot off: on a vCPU thread, without
/// locks of the port. `true` if it was asked to.
pub type PowerOff = Box<dyn Fn(bool) + Send + Sync>;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Slot status.
    status: u16,
    /// The guest was asked to give the device up.
    asked: bool,
    /// Some enabled event is there: the interrupt was sent.
    signalled: bool,
}

/// A root port with a hot-plug slot.
pub struct RootPort {
    config: Arc<ConfigSpace>,
    msix: Arc<MsixTable>,
    /// Offset of the PCI Express capability.
    express: u16,
    slot: Mutex<Slot>,
    power_off: PowerOff,
}

impl RootPort {
    /// The port with physical slot number `number`, empty, whose interrupts go
    /// to `sink`; `power_off` is called when the guest turns the slot off
    /// while a device is in it.
    ///
    /// # Errors
    /// None in practice; see [`ConfigBuilder`].
    pub fn new(
        number: u8,
        sink: Arc<dyn InterruptSink>,
        power_off: PowerOff,
    ) -> Result<Arc<Self>, PciError> {
        let layout = MsixLayout {
            bar: BAR,
            table_offset: 0,
            pending_offset: 0x800,
        };
        let msix = MsixTable::new(1, layout, sink);
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x000c,
            class: 0x06_0400,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut builder = ConfigBuilder::bridge(identity)
            .bar(BAR, BarKind::Memory32, BAR_SIZE)?
            .msix(&msix)?
            .interrupt_pin();
        let (body, writable) = express(number);
        let express = builder.add_capability(capability::EXPRESS, &body, &writable)?;
        let port = Arc::new(Self {
            config: Arc::new(builder.build()),
            msix,
            express,
            slot: Mutex::default(),
            power_off,
        });
        port.reset();
        Ok(port)
    }

    /// The secondary bus as the guest numbered it.
    pub(super) fn secondary_bus(&self) -> u8 {
        self.config.byte(register::BUS_NUMBERS + 1)
    }

    /// As firmware leaves a bridge: with its buses and its memory window.
    pub(super) fn program(&self, bus: u8, window: u64, size: u64) {
        self.config.write(register::BUS_NUMBERS, &[0, bus, bus]);
        let (base, limit) = ((window >> 16) as u16, ((window + size - 1) >> 16) as u16);
        self.config
            .write(register::MEMORY_WINDOW, &base.to_le_bytes());
        self.config
            .write(register::MEMORY_WINDOW + 2, &limit.to_le_bytes());
    }

    /// First address of the memory window.
    pub(super) fn window(&self) -> u64 {
        u64::from(self.config.word(register::MEMORY_WINDOW) & 0xfff0) << 16
    }

    fn control(&self) -> u16 {
        self.config.word(self.express + SLOT_CONTROL)
    }

    fn is_off(&self) -> bool {
        self.control() & control::POWER_OFF != 0
    }

    /// Whether the device answers: it is there, has power and a link.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.config.word(self.express + LINK_STATUS) & LINK_ACTIVE != 0
    }

    /// Whether the guest has turned the slot off.
    #[must_use]
    pub fn has_power(&self) -> bool {
        !self.is_off()
    }

    /// A device has been put into the slot, and the attention button pressed:
    /// where there is a button, Linux has itself interrupted by that alone.
    pub fn plug(&self) {
        let mut slot = self.slot.lock();
        slot.asked = false;
        slot.status |= status::PRESENT | status::PRESENCE_CHANGED | status::ATTENTION_BUTTON;
        self.update(&mut slot);
    }

    /// The device has been taken out of the slot.
    pub fn unplug(&self) {
        let mut slot = self.slot.lock();
        slot.asked = false;
        slot.status &= !status::PRESENT;
        slot.status |= status::PRESENCE_CHANGED;
        self.update(&mut slot);
    }

    /// Presses the attention button: the guest gives the device up and turns
    /// the slot off, some seconds later. `false` if no driver listens to the
    /// button; pressing it again before the guest acts has no effect.
    pub fn ask_to_unplug(&self) -> bool {
        let mut slot = self.slot.lock();
        let control = self.control();
        let listens = control::INTERRUPT_ENABLE | control::ATTENTION_BUTTON_ENABLE;
        if control & listens != listens {
            return false;
        }
        // A second press while it blinks would take the first one back.
        let blinks = control & control::POWER_INDICATOR == control::POWER_INDICATOR_BLINKS;
        if slot.asked && (blinks || slot.status & status::ATTENTION_BUTTON != 0) {
            return true;
        }
        slot.asked = true;
        slot.status |= status::ATTENTION_BUTTON;
        self.update(&mut slot);
        true
    }

    /// As at power-on, with the device that is in the slot.
    pub fn reset(&self) {
        let mut slot = self.slot.lock();
        slot.status &= status::PRESENT;
        slot.asked = false;
        slot.signalled = false;
        self.msix.reset();
        // Indicators: off; on with power where there is a device.
        let (power, control) = match slot.status & status::PRESENT {
            0 => (control::POWER_OFF, 0x03c0),
            _ => (0, 0x01c0),
        };
        let control: u16 = power | control;
        self.config
            .set(self.express + SLOT_CONTROL, &control.to_le_bytes());
        self.config.set(self.express + LINK_CONTROL, &[0, 0]);
        self.update(&mut slot);
        // Nothing has changed in the eyes of a guest that starts.
        slot.status &= !status::EVENTS;
        self.update(&mut slot);
    }

    /// Makes link, status register and interrupt agree with the slot.
    fn update(&self, slot: &mut Slot) {
        let link = self.config.word(self.express + LINK_CONTROL);
        let linked =
            slot.status & status::PRESENT != 0 && !self.is_off() && link & LINK_DISABLE == 0;
        if linked != self.is_linked() {
            slot.status |= status::LINK_CHANGED;
            let value = match linked {
                true => LINK_ACTIVE | LINK_SPEED_AND_WIDTH,
                false => 0,
            };
            self.config
                .set(self.express + LINK_STATUS, &value.to_le_bytes());
        }
        self.config
            .set(self.express + SLOT_STATUS, &slot.status.to_le_bytes());
        let control = self.control();
        let mut enabled = control & control::SAME_PLACE;
        if control & control::COMMAND_COMPLETED_ENABLE != 0 {
            enabled |= status::COMMAND_COMPLETED;
        }
        if control & control::LINK_CHANGED_ENABLE != 0 {
            enabled |= status::LINK_CHANGED;
        }
        let wanted = control & control::INTERRUPT_ENABLE != 0 && slot.status & enabled != 0;
        if wanted && !slot.signalled {
            self.msix.vector(0).signal();
        }
        slot.signalled = wanted;
        self.config.set_interrupt(wanted);
    }

    /// The state, for a snapshot. Whether there is a device in the slot is its
    /// owner's to know.
    #[must_use]
    pub fn save(&self) -> RootPortState {
        let slot = self.slot.lock();
        RootPortState {
            version: Version::current(),
            config: self.config.save(),
            msix: self.msix.save(),
            status: slot.status & status::EVENTS,
            asked: slot.asked,
            signalled: slot.signalled,
        }
    }

    /// Takes back a state; the device, if there was one, is in the slot again.
    ///
    /// # Errors
    /// [`StateError`] if the state is of another function.
    pub fn restore(&self, state: &RootPortState) -> Result<(), StateError> {
        let mut slot = self.slot.lock();
        self.config.restore(&state.config)?;
        self.msix.restore(&state.msix)?;
        slot.status &= status::PRESENT;
        // The link follows from what was restored, and is no event.
        slot.signalled = true;
        self.update(&mut slot);
        slot.status = slot.status & status::PRESENT | state.status & status::EVENTS;
        slot.asked = state.asked;
        slot.signalled = state.signalled;
        self.update(&mut slot);
        Ok(())
    }

    /// A write by the guest; if it turned off a slot with a device, whether it
    /// was asked to.
    fn write(&self, offset: u16, data: &[u8]) -> Option<bool> {
        let mut slot = self.slot.lock();
        let was_off = self.is_off();
        self.config.write(offset, data);
        let touches = |register: u16| {
            let at = self.express + register;
            offset < at + 2 && offset + data.len() as u16 > at
        };
        let (control, events) = (touches(SLOT_CONTROL), touches(SLOT_STATUS));
        if !control && !events && !touches(LINK_CONTROL) {
            return None;
        }
        let mut cleared = 0u16;
        for (at, &byte) in (offset..).zip(data) {
            match at.wrapping_sub(self.express + SLOT_STATUS) {
                0 => cleared |= u16::from(byte),
                1 => cleared |= u16::from(byte) << 8,
                _ => {}
            }
        }
        slot.status &= !(cleared & status::EVENTS);
        if control {
            slot.status |= status::COMMAND_COMPLETED;
        }
        self.update(&mut slot);
        let turned_off = control && !was_off && self.is_off();
        (turned_off && slot.status & status::PRESENT != 0).then_some(slot.asked)
    }
}

impl PciFunction for RootPort {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        if let Some(asked) = self.write(offset, data) {
            (self.power_off)(asked);
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.msix.bar_read(bar, offset, data);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.msix.bar_write(bar, offset, data);
    }
}

/// The PCI Express capability of a root port with a slot: its body, and what
/// of it the guest writes.
fn express(number: u8) -> ([u8; 0x3a], [u8; 0x3a]) {
    const VERSION_2: u16 = 2;
    const ROOT_PORT: u16 = 4 << 4;
    const SLOT_IMPLEMENTED: u16 = 1 << 8;
    const DEVICE_CAPABILITIES: u32 = 1 << 15;
    const REPORTS_LINK_ACTIVE: u32 = 1 << 20;
    // Attention button, power controller, both indicators, surprise removal,
    // hot-plug.
    const SLOT_CAPABILITIES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6;
    let (mut body, mut writable) = ([0; 0x3a], [0; 0x3a]);
    let put = |into: &mut [u8; 0x3a], register: usize, bytes: &[u8]| {
        // The body begins after identifier and link.
        for (to, from) in into.iter_mut().skip(register - 2).zip(bytes) {
            *to = *from;
        }
    };
    let flags = VERSION_2 | ROOT_PORT | SLOT_IMPLEMENTED;
    let link = u32::from(LINK_SPEED_AND_WIDTH) | REPORTS_LINK_ACTIVE | u32::from(number) << 24;
    let slot = SLOT_CAPABILITIES | u32::from(number) << 19;
    put(&mut body, 0x02, &flags.to_le_bytes());
    put(&mut body, 0x04, &DEVICE_CAPABILITIES.to_le_bytes());
    put(&mut body, 0x0c, &link.to_le_bytes());
    put(&mut body, 0x14, &slot.to_le_bytes());
    put(&mut body, 0x2c, &[2]);
    put(&mut body, 0x30, &[1]);
    put(&mut writable, 0x08, &[0xff, 0x7f]);
    put(&mut writable, 0x10, &[0xd3, 0x0f]);
    put(&mut writable, 0x18, &[0xff, 0x17]);
    put(&mut writable, 0x1c, &[0x1f, 0]);
    (body, writable)
}

/// Saved state of a [`RootPort`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPortState {
    /// Format.
    pub version: Version<RootPortState>,
    config: ConfigSpaceState,
    msix: MsixState,
    /// Events that the guest has not cleared, as in slot status.
    status: u16,
    /// The guest was asked to give the device up.
    asked: bool,
    /// The interrupt for these events was sent.
    signalled: bool,
}
versioned!(RootPortState, "PCI Express root port", 1);
