//! RAM as files: mapping it from them lazily, and writing it to them while the
//! guest runs.
//!
//! A page lies in a file at its offset into RAM. A file need not hold all
//! pages; the caller knows which.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::PageSet;
use crate::ram::{GuestRam, MemoryError, PAGE_SIZE};

/// Pages copied at once.
const CHUNK: u64 = 64;
/// Gaps up to this many pages are mapped with the runs around them: a mapping
/// costs the kernel more than zero pages from the file.
const GAP: u64 = 64;
/// Runs of a later layer shorter than this are read instead of mapped.
const WORTH_MAPPING: u64 = 16;
/// Most mappings made for one RAM; the kernel allows a process 65,530.
const MOST_MAPPINGS: usize = 16_384;

/// A file with pages of RAM, over those before it.
pub struct Layer<'a> {
    /// The file. It must not change nor shrink as long as the RAM lives.
    pub file: &'a File,
    /// Which pages it holds.
    pub pages: &'a PageSet,
    /// Which pages are zero, whatever the layers below hold.
    pub zero: &'a PageSet,
}

impl GuestRam {
    /// RAM with the contents of these layers, the first the lowest; what none
    /// holds is zero. Pages are read when they are first used, and shared with
    /// every other process that maps them until they are written.
    ///
    /// # Errors
    /// As [`GuestRam::new`]; [`MemoryError::Image`] if a file is too short or
    /// cannot be mapped.
    pub fn from_layers(
        size: u64,
        low_limit: u64,
        layers: &[Layer<'_>],
    ) -> Result<Arc<Self>, MemoryError> {
        let ram = Self::new(size, low_limit)?;
        let visible = visible(layers, ram.pages());
        let mut mappings = 0;
        for (level, (layer, (pages, zero))) in layers.iter().zip(&visible).enumerate() {
            let end = layer.pages.runs().last().map_or(0, |run| run.end);
            let length = layer.file.metadata().map_err(MemoryError::Image)?.len();
            if end * PAGE_SIZE > size.min(length) {
                return Err(MemoryError::Image(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it is shorter than the pages it should hold",
                )));
            }
            // Pages of the first file that it does not hold read as zero.
            let gap = if level == 0 { GAP } else { 0 };
            for run in pages.joined(gap, zero) {
                let long = level == 0 || run.end - run.start >= WORTH_MAPPING;
                if long && mappings < MOST_MAPPINGS {
                    mappings += 1;
                    ram.map_run(layer.file, &run)
                } else {
                    ram.read_run(layer.file, &run)
                }
                .map_err(MemoryError::Image)?;
            }
        }
        ram.take_dirty();
        Ok(ram)
    }

    fn map_run(&self, file: &File, run: &Range<u64>) -> io::Result<()> {
        let (offset, end) = (run.start * PAGE_SIZE, run.end * PAGE_SIZE);
        let start = self.host_base().wrapping_add(offset as usize);
        // SAFETY: `from_layers` has checked that the range lies in the mapping
        // that this RAM owns and nobody else has seen yet; it is replaced by
        // one of the same size and rights.
        let mapped = unsafe {
            libc::mmap(
                start.cast(),
                (end - offset) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        match mapped {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn read_run(&self, file: &File, run: &Range<u64>) -> io::Result<()> {
        let mut buffer = vec![0; (CHUNK * PAGE_SIZE) as usize];
        for part in chunks(run.clone()) {
            let bytes = &mut buffer[..((part.end - part.start) * PAGE_SIZE) as usize];
            file.read_exact_at(bytes, part.start * PAGE_SIZE)?;
            self.put(part.start, bytes)?;
        }
        Ok(())
    }

    fn put(&self, page: u64, bytes: &[u8]) -> io::Result<()> {
        for (at, bytes) in (page..).zip(bytes.chunks(PAGE_SIZE as usize)) {
            let gpa = self.gpa_of(at * PAGE_SIZE);
            self.write(gpa, bytes).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.size() / PAGE_SIZE
    }

    /// Copies pages out, run by run: at most 64 at a time, with the number of
    /// the first. A page that changes meanwhile may be a mixture.
    ///
    /// # Errors
    /// What `take` says.
    pub fn copy_pages(
        &self,
        set: &PageSet,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; (CHUNK * PAGE_SIZE) as usize];
        for run in set.runs() {
            for part in self.without_hole(run).flat_map(chunks) {
                let bytes = &mut buffer[..((part.end - part.start) * PAGE_SIZE) as usize];
                self.read(self.gpa_of(part.start * PAGE_SIZE), bytes)
                    .map_err(io::Error::other)?;
                take(part.start, bytes)?;
            }
        }
        Ok(())
    }

    /// A run of pages in parts whose addresses follow each other: the PCI hole
    /// lies between two pages that are neighbours in RAM.
    pub(crate) fn without_hole(&self, run: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let hole = self.low_size() / PAGE_SIZE;
        let halves = [run.start..run.end.min(hole), run.start.max(hole)..run.end];
        halves.into_iter().filter(|part| !part.is_empty())
    }
}

/// Of each layer: the pages that no later one hides, and the pages that later
/// ones make zero.
fn visible(layers: &[Layer<'_>], pages: u64) -> Vec<(PageSet, PageSet)> {
    let mut hidden = PageSet::none(pages);
    let mut zero = PageSet::none(pages);
    let mut visible = Vec::new();
    for layer in layers.iter().rev() {
        let mut own = layer.pages.clone();
        own.subtract(&hidden);
        visible.push((own, zero.clone()));
        hidden.union(layer.pages);
        hidden.union(layer.zero);
        zero.union(layer.zero);
    }
    visible.reverse();
    visible
}

/// A run in parts of at most [`CHUNK`] pages.
pub(crate) fn chunks(run: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = run.end;
    (run.start..end)
        .step_by(CHUNK as usize)
        .map(move |start| start..end.min(start + CHUNK))
}

/// Pages of RAM in a file.
pub struct Image {
    /// The file.
    pub file: File,
    /// Pages that it holds.
    pub pages: PageSet,
    /// Pages that were written too, and are zero: not in the file.
    pub zero: PageSet,
}

/// Writes pages of RAM to a file.
pub struct ImageWriter {
    file: File,
    stored: PageSet,
    /// Pages that were zero when they were to be written, and not stored before.
    zero: PageSet,
}

impl ImageWriter {
    /// Into an empty file.
    ///
    /// # Errors
    /// The host's.
    pub fn new(file: File, ram: &GuestRam) -> io::Result<Self> {
        file.set_len(ram.size())?;
        Ok(Self {
            file,
            stored: PageSet::none(ram.pages()),
            zero: PageSet::none(ram.pages()),
        })
    }

    /// Writes pages as they are now.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&mut self, ram: &GuestRam, set: &PageSet) -> io::Result<()> {
        ram.copy_pages(set, |page, bytes| self.put(page, bytes))
    }

    /// Writes consecutive pages with these contents.
    ///
    /// # Errors
    /// The host's.
    pub fn put(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let page_size = PAGE_SIZE as usize;
        let keep = |page: u64, bytes: &[u8]| self.stored.contains(page) || !is_zero(bytes);
        let kept: Vec<bool> = (first..)
            .zip(bytes.chunks(page_size))
            .map(|(page, bytes)| keep(page, bytes))
            .collect();
        let mut at = 0;
        while at < kept.len() {
            let same = kept[at..].iter().take_while(|k| **k == kept[at]).count();
            let run = first + at as u64..first + (at + same) as u64;
            if !kept[at] {
                self.zero.insert(run);
            } else {
                let bytes = &bytes[at * page_size..(at + same) * page_size];
                self.file.write_all_at(bytes, run.start * PAGE_SIZE)?;
                self.stored.insert(run);
            }
            at += same;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn with_file(self, file: File) -> Self {
        Self { file, ..self }
    }

    /// The file, for [`crate::FrozenRam`].
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Pages held so far.
    pub fn stored(&self) -> &PageSet {
        &self.stored
    }

    /// `stored` of `written` were not zero, or stored before.
    pub(crate) fn add(&mut self, written: &PageSet, stored: &PageSet) {
        self.zero.union(written);
        self.stored.union(stored);
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The host's.
    pub fn finish(mut self) -> io::Result<Image> {
        self.file.sync_all()?;
        self.zero.subtract(&self.stored);
        Ok(Image {
            file: self.file,
            pages: self.stored,
            zero: self.zero,
        })
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // In parts that the compiler compares in vector registers.
    let (parts, rest) = bytes.as_chunks::<64>();
    parts.iter().all(|part| *part == [0; 64]) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(run: Range<u64>) -> PageSet {
        let mut set = PageSet::none(256);
        set.insert(run);
        set
    }

    fn byte(ram: &GuestRam, page: u64) -> u8 {
        let mut b = [0];
        ram.read(ram.gpa_of(page * PAGE_SIZE) + 5, &mut b).unwrap();
        b[0]
    }

    fn set(ram: &GuestRam, page: u64, value: u8) {
        ram.write(ram.gpa_of(page * PAGE_SIZE) + 5, &[value])
            .unwrap();
    }

    #[test]
    fn ram_comes_back_from_its_layers() {
        let file = || tempfile::tempfile().unwrap();
        let ram = GuestRam::new(1 << 20, 1 << 19).unwrap();
        for page in [0, 3, 5, 100, 127, 128, 200] {
            set(&ram, page, page as u8 + 1);
        }
        let dirty = PageSet::from_bitmap(ram.take_dirty(), ram.pages());
        assert_eq!(dirty.count(), 7);
        let mut full = ImageWriter::new(file(), &ram).unwrap();
        full.write(&ram, &PageSet::all(256)).unwrap();
        let full = full.finish().unwrap();
        assert_eq!(full.pages, dirty);

        set(&ram, 5, 0);
        (40..70).for_each(|page| set(&ram, page, 9));
        let changed = PageSet::from_bitmap(ram.take_dirty(), ram.pages());
        let mut delta = ImageWriter::new(file(), &ram).unwrap();
        delta.write(&ram, &changed).unwrap();
        let delta = delta.finish().unwrap();
        assert_eq!(delta.pages, pages(40..70));
        assert_eq!(delta.zero, pages(5..6));

        let none = PageSet::none(256);
        let layers = [
            Layer {
                file: &full.file,
                pages: &full.pages,
                zero: &none,
            },
            Layer {
                file: &delta.file,
                pages: &delta.pages,
                zero: &delta.zero,
            },
        ];
        let again = GuestRam::from_layers(1 << 20, 1 << 19, &layers).unwrap();
        let other = GuestRam::from_layers(1 << 20, 1 << 19, &layers).unwrap();
        assert_eq!(again.take_dirty().iter().sum::<u64>(), 0);
        for page in 0..256 {
            assert_eq!(byte(&again, page), byte(&ram, page), "page {page}");
        }
        set(&again, 127, 77);
        set(&again, 41, 77);
        assert_eq!((byte(&other, 127), byte(&other, 41)), (128, 9));
        full.file.set_len(4096).unwrap();
        assert!(GuestRam::from_layers(1 << 20, 1 << 19, &layers[..1]).is_err());
    }
}
