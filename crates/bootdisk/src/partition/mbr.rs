//! The master boot record and its chain of logical partitions.

use super::{Partition, Purpose, Scheme, number};
use crate::read::{ReadAt, Window};

/// Most logical partitions; Linux stops at 60 too.
const MOST_LOGICAL: usize = 60;

/// An entry of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    status: u8,
    kind: u8,
    /// In sectors.
    start: u64,
    /// In sectors.
    size: u64,
}

impl Entry {
    /// Whether it describes anything.
    pub fn used(&self) -> bool {
        self.kind != 0 && self.size != 0
    }

    /// Whether it keeps programs that know no GPT away from one.
    pub fn is_protective(&self) -> bool {
        self.kind == 0xee
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// Whether the sector ends as a boot sector does.
pub fn is_signed(sector: &[u8]) -> bool {
    sector.get(510..512) == Some(&[0x55, 0xaa])
}

/// The four entries of a boot record.
pub fn entries(sector: &[u8]) -> [Entry; 4] {
    [0, 1, 2, 3].map(|index| {
        let at = 446 + index * 16;
        Entry {
            status: number::<1>(sector, at) as u8,
            kind: number::<1>(sector, at + 4) as u8,
            start: number::<4>(sector, at + 8),
            size: number::<4>(sector, at + 12),
        }
    })
}

/// Whether this is a table and not a boot sector's program.
pub fn is_plausible(entries: &[Entry]) -> bool {
    entries.iter().all(|e| e.status & 0x7f == 0) && entries.iter().any(Entry::used)
}

/// The partitions of an MBR disk.
///
/// The table does not say how large its sectors are: 4096 bytes if that, and
/// not 512, finds a file system.
pub fn read(disk: &Window, sector: &[u8]) -> Vec<Partition> {
    let with = |size: u64| read_with(disk, sector, size);
    let small = with(512);
    if small.iter().any(|p| is_known(disk, p)) {
        return small;
    }
    let large = with(4096);
    if large.iter().any(|p| is_known(disk, p)) {
        return large;
    }
    small
}

fn is_known(disk: &Window, partition: &Partition) -> bool {
    let part = Window::new(
        std::rc::Rc::new(disk.clone()),
        partition.start,
        partition.size,
    );
    crate::filesystem::signature(&part).is_some()
}

fn read_with(disk: &Window, sector: &[u8], bytes: u64) -> Vec<Partition> {
    let id = number::<4>(sector, 440);
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(entries(sector)) {
        if entry.used() && entry.is_extended() {
            extended = extended.or(Some(entry.start));
        } else if entry.used() {
            found.extend(partition(disk, number, entry, 0, bytes, id));
        }
    }
    if let Some(base) = extended {
        logical(disk, base, bytes, id, &mut found);
    }
    found
}

/// Follows the chain of extended boot records: in each the first entry is a
/// logical partition, relative to the record, and the second the next record,
/// relative to the extended partition.
fn logical(disk: &Window, base: u64, bytes: u64, id: u64, found: &mut Vec<Partition>) {
    let mut at = base;
    let mut seen = Vec::new();
    let mut next_number = 5;
    while seen.len() < MOST_LOGICAL && !seen.contains(&at) {
        seen.push(at);
        let record = at
            .checked_mul(bytes)
            .and_then(|b| disk.bytes(b, 512).ok())
            .filter(|record| is_signed(record));
        let Some(record) = record else { return };
        let all = entries(&record);
        for entry in all.iter().filter(|e| e.used() && !e.is_extended()) {
            found.extend(partition(disk, next_number, *entry, at, bytes, id));
            next_number += 1;
        }
        let Some(link) = all.iter().find(|e| e.used() && e.is_extended()) else {
            return;
        };
        let Some(next) = base.checked_add(link.start) else {
            return;
        };
        at = next;
    }
}

fn partition(
    disk: &Window,
    number: u32,
    entry: Entry,
    base: u64,
    bytes: u64,
    id: u64,
) -> Option<Partition> {
    let start = base.checked_add(entry.start)?.checked_mul(bytes)?;
    let room = disk.size().checked_sub(start).filter(|room| *room > 0)?;
    Some(Partition {
        number,
        start,
        size: entry.size.checked_mul(bytes)?.min(room),
        scheme: Scheme::Mbr,
        purpose: match entry.kind {
            0xef => Purpose::Esp,
            0xea => Purpose::ExtendedBoot,
            _ => Purpose::Other,
        },
        uuid: format!("{id:08x}-{number:02x}"),
    })
}
