//! Kernels and initrds: files as the user gave them, or what a disk held.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::BootError;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel.
    Kernel,
    /// The initial RAM disk, or the multiboot module.
    Initrd,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
        })
    }
}

/// An open file, or a part of one: it stays readable for reboots after the
/// path has gone.
#[derive(Debug)]
pub struct ImageFile {
    role: Role,
    path: PathBuf,
    content: Content,
    size: u64,
}

/// Where the bytes are.
#[derive(Debug)]
enum Content {
    /// In a file, from this byte on.
    File(Arc<File>, u64),
    Memory(Vec<u8>),
}

impl Content {
    fn read_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<usize> {
        match self {
            Self::File(file, start) => file.read_at(out, start.saturating_add(offset)),
            Self::Memory(data) => {
                let rest = usize::try_from(offset).ok().and_then(|at| data.get(at..));
                let mut rest = rest.unwrap_or_default();
                rest.read(out)
            }
        }
    }
}

impl ImageFile {
    /// Opens a regular, non-empty file.
    ///
    /// # Errors
    /// [`BootError::Read`], [`BootError::NotAFile`], [`BootError::Empty`].
    pub fn open(role: Role, path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read {
            role,
            path: path.into(),
            source,
        };
        // The type is looked at before opening: opening a pipe would block.
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            return Err(BootError::NotAFile {
                role,
                path: path.into(),
            });
        }
        let file = File::open(path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        if size == 0 {
            return Err(BootError::Empty {
                role,
                path: path.into(),
            });
        }
        Ok(Self {
            role,
            path: path.into(),
            content: Content::File(Arc::new(file), 0),
            size,
        })
    }

    /// `size` bytes of a file from `start` on; `name` stands for them in
    /// messages.
    ///
    /// # Errors
    /// [`BootError::Empty`].
    pub fn part(
        role: Role,
        name: impl Into<PathBuf>,
        file: Arc<File>,
        start: u64,
        size: u64,
    ) -> Result<Self, BootError> {
        Self::of(role, name.into(), Content::File(file, start), size)
    }

    /// Bytes in memory; `name` stands for them in messages.
    ///
    /// # Errors
    /// [`BootError::Empty`].
    pub fn bytes(role: Role, name: impl Into<PathBuf>, data: Vec<u8>) -> Result<Self, BootError> {
        let size = data.len() as u64;
        Self::of(role, name.into(), Content::Memory(data), size)
    }

    fn of(role: Role, path: PathBuf, content: Content, size: u64) -> Result<Self, BootError> {
        if size == 0 {
            return Err(BootError::Empty { role, path });
        }
        Ok(Self {
            role,
            path,
            content,
            size,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn failed(&self, source: std::io::Error) -> BootError {
        BootError::Read {
            role: self.role,
            path: self.path.clone(),
            source,
        }
    }

    /// All content, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// [`BootError::Oversized`], [`BootError::Read`].
    pub fn read(&self, limit: u64) -> Result<Vec<u8>, BootError> {
        self.check_size(limit)?;
        let mut data = Vec::with_capacity(self.size as usize);
        FromStart(&self.content, 0)
            .take(self.size)
            .read_to_end(&mut data)
            .map_err(|e| self.failed(e))?;
        Ok(data)
    }

    /// Refuses a file of more than `limit` bytes.
    ///
    /// # Errors
    /// [`BootError::Oversized`].
    pub fn check_size(&self, limit: u64) -> Result<(), BootError> {
        if self.size > limit {
            return Err(BootError::Oversized {
                role: self.role,
                path: self.path.clone(),
                size: self.size,
                limit,
            });
        }
        Ok(())
    }

    /// Fills `out` from `offset` on; short only at the end of the file.
    ///
    /// # Errors
    /// [`BootError::Read`].
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, BootError> {
        let mut done = 0;
        // A part of a file ends before the file does.
        let left = self.size.saturating_sub(offset);
        let length = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let out = &mut out[..length];
        while done < out.len() {
            let at = offset + done as u64;
            match self.content.read_at(&mut out[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(done)
    }
}

/// Reads a file from its start, whatever the file position is.
struct FromStart<'a>(&'a Content, u64);

impl Read for FromStart<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.0.read_at(buf, self.1)?;
        self.1 += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_parts_of_files_end_where_they_end() {
        let (memory, file) = (b"0123456789".to_vec(), tempfile::tempfile().unwrap());
        file.write_all_at(b"xx0123456789yy", 0).unwrap();
        let part = ImageFile::part(Role::Initrd, "p", Arc::new(file), 2, 10).unwrap();
        let bytes = ImageFile::bytes(Role::Kernel, "b", memory.clone()).unwrap();
        for image in [part, bytes] {
            assert_eq!(image.read(10).unwrap(), memory);
            assert!(image.read(9).is_err());
            let mut out = [0; 8];
            assert_eq!(image.read_at(6, &mut out).unwrap(), 4);
            assert_eq!(&out[..4], b"6789");
            assert_eq!(image.read_at(u64::MAX, &mut out).unwrap(), 0);
        }
        assert!(ImageFile::bytes(Role::Kernel, "b", Vec::new()).is_err());
    }
}
