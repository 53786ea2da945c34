//! FAT12, FAT16 and FAT32 (Microsoft FAT specification, 2000 and later).
//!
//! Our own reader: the crates for it (`fatfs` and its kin) refuse the small
//! FAT32 volumes that `mkfs.vfat -F 32` makes for EFI system partitions.

use super::{FileSystem, FsError, Kind, MOST_NAMES, Sink, absolute, check_size};
use crate::read::Window;

const KIND: &str = "vfat";
/// Bytes of a directory entry.
const ENTRY: usize = 32;
/// Most bytes of a directory: the specification's 65536 entries.
const LARGEST_DIRECTORY: u64 = 65_536 * ENTRY as u64;
/// FAT12 has fewer clusters than this, FAT16 fewer than FAT32's least.
const LEAST_FAT16: u64 = 4085;

/// Whether a boot sector has a FAT's parameters.
pub fn is_fat(sector: &[u8]) -> bool {
    let text = |at: usize| sector.get(at..at + 5).unwrap_or_default();
    let jump = matches!((byte(sector, 0), byte(sector, 2)), (0xeb, 0x90) | (0xe9, _));
    let named = matches!(text(54), b"FAT12" | b"FAT16" | b"FAT  ") || text(82) == b"FAT32";
    jump && named && Layout::parse(sector).is_some()
}

fn byte(data: &[u8], at: usize) -> u64 {
    u64::from(data.get(at).copied().unwrap_or_default())
}

fn word(data: &[u8], at: usize) -> u64 {
    byte(data, at) | byte(data, at + 1) << 8
}

fn long(data: &[u8], at: usize) -> u64 {
    word(data, at) | word(data, at + 2) << 16
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Where things are, in bytes.
#[derive(Clone, Copy, Debug)]
struct Layout {
    width: Width,
    /// First allocation table.
    table: u64,
    /// Root directory of FAT12 and FAT16, and its size.
    root: u64,
    root_size: u64,
    /// Root directory of FAT32: its first cluster.
    root_cluster: u64,
    /// First byte of cluster 2.
    data: u64,
    /// Bytes of a cluster.
    cluster: u64,
    /// Number of clusters.
    clusters: u64,
    id: u64,
    label: [u8; 11],
}

impl Layout {
    fn parse(sector: &[u8]) -> Option<Self> {
        let bytes = word(sector, 11);
        let per_cluster = byte(sector, 13);
        let (reserved, tables) = (word(sector, 14), byte(sector, 16));
        let small = word(sector, 22);
        let per_table = if small == 0 { long(sector, 36) } else { small };
        let total = match word(sector, 19) {
            0 => long(sector, 32),
            total => total,
        };
        let valid = matches!(bytes, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && matches!(tables, 1 | 2)
            && per_table > 0;
        if !valid {
            return None;
        }
        let root_size = word(sector, 17) * ENTRY as u64;
        let root = reserved + tables * per_table;
        let data = root + root_size.div_ceil(bytes);
        let clusters = total.checked_sub(data)? / per_cluster;
        // As Linux decides: by the table's size, not by the number of clusters,
        // which is often too small for FAT32 on an EFI system partition.
        let width = if small == 0 {
            Width::Fat32
        } else if clusters < LEAST_FAT16 {
            Width::Fat12
        } else {
            Width::Fat16
        };
        let at = if width == Width::Fat32 { 67 } else { 39 };
        Some(Self {
            width,
            table: reserved * bytes,
            root: root * bytes,
            root_size,
            root_cluster: long(sector, 44),
            data: data * bytes,
            cluster: per_cluster * bytes,
            clusters,
            id: long(sector, at),
            label: *sector.get(at + 4..)?.first_chunk()?,
        })
    }
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    short: String,
    directory: bool,
    /// First cluster; 0: empty, or the root directory.
    cluster: u64,
    size: u64,
}

struct Fat {
    part: Window,
    layout: Layout,
}

/// Opens the file system.
pub fn open(part: Window) -> Result<Box<dyn FileSystem>, FsError> {
    let sector = part.bytes(0, 512).map_err(|e| damaged(&e.to_string()))?;
    let layout = Layout::parse(&sector);
    let layout = layout.ok_or_else(|| damaged("its parameters contradict each other"))?;
    Ok(Box::new(Fat { part, layout }))
}

fn damaged(reason: &str) -> FsError {
    FsError::Damaged {
        kind: KIND,
        reason: reason.to_owned(),
    }
}

impl Fat {
    fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>, FsError> {
        let read = self.part.bytes(at, length);
        read.map_err(|e| damaged(&e.to_string()))
    }

    /// The cluster after this one; `None` at the end of the chain.
    fn next(&self, cluster: u64) -> Result<Option<u64>, FsError> {
        let table = self.layout.table;
        let (value, end) = match self.layout.width {
            Width::Fat12 => {
                let pair = word(&self.bytes(table + cluster + cluster / 2, 2)?, 0);
                let half = if cluster.is_multiple_of(2) {
                    pair
                } else {
                    pair >> 4
                };
                (half & 0xfff, 0xff8)
            }
            Width::Fat16 => (word(&self.bytes(table + cluster * 2, 2)?, 0), 0xfff8),
            Width::Fat32 => {
                let value = long(&self.bytes(table + cluster * 4, 4)?, 0);
                (value & 0x0fff_ffff, 0x0fff_fff8)
            }
        };
        Ok((value < end).then_some(value))
    }

    /// Passes `length` bytes of a chain on, from byte `from` on; how many there
    /// were.
    fn chain(&self, first: u64, from: u64, length: u64, to: Sink<'_>) -> Result<u64, FsError> {
        let layout = &self.layout;
        let mut cluster = Some(first).filter(|c| *c != 0);
        let (mut skip, mut done, mut walked) = (from, 0, 0);
        while let Some(at) = cluster.filter(|_| done < length) {
            walked += 1;
            if !(2..layout.clusters + 2).contains(&at) || walked > layout.clusters {
                return Err(damaged("a file's chain of clusters leads astray"));
            }
            if skip >= layout.cluster {
                skip -= layout.cluster;
            } else {
                let n = (layout.cluster - skip).min(length - done);
                let place = layout.data + (at - 2) * layout.cluster + skip;
                to(&self.bytes(place, n as usize)?)?;
                (skip, done) = (0, done + n);
            }
            cluster = self.next(at)?;
        }
        Ok(done)
    }

    /// The entries of the directory that starts at a cluster; 0: the root.
    fn directory(&self, cluster: u64) -> Result<Vec<Entry>, FsError> {
        let layout = &self.layout;
        let mut content = Vec::new();
        if cluster == 0 && layout.width != Width::Fat32 {
            let size = layout.root_size.min(LARGEST_DIRECTORY);
            content = self.bytes(layout.root, size as usize)?;
        } else {
            let first = if cluster == 0 {
                layout.root_cluster
            } else {
                cluster
            };
            self.chain(first, 0, LARGEST_DIRECTORY, &mut |piece| {
                content.extend_from_slice(piece);
                Ok(())
            })?;
        }
        Ok(entries(&content))
    }

    fn find(&self, path: &str) -> Result<Entry, FsError> {
        let mut here = Entry {
            name: String::new(),
            short: String::new(),
            directory: true,
            cluster: 0,
            size: 0,
        };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let missing = || FsError::NotFound(path.to_owned());
            if !here.directory {
                return Err(missing());
            }
            let wanted = name.to_lowercase();
            let all = self.directory(here.cluster)?;
            let same =
                |e: &Entry| e.name.to_lowercase() == wanted || e.short.to_lowercase() == wanted;
            here = all.into_iter().find(same).ok_or_else(missing)?;
        }
        Ok(here)
    }

    fn file(&self, path: &str) -> Result<Entry, FsError> {
        let entry = self.find(path)?;
        match entry.directory {
            true => Err(FsError::WrongType(path.to_owned())),
            false => Ok(entry),
        }
    }
}

/// The entries in a directory's bytes.
fn entries(content: &[u8]) -> Vec<Entry> {
    const END: u8 = 0;
    const DELETED: u8 = 0xe5;
    const LABEL: u64 = 0x08;
    const LONG: u64 = 0x0f;
    const DIRECTORY: u64 = 0x10;
    let mut found = Vec::new();
    let mut long_name = LongName::default();
    for raw in content.chunks_exact(ENTRY) {
        let attributes = byte(raw, 11);
        match raw.first() {
            Some(&END) | None => break,
            Some(&DELETED) => long_name = LongName::default(),
            _ if attributes & 0x3f == LONG => long_name.add(raw),
            _ if attributes & LABEL != 0 => long_name = LongName::default(),
            _ => {
                let short = short_name(raw);
                let name = std::mem::take(&mut long_name).finish(raw);
                found.push(Entry {
                    name: name.unwrap_or_else(|| short.clone()),
                    short,
                    directory: attributes & DIRECTORY != 0,
                    cluster: word(raw, 26) | word(raw, 20) << 16,
                    size: long(raw, 28),
                });
            }
        }
    }
    found.retain(|e| !matches!(e.name.as_str(), "." | ".."));
    found
}

/// A name of eight and three characters, in lower case where its bits say so.
fn short_name(raw: &[u8]) -> String {
    let part = |from: usize, to: usize, lower: bool| {
        let text: String = raw
            .get(from..to)
            .unwrap_or_default()
            .iter()
            .map(|b| if b.is_ascii() { char::from(*b) } else { '_' })
            .collect();
        let text = text.trim_end().to_owned();
        if lower { text.to_lowercase() } else { text }
    };
    let cases = byte(raw, 12);
    let (base, end) = (part(0, 8, cases & 8 != 0), part(8, 11, cases & 16 != 0));
    match end.as_str() {
        "" => base,
        end => format!("{base}.{end}"),
    }
}

/// A long name in the making: its parts come last first.
#[derive(Default)]
struct LongName {
    /// Parts in the order of the name.
    units: Vec<u16>,
    /// Number of the part that must come next; 0: the name is complete.
    next: u64,
    checksum: u64,
    valid: bool,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        const LAST: u64 = 0x40;
        const MOST_PARTS: u64 = 20;
        let order = byte(raw, 0);
        let number = order & 0x3f;
        if order & LAST != 0 && (1..=MOST_PARTS).contains(&number) {
            *self = Self {
                next: number,
                checksum: byte(raw, 13),
                valid: true,
                units: Vec::new(),
            };
        }
        if !self.valid || number != self.next || number == 0 || byte(raw, 13) != self.checksum {
            *self = Self::default();
            return;
        }
        self.next -= 1;
        let places = (1..11)
            .step_by(2)
            .chain((14..26).step_by(2))
            .chain([28, 30]);
        let mut units: Vec<u16> = places.map(|at| word(raw, at) as u16).collect();
        units.append(&mut self.units);
        self.units = units;
    }

    /// The name, if it belongs to the short one.
    fn finish(self, raw: &[u8]) -> Option<String> {
        let short = raw.get(..11)?;
        let sum = short
            .iter()
            .fold(0u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
        if !self.valid || self.next != 0 || self.checksum != u64::from(sum) {
            return None;
        }
        let end = self.units.iter().position(|u| *u == 0);
        let units = self.units.get(..end.unwrap_or(self.units.len()))?;
        String::from_utf16(units)
            .ok()
            .filter(|name| !name.is_empty())
    }
}

impl FileSystem for Fat {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn uuid(&self) -> String {
        let id = self.layout.id;
        format!("{:04X}-{:04X}", id >> 16, id & 0xffff)
    }

    fn label(&self) -> String {
        let label = String::from_utf8_lossy(&self.layout.label);
        let label = label.trim_end();
        if label == "NO NAME" { "" } else { label }.to_owned()
    }

    fn stat(&self, path: &str) -> Result<Kind, FsError> {
        let entry = self.find(&absolute(path)?)?;
        Ok(match entry.directory {
            true => Kind::Directory,
            false => Kind::File(entry.size),
        })
    }

    fn names(&self, path: &str) -> Result<Vec<String>, FsError> {
        let path = absolute(path)?;
        let entry = self.find(&path)?;
        if !entry.directory {
            return Err(FsError::WrongType(path));
        }
        let all = self.directory(entry.cluster)?.into_iter();
        Ok(all.take(MOST_NAMES).map(|e| e.name).collect())
    }

    fn copy(&self, path: &str, limit: u64, to: Sink<'_>) -> Result<u64, FsError> {
        let path = absolute(path)?;
        let entry = self.file(&path)?;
        check_size(&path, entry.size, limit)?;
        let done = self.chain(entry.cluster, 0, entry.size, to)?;
        match done == entry.size {
            true => Ok(done),
            false => Err(damaged("a file ends before its size")),
        }
    }

    fn read_part(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, FsError> {
        let entry = self.file(&absolute(path)?)?;
        let length = length.min(entry.size.saturating_sub(offset));
        let mut content = Vec::new();
        self.chain(entry.cluster, offset, length, &mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn directories_of_any_bytes_are_read(content in proptest::collection::vec(
            prop_oneof![Just(0x41u8), Just(0x0f), Just(0x40), Just(0x20), any::<u8>()], 0..2000))
        {
            for entry in entries(&content) {
                prop_assert!(!matches!(entry.name.as_str(), "." | ".."));
            }
        }

        #[test]
        fn boot_sectors_of_any_bytes_are_judged(mut sector in proptest::collection::vec(any::<u8>(), 512..513)) {
            let _ = is_fat(&sector);
            sector[11..13].copy_from_slice(&[0, 2]);
            sector[13] = 8;
            sector[16] = 2;
            if let Some(layout) = Layout::parse(&sector) {
                prop_assert!(layout.data >= layout.table);
            }
        }
    }
}
