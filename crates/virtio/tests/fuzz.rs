//! Random rings and register writes: whatever a guest does, the device can be
//! reset and then works.

mod driver;

use std::sync::Arc;

use disk::{RawDisk, RawOptions};
use driver::{Driver, EVENT_IDX, INDIRECT_DESC};
use memory::GuestRam;
use proptest::prelude::*;
use virtio::balloon::Balloon;
use virtio::blk::Blk;
use virtio::channel::{Channel, ChannelSink};
use virtio::console::{Console, ConsoleSink};
use virtio::fs::Fs;
use virtio::rng::Rng;
use virtio::vsock::Vsock;

const DATA: u64 = 0x20_0000;

struct Nowhere;
impl ConsoleSink for Nowhere {
    fn output(&self, _data: &[u8]) {}
}
impl ChannelSink for Nowhere {
    fn guest_open(&self, _open: bool) {}
}

type Descriptor = (u64, u32, u16, u16);

fn plausible() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        8 => (0..0x40u64).prop_map(|n| DATA + n * 512),
        2 => (0..0x30u64).prop_map(|n| driver::RINGS + n * 0x400),
        1 => any::<u64>(),
        1 => Just(driver::RAM - 8),
    ];
    let length = prop_oneof![
        6 => prop_oneof![Just(16u32), Just(512), Just(1), Just(20), Just(0)],
        1 => any::<u32>(),
        1 => 0..5000u32,
    ];
    (
        address,
        length,
        prop_oneof![9 => 0..4u16, 1 => 0..8u16],
        0..20u16,
    )
}

#[derive(Clone, Debug)]
enum Act {
    Descriptor(u16, Descriptor),
    Publish(u16),
    Kick,
    Header(u64, u32, u64),
    Common(u64, u64, usize),
    DeviceConfig(u64, u64, usize),
    Pause,
    Save,
    Jump(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    prop_oneof![
        12 => (0..16u16, plausible()).prop_map(|(at, d)| Act::Descriptor(at, d)),
        6 => (0..17u16).prop_map(Act::Publish),
        6 => Just(Act::Kick),
        6 => (0..0x40u64, 0..14u32, prop_oneof![0..64u64, any::<u64>()])
            .prop_map(|(at, kind, sector)| Act::Header(DATA + at * 512, kind, sector)),
        1 => (0..0x40u64, any::<u64>(), size.clone()).prop_map(|(a, v, s)| Act::Common(a, v, s)),
        1 => (0..64u64, any::<u64>(), size).prop_map(|(a, v, s)| Act::DeviceConfig(a, v, s)),
        1 => Just(Act::Pause),
        1 => Just(Act::Save),
        1 => any::<u16>().prop_map(Act::Jump),
    ]
}

/// Plays on the last of the queues.
fn play(driver: &mut Driver, queues: u16, acts: &[Act]) {
    play_on(driver, 0, queues, usize::from(queues) - 1, acts);
}

/// Plays on a queue, with features of the device.
fn play_on(driver: &mut Driver, features: u64, queues: u16, queue: usize, acts: &[Act]) {
    driver.start(EVENT_IDX | INDIRECT_DESC | features, queues, 16);
    for act in acts {
        match *act {
            Act::Descriptor(at, entry) => driver.put_descriptor(queue, at, entry),
            Act::Publish(head) => driver.publish(queue, head),
            Act::Kick => driver.kick(queue),
            Act::Header(at, kind, sector) => {
                let mut header = [0; 16];
                header[..4].copy_from_slice(&kind.to_le_bytes());
                header[8..].copy_from_slice(&sector.to_le_bytes());
                driver.ram.write(at, &header).unwrap();
            }
            Act::Common(at, value, size) => {
                driver.write(driver.common, at & !(size as u64 - 1), value, size);
            }
            Act::DeviceConfig(at, value, size) => {
                driver.write(driver.device, at & !(size as u64 - 1), value, size);
            }
            Act::Pause => {
                driver.function.pause();
                driver.function.resume();
            }
            Act::Save => {
                let state = driver.function.save();
                driver.function.restore(&state).unwrap();
                driver.function.resume();
            }
            Act::Jump(index) => {
                let at = driver.queues[queue].available + 2;
                driver.set_available(at, index);
            }
        }
    }
    // Whatever happened: after a reset the device works.
    driver.start(features, queues, 16);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_block_device_survives(acts in proptest::collection::vec(act(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 16]).unwrap();
        let disk = Arc::new(RawDisk::open(&RawOptions::new(&path)).unwrap());
        let mut driver = Driver::new(Blk::new(disk, 1, virtio::blk::BlkOptions::default()));
        play(&mut driver, 1, &acts);
        driver.ram.write(DATA, &[0; 16]).unwrap();
        let buffers = [(DATA, 16, false), (DATA + 0x1000, 512, true), (DATA + 0x800, 1, true)];
        prop_assert_eq!(driver.run(0, &buffers), 513);
        prop_assert_eq!(driver.bytes(DATA + 0x800, 1), [0]);
    }

    #[test]
    fn an_entropy_device_survives(acts in proptest::collection::vec(act(), 1..60)) {
        let mut driver = Driver::new(Rng::new());
        play(&mut driver, 1, &acts);
        prop_assert_eq!(driver.run(0, &[(DATA, 32, true)]), 32);
    }

    #[test]
    fn a_balloon_survives(queue in 0..4usize, acts in proptest::collection::vec(act(), 1..60)) {
        const FEATURES: u64 = 1 << 1 | 1 << 5;
        let ram = GuestRam::new(driver::RAM, driver::RAM).unwrap();
        let (balloon, control) = Balloon::new(ram.clone());
        let mut driver = Driver::with_ram(balloon, ram);
        control.set_memory(8 << 20);
        play_on(&mut driver, FEATURES, 4, queue, &acts);
        driver.ram.write(DATA, &0x300u32.to_le_bytes()).unwrap();
        driver.ram.write(0x30_0000, &[7]).unwrap();
        prop_assert_eq!(driver.run(0, &[(DATA, 4, false)]), 0);
        prop_assert_eq!(driver.bytes(0x30_0000, 1), [0]);
    }

    #[test]
    fn a_socket_device_survives(queue in 0..3usize, acts in proptest::collection::vec(act(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut program = std::os::unix::net::UnixStream::connect(&path).unwrap();
        std::io::Write::write_all(&mut program, b"CONNECT 9\n").unwrap();
        let mut driver = Driver::new(Vsock::new(3, listener, path).unwrap());
        play_on(&mut driver, 0, 3, queue, &acts);
        // A packet from nobody is refused.
        driver.ram.write(DATA, &[0; 44]).unwrap();
        prop_assert_eq!(driver.run(1, &[(DATA, 44, false)]), 0);
        prop_assert_eq!(driver.run(0, &[(DATA, 4096, true)]), 44);
    }

    #[test]
    fn a_shared_folder_survives(
        queue in 0..2usize,
        acts in proptest::collection::vec(act(), 1..60),
        requests in proptest::collection::vec((0..50u32, 0..4u64, any::<[u8; 64]>()), 0..40),
    ) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "text").unwrap();
        let mut driver = Driver::new(Fs::new(directory.path(), "fuzz", false).unwrap());
        play_on(&mut driver, 0, 2, queue, &acts);
        let mut ask = |op: u32, node: u64, body: &[u8]| {
            let mut request = vec![0; 40];
            request[4..8].copy_from_slice(&op.to_le_bytes());
            request[16..24].copy_from_slice(&node.to_le_bytes());
            request.extend(body);
            driver.ram.write(DATA, &request).unwrap();
            let length = request.len() as u32;
            driver.run(1, &[(DATA, length, false), (DATA + 0x10000, 0x8000, true)]);
        };
        ask(26, 0, &[7, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        ask(1, 1, b"file\0");
        ask(14, 2, &[2, 0, 0, 0]);
        for (op, node, mut body) in requests {
            // Small numbers, so that files and handles are met.
            for byte in body.iter_mut().skip(1) {
                *byte = if *byte < 200 { 0 } else { *byte & 3 };
            }
            ask(op, node, &body);
        }
        prop_assert!(!driver.needs_reset());
    }

    #[test]
    fn a_channel_survives(queue in 2..6usize, acts in proptest::collection::vec(act(), 1..60)) {
        const MULTIPORT: u64 = 2;
        let (channel, input) = Channel::new("fuzz", Arc::new(Nowhere));
        let mut driver = Driver::new(channel);
        input.push(&[1; 300]);
        play_on(&mut driver, MULTIPORT, 6, queue, &acts);
        driver.ram.write(DATA, &[0, 0, 0, 0, 0, 0, 1, 0]).unwrap();
        prop_assert_eq!(driver.run(3, &[(DATA, 8, false)]), 0);
        prop_assert_eq!(driver.run(2, &[(DATA, 64, true)]), 8);
        prop_assert_eq!(driver.run(5, &[(DATA, 32, false)]), 0);
    }

    #[test]
    fn a_console_survives(acts in proptest::collection::vec(act(), 1..60)) {
        let (console, input) = Console::new(Arc::new(Nowhere));
        let mut driver = Driver::new(console);
        input.push(&[1; 300]);
        play(&mut driver, 2, &acts);
        prop_assert_eq!(driver.run(1, &[(DATA, 32, false)]), 0);
        // What was not read before the reset is still there.
        input.push(b"again");
        let length = driver.run(0, &[(DATA, 1000, true)]) as usize;
        let text = driver.bytes(DATA, length);
        prop_assert!(text.ends_with(b"again"), "{text:?}");
    }
}
