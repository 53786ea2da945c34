//! The files of a snapshot, and the directory that appears whole or not.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use memory::{PAGE_SIZE, PageSet};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::SnapshotError;

pub(super) const MEMORY: &str = "memory";
pub(super) const PAGES: &str = "memory.pages";
pub(super) const STATE: &str = "state.json";

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Most bytes of `memory.pages` that are read: pages of 1 TiB, each a run.
const PAGES_MAX: u64 = 4 << 30;

/// Name of the file of a disk.
pub(super) fn disk(index: usize) -> String {
    format!("disk-{index}.img")
}

/// A directory under another name until it is complete.
pub(super) struct NewDirectory {
    partial: PathBuf,
    goal: PathBuf,
    done: bool,
}

impl NewDirectory {
    /// Makes the directory beside its goal, which must not exist.
    pub fn make(goal: &Path) -> Result<Self, SnapshotError> {
        let wrong = |e: io::Error| SnapshotError::file("making the directory", goal)(e);
        let (Some(parent), Some(name)) = (goal.parent(), goal.file_name()) else {
            return Err(wrong(io::ErrorKind::InvalidInput.into()));
        };
        if goal.symlink_metadata().is_ok() {
            return Err(wrong(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is something of this name; a snapshot takes a new one",
            )));
        }
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(".partial-");
        remove_left(parent, &partial);
        partial.push(std::process::id().to_string());
        let partial = parent.join(partial);
        // Left by an earlier machine that was killed and had this number.
        if let Err(e) = fs::remove_dir_all(&partial)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(wrong(e));
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&partial)
            .map_err(wrong)?;
        Ok(Self {
            partial,
            goal: goal.to_owned(),
            done: false,
        })
    }

    /// Where its files are made.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Makes an empty file in it.
    pub fn create(&self, name: &str) -> Result<File, SnapshotError> {
        let path = self.partial.join(name);
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        options
            .open(&path)
            .map_err(SnapshotError::file("making", &path))
    }

    /// Makes a file with these contents, durable.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut file = self.create(name)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(SnapshotError::file("writing", &self.partial.join(name)))
    }

    /// Gives it its name, after all of it is durable.
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        let sync = |path: &Path| File::open(path).and_then(|d| d.sync_all());
        let parent = self.goal.parent().unwrap_or(Path::new("."));
        sync(&self.partial)
            .and_then(|()| rename_new(&self.partial, &self.goal))
            .and_then(|()| sync(parent))
            .map_err(SnapshotError::file("making the directory", &self.goal))?;
        self.done = true;
        Ok(())
    }
}

/// Removes what machines that were killed have left of snapshots to this
/// place: directories of this name, followed by the number of a process that
/// is gone.
fn remove_left(parent: &Path, name: &OsStr) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let process = file.as_bytes().strip_prefix(name.as_bytes());
        let process = process.and_then(|p| std::str::from_utf8(p).ok()?.parse::<u32>().ok());
        let gone = |p: u32| !Path::new("/proc").join(p.to_string()).exists();
        if process.is_some_and(gone) {
            // It is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems do not know the flag.
        Err(Errno::INVAL) => fs::rename(from, to),
        other => Ok(other?),
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        if !self.done {
            // What failed before is the error to tell.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// In the number of pages of a run: they are zero, and not in the file.
const ZERO: u64 = 1 << 63;

/// Which pages a snapshot's `memory` holds, and which it makes zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageList {
    pub pages: PageSet,
    pub zero: PageSet,
}

impl PageList {
    /// As `memory.pages` has it: of each run the first page and the number of
    /// pages, little endian, 64 bits each.
    pub fn to_bytes(&self) -> Vec<u8> {
        let held = self.pages.runs().map(|run| (run, 0));
        let mut runs: Vec<_> = held
            .chain(self.zero.runs().map(|run| (run, ZERO)))
            .collect();
        runs.sort_by_key(|(run, _)| run.start);
        let words = |(run, kind): (std::ops::Range<u64>, u64)| {
            let count = run.end - run.start;
            [run.start.to_le_bytes(), (count | kind).to_le_bytes()].concat()
        };
        runs.into_iter().flat_map(words).collect()
    }

    /// Reads it for RAM of `pages` pages; what is wrong with it.
    pub fn from_bytes(list: &[u8], pages: u64) -> Result<Self, &'static str> {
        let mut read = Self {
            pages: PageSet::none(pages),
            zero: PageSet::none(pages),
        };
        let (entries, rest) = list.as_chunks::<16>();
        if !rest.is_empty() {
            return Err("ends in the middle of an entry");
        }
        let mut next = 0;
        for entry in entries {
            let (start, count) = entry.split_at(8);
            let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
            let (start, kind, count) = (word(start), word(count) & ZERO, word(count) & !ZERO);
            let end = start.checked_add(count).filter(|end| *end <= pages);
            let Some(end) = end.filter(|_| count > 0 && start >= next) else {
                return Err("names pages that are not in RAM, or not in order");
            };
            match kind {
                0 => read.pages.insert(start..end),
                _ => read.zero.insert(start..end),
            }
            next = end;
        }
        Ok(read)
    }
}

/// Opens a file of a snapshot to read, without waiting for whatever else may
/// have its name.
pub(super) fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let mut options = File::options();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = options.read(true).custom_flags(nonblocking).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(io::Error::other("it is no file with contents"))
}

/// Reads a small file whole.
pub(super) fn read(path: &Path, size: u64) -> Result<Vec<u8>, SnapshotError> {
    let mut bytes = Vec::new();
    open(path)
        .and_then(|file| {
            let found = file.metadata()?.len();
            if found == size && size <= PAGES_MAX {
                file.take(size).read_to_end(&mut bytes)?;
            }
            Ok(found)
        })
        .map_err(SnapshotError::file("reading", path))
        .and_then(|found| match found == size && bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(SnapshotError::damaged(
                path,
                format!("has {found} bytes instead of {size}"),
            )),
        })
}

/// BLAKE3 of pages in a file.
pub(super) fn pages_digest(file: &File, set: &PageSet) -> io::Result<String> {
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    for run in set.runs() {
        let (mut at, end) = (run.start * PAGE_SIZE, run.end * PAGE_SIZE);
        while at < end {
            let n = (end - at).min(CHUNK as u64) as usize;
            file.read_exact_at(&mut buffer[..n], at)?;
            hash.update(&buffer[..n]);
            at += n as u64;
        }
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// BLAKE3 of the parts of a file of this length that are not zero: of each
/// mebibyte with anything in it, its number (64 bits, little endian) and bytes.
pub(super) fn contents_digest(file: &File, size: u64) -> io::Result<String> {
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        // A file system without holes says that all is data.
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => at = data / CHUNK as u64 * CHUNK as u64,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        }
        let n = (size - at).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at)?;
        if buffer[..n].iter().any(|b| *b != 0) {
            hash.update(&(at / CHUNK as u64).to_le_bytes());
            hash.update(&buffer[..n]);
        }
        at += n as u64;
    }
    Ok(hash.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_list_survives_and_nonsense_is_refused() {
        let set = |runs: &[std::ops::Range<u64>]| {
            let mut set = PageSet::none(1000);
            runs.iter().for_each(|run| set.insert(run.clone()));
            set
        };
        let list = PageList {
            pages: set(&[0..1, 5..70, 999..1000]),
            zero: set(&[1..3, 80..90]),
        };
        let bytes = list.to_bytes();
        assert_eq!(bytes.len(), 5 * 16);
        assert_eq!(PageList::from_bytes(&bytes, 1000), Ok(list));
        assert!(PageList::from_bytes(&bytes, 999).is_err());
        assert!(PageList::from_bytes(&bytes[1..], 1000).is_err());
        let entry = |start: u64, n: u64| [start.to_le_bytes(), n.to_le_bytes()].concat();
        for bad in [
            entry(0, 0),
            entry(3, u64::MAX),
            entry(3, ZERO),
            [entry(4, 2), entry(5, 1)].concat(),
        ] {
            assert!(PageList::from_bytes(&bad, 1000).is_err());
        }
    }

    #[test]
    fn what_killed_machines_have_left_goes_with_the_next_try() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str| fs::create_dir(place.path().join(name)).unwrap();
        let living = format!(".s.partial-{}", std::os::unix::process::parent_id());
        // No process has a number that high.
        make(".s.partial-4194305");
        make(".t.partial-4194305");
        make(".s.partial-of-mine");
        make(&living);
        let new = NewDirectory::make(&place.path().join("s")).unwrap();
        drop(new);
        let entries = fs::read_dir(place.path()).unwrap();
        let mut left: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let mut kept = [&living, ".s.partial-of-mine", ".t.partial-4194305"];
        kept.sort_unstable();
        assert_eq!(left, kept);
    }

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let goal = place.path().join("s");
        let new = NewDirectory::make(&goal).unwrap();
        new.put("a", b"x").unwrap();
        drop(new);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        let new = NewDirectory::make(&goal).unwrap();
        new.put("a", b"x").unwrap();
        assert!(!goal.exists());
        new.finish().unwrap();
        assert_eq!(fs::read(goal.join("a")).unwrap(), b"x");
        assert!(NewDirectory::make(&goal).is_err(), "it exists");
        assert!(NewDirectory::make(Path::new("/")).is_err());
    }

    #[test]
    fn a_digest_does_not_see_how_zeroes_are_stored() {
        let sparse = tempfile::tempfile().unwrap();
        let thick = tempfile::tempfile().unwrap();
        sparse.set_len(5 << 20).unwrap();
        thick.write_all_at(&vec![0; 5 << 20], 0).unwrap();
        let digest = |f: &File| contents_digest(f, 5 << 20).unwrap();
        assert_eq!(digest(&sparse), digest(&thick));
        sparse.write_all_at(b"x", 3 << 20).unwrap();
        assert_ne!(digest(&sparse), digest(&thick));
        thick.write_all_at(b"x", 3 << 20).unwrap();
        assert_eq!(digest(&sparse), digest(&thick));
    }
}
