//! The block device on a host whose disk fails, and under limits.

mod driver;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use disk::{
    BlockBackend, BlockError, BlockInfo, BlockQueue, Completion, DiskError, Op, RawDisk,
    RawOptions, Waker,
};
use driver::{Driver, EVENT_IDX, wait_for};
use memory::GuestRam;
use parking_lot::Mutex;
use tempfile::TempDir;
use virtio::blk::{Blk, BlkControl, BlkOptions, IoFailure, Limit, Limits, OnError};

const SIZE: u64 = 4 << 20;
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x10_1000;
const DATA: u64 = 0x20_0000;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const NO_SPACE: i32 = 28;
const IO_ERROR: i32 = 5;

/// A raw disk whose operations fail with the error numbers that are set.
struct Failing {
    disk: RawDisk,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    reads: AtomicI32,
    writes: AtomicI32,
    flushes: AtomicI32,
}

struct FailingQueue {
    queue: Box<dyn BlockQueue>,
    faults: Arc<Faults>,
    failed: Vec<Completion>,
}

impl BlockBackend for Failing {
    fn info(&self) -> &BlockInfo {
        self.disk.info()
    }
    fn sectors(&self) -> u64 {
        self.disk.sectors()
    }
    fn grow(&self, sectors: u64) -> Result<(), DiskError> {
        self.disk.grow(sectors)
    }
    fn open_queue(&self, ram: Arc<GuestRam>) -> Result<Box<dyn BlockQueue>, DiskError> {
        Ok(Box::new(FailingQueue {
            queue: self.disk.open_queue(ram)?,
            faults: self.faults.clone(),
            failed: Vec::new(),
        }))
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, out)
    }
    fn describe(&self) -> String {
        "failing".into()
    }
}

impl BlockQueue for FailingQueue {
    fn submit(&mut self, tag: u64, op: Op<'_>) -> Result<(), BlockError> {
        let fault = match op {
            Op::Read { .. } => &self.faults.reads,
            Op::Flush => &self.faults.flushes,
            _ => &self.faults.writes,
        };
        match fault.load(Ordering::SeqCst) {
            0 => self.queue.submit(tag, op),
            errno => {
                let result = Err(BlockError::Host(errno));
                self.failed.push(Completion { tag, result });
                Ok(())
            }
        }
    }
    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        out.append(&mut self.failed);
        self.queue.poll(out)
    }
    fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        match self.failed.is_empty() {
            true => self.queue.wait(out),
            false => self.poll(out),
        }
    }
    fn in_flight(&self) -> usize {
        self.queue.in_flight() + self.failed.len()
    }
    fn waker(&self) -> Arc<Waker> {
        self.queue.waker()
    }
}

struct Bench {
    driver: Driver,
    control: BlkControl,
    faults: Arc<Faults>,
    told: Arc<Mutex<Vec<IoFailure>>>,
    path: PathBuf,
    _directory: TempDir,
}

fn bench(queues: u16, mut options: BlkOptions) -> Bench {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let faults = Arc::new(Faults::default());
    let disk = Failing {
        disk: RawDisk::open(&RawOptions::new(&path)).unwrap(),
        faults: faults.clone(),
    };
    let told = Arc::new(Mutex::new(Vec::new()));
    let list = told.clone();
    options.on_failure = Some(Arc::new(move |failure| list.lock().push(failure)));
    let device = Blk::new(Arc::new(disk), queues, options);
    let control = device.control();
    let mut driver = Driver::new(device);
    driver.start(EVENT_IDX, queues, 64);
    Bench {
        driver,
        control,
        faults,
        told,
        path,
        _directory: directory,
    }
}

impl Bench {
    /// Publishes request `n` of 4 KiB on a queue.
    fn publish(&mut self, queue: usize, n: u64, kind: u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&(n * 8).to_le_bytes());
        let d = &mut self.driver;
        d.ram.write(HEADER + n * 16, &header).unwrap();
        d.ram.write(STATUS + n, &[0xee]).unwrap();
        let mut buffers = vec![(HEADER + n * 16, 16, false)];
        if kind != FLUSH {
            buffers.push((DATA + n * 4096, 4096, kind == IN));
        }
        buffers.push((STATUS + n, 1, true));
        d.add(queue, &buffers);
        d.kick(queue);
    }

    fn fill(&self, n: u64) {
        let data = vec![n as u8 + 1; 4096];
        self.driver.ram.write(DATA + n * 4096, &data).unwrap();
    }

    fn status(&self, n: u64) -> u8 {
        self.driver.bytes(STATUS + n, 1)[0]
    }

    /// Block `n` of the host's file.
    fn on_disk(&self, n: u64) -> u8 {
        let mut block = [0; 4096];
        let file = File::open(&self.path).unwrap();
        file.read_exact_at(&mut block, n * 4096).unwrap();
        assert!(block.iter().all(|b| *b == block[0]), "block {n} is torn");
        block[0]
    }
}

#[test]
fn writes_that_find_no_space_wait_and_are_done_after_a_resume() {
    for (errno, queues) in [(NO_SPACE, 1), (NO_SPACE, 3), (IO_ERROR, 3)] {
        let mut b = bench(queues, BlkOptions::default());
        b.faults.writes.store(errno, Ordering::SeqCst);
        for n in 0..12 {
            b.fill(n);
            b.publish(n as usize % usize::from(queues), n, OUT);
        }
        wait_for("the failures", || b.control.stats().errors == 12);
        assert!((0..12).all(|n| b.status(n) == 0xee), "the guest was told");
        // Reads go on meanwhile.
        b.publish(0, 20, IN);
        b.driver.wait_used(0);
        assert_eq!(b.status(20), 0);
        let told = b.told.lock().clone();
        assert_eq!(told.len(), 1, "the first failure only: {told:?}");
        assert!(told[0].held && told[0].write && told[0].error == BlockError::Host(errno));
        assert_eq!(b.control.failure(), Some(told[0]));
        // Saved and restored while they wait, and tried again in vain.
        b.driver.function.pause();
        let state = b.driver.function.save();
        let text = serde_json::to_string(&state).unwrap();
        b.driver
            .function
            .restore(&serde_json::from_str(&text).unwrap())
            .unwrap();
        b.driver.function.resume();
        wait_for("the failures again", || b.control.stats().errors == 24);
        assert!((0..12).all(|n| b.status(n) == 0xee));
        b.driver.function.pause();
        b.faults.writes.store(0, Ordering::SeqCst);
        b.driver.function.resume();
        assert_eq!(b.control.failure(), None);
        for n in 0..12 {
            b.driver.wait_used(n as usize % usize::from(queues));
        }
        for n in 0..12 {
            assert_eq!((b.status(n), b.on_disk(n)), (0, n as u8 + 1), "block {n}");
        }
        assert!(!b.driver.needs_reset());
        assert_eq!(b.control.stats().writes, 12);
    }
}

#[test]
fn reads_wait_too_and_a_reset_of_the_device_forgets_them() {
    let mut b = bench(1, BlkOptions::default());
    b.faults.reads.store(IO_ERROR, Ordering::SeqCst);
    b.publish(0, 3, IN);
    wait_for("the failure", || b.control.failure().is_some());
    assert_eq!(b.status(3), 0xee);
    b.driver.start(EVENT_IDX, 1, 64);
    b.faults.reads.store(0, Ordering::SeqCst);
    b.publish(0, 4, IN);
    b.driver.wait_used(0);
    assert_eq!((b.status(3), b.status(4)), (0xee, 0));
    assert_eq!(b.control.failure(), None);
}

#[test]
fn a_flush_is_tried_again_only_where_that_is_no_lie() {
    let mut b = bench(1, BlkOptions::default());
    b.faults.flushes.store(IO_ERROR, Ordering::SeqCst);
    b.publish(0, 0, FLUSH);
    b.driver.wait_used(0);
    assert_eq!(b.status(0), 1, "the guest must hear of it");
    b.faults.flushes.store(NO_SPACE, Ordering::SeqCst);
    b.publish(0, 1, FLUSH);
    wait_for("the failure", || b.control.stats().errors == 2);
    assert_eq!(b.status(1), 0xee);
    b.driver.function.pause();
    b.faults.flushes.store(0, Ordering::SeqCst);
    b.driver.function.resume();
    b.driver.wait_used(0);
    assert_eq!(b.status(1), 0);
}

#[test]
fn errors_are_reported_to_the_guest_where_that_is_wanted() {
    let options = BlkOptions {
        on_error: OnError::Report,
        ..BlkOptions::default()
    };
    let mut b = bench(1, options);
    b.faults.writes.store(NO_SPACE, Ordering::SeqCst);
    b.publish(0, 0, OUT);
    b.driver.wait_used(0);
    assert_eq!(b.status(0), 1);
    assert!(!b.told.lock()[0].held);
}

#[test]
fn a_hostile_state_of_waiting_requests_harms_nothing() {
    let mut b = bench(2, BlkOptions::default());
    b.faults.writes.store(NO_SPACE, Ordering::SeqCst);
    b.publish(0, 0, OUT);
    wait_for("the failure", || b.control.failure().is_some());
    b.driver.function.pause();
    let state = b.driver.function.save();
    type Change = fn(&mut virtio::blk::HeldRequest);
    let changes: [(Change, bool); 6] = [
        (|h| h.queue = 2, false),
        (|h| h.head = 0xffff, true),
        (|h| h.status = u64::MAX, true),
        (|h| h.data = vec![(u64::MAX - 5, u32::MAX)], true),
        (|h| h.data = vec![(0, 1); 5000], true),
        (|h| h.sector = u64::MAX, true),
    ];
    for (change, taken) in changes {
        let mut bad = state.clone();
        if let virtio::DeviceState::Blk(blk) = &mut bad.device {
            change(&mut blk.held[0]);
        }
        assert_eq!(b.driver.function.restore(&bad).is_ok(), taken);
        b.driver.function.resume();
        b.driver.function.pause();
    }
    b.faults.writes.store(0, Ordering::SeqCst);
    b.driver.function.resume();
    b.driver.start(EVENT_IDX, 2, 64);
    b.publish(1, 5, IN);
    b.driver.wait_used(1);
    assert_eq!(b.status(5), 0);
}

#[test]
fn limits_hold_on_average_over_all_queues_and_a_burst_goes_at_once() {
    let options = BlkOptions {
        limits: Limits {
            operations: Some(Limit {
                per_second: 100,
                burst: 10,
            }),
            bytes: None,
        },
        ..BlkOptions::default()
    };
    let mut b = bench(2, options);
    let start = Instant::now();
    for n in 0..40 {
        b.publish(n as usize % 2, n, IN);
    }
    for n in 0..40 {
        b.driver.wait_used(n % 2);
    }
    // 30 operations beyond the burst, at 100 each second.
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_millis(280), "{elapsed:?}");
    assert!((0..40).all(|n| b.status(n) == 0));
    assert!(b.control.stats().throttled > 0);
    // A device with requests that wait for their turn stops at once, and
    // nothing is lost.
    for n in 0..20 {
        b.publish(0, n, IN);
    }
    b.driver.function.pause();
    let state = b.driver.function.save();
    b.driver.function.restore(&state).unwrap();
    b.driver.function.resume();
    for _ in 0..20 {
        b.driver.wait_used(0);
    }
}

#[test]
fn bytes_are_limited_and_a_request_larger_than_the_burst_goes() {
    let options = BlkOptions {
        limits: Limits {
            operations: None,
            bytes: Some(Limit {
                per_second: 100 * 1024,
                burst: 1024,
            }),
        },
        ..BlkOptions::default()
    };
    let mut b = bench(1, options);
    let start = Instant::now();
    for n in 0..6 {
        b.fill(n);
        b.publish(0, n, OUT);
        b.driver.wait_used(0);
    }
    // The sixth waits for what the first five were ahead of the limit.
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_millis(180), "{elapsed:?}");
    assert!((0..6).all(|n| b.on_disk(n) == n as u8 + 1));
}

#[test]
fn a_disk_grows_while_it_is_used() {
    let mut b = bench(1, BlkOptions::default());
    let capacity = |b: &Bench| b.driver.read(b.driver.device, 0, 8);
    assert_eq!(capacity(&b), SIZE / 512);
    let generation = b.driver.read(b.driver.common, 0x15, 1);
    assert!(b.control.grow(SIZE / 512 - 1).is_err(), "it became smaller");
    b.control.grow(SIZE / 256).unwrap();
    assert_eq!(capacity(&b), SIZE / 256);
    wait_for("the interrupt of the configuration", || {
        b.driver.sink.take(0x40) > 0
    });
    assert_ne!(b.driver.read(b.driver.common, 0x15, 1), generation);
    // Beyond the old end, with the queue that was open before.
    let last = SIZE / 4096 + 3;
    let mut header = [0; 16];
    header[..4].copy_from_slice(&OUT.to_le_bytes());
    header[8..].copy_from_slice(&(last * 8).to_le_bytes());
    b.driver.ram.write(HEADER, &header).unwrap();
    b.fill(0);
    let buffers = [(HEADER, 16, false), (DATA, 4096, false), (STATUS, 1, true)];
    b.driver.run(0, &buffers);
    assert_eq!((b.status(0), b.on_disk(last)), (0, 1));
    // While the device stands: told when it goes on.
    b.driver.function.pause();
    b.control.grow(SIZE / 128).unwrap();
    assert_eq!(b.driver.sink.take(0x40), 0);
    b.driver.function.resume();
    wait_for("the interrupt", || b.driver.sink.take(0x40) > 0);
}
