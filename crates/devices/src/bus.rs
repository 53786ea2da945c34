//! The port and memory-mapped I/O buses.
//!
//! A lookup takes no lock: readers see an immutable sorted list, writers
//! publish a new one. So a device may change the bus it is being called from
//! (a configuration write through ECAM moves BARs).
//!
//! Devices see only naturally aligned accesses of 1, 2, 4 or 8 (ports: 1, 2
//! or 4) bytes that lie inside their range; the bus splits all others.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

/// A device on the port bus; called from several vCPU threads at once.
pub trait PioDevice: Send + Sync {
    /// `in` of 1, 2 or 4 bytes, `offset` ports into the device's range.
    fn pio_read(&self, offset: u16, data: &mut [u8]);
    /// `out` of 1, 2 or 4 bytes, `offset` ports into the device's range.
    fn pio_write(&self, offset: u16, data: &[u8]);
}

/// A device on the memory bus; called from several vCPU threads at once.
pub trait MmioDevice: Send + Sync {
    /// A load of 1, 2, 4 or 8 bytes, `offset` bytes into the device's range,
    /// aligned to its size (if the range is).
    fn mmio_read(&self, offset: u64, data: &mut [u8]);
    /// A store of 1, 2, 4 or 8 bytes, aligned as in [`MmioDevice::mmio_read`].
    fn mmio_write(&self, offset: u64, data: &[u8]);
}

/// A device whose ports are one byte wide each, as on the ISA bus: wider
/// accesses become several, lowest port first. Registered as [`ByteWide`].
pub trait BytePort: Send + Sync {
    /// `in al` from the port `offset` into the range.
    fn read_byte(&self, offset: u16) -> u8;
    /// `out al` to the port `offset` into the range.
    fn write_byte(&self, offset: u16, value: u8);
}

/// Makes a [`PioDevice`] of a [`BytePort`].
pub struct ByteWide<D: ?Sized>(pub Arc<D>);

impl<D: BytePort + ?Sized> PioDevice for ByteWide<D> {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.0.read_byte(port);
        }
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            self.0.write_byte(port, *byte);
        }
    }
}

/// Why a range cannot be put on a bus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another device is there.
    #[error("{name}: {start:#x}+{size:#x} overlaps {other}")]
    Overlap {
        /// The device to be inserted.
        name: String,
        /// First address or port.
        start: u64,
        /// Number of addresses or ports.
        size: u64,
        /// The device that is there.
        other: String,
    },
    /// An empty range, or one beyond the end of the address space.
    #[error("{name}: {start:#x}+{size:#x} is not a range of addresses")]
    BadRange {
        /// The device to be inserted.
        name: String,
        /// First address or port.
        start: u64,
        /// Number of addresses or ports.
        size: u64,
    },
}

struct Entry<D: ?Sized> {
    start: u64,
    /// The last address, so that a range may end with the address space.
    last: u64,
    name: Arc<str>,
    device: Arc<D>,
}

impl<D: ?Sized> Clone for Entry<D> {
    fn clone(&self) -> Self {
        Self {
            start: self.start,
            last: self.last,
            name: Arc::clone(&self.name),
            device: Arc::clone(&self.device),
        }
    }
}

/// Disjoint address ranges, sorted.
struct Ranges<D: ?Sized> {
    entries: ArcSwap<Vec<Entry<D>>>,
    /// Serializes writers.
    change: Mutex<()>,
}

impl<D: ?Sized> Ranges<D> {
    fn new() -> Self {
        Self {
            entries: ArcSwap::from_pointee(Vec::new()),
            change: Mutex::new(()),
        }
    }

    fn insert(
        &self,
        start: u64,
        size: u64,
        limit: u64,
        name: &str,
        device: Arc<D>,
    ) -> Result<(), BusError> {
        let last = size
            .checked_sub(1)
            .and_then(|length| start.checked_add(length))
            .filter(|&last| last <= limit)
            .ok_or_else(|| BusError::BadRange {
                name: name.into(),
                start,
                size,
            })?;
        let _writer = self.change.lock();
        let mut entries = Vec::clone(&self.entries.load());
        let at = entries.partition_point(|entry| entry.last < start);
        if let Some(other) = entries.get(at).filter(|entry| entry.start <= last) {
            return Err(BusError::Overlap {
                name: name.into(),
                start,
                size,
                other: other.name.to_string(),
            });
        }
        let name = name.into();
        entries.insert(
            at,
            Entry {
                start,
                last,
                name,
                device,
            },
        );
        self.entries.store(Arc::new(entries));
        Ok(())
    }

    fn remove(&self, start: u64) -> bool {
        let _writer = self.change.lock();
        let mut entries = Vec::clone(&self.entries.load());
        let before = entries.len();
        entries.retain(|entry| entry.start != start);
        let removed = entries.len() != before;
        self.entries.store(Arc::new(entries));
        removed
    }

    /// Calls `each` with the device, the offset in its range and the bounds
    /// in the access of every piece of an access; pieces nobody claims have no
    /// device. Addresses wrap at `limit`.
    fn split(
        &self,
        address: u64,
        length: usize,
        limit: u64,
        mut each: impl FnMut(Option<(&D, u64)>, std::ops::Range<usize>),
    ) {
        let entries = self.entries.load();
        let mut done = 0;
        while done < length {
            let start = address.wrapping_add(done as u64) & limit;
            let entry = find(&entries, start);
            let mut size = piece(start, length - done);
            // Aligned pieces of a device's odd-sized tail.
            while entry.is_some_and(|entry| entry.last - start < size as u64 - 1) {
                size /= 2;
            }
            if entry.is_none() && begins_within(&entries, start, size as u64) {
                size = 1;
            }
            each(
                entry.map(|entry| (&*entry.device, start - entry.start)),
                done..done + size,
            );
            done += size;
        }
    }
}

fn find<D: ?Sized>(entries: &[Entry<D>], address: u64) -> Option<&Entry<D>> {
    let at = entries.partition_point(|entry| entry.last < address);
    entries.get(at).filter(|entry| entry.start <= address)
}

/// Whether a range begins in the `size` addresses from `start`.
fn begins_within<D: ?Sized>(entries: &[Entry<D>], start: u64, size: u64) -> bool {
    let at = entries.partition_point(|entry| entry.start < start);
    entries
        .get(at)
        .is_some_and(|entry| entry.start - start < size)
}

/// The largest naturally aligned access at `address`, at most `length` bytes.
fn piece(address: u64, length: usize) -> usize {
    let alignment = 1_usize << address.trailing_zeros().min(3);
    let largest = 1_usize << length.ilog2().min(3);
    alignment.min(largest)
}

/// The port bus.
pub struct PioBus {
    ranges: Ranges<dyn PioDevice>,
}

impl Default for PioBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PioBus {
    /// A bus without devices.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ranges: Ranges::new(),
        }
    }

    /// Gives `count` ports from `first` to a device; `name` is for errors.
    ///
    /// # Errors
    /// [`BusError`] if a port is taken or beyond 0xffff.
    pub fn insert(
        &self,
        first: u16,
        count: u16,
        name: &str,
        device: Arc<dyn PioDevice>,
    ) -> Result<(), BusError> {
        self.ranges
            .insert(first.into(), count.into(), 0xffff, name, device)
    }

    /// Takes the device whose range begins at `first` off the bus; whether
    /// there was one.
    pub fn remove(&self, first: u16) -> bool {
        self.ranges.remove(first.into())
    }

    /// `in`; unclaimed ports read all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        self.ranges
            .split(port.into(), data.len(), 0xffff, |device, bounds| {
                let Some(data) = data.get_mut(bounds) else {
                    return;
                };
                match device {
                    Some((device, offset)) => halves_mut(offset, data, |offset, data| {
                        device.pio_read(offset as u16, data);
                    }),
                    None => data.fill(0xff),
                }
            });
    }

    /// `out`.
    pub fn write(&self, port: u16, data: &[u8]) {
        self.ranges
            .split(port.into(), data.len(), 0xffff, |device, bounds| {
                if let (Some((device, offset)), Some(data)) = (device, data.get(bounds)) {
                    for (at, data) in (offset..).step_by(4).zip(data.chunks(4)) {
                        device.pio_write(at as u16, data);
                    }
                }
            });
    }
}

/// Port accesses are at most 4 bytes.
fn halves_mut(offset: u64, data: &mut [u8], mut read: impl FnMut(u64, &mut [u8])) {
    for (at, data) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
        read(at, data);
    }
}

/// The memory bus: everything guest-physical that is not RAM.
pub struct MmioBus {
    ranges: Ranges<dyn MmioDevice>,
}

impl Default for MmioBus {
    fn default() -> Self {
        Self::new()
    }
}

impl MmioBus {
    /// A bus without devices.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ranges: Ranges::new(),
        }
    }

    /// Gives `size` bytes from `start` to a device; `name` is for errors.
    ///
    /// # Errors
    /// [`BusError`] if a part is taken or the range wraps.
    pub fn insert(
        &self,
        start: u64,
        size: u64,
        name: &str,
        device: Arc<dyn MmioDevice>,
    ) -> Result<(), BusError> {
        self.ranges.insert(start, size, u64::MAX, name, device)
    }

    /// Takes the device whose range begins at `start` off the bus; whether
    /// there was one. Accesses under way may still finish.
    pub fn remove(&self, start: u64) -> bool {
        self.ranges.remove(start)
    }

    /// A load of any size; what nobody claims reads all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        self.ranges
            .split(address, data.len(), u64::MAX, |device, bounds| {
                let Some(data) = data.get_mut(bounds) else {
                    return;
                };
                match device {
                    Some((device, offset)) => device.mmio_read(offset, data),
                    None => data.fill(0xff),
                }
            });
    }

    /// A store of any size.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.ranges
            .split(address, data.len(), u64::MAX, |device, bounds| {
                if let (Some((device, offset)), Some(data)) = (device, data.get(bounds)) {
                    device.mmio_write(offset, data);
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Logs accesses; reads give the offset of each byte.
    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, usize)>>);

    impl MmioDevice for Probe {
        fn mmio_read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().push((offset, data.len()));
            for (at, byte) in (offset..).zip(data) {
                *byte = at as u8;
            }
        }

        fn mmio_write(&self, offset: u64, data: &[u8]) {
            self.0.lock().push((offset, data.len()));
        }
    }

    impl BytePort for Probe {
        fn read_byte(&self, offset: u16) -> u8 {
            offset as u8
        }

        fn write_byte(&self, offset: u16, value: u8) {
            self.0.lock().push((offset.into(), value.into()));
        }
    }

    #[test]
    fn unclaimed_addresses_read_all_ones() {
        let bus = PioBus::new();
        let mut data = [0; 4];
        bus.read(0xfffe, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.write(0x80, &[1]);
    }

    #[test]
    fn a_word_to_byte_ports_is_two_bytes() {
        let bus = PioBus::new();
        let probe = Arc::new(Probe::default());
        let device = Arc::new(ByteWide(Arc::clone(&probe)));
        bus.insert(0x20, 2, "pic", device).unwrap();
        bus.write(0x20, &[7, 8]);
        assert_eq!(*probe.0.lock(), [(0, 7), (1, 8)]);
        let mut data = [0; 4];
        bus.read(0x1f, &mut data);
        assert_eq!(data, [0xff, 0, 1, 0xff]);
        // Nothing is claimed twice, and ranges that wrap are refused.
        let device: Arc<dyn PioDevice> = Arc::new(ByteWide(probe));
        assert!(bus.insert(0x21, 1, "other", Arc::clone(&device)).is_err());
        assert!(bus.insert(0xffff, 2, "other", Arc::clone(&device)).is_err());
        assert!(bus.insert(0xffff, 0, "other", device).is_err());
        assert!(bus.remove(0x20));
        assert!(!bus.remove(0x20));
    }

    #[test]
    fn long_and_crooked_accesses_arrive_aligned() {
        let bus = MmioBus::new();
        let probe = Arc::new(Probe::default());
        bus.insert(0x1000, 0x1000, "probe", probe.clone()).unwrap();
        let mut data = [0; 16];
        bus.read(0x1003, &mut data);
        assert_eq!(*probe.0.lock(), [(3, 1), (4, 4), (8, 8), (16, 2), (18, 1)]);
        assert_eq!(data[15], 18);
    }

    /// Changes the bus while it is called from it.
    struct Mover(std::sync::Weak<MmioBus>);

    impl MmioDevice for Mover {
        fn mmio_read(&self, _: u64, _: &mut [u8]) {}

        fn mmio_write(&self, _: u64, _: &[u8]) {
            let bus = self.0.upgrade().unwrap();
            bus.remove(0);
            let probe = Arc::new(Probe::default());
            bus.insert(0x100, 0x100, "probe", probe).unwrap();
        }
    }

    #[test]
    fn a_device_can_change_the_bus_that_calls_it() {
        let bus = Arc::new(MmioBus::new());
        let mover = Arc::new(Mover(Arc::downgrade(&bus)));
        bus.insert(0, 0x10, "mover", mover).unwrap();
        bus.write(4, &[0; 4]);
        let mut byte = [0];
        bus.read(0x123, &mut byte);
        assert_eq!(byte, [0x23]);
        bus.read(0, &mut byte);
        assert_eq!(byte, [0xff]);
    }

    proptest! {
        #[test]
        fn any_access_reads_the_right_bytes(start in 0xff0_u64..0x1030, length in 0_usize..40) {
            let bus = MmioBus::new();
            let probe = Arc::new(Probe::default());
            bus.insert(0x1000, 0x13, "probe", probe.clone()).unwrap();
            let mut data = vec![0; length];
            bus.read(start, &mut data);
            for (at, byte) in (start..).zip(&data) {
                let expected = if (0x1000..0x1013).contains(&at) { at as u8 } else { 0xff };
                prop_assert_eq!(*byte, expected);
            }
            for (offset, size) in probe.0.lock().iter() {
                prop_assert!(size.is_power_of_two() && offset % *size as u64 == 0);
            }
            bus.write(u64::MAX - 3, &data);
        }
    }
}
