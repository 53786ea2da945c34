//! The balloon as a guest's driver meets it.

mod driver;

use std::sync::Arc;
use std::time::Duration;

use driver::{Driver, EVENT_IDX};
use memory::GuestRam;
use virtio::balloon::{Balloon, BalloonControl, FLOOR};

const DATA: u64 = 0x20_0000;
const STATISTICS: u64 = 1 << 1;
const REPORTING: u64 = 1 << 5;
const SIZE: u64 = 256 << 20;

fn balloon() -> (Driver, BalloonControl, Arc<GuestRam>) {
    let ram = GuestRam::new(SIZE, SIZE).unwrap();
    let (balloon, control) = Balloon::new(ram.clone());
    (Driver::with_ram(balloon, ram.clone()), control, ram)
}

#[test]
fn pages_in_the_balloon_are_the_hosts() {
    let (mut driver, control, ram) = balloon();
    driver.start(EVENT_IDX | STATISTICS | REPORTING, 4, 16);
    assert_eq!(control.set_memory(128 << 20), 128 << 20);
    assert_eq!(driver.sink.take(0x40), 1);
    assert_eq!(driver.read(driver.device, 0, 4), (128 << 20) / 4096);
    ram.write(0x40_0000, &[1; 0x4000]).unwrap();
    ram.take_dirty();
    let numbers: Vec<u8> = [0x402u32, 0x400, 0x401, 0xffff_ffff, 0x10_0000]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    driver.ram.write(DATA, &numbers).unwrap();
    driver.run(0, &[(DATA, numbers.len() as u32, false)]);
    assert_eq!(driver.bytes(0x40_0000, 0x3000), [0; 0x3000]);
    assert_eq!(driver.bytes(0x40_3000, 1), [1]);
    assert_eq!(ram.take_dirty()[0x400 / 64] & 0xf, 0b111);
    driver.write(driver.device, 4, 3, 4);
    assert_eq!(control.report().actual, 3 * 4096);
    // Whatever is asked for, the guest keeps enough to live.
    assert_eq!(control.set_memory(0), SIZE - FLOOR);
    assert_eq!(control.set_memory(u64::MAX), 0);
}

#[test]
fn reported_pages_are_given_back_whole() {
    let (mut driver, control, ram) = balloon();
    driver.start(REPORTING, 3, 16);
    ram.write(0x40_0000, &[1; 0x4000]).unwrap();
    driver.run(2, &[(0x40_0800, 0x2800, true)]);
    assert_eq!(control.report().reported, 0x2000);
    assert_eq!(driver.bytes(0x40_0fff, 3), [1, 0, 0]);
}

#[test]
fn statistics_are_asked_for_and_come() {
    let (mut driver, control, _) = balloon();
    driver.start(STATISTICS | REPORTING, 4, 16);
    let mut entries = Vec::new();
    for (tag, value) in [(4u16, 1000u64), (5, 2000), (99, 7)] {
        entries.extend(tag.to_le_bytes());
        entries.extend(value.to_le_bytes());
    }
    driver.ram.write(DATA, &entries).unwrap();
    driver.add(2, &[(DATA, entries.len() as u32, false)]);
    driver.kick(2);
    let report = control.report();
    assert_eq!(
        (report.statistics.free, report.statistics.total),
        (Some(1000), Some(2000))
    );
    assert_eq!(driver.used_index(2), 0);
    // A silent guest costs the time only; its buffer came back to it.
    assert!(control.fresh_report(Duration::from_millis(50)).driver);
    driver.wait_used(2);
    driver.add(2, &[(DATA, entries.len() as u32, false)]);
    driver.kick(2);
    // The buffer that is kept survives a pause.
    let state = driver.function.save();
    let (other, control, _) = balloon();
    other.function.restore(&state).unwrap();
    assert_eq!(other.function.save(), state);
    assert_eq!(control.report().statistics.free, Some(1000));
    driver.function.pause();
    driver.function.resume();
    assert!(!driver.needs_reset());
    driver.add(2, &[(DATA, 10, false)]);
    driver.kick(2);
    assert!(driver.needs_reset());
}
