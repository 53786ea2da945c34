//! The entropy device and the console as a guest's driver meets them.

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use driver::{Driver, EVENT_IDX, wait_for};
use parking_lot::Mutex;
use virtio::console::{Console, ConsoleInput, ConsoleSink};
use virtio::rng::Rng;

const DATA: u64 = 0x20_0000;

#[test]
fn random_numbers_fill_what_the_guest_offers() {
    let mut driver = Driver::new(Rng::new());
    assert_eq!(driver.config16(2), 0x1044);
    driver.start(EVENT_IDX, 1, 8);
    assert_eq!(
        driver.run(0, &[(DATA, 64, true), (DATA + 0x1000, 100, true)]),
        164
    );
    let first = driver.bytes(DATA, 64);
    assert!(first.iter().any(|&b| b != 0));
    assert!(driver.bytes(DATA + 0x1000, 100).iter().any(|&b| b != 0));
    assert_eq!(driver.bytes(DATA + 64, 64), [0; 64]);
    assert_eq!(driver.run(0, &[(DATA, 64, true)]), 64);
    assert_ne!(driver.bytes(DATA, 64), first);
    // Much is given in parts, nothing is nothing.
    assert_eq!(driver.run(0, &[(DATA, 1 << 20, true)]), 65536);
    assert_eq!(driver.run(0, &[(DATA, 64, false)]), 0);
    driver.add(0, &[(1 << 44, 64, true)]);
    driver.kick(0);
    assert!(driver.needs_reset());
    driver.start(0, 1, 8);
    assert_eq!(driver.run(0, &[(DATA, 64, true)]), 64);
}

#[derive(Default)]
struct Screen {
    text: Mutex<Vec<u8>>,
    ready: AtomicUsize,
}

impl ConsoleSink for Screen {
    fn output(&self, data: &[u8]) {
        self.text.lock().extend(data);
    }
    fn input_ready(&self) {
        self.ready.fetch_add(1, Ordering::SeqCst);
    }
}

fn console() -> (Driver, ConsoleInput, Arc<Screen>) {
    let screen = Arc::new(Screen::default());
    let (console, input) = Console::new(screen.clone());
    (Driver::new(console), input, screen)
}

#[test]
fn the_guest_writes_to_the_console() {
    let (mut driver, _input, screen) = console();
    assert_eq!(driver.config16(2), 0x1043);
    driver.write(driver.device, 8, u64::from(b'!'), 4);
    driver.start(EVENT_IDX, 2, 16);
    driver.ram.write(DATA, b"Debian GNU/Linux").unwrap();
    assert_eq!(driver.run(1, &[(DATA, 7, false), (DATA + 7, 9, false)]), 0);
    assert_eq!(*screen.text.lock(), b"!Debian GNU/Linux");
    let long: Vec<u8> = (0..20000u32).map(|n| (n % 251) as u8).collect();
    driver.ram.write(DATA, &long).unwrap();
    driver.run(1, &[(DATA, 20000, false)]);
    assert!(screen.text.lock()[17..] == long);
    wait_for("an interrupt", || driver.sink.take(0x42) > 0);
}

#[test]
fn input_waits_for_the_guest_and_the_host_for_room() {
    let (mut driver, input, screen) = console();
    assert_eq!(input.push(b"early "), 6);
    driver.start(EVENT_IDX, 2, 16);
    assert_eq!(driver.run(0, &[(DATA, 4, true)]), 4);
    assert_eq!(driver.run(0, &[(DATA + 4, 100, true)]), 2);
    assert_eq!(driver.bytes(DATA, 6), b"early ");
    // A buffer that waits for input.
    driver.add(0, &[(DATA, 100, true)]);
    driver.kick(0);
    driver.set_used_event(0, 2);
    assert_eq!(input.push(b"late"), 4);
    assert_eq!(driver.wait_used(0).1, 4);
    assert_eq!(driver.bytes(DATA, 4), b"late");
    wait_for("an interrupt", || driver.sink.take(0x41) > 0);
    // Without buffers a bounded amount is kept, then refused until there is room.
    let flood: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let taken = input.push(&flood);
    assert!(taken < flood.len());
    assert_eq!(input.push(&flood), 0);
    assert_eq!(screen.ready.load(Ordering::SeqCst), 0);
    let mut got = Vec::new();
    while got.len() < taken {
        let length = driver.run(0, &[(DATA, 5000, true)]);
        got.extend(driver.bytes(DATA, length as usize));
    }
    assert!(got == flood[..taken]);
    assert_eq!(screen.ready.load(Ordering::SeqCst), 1);
}

#[test]
fn a_resize_reaches_the_guest() {
    let (mut driver, input, _screen) = console();
    driver.start(1, 2, 16);
    let generation = driver.read(driver.common, 0x15, 1);
    input.set_size(132, 43);
    assert_eq!(driver.read(driver.device, 0, 2), 132);
    assert_eq!(driver.read(driver.device, 2, 2), 43);
    assert_ne!(driver.read(driver.common, 0x15, 1), generation);
    assert_eq!(driver.sink.take(0x40), 1);
    assert_eq!(driver.read(driver.isr, 0, 1), 2);
}

#[test]
fn a_saved_console_keeps_its_input() {
    let (mut driver, input, _screen) = console();
    driver.start(EVENT_IDX, 2, 16);
    input.push(b"typed");
    let state = driver.function.save();
    let (other, _input, _screen) = console();
    other.function.restore(&state).unwrap();
    assert_eq!(other.function.save(), state);
    // And saving did not disturb the one that was saved.
    assert_eq!(driver.run(0, &[(DATA, 100, true)]), 5);
}

#[test]
fn a_hostile_console_driver_breaks_only_its_device() {
    let (mut driver, input, _screen) = console();
    driver.start(0, 2, 16);
    driver.add(0, &[(DATA, 100, false)]);
    input.push(b"x");
    assert!(driver.needs_reset());
    input.push(b"x");
    driver.start(0, 2, 16);
    driver.publish(1, 77);
    driver.kick(1);
    assert!(driver.needs_reset());
    driver.start(0, 2, 16);
    driver.ram.write(DATA, b"ok").unwrap();
    driver.run(1, &[(DATA, 2, false)]);
    assert_eq!(driver.sink.take(0x40), 2);
}
