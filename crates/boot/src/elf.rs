//! ELF kernels: header, program headers, notes, and loading into guest memory
//! (System V ABI, chapters 4 and 5). Nothing in the file is trusted.

use memory::GuestRam;

use crate::BootError;
use crate::content::Content;
use crate::map::{HIGH, put, put_zeros};

/// Why an ELF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file, or none for this machine.
    #[error("{0}")]
    Format(&'static str),
    /// The file ends inside something.
    #[error("it ends inside its {0}")]
    Truncated(&'static str),
    /// A segment's addresses make no sense.
    #[error("segment {index} at physical address {start:#x}, {size:#x} bytes in memory, {reason}")]
    Segment {
        /// Which program header.
        index: usize,
        /// Physical address.
        start: u64,
        /// Bytes in memory.
        size: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The compressed data is damaged.
    #[error("its data cannot be unpacked: {0}")]
    Unpack(String),
    /// A boot-level failure while loading.
    #[error(transparent)]
    Boot(Box<BootError>),
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Program headers of a real kernel: fewer than 20.
const MAX_SEGMENTS: u16 = 1024;
const MAX_NOTES: u64 = 1 << 20;

/// One program header.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

/// The headers of an ELF kernel.
#[derive(Clone, Debug)]
pub struct Elf {
    /// 64-bit class.
    pub is_64: bool,
    /// Entry point as in the header.
    pub entry: u64,
    segments: Vec<Segment>,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

impl Elf {
    /// Reads the headers.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn parse(content: &mut dyn Content) -> Result<Self, ElfError> {
        let mut h = [0u8; 64];
        content.read_at(0, &mut h[..52], "header")?;
        if h[..4] != *b"\x7fELF" {
            return Err(ElfError::Format("it has no ELF signature"));
        }
        if h[5] != 1 || !matches!(h[4], 1 | 2) {
            return Err(ElfError::Format("it is not little-endian 32-bit or 64-bit"));
        }
        let is_64 = h[4] == 2;
        content.read_at(0, &mut h[..if is_64 { 64 } else { 52 }], "header")?;
        if u16_at(&h, 16) != 2 && u16_at(&h, 16) != 3 {
            return Err(ElfError::Format(
                "it is an object or core file, not an executable",
            ));
        }
        match (is_64, u16_at(&h, 18)) {
            (true, EM_X86_64) | (false, EM_386 | EM_X86_64) => {}
            _ => return Err(ElfError::Format("it is for another processor than x86")),
        }
        let (entry, phoff, size, count) = if is_64 {
            (
                u64_at(&h, 24),
                u64_at(&h, 32),
                u16_at(&h, 54),
                u16_at(&h, 56),
            )
        } else {
            let word = |at| u64::from(u32_at(&h, at));
            (word(24), word(28), u16_at(&h, 42), u16_at(&h, 44))
        };
        let least = if is_64 { 56 } else { 32 };
        if usize::from(size) != least || count == 0 || count > MAX_SEGMENTS {
            return Err(ElfError::Format(
                "its program header table is missing or malformed",
            ));
        }
        let mut table = vec![0u8; usize::from(size) * usize::from(count)];
        content.read_at(phoff, &mut table, "program headers")?;
        let segments = table.chunks_exact(least).map(|p| Segment::parse(p, is_64));
        Ok(Self {
            is_64,
            entry,
            segments: segments.collect(),
        })
    }

    fn loads(&self) -> impl Iterator<Item = (usize, &Segment)> {
        let all = self.segments.iter().enumerate();
        all.filter(|(_, s)| s.kind == PT_LOAD && s.memsz > 0)
    }

    /// The entry point as a physical address: an entry given as a virtual
    /// address of a segment is moved to where that segment is loaded.
    pub fn physical_entry(&self) -> u64 {
        let inside = |at: u64, size: u64| self.entry >= at && self.entry - at < size;
        if self.loads().any(|(_, s)| inside(s.paddr, s.memsz)) {
            return self.entry;
        }
        let found = self.loads().find(|(_, s)| inside(s.vaddr, s.memsz));
        found.map_or(self.entry, |(_, s)| self.entry - s.vaddr + s.paddr)
    }

    /// Whether an address lies in what is loaded.
    pub fn contains(&self, at: u64) -> bool {
        self.loads()
            .any(|(_, s)| at >= s.paddr && at - s.paddr < s.memsz)
    }

    /// Checks where the segments go; one past the last address.
    ///
    /// # Errors
    /// [`ElfError::Segment`], [`BootError::NoRoom`].
    pub fn check(&self, ram: &GuestRam) -> Result<u64, ElfError> {
        let mut top = 0;
        for (index, s) in self.loads() {
            let bad = |reason| ElfError::Segment {
                index,
                start: s.paddr,
                size: s.memsz,
                reason,
            };
            let end = s.paddr.checked_add(s.memsz).filter(|e| *e < 1 << 32);
            let end = end.ok_or_else(|| bad("ends beyond 4 GiB"))?;
            if s.filesz > s.memsz {
                return Err(bad("has more bytes in the file than in memory"));
            }
            if s.paddr < HIGH {
                return Err(bad(
                    "begins below 1 MiB, where the machine keeps its tables",
                ));
            }
            if end > ram.low_size() {
                return Err(ElfError::Boot(Box::new(BootError::NoRoom {
                    what: "kernel",
                    needed: end,
                    available: ram.low_size(),
                })));
            }
            top = top.max(end);
        }
        if top == 0 {
            return Err(ElfError::Format("it has nothing to load"));
        }
        Ok(top)
    }

    /// Copies the segments to their physical addresses; one past the last.
    ///
    /// # Errors
    /// As [`Self::check`], and [`ElfError::Truncated`].
    pub fn load(&self, content: &mut dyn Content, ram: &GuestRam) -> Result<u64, ElfError> {
        let top = self.check(ram)?;
        let boot = |e| ElfError::Boot(Box::new(e));
        let mut order: Vec<&Segment> = self.loads().map(|(_, s)| s).collect();
        // A compressed file can only be read forwards.
        order.sort_by_key(|s| s.offset);
        for s in order {
            let mut done = 0;
            let mut chunk = vec![0u8; s.filesz.min(1 << 16) as usize];
            while done < s.filesz {
                let n = (s.filesz - done).min(chunk.len() as u64) as usize;
                let at = s.offset.checked_add(done);
                let at = at.ok_or(ElfError::Truncated("segments"))?;
                content.read_at(at, &mut chunk[..n], "segments")?;
                put(ram, "kernel", s.paddr + done, &chunk[..n]).map_err(boot)?;
                done += n as u64;
            }
            put_zeros(ram, "kernel", s.paddr + s.filesz, s.memsz - s.filesz).map_err(boot)?;
        }
        Ok(top)
    }

    /// Entry point of the PVH note (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`), if the
    /// kernel has one.
    pub fn pvh_entry(&self, content: &mut dyn Content) -> Option<u32> {
        let notes = self.segments.iter().filter(|s| s.kind == PT_NOTE);
        for s in notes.filter(|s| s.filesz <= MAX_NOTES) {
            let mut data = vec![0u8; s.filesz as usize];
            if content.read_at(s.offset, &mut data, "notes").is_ok()
                && let Some(entry) = find_pvh(&data)
            {
                return Some(entry);
            }
        }
        None
    }
}

/// Searches notes: name size, description size, type, name, description, each
/// padded to 4 bytes.
fn find_pvh(mut notes: &[u8]) -> Option<u32> {
    const PHYS32_ENTRY: u32 = 18;
    while notes.len() >= 12 {
        let pad = |n: u32| (n as usize).next_multiple_of(4);
        let (name, desc) = (u32_at(notes, 0), u32_at(notes, 4));
        let body = notes.get(12..)?;
        let value = body.get(pad(name)..)?;
        if u32_at(notes, 8) == PHYS32_ENTRY && body.get(..4)? == b"Xen\0" && name == 4 {
            return matches!(desc, 4 | 8)
                .then(|| value.get(..4).map(|v| u32_at(v, 0)))
                .flatten();
        }
        notes = value.get(pad(desc)..)?;
    }
    None
}

impl Segment {
    fn parse(p: &[u8], is_64: bool) -> Self {
        let word = |at| u64::from(u32_at(p, at));
        if is_64 {
            Self {
                kind: u32_at(p, 0),
                offset: u64_at(p, 8),
                vaddr: u64_at(p, 16),
                paddr: u64_at(p, 24),
                filesz: u64_at(p, 32),
                memsz: u64_at(p, 40),
            }
        } else {
            Self {
                kind: u32_at(p, 0),
                offset: word(4),
                vaddr: word(8),
                paddr: word(12),
                filesz: word(16),
                memsz: word(20),
            }
        }
    }
}
