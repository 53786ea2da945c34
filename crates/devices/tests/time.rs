//! The interval timer, the real-time clock and the ACPI timer.

mod guest;

use guest::{Guest, MS, SECOND};

/// Channel, low and high byte, mode.
fn program(guest: &Guest, channel: u8, mode: u8, count: u16) {
    guest.outb(0x43, channel << 6 | 0x30 | mode << 1);
    let [low, high] = count.to_le_bytes();
    guest.outb(0x40 + u16::from(channel), low);
    guest.outb(0x40 + u16::from(channel), high);
}

fn latch(guest: &Guest, channel: u8) -> u16 {
    guest.outb(0x43, channel << 6);
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([guest.inb(port), guest.inb(port)])
}

/// Takes and ends all timer interrupts.
fn timer_interrupts(guest: &Guest) -> u32 {
    let mut count = 0;
    while guest.interrupt() == Some(0x20) {
        guest.outb(0x20, 0x20);
        count += 1;
    }
    count
}

#[test]
fn a_hobby_kernel_gets_its_hundred_hertz() {
    for mode in [2, 3] {
        let guest = Guest::new();
        guest.set_up_pics([0xfe, 0xff], 1);
        program(&guest, 0, mode, 11932);
        let mut ticks = 0;
        for _ in 0..1000 {
            guest.pass(MS);
            ticks += timer_interrupts(&guest);
        }
        assert!((99..=100).contains(&ticks), "{ticks}");
    }
}

#[test]
fn the_timer_reaches_ioapic_pin_2() {
    let guest = Guest::new();
    guest.set_pin(2, 0, 0x30);
    // Linux's check_timer: HZ=250, mode 2.
    program(&guest, 0, 2, 4773);
    guest.pass(40 * MS);
    assert_eq!(guest.vectors().len(), 9);
}

#[test]
fn one_shot_interrupts_once() {
    let guest = Guest::new();
    guest.set_up_pics([0xfe, 0xff], 1);
    program(&guest, 0, 0, 1193);
    guest.pass(999_000);
    assert_eq!(timer_interrupts(&guest), 0);
    guest.pass(2000);
    assert_eq!(timer_interrupts(&guest), 1);
    guest.pass(SECOND);
    assert_eq!(timer_interrupts(&guest), 0);
    // Linux's clockevent programs the next event in mode 4 again and again.
    guest.outb(0x43, 0x38);
    for _ in 0..3 {
        guest.outb(0x40, 0xa9);
        guest.outb(0x40, 0x04);
        guest.pass(2 * MS);
        assert_eq!(timer_interrupts(&guest), 1);
    }
    // Shutdown: mode 0, no count.
    guest.outb(0x43, 0x30);
    guest.pass(SECOND);
    assert_eq!(timer_interrupts(&guest), 0);
}

#[test]
fn counters_count_and_latch() {
    let guest = Guest::new();
    program(&guest, 0, 2, 10_000);
    guest.pass(MS);
    assert_eq!(latch(&guest, 0), 10_000 - 1193);
    guest.outb(0x43, 0);
    guest.pass(MS);
    let low = guest.inb(0x40);
    guest.pass(MS);
    assert_eq!(u16::from_le_bytes([low, guest.inb(0x40)]), 10_000 - 1193);
    // Read-back: status, then count, of channel 0.
    guest.outb(0x43, 0xc2);
    assert_eq!(guest.inb(0x40), 0xb4);
    let count = u16::from_le_bytes([guest.inb(0x40), guest.inb(0x40)]);
    assert_eq!(count, 10_000 - 3579);
    // BCD, low byte only.
    guest.outb(0x43, 0x55);
    guest.outb(0x41, 0x99);
    guest.outb(0x43, 0x40);
    assert_eq!(guest.inb(0x41), 0x99);
    // A count of zero is the largest.
    program(&guest, 0, 2, 0);
    guest.pass(30 * MS);
    assert_eq!(latch(&guest, 0), (0x1_0000 - 35795) as u16);
}

#[test]
fn linux_calibrates_the_tsc_with_channel_2() {
    let guest = Guest::new();
    let gated = guest.inb(0x61) & !2 | 1;
    guest.outb(0x61, gated);
    // 50 ms in mode 0: the output rises at the end.
    program(&guest, 2, 0, 59659);
    assert_eq!(guest.inb(0x61) & 0x20, 0);
    guest.pass(49 * MS);
    assert_eq!(guest.inb(0x61) & 0x20, 0);
    guest.pass(2 * MS);
    assert_eq!(guest.inb(0x61) & 0x20, 0x20);
    // The gate stops the count.
    program(&guest, 2, 0, 50_000);
    guest.pass(10 * MS);
    guest.outb(0x61, gated & !1);
    let stopped = latch(&guest, 2);
    guest.pass(100 * MS);
    assert_eq!(latch(&guest, 2), stopped);
    guest.outb(0x61, gated);
    guest.pass(10 * MS);
    let counted = stopped - latch(&guest, 2);
    assert!((11_930..=11_933).contains(&counted), "{counted}");
}

#[test]
fn the_refresh_bit_toggles() {
    let guest = Guest::new();
    let mut toggles = 0;
    let mut last = guest.inb(0x61) & 0x10;
    for _ in 0..1000 {
        guest.pass(1000);
        let now = guest.inb(0x61) & 0x10;
        toggles += u32::from(now != last);
        last = now;
    }
    assert!((60..=70).contains(&toggles), "{toggles}");
}

#[test]
fn the_smallest_divisor_does_not_flood() {
    let guest = Guest::new();
    guest.set_pin(2, 0, 0x30);
    program(&guest, 0, 2, 1);
    guest.pass(10 * MS);
    assert!(guest.vectors().len() <= 200);
}

#[test]
fn the_clock_shows_utc() {
    let guest = Guest::new();
    // 2023-11-14 22:13:20, BCD, 24 hours.
    let time = [0, 2, 4, 6, 7, 8, 9, 0x32].map(|at| guest.cmos(at));
    assert_eq!(time, [0x20, 0x13, 0x22, 3, 0x14, 0x11, 0x23, 0x20]);
    // Binary, 12 hours.
    guest.set_cmos(0x0b, 0x04);
    let time = [0, 2, 4, 9].map(|at| guest.cmos(at));
    assert_eq!(time, [20, 13, 0x80 | 10, 23]);
    guest.pass(2 * 3600 * SECOND);
    assert_eq!((guest.cmos(4), guest.cmos(7)), (12, 15));
    assert_eq!(guest.cmos(0x0d), 0x80);
}

#[test]
fn the_clock_can_be_set() {
    let guest = Guest::new();
    // As mc146818_set_time: stop, write, go.
    guest.set_cmos(0x0b, 0x82);
    let fields = [
        (9, 0x24),
        (8, 0x02),
        (7, 0x29),
        (4, 0x23),
        (2, 0x59),
        (0, 0x58),
        (0x32, 0x20),
    ];
    for (at, value) in fields {
        guest.set_cmos(at, value);
    }
    guest.pass(5 * SECOND);
    assert_eq!(guest.cmos(0), 0x58, "stopped");
    guest.set_cmos(0x0b, 0x02);
    guest.pass(3 * SECOND);
    let time = [0, 2, 4, 6, 7, 8, 9, 0x32].map(|at| guest.cmos(at));
    assert_eq!(time, [0x01, 0, 0, 6, 0x01, 0x03, 0x24, 0x20]);
}

#[test]
fn an_update_is_announced_before_the_second_ends() {
    let guest = Guest::new();
    assert_eq!(guest.cmos(0x0a), 0x26);
    guest.pass(999_800_000);
    assert_eq!(guest.cmos(0x0a), 0xa6);
    guest.pass(200_000);
    assert_eq!(guest.cmos(0x0a), 0x26);
    assert_eq!(guest.cmos(0), 0x21);
}

#[test]
fn the_alarm_rings_as_linux_sets_it() {
    let guest = Guest::new();
    guest.set_pin(8, 0, 0x38);
    let _ = guest.cmos(0x0c);
    // 22:13:23, then enable.
    for (at, value) in [(5, 0x22), (3, 0x13), (1, 0x23), (0x0b, 0x22)] {
        guest.set_cmos(at, value);
    }
    guest.pass(2900 * MS);
    assert!(guest.vectors().is_empty());
    guest.pass(200 * MS);
    assert_eq!(guest.vectors(), [0x38]);
    assert_eq!(guest.cmos(0x0c) & 0xa0, 0xa0);
    assert_eq!(guest.cmos(0x0c), 0);
    guest.pass(20 * SECOND);
    assert!(guest.vectors().is_empty());
    // Any second of that minute.
    guest.set_cmos(1, 0xff);
    guest.pass(SECOND);
    assert_eq!(guest.vectors(), [0x38]);
}

#[test]
fn update_and_periodic_interrupts_come_at_their_rates() {
    let guest = Guest::new();
    guest.set_pin(8, 0, 0x38);
    guest.set_cmos(0x0b, 0x12);
    let mut updates = 0;
    for _ in 0..50 {
        guest.pass(100 * MS);
        updates += guest.vectors().len();
        let _ = guest.cmos(0x0c);
    }
    assert_eq!(updates, 5);
    // 64 Hz.
    guest.set_cmos(0x0a, 0x2a);
    guest.set_cmos(0x0b, 0x42);
    let mut periods = 0;
    for _ in 0..1000 {
        guest.pass(MS);
        periods += guest.vectors().len();
        let _ = guest.cmos(0x0c);
    }
    assert!((63..=65).contains(&periods), "{periods}");
    guest.set_cmos(0x0b, 0x02);
    guest.pass(SECOND);
    assert!(guest.vectors().is_empty());
}

#[test]
fn memory_sizes_are_in_cmos() {
    let guest = Guest::new();
    let word = |at| u16::from_le_bytes([guest.cmos(at), guest.cmos(at + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 63 * 1024);
    assert_eq!(u64::from(word(0x34)) << 16, (1 << 30) - (16 << 20));
    assert_eq!(u64::from(word(0x5b)) << 16, 3 << 30);
    guest.set_cmos(0x40, 0x5a);
    assert_eq!(guest.cmos(0x40), 0x5a);
}

#[test]
fn the_acpi_timer_runs_at_its_frequency() {
    let guest = Guest::new();
    let before = guest.inl(0x608);
    guest.pass(SECOND);
    assert_eq!(guest.inl(0x608) - before, 3_579_545);
    assert_eq!(guest.inw(0x600) & 1, 0);
    // The carry of the 32-bit timer, by interrupt.
    guest.set_pin(9, 0, 0x8039);
    guest.outw(0x602, 1);
    guest.pass(598 * SECOND);
    assert!(guest.vectors().is_empty());
    guest.pass(2 * SECOND);
    assert_eq!(guest.vectors(), [0x39]);
    assert_eq!(guest.inw(0x600), 1);
    guest.outw(0x600, 1);
    assert_eq!(guest.inw(0x600), 0);
}
