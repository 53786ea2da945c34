//! ext2, ext3 and ext4 through the crate `ext4-view`, which replays a journal
//! in memory.

use ext4_view::{Ext4, Ext4Error, Ext4Read, File};

use super::{FileSystem, FsError, Kind, MOST_NAMES, Sink, check_size, links};
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
    check(&part)?;
    let fs = Ext4::load(Box::new(Source(part))).map_err(|e| error("/", e))?;
    Ok(Box::new(Ext(fs)))
}

/// Refuses sizes that the reader would believe (ext4 disk layout, "The Super
/// Block"): it keeps a record of each block group in memory.
fn check(part: &Window) -> Result<(), FsError> {
    const MOST_GROUPS: u64 = 1 << 20;
    const SUPERBLOCK: u64 = 1024;
    const IS_64_BIT: u32 = 0x80;
    let wrong = |reason: &str| FsError::Damaged {
        kind: KIND,
        reason: reason.to_owned(),
    };
    let block = part.bytes(SUPERBLOCK, 1024);
    let block = block.map_err(|e| wrong(&e.to_string()))?;
    let long = |at: usize| {
        let bytes = block.get(at..).and_then(|rest| rest.first_chunk());
        u32::from_le_bytes(bytes.copied().unwrap_or_default())
    };
    let mut blocks = u64::from(long(0x04));
    if long(0x60) & IS_64_BIT != 0 {
        blocks |= u64::from(long(0x150)) << 32;
    }
    let (size, per_group) = (long(0x18), u64::from(long(0x20)));
    if size > 6 || per_group == 0 {
        return Err(wrong("its block or group size is impossible"));
    }
    if blocks > part.size() >> (10 + size) {
        return Err(wrong("it is larger than its partition"));
    }
    if blocks / per_group > MOST_GROUPS {
        return Err(wrong("it has too many block groups"));
    }
    Ok(())
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
    /// The path without symbolic links.
    fn resolve(&self, path: &str) -> Result<String, FsError> {
        links::resolve(path, |at| {
            let wrong = |e| error(path, e);
            let metadata = self.0.symlink_metadata(at).map_err(wrong)?;
            if !metadata.is_symlink() {
                return Ok(None);
            }
            let missing = || FsError::NotFound(path.to_owned());
            if metadata.len() > links::LONGEST_TARGET {
                return Err(missing());
            }
            let target = self.0.read_link(at).map_err(wrong)?;
            let target = target.to_str().map_err(|_| missing())?;
            Ok(Some(target.to_owned()))
        })
    }

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
        let path = self.resolve(path)?;
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
        let path = self.resolve(path)?;
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
        let path = self.resolve(path)?;
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
        let path = self.resolve(path)?;
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
