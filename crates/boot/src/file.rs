//! Kernel and initrd files, as the user gave them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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

/// An open file: it stays readable for reboots after the path has gone.
#[derive(Debug)]
pub struct ImageFile {
    role: Role,
    path: PathBuf,
    file: File,
    size: u64,
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
            file,
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
        FromStart(&self.file, 0)
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
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
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
struct FromStart<'a>(&'a File, u64);

impl Read for FromStart<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.0.read_at(buf, self.1)?;
        self.1 += n as u64;
        Ok(n)
    }
}
