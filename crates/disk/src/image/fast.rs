//! The short way: data that lies in a file as it is goes between that file
//! and guest memory by io_uring, without threads and copies. Everything else
//! is left to the threads of the queue.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::GuestRam;

use super::{Image, Place};
use crate::qcow2::header::length_of;
use crate::raw::{Files, UringQueue, image_files};
use crate::{
    BlockError, BlockInfo, BlockQueue, Caching, Completion, DiskError, GuestRange, Op, SECTOR,
    Waker,
};

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The files of an image, for the short way; shared by its queues.
pub(super) struct FastFiles {
    files: Vec<Arc<Files>>,
    /// Lengths of the files when last looked at, in bytes.
    lengths: Vec<AtomicU64>,
}

impl FastFiles {
    /// Opens them once more where direct I/O pays: where what is written must
    /// reach the host's disk. What many machines read, and what is lost with
    /// this one, stays in the page cache.
    pub(super) fn new(image: &Image, scratch: bool, caching: Caching) -> Self {
        let small_clusters = image.granularity() < 4096;
        let one = |(index, layer): (usize, &crate::layer::Layer)| {
            let caching = match index == 0 && !scratch && !small_clusters {
                true => caching,
                false => Caching::Buffered,
            };
            let read_only = index > 0 || image.is_read_only();
            // As far as the file may well grow.
            let reach = image.size() + image.size() / 8 + (1 << 30);
            image_files(&layer.path, &layer.file, read_only, caching, reach).into()
        };
        let layers = &image.layers;
        Self {
            files: layers.iter().enumerate().map(one).collect(),
            lengths: layers.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Whether a part lies before the end of its file.
    fn is_there(&self, image: &Image, place: &Place) -> bool {
        let Some(file) = place.file else {
            return true;
        };
        let Some(known) = self.lengths.get(file) else {
            return false;
        };
        let end = place.offset.saturating_add(place.length);
        if end <= known.load(Ordering::Relaxed) {
            return true;
        }
        let layer = image.layers.get(file);
        let now = layer.map_or(0, |l| length_of(&l.file).unwrap_or(0));
        known.store(now, Ordering::Relaxed);
        end <= now
    }
}

/// An operation on its way.
#[derive(Clone, Copy)]
struct Flight {
    tag: u64,
    parts: usize,
    result: Result<u64, BlockError>,
}

/// The short way of one queue.
pub(super) struct Fast {
    image: Arc<Image>,
    files: Arc<FastFiles>,
    ring: UringQueue,
    ram: Arc<GuestRam>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    under_way: usize,
    done: Vec<Completion>,
    parts: Vec<Completion>,
}

impl Fast {
    pub(super) fn new(
        image: Arc<Image>,
        files: Arc<FastFiles>,
        info: &BlockInfo,
        ram: Arc<GuestRam>,
    ) -> Result<Self, DiskError> {
        let info = BlockInfo {
            logical_block: SECTOR as u32,
            ..info.clone()
        };
        Ok(Self {
            ring: UringQueue::new(files.files.clone(), info, ram.clone())?,
            image,
            files,
            ram,
            flights: Vec::new(),
            free: Vec::new(),
            under_way: 0,
            done: Vec::new(),
            parts: Vec::new(),
        })
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        self.ring.waker()
    }

    /// Operations that have not been handed out.
    pub(super) fn in_flight(&self) -> usize {
        self.under_way + self.done.len()
    }

    /// Takes a read, or a write that need not be durable, of a range on the
    /// disk; `false`: it has to go the long way.
    pub(super) fn take(
        &mut self,
        tag: u64,
        offset: u64,
        length: u64,
        ranges: &[GuestRange],
        write: bool,
    ) -> bool {
        if length == 0 || !self.image.gate.try_enter() {
            return false;
        }
        let places = self.image.places(offset, length, write);
        let places = places.filter(|p| p.iter().all(|p| self.files.is_there(&self.image, p)));
        let Some(places) = places else {
            self.image.gate.leave();
            return false;
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        let mut flight = Flight {
            tag,
            // One for this function, so that it does not end before.
            parts: 1,
            result: Ok(length),
        };
        let mut rest: VecDeque<GuestRange> = VecDeque::new();
        let many = places.count > 1;
        if many {
            rest.extend(ranges);
        }
        for place in places.iter() {
            let taken;
            let here = if many {
                taken = super::queue::take(&mut rest, place.length);
                &taken
            } else {
                ranges
            };
            match self.part(slot, place, here, write) {
                Ok(begun) => flight.parts += usize::from(begun),
                Err(error) => flight.result = Err(error),
            }
        }
        self.under_way += 1;
        if let Some(place) = self.flights.get_mut(slot) {
            *place = Some(flight);
        }
        self.ended(slot, Ok(0));
        true
    }

    /// Begins a part of an operation; whether it will complete later.
    fn part(
        &mut self,
        slot: usize,
        place: &Place,
        ranges: &[GuestRange],
        write: bool,
    ) -> Result<bool, BlockError> {
        let Some(file) = place.file else {
            for range in ranges {
                self.clear(range)?;
            }
            return Ok(false);
        };
        let sector = place.offset / SECTOR;
        let op = match write {
            true => Op::Write {
                sector,
                from: ranges,
                durable: false,
            },
            false => Op::Read { sector, to: ranges },
        };
        self.ring.submit_to(file, slot as u64, &op)?;
        Ok(true)
    }

    fn clear(&self, range: &GuestRange) -> Result<(), BlockError> {
        let (mut gpa, mut left) = (range.gpa, range.len as usize);
        while left > 0 {
            let part = left.min(ZEROES.len());
            let zeroes = ZEROES.get(..part).unwrap_or_default();
            let written = self.ram.write(gpa, zeroes);
            written.map_err(|_| BlockError::Memory)?;
            gpa += part as u64;
            left -= part;
        }
        Ok(())
    }

    /// Takes note of the end of a part.
    fn ended(&mut self, slot: usize, result: Result<u64, BlockError>) {
        let Some(place) = self.flights.get_mut(slot) else {
            return;
        };
        let Some(flight) = place else {
            return;
        };
        flight.parts -= 1;
        if let Err(error) = result {
            flight.result = Err(error);
        }
        if flight.parts > 0 {
            return;
        }
        let (tag, result) = (flight.tag, flight.result);
        *place = None;
        self.free.push(slot);
        self.under_way -= 1;
        self.image.gate.leave();
        self.done.push(Completion { tag, result });
    }

    /// As [`BlockQueue::poll`].
    pub(super) fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let polled = self.ring.poll(&mut self.parts);
        self.reap(out);
        polled
    }

    /// As [`BlockQueue::wait`].
    pub(super) fn wait(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        self.poll(out)?;
        if out.len() > before {
            return Ok(());
        }
        let waited = self.ring.wait(&mut self.parts);
        self.reap(out);
        waited
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut parts = std::mem::take(&mut self.parts);
        for part in parts.drain(..) {
            self.ended(part.tag as usize, part.result);
        }
        self.parts = parts;
        out.append(&mut self.done);
    }
}

impl Drop for Fast {
    fn drop(&mut self) {
        let mut lost = Vec::new();
        while self.under_way > 0 {
            if let Err(error) = self.wait(&mut lost) {
                tracing::error!(%error, "io_uring failed with disk operations under way");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}
