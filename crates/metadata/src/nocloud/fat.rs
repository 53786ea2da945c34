//! A FAT12 volume with a few files in its root folder, as Microsoft's FAT
//! specification 1.03 has it.

const SECTOR: usize = 512;
const SECTORS_PER_CLUSTER: usize = 8;
const CLUSTER: usize = SECTOR * SECTORS_PER_CLUSTER;
/// Sectors of the root folder, of 16 entries each.
const ROOT_SECTORS: usize = 2;
const ENTRY: usize = 32;
/// With more clusters it would be FAT16.
const MOST_CLUSTERS: usize = 4084;
/// Bytes of files that surely fit.
pub const MOST_BYTES: usize = (MOST_CLUSTERS - 16) * CLUSTER;
const END_OF_FILE: u16 = 0xfff;
const MEDIA: u8 = 0xf8;
/// UTF-16 units of a name in one entry.
const UNITS: usize = 13;

/// A volume; `None` if it would not hold the files.
pub fn volume(label: &str, files: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let mut clusters = Clusters::default();
    let mut root = entry(&padded(label), 0x08, 0, 0);
    for (index, (name, data)) in files.iter().enumerate() {
        let short = short_name(name, index);
        long_entries(&mut root, name, &short);
        let first = clusters.add(data)?;
        let size = u32::try_from(data.len()).ok()?;
        root.extend(entry(&short, 0x20, first, size));
    }
    if root.len() > ROOT_SECTORS * SECTOR {
        return None;
    }
    root.resize(ROOT_SECTORS * SECTOR, 0);
    let table = clusters.table();
    let mut volume = boot_sector(label, table.len() / SECTOR, clusters.count())?;
    volume.extend(table);
    volume.extend(root);
    volume.extend(clusters.data);
    Some(volume)
}

/// What the files are in.
#[derive(Default)]
struct Clusters {
    /// The next cluster of each, from cluster 2 on.
    next: Vec<u16>,
    data: Vec<u8>,
}

impl Clusters {
    fn count(&self) -> usize {
        self.next.len()
    }

    /// The first cluster of a file; 0 for an empty one.
    fn add(&mut self, data: &[u8]) -> Option<u16> {
        let count = data.len().div_ceil(CLUSTER);
        if count == 0 {
            return Some(0);
        }
        if self.count() + count > MOST_CLUSTERS {
            return None;
        }
        let first = u16::try_from(self.count() + 2).ok()?;
        for number in 1..=count {
            let next = u16::try_from(number).ok()?.checked_add(first)?;
            self.next
                .push(if number == count { END_OF_FILE } else { next });
        }
        self.data.extend(data);
        self.data.resize(self.count() * CLUSTER, 0);
        Some(first)
    }

    /// The allocation table: 12 bits for each cluster, two in three bytes.
    fn table(&self) -> Vec<u8> {
        let reserved = [0xf00 | u16::from(MEDIA), END_OF_FILE];
        let mut entries: Vec<u16> = reserved.into_iter().chain(self.next.clone()).collect();
        entries.resize(entries.len().next_multiple_of(2), 0);
        let pairs = entries.as_chunks::<2>().0.iter();
        let mut table: Vec<u8> = pairs
            .flat_map(|[a, b]| {
                let three = u32::from(*a) | u32::from(*b) << 12;
                three.to_le_bytes().into_iter().take(3)
            })
            .collect();
        table.resize(table.len().next_multiple_of(SECTOR), 0);
        table
    }
}

fn boot_sector(label: &str, table: usize, clusters: usize) -> Option<Vec<u8>> {
    let sectors = 1 + table + ROOT_SECTORS + clusters * SECTORS_PER_CLUSTER;
    let mut out = vec![0xeb, 0x3c, 0x90];
    out.extend(b"HOLM    ");
    out.extend(u16::try_from(SECTOR).ok()?.to_le_bytes());
    out.push(u8::try_from(SECTORS_PER_CLUSTER).ok()?);
    out.extend([1, 0, 1]); // reserved sectors, tables
    out.extend(
        u16::try_from(ROOT_SECTORS * SECTOR / ENTRY)
            .ok()?
            .to_le_bytes(),
    );
    out.extend(u16::try_from(sectors).ok()?.to_le_bytes());
    out.push(MEDIA);
    out.extend(u16::try_from(table).ok()?.to_le_bytes());
    out.extend([32, 0, 64, 0]); // sectors and heads, of no meaning
    out.extend([0; 8]); // hidden sectors, sectors beyond 65535
    out.extend([0x80, 0, 0x29]);
    out.extend(b"HOLM"); // volume id
    out.extend(padded(label));
    out.extend(b"FAT12   ");
    out.resize(SECTOR - 2, 0);
    out.extend([0x55, 0xaa]);
    Some(out)
}

/// An entry of the root folder. Its times are 1980-01-01, the earliest: the
/// same facts give the same volume.
fn entry(name: &[u8; 11], attributes: u8, cluster: u16, size: u32) -> Vec<u8> {
    const DATE: [u8; 2] = [0x21, 0];
    let mut out = name.to_vec();
    out.extend([attributes, 0, 0, 0, 0]);
    out.extend(DATE);
    out.extend(DATE);
    out.extend([0; 4]);
    out.extend(DATE);
    out.extend(cluster.to_le_bytes());
    out.extend(size.to_le_bytes());
    out
}

fn padded(text: &str) -> [u8; 11] {
    let mut out = [b' '; 11];
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    out
}

/// An alias of 8 letters that no other file has.
fn short_name(name: &str, index: usize) -> [u8; 11] {
    let letters: String = name.to_ascii_uppercase().chars().take(6).collect();
    padded(&format!("{letters}~{}", index % 9 + 1))
}

/// The entries that hold a name as it is, its end first.
fn long_entries(root: &mut Vec<u8>, name: &str, short: &[u8; 11]) {
    let sum = short
        .iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(UNITS) {
        units.push(0);
        units.resize(units.len().next_multiple_of(UNITS), 0xffff);
    }
    let parts = units.chunks(UNITS).zip(1u8..).collect::<Vec<_>>();
    for (last, (part, number)) in parts.into_iter().rev().enumerate() {
        let bytes: Vec<u8> = part.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default().iter();
        root.push(if last == 0 { number | 0x40 } else { number });
        root.extend(part(0, 10));
        root.extend([0x0f, 0, sum]);
        root.extend(part(10, 22));
        root.extend([0, 0]);
        root.extend(part(22, 26));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A guest's kernel reads such a volume in `e2e_metadata.rs`.
    #[test]
    fn a_volume_has_its_files() {
        let long = vec![7; 3 * CLUSTER + 1];
        let files: [(&str, &[u8]); 4] = [
            ("meta-data", b"hello"),
            ("user-data", &long),
            ("network-config", b""),
            ("thirteen-long", b"x"),
        ];
        let volume = volume("CIDATA", &files).unwrap();
        assert_eq!(volume.len() % SECTOR, 0);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("volume");
        std::fs::write(&file, &volume).unwrap();
        let mut check = Command::new("/usr/sbin/fsck.vfat");
        let check = check.arg("-nv").arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&check.stdout);
        assert!(check.status.success(), "{text}");
        // The label counts as one.
        assert!(text.contains(": 5 files, 6/6 clusters"), "{text}");
    }

    #[test]
    fn a_volume_of_any_size_that_fits_is_fat12() {
        for size in [0, 1, CLUSTER, MOST_BYTES] {
            let data = vec![1; size];
            let files: [(&str, &[u8]); 1] = [("user-data", &data)];
            let volume = volume("CIDATA", &files).unwrap();
            let at = volume.len() - size.next_multiple_of(CLUSTER);
            assert_eq!(&volume[at..at + size], data);
        }
        let data = vec![1; (MOST_CLUSTERS + 1) * CLUSTER];
        assert_eq!(volume("CIDATA", &[("user-data", &data)]), None);
    }
}
