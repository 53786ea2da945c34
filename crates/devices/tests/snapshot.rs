//! A chipset saved in one machine goes on in another.

mod guest;

use devices::ChipsetState;
use guest::{Guest, MS, SECOND};

/// A guest in the middle of things.
fn busy() -> Guest {
    let guest = Guest::new();
    guest.pass(12_345_678);
    guest.set_up_pics([0xf8, 0xfe], 1);
    guest.set_pin(2, 1, 0x30);
    guest.set_pin(9, 0, 0x8039);
    guest.set_pin(4, 0, 0x34);
    guest.outb(0x43, 0x34);
    guest.outb(0x40, 0x9c);
    guest.outb(0x40, 0x2e);
    guest.outb(0x61, 1);
    guest.set_cmos(0x0b, 0x42);
    guest.set_cmos(9, 0x30);
    guest.outb(0x3f8 + 4, 0x0b);
    guest.outb(0x3f8 + 1, 1);
    assert_eq!(guest.chipset.serial.push_input(b"unread"), 6);
    guest.outw(0x602, 0x100);
    guest.chipset.acpi_pm.press_power_button();
    guest.outl(0xcf8, 0x8000_0804);
    guest.pass(3 * MS);
    guest
}

#[test]
fn a_snapshot_goes_on_where_it_was_saved() {
    let guest = busy();
    let state = guest.chipset.save();
    let text = serde_json::to_string(&state).unwrap();
    let other = Guest::new();
    other.pass(77 * SECOND);
    let read: ChipsetState = serde_json::from_str(&text).unwrap();
    assert_eq!(read, state);
    other.chipset.restore(&read).unwrap();
    assert_eq!(other.chipset.save(), state);
    guest.messages();
    assert!(other.messages().is_empty(), "restoring interrupts nobody");
    assert_eq!(*other.outside.extint.lock(), *guest.outside.extint.lock());
    assert_eq!(other.inl(0x608), guest.inl(0x608));
    assert_eq!(other.inl(0xcf8), 0x8000_0804);
    assert_eq!(other.cmos(9), 0x30);
    for guest in [&guest, &other] {
        guest.pass(25 * MS);
    }
    assert_eq!(other.messages(), guest.messages());
    // The power button still holds its line; the input is still there.
    engine::Bus::end_of_interrupt(&*other.chipset.bus, 0x39);
    assert_eq!(other.vectors(), [0x39]);
    let mut input = Vec::new();
    while other.inb(0x3f8 + 5) & 1 != 0 {
        input.push(other.inb(0x3f8));
    }
    assert_eq!(input, b"unread");
    other.outw(0x600, 0x100);
    engine::Bus::end_of_interrupt(&*other.chipset.bus, 0x39);
    assert!(other.vectors().is_empty());
}

#[test]
fn states_of_other_versions_are_refused_by_name() {
    let text = serde_json::to_string(&busy().chipset.save()).unwrap();
    for (part, name) in [
        ("", "chipset"),
        ("\"pit\":", "8254"),
        ("\"rtc\":", "real-time clock"),
        ("\"serial\":", "serial port"),
        ("\"acpi_pm\":", "ACPI power management"),
        ("\"keyboard\":", "keyboard controller"),
        ("\"pci\":", "PCI root"),
        ("\"host_bridge\":", "PCI configuration space"),
        ("\"ioapic\":", "I/O APIC"),
        ("\"pic\":", "8259"),
    ] {
        let current = format!("{part}{{\"version\":1");
        assert!(text.contains(&current), "{part}");
        let newer = text.replacen(&current, &format!("{part}{{\"version\":2"), 1);
        let error = serde_json::from_str::<ChipsetState>(&newer)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(name) && error.contains("version 2"),
            "{error}"
        );
    }
}

#[test]
fn damaged_states_are_refused() {
    let text = serde_json::to_string(&busy().chipset.save()).unwrap();
    for (sound, damaged) in [
        ("\"mode\":2", "\"mode\":9"),
        ("\"count\":11932", "\"count\":0"),
        ("\"lowest\":7", "\"lowest\":8"),
        ("\"redirection\":[", "\"redirection\":[1,"),
        ("\"index\":9,\"memory\":[", "\"index\":9,\"memory\":[1,"),
    ] {
        assert!(text.contains(sound), "{sound} in {text}");
        let state: ChipsetState = serde_json::from_str(&text.replace(sound, damaged)).unwrap();
        let guest = Guest::new();
        assert!(guest.chipset.restore(&state).is_err(), "{damaged}");
    }
}

#[test]
fn a_reset_masks_everything_but_keeps_time_and_input() {
    let guest = busy();
    guest.chipset.reset();
    guest.messages();
    guest.pass(SECOND);
    assert!(guest.messages().is_empty());
    assert_eq!(guest.interrupt(), None);
    assert_eq!(guest.cmos(9), 0x30);
    assert_eq!(guest.inw(0x600) & 0x100, 0);
    guest.outb(0x3f8 + 4, 0x0b);
    let mut input = Vec::new();
    while guest.inb(0x3f8 + 5) & 1 != 0 {
        input.push(guest.inb(0x3f8));
    }
    assert_eq!(input, b"unread");
}
