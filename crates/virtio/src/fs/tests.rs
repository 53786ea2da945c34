//! A folder that does not answer, as the dead server of a network file system:
//! whatever is done with the machine does not wait for it.

#[path = "../../tests/driver/mod.rs"]
mod driver;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use devices::Version;
use rustix::io::Errno;

use super::wire::{Reader, op};
use super::{Folder, Fs, FsState};
use driver::{Driver, EVENT_IDX};

const REQUEST: u64 = 0x20_0000;
const ANSWER: u64 = 0x40_0000;
/// Far more than anything takes that does not wait for the folder.
const SOON: Duration = Duration::from_secs(30);

/// Reads wait until they are let go; whatever is asked is written down.
struct Hanging {
    asked: Sender<u32>,
    go: Receiver<()>,
}

impl Folder for Hanging {
    fn request(&mut self, code: u32, _: u64, _: Reader<'_>, _: usize) -> Result<Vec<u8>, Errno> {
        // A test that has ended does not look.
        let _ = self.asked.send(code);
        if code == op::READ {
            let _ = self.go.recv();
        }
        Ok(b"contents".to_vec())
    }

    fn forget(&mut self, _: u32, _: u64, _: Reader<'_>) {}

    fn forget_all(&mut self) {}

    fn save(&self) -> FsState {
        FsState {
            version: Version::current(),
            nodes: vec![(7, "file".into(), 1)],
            handles: Vec::new(),
        }
    }

    fn restore(&mut self, _: &FsState) {}
}

struct Guest {
    driver: Driver,
    asked: Receiver<u32>,
    go: Sender<()>,
}

impl Guest {
    fn new() -> Self {
        let (asked, was_asked) = channel();
        let (go, let_go) = channel();
        let folder = Hanging { asked, go: let_go };
        let device = Fs::with(Box::new(folder), "tag").unwrap();
        let mut driver = Driver::new(device);
        driver.start(EVENT_IDX, 2, 64);
        Self {
            driver,
            asked: was_asked,
            go,
        }
    }

    /// Asks, and does not wait for the answer.
    fn ask(&mut self, code: u32, unique: u64) {
        let at = REQUEST + unique * 4096;
        let mut bytes = 40u32.to_le_bytes().to_vec();
        bytes.extend(code.to_le_bytes());
        bytes.extend(unique.to_le_bytes());
        bytes.resize(40, 0);
        self.driver.ram.write(at, &bytes).unwrap();
        let buffers = [(at, 40, false), (ANSWER + unique * 4096, 4096, true)];
        self.driver.add(1, &buffers);
        self.driver.kick(1);
    }

    /// The number of the request that is answered next.
    fn answered(&mut self) -> u64 {
        let (_, length) = self.driver.wait_used(1);
        assert_eq!(length, 24);
        let next = self.driver.queues[1].seen - 1;
        let answer = self.driver.bytes(ANSWER + u64::from(next) * 4096, 24);
        assert_eq!(&answer[16..], b"contents");
        u64::from_le_bytes(answer[8..16].try_into().unwrap())
    }

    /// A read that hangs.
    fn hang(&mut self, unique: u64) {
        self.ask(op::READ, unique);
        while self.asked.recv_timeout(SOON).unwrap() != op::READ {}
    }
}

#[test]
fn a_machine_pauses_and_the_answer_comes_later() {
    let mut guest = Guest::new();
    guest.hang(0);
    guest.ask(op::GETATTR, 1);
    let start = Instant::now();
    for _ in 0..2 {
        assert!(guest.driver.function.pause());
        guest.driver.function.resume();
    }
    guest.driver.function.pause();
    assert!(start.elapsed() < SOON);
    // It is done meanwhile, and the guest hears of it when it runs.
    guest.go.send(()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.driver.used_index(1), 0);
    guest.driver.function.resume();
    assert_eq!((guest.answered(), guest.answered()), (0, 1));
    // Once, and not again.
    assert_eq!(guest.asked.recv_timeout(SOON), Ok(op::GETATTR));
    guest.ask(op::GETATTR, 2);
    assert_eq!(guest.answered(), 2);
    assert_eq!(guest.asked.try_recv(), Ok(op::GETATTR));
    assert!(!guest.driver.needs_reset());
}

#[test]
fn a_snapshot_has_the_request_that_hangs() {
    let mut guest = Guest::new();
    guest.hang(0);
    guest.driver.function.pause();
    let state = guest.driver.function.save();
    let memory = guest.driver.bytes(0, driver::RAM as usize);
    let mut next = Guest::new();
    next.driver.function.pause();
    next.driver.ram.write(0, &memory).unwrap();
    next.driver.queues.clone_from(&guest.driver.queues);
    next.driver.function.restore(&state).unwrap();
    next.go.send(()).unwrap();
    next.driver.function.resume();
    assert_eq!(next.answered(), 0);
    assert_eq!(next.asked.try_recv(), Ok(op::READ));
}

#[test]
fn a_reset_and_the_end_do_not_wait() {
    let mut guest = Guest::new();
    guest.hang(0);
    guest.driver.start(EVENT_IDX, 2, 64);
    guest.ask(op::GETATTR, 1);
    guest.go.send(()).unwrap();
    // Only what was asked since is answered.
    assert_eq!(guest.driver.wait_used(1), (0, 24));
    assert_eq!(guest.driver.used_index(1), 1);
    let answer = guest.driver.bytes(ANSWER + 4096 + 8, 8);
    assert_eq!(answer, 1u64.to_le_bytes());
    guest.hang(2);
    let start = Instant::now();
    let Guest { driver, go, .. } = guest;
    drop(driver);
    assert!(start.elapsed() < SOON);
    drop(go);
}
