//! The GUID partition table: primary, or the backup at the disk's end.

use super::{MOST, Partition, Purpose, Scheme, Table, number};
use crate::read::{ReadAt, Window};

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Least and most bytes of a header (UEFI 2.10, table 5-5).
const HEADER: std::ops::RangeInclusive<u64> = 92..=512;
/// Most bytes of the array of entries; the usual 128 take 16 KiB.
const MOST_BYTES: u64 = 1 << 20;
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const EXTENDED_BOOT: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";

/// Reads the table with sectors of 512, then of 4096 bytes.
pub fn read(disk: &Window) -> Table {
    let mut notes = Vec::new();
    let places = |sector: u64| {
        let last = (disk.size() / sector).saturating_sub(1);
        [(sector, 1, "primary"), (sector, last, "backup")]
    };
    for (sector, lba, which) in [512, 4096].into_iter().flat_map(places) {
        match entries(disk, sector, lba) {
            Ok(partitions) => {
                if which == "backup" {
                    notes.push(
                        "the primary GPT is damaged; its backup at the end of the disk was used \
                         (repair it with `sgdisk --load-backup` or fdisk)"
                            .into(),
                    );
                }
                if sector == 4096 {
                    notes.push(
                        "the GPT counts in sectors of 4096 bytes: a guest finds its partitions \
                         only if the disk is attached with blocks of that size"
                            .into(),
                    );
                }
                return Table { partitions, notes };
            }
            Err(Some(reason)) => notes.push(format!("{which} GPT: {reason}")),
            Err(None) => {}
        }
    }
    Table {
        partitions: Vec::new(),
        notes,
    }
}

/// The entries of the table with its header at `lba`; no reason: there is none.
fn entries(disk: &Window, sector: u64, lba: u64) -> Result<Vec<Partition>, Option<String>> {
    let wrong = |what: &str| Some(what.to_owned());
    let at = lba.checked_mul(sector).ok_or(None)?;
    let header = disk.bytes(at, 512).map_err(|_| None)?;
    if !header.starts_with(SIGNATURE) {
        return Err(None);
    }
    let size = number::<4>(&header, 12);
    if !HEADER.contains(&size) {
        return Err(wrong("its header has an impossible size"));
    }
    let mut summed = header.get(..size as usize).unwrap_or_default().to_vec();
    if let Some(sum) = summed.get_mut(16..20) {
        sum.fill(0);
    }
    if u64::from(crc32fast::hash(&summed)) != number::<4>(&header, 16) {
        return Err(wrong("the checksum of its header is wrong"));
    }
    if number::<8>(&header, 24) != lba {
        return Err(wrong("its header says that it is elsewhere"));
    }
    let count = number::<4>(&header, 80);
    let entry_size = number::<4>(&header, 84);
    let bytes = count.saturating_mul(entry_size);
    if !entry_size.is_multiple_of(128) || entry_size == 0 || bytes == 0 || bytes > MOST_BYTES {
        return Err(wrong("its array of entries has an impossible size"));
    }
    let at = number::<8>(&header, 72).checked_mul(sector);
    let array = at
        .and_then(|at| disk.bytes(at, bytes as usize).ok())
        .ok_or_else(|| wrong("its array of entries is not on the disk"))?;
    if u64::from(crc32fast::hash(&array)) != number::<4>(&header, 88) {
        return Err(wrong("the checksum of its entries is wrong"));
    }
    let all = (1..).zip(array.chunks_exact(entry_size as usize));
    Ok(all
        .filter_map(|(n, entry)| partition(n, entry, sector, disk.size()))
        .take(MOST)
        .collect())
}

fn partition(number_: u32, entry: &[u8], sector: u64, disk: u64) -> Option<Partition> {
    let kind = guid(entry.get(..16)?);
    if kind == guid(&[0; 16]) {
        return None;
    }
    let start = number::<8>(entry, 32).checked_mul(sector)?;
    let end = number::<8>(entry, 40).checked_add(1)?.checked_mul(sector)?;
    let size = end.checked_sub(start).filter(|size| *size > 0)?;
    (start < disk).then(|| Partition {
        number: number_,
        start,
        size: size.min(disk - start),
        scheme: Scheme::Gpt,
        purpose: match kind.as_str() {
            ESP => Purpose::Esp,
            EXTENDED_BOOT => Purpose::ExtendedBoot,
            _ => Purpose::Other,
        },
        uuid: guid(entry.get(16..32).unwrap_or_default()),
    })
}

/// A GUID as it is written; its first three fields are little-endian.
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (position, index) in ORDER.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{:02x}", bytes.get(index).copied().unwrap_or_default());
    }
    text
}
