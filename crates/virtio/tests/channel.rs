//! The named channel as a guest's driver meets it.

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use driver::{Driver, EVENT_IDX};
use parking_lot::Mutex;
use virtio::channel::{Channel, ChannelInput, ChannelSink};
use virtio::console::ConsoleSink;

const DATA: u64 = 0x20_0000;
const MULTIPORT: u64 = 1 << 1;

#[derive(Default)]
struct End {
    text: Mutex<Vec<u8>>,
    full: AtomicBool,
    ready: AtomicUsize,
    open: AtomicBool,
}

impl ConsoleSink for End {
    fn output(&self, data: &[u8]) {
        self.text.lock().extend(data);
    }
    fn ready(&self) -> bool {
        !self.full.load(Ordering::SeqCst)
    }
    fn input_ready(&self) {
        self.ready.fetch_add(1, Ordering::SeqCst);
    }
}

impl ChannelSink for End {
    fn guest_open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
    }
}

fn channel() -> (Driver, ChannelInput, Arc<End>) {
    let end = Arc::new(End::default());
    let (channel, input) = Channel::new("org.example.0", end.clone());
    (Driver::new(channel), input, end)
}

fn tell(driver: &mut Driver, id: u32, event: u16, value: u16) {
    let mut message = id.to_le_bytes().to_vec();
    message.extend(event.to_le_bytes());
    message.extend(value.to_le_bytes());
    driver.ram.write(DATA, &message).unwrap();
    driver.run(3, &[(DATA, 8, false)]);
}

fn told(driver: &mut Driver) -> Vec<u8> {
    let length = driver.run(2, &[(DATA + 0x1000, 100, true)]);
    driver.bytes(DATA + 0x1000, length as usize)
}

fn open(driver: &mut Driver) {
    driver.start(EVENT_IDX | MULTIPORT, 6, 16);
    tell(driver, 0, 0, 1);
    assert_eq!(told(driver), [1, 0, 0, 0, 1, 0, 1, 0]);
    tell(driver, 1, 3, 1);
    assert_eq!(told(driver), b"\x01\0\0\0\x07\0\x01\0org.example.0\0");
    assert_eq!(told(driver), [1, 0, 0, 0, 6, 0, 1, 0]);
    tell(driver, 1, 6, 1);
}

#[test]
fn a_port_is_added_named_and_opened() {
    let (mut driver, input, end) = channel();
    assert_eq!(driver.read(driver.device, 4, 4), 2);
    open(&mut driver);
    assert!(end.open.load(Ordering::SeqCst));
    driver.ram.write(DATA, b"{}\n").unwrap();
    driver.run(5, &[(DATA, 3, false)]);
    assert_eq!(*end.text.lock(), b"{}\n");
    input.push(b"answer");
    assert_eq!(driver.run(4, &[(DATA, 100, true)]), 6);
    assert_eq!(driver.bytes(DATA, 6), b"answer");
    tell(&mut driver, 1, 6, 0);
    assert!(!end.open.load(Ordering::SeqCst));
}

#[test]
fn input_larger_than_the_store_goes_on_when_the_guest_has_taken_some() {
    let (mut driver, input, end) = channel();
    open(&mut driver);
    // More room in the guest than the device keeps: all is taken at once.
    let flood: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    driver.add(4, &[(DATA, 100_000, true)]);
    driver.kick(4);
    let taken = input.push(&flood);
    let first = driver.wait_used(4).1 as usize;
    // Kept is as much again, and told of is room only when there is some.
    assert_eq!(taken, 2 * first);
    assert_eq!(end.ready.load(Ordering::SeqCst), 0);
    let at = DATA + first as u64;
    assert_eq!(driver.run(4, &[(at, 100_000, true)]) as usize, first);
    assert_eq!(end.ready.load(Ordering::SeqCst), 1);
    assert!(driver.bytes(DATA, taken) == flood[..taken]);
}

#[test]
fn output_stays_with_the_guest_while_the_host_does_not_take_it() {
    let (mut driver, input, end) = channel();
    open(&mut driver);
    end.full.store(true, Ordering::SeqCst);
    driver.ram.write(DATA, b"late").unwrap();
    driver.add(5, &[(DATA, 4, false)]);
    driver.kick(5);
    assert_eq!(driver.used_index(5), 0);
    end.full.store(false, Ordering::SeqCst);
    input.output_ready();
    driver.wait_used(5);
    assert_eq!(*end.text.lock(), b"late");
}

#[test]
fn a_saved_channel_is_open_in_the_restored_machine() {
    let (mut driver, input, _end) = channel();
    open(&mut driver);
    input.push(b"asked");
    let state = driver.function.save();
    let (other, _input, end) = channel();
    other.function.restore(&state).unwrap();
    assert!(end.open.load(Ordering::SeqCst));
    assert_eq!(other.function.save(), state);
    // A reset closes it.
    driver.start(EVENT_IDX | MULTIPORT, 6, 16);
    other.function.reset();
    assert!(!end.open.load(Ordering::SeqCst));
}

#[test]
fn a_driver_that_only_asks_breaks_only_its_device() {
    let (mut driver, _input, _end) = channel();
    driver.start(MULTIPORT, 6, 16);
    for _ in 0..100 {
        if !driver.needs_reset() {
            driver.ram.write(DATA, &[0, 0, 0, 0, 0, 0, 1, 0]).unwrap();
            driver.add(3, &[(DATA, 8, false)]);
            driver.kick(3);
        }
    }
    assert!(driver.needs_reset());
    open(&mut driver);
    // A driver that knows no ports has none.
    driver.start(0, 2, 16);
    driver.kick(1);
    assert!(!driver.needs_reset());
}
