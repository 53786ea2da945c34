//! Turning off, resetting, the power button, debug exit.

mod guest;

use devices::PowerEvent;
use guest::Guest;

#[test]
fn acpi_turns_the_machine_off() {
    let guest = Guest::new();
    assert_eq!(guest.inw(0x604) & 1, 1, "ACPI mode");
    // acpi_hw_legacy_sleep: the type, then type and enable.
    guest.outw(0x604, 5 << 10 | 1);
    assert!(guest.power().is_empty());
    guest.outw(0x604, 5 << 10 | 1 << 13 | 1);
    assert_eq!(guest.power(), [PowerEvent::PowerOff]);
    assert_eq!(guest.inw(0x604), 5 << 10 | 1);
    // Other sleep types are not offered.
    guest.outw(0x604, 3 << 10 | 1 << 13 | 1);
    assert!(guest.power().is_empty());
}

#[test]
fn the_power_button_is_an_event() {
    let guest = Guest::new();
    guest.set_pin(9, 0, 0x8039);
    guest.outw(0x602, 0x120);
    guest.chipset.acpi_pm.press_power_button();
    assert_eq!(guest.vectors(), [0x39]);
    assert_eq!(guest.inw(0x600), 0x100);
    guest.outw(0x600, 0x100);
    assert_eq!(guest.inw(0x600), 0);
    engine::Bus::end_of_interrupt(&*guest.chipset.bus, 0x39);
    assert!(guest.vectors().is_empty());
    // Pressed before the guest listens, it is not lost.
    guest.outw(0x602, 0);
    guest.chipset.acpi_pm.press_power_button();
    assert!(guest.vectors().is_empty());
    guest.outw(0x602, 0x100);
    assert_eq!(guest.vectors(), [0x39]);
}

#[test]
fn the_reset_register_lies_between_the_pci_ports() {
    let guest = Guest::new();
    guest.outl(0xcf8, 0x8000_0600);
    assert!(guest.power().is_empty());
    guest.outb(0xcf9, 0x06);
    assert_eq!(guest.power(), [PowerEvent::Reset]);
    assert_eq!(guest.inl(0xcf8), 0x8000_0600);
    guest.outb(0x64, 0xfe);
    guest.outb(0x92, 0x01);
    assert_eq!(guest.power(), [PowerEvent::Reset; 2]);
}

#[test]
fn debug_exit_takes_every_size() {
    let guest = Guest::new();
    guest.outb(0xf4, 0x10);
    guest.outl(0xf4, 0x1234_5678);
    guest.outw(0xf4, 0xffff);
    let events = [0x10, 0x1234_5678, 0xffff].map(PowerEvent::DebugExit);
    assert_eq!(guest.power(), events);
}

#[test]
fn debug_ports_are_ignored() {
    let guest = Guest::new();
    for port in [0x80, 0xe9, 0xed, 0x402] {
        guest.outb(port, 0x41);
    }
    assert_eq!(guest.inb(0xe9), 0xff);
    assert!(guest.power().is_empty());
}
