//! The socket device as a guest's driver meets it.

mod driver;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use driver::{Driver, EVENT_IDX};
use virtio::vsock::Vsock;

const DATA: u64 = 0x20_0000;
const BUFFERS: u64 = 0x40_0000;
const CID: u32 = 7;

struct Guest {
    driver: Driver,
    directory: tempfile::TempDir,
    next: u64,
}

/// `op`, ports of host and guest, flags, and data of a packet.
type Packet = (u16, u32, u32, u32, Vec<u8>);

impl Guest {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut driver = Driver::new(Vsock::new(CID, listener, path).unwrap());
        assert_eq!(driver.read(driver.device, 0, 8), u64::from(CID));
        driver.start(EVENT_IDX, 3, 64);
        let mut guest = Self {
            driver,
            directory,
            next: 0,
        };
        for _ in 0..8 {
            guest.offer();
        }
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Gives the device a buffer for a packet.
    fn offer(&mut self) {
        let at = BUFFERS + self.next % 64 * 0x2000;
        self.next += 1;
        self.driver.add(0, &[(at, 0x2000, true)]);
        self.driver.kick(0);
    }

    fn send(
        &mut self,
        op: u16,
        (host, guest): (u32, u32),
        flags: u32,
        credit: (u32, u32),
        data: &[u8],
    ) {
        let mut bytes = Vec::new();
        bytes.extend(u64::from(CID).to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(guest.to_le_bytes());
        bytes.extend(host.to_le_bytes());
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(op.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(credit.0.to_le_bytes());
        bytes.extend(credit.1.to_le_bytes());
        bytes.extend(data);
        self.driver.ram.write(DATA, &bytes).unwrap();
        self.driver.run(1, &[(DATA, bytes.len() as u32, false)]);
    }

    fn receive(&mut self) -> Packet {
        let (head, length) = self.driver.wait_used(0);
        let address = self.driver.queues[0].descriptors + u64::from(head) * 16;
        let at = u64::from_le_bytes(self.driver.bytes(address, 8).try_into().unwrap());
        let bytes = self.driver.bytes(at, length as usize);
        self.offer();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let op = u16::from_le_bytes([bytes[30], bytes[31]]);
        assert_eq!(word(24) as usize, bytes.len() - 44);
        (op, word(16), word(20), word(32), bytes[44..].to_vec())
    }

    /// A stream that the guest opened to port 80 of the host.
    fn connected(&mut self, credit: u32) -> (UnixStream, (u32, u32)) {
        let listener = UnixListener::bind(self.path("vsock_80")).unwrap();
        self.send(1, (80, 1000), 0, (credit, 0), &[]);
        assert_eq!(self.receive(), (2, 80, 1000, 0, vec![]));
        (listener.accept().unwrap().0, (80, 1000))
    }
}

#[test]
fn the_guest_reaches_a_program_of_the_host() {
    let mut guest = Guest::new();
    let (mut program, key) = guest.connected(1 << 16);
    guest.send(5, key, 0, (1 << 16, 0), b"question");
    let mut text = [0; 8];
    program.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(guest.receive(), (5, 80, 1000, 0, b"answer".to_vec()));
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.receive(), (4, 80, 1000, 2, vec![]));
    guest.send(4, key, 3, (1 << 16, 6), &[]);
    assert_eq!(guest.receive(), (3, 80, 1000, 0, vec![]));
    assert_eq!(program.read(&mut text).unwrap(), 0);
    // Nobody is at port 81.
    guest.send(1, (81, 1001), 0, (1 << 16, 0), &[]);
    assert_eq!(guest.receive(), (3, 81, 1001, 0, vec![]));
}

#[test]
fn a_program_of_the_host_reaches_the_guest() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(guest.path("vsock")).unwrap();
    program.write_all(b"CONNECT 22\nearly").unwrap();
    let (op, host, port, _, _) = guest.receive();
    assert_eq!((op, port), (1, 22));
    guest.send(2, (host, 22), 0, (1 << 16, 0), &[]);
    let mut text = vec![0; format!("OK {host}\n").len()];
    program.read_exact(&mut text).unwrap();
    assert_eq!(text, format!("OK {host}\n").as_bytes());
    assert_eq!(guest.receive(), (5, host, 22, 0, b"early".to_vec()));
    guest.send(3, (host, 22), 0, (0, 0), &[]);
    assert_eq!(program.read(&mut [0; 8]).unwrap_or(0), 0);
    // What makes no sense is not answered.
    for bad in [&b"HELLO\n"[..], b"CONNECT x\n", &[b'x'; 100]] {
        let mut program = UnixStream::connect(guest.path("vsock")).unwrap();
        program.write_all(bad).unwrap();
        assert_eq!(program.read(&mut [0; 8]).unwrap_or(0), 0);
    }
}

#[test]
fn neither_side_gets_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let (mut program, key) = guest.connected(5);
    program.write_all(b"0123456789").unwrap();
    assert_eq!(guest.receive().4, b"01234");
    guest.send(6, key, 0, (5, 3), &[]);
    assert_eq!(guest.receive().4, b"567");
    guest.send(6, key, 0, (100, 8), &[]);
    assert_eq!(guest.receive().4, b"89");
    // The program does not read, and the guest goes beyond what it was told.
    let mut sent = 0;
    let answer = loop {
        guest.send(5, key, 0, (100, 10), &[7; 32 << 10]);
        sent += 32 << 10;
        if guest.driver.used_index(0) != guest.driver.queues[0].seen {
            let answer = guest.receive();
            if answer.0 != 6 {
                break answer;
            }
        }
        assert!(sent < 16 << 20);
    };
    assert_eq!(answer.0, 3);
    assert!(sent > 256 << 10);
}

#[test]
fn a_restored_guest_hears_that_its_streams_are_gone() {
    let mut guest = Guest::new();
    let (mut program, _) = guest.connected(100);
    let state = guest.driver.function.save();
    guest.driver.function.restore(&state).unwrap();
    guest.driver.function.resume();
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    guest.driver.ram.write(DATA, &[9; 4]).unwrap();
    assert_eq!(guest.driver.run(2, &[(DATA, 4, true)]), 4);
    assert_eq!(guest.driver.bytes(DATA, 4), [0; 4]);
}

#[test]
fn a_hostile_guest_breaks_only_its_device() {
    let mut guest = Guest::new();
    guest.driver.add(1, &[(DATA, 10, false)]);
    guest.driver.kick(1);
    driver::wait_for("the device gives up", || guest.driver.needs_reset());
    let mut again = Guest::new();
    // Data of nobody, answers to nothing.
    for op in [2, 4, 5, 6, 7, 99] {
        again.send(op, (5, 6), 3, (9, 9), b"x");
        assert_eq!(again.receive(), (3, 5, 6, 0, vec![]));
    }
}
