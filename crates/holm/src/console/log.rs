//! The serial log: a file that keeps what the console printed, bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that is renamed to `FILE.1` when it is half as long as the log may
/// be; the former `FILE.1` goes. What is there already is kept and counts.
pub struct SerialLog {
    path: PathBuf,
    file: File,
    length: u64,
    most: u64,
}

impl SerialLog {
    /// Opens the log, of at most `most` bytes in both files.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let length = file.metadata()?.len();
        let path = path.to_owned();
        Ok(Self {
            path,
            file,
            length,
            most: most / 2,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, old)?;
        let mut options = OpenOptions::new();
        self.file = options.append(true).create(true).open(&self.path)?;
        self.length = 0;
        Ok(())
    }
}

impl Write for SerialLog {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.length >= self.most {
            self.rotate()?;
        }
        let room = usize::try_from(self.most - self.length).unwrap_or(usize::MAX);
        let part = data.get(..room.min(data.len())).unwrap_or_default();
        let count = self.file.write(part)?;
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_and_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "old ").unwrap();
        let mut log = SerialLog::open(&path, 32).unwrap();
        log.write_all(b"0123456789").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old 0123456789");
        log.write_all(b"abcdefghijklmnopqrstuvwxyz").unwrap();
        let old = fs::read(directory.path().join("log.1")).unwrap();
        let new = fs::read(&path).unwrap();
        assert_eq!((old.len(), new.len()), (16, 8));
        assert_eq!([old, new].concat(), b"cdefghijklmnopqrstuvwxyz");
    }
}
