//! The serial port as drivers use it.

mod guest;

use guest::Guest;

const COM1: u16 = 0x3f8;

/// What Linux's 8250 driver does before it finds a 16550A.
fn autoconfigure(guest: &Guest) {
    guest.outb(COM1 + 1, 0);
    assert_eq!(guest.inb(COM1 + 1) & 0xf, 0);
    guest.outb(COM1 + 1, 0xf);
    assert_eq!(guest.inb(COM1 + 1) & 0xf, 0xf);
    guest.outb(COM1 + 1, 0);
    let modem = guest.inb(COM1 + 4);
    guest.outb(COM1 + 4, 0x1a);
    assert_eq!(guest.inb(COM1 + 6) & 0xf0, 0x90, "loopback test");
    guest.outb(COM1 + 4, modem);
    guest.outb(COM1 + 3, 0xbf);
    guest.outb(COM1 + 2, 0);
    guest.outb(COM1 + 3, 0);
    guest.outb(COM1 + 2, 1);
    assert_eq!(guest.inb(COM1 + 2) >> 6, 3, "16550A");
    guest.outb(COM1 + 7, 0xa5);
    assert_eq!(guest.inb(COM1 + 7), 0xa5);
    // Clear FIFOs, read what is left over.
    for value in [1, 7, 0] {
        guest.outb(COM1 + 2, value);
    }
    let _ = guest.inb(COM1);
    guest.outb(COM1 + 1, 0);
}

/// Opens the port for input by interrupt.
fn open(guest: &Guest) {
    for value in [1, 7, 0] {
        guest.outb(COM1 + 2, value);
    }
    for register in [5, 0, 2, 6] {
        let _ = guest.inb(COM1 + register);
    }
    guest.outb(COM1 + 3, 3);
    guest.outb(COM1 + 4, 8);
    // The test for a lost THRE interrupt.
    guest.outb(COM1 + 1, 2);
    assert_eq!(guest.inb(COM1 + 5) & 0x60, 0x60);
    assert_eq!(guest.inb(COM1 + 2) & 0xf, 2);
    assert_eq!(guest.inb(COM1 + 2) & 0xf, 1);
    guest.outb(COM1 + 1, 0);
    guest.outb(COM1 + 2, 0x81);
    guest.outb(COM1 + 1, 5);
    guest.outb(COM1 + 4, 0x0b);
}

/// The receive part of the interrupt handler.
fn receive(guest: &Guest) -> Vec<u8> {
    let mut received = Vec::new();
    while guest.inb(COM1 + 2) & 1 == 0 {
        while guest.inb(COM1 + 5) & 1 != 0 {
            received.push(guest.inb(COM1));
        }
    }
    received
}

#[test]
fn linux_finds_a_16550a_and_loses_no_early_input() {
    let guest = Guest::new();
    guest.set_pin(4, 0, 0x34);
    let typed = b"root\nuname -a\n0123456789 typed before anybody listened\n";
    assert_eq!(guest.chipset.serial.push_input(typed), typed.len());
    autoconfigure(&guest);
    guest.messages();
    open(&guest);
    assert!(guest.vectors().contains(&0x34));
    assert_eq!(receive(&guest), typed);
    assert_eq!(guest.inb(COM1 + 5), 0x60);
}

#[test]
fn output_arrives_in_order_and_asks_for_more() {
    let guest = Guest::new();
    guest.set_pin(4, 0, 0x34);
    for byte in b"polled\n" {
        assert_eq!(guest.inb(COM1 + 5) & 0x20, 0x20);
        guest.outb(COM1, *byte);
    }
    assert!(guest.vectors().is_empty());
    guest.outb(COM1 + 1, 2);
    assert_eq!(
        guest.vectors(),
        [0x34],
        "enabling it reports an empty transmitter"
    );
    assert_eq!(guest.inb(COM1 + 2) & 0xf, 2);
    guest.outb(COM1, b'!');
    assert_eq!(guest.vectors(), [0x34]);
    assert_eq!(*guest.outside.output.lock(), b"polled\n!");
}

#[test]
fn input_is_held_back_not_lost() {
    let guest = Guest::new();
    let data: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
    let mut offered = guest.chipset.serial.push_input(&data);
    assert!(offered < data.len());
    offered += guest.chipset.serial.push_input(&data[offered..]);
    assert_eq!(guest.chipset.serial.push_input(&data[offered..]), 0);
    open(&guest);
    let mut received = Vec::new();
    while received.len() < data.len() {
        let ready = *guest.outside.ready.lock();
        let more = receive(&guest);
        assert!(!more.is_empty());
        received.extend(more);
        if offered < data.len() {
            assert!(
                *guest.outside.ready.lock() > ready,
                "told that there is room"
            );
            offered += guest.chipset.serial.push_input(&data[offered..]);
        }
    }
    assert_eq!(received, data);
}

#[test]
fn the_trigger_level_tells_bursts_from_rests() {
    let guest = Guest::new();
    open(&guest);
    assert_eq!(guest.chipset.serial.push_input(b"a"), 1);
    assert_eq!(guest.inb(COM1 + 2), 0xcc);
    assert_eq!(guest.chipset.serial.push_input(b"bcdefghijkl"), 11);
    assert_eq!(guest.inb(COM1 + 2), 0xc4);
    for _ in 0..12 {
        guest.inb(COM1);
    }
    assert_eq!(guest.inb(COM1 + 2), 0xc1);
}

#[test]
fn a_polling_kernel_gets_input_however_it_set_up_the_port() {
    for modem in [None, Some(0), Some(0x0b)] {
        let guest = Guest::new();
        if let Some(modem) = modem {
            guest.outb(COM1 + 4, modem);
        }
        assert_eq!(guest.chipset.serial.push_input(b"key"), 3);
        let mut received = Vec::new();
        for _ in 0..100 {
            if guest.inb(COM1 + 5) & 1 != 0 {
                received.push(guest.inb(COM1));
                guest.outb(COM1, b'*');
            }
        }
        assert_eq!(received, b"key");
        assert_eq!(*guest.outside.output.lock(), b"***");
    }
}

#[test]
fn loopback_stays_inside() {
    let guest = Guest::new();
    guest.outb(COM1 + 2, 1);
    guest.outb(COM1 + 4, 0x1e);
    guest.outb(COM1, 0xae);
    assert_eq!(guest.inb(COM1 + 5) & 1, 1);
    assert_eq!(guest.inb(COM1), 0xae);
    for byte in 0..20 {
        guest.outb(COM1, byte);
    }
    assert_eq!(guest.inb(COM1 + 5) & 3, 3, "overrun");
    assert_eq!(guest.inb(COM1 + 5) & 3, 1);
    assert!(guest.outside.output.lock().is_empty());
    guest.outb(COM1 + 4, 0x0f);
    assert_eq!(guest.inb(COM1 + 5) & 1, 0);
}

#[test]
fn the_divisor_hides_data_and_interrupt_enable() {
    let guest = Guest::new();
    guest.outb(COM1 + 3, 0x83);
    guest.outb(COM1, 0x0c);
    guest.outb(COM1 + 1, 0x01);
    assert_eq!((guest.inb(COM1), guest.inb(COM1 + 1)), (0x0c, 0x01));
    guest.outb(COM1 + 3, 0x03);
    assert_eq!(guest.inb(COM1 + 1), 0);
    assert!(guest.outside.output.lock().is_empty());
}
