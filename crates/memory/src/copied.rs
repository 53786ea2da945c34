//! Pages copied while the guest stands, to memory that the host has given
//! already: faults would take most of the time.

use std::io;
use std::time::{Duration, Instant};

use crate::PageSet;
use crate::image::{ImageWriter, chunks};
use crate::ram::{GuestRam, PAGE_SIZE};

/// Pages for which there is room however slow the host is.
const LEAST: u64 = 1024;
/// Pages for which there is room at most.
const MOST: u64 = 16_384;
/// Room for pages that the guest has not written yet.
const SPARE: u64 = 2048;
/// Pages of one measurement of the speed.
const SAMPLE: u64 = 256;
/// Measurements, of which the best counts: others were interrupted.
const SAMPLES: usize = 8;

/// Room for copies of pages, and later the copies.
pub struct CopiedPages {
    bytes: Vec<u8>,
    held: PageSet,
}

impl CopiedPages {
    /// Room for half as many pages again as `likely` has and some more, but not
    /// for more than can be copied `within` this time, measured now. The guest
    /// may run.
    pub fn with_room(ram: &GuestRam, likely: &PageSet, within: Duration) -> Self {
        let pages = likely.count();
        let room = (pages + pages / 2 + SPARE).min(MOST);
        let mut bytes = vec![0; (room * PAGE_SIZE) as usize];
        for page in bytes.chunks_mut(PAGE_SIZE as usize) {
            // The host gives memory when it is written.
            page[0] = 1;
        }
        let mut copied = Self {
            bytes,
            held: PageSet::none(ram.pages()),
        };
        if let Some(speed) = copied.speed(ram, likely) {
            let room = (within.as_secs_f64() * speed) as u64;
            let room = room.clamp(LEAST, MOST) * PAGE_SIZE;
            copied.bytes.truncate(room as usize);
        }
        copied
    }

    /// Pages that are copied in a second.
    fn speed(&mut self, ram: &GuestRam, likely: &PageSet) -> Option<f64> {
        let mut runs = likely.runs().flat_map(chunks);
        let mut best = None;
        for _ in 0..SAMPLES {
            let (mut sample, mut pages) = (Vec::new(), 0);
            while pages < SAMPLE {
                // Few pages say little.
                let Some(run) = runs.next() else { return best };
                pages += run.end - run.start;
                sample.push(run);
            }
            let start = Instant::now();
            let copied = ram.copy_runs(sample.into_iter(), &mut self.bytes);
            let took = start.elapsed().as_secs_f64().max(1e-9);
            let speed = pages as f64 / took;
            if copied.is_ok() && best.is_none_or(|best| speed > best) {
                best = Some(speed);
            }
        }
        best
    }

    /// For how many pages there is room.
    pub fn room(&self) -> u64 {
        self.bytes.len() as u64 / PAGE_SIZE
    }

    /// Copies these pages, in place of what was copied before.
    ///
    /// # Errors
    /// There is no room for them, or they are not in RAM.
    pub fn copy(&mut self, ram: &GuestRam, set: &PageSet) -> io::Result<()> {
        self.held = PageSet::none(ram.pages());
        ram.copy_runs(set.runs(), &mut self.bytes)?;
        self.held = set.clone();
        Ok(())
    }

    /// Writes what was copied.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&self, to: &mut ImageWriter) -> io::Result<()> {
        let mut rest = &self.bytes[..];
        for run in self.held.runs() {
            let bytes = ((run.end - run.start) * PAGE_SIZE) as usize;
            let (copy, behind) = rest.split_at_checked(bytes).ok_or(no_room())?;
            to.put(run.start, copy)?;
            rest = behind;
        }
        Ok(())
    }
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "there is no room for the pages")
}

impl GuestRam {
    /// Copies runs of pages one behind the other.
    fn copy_runs(
        &self,
        runs: impl Iterator<Item = std::ops::Range<u64>>,
        mut to: &mut [u8],
    ) -> io::Result<()> {
        for part in runs.flat_map(|run| self.without_hole(run)) {
            let bytes = ((part.end - part.start) * PAGE_SIZE) as usize;
            let (copy, behind) = to.split_at_mut_checked(bytes).ok_or_else(no_room)?;
            self.read(self.gpa_of(part.start * PAGE_SIZE), copy)
                .map_err(io::Error::other)?;
            to = behind;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn pages_are_copied_as_they_are_and_written_later() {
        let ram = GuestRam::new(16 << 20, 16 << 20).unwrap();
        let mut set = PageSet::none(ram.pages());
        for page in [0u64, 1, 7, 4095] {
            ram.write(page * PAGE_SIZE, &[page as u8 + 1; 4096])
                .unwrap();
            set.insert(page..page + 1);
        }
        let second = Duration::from_secs(1);
        let mut copied = CopiedPages::with_room(&ram, &set, second);
        assert_eq!(copied.room(), 6 + SPARE);
        copied.copy(&ram, &set).unwrap();
        ram.write(0, &[9; 8192]).unwrap();
        let mut to = ImageWriter::new(tempfile::tempfile().unwrap(), &ram).unwrap();
        copied.write(&mut to).unwrap();
        let file = to.finish().unwrap().file;
        for page in [0u64, 1, 7, 4095] {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, page * PAGE_SIZE).unwrap();
            assert_eq!(bytes, [page as u8 + 1; 4096]);
        }
        let all = PageSet::all(ram.pages());
        assert!(copied.copy(&ram, &all).is_err());
        let slow = CopiedPages::with_room(&ram, &all, Duration::ZERO);
        assert_eq!(slow.room(), LEAST);
    }
}
