//! XFS through the crate `lamxfs`, which replays a log in memory. Symbolic
//! links are followed here.

use std::cell::RefCell;
use std::io;

use lamxfs::{BlockRead, EntryKind, Error, Inode, Path, Xfs};

use super::{FileSystem, FsError, Kind, MOST_NAMES, Sink, absolute, check_size, links};
use crate::read::{ReadAt, Window};

const KIND: &str = "xfs";
/// Read at once: every call looks the file's extents up again.
const PIECE: usize = 4 << 20;

struct Source(Window);

impl BlockRead for Source {
    type Error = io::Error;

    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset_bytes, buf)
    }
}

struct XfsVolume(RefCell<Xfs<Source>>);

/// Opens the file system.
pub fn open(part: Window) -> Result<Box<dyn FileSystem>, FsError> {
    let size = part.size();
    let fs = Xfs::open(Source(part), size).map_err(|e| error("/", &e))?;
    Ok(Box::new(XfsVolume(RefCell::new(fs))))
}

fn error(path: &str, error: &Error) -> FsError {
    match error {
        Error::NotFound { .. } => FsError::NotFound(path.to_owned()),
        Error::NotARegularFile => FsError::WrongType(path.to_owned()),
        other => FsError::Damaged {
            kind: KIND,
            reason: other.token().to_owned(),
        },
    }
}

impl XfsVolume {
    /// The path without symbolic links, its inode and what it is.
    fn resolve(&self, path: &str) -> Result<(String, Inode, Kind), FsError> {
        let wrong = |e: &Error| error(path, e);
        let mut fs = self.0.borrow_mut();
        let whole = links::resolve(path, |at| {
            let at = Path::new(at.as_bytes());
            let inode = fs.resolve(at).map_err(|e| wrong(&e))?;
            let metadata = fs.metadata(&inode).map_err(|e| wrong(&e))?;
            if !metadata.is_symlink() {
                return Ok(None);
            }
            if metadata.size() > links::LONGEST_TARGET {
                return Err(FsError::NotFound(path.to_owned()));
            }
            let target = fs.read_link(at).map_err(|e| wrong(&e))?;
            let target = String::from_utf8(target);
            Ok(Some(
                target.map_err(|_| FsError::NotFound(path.to_owned()))?,
            ))
        })?;
        let inode = fs
            .resolve(Path::new(whole.as_bytes()))
            .map_err(|e| wrong(&e))?;
        let metadata = fs.metadata(&inode).map_err(|e| wrong(&e))?;
        let kind = if metadata.is_dir() {
            Kind::Directory
        } else if metadata.is_file() {
            Kind::File(metadata.size())
        } else {
            Kind::Other
        };
        Ok((whole, inode, kind))
    }

    fn file(&self, path: &str) -> Result<(Inode, u64), FsError> {
        match self.resolve(path)? {
            (_, inode, Kind::File(size)) => Ok((inode, size)),
            _ => Err(FsError::WrongType(path.to_owned())),
        }
    }
}

impl FileSystem for XfsVolume {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn uuid(&self) -> String {
        let hex: Vec<String> = self
            .0
            .borrow()
            .uuid()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().concat();
        [
            part(0, 4),
            part(4, 6),
            part(6, 8),
            part(8, 10),
            part(10, 16),
        ]
        .join("-")
    }

    fn label(&self) -> String {
        self.0.borrow().label().unwrap_or_default().to_owned()
    }

    fn stat(&self, path: &str) -> Result<Kind, FsError> {
        Ok(self.resolve(&absolute(path)?)?.2)
    }

    fn names(&self, path: &str) -> Result<Vec<String>, FsError> {
        let path = absolute(path)?;
        let (real, _, kind) = self.resolve(&path)?;
        if kind != Kind::Directory {
            return Err(FsError::WrongType(path));
        }
        let mut fs = self.0.borrow_mut();
        let all = fs.read_dir(Path::new(real.as_bytes()));
        let names = all.map_err(|e| error(&path, &e))?.into_iter();
        let named = names
            .filter(|e| e.kind != EntryKind::Other)
            .filter_map(|e| String::from_utf8(e.name).ok())
            .filter(|name| !matches!(name.as_str(), "." | ".."));
        Ok(named.take(MOST_NAMES).collect())
    }

    fn copy(&self, path: &str, limit: u64, to: Sink<'_>) -> Result<u64, FsError> {
        let path = absolute(path)?;
        let (inode, size) = self.file(&path)?;
        check_size(&path, size, limit)?;
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        while done < size {
            let n = self
                .0
                .borrow_mut()
                .read_file_at(&inode, done, &mut buffer)
                .map_err(|e| error(&path, &e))?;
            if n == 0 {
                break;
            }
            to(buffer.get(..n).unwrap_or_default())?;
            done += n as u64;
        }
        Ok(done)
    }

    fn read_part(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, FsError> {
        let path = absolute(path)?;
        let (inode, size) = self.file(&path)?;
        let length = length.min(size.saturating_sub(offset));
        let mut content = vec![0; length as usize];
        let read = self
            .0
            .borrow_mut()
            .read_file_at(&inode, offset, &mut content);
        content.truncate(read.map_err(|e| error(&path, &e))?);
        Ok(content)
    }
}
