//! The network card as a guest's driver meets it.

mod driver;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use driver::wire::{TestNetwork, Wire};
use driver::{Driver, EVENT_IDX, wait_for};
use net::{Checksum, MacAddress, Offload, Rate, Segmentation};
use virtio::VirtioDevice;
use virtio::net::{Net, NetHandle, NetOptions, feature};

const DATA: u64 = 0x20_0000;
const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 7]);
const ALL: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::HOST_TSO4
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::CTRL_RX_EXTRA
    | feature::CTRL_VLAN
    | feature::CTRL_MAC_ADDR
    | feature::CTRL_GUEST_OFFLOADS
    | feature::GUEST_ANNOUNCE
    | feature::MTU
    | feature::MAC;

fn options(pairs: u16) -> NetOptions {
    NetOptions {
        mac: MAC,
        pairs,
        mtu: None,
        receive_rate: None,
        transmit_rate: None,
    }
}

fn card_with(options: NetOptions) -> (Driver, NetHandle, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    *wire.room.lock() = -1;
    let network = Arc::new(TestNetwork(wire.clone(), options.pairs));
    let (card, handle) = Net::new(network, options);
    (Driver::new(card), handle, wire)
}

fn card() -> (Driver, NetHandle, Arc<Wire>) {
    card_with(options(1))
}

fn frame(to: [u8; 6], length: usize) -> Vec<u8> {
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 9, 8, 0]].concat();
    frame.extend((14..length).map(|n| (n % 251) as u8));
    frame
}

/// A control command and its answer.
fn command(driver: &mut Driver, queue: usize, class: u8, command: u8, data: &[u8]) -> u8 {
    let bytes = [&[class, command], data].concat();
    driver.ram.write(DATA + 0x8000, &bytes).unwrap();
    driver.ram.write(DATA + 0x7000, &[77]).unwrap();
    let buffers = [
        (DATA + 0x8000, 2, false),
        (DATA + 0x8002, data.len() as u32, false),
        (DATA + 0x7000, 1, true),
    ];
    driver.run(queue, &buffers);
    driver.bytes(DATA + 0x7000, 1)[0]
}

#[test]
fn the_configuration_says_what_the_card_is() {
    let (driver, handle, _wire) = card();
    assert_eq!(driver.config16(2), 0x1041);
    let config = |at: u64, size| driver.read(driver.device, at, size);
    assert_eq!(config(0, 4), 0x0000_0002);
    assert_eq!(config(4, 2), 0x0700);
    assert_eq!([config(6, 2), config(8, 2), config(10, 2)], [1, 1, 9000]);
    assert_eq!([config(12, 4), config(16, 1)], [10_000, 1]);
    assert_eq!(driver.offered() & feature::MQ, 0);
    assert_eq!(driver.offered() & ALL, ALL);
    assert_eq!(handle.mac(), MAC);
    assert_eq!(handle.network(), "test wire");
}

#[test]
fn frames_cross_both_ways_and_are_counted() {
    let (mut driver, handle, wire) = card();
    driver.start(ALL | EVENT_IDX, 3, 16);
    let out = frame([2, 0, 0, 0, 0, 9], 500);
    driver.ram.write(DATA, &[0; 12]).unwrap();
    driver.ram.write(DATA + 12, &out).unwrap();
    assert_eq!(
        driver.run(1, &[(DATA, 12, false), (DATA + 12, 500, false)]),
        0
    );
    assert_eq!(*wire.from_guest.lock(), [(Offload::default(), out)]);
    let inward = frame(MAC.0, 700);
    driver.add(0, &[(DATA + 0x1000, 2000, true)]);
    driver.kick(0);
    wire.send(&inward);
    assert_eq!(driver.wait_used(0).1, 712);
    let mut header = [0; 12];
    header[10] = 1;
    assert_eq!(driver.bytes(DATA + 0x1000, 12), header);
    assert_eq!(driver.bytes(DATA + 0x100c, 700), inward);
    wait_for("an interrupt", || driver.sink.take(0x41) > 0);
    wait_for("one for the frame sent", || driver.sink.take(0x42) > 0);
    let stats = handle.stats();
    assert_eq!((stats.sent.packets, stats.sent.bytes), (1, 500));
    assert_eq!((stats.received.packets, stats.received.bytes), (1, 700));
}

#[test]
fn a_large_frame_fills_several_buffers_at_once() {
    let (mut driver, handle, wire) = card();
    driver.start(ALL | EVENT_IDX, 3, 16);
    let large = frame(MAC.0, 60_000);
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        segmentation: Segmentation::Tcp4 { size: 1448 },
        header_len: 66,
    };
    wire.send_with(offload, &large);
    // Too few buffers: none is used, the frame waits.
    for n in 0..5 {
        driver.add(0, &[(DATA + n * 0x4000, 0x4000, true)]);
        driver.kick(0);
        if n == 1 {
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(driver.used_index(0), 0);
        }
    }
    let lengths: Vec<u32> = (0..4).map(|_| driver.wait_used(0).1).collect();
    assert_eq!(lengths, [0x4000, 0x4000, 0x4000, 60_012 - 3 * 0x4000]);
    assert_eq!(driver.used_index(0), 4);
    let bytes = driver.bytes(DATA, 60_012);
    assert!(bytes[12..] == large);
    assert_eq!(bytes[..12], [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 4, 0]);
    assert_eq!(handle.stats().received.packets, 1);
}

#[test]
fn a_frame_that_never_fits_is_an_error_and_does_not_block() {
    let (mut driver, handle, wire) = card();
    // One buffer must hold a whole frame.
    driver.start(ALL & !feature::MRG_RXBUF, 3, 16);
    driver.add(0, &[(DATA, 1526, true)]);
    driver.kick(0);
    wire.send(&frame(MAC.0, 4000));
    wire.send(&frame(MAC.0, 1514));
    assert_eq!(driver.wait_used(0).1, 1526);
    assert_eq!(handle.stats().received.errors, 1);
}

#[test]
fn what_the_link_cannot_is_done_by_the_card() {
    let (mut driver, _handle, wire) = card();
    driver.start(ALL | feature::HOST_USO, 3, 16);
    // IPv4 and UDP, in datagrams of 1000 bytes.
    let mut out = frame([2, 0, 0, 0, 0, 9], 42 + 2500);
    out[14..24].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17]);
    let header = [1, 5, 42, 0, 0xe8, 3, 34, 0, 6, 0, 0, 0];
    driver.ram.write(DATA, &header).unwrap();
    driver.ram.write(DATA + 12, &out).unwrap();
    driver.run(1, &[(DATA, 12 + out.len() as u32, false)]);
    let sent = wire.from_guest.lock();
    let lengths: Vec<usize> = sent.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [1042, 1042, 542]);
    assert!(sent.iter().all(|(o, _)| *o == Offload::default()));
}

#[test]
fn a_full_link_holds_the_guest_back_and_loses_nothing() {
    let (mut driver, handle, wire) = card();
    driver.start(ALL | EVENT_IDX, 3, 16);
    *wire.room.lock() = 2;
    for n in 0..5u8 {
        let mut out = frame([2, 0, 0, 0, 0, 9], 100);
        out[99] = n;
        let at = DATA + u64::from(n) * 0x400;
        driver
            .ram
            .write(at, &[&[0; 12], &out[..]].concat())
            .unwrap();
        driver.add(1, &[(at, 112, false)]);
    }
    driver.kick(1);
    wait_for("two frames", || wire.from_guest.lock().len() == 2);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(wire.from_guest.lock().len(), 2);
    // A frame that waits survives a pause.
    driver.function.pause();
    *wire.room.lock() = -1;
    driver.function.resume();
    wire.ring();
    for _ in 0..5 {
        driver.wait_used(1);
    }
    let order: Vec<u8> = wire.from_guest.lock().iter().map(|(_, b)| b[99]).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    assert_eq!(handle.stats().sent.drops, 0);
}

#[test]
fn commands_set_filters_address_and_offloads() {
    let (mut driver, handle, wire) = card();
    driver.start(ALL, 3, 16);
    wait_for("abilities", || wire.guest.lock().tcp4);
    assert_eq!(command(&mut driver, 2, 0, 0, &[0]), 0, "promiscuous off");
    let new = [2, 0, 0, 0, 0, 0x44];
    assert_eq!(command(&mut driver, 2, 1, 1, &new), 0);
    assert_eq!(handle.mac(), MacAddress(new));
    assert_eq!(driver.read(driver.device, 4, 2), 0x4400);
    let group = [1, 0, 0x5e, 0, 0, 5];
    let table = [&[0; 4][..], &[1, 0, 0, 0], &group].concat();
    assert_eq!(command(&mut driver, 2, 1, 0, &table), 0);
    for n in 0..8 {
        driver.add(0, &[(DATA + n * 0x400, 0x400, true)]);
    }
    driver.kick(0);
    for to in [MAC.0, new, group, [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        wire.send(&frame(to, 60));
    }
    for expected in [new, group, [0xff; 6]] {
        let (head, length) = driver.wait_used(0);
        assert_eq!(length, 72);
        let at = DATA + u64::from(head) * 0x400 + 12;
        assert_eq!(driver.bytes(at, 6), expected);
    }
    assert_eq!(handle.stats().filtered, 2);
    let csum = feature::GUEST_CSUM.to_le_bytes();
    assert_eq!(command(&mut driver, 2, 5, 0, &csum), 0);
    wait_for("fewer abilities", || {
        let guest = *wire.guest.lock();
        guest.partial_checksum && !guest.tcp4
    });
    // Nonsense is refused, and changes nothing.
    let not_negotiated = feature::GUEST_TSO6.to_le_bytes();
    for (class, number, data) in [
        (5, 0, &not_negotiated[..]),
        (1, 1, &[1, 0, 0, 0, 0, 1]),
        (1, 1, &[2, 0]),
        (1, 0, &[0xff; 8]),
        (2, 0, &[0, 0x10]),
        (4, 0, &[1, 0]),
        (0, 9, &[1]),
        (9, 0, &[1]),
    ] {
        assert_eq!(
            command(&mut driver, 2, class, number, data),
            1,
            "{class} {number}"
        );
    }
    assert_eq!(handle.mac(), MacAddress(new));
    driver.set_status(0);
    assert_eq!(handle.mac(), MAC);
}

#[test]
fn the_link_goes_down_and_up_and_announces() {
    let (mut driver, handle, wire) = card();
    driver.start(ALL, 3, 16);
    handle.set_plugged(false);
    wait_for("an interrupt", || driver.sink.take(0x40) > 0);
    assert_eq!(driver.read(driver.device, 6, 2), 0);
    let out = frame([2, 0, 0, 0, 0, 9], 60);
    driver
        .ram
        .write(DATA, &[&[0; 12], &out[..]].concat())
        .unwrap();
    driver.run(1, &[(DATA, 72, false)]);
    assert!(wire.from_guest.lock().is_empty());
    assert_eq!(handle.stats().sent.drops, 1);
    handle.set_plugged(true);
    handle.announce();
    assert_eq!(driver.read(driver.device, 6, 2), 3);
    assert_eq!(command(&mut driver, 2, 3, 0, &[]), 0);
    assert_eq!(driver.read(driver.device, 6, 2), 1);
    // A link that fails is a carrier lost, not a device lost.
    *wire.fails.lock() = true;
    driver.run(1, &[(DATA, 72, false)]);
    wait_for("no carrier", || driver.read(driver.device, 6, 2) == 0);
    driver.run(1, &[(DATA, 72, false)]);
    assert!(!driver.needs_reset());
}

#[test]
fn several_queue_pairs_are_used_as_the_driver_says() {
    let (mut driver, _handle, wire) = card_with(options(3));
    assert_eq!(driver.read(driver.device, 8, 2), 3);
    driver.start(ALL | feature::MQ, 7, 16);
    wait_for("one pair", || *wire.active.lock() == [true, false, false]);
    assert_eq!(command(&mut driver, 6, 4, 0, &[3, 0]), 0);
    wait_for("three pairs", || *wire.active.lock() == [true; 3]);
    assert_eq!(command(&mut driver, 6, 4, 0, &[4, 0]), 1);
    assert_eq!(command(&mut driver, 6, 4, 0, &[0, 0]), 1);
    let out = frame([2, 0, 0, 0, 0, 9], 60);
    driver
        .ram
        .write(DATA, &[&[0; 12], &out[..]].concat())
        .unwrap();
    for queue in [1, 3, 5] {
        driver.run(queue, &[(DATA, 72, false)]);
    }
    assert_eq!(wire.from_guest.lock().len(), 3);
    // Without MQ the third queue is the control queue.
    driver.start(ALL, 3, 16);
    assert_eq!(command(&mut driver, 2, 0, 0, &[0]), 0);
    driver.start(ALL | feature::MQ, 7, 16);
    driver.run(5, &[(DATA, 72, false)]);
    assert_eq!(wire.from_guest.lock().len(), 4);
}

#[test]
fn a_rate_is_kept() {
    let mut options = options(1);
    let rate = Rate {
        bytes_per_second: 100_000,
        burst: 1000,
    };
    options.transmit_rate = Some(rate);
    options.receive_rate = Some(rate);
    let (mut driver, _handle, wire) = card_with(options);
    driver.start(ALL | EVENT_IDX, 3, 16);
    let out = frame([2, 0, 0, 0, 0, 9], 1000);
    driver
        .ram
        .write(DATA, &[&[0; 12], &out[..]].concat())
        .unwrap();
    let start = Instant::now();
    for _ in 0..31 {
        driver.run(1, &[(DATA, 1012, false)]);
    }
    assert!(
        start.elapsed() > Duration::from_millis(280),
        "{:?}",
        start.elapsed()
    );
    // It sleeps while it waits for the rate.
    let turns = wire.turns.load(Ordering::Relaxed);
    assert!(turns < 30_000, "{turns} turns");
    let start = Instant::now();
    for _ in 0..31 {
        wire.send(&frame(MAC.0, 1000));
    }
    for _ in 0..31 {
        driver.run(0, &[(DATA, 2000, true)]);
    }
    assert!(
        start.elapsed() > Duration::from_millis(280),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn everything_a_driver_set_survives_save_and_restore() {
    let (mut driver, handle, wire) = card();
    driver.start(ALL, 3, 16);
    command(&mut driver, 2, 0, 0, &[0]);
    command(&mut driver, 2, 1, 1, &[2, 0, 0, 0, 0, 0x55]);
    command(&mut driver, 2, 2, 0, &[7, 0]);
    let out = frame([2, 0, 0, 0, 0, 9], 60);
    driver
        .ram
        .write(DATA, &[&[0; 12], &out[..]].concat())
        .unwrap();
    driver.run(1, &[(DATA, 72, false)]);
    let state = driver.function.save();
    let text = serde_json::to_string(&state).unwrap();
    let (other, other_handle, _) = card();
    other
        .function
        .restore(&serde_json::from_str(&text).unwrap())
        .unwrap();
    assert_eq!(other_handle.mac(), handle.mac());
    assert_eq!(other_handle.stats(), handle.stats());
    let (virtio::DeviceState::Net(before), virtio::DeviceState::Net(after)) =
        (&state.device, &other.function.save().device)
    else {
        panic!("not a card");
    };
    assert_eq!(before.filter, after.filter);
    assert!(after.announce, "a restored card announces itself");
    // The one that was saved works on.
    wire.send(&frame([2, 0, 0, 0, 0, 0x55], 60));
    assert_eq!(driver.run(0, &[(DATA, 200, true)]), 72);
    // A card with fewer pairs cannot take the place of one with more.
    let newer = text.replacen("\"guest_offloads\"", "\"unknown\":0,\"guest_offloads\"", 1);
    assert!(serde_json::from_str::<virtio::VirtioPciState>(&newer).is_ok());
    let (wide, _, _) = card_with(options(2));
    assert!(wide.function.restore(&state).is_err());
}

#[test]
fn hostile_drivers_break_only_their_device() {
    let (mut driver, handle, wire) = card();
    driver.start(ALL, 3, 16);
    for (length, header) in [
        (20u32, [0; 12]),
        (100, [0, 3, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0]),
    ] {
        driver.ram.write(DATA, &header).unwrap();
        driver.run(1, &[(DATA, length, false)]);
    }
    driver.run(1, &[(DATA, 70_000, false)]);
    assert_eq!(handle.stats().sent.errors, 3);
    // A receive buffer that cannot be written.
    driver.add(0, &[(DATA, 2000, false)]);
    driver.kick(0);
    wire.send(&frame(MAC.0, 60));
    wait_for("a reset to be needed", || driver.needs_reset());
    driver.start(ALL, 3, 16);
    driver.add(2, &[(DATA, 2, false)]);
    driver.kick(2);
    wait_for("a reset to be needed", || driver.needs_reset());
    driver.start(ALL, 3, 16);
    wire.send(&frame(MAC.0, 60));
    assert_eq!(driver.run(0, &[(DATA, 200, true)]), 72);
    let (card, _) = Net::new(Arc::new(TestNetwork(wire, 1)), options(1));
    assert_eq!(card.queue_sizes().len(), 3);
}
