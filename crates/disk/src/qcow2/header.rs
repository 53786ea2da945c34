//! The header of a qcow2 image, checked before anything else reads it.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.txt`. Every size and
//! position is bounded here, so that what follows can trust them; features
//! that Holm does not read are refused by name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::format::MAGIC;

/// Length of a version 2 header, in bytes.
const V2_LENGTH: usize = 72;
/// Least length of a version 3 header, in bytes.
const V3_LENGTH: usize = 104;
/// Most entries of an L1 table, as in QEMU.
const MAX_L1_ENTRIES: u32 = 4 << 20;
/// Largest refcount table in bytes, as in QEMU.
const MAX_REFTABLE: u64 = 8 << 20;
/// Longest backing file name, by the format.
const MAX_NAME: u32 = 1023;
/// Most header extensions that are looked at.
const MAX_EXTENSIONS: usize = 64;
/// Bytes of an entry of the feature name table.
const FEATURE_NAME: usize = 48;
/// Position of the incompatible feature bits.
pub(crate) const INCOMPATIBLE_AT: u64 = 72;
/// Position of the autoclear feature bits.
const AUTOCLEAR_AT: u64 = 88;

/// Refcounts may be wrong: the image was not closed.
pub(crate) const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
/// Incompatible features by bit.
const INCOMPATIBLE: [&str; 5] = [
    "dirty",
    "corrupt",
    "an external data file",
    "a compression other than zlib",
    "extended L2 entries (subclusters)",
];

/// Header extensions by type.
mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const BITMAPS: u32 = 0x2385_2875;
}

/// What an image says about the file it builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    /// As written: relative to the image's directory, or absolute.
    pub name: String,
    /// `raw`, `qcow2` or what else was written.
    pub format: Option<String>,
}

/// A checked header.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub refcount_order: u32,
    pub incompatible: u64,
    pub autoclear: u64,
    pub length: u32,
    pub backing: Option<Backing>,
    /// Extensions but the end and the backing format, as they are.
    pub extensions: Vec<(u32, Vec<u8>)>,
}

impl Header {
    /// Reads and checks the header of a file.
    ///
    /// # Errors
    /// `InvalidData` with the reason for people, or the host's error.
    pub(crate) fn read(file: &File) -> io::Result<Self> {
        let file_length = length_of(file)?;
        let mut first = vec![0; V3_LENGTH];
        read_padded(file, &mut first, 0)?;
        if first.get(..4) != Some(&MAGIC) {
            return Err(refuse("it does not begin as a qcow2 image does"));
        }
        let mut header = Self::parse_fixed(&first)?;
        header.check_features()?;
        header.check_places(file_length)?;
        let cluster = usize::try_from(header.cluster_size()).map_err(io::Error::other)?;
        let mut whole = vec![0; cluster];
        read_padded(file, &mut whole, 0)?;
        header.parse_variable(&whole)?;
        Ok(header)
    }

    fn parse_fixed(first: &[u8]) -> io::Result<Self> {
        let version = u32_at(first, 4);
        if !matches!(version, 2 | 3) {
            return Err(refuse(format!(
                "it is of version {version}; versions 2 and 3 are known"
            )));
        }
        let v3 = version == 3;
        let header = Self {
            version,
            cluster_bits: u32_at(first, 20),
            size: u64_at(first, 24),
            l1_entries: u32_at(first, 36),
            l1_offset: u64_at(first, 40),
            reftable_offset: u64_at(first, 48),
            reftable_clusters: u32_at(first, 56),
            snapshots: u32_at(first, 60),
            incompatible: if v3 { u64_at(first, 72) } else { 0 },
            autoclear: if v3 { u64_at(first, 88) } else { 0 },
            refcount_order: if v3 { u32_at(first, 96) } else { 4 },
            length: if v3 {
                u32_at(first, 100)
            } else {
                V2_LENGTH as u32
            },
            backing: None,
            extensions: Vec::new(),
        };
        if !(9..=21).contains(&header.cluster_bits) {
            return Err(refuse(format!(
                "its clusters would have 2^{} bytes; 512 bytes to 2 MiB are possible",
                header.cluster_bits
            )));
        }
        match u32_at(first, 32) {
            0 => Ok(header),
            _ => Err(refuse(
                "it is encrypted, which Holm does not read; convert it with qemu-img",
            )),
        }
    }

    fn check_features(&self) -> io::Result<()> {
        let unknown = self.incompatible & !(DIRTY | CORRUPT);
        if unknown != 0 {
            let bit = unknown.trailing_zeros() as usize;
            let name = INCOMPATIBLE.get(bit).copied().unwrap_or("a newer feature");
            return Err(refuse(format!(
                "it uses {name} (incompatible feature {bit}), which Holm does not read; \
                 convert it with qemu-img"
            )));
        }
        if self.refcount_order > 6 {
            return Err(refuse("its refcounts are wider than 64 bits"));
        }
        let length = u64::from(self.length);
        let least = if self.version == 3 {
            V3_LENGTH
        } else {
            V2_LENGTH
        };
        let room = least as u64..=self.cluster_size();
        if !room.contains(&length) || !length.is_multiple_of(8) {
            return Err(refuse(format!("its header has the length {length}")));
        }
        Ok(())
    }

    fn check_places(&self, file_length: u64) -> io::Result<()> {
        let cluster = self.cluster_size();
        if self.size > i64::MAX as u64 {
            return Err(refuse("its disk is larger than 8 EiB"));
        }
        // Files may end within their last cluster.
        let end = file_length
            .checked_next_multiple_of(cluster)
            .ok_or_else(|| refuse("the file is too long"))?;
        let inside = |what: &str, offset: u64, length: u64| {
            let fits = offset.checked_add(length).is_some_and(|e| e <= end);
            if offset.is_multiple_of(cluster) && offset >= cluster && fits {
                return Ok(());
            }
            Err(refuse(format!(
                "its {what} at {offset:#x} of {length} bytes is not within the file"
            )))
        };
        let covered = u128::from(self.l1_entries) << (self.cluster_bits * 2 - 3);
        if self.l1_entries > MAX_L1_ENTRIES || covered < u128::from(self.size) {
            return Err(refuse(format!(
                "its L1 table has {} entries, which does not fit a disk of {} bytes",
                self.l1_entries, self.size
            )));
        }
        if self.l1_entries > 0 {
            let length = u64::from(self.l1_entries) * 8;
            inside("L1 table", self.l1_offset, length)?;
        }
        let length = u64::from(self.reftable_clusters) << self.cluster_bits;
        if length == 0 || length > MAX_REFTABLE {
            return Err(refuse(format!("its refcount table has {length} bytes")));
        }
        inside("refcount table", self.reftable_offset, length)
    }

    /// The extensions and the backing file's name.
    fn parse_variable(&mut self, whole: &[u8]) -> io::Result<()> {
        let mut at = self.length as usize;
        let mut format = None;
        // Version 2 has extensions too; an image may end its header anywhere.
        while let Some(head) = whole.get(at..at.saturating_add(8)) {
            let (kind, length) = (u32_at(head, 0), u32_at(head, 4) as usize);
            if kind == extension::END {
                break;
            }
            at += 8;
            let data = whole
                .get(at..at.saturating_add(length))
                .ok_or_else(|| refuse("a header extension goes beyond the first cluster"))?;
            at += length.next_multiple_of(8);
            match kind {
                extension::BACKING_FORMAT if format.is_some() => {
                    return Err(refuse("it names two backing formats"));
                }
                extension::BACKING_FORMAT => format = Some(text(data, "backing format")?),
                extension::FEATURE_NAMES if !length.is_multiple_of(FEATURE_NAME) => {
                    return Err(refuse("its table of feature names is cut"));
                }
                _ => self.extensions.push((kind, data.to_vec())),
            }
            if self.extensions.len() > MAX_EXTENSIONS {
                return Err(refuse("it has too many header extensions"));
            }
        }
        let (offset, length) = (u64_at(whole, 8), u32_at(whole, 16));
        if offset == 0 {
            return Ok(());
        }
        let name = usize::try_from(offset)
            .ok()
            .filter(|_| (1..=MAX_NAME).contains(&length))
            .and_then(|from| whole.get(from..from.checked_add(length as usize)?))
            .ok_or_else(|| refuse("its backing file's name is not within the first cluster"))?;
        self.backing = Some(Backing {
            name: text(name, "backing file's name")?,
            format,
        });
        Ok(())
    }

    /// Bytes of a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Refcounts in one block.
    pub(crate) fn block_entries(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Refcounts may be wrong.
    pub(crate) fn is_dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// Why the image may not be written, if so.
    pub(crate) fn unwritable(&self) -> Option<String> {
        if self.incompatible & CORRUPT != 0 {
            return Some(
                "it is marked as corrupt; see `holm disk check`, or read it only (readonly)".into(),
            );
        }
        (self.snapshots > 0).then(|| {
            format!(
                "it has {} internal snapshots, which Holm does not keep; read it only \
                 (readonly), or convert it",
                self.snapshots
            )
        })
    }

    /// Whether QEMU's persistent bitmaps occupy clusters that only they know.
    pub(crate) fn has_bitmaps(&self) -> bool {
        self.extensions
            .iter()
            .any(|(kind, _)| *kind == extension::BITMAPS)
    }

    /// Sets or clears the dirty bit in the file; version 2 has none.
    pub(crate) fn mark_dirty(&mut self, file: &File, dirty: bool) -> io::Result<()> {
        if self.version < 3 || self.is_dirty() == dirty {
            return Ok(());
        }
        let features = self.incompatible ^ DIRTY;
        file.write_all_at(&features.to_be_bytes(), INCOMPATIBLE_AT)?;
        self.incompatible = features;
        Ok(())
    }

    /// Clears the autoclear bits, as one must before writing what belongs to
    /// features that one does not maintain.
    pub(crate) fn autoclear(&mut self, file: &File) -> io::Result<()> {
        if self.autoclear != 0 {
            file.write_all_at(&0u64.to_be_bytes(), AUTOCLEAR_AT)?;
            self.autoclear = 0;
        }
        Ok(())
    }

    /// The first cluster with another backing file. The fixed part comes from
    /// `file`, so nothing that Holm does not know is lost.
    ///
    /// # Errors
    /// `InvalidInput` if the name does not fit.
    pub(crate) fn with_backing(
        &self,
        file: &File,
        backing: Option<&Backing>,
    ) -> io::Result<Vec<u8>> {
        let cluster = self.cluster_size() as usize;
        let mut out = vec![0; self.length as usize];
        read_padded(file, &mut out, 0)?;
        let mut extension = |kind: u32, data: &[u8]| {
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&(data.len() as u32).to_be_bytes());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if let Some(format) = backing.and_then(|b| b.format.as_ref()) {
            extension(extension::BACKING_FORMAT, format.as_bytes());
        }
        for (kind, data) in &self.extensions {
            extension(*kind, data);
        }
        extension(extension::END, &[]);
        let name = backing.map_or("", |b| &b.name);
        let at = if backing.is_some() { out.len() } else { 0 };
        out.extend_from_slice(name.as_bytes());
        if out.len() > cluster || name.len() > MAX_NAME as usize {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the backing file's name is too long for the image's header",
            ));
        }
        put(&mut out, 8, &(at as u64).to_be_bytes());
        put(&mut out, 16, &(name.len() as u32).to_be_bytes());
        out.resize(cluster, 0);
        Ok(out)
    }
}

/// Length of a file or block device in bytes.
pub(crate) fn length_of(file: &File) -> io::Result<u64> {
    let mut file = file;
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Reads; what lies behind the end of the file is zero.
pub(crate) fn read_padded(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => {
                rest.fill(0);
                return Ok(());
            }
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An image that is not taken, and why.
pub(crate) fn refuse(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn text(bytes: &[u8], what: &str) -> io::Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(refuse(format!("its {what} is no text"))),
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in out.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}
