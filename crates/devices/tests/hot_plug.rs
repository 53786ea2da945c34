//! A root port and its slot from the guest's side, as Linux's pciehp uses it,
//! and as no driver should.

mod guest;

use std::sync::{Arc, OnceLock};

use devices::pci::{
    BarKind, ConfigBuilder, ConfigSpace, Identity, PciFunction, RootPort, RootPortState, behind,
};
use engine::Bus;
use guest::Guest;
use parking_lot::Mutex;
use proptest::prelude::*;

const ECAM: u64 = 0xe000_0000;
const SLOT: u8 = 24;
const PORT: u64 = (SLOT as u64) << 15;
const BUS_1: u64 = 1 << 20;

const BUTTON: u32 = 1;
const PRESENCE: u32 = 1 << 3;
const COMPLETED: u32 = 1 << 4;
const PRESENT: u32 = 1 << 6;
const LINK: u32 = 1 << 8;
const EVENTS: u32 = BUTTON | PRESENCE | COMPLETED | LINK;

struct Toy(ConfigSpace);

impl PciFunction for Toy {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn bar_read(&self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0x77);
    }
    fn bar_write(&self, _: u8, _: u64, _: &[u8]) {}
}

fn toy() -> Arc<Toy> {
    let identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_8000,
        revision: 1,
        subsystem_vendor: 0,
        subsystem: 0,
    };
    let kind = BarKind::Memory64 {
        prefetchable: false,
    };
    let config = ConfigBuilder::new(identity).bar(0, kind, 0x8000);
    let config = config.and_then(ConfigBuilder::express_endpoint);
    Arc::new(Toy(config.unwrap().interrupt_pin().build()))
}

struct Bench {
    guest: Guest,
    port: Arc<RootPort>,
    /// What the port's owner was told.
    off: Arc<Mutex<Vec<bool>>>,
    express: u64,
}

fn bench() -> Bench {
    let guest = Guest::new();
    let off: Arc<Mutex<Vec<bool>>> = Arc::default();
    let told = off.clone();
    let this: Arc<OnceLock<Arc<RootPort>>> = Arc::default();
    let known = this.clone();
    let power_off = move |asked| {
        told.lock().push(asked);
        // The owner may use the port from here.
        if let Some(port) = known.get() {
            assert!(!port.has_power());
        }
    };
    let port = RootPort::new(SLOT, guest.outside.clone(), Box::new(power_off)).unwrap();
    guest.chipset.pci.attach_port(SLOT, &port).unwrap();
    let _ = this.set(port.clone());
    let mut bench = Bench {
        guest,
        port,
        off,
        express: 0,
    };
    let mut at = u64::from(bench.read(PORT + 0x34) & 0xff);
    while bench.read(PORT + at) & 0xff != 0x10 {
        at = u64::from(bench.read(PORT + at) >> 8 & 0xff);
        assert_ne!(at, 0, "no PCI Express capability");
    }
    bench.express = PORT + at;
    bench
}

impl Bench {
    fn read(&self, at: u64) -> u32 {
        self.guest.read32(ECAM + at)
    }

    fn write16(&self, at: u64, value: u16) {
        let bytes = value.to_le_bytes();
        self.guest.chipset.bus.mmio_write(ECAM + at, &bytes);
    }

    fn control(&self) -> u32 {
        self.read(self.express + 0x18) & 0xffff
    }

    fn set_control(&self, value: u32) {
        self.write16(self.express + 0x18, value as u16);
    }

    fn status(&self) -> u32 {
        self.read(self.express + 0x18) >> 16
    }

    fn clear(&self, events: u32) {
        self.write16(self.express + 0x1a, events as u16);
    }

    fn linked(&self) -> bool {
        self.read(self.express + 0x10) >> 16 & 1 << 13 != 0
    }

    /// Vector 0 to message 0x55, as a driver enables MSI-X and hot-plug.
    fn drive(&self) {
        let bar = u64::from(self.read(PORT + 0x10) & !0xf);
        self.guest.write32(bar, 0xfee0_0000);
        self.guest.write32(bar + 8, 0x55);
        self.guest.write32(bar + 12, 0);
        let mut at = u64::from(self.read(PORT + 0x34) & 0xff);
        while self.read(PORT + at) & 0xff != 0x11 {
            at = u64::from(self.read(PORT + at) >> 8 & 0xff);
        }
        self.write16(PORT + at + 2, 0x8000);
        // Button, command completed, interrupt, link changed; slot off.
        self.set_control(0x1031 | 0x07c0);
        self.clear(EVENTS);
        self.guest.messages();
    }

    fn plug(&self) -> Arc<Toy> {
        let toy = toy();
        let pci = &self.guest.chipset.pci;
        pci.attach(behind(SLOT), toy.clone()).unwrap();
        self.port.plug();
        toy
    }
}

#[test]
fn a_port_is_a_bridge_with_a_slot() {
    let b = bench();
    assert_eq!(b.read(PORT + 8) >> 8, 0x06_0400);
    assert_eq!(b.read(PORT + 0xc) >> 16 & 0xff, 1, "header type");
    assert_eq!(
        b.read(PORT + 0x18),
        0x0001_0100,
        "buses as firmware leaves them"
    );
    let window = b.read(PORT + 0x20);
    let (base, limit) = (window & 0xfff0, window >> 16);
    assert!(base >= 0xc000 && limit == base + 0x10, "{window:#x}");
    assert_eq!(
        b.read(b.express) >> 16 & 0x1f2,
        0x142,
        "root port with slot"
    );
    let slot = b.read(b.express + 0x14);
    assert_eq!((slot & 0x7f, slot >> 19), (0x7b, SLOT.into()));
    assert_eq!(b.status() & EVENTS, 0);
    assert_eq!(b.read(BUS_1), 0xffff_ffff);
    // What is not there cannot be attached to.
    let pci = &b.guest.chipset.pci;
    assert!(pci.attach(behind(25), toy()).is_err());
}

#[test]
fn a_device_comes_and_goes_as_pciehp_does_it() {
    let b = bench();
    b.drive();
    b.plug();
    assert_eq!(b.guest.vectors(), [0x55]);
    assert_eq!(b.status(), BUTTON | PRESENCE | PRESENT);
    assert!(!b.linked(), "it has no power yet");
    assert_eq!(b.read(BUS_1), 0xffff_ffff);
    b.clear(EVENTS);
    // Power on, power indicator on.
    b.set_control(0x1031 | 0x01c0);
    assert_eq!(b.status(), COMPLETED | LINK | PRESENT);
    assert_eq!(b.guest.vectors(), [0x55], "once for both");
    b.clear(EVENTS);
    assert!(b.linked());
    assert_eq!(b.read(BUS_1), 0x1042_1af4);
    assert_eq!(b.read(BUS_1 + (1 << 15)), 0xffff_ffff, "device 1");
    // Configuration mechanism #1 finds it, too, and its memory is in the
    // window of the port.
    b.guest.outl(0xcf8, 0x8001_0010);
    let bar = u64::from(b.guest.inl(0xcfc) & !0xf);
    assert_eq!(bar >> 16, u64::from(b.read(PORT + 0x20) & 0xfff0));
    assert_eq!(b.guest.read32(bar), 0x7777_7777);
    // With another bus number it is elsewhere.
    b.guest.write32(ECAM + PORT + 0x18, 0x0007_0700);
    assert_eq!(b.read(BUS_1), 0xffff_ffff);
    assert_eq!(b.read(7 << 20), 0x1042_1af4);

    assert!(b.port.ask_to_unplug());
    assert!(b.port.ask_to_unplug(), "the second press is none");
    assert_eq!(b.guest.vectors(), [0x55]);
    assert_eq!(b.status(), BUTTON | PRESENT);
    b.clear(EVENTS);
    // It blinks, and then the slot is turned off.
    b.set_control(0x1031 | 0x02c0);
    assert!(b.port.ask_to_unplug());
    assert_eq!(b.status() & BUTTON, 0, "that would take it back");
    assert!(b.off.lock().is_empty());
    b.set_control(0x1031 | 0x07c0);
    assert_eq!(*b.off.lock(), [true]);
    b.guest.chipset.pci.detach(behind(SLOT)).unwrap();
    b.port.unplug();
    assert_eq!(b.status() & PRESENT, 0);
    assert_eq!(b.guest.read32(bar), 0xffff_ffff);
}

#[test]
fn a_slot_that_the_guest_turns_off_by_itself_keeps_its_device() {
    let b = bench();
    b.drive();
    b.plug();
    b.set_control(0x1031 | 0x01c0);
    assert!(b.linked());
    b.set_control(0x1031 | 0x07c0);
    assert_eq!(*b.off.lock(), [false]);
    assert_eq!(b.read(BUS_1), 0xffff_ffff);
    b.set_control(0x1031 | 0x01c0);
    assert_eq!(b.read(BUS_1), 0x1042_1af4);
    // A disabled link is none.
    b.write16(b.express + 0x10, 0x10);
    assert!(!b.linked());
    b.write16(b.express + 0x10, 0);
    assert!(b.linked());
    // Nobody listens to the button.
    b.set_control(0x01c0);
    assert!(!b.port.ask_to_unplug());
}

#[test]
fn memory_of_a_device_that_is_pulled_out_reads_as_zeroes_until_the_next_comes() {
    let b = bench();
    b.drive();
    let toy = b.plug();
    b.set_control(0x1031 | 0x01c0);
    let bar = toy.config().mapped_bars()[0].address;
    assert_eq!(b.guest.read32(bar), 0x7777_7777);
    b.clear(EVENTS);
    b.guest.messages();
    b.guest.chipset.pci.pull_out(behind(SLOT)).unwrap();
    b.port.unplug();
    assert_eq!(b.guest.vectors(), [0x55]);
    assert_eq!(b.status(), PRESENCE | LINK);
    assert_eq!(b.guest.read32(bar), 0);
    assert_eq!(b.read(BUS_1), 0xffff_ffff);
    b.plug();
    assert_eq!(b.guest.read32(bar), 0x7777_7777, "at the same place");
    assert_eq!(b.guest.chipset.pci.pull_out(9).map(|_| ()), None);
}

#[test]
fn a_port_is_saved_with_its_events_and_its_link() {
    let b = bench();
    b.drive();
    b.plug();
    b.set_control(0x1031 | 0x01c0);
    assert!(b.port.ask_to_unplug());
    let text = serde_json::to_string(&b.port.save()).unwrap();
    let state: RootPortState = serde_json::from_str(&text).unwrap();
    let before = (b.status(), b.control());

    let other = bench();
    other.plug();
    other.guest.messages();
    other.port.restore(&state).unwrap();
    assert_eq!((other.status(), other.control()), before);
    assert!(other.linked());
    assert_eq!(other.read(BUS_1), 0x1042_1af4);
    assert_eq!(other.guest.vectors(), [0u8; 0], "that was sent before");
    other.clear(EVENTS);
    other.set_control(0x1031 | 0x07c0);
    assert_eq!(*other.off.lock(), [true], "it was asked before");
    other.port.reset();
    assert_eq!(other.status(), PRESENT);
    assert!(other.linked(), "a guest that starts finds it with power");
    let newer = text.replacen("\"version\":1", "\"version\":9", 1);
    let error = serde_json::from_str::<RootPortState>(&newer).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest writes, the port answers, and a driver that begins
    /// anew can use it.
    #[test]
    fn any_writes_leave_a_port_that_works(
        acts in proptest::collection::vec((0..6u8, 0..0x400u64, any::<u32>()), 1..80),
    ) {
        let b = bench();
        let mut plugged = false;
        for (act, at, value) in acts {
            match act {
                0 | 1 => b.guest.write32(ECAM + PORT + at * 4, value),
                2 => b.write16(b.express + (at & 0x3e), value as u16),
                3 => {
                    b.guest.outl(0xcf8, 0x8000_0000 | value);
                    b.guest.outl(0xcfc, value);
                }
                4 if !plugged => {
                    // Its window may be anywhere, or closed.
                    let pci = &b.guest.chipset.pci;
                    plugged = pci.attach(behind(SLOT), toy()).is_ok();
                    if plugged {
                        b.port.plug();
                    }
                }
                _ => {
                    b.port.ask_to_unplug();
                    plugged = false;
                    b.guest.chipset.pci.pull_out(behind(SLOT));
                    b.port.unplug();
                }
            }
            b.read(value.into());
        }
        b.guest.chipset.pci.detach(behind(SLOT));
        b.port.unplug();
        b.guest.chipset.reset();
        b.port.reset();
        b.drive();
        b.plug();
        b.set_control(0x1031 | 0x01c0);
        prop_assert_eq!(b.read(BUS_1), 0x1042_1af4);
    }
}
