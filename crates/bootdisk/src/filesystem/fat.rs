//! FAT12, FAT16 and FAT32 through the crate `fatfs`.

use std::io::{self, Read, Seek, SeekFrom, Write};

use fatfs::{Dir, FsOptions};

use super::{FileSystem, FsError, Kind, MOST_NAMES, Sink, absolute, check_size};
use crate::read::{ReadAt, Window};

const KIND: &str = "vfat";

/// Whether a boot sector has a FAT's parameters.
pub fn is_fat(sector: &[u8]) -> bool {
    let byte = |at: usize| sector.get(at).copied().unwrap_or_default();
    let word = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
    let jump = matches!((byte(0), byte(2)), (0xeb, 0x90) | (0xe9, _));
    let text = |at: usize| sector.get(at..at + 5).unwrap_or_default();
    jump && matches!(word(11), 512 | 1024 | 2048 | 4096)
        && byte(13).is_power_of_two()
        && matches!(byte(16), 1 | 2)
        && (matches!(text(54), b"FAT12" | b"FAT16" | b"FAT  ") || text(82) == b"FAT32")
}

/// A position in a partition; nothing can be written.
struct Stream {
    part: Window,
    at: u64,
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.part.size().saturating_sub(self.at);
        let n = left.min(out.len() as u64) as usize;
        let Some(out) = out.get_mut(..n) else {
            return Ok(0);
        };
        self.part.read_at(self.at, out)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Stream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.part.size().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Stream {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Fat(fatfs::FileSystem<Stream>);

/// Opens the file system.
pub fn open(part: Window) -> Result<Box<dyn FileSystem>, FsError> {
    let stream = Stream { part, at: 0 };
    let fs = fatfs::FileSystem::new(stream, FsOptions::new()).map_err(|e| error("/", e))?;
    Ok(Box::new(Fat(fs)))
}

fn error(path: &str, error: io::Error) -> FsError {
    match error.kind() {
        io::ErrorKind::NotFound => FsError::NotFound(path.to_owned()),
        _ => FsError::Damaged {
            kind: KIND,
            reason: error.to_string(),
        },
    }
}

impl Fat {
    fn directory(&self, path: &str) -> io::Result<Dir<'_, Stream>> {
        match path.trim_start_matches('/') {
            "" => Ok(self.0.root_dir()),
            path => self.0.root_dir().open_dir(path),
        }
    }

    fn file(&self, path: &str) -> Result<(fatfs::File<'_, Stream>, u64), FsError> {
        let Kind::File(size) = self.stat(path)? else {
            return Err(FsError::WrongType(path.to_owned()));
        };
        let root = self.0.root_dir();
        let file = root.open_file(path.trim_start_matches('/'));
        Ok((file.map_err(|e| error(path, e))?, size))
    }
}

impl FileSystem for Fat {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn uuid(&self) -> String {
        let id = self.0.volume_id();
        format!("{:04X}-{:04X}", id >> 16, id & 0xffff)
    }

    fn label(&self) -> String {
        let label = self.0.read_volume_label_from_root_dir().ok().flatten();
        label.unwrap_or_else(|| self.0.volume_label())
    }

    fn stat(&self, path: &str) -> Result<Kind, FsError> {
        let path = absolute(path)?;
        let Some((parent, name)) = path.rsplit_once('/').filter(|(_, name)| !name.is_empty())
        else {
            return Ok(Kind::Directory);
        };
        let wrong = |e| error(&path, e);
        for entry in self.directory(parent).map_err(wrong)?.iter() {
            let entry = entry.map_err(wrong)?;
            // Names differ by more than case, as everywhere on FAT.
            let same = |other: String| other.to_lowercase() == name.to_lowercase();
            if same(entry.file_name()) || same(entry.short_file_name()) {
                return Ok(match entry.is_dir() {
                    true => Kind::Directory,
                    false => Kind::File(entry.len()),
                });
            }
        }
        Err(FsError::NotFound(path))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, FsError> {
        let path = absolute(path)?;
        if self.stat(&path)? != Kind::Directory {
            return Err(FsError::WrongType(path));
        }
        let wrong = |e| error(&path, e);
        let mut names = Vec::new();
        for entry in self
            .directory(&path)
            .map_err(wrong)?
            .iter()
            .take(MOST_NAMES)
        {
            let name = entry.map_err(wrong)?.file_name();
            if !matches!(name.as_str(), "." | "..") {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn copy(&self, path: &str, limit: u64, to: Sink<'_>) -> Result<u64, FsError> {
        let path = absolute(path)?;
        let (file, size) = self.file(&path)?;
        check_size(&path, size, limit)?;
        let mut file = file.take(size);
        let mut buffer = vec![0; 64 << 10];
        let mut done = 0;
        loop {
            let n = file.read(&mut buffer).map_err(|e| error(&path, e))?;
            if n == 0 {
                return Ok(done);
            }
            to(buffer.get(..n).unwrap_or_default())?;
            done += n as u64;
        }
    }

    fn read_part(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, FsError> {
        let path = absolute(path)?;
        let (mut file, size) = self.file(&path)?;
        let length = length.min(size.saturating_sub(offset));
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(offset.min(size)))
            .and_then(|_| file.take(length).read_to_end(&mut content))
            .map_err(|e| error(&path, e))?;
        Ok(content)
    }
}
