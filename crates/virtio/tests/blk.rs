//! The block device as a guest's driver meets it.

mod driver;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use disk::{Aio, BlockBackend, RawDisk, RawOptions, io_uring_usable};
use driver::{Driver, EVENT_IDX, INDIRECT, INDIRECT_DESC, NEXT, WRITE, descriptor, wait_for};
use memory::GuestRam;
use parking_lot::Mutex;
use tempfile::TempDir;
use virtio::blk::{Blk, BlkOptions, OnError};
use virtio::{VirtioPci, VirtioPciState};

const SIZE: u64 = 8 << 20;
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x10_1000;
const DATA: u64 = 0x20_0000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

struct Image {
    path: PathBuf,
    _dir: TempDir,
}

fn image() -> Image {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.img");
    let data: Vec<u8> = (0..SIZE).map(byte_at).collect();
    std::fs::write(&path, data).unwrap();
    Image { path, _dir: dir }
}

/// What the image holds at first.
fn byte_at(at: u64) -> u8 {
    (at / 512 * 31 + at % 512) as u8
}

fn options(image: &Image, aio: Aio) -> RawOptions {
    RawOptions {
        aio,
        serial: "holm-0001".into(),
        ..RawOptions::new(&image.path)
    }
}

fn disk(image: &Image, aio: Aio) -> Arc<dyn BlockBackend> {
    Arc::new(RawDisk::open(&options(image, aio)).unwrap())
}

fn ways() -> Vec<Aio> {
    let uring = io_uring_usable().is_ok().then_some(Aio::Uring);
    uring.into_iter().chain([Aio::Threads]).collect()
}

fn put_header(driver: &Driver, at: u64, kind: u32, sector: u64) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.ram.write(at, &header).unwrap();
}

/// One request; its status and the used length.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
    put_header(driver, HEADER, kind, sector);
    driver.ram.write(STATUS, &[0xee]).unwrap();
    let writes = matches!(kind, IN | GET_ID);
    let mut buffers = vec![(HEADER, 16, false)];
    buffers.extend(data.iter().map(|&(at, length)| (at, length, writes)));
    buffers.push((STATUS, 1, true));
    let length = driver.run(0, &buffers);
    (driver.bytes(STATUS, 1)[0], length)
}

fn put_range(driver: &Driver, sector: u64, count: u32, flags: u32) {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&count.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    driver.ram.write(DATA, &range).unwrap();
}

#[test]
fn the_function_says_what_it_is() {
    let image = image();
    let driver = Driver::new(Blk::new(disk(&image, Aio::Auto), 2, BlkOptions::default()));
    assert_eq!(driver.config16(2), 0x1042);
    assert_eq!(driver.config8(0x0b), 1, "mass storage");
    assert_eq!(driver.read(driver.device, 0, 8), SIZE / 512);
    assert_eq!(driver.read(driver.device, 20, 4), 512, "block size");
    assert_eq!(driver.read(driver.device, 34, 2), 2, "queues");
    assert_eq!(driver.read(driver.common, 0x12, 2), 2);
    assert_eq!(driver.read(driver.common, 0x18, 2), 256);
    // The same through the window in configuration space.
    let write = |at: u16, value: u32| {
        use devices::pci::PciFunction;
        driver
            .function
            .config_write(driver.window + at, &value.to_le_bytes());
    };
    write(8, driver.common.offset as u32 + 0x18);
    write(12, 2);
    assert_eq!(driver.config16(driver.window + 16), 256);
    write(8, driver.common.offset as u32 + 0x14);
    write(12, 1);
    write(16, 3);
    assert_eq!(driver.status(), 3);
    write(8, 0xffff_fff0);
    write(16, 3);
    driver.config32(driver.window + 16);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let image = image();
    let driver = Driver::new(Blk::new(disk(&image, Aio::Auto), 1, BlkOptions::default()));
    let offered = driver.offered();
    assert!(driver.negotiate(offered));
    driver.set_status(0);
    assert!(!driver.negotiate(offered | 1 << 40));
    driver.set_status(0);
    assert!(!driver.negotiate(offered & !driver::VERSION_1));
    // And then there is no DRIVER_OK either.
    driver.set_status(0xf);
    assert_eq!(driver.status(), 3);
}

#[test]
fn data_moves_both_ways_and_survives() {
    for aio in ways() {
        let image = image();
        let mut driver = Driver::new(Blk::new(disk(&image, aio), 1, BlkOptions::default()));
        let features = driver.offered();
        driver.start(features, 1, 64);
        let parts = [(DATA, 4096), (DATA + 0x3000, 512), (DATA + 0x5001, 1536)];
        assert_eq!(request(&mut driver, IN, 9, &parts), (0, 6145));
        let mut data = driver.bytes(DATA, 4096);
        data.extend(driver.bytes(DATA + 0x3000, 512));
        data.extend(driver.bytes(DATA + 0x5001, 1536));
        assert!(
            data.iter().zip(9 * 512..).all(|(&b, at)| b == byte_at(at)),
            "{aio:?}"
        );
        wait_for("an interrupt", || driver.sink.take(0x41) > 0);
        driver.ram.write(DATA, &[0x5a; 8192]).unwrap();
        assert_eq!(request(&mut driver, OUT, 100, &[(DATA, 8192)]), (0, 1));
        assert_eq!(request(&mut driver, FLUSH, 0, &[]), (0, 1));
        let mut back = [0; 8192];
        let file = File::open(&image.path).unwrap();
        file.read_exact_at(&mut back, 100 * 512).unwrap();
        assert_eq!(back, [0x5a; 8192]);
        assert_eq!(request(&mut driver, GET_ID, 0, &[(DATA, 20)]), (0, 21));
        assert_eq!(driver.bytes(DATA, 20), b"holm-0001\0\0\0\0\0\0\0\0\0\0\0");
        // Write-through, chosen in the configuration.
        driver.write(driver.device, 32, 0, 1);
        assert_eq!(driver.read(driver.device, 32, 1), 0);
        assert_eq!(request(&mut driver, OUT, 100, &[(DATA, 512)]), (0, 1));
    }
}

#[test]
fn discard_gives_space_back_and_zeroes_are_zero() {
    for aio in ways() {
        let image = image();
        let mut driver = Driver::new(Blk::new(disk(&image, aio), 1, BlkOptions::default()));
        let features = driver.offered();
        driver.start(features, 1, 64);
        let before = std::fs::metadata(&image.path).unwrap().blocks();
        put_range(&driver, 2048, 4096, 0);
        assert_eq!(request(&mut driver, DISCARD, 0, &[(DATA, 16)]), (0, 1));
        let after = std::fs::metadata(&image.path).unwrap().blocks();
        assert!(after + 4096 <= before, "{before} blocks, then {after}");
        put_range(&driver, 1, 3, 1);
        assert_eq!(request(&mut driver, WRITE_ZEROES, 0, &[(DATA, 16)]), (0, 1));
        assert_eq!(request(&mut driver, IN, 0, &[(DATA, 2560)]), (0, 2561));
        let data = driver.bytes(DATA, 2560);
        assert!(data[512..2048].iter().all(|&b| b == 0));
        assert!(
            data[2048..]
                .iter()
                .zip(2048..)
                .all(|(&b, at)| b == byte_at(at))
        );
        put_range(&driver, 0, 1, 4);
        assert_eq!(
            request(&mut driver, WRITE_ZEROES, 0, &[(DATA, 16)]).0,
            2,
            "unknown flag"
        );
        put_range(&driver, SIZE / 512, 1, 0);
        assert_eq!(
            request(&mut driver, DISCARD, 0, &[(DATA, 16)]).0,
            1,
            "beyond the end"
        );
        assert_eq!(
            request(&mut driver, DISCARD, 0, &[(DATA, 32)]).0,
            1,
            "two ranges"
        );
        assert_eq!(
            request(&mut driver, DISCARD, 0, &[(DATA, 15)]).0,
            1,
            "half a range"
        );
    }
}

#[test]
fn what_cannot_be_done_is_answered() {
    for aio in ways() {
        let image = image();
        let failures = Arc::new(Mutex::new(Vec::new()));
        let log = failures.clone();
        let options = BlkOptions {
            on_error: OnError::Report,
            on_failure: Some(Arc::new(move |failure| log.lock().push(failure))),
            ..BlkOptions::default()
        };
        let device = Blk::new(disk(&image, aio), 1, options);
        let mut driver = Driver::new(device);
        driver.start(0, 1, 64);
        let cases = [
            (IN, SIZE / 512, 512, 1),
            (IN, u64::MAX, 512, 1),
            (OUT, SIZE / 512 - 1, 1024, 1),
            (IN, 0, 100, 1),
            (99, 0, 512, 2),
        ];
        for (kind, sector, length, status) in cases {
            let answer = request(&mut driver, kind, sector, &[(DATA, length)]);
            assert_eq!(answer.0, status, "{kind} {sector} {length}");
        }
        assert!(failures.lock().is_empty());
        // The host's own failures are told, too.
        File::options()
            .write(true)
            .open(&image.path)
            .unwrap()
            .set_len(0)
            .unwrap();
        assert_eq!(request(&mut driver, IN, 8, &[(DATA, 4096)]).0, 1);
        let failures = failures.lock();
        assert_eq!(
            (failures.len(), failures[0].sector, failures[0].write),
            (1, 8, false)
        );
        assert!(!driver.needs_reset());
    }
}

#[test]
fn a_read_only_disk_says_so_and_stays_as_it_is() {
    let image = image();
    let options = RawOptions {
        read_only: true,
        ..options(&image, Aio::Auto)
    };
    let disk = Arc::new(RawDisk::open(&options).unwrap());
    let mut driver = Driver::new(Blk::new(disk, 1, BlkOptions::default()));
    assert_ne!(driver.offered() & 1 << 5, 0);
    driver.start(0, 1, 64);
    assert_eq!(request(&mut driver, OUT, 0, &[(DATA, 512)]).0, 1);
    assert_eq!(request(&mut driver, IN, 0, &[(DATA, 512)]).0, 0);
    assert_eq!(std::fs::read(&image.path).unwrap()[5], byte_at(5));
}

/// Publishes `count` reads of 4 KiB; they use 3 descriptors each.
fn many_reads(driver: &mut Driver, count: u64) {
    for n in 0..count {
        put_header(driver, HEADER + n * 16, IN, n * 8);
        let buffers = [
            (HEADER + n * 16, 16, false),
            (DATA + n * 4096, 4096, true),
            (STATUS + n, 1, true),
        ];
        driver.add(0, &buffers);
    }
}

fn check_reads(driver: &Driver, count: u64) {
    for n in 0..count {
        assert_eq!(driver.bytes(STATUS + n, 1), [0], "request {n}");
        let data = driver.bytes(DATA + n * 4096, 4096);
        assert!(
            data.iter().zip(n * 4096..).all(|(&b, at)| b == byte_at(at)),
            "request {n}"
        );
    }
}

#[test]
fn a_batch_is_interrupted_for_once() {
    for aio in ways() {
        let image = image();
        let mut driver = Driver::new(Blk::new(disk(&image, aio), 1, BlkOptions::default()));
        driver.start(EVENT_IDX, 1, 256);
        many_reads(&mut driver, 80);
        driver.set_used_event(0, 79);
        driver.kick(0);
        let mut heads: Vec<u32> = (0..80).map(|_| driver.wait_used(0).0).collect();
        heads.sort_unstable();
        assert!(heads.iter().copied().eq((0..80).map(|n| n * 3)));
        check_reads(&driver, 80);
        wait_for("the interrupt", || driver.sink.take(0x41) == 1);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(driver.sink.take(0x41), 0);
        // Without EVENT_IDX, VIRTQ_AVAIL_F_NO_INTERRUPT.
        driver.start(0, 1, 256);
        driver.set_available(driver.queues[0].available, 1);
        request(&mut driver, IN, 0, &[(DATA, 512)]);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(driver.sink.take(0x41), 0);
    }
}

#[test]
fn notifications_are_not_lost_over_many_rounds() {
    for aio in ways() {
        let image = image();
        let mut driver = Driver::new(Blk::new(disk(&image, aio), 1, BlkOptions::default()));
        driver.start(EVENT_IDX | INDIRECT_DESC, 1, 4);
        for n in 0..3000u64 {
            // Kicks only when the device asks, as Linux does.
            put_header(&driver, HEADER, IN, n % 100);
            let ring = driver.queues[0].clone();
            let event_at = ring.used + 4 + u64::from(ring.size) * 8;
            driver.add(
                0,
                &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)],
            );
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            let event = u16::from_le_bytes(driver.bytes(event_at, 2).try_into().unwrap());
            if event == ring.published {
                driver.kick(0);
            }
            driver.wait_used(0);
        }
    }
}

#[test]
fn all_queues_are_served() {
    let image = image();
    let mut driver = Driver::new(Blk::new(disk(&image, Aio::Auto), 4, BlkOptions::default()));
    driver.start(EVENT_IDX, 4, 16);
    for queue in 0..4 {
        let at = DATA + queue * 4096;
        put_header(&driver, HEADER, IN, queue);
        let buffers = [(HEADER, 16, false), (at, 512, true), (STATUS, 1, true)];
        assert_eq!(driver.run(queue as usize, &buffers), 513);
        assert_eq!(driver.bytes(at, 1), [byte_at(queue * 512)]);
        wait_for("its vector", || driver.sink.take(0x41 + queue as u32) > 0);
    }
}

#[test]
fn indirect_tables_work_and_may_be_longer_than_the_queue() {
    let image = image();
    let mut driver = Driver::new(Blk::new(disk(&image, Aio::Auto), 1, BlkOptions::default()));
    driver.start(INDIRECT_DESC | EVENT_IDX, 1, 8);
    let table = 0x30_0000;
    put_header(&driver, HEADER, IN, 0);
    let mut entries = vec![(HEADER, 16, NEXT, 1)];
    entries.extend((0..40u16).map(|n| (DATA + u64::from(n) * 1024, 512, NEXT | WRITE, n + 2)));
    entries.push((STATUS, 1, WRITE, 0));
    for (n, &entry) in (0u64..).zip(&entries) {
        driver
            .ram
            .write(table + n * 16, &descriptor(entry))
            .unwrap();
    }
    driver.put_descriptor(0, 5, (table, entries.len() as u32 * 16, INDIRECT, 0));
    driver.publish(0, 5);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (5, 40 * 512 + 1));
    assert_eq!(driver.bytes(DATA + 39 * 1024, 1), [byte_at(39 * 512)]);
}

/// Every way to break the rules, and what it does to a fresh device.
#[test]
fn a_hostile_driver_breaks_its_device_and_nothing_else() {
    type Attack = fn(&mut Driver);
    let attacks: [(&str, Attack); 12] = [
        ("a chain that is a loop", |d| {
            d.put_descriptor(0, 0, (HEADER, 16, NEXT, 1));
            d.put_descriptor(0, 1, (HEADER, 16, NEXT, 0));
            d.publish(0, 0);
        }),
        ("a head outside the table", |d| d.publish(0, 0x8000)),
        ("a next outside the table", |d| {
            d.put_descriptor(0, 0, (HEADER, 16, NEXT, 999));
            d.publish(0, 0);
        }),
        ("a buffer outside RAM", |d| {
            d.add(
                0,
                &[(HEADER, 16, false), (1 << 40, 512, true), (STATUS, 1, true)],
            );
        }),
        ("a buffer that wraps", |d| {
            d.add(
                0,
                &[
                    (HEADER, 16, false),
                    (u64::MAX - 10, 512, true),
                    (STATUS, 1, true),
                ],
            );
        }),
        ("a buffer of 4 GiB", |d| {
            d.add(
                0,
                &[
                    (HEADER, 16, false),
                    (DATA, u32::MAX, true),
                    (STATUS, 1, true),
                ],
            );
        }),
        ("no status", |d| {
            d.add(0, &[(HEADER, 16, false)]);
        }),
        ("a short header", |d| {
            d.add(0, &[(HEADER, 15, false), (STATUS, 1, true)]);
        }),
        ("more than the queue holds", |d| {
            let at = d.queues[0].available + 2;
            d.set_available(at, 5000);
        }),
        ("an indirect table outside RAM", |d| {
            d.put_descriptor(0, 0, (1 << 50, 64, INDIRECT, 0));
            d.publish(0, 0);
        }),
        ("an indirect table in an indirect table", |d| {
            let table = descriptor((0x30_0000, 16, INDIRECT, 0));
            d.ram.write(0x30_0000, &table).unwrap();
            d.put_descriptor(0, 0, (0x30_0000, 16, INDIRECT, 0));
            d.publish(0, 0);
        }),
        ("a readable buffer behind a writable one", |d| {
            d.add(0, &[(STATUS, 1, true), (HEADER, 16, false)]);
        }),
    ];
    for aio in ways() {
        let image = image();
        let mut driver = Driver::new(Blk::new(disk(&image, aio), 1, BlkOptions::default()));
        for (what, attack) in attacks {
            driver.start(INDIRECT_DESC, 1, 64);
            put_header(&driver, HEADER, IN, 0);
            attack(&mut driver);
            driver.kick(0);
            wait_for(what, || driver.needs_reset());
            wait_for(what, || driver.sink.take(0x40) == 1);
            driver.kick(0);
            driver.start(EVENT_IDX, 1, 64);
            assert_eq!(
                request(&mut driver, IN, 3, &[(DATA, 512)]),
                (0, 513),
                "after {what}"
            );
        }
    }
}

#[test]
fn rings_that_are_not_in_ram_are_refused() {
    let image = image();
    let mut driver = Driver::new(Blk::new(disk(&image, Aio::Auto), 1, BlkOptions::default()));
    let good = 0x10000;
    let bad = [
        (1 << 45, good, good),
        (good, 3, good),
        (good, good, u64::MAX - 3),
        (good, 0, good),
    ];
    for (descriptors, available, used) in bad {
        driver.set_status(0);
        assert!(driver.negotiate(driver::VERSION_1));
        driver.enable_queue(0, 8);
        driver.set_status(0);
        driver.queues.clear();
        assert!(driver.negotiate(driver::VERSION_1));
        driver.set_ring(&driver::Ring {
            index: 0,
            size: 8,
            descriptors,
            available,
            used,
            next_descriptor: 0,
            published: 0,
            seen: 0,
        });
        driver.set_status(0xf);
        assert!(
            driver.needs_reset(),
            "{descriptors:#x} {available:#x} {used:#x}"
        );
    }
    // A driver that enables no queue at all.
    driver.set_status(0);
    assert!(driver.negotiate(driver::VERSION_1));
    driver.set_status(0xf);
    assert!(driver.needs_reset());
    driver.start(0, 1, 8);
    assert_eq!(request(&mut driver, IN, 0, &[(DATA, 512)]).0, 0);
}

#[test]
fn a_reset_in_flight_leaves_memory_at_rest() {
    for aio in ways() {
        let image = image();
        let mut driver = Driver::new(Blk::new(disk(&image, aio), 1, BlkOptions::default()));
        for round in 0..20 {
            driver.start(EVENT_IDX, 1, 256);
            many_reads(&mut driver, 80);
            driver.kick(0);
            std::thread::sleep(std::time::Duration::from_micros(round * 30));
            driver.set_status(0);
            driver.ram.write(0x10000, &[0x77; 0x10000]).unwrap();
            driver.ram.write(HEADER, &[0x77; 0x20_0000]).unwrap();
            driver.kick_raw();
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert!(driver.bytes(0x10000, 0x10000).iter().all(|&b| b == 0x77));
            assert!(driver.bytes(HEADER, 0x20_0000).iter().all(|&b| b == 0x77));
        }
        driver.start(EVENT_IDX, 1, 256);
        assert_eq!(request(&mut driver, IN, 0, &[(DATA, 512)]).0, 0);
    }
}

impl Driver {
    /// A doorbell of a device that is not ready.
    fn kick_raw(&self) {
        self.write(self.notify, 0, 0, 2);
        self.write(self.notify, 0xffc, 0, 2);
    }
}

#[test]
fn a_machine_saved_in_the_middle_goes_on_elsewhere() {
    for aio in ways() {
        let image = image();
        let mut driver = Driver::new(Blk::new(disk(&image, aio), 1, BlkOptions::default()));
        driver.start(EVENT_IDX | INDIRECT_DESC, 1, 256);
        driver.write(driver.device, 32, 0, 1);
        request(&mut driver, IN, 1, &[(DATA, 512)]);
        many_reads(&mut driver, 60);
        driver.kick(0);
        assert!(driver.function.pause());
        let half = driver.used_index(0);
        // A notification that comes while paused must not be lost.
        driver.kick(0);
        let state = driver.function.save();
        let text = serde_json::to_string(&state).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(driver.used_index(0), half, "the device is at rest");
        // Another process: its own RAM with the same contents, a new device.
        let ram = GuestRam::new(driver::RAM, driver::RAM).unwrap();
        ram.write(0, &driver.bytes(0, driver::RAM as usize))
            .unwrap();
        let queues = driver.queues.clone();
        drop(driver);
        let mut driver =
            Driver::with_ram(Blk::new(disk(&image, aio), 1, BlkOptions::default()), ram);
        driver.queues = queues;
        let state: VirtioPciState = serde_json::from_str(&text).unwrap();
        driver.function.restore(&state).unwrap();
        assert_eq!(driver.function.save(), state);
        driver.function.resume();
        assert_eq!(driver.status(), 0xf);
        assert_eq!(driver.read(driver.device, 32, 1), 0);
        for _ in 0..60 {
            driver.wait_used(0);
        }
        check_reads(&driver, 60);
        assert_eq!(request(&mut driver, IN, 7, &[(DATA, 512)]), (0, 513));
        assert_eq!(driver.used_index(0), 62);
        driver.set_used_event(0, 62);
        request(&mut driver, IN, 7, &[(DATA, 512)]);
        wait_for("an interrupt by the restored vector", || {
            driver.sink.take(0x41) > 0
        });
    }
}

#[test]
fn a_wrong_state_is_refused_by_name() {
    let image = image();
    let driver = Driver::new(Blk::new(disk(&image, Aio::Auto), 1, BlkOptions::default()));
    let state = driver.function.save();
    let text = serde_json::to_string(&state).unwrap();
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    let error = serde_json::from_str::<VirtioPciState>(&newer).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    let rng = Driver::new(virtio::rng::Rng::new());
    let error = rng.function.restore(&state).unwrap_err().to_string();
    assert!(error.contains("virtio-rng"), "{error}");
    let mut other = state.clone();
    if let virtio::DeviceState::Blk(blk) = &mut other.device {
        blk.sectors += 1;
    }
    let error = driver.function.restore(&other).unwrap_err().to_string();
    assert!(error.contains("sectors"), "{error}");
}

#[test]
fn the_interrupt_pin_works_without_msix() {
    use devices::irq::LineDriver;
    use devices::pci::{PciFunction, PciRoot};
    use devices::{MmioBus, PioBus};

    #[derive(Default)]
    struct Lines(Mutex<Vec<(u8, bool)>>);
    impl LineDriver for Lines {
        fn change(&self, gsi: u8, asserted: bool) {
            self.0.lock().push((gsi, asserted));
        }
    }
    let image = image();
    let ram = GuestRam::new(driver::RAM, driver::RAM).unwrap();
    let sink = Arc::new(driver::Sink::default());
    let device = Box::new(Blk::new(disk(&image, Aio::Auto), 1, BlkOptions::default()));
    let function = VirtioPci::new(device, ram.clone(), sink.clone()).unwrap();
    let (mmio, pio) = (Arc::new(MmioBus::new()), Arc::new(PioBus::new()));
    let lines = Arc::new(Lines::default());
    let root = PciRoot::new(&mmio, &pio, lines.clone()).unwrap();
    root.attach(3, function.clone()).unwrap();
    let bar = function.config().mapped_bars()[0].address;
    let mut driver = Driver::attach(function, ram, sink);
    assert!(driver.negotiate(driver::VERSION_1));
    driver.enable_queue(0, 16);
    driver.set_status(0xf);
    assert_eq!(request(&mut driver, IN, 0, &[(DATA, 512)]).0, 0);
    wait_for("the line", || *lines.0.lock() == [(19, true)]);
    // Reading ISR over the bus, as the guest does, releases it.
    let mut isr = [0];
    mmio.read(bar + driver.isr.offset, &mut isr);
    assert_eq!(isr, [1]);
    assert_eq!(*lines.0.lock(), [(19, true), (19, false)]);
    mmio.read(bar + driver.isr.offset, &mut isr);
    assert_eq!(isr, [0]);
}
