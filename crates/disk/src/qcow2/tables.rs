//! Reading the tables of a qcow2 image in bounded time and memory, whatever
//! they hold.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;

use super::header::{Header, length_of, read_padded, refuse};

/// Bits of an L1 or L2 entry that are a host offset.
pub(crate) const OFFSET_BITS: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster belongs to this entry alone (bit 63).
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Nothing: the backing file's, or zeroes.
    None,
    /// Data at a host offset.
    Data(u64),
    /// Zeroes, with space reserved at a host offset.
    Zero(Option<u64>),
    /// Compressed data: host offset and bytes.
    Compressed(u64, u64),
}

/// An image's tables, read-only.
pub(crate) struct Tables<'a> {
    pub file: &'a File,
    pub header: &'a Header,
    /// Bytes of the file, up to whole clusters.
    pub end: u64,
}

impl<'a> Tables<'a> {
    pub(crate) fn new(file: &'a File, header: &'a Header) -> io::Result<Self> {
        let end = length_of(file)?
            .checked_next_multiple_of(header.cluster_size())
            .ok_or_else(|| refuse("the file is too long"))?;
        Ok(Self { file, header, end })
    }

    /// Whether a cluster lies within the file and is aligned.
    pub(crate) fn valid(&self, offset: u64) -> bool {
        offset.is_multiple_of(self.header.cluster_size())
            && offset >= self.header.cluster_size()
            && offset < self.end
    }

    /// The L1 table.
    pub(crate) fn l1(&self) -> io::Result<Vec<u64>> {
        let length = self.header.l1_entries as usize * 8;
        self.entries(self.header.l1_offset, length)
    }

    /// The refcount table.
    pub(crate) fn reftable(&self) -> io::Result<Vec<u64>> {
        let length = u64::from(self.header.reftable_clusters) << self.header.cluster_bits;
        self.entries(self.header.reftable_offset, length as usize)
    }

    /// A cluster of 64-bit entries; `None`: a hole, all zero.
    pub(crate) fn table(&self, offset: u64) -> io::Result<Option<Vec<u64>>> {
        let length = self.header.cluster_size();
        if self.is_hole(offset, length) {
            return Ok(None);
        }
        self.entries(offset, length as usize).map(Some)
    }

    /// The bytes of a cluster; `None`: a hole, all zero.
    pub(crate) fn cluster(&self, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let length = self.header.cluster_size();
        if self.is_hole(offset, length) {
            return Ok(None);
        }
        let mut bytes = vec![0; length as usize];
        read_padded(self.file, &mut bytes, offset)?;
        Ok(Some(bytes))
    }

    fn entries(&self, offset: u64, length: usize) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; length];
        read_padded(self.file, &mut bytes, offset)?;
        let entry = |b: &[u8]| b.try_into().map_or(0, u64::from_be_bytes);
        Ok(bytes.chunks_exact(8).map(entry).collect())
    }

    /// Tables can be many and a file mostly holes: those cost no reading.
    fn is_hole(&self, offset: u64, length: u64) -> bool {
        match rustix::fs::seek(self.file, SeekFrom::Data(offset)) {
            Ok(data) => data >= offset + length,
            Err(error) => error == rustix::io::Errno::NXIO,
        }
    }

    /// The L2 table of an L1 entry.
    ///
    /// # Errors
    /// What is wrong with the entry.
    pub(crate) fn l2_of(&self, entry: u64) -> Result<Option<u64>, String> {
        if entry & L1_RESERVED != 0 {
            return Err(format!("L1 entry {entry:#x} has reserved bits set"));
        }
        match entry & OFFSET_BITS {
            0 => Ok(None),
            offset if self.valid(offset) => Ok(Some(offset)),
            offset => Err(format!("an L2 table at {offset:#x} is not within the file")),
        }
    }

    /// What an L2 entry says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn mapping(&self, entry: u64) -> Result<Mapping, String> {
        if entry & COMPRESSED != 0 {
            return self.compressed(entry);
        }
        if entry & L2_RESERVED != 0 || (entry & ZERO != 0 && self.header.version < 3) {
            return Err(format!("L2 entry {entry:#x} has reserved bits set"));
        }
        let offset = match entry & OFFSET_BITS {
            0 => None,
            offset if self.valid(offset) => Some(offset),
            offset => return Err(format!("a cluster at {offset:#x} is not within the file")),
        };
        Ok(match offset {
            _ if entry & ZERO != 0 => Mapping::Zero(offset),
            Some(offset) => Mapping::Data(offset),
            None => Mapping::None,
        })
    }

    fn compressed(&self, entry: u64) -> Result<Mapping, String> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let length = (sectors + 1) * 512 - (offset & 511);
        let end = offset.saturating_add(length);
        let inside = offset >= self.header.cluster_size() && end <= self.end;
        if entry & COPIED != 0 || !inside {
            return Err(format!(
                "compressed cluster {entry:#x} is not within the file, or wrongly marked"
            ));
        }
        Ok(Mapping::Compressed(offset, length))
    }
}
