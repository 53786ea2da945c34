//! Directories that appear whole under their name, or not at all.
//!
//! A new directory is filled under a hidden name, which its maker keeps
//! locked, and renamed when all of it is on stable storage. What a maker that
//! was killed has left is not locked, and is swept away.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

/// How hidden names begin.
const PREFIX: &str = ".new-";
/// How the names of what is being removed begin.
const GONE: &str = ".gone-";

/// A directory that is being filled.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    lock: File,
}

impl Staging {
    /// Makes an empty hidden directory in `parent`.
    pub(crate) fn begin(parent: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Of an earlier process with this id.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            }
            let lock = File::open(&path)?;
            flock(&lock, FlockOperation::LockExclusive)?;
            // A sweep may have come between the two.
            let same = fs::metadata(&path).ok().map(|m| m.ino()) == Some(lock.metadata()?.ino());
            if same {
                return Ok(Self { path, lock });
            }
        }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all of it durable and gives it its name, which must be free.
    ///
    /// # Errors
    /// `AlreadyExists`, or the host's.
    pub(crate) fn commit(self, target: &Path) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            File::open(entry?.path())?.sync_all()?;
        }
        self.lock.sync_all()?;
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            // Some file systems cannot; a directory with contents is never
            // replaced by another.
            Err(rustix::io::Errno::INVAL) => fs::rename(&self.path, target)?,
            other => other?,
        }
        sync_directory(target.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After `commit` there is none of this name; else the error that came
        // before is the one to tell.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Makes names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a directory as a whole: it is gone, or still whole.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let gone = parent.join(format!("{GONE}{}", name.to_string_lossy()));
    match fs::rename(path, &gone) {
        Ok(()) => sync_directory(parent)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        // An earlier one was not removed to its end.
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            fs::remove_dir_all(&gone)?;
            fs::rename(path, &gone)?;
            sync_directory(parent)?;
        }
        Err(e) => return Err(e),
    }
    match fs::remove_dir_all(&gone) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes what makers and removers that were killed have left in `parent`.
pub(crate) fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stale = name.starts_with(GONE) || (name.starts_with(PREFIX) && is_left(&path));
        if !stale {
            continue;
        }
        tracing::info!(path = %path.display(), "removing what was left unfinished");
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn is_left(path: &Path) -> bool {
    let Ok(lock) = File::open(path) else {
        return false;
    };
    flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_takes_only_what_nobody_fills() {
        let home = tempfile::tempdir().unwrap();
        let filled = Staging::begin(home.path()).unwrap();
        fs::write(filled.path().join("a"), "1").unwrap();
        let left = home.path().join(".new-1-99");
        let gone = home.path().join(".gone-x");
        for directory in [&left, &gone] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("b"), "2").unwrap();
        }
        sweep(home.path()).unwrap();
        assert!(!left.exists() && !gone.exists());
        let target = home.path().join("x");
        filled.commit(&target).unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
        let second = Staging::begin(home.path()).unwrap();
        let taken = second.commit(&target).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        remove(&target).unwrap();
        remove(&target).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
