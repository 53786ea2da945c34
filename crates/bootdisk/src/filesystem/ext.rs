//! ext2, ext3 and ext4 through the crate `ext4-view`, which replays a journal
//! in memory.

use ext4_view::{Ext4, Ext4Error, Ext4Read, File};

use super::{FileSystem, FsError, Kind, MOST_NAMES, Sink, absolute, check_size};
use crate::read::{ReadAt, Window};

const KIND: &str = "ext4";

struct Source(Window);

impl Ext4Read for Source {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read_at(start_byte, dst)?)
    }
}

struct Ext(Ext4);

/// Opens the file system.
pub fn open(part: Window) -> Result<Box<dyn FileSystem>, FsError> {
    let fs = Ext4::load(Box::new(Source(part))).map_err(|e| error("/", e))?;
    Ok(Box::new(Ext(fs)))
}

fn error(path: &str, error: Ext4Error) -> FsError {
    match error {
        Ext4Error::NotFound | Ext4Error::MalformedPath | Ext4Error::PathTooLong => {
            FsError::NotFound(path.to_owned())
        }
        Ext4Error::IsADirectory | Ext4Error::NotADirectory | Ext4Error::IsASpecialFile => {
            FsError::WrongType(path.to_owned())
        }
        other => FsError::Damaged {
            kind: KIND,
            reason: other.to_string(),
        },
    }
}

impl Ext {
    fn file(&self, path: &str) -> Result<(File, u64), FsError> {
        let file = self.0.open(path).map_err(|e| error(path, e))?;
        let metadata = file.metadata();
        if !metadata.file_type().is_regular_file() {
            return Err(FsError::WrongType(path.to_owned()));
        }
        let size = metadata.len();
        Ok((file, size))
    }
}

impl FileSystem for Ext {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn uuid(&self) -> String {
        self.0.uuid().to_string()
    }

    fn label(&self) -> String {
        self.0.label().to_str().unwrap_or_default().to_owned()
    }

    fn stat(&self, path: &str) -> Result<Kind, FsError> {
        let path = absolute(path)?;
        let metadata = self.0.metadata(&path).map_err(|e| error(&path, e))?;
        Ok(if metadata.is_dir() {
            Kind::Directory
        } else if metadata.file_type().is_regular_file() {
            Kind::File(metadata.len())
        } else {
            Kind::Other
        })
    }

    fn names(&self, path: &str) -> Result<Vec<String>, FsError> {
        let path = absolute(path)?;
        let wrong = |e| error(&path, e);
        let mut names = Vec::new();
        for entry in self.0.read_dir(&path).map_err(wrong)?.take(MOST_NAMES) {
            let entry = entry.map_err(wrong)?;
            let name = entry.file_name();
            if let Ok(name) = name.as_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn copy(&self, path: &str, limit: u64, to: Sink<'_>) -> Result<u64, FsError> {
        let path = absolute(path)?;
        let (mut file, size) = self.file(&path)?;
        check_size(&path, size, limit)?;
        let mut buffer = vec![0; 64 << 10];
        let mut done = 0;
        while done < size {
            // The reader gives a block at a time.
            let mut filled = 0;
            while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
                match file.read_bytes(room).map_err(|e| error(&path, e))? {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                break;
            }
            to(buffer.get(..filled).unwrap_or_default())?;
            done += filled as u64;
        }
        Ok(done)
    }

    fn read_part(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, FsError> {
        let path = absolute(path)?;
        let (mut file, size) = self.file(&path)?;
        let length = length.min(size.saturating_sub(offset));
        file.seek_to(offset).map_err(|e| error(&path, e))?;
        let mut content = vec![0; length as usize];
        let mut filled = 0;
        while let Some(room) = content.get_mut(filled..).filter(|room| !room.is_empty()) {
            match file.read_bytes(room).map_err(|e| error(&path, e))? {
                0 => break,
                n => filled += n,
            }
        }
        content.truncate(filled);
        Ok(content)
    }
}
