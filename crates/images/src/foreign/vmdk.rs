//! VMDK, VMware's format, in one file: sparse, and the compressed streams of
//! exported appliances. VMware's "Virtual Disk Format 5.0". A descriptor that
//! names extents in other files is refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;

use flate2::read::ZlibDecoder;

use super::bytes::{bad, exact, field};
use crate::ImagesError;
use crate::import::Source;

const SECTOR: u64 = 512;
/// Grains are compressed.
const COMPRESSED: u32 = 1 << 16;
/// A grain's marker or an entry of zero means that there is none.
const ZEROED_GRAIN: u32 = 1;
/// The grain directory is said in the footer.
const AT_END: u64 = u64::MAX;
/// Most bytes of all grain tables: 16 TiB of 64 KiB grains.
const MOST_TABLES: u64 = 1 << 30;
/// Longest descriptor in bytes.
const LONGEST_DESCRIPTOR: u64 = 1 << 20;

/// An open VMDK file.
#[derive(Debug)]
pub struct Vmdk {
    file: File,
    size: u64,
    grain: u64,
    compressed: bool,
    zeroed: bool,
    /// First sector of each grain; 0: none.
    grains: Vec<u32>,
    /// The last compressed grain that was read: its number and contents.
    last: Mutex<(Option<usize>, Vec<u8>)>,
}

struct Header {
    flags: u32,
    capacity: u64,
    grain: u64,
    descriptor: (u64, u64),
    per_table: u64,
    directory: u64,
    compression: u16,
}

impl Header {
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        if !bytes.starts_with(b"KDMV") {
            return Err(match bytes.starts_with(b"# Disk Descriptor") {
                true => bad(
                    "it is only a descriptor, whose data is in other files: give the file with \
                     the data (often -flat.vmdk, as format raw), or convert it with its own tools",
                ),
                false => bad("it does not begin as a VMDK does"),
            });
        }
        let version = u32::from_le_bytes(field(bytes, 4));
        if !(1..=3).contains(&version) {
            return Err(bad(format!("version {version} is not known")));
        }
        let number = |at| u64::from_le_bytes(field(bytes, at));
        Ok(Self {
            flags: u32::from_le_bytes(field(bytes, 8)),
            capacity: number(12),
            grain: number(20),
            descriptor: (number(28), number(36)),
            per_table: u64::from(u32::from_le_bytes(field(bytes, 44))),
            directory: number(56),
            compression: u16::from_le_bytes(field(bytes, 77)),
        })
    }

    fn check(&self) -> io::Result<()> {
        let grain = self.grain;
        if !grain.is_power_of_two() || !(8..=2048).contains(&grain) {
            return Err(bad(format!("no VMDK has grains of {grain} sectors")));
        }
        if self.capacity == 0 || self.capacity > 1 << 40 {
            return Err(bad(format!(
                "no VMDK has a disk of {} sectors",
                self.capacity
            )));
        }
        if !(1..=1 << 16).contains(&self.per_table) {
            return Err(bad("its grain tables have no usable size"));
        }
        if self.flags & COMPRESSED != 0 && self.compression > 1 {
            return Err(bad("its compression is not known"));
        }
        Ok(())
    }
}

impl Vmdk {
    /// Opens a file.
    ///
    /// # Errors
    /// [`ImagesError::Malformed`], or the host's.
    pub fn open(path: &Path) -> Result<Self, ImagesError> {
        let file = File::open(path).map_err(ImagesError::host(path, "open it"))?;
        Self::from_file(file).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => ImagesError::Malformed {
                path: path.into(),
                reason: format!("it is no VMDK that can be read: {e}"),
            },
            _ => ImagesError::host(path, "read it")(e),
        })
    }

    /// Reads the headers and tables of a file.
    ///
    /// # Errors
    /// `InvalidData`: what is wrong with it; or the host's.
    pub fn from_file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut sector = [0; SECTOR as usize];
        exact(&file, &mut sector, 0, "header")?;
        let mut header = Header::parse(&sector)?;
        if header.directory == AT_END {
            // Before the end-of-stream marker, which is a sector.
            let at = length.checked_sub(2 * SECTOR);
            let at = at.ok_or_else(|| bad("the file ends before its footer"))?;
            exact(&file, &mut sector, at, "footer")?;
            header = Header::parse(&sector)?;
        }
        header.check()?;
        only_itself(&file, &header)?;
        let grains = tables(&file, &header, length)?;
        Ok(Self {
            file,
            size: header.capacity * SECTOR,
            grain: header.grain * SECTOR,
            compressed: header.flags & COMPRESSED != 0,
            zeroed: header.flags & 4 != 0,
            grains,
            last: Mutex::default(),
        })
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

    /// The number of the grain at a place, and its sector if it has one.
    fn find(&self, at: u64) -> (usize, Option<u64>) {
        let index = usize::try_from(at / self.grain).unwrap_or(usize::MAX);
        let sector = self.grains.get(index).copied().unwrap_or(0);
        let none = sector == 0 || (self.zeroed && sector == ZEROED_GRAIN);
        (index, (!none).then_some(u64::from(sector)))
    }

    fn read_compressed(
        &self,
        index: usize,
        sector: u64,
        out: &mut [u8],
        inside: usize,
    ) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
        if last.0 != Some(index) {
            last.0 = None;
            let mut marker = [0; 12];
            exact(&self.file, &mut marker, sector * SECTOR, "compressed grain")?;
            let size = u64::from(u32::from_le_bytes(field(&marker, 8)));
            if size == 0 || size > 2 * self.grain + 4096 {
                return Err(bad(format!("a compressed grain has {size} bytes")));
            }
            let mut packed = vec![0; size as usize];
            exact(
                &self.file,
                &mut packed,
                sector * SECTOR + 12,
                "compressed grain",
            )?;
            last.1.clear();
            ZlibDecoder::new(&*packed)
                .take(self.grain)
                .read_to_end(&mut last.1)
                .map_err(|e| bad(format!("a compressed grain cannot be unpacked: {e}")))?;
            last.1.resize(self.grain as usize, 0);
            last.0 = Some(index);
        }
        let there = last.1.get(inside..inside + out.len());
        out.copy_from_slice(there.ok_or_else(|| bad("a compressed grain is too short"))?);
        Ok(())
    }
}

/// Refuses a descriptor that names a parent, or data in other files.
fn only_itself(file: &File, header: &Header) -> io::Result<()> {
    let (at, length) = header.descriptor;
    if at == 0 || length == 0 {
        return Ok(());
    }
    let length = length.saturating_mul(SECTOR).min(LONGEST_DESCRIPTOR);
    let at = at
        .checked_mul(SECTOR)
        .ok_or_else(|| bad("its descriptor lies nowhere"))?;
    let mut bytes = vec![0; length as usize];
    exact(file, &mut bytes, at, "descriptor")?;
    let text = String::from_utf8_lossy(&bytes);
    let mut extents = 0;
    for line in text.split(['\n', '\0']).map(str::trim) {
        if let Some(parent) = line.strip_prefix("parentCID=")
            && !parent.eq_ignore_ascii_case("ffffffff")
        {
            return Err(bad(
                "it builds on another disk: join it with its parent first",
            ));
        }
        extents += u32::from(["RW ", "RDONLY "].iter().any(|word| line.starts_with(word)));
    }
    match extents {
        0 | 1 => Ok(()),
        _ => Err(bad(
            "its data is in several files: convert it with its own tools first",
        )),
    }
}

/// The places of all grains.
fn tables(file: &File, header: &Header, length: u64) -> io::Result<Vec<u32>> {
    let grains = header.capacity.div_ceil(header.grain);
    let tables = grains.div_ceil(header.per_table);
    let bytes = header.per_table * 4;
    let lies = || bad("its grain directory lies outside of the file");
    if tables.saturating_mul(bytes) > MOST_TABLES.min(length.saturating_mul(64)) {
        return Err(bad("its disk is too large for the file"));
    }
    let at = header.directory.checked_mul(SECTOR).ok_or_else(lies)?;
    if at.checked_add(tables * 4).is_none_or(|end| end > length) {
        return Err(lies());
    }
    let mut directory = vec![0; (tables * 4) as usize];
    exact(file, &mut directory, at, "grain directory")?;
    let mut found = Vec::new();
    let mut table = vec![0; bytes as usize];
    for entry in directory.as_chunks().0 {
        let sector = u64::from(u32::from_le_bytes(*entry));
        match sector {
            0 => table.fill(0),
            _ => exact(file, &mut table, sector * SECTOR, "grain table")?,
        }
        found.extend(table.as_chunks().0.iter().map(|e| u32::from_le_bytes(*e)));
    }
    found.truncate(grains as usize);
    Ok(found)
}

impl Source for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn extent(&self, at: u64) -> io::Result<(bool, u64)> {
        let rest = self.size.saturating_sub(at);
        let (_, sector) = self.find(at);
        Ok((sector.is_some(), (self.grain - at % self.grain).min(rest)))
    }

    fn read(&self, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
        while !out.is_empty() {
            let inside = at % self.grain;
            let length = (self.grain - inside).min(out.len() as u64);
            let (part, rest) = out.split_at_mut(length as usize);
            match self.find(at) {
                (_, None) => part.fill(0),
                (index, Some(sector)) if self.compressed => {
                    self.read_compressed(index, sector, part, inside as usize)?;
                }
                (_, Some(sector)) => exact(&self.file, part, sector * SECTOR + inside, "data")?,
            }
            (out, at) = (rest, at + length);
        }
        Ok(())
    }
}
