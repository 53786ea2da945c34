//! A guest's driver: finds a function's registers by its capabilities and
//! reaches them, and rings in guest memory, as a guest does.
#![allow(dead_code)]

pub mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::pci::PciFunction;
use engine::{InterruptSink, MsiMessage};
use memory::GuestRam;
use parking_lot::Mutex;
use virtio::{VirtioDevice, VirtioPci};

pub const RAM: u64 = 16 << 20;
/// Rings are from here on, 64 KiB for each queue; buffers from 1 MiB on.
pub const RINGS: u64 = 0x10000;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const VERSION_1: u64 = 1 << 32;

/// Where interrupts arrive.
#[derive(Default)]
pub struct Sink(Mutex<Vec<MsiMessage>>);

impl InterruptSink for Sink {
    fn send(&self, message: MsiMessage) {
        self.0.lock().push(message);
    }
    fn set_extint(&self, _level: bool) {}
}

impl Sink {
    /// How often a vector came since the last call.
    pub fn take(&self, vector: u32) -> usize {
        let mut messages = self.0.lock();
        let before = messages.len();
        messages.retain(|message| message.data != vector);
        before - messages.len()
    }
}

/// A region of a capability.
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    pub bar: u8,
    pub offset: u64,
    pub length: u64,
}

pub struct Driver {
    pub function: Arc<VirtioPci>,
    pub ram: Arc<GuestRam>,
    pub sink: Arc<Sink>,
    pub common: Region,
    pub isr: Region,
    pub device: Region,
    pub notify: Region,
    pub window: u16,
    notify_step: u64,
    msix: u16,
    pub queues: Vec<Ring>,
}

/// One queue's rings as the driver keeps them.
#[derive(Clone, Debug)]
pub struct Ring {
    pub index: u16,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub next_descriptor: u16,
    pub published: u16,
    pub seen: u16,
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "{what}: nothing after 20 s");
        std::thread::sleep(Duration::from_micros(50));
    }
}

impl Driver {
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::with_ram(device, GuestRam::new(RAM, RAM).unwrap())
    }

    pub fn with_ram(device: impl VirtioDevice + 'static, ram: Arc<GuestRam>) -> Self {
        let sink = Arc::new(Sink::default());
        let function = VirtioPci::new(Box::new(device), ram.clone(), sink.clone()).unwrap();
        Self::attach(function, ram, sink)
    }

    /// Finds the registers.
    pub fn attach(function: Arc<VirtioPci>, ram: Arc<GuestRam>, sink: Arc<Sink>) -> Self {
        let mut driver = Self {
            function,
            ram,
            sink,
            common: Region::default(),
            isr: Region::default(),
            device: Region::default(),
            notify: Region::default(),
            window: 0,
            notify_step: 0,
            msix: 0,
            queues: Vec::new(),
        };
        assert_eq!(driver.config16(0), 0x1af4);
        let mut at = driver.config8(0x34);
        while at != 0 {
            let place = u16::from(at);
            let region = Region {
                bar: driver.config8(place + 4),
                offset: driver.config32(place + 8).into(),
                length: driver.config32(place + 12).into(),
            };
            match (driver.config8(place), driver.config8(place + 3)) {
                (9, 1) => driver.common = region,
                (9, 2) => {
                    driver.notify = region;
                    driver.notify_step = driver.config32(place + 16).into();
                }
                (9, 3) => driver.isr = region,
                (9, 4) => driver.device = region,
                (9, 5) => driver.window = place,
                (0x11, _) => driver.msix = place,
                _ => {}
            }
            at = driver.config8(place + 1);
        }
        driver
    }

    pub fn config8(&self, offset: u16) -> u8 {
        let mut data = [0; 1];
        self.function.config_read(offset, &mut data);
        data[0]
    }

    pub fn config16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.function.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub fn config32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read(&self, region: Region, at: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.function
            .bar_read(region.bar, region.offset + at, &mut data[..size]);
        u64::from_le_bytes(data)
    }

    pub fn write(&self, region: Region, at: u64, value: u64, size: usize) {
        let data = &value.to_le_bytes()[..size];
        self.function
            .bar_write(region.bar, region.offset + at, data);
    }

    pub fn status(&self) -> u8 {
        self.read(self.common, 0x14, 1) as u8
    }

    pub fn set_status(&self, status: u8) {
        self.write(self.common, 0x14, status.into(), 1);
    }

    pub fn needs_reset(&self) -> bool {
        self.status() & 0x40 != 0
    }

    pub fn offered(&self) -> u64 {
        self.write(self.common, 0, 0, 4);
        let low = self.read(self.common, 4, 4);
        self.write(self.common, 0, 1, 4);
        low | self.read(self.common, 4, 4) << 32
    }

    /// Acknowledge, driver, features; whether the device took them.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(1);
        self.set_status(3);
        for (select, part) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(self.common, 8, select, 4);
            self.write(self.common, 12, part.into(), 4);
        }
        self.set_status(0xb);
        self.status() & 8 != 0
    }

    /// Turns MSI-X on: vector `n` sends data 0x40 + n.
    pub fn enable_msix(&self) {
        let control = self.config16(self.msix + 2);
        let vectors = u64::from(control & 0x7ff) + 1;
        let table = Region {
            bar: self.config8(self.msix + 4) & 7,
            offset: u64::from(self.config32(self.msix + 4) & !7),
            length: vectors * 16,
        };
        for vector in 0..vectors {
            self.write(table, vector * 16, 0xfee0_0000, 8);
            self.write(table, vector * 16 + 8, 0x40 + vector, 4);
            self.write(table, vector * 16 + 12, 0, 4);
        }
        self.function
            .config_write(self.msix + 2, &(control | 0x8000).to_le_bytes());
    }

    /// Gives queue `index` rings of `size` entries and vector `index` + 1.
    pub fn enable_queue(&mut self, index: u16, size: u16) {
        let base = RINGS + u64::from(index) * 0x10000;
        let ring = Ring {
            index,
            size,
            descriptors: base,
            available: base + 0x4000,
            used: base + 0x8000,
            next_descriptor: 0,
            published: 0,
            seen: 0,
        };
        self.ram.write(base, &[0; 0x10000]).unwrap();
        self.set_ring(&ring);
        self.queues.push(ring);
    }

    /// Programs the addresses of a queue, whatever they are.
    pub fn set_ring(&self, ring: &Ring) {
        self.write(self.common, 0x16, ring.index.into(), 2);
        self.write(self.common, 0x18, ring.size.into(), 2);
        self.write(self.common, 0x1a, u64::from(ring.index) + 1, 2);
        self.write(self.common, 0x20, ring.descriptors & 0xffff_ffff, 4);
        self.write(self.common, 0x24, ring.descriptors >> 32, 4);
        self.write(self.common, 0x28, ring.available, 8);
        self.write(self.common, 0x30, ring.used, 8);
        self.write(self.common, 0x1c, 1, 2);
    }

    /// Everything from reset to DRIVER_OK, with MSI-X.
    pub fn start(&mut self, features: u64, queues: u16, size: u16) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.queues.clear();
        assert!(self.negotiate(features | VERSION_1));
        self.enable_msix();
        self.write(self.common, 0x10, 0, 2);
        for index in 0..queues {
            self.enable_queue(index, size);
        }
        self.set_status(0xf);
        assert_eq!(self.status(), 0xf);
    }

    pub fn put_descriptor(&self, queue: usize, at: u16, entry: (u64, u32, u16, u16)) {
        let address = self.queues[queue].descriptors + u64::from(at) * 16;
        self.ram.write(address, &descriptor(entry)).unwrap();
    }

    /// Puts a chain of buffers (address, length, device writes) into the
    /// table and publishes it; its head.
    pub fn add(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> u16 {
        let ring = &mut self.queues[queue];
        let head = ring.next_descriptor;
        for (n, &(address, length, write)) in buffers.iter().enumerate() {
            let at = (head + n as u16) % ring.size;
            let next = (at + 1) % ring.size;
            let last = n + 1 == buffers.len();
            let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let bytes = descriptor((address, length, flags, next));
            self.ram
                .write(ring.descriptors + u64::from(at) * 16, &bytes)
                .unwrap();
            ring.next_descriptor = next;
        }
        self.publish(queue, head);
        head
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let at = ring.available + 4 + u64::from(ring.published % ring.size) * 2;
        self.ram.write(at, &head.to_le_bytes()).unwrap();
        ring.published = ring.published.wrapping_add(1);
        let index = ring.published;
        let at = ring.available + 2;
        self.set_available(at, index);
    }

    pub fn set_available(&self, at: u64, index: u16) {
        use vm_memory::{Bytes, GuestAddress};
        let order = std::sync::atomic::Ordering::SeqCst;
        self.ram.vm().store(index, GuestAddress(at), order).unwrap();
    }

    /// The index at which the driver wants an interrupt (EVENT_IDX).
    pub fn set_used_event(&self, queue: usize, index: u16) {
        let ring = &self.queues[queue];
        let at = ring.available + 4 + u64::from(ring.size) * 2;
        self.set_available(at, index);
    }

    pub fn kick(&self, queue: usize) {
        let index = self.queues[queue].index;
        self.write(self.common, 0x16, index.into(), 2);
        let at = self.read(self.common, 0x1e, 2) * self.notify_step;
        self.write(self.notify, at, index.into(), 2);
    }

    pub fn used_index(&self, queue: usize) -> u16 {
        use vm_memory::{Bytes, GuestAddress};
        let order = std::sync::atomic::Ordering::SeqCst;
        let at = GuestAddress(self.queues[queue].used + 2);
        self.ram.vm().load(at, order).unwrap()
    }

    /// Waits for the next used chain: its head and the bytes written.
    pub fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        let seen = self.queues[queue].seen;
        wait_for("a used buffer", || self.used_index(queue) != seen);
        let ring = &mut self.queues[queue];
        let at = ring.used + 4 + u64::from(seen % ring.size) * 8;
        ring.seen = seen.wrapping_add(1);
        let mut element = [0; 8];
        self.ram.read(at, &mut element).unwrap();
        let [head, length] =
            [0, 4].map(|n| u32::from_le_bytes(element[n..n + 4].try_into().unwrap()));
        (head, length)
    }

    /// One chain, from kick to used.
    pub fn run(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> u32 {
        let head = self.add(queue, buffers);
        self.kick(queue);
        let (used, length) = self.wait_used(queue);
        assert_eq!(used, u32::from(head));
        length
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read(address, &mut bytes).unwrap();
        bytes
    }
}

pub fn descriptor((address, length, flags, next): (u64, u32, u16, u16)) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
