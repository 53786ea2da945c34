//! Programs of a guest's driver as bytes: rings, buffers, registers and PCI
//! configuration of every device, with its state saved, damaged and restored
//! on the way. Whatever a guest does, the device can be reset and then works.

mod driver;

use std::sync::Arc;

use devices::pci::PciFunction;
use disk::{RawDisk, RawOptions};
use driver::wire::{TestNetwork, Wire};
use driver::{Driver, EVENT_IDX, INDIRECT_DESC, NEXT, WRITE};
use fuzzing::{Fuzz, Input};
use memory::GuestRam;
use net::MacAddress;
use virtio::VirtioPciState;
use virtio::balloon::Balloon;
use virtio::blk::{Blk, BlkOptions};
use virtio::channel::{Channel, ChannelSink};
use virtio::console::{Console, ConsoleSink};
use virtio::fs::{Fs, FsOptions};
use virtio::net::{Net, NetOptions, feature};
use virtio::rng::Rng;
use virtio::vsock::Vsock;

const DATA: u64 = 0x20_0000;
const SIZE: u16 = 16;

struct Nowhere;
impl ConsoleSink for Nowhere {
    fn output(&self, _data: &[u8]) {}
}
impl ChannelSink for Nowhere {
    fn guest_open(&self, _open: bool) {}
}

fn fuzz<'a>(name: &'a str, words: &'a [&'a [u8]]) -> Fuzz<'a> {
    Fuzz {
        name,
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words,
        longest: 1500,
    }
}

/// A guest's program on one device.
struct Play<'a> {
    driver: &'a mut Driver,
    features: u64,
    queues: u16,
    /// What the host does meanwhile.
    host: &'a mut dyn FnMut(&mut Input<'_>),
}

/// How a device behaved: whether it wants a reset, and how many chains it used.
type Behaviour = (bool, Vec<(u16, u32)>);

impl Play<'_> {
    fn run(mut self, bytes: &[u8]) -> Behaviour {
        let mut input = Input::new(bytes);
        let command = self.driver.config16(4);
        self.start();
        while !input.is_empty() {
            self.act(&mut input);
        }
        // What is on its way arrives, as a rule.
        for _ in 0..20 {
            let done = |q: usize| self.driver.used_index(q) == self.driver.queues[q].published;
            if (0..self.driver.queues.len()).all(done) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        let behaviour = (
            self.driver.needs_reset(),
            (0..self.driver.queues.len())
                .map(|queue| {
                    let ring = &self.driver.queues[queue];
                    let length = self.driver.bytes(ring.used + 8, 4);
                    let length = u32::from_le_bytes(length.try_into().unwrap());
                    (self.driver.used_index(queue).min(8), length.ilog2_or_zero())
                })
                .collect(),
        );
        // Whatever happened: after a reset the device works.
        self.driver.function.config_write(4, &command.to_le_bytes());
        self.start();
        behaviour
    }

    fn start(&mut self) {
        let features = EVENT_IDX | INDIRECT_DESC | self.features;
        self.driver.start(features, self.queues, SIZE);
    }

    fn queue(&self, input: &mut Input<'_>) -> usize {
        usize::from(input.u8()) % self.driver.queues.len()
    }

    fn slot(input: &mut Input<'_>) -> u64 {
        DATA + u64::from(input.u8() % 64) * 512
    }

    fn length(input: &mut Input<'_>) -> u32 {
        const LENGTHS: [u32; 13] = [16, 1, 0, 512, 20, 44, 12, 40, 80, 4, 4096, 0x8000, 1526];
        match input.u8() {
            254 => input.u16().into(),
            255 => input.u32(),
            other => LENGTHS[usize::from(other) % LENGTHS.len()],
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() % 18 {
            0..=3 => {
                let queue = self.queue(input);
                let count = 1 + input.u8() % 4;
                let buffers: Vec<_> = (0..count)
                    .map(|_| {
                        let (at, length) = (Self::slot(input), Self::length(input));
                        (at, length, input.u8() & 1 != 0)
                    })
                    .collect();
                self.driver.add(queue, &buffers);
                self.driver.kick(queue);
            }
            4..=6 => {
                let at = Self::slot(input) + u64::from(input.u8() % 64);
                let count = usize::from(input.u8() % 96);
                self.driver.ram.write(at, input.bytes(count)).unwrap();
            }
            7 => self.descriptor(input),
            8 => {
                let queue = self.queue(input);
                self.driver.publish(queue, input.u16() % (SIZE + 4));
            }
            9 => self.driver.kick(self.queue(input)),
            10 => {
                let queue = self.queue(input);
                let at = self.driver.queues[queue].available + 2;
                self.driver.set_available(at, input.u16());
            }
            11 => self.register(self.driver.common, 0x48, input),
            12 => self.register(self.driver.device, 0x100, input),
            13 => self.configuration(input),
            14 => {
                self.driver.function.pause();
                self.driver.function.resume();
            }
            15 => self.damaged_state(input),
            16 => (self.host)(input),
            _ => {
                // Notifications, MSI-X tables, and what is between them.
                let (bar, at) = (input.u8() % 6, u64::from(input.u16()));
                let mut data = input.u64().to_le_bytes();
                let size = input.pick(&[1, 2, 4, 8]);
                self.driver.function.bar_write(bar, at, &data[..size]);
                self.driver.function.bar_read(bar, at, &mut data[..size]);
            }
        }
    }

    fn descriptor(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let at = input.u16() % SIZE;
        let address = match input.u8() % 8 {
            0 => input.u64(),
            1 => driver::RAM - 8,
            2 => driver::RINGS + u64::from(input.u8()) * 0x400,
            _ => Self::slot(input),
        };
        let length = Self::length(input);
        let flags = input.pick(&[NEXT, WRITE, NEXT | WRITE, 0, 4, 5, 7]);
        let entry = (address, length, flags, input.u16() % (SIZE + 4));
        self.driver.put_descriptor(queue, at, entry);
    }

    fn register(&self, region: driver::Region, most: u64, input: &mut Input<'_>) {
        let size = input.pick(&[1, 2, 4, 8]);
        let at = (u64::from(input.u8()) % most) & !(size as u64 - 1);
        // Queues stay where the driver has them: the fuzzer writes there too.
        self.driver.write(region, at, input.u64(), size);
        self.driver.read(region, at, size);
    }

    fn configuration(&self, input: &mut Input<'_>) {
        let size = input.pick(&[4, 1, 2, 3]);
        let at = input.u16() % 0x1000;
        let mut data = input.u32().to_le_bytes();
        self.driver.function.config_write(at, &data[..size]);
        self.driver.function.config_read(at, &mut data[..size]);
    }

    /// The state goes through a snapshot that somebody has edited.
    fn damaged_state(&mut self, input: &mut Input<'_>) {
        let state = self.driver.function.save();
        let mut json = serde_json::to_vec(&state).unwrap();
        for _ in 0..input.u8() % 8 {
            let from = usize::from(input.u16()) % json.len();
            let digit = (from..json.len()).find(|at| json[*at].is_ascii_digit());
            if let Some(at) = digit {
                json[at] = b'0' + input.u8() % 10;
            }
        }
        if let Ok(state) = serde_json::from_slice::<VirtioPciState>(&json) {
            // Refused with a reason, or taken: both are well.
            let _ = self.driver.function.restore(&state);
        }
        self.driver.function.resume();
    }
}

trait Log {
    fn ilog2_or_zero(self) -> u32;
}

impl Log for u32 {
    fn ilog2_or_zero(self) -> u32 {
        self.checked_ilog2().map_or(0, |log| log + 1)
    }
}

#[test]
fn a_block_device_survives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    fuzz("blk", &[]).run(|bytes| {
        std::fs::write(&path, vec![7; 1 << 16]).unwrap();
        let disk = Arc::new(RawDisk::open(&RawOptions::new(&path)).unwrap());
        let mut driver = Driver::new(Blk::new(disk, 2, BlkOptions::default()));
        let play = Play {
            driver: &mut driver,
            // FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES.
            features: 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14,
            queues: 2,
            host: &mut |_| {},
        };
        let behaviour = play.run(bytes);
        driver.ram.write(DATA, &[0; 16]).unwrap();
        let (header, data, status) = (DATA, DATA + 0x1000, DATA + 0x800);
        let buffers = [(header, 16, false), (data, 512, true), (status, 1, true)];
        assert_eq!(driver.run(0, &buffers), 513);
        assert_eq!(driver.bytes(status, 1), [0]);
        behaviour
    });
}

#[test]
fn an_entropy_device_survives() {
    fuzz("rng", &[]).run(|bytes| {
        let mut driver = Driver::new(Rng::new());
        let play = Play {
            driver: &mut driver,
            features: 0,
            queues: 1,
            host: &mut |_| {},
        };
        let behaviour = play.run(bytes);
        assert_eq!(driver.run(0, &[(DATA, 32, true)]), 32);
        behaviour
    });
}

#[test]
fn a_balloon_survives() {
    fuzz("balloon", &[]).run(|bytes| {
        let ram = GuestRam::new(driver::RAM, driver::RAM).unwrap();
        let (balloon, control) = Balloon::new(ram.clone());
        let mut driver = Driver::with_ram(balloon, ram);
        control.set_memory(8 << 20);
        let play = Play {
            driver: &mut driver,
            // STATS_VQ, REPORTING.
            features: 1 << 1 | 1 << 5,
            queues: 4,
            host: &mut |input| {
                control.set_memory(u64::from(input.u16()) << 12);
                control.report();
            },
        };
        let behaviour = play.run(bytes);
        driver.ram.write(DATA, &0x300u32.to_le_bytes()).unwrap();
        driver.ram.write(0x30_0000, &[7]).unwrap();
        assert_eq!(driver.run(0, &[(DATA, 4, false)]), 0);
        assert_eq!(driver.bytes(0x30_0000, 1), [0]);
        behaviour
    });
}

#[test]
fn a_socket_device_survives() {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    // Guests reach this one.
    let _served = UnixListener::bind(directory.path().join("vsock_9")).unwrap();
    fuzz(
        "vsock",
        &[&[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]],
    )
    .run(|bytes| {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let mut programs = vec![UnixStream::connect(&path).unwrap()];
        programs[0].write_all(b"CONNECT 9\n").unwrap();
        let mut driver = Driver::new(Vsock::new(3, listener, path.clone()).unwrap());
        let play = Play {
            driver: &mut driver,
            features: 0,
            queues: 3,
            host: &mut |input| {
                let how = input.u8();
                if how & 3 == 0 && programs.len() < 8 {
                    programs.push(UnixStream::connect(&path).unwrap());
                }
                let count = input.u8().into();
                let text = input.bytes(count);
                if let Some(program) = programs.last_mut() {
                    // The device may have hung up.
                    let _ = program.set_nonblocking(true);
                    let _ = program.write(text);
                    let _ = program.read(&mut [0; 64]);
                }
                if how & 3 == 1 {
                    programs.pop();
                }
            },
        };
        let behaviour = play.run(bytes);
        // A packet from nobody is refused.
        driver.ram.write(DATA, &[0; 44]).unwrap();
        assert_eq!(driver.run(1, &[(DATA, 44, false)]), 0);
        assert_eq!(driver.run(0, &[(DATA, 4096, true)]), 44);
        behaviour
    });
}

#[test]
fn a_channel_survives() {
    fuzz("channel", &[]).run(|bytes| {
        let (channel, input) = Channel::new("fuzz", Arc::new(Nowhere));
        let mut driver = Driver::new(channel);
        input.push(&[1; 300]);
        let play = Play {
            driver: &mut driver,
            // MULTIPORT.
            features: 2,
            queues: 6,
            host: &mut |bytes| {
                let count = bytes.u8().into();
                input.push(bytes.bytes(count));
                input.output_ready();
            },
        };
        let behaviour = play.run(bytes);
        driver.ram.write(DATA, &[0, 0, 0, 0, 0, 0, 1, 0]).unwrap();
        assert_eq!(driver.run(3, &[(DATA, 8, false)]), 0);
        assert_eq!(driver.run(2, &[(DATA, 64, true)]), 8);
        assert_eq!(driver.run(5, &[(DATA, 32, false)]), 0);
        behaviour
    });
}

#[test]
fn a_console_survives() {
    fuzz("console", &[]).run(|bytes| {
        let (console, input) = Console::new(Arc::new(Nowhere));
        let mut driver = Driver::new(console);
        input.push(&[1; 300]);
        let play = Play {
            driver: &mut driver,
            features: 1,
            queues: 2,
            host: &mut |bytes| {
                input.set_size(bytes.u16(), bytes.u16());
                input.push(bytes.bytes(40));
            },
        };
        let behaviour = play.run(bytes);
        assert_eq!(driver.run(1, &[(DATA, 32, false)]), 0);
        // What was not read before the reset is still there.
        input.push(b"again");
        let length = driver.run(0, &[(DATA, 0x8000, true)]) as usize;
        let text = driver.bytes(DATA, length);
        assert!(text.ends_with(b"again"), "{text:?}");
        behaviour
    });
}

#[test]
fn a_network_card_survives() {
    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 7]);
    const FEATURES: u64 = feature::CSUM
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
        | feature::MTU
        | feature::MAC;
    let header: &[u8] = &[1, 1, 0x42, 0, 0xdc, 5, 34, 0, 16, 0, 0, 0];
    fuzz("net", &[header, &MAC.0, &[8, 0, 0x45, 0]]).run(|bytes| {
        let wire = Arc::new(Wire::default());
        *wire.room.lock() = -1;
        let network = Arc::new(TestNetwork(wire.clone(), 1));
        let options = NetOptions {
            mac: MAC,
            pairs: 1,
            mtu: None,
            receive_rate: None,
            transmit_rate: None,
        };
        let (card, handle) = Net::new(network, options);
        let mut driver = Driver::new(card);
        let mergeable = bytes.first().is_none_or(|byte| byte & 1 == 0);
        let play = Play {
            driver: &mut driver,
            features: match mergeable {
                true => FEATURES,
                false => FEATURES & !feature::MRG_RXBUF,
            },
            queues: 3,
            host: &mut |input| {
                let length = 14 + usize::from(input.u16()) % 66_000;
                let mut frame = [&MAC.0[..], &[2, 0, 0, 0, 0, 9, 8, 0]].concat();
                frame.resize(length, 5);
                wire.send(&frame);
                *wire.room.lock() = i64::from(input.u8() % 4) - 1;
                handle.stats();
            },
        };
        let behaviour = play.run(bytes);
        *wire.room.lock() = -1;
        wire.to_guest.lock().clear();
        driver.ram.write(DATA, &[0; 12]).unwrap();
        driver.run(1, &[(DATA, 100, false)]);
        behaviour
    });
}

/// Requests of the file system on a real tree: nothing beside the folder is
/// read, made or changed.
#[test]
fn a_shared_folder_survives_and_is_not_left() {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    let words: [&[u8]; 12] = [
        b"file\0",
        b"..\0",
        b"../secret\0",
        b"way-out\0",
        b"sub\0",
        b"new\0",
        b".\0",
        b"/etc/passwd\0",
        b"user.x\0",
        b"sub/file\0",
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0, 0, 0, 0, 0],
    ];
    fuzz("fs", &words).run(|bytes| {
        let _ = std::fs::remove_dir_all(&shared);
        std::fs::create_dir_all(shared.join("sub")).unwrap();
        std::fs::write(shared.join("file"), "text").unwrap();
        std::fs::write(directory.path().join("secret"), "SECRET").unwrap();
        std::os::unix::fs::symlink("../secret", shared.join("way-out")).unwrap();
        let first = bytes.first().copied().unwrap_or(0);
        let options = FsOptions {
            read_only: first & 1 != 0,
            write_back: first & 2 != 0,
        };
        let mut driver = Driver::new(Fs::new(&shared, "fuzz", options).unwrap());
        driver.start(EVENT_IDX | INDIRECT_DESC, 2, SIZE);
        let mut errors = Vec::new();
        let mut ask = |op: u32, node: u64, body: &[u8]| {
            let mut request = vec![0; 40];
            request[4..8].copy_from_slice(&op.to_le_bytes());
            request[16..24].copy_from_slice(&node.to_le_bytes());
            request.extend(body);
            driver.ram.write(DATA, &request).unwrap();
            let buffers = [
                (DATA, request.len() as u32, false),
                (DATA + 0x10000, 0x8000, true),
            ];
            let length = driver.run(1, &buffers) as usize;
            let answer = driver.bytes(DATA + 0x10000, length);
            assert!(!answer.windows(6).any(|window| window == b"SECRET"));
            let error = answer.get(4..8).unwrap_or_default();
            errors.push((op, error.to_vec()));
        };
        ask(26, 0, &[7, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut input = Input::new(bytes.get(1..).unwrap_or_default());
        while !input.is_empty() {
            let (op, node) = (u32::from(input.u8() % 56), u64::from(input.u8() % 8));
            let length = usize::from(input.u8() % 128);
            let body = input.bytes(length).to_vec();
            ask(op, node, &body);
        }
        // The guest's rings are as for every device.
        let mut rest = Input::new(bytes);
        let last = Play {
            driver: &mut driver,
            features: 0,
            queues: 2,
            host: &mut |_| {},
        };
        last.run(rest.bytes(200));
        let outside: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(outside.len(), 2, "{outside:?}");
        let secret = std::fs::read(directory.path().join("secret")).unwrap();
        assert_eq!(secret, b"SECRET");
        if options.read_only {
            assert_eq!(std::fs::read(shared.join("file")).unwrap(), b"text");
            assert_eq!(std::fs::read_dir(&shared).unwrap().count(), 3);
        }
        errors
    });
}
