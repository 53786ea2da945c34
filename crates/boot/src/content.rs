//! Reading a kernel's bytes, from memory or while they are unpacked.

use std::io::Read;

use crate::elf::ElfError;
use crate::file::ImageFile;

/// Bytes by offset.
pub trait Content {
    /// Fills `out` from `offset` on; `what` is named if the bytes end before.
    ///
    /// # Errors
    /// [`ElfError::Truncated`], [`ElfError::Unpack`].
    fn read_at(&mut self, offset: u64, out: &mut [u8], what: &'static str) -> Result<(), ElfError>;
}

impl Content for &ImageFile {
    fn read_at(&mut self, offset: u64, out: &mut [u8], what: &'static str) -> Result<(), ElfError> {
        let inside = offset.checked_add(out.len() as u64);
        if inside.is_none_or(|end| end > self.size()) {
            return Err(ElfError::Truncated(what));
        }
        match ImageFile::read_at(self, offset, out) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(_) => Err(ElfError::Truncated(what)),
            Err(e) => Err(ElfError::Boot(Box::new(e))),
        }
    }
}

/// The first bytes stay readable, for headers that are read more than once.
const KEPT: usize = 1 << 16;

/// A stream as [`Content`]: offsets may only go forwards, save in the first
/// 64 KiB. No more than that is kept, however large the stream is.
pub struct Stream<'a> {
    source: Box<dyn Read + 'a>,
    kept: Vec<u8>,
    position: u64,
    limit: u64,
}

impl<'a> Stream<'a> {
    /// A stream of which at most `limit` bytes will be read.
    pub fn new(source: Box<dyn Read + 'a>, limit: u64) -> Self {
        Self {
            source,
            kept: Vec::new(),
            position: 0,
            limit,
        }
    }

    fn fill(&mut self, out: &mut [u8], what: &'static str) -> Result<(), ElfError> {
        self.position = self.position.saturating_add(out.len() as u64);
        if self.position > self.limit {
            return Err(ElfError::Unpack(format!(
                "it has more than {} bytes",
                self.limit
            )));
        }
        self.source.read_exact(out).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => ElfError::Truncated(what),
            _ => ElfError::Unpack(e.to_string()),
        })
    }

    fn skip_to(&mut self, offset: u64, what: &'static str) -> Result<(), ElfError> {
        let mut scratch = [0u8; 4096];
        while self.position < offset {
            let n = (offset - self.position).min(4096) as usize;
            self.fill(&mut scratch[..n], what)?;
        }
        Ok(())
    }
}

impl Content for Stream<'_> {
    fn read_at(&mut self, offset: u64, out: &mut [u8], what: &'static str) -> Result<(), ElfError> {
        if self.kept.is_empty() {
            let mut head = Vec::new();
            let n = (&mut self.source).take(KEPT as u64).read_to_end(&mut head);
            n.map_err(|e| ElfError::Unpack(e.to_string()))?;
            self.position = head.len() as u64;
            self.kept = head;
        }
        let mut out = out;
        let mut offset = offset;
        if let Some(head) = self.kept.get(offset as usize..)
            && !head.is_empty()
        {
            let n = head.len().min(out.len());
            out[..n].copy_from_slice(&head[..n]);
            out = &mut out[n..];
            offset += n as u64;
        }
        if out.is_empty() {
            return Ok(());
        }
        if offset < self.position {
            return Err(ElfError::Format("its segments overlap in the file"));
        }
        self.skip_to(offset, what)?;
        self.fill(out, what)
    }
}
