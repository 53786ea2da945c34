//! VHD, Virtual PC's and Hyper-V's first format: fixed (a raw disk and a
//! footer) and dynamic (blocks where the allocation table says). Microsoft's
//! "Virtual Hard Disk Image Format Specification", version 1.0.

use std::fs::File;
use std::io;
use std::path::Path;

use super::bytes::{bad, exact, field};
use crate::ImagesError;
use crate::import::Source;

const SECTOR: u64 = 512;
const FOOTER: u64 = 512;
const DYNAMIC_HEADER: u64 = 1024;
/// An entry of the allocation table of a block that is not in the file.
const UNUSED: u32 = u32::MAX;
/// The format has no larger disks (2040 GiB).
const LARGEST: u64 = 2040 << 30;
/// Usual and least size of a block; some writers use others.
const BLOCKS: std::ops::RangeInclusive<u32> = 4096..=256 << 20;

/// An open VHD file.
#[derive(Debug)]
pub struct Vhd {
    file: File,
    size: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Fixed,
    Dynamic(Blocks),
}

#[derive(Debug)]
struct Blocks {
    /// Bytes of data in a block.
    size: u64,
    /// First sector of each block in the file.
    table: Vec<u32>,
    /// Bytes of the sector bitmap before a block's data.
    bitmap: u64,
}

impl Vhd {
    /// Opens a file.
    ///
    /// # Errors
    /// [`ImagesError::Malformed`], or the host's.
    pub fn open(path: &Path) -> Result<Self, ImagesError> {
        let file = File::open(path).map_err(ImagesError::host(path, "open it"))?;
        Self::from_file(file).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => ImagesError::Malformed {
                path: path.into(),
                reason: format!("it is no VHD that can be read: {e}"),
            },
            _ => ImagesError::host(path, "read it")(e),
        })
    }

    /// Reads the headers of a file.
    ///
    /// # Errors
    /// `InvalidData`: what is wrong with it; or the host's.
    pub fn from_file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let end = length
            .checked_sub(FOOTER)
            .ok_or_else(|| bad("it is too short"))?;
        let mut footer = [0; FOOTER as usize];
        exact(&file, &mut footer, end, "footer")?;
        if !is_footer(&footer) {
            // The copy of a dynamic disk's footer at its start.
            exact(&file, &mut footer, 0, "header")?;
            if !is_footer(&footer) || kind(&footer) == 2 {
                return Err(bad("its footer is missing or its checksum is wrong"));
            }
        }
        let size = u64::from_be_bytes(field(&footer, 48));
        if size == 0 || size > LARGEST || !size.is_multiple_of(SECTOR) {
            return Err(bad(format!("no VHD has a disk of {size} bytes")));
        }
        let kind = match kind(&footer) {
            2 if size > end => return Err(bad("the file is shorter than its disk")),
            2 => Kind::Fixed,
            3 => {
                let at = u64::from_be_bytes(field(&footer, 16));
                Kind::Dynamic(Blocks::read(&file, at, size, length)?)
            }
            4 => {
                return Err(bad(
                    "it is a differencing disk: merge it with its parent first",
                ));
            }
            other => return Err(bad(format!("disks of type {other} are not known"))),
        };
        Ok(Self { file, size, kind })
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads a part of the disk, which must lie on it.
    ///
    /// # Errors
    /// `InvalidData` for a damaged file, or the host's.
    pub fn read(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        Source::read(self, out, at)
    }
}

fn kind(footer: &[u8]) -> u32 {
    u32::from_be_bytes(field(footer, 60))
}

fn is_footer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"conectix") && checksum_holds(bytes, 64)
}

/// The checksum is the complement of the sum of all bytes but its own.
fn checksum_holds(bytes: &[u8], place: usize) -> bool {
    let stored = u32::from_be_bytes(field(bytes, place));
    stored == checksum(bytes, place)
}

pub(super) fn checksum(bytes: &[u8], place: usize) -> u32 {
    let own = place..place + 4;
    let others = bytes.iter().enumerate().filter(|(at, _)| !own.contains(at));
    !others
        .map(|(_, byte)| u32::from(*byte))
        .fold(0, u32::wrapping_add)
}

impl Blocks {
    fn read(file: &File, at: u64, disk: u64, length: u64) -> io::Result<Self> {
        let mut header = [0; DYNAMIC_HEADER as usize];
        exact(file, &mut header, at, "dynamic disk header")?;
        if !header.starts_with(b"cxsparse") || !checksum_holds(&header, 36) {
            return Err(bad(
                "its dynamic disk header is missing or its checksum is wrong",
            ));
        }
        let table_at = u64::from_be_bytes(field(&header, 16));
        let entries = u64::from(u32::from_be_bytes(field(&header, 28)));
        let size = u32::from_be_bytes(field(&header, 32));
        if !size.is_power_of_two() || !BLOCKS.contains(&size) {
            return Err(bad(format!("no VHD has blocks of {size} bytes")));
        }
        let (sectors, size) = (u64::from(size) / SECTOR, u64::from(size));
        let needed = disk.div_ceil(size);
        let fits = table_at
            .checked_add(needed * 4)
            .is_some_and(|end| end <= length);
        if entries < needed || !fits {
            return Err(bad("its block allocation table is too short"));
        }
        let mut bytes = vec![0; (needed * 4) as usize];
        exact(file, &mut bytes, table_at, "block allocation table")?;
        let table = bytes.as_chunks().0.iter().map(|b| u32::from_be_bytes(*b));
        Ok(Self {
            size,
            table: table.collect(),
            bitmap: sectors.div_ceil(8).next_multiple_of(SECTOR),
        })
    }

    /// Where the data of the block at `at` is, and how much of it is behind.
    fn find(&self, at: u64) -> (Option<u64>, u64) {
        let entry = usize::try_from(at / self.size).ok();
        let entry = entry.and_then(|index| self.table.get(index));
        let inside = at % self.size;
        let place = entry.filter(|sector| **sector != UNUSED);
        let place = place.map(|sector| u64::from(*sector) * SECTOR + self.bitmap + inside);
        (place, self.size - inside)
    }
}

impl Source for Vhd {
    fn size(&self) -> u64 {
        self.size
    }

    fn extent(&self, at: u64) -> io::Result<(bool, u64)> {
        let rest = self.size.saturating_sub(at);
        match &self.kind {
            Kind::Fixed => match crate::files::next_data(&self.file, at)? {
                Some((start, end)) if start <= at => Ok((true, (end - at).min(rest))),
                Some((start, _)) => Ok((false, (start - at).min(rest))),
                None => Ok((false, rest)),
            },
            Kind::Dynamic(blocks) => {
                let (place, length) = blocks.find(at);
                Ok((place.is_some(), length.min(rest)))
            }
        }
    }

    fn read(&self, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
        let Kind::Dynamic(blocks) = &self.kind else {
            return exact(&self.file, out, at, "data");
        };
        while !out.is_empty() {
            let (place, length) = blocks.find(at);
            let length = length.min(out.len() as u64);
            let (part, rest) = out.split_at_mut(length as usize);
            match place {
                Some(place) => exact(&self.file, part, place, "data")?,
                None => part.fill(0),
            }
            (out, at) = (rest, at + length);
        }
        Ok(())
    }
}
