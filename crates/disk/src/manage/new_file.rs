//! Files that appear whole under their name, or not at all.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, OFlags};

use crate::DiskError;

/// A file without a name, or with a temporary one on file systems that cannot.
pub(super) struct NewFile {
    path: PathBuf,
    file: Arc<File>,
    /// Its temporary name.
    temporary: Option<PathBuf>,
    replace: bool,
}

impl NewFile {
    /// Begins a file that will be at `path`.
    ///
    /// # Errors
    /// [`DiskError`]: there is one already and `replace` is false, or the
    /// host's error.
    pub(super) fn begin(path: &Path, replace: bool) -> Result<Self, DiskError> {
        if !replace && path.symlink_metadata().is_ok() {
            return Err(DiskError::Exists(path.to_owned()));
        }
        let directory = directory_of(path);
        let mut how = OpenOptions::new();
        how.read(true).write(true).mode(0o666);
        let unnamed = how
            .clone()
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(directory);
        let begun = match unnamed {
            Ok(file) => Ok((file, None)),
            Err(error) if no_unnamed(&error) => {
                let temporary = temporary_name(path);
                let named = how.create_new(true).open(&temporary);
                named.map(|file| (file, Some(temporary)))
            }
            Err(error) => Err(error),
        };
        let (file, temporary) = begun.map_err(|e| failed(path, "make it", e))?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            temporary,
            replace,
        })
    }

    /// The file, to be filled.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Gives the file its name, when all is on stable storage.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub(super) fn commit(mut self) -> Result<(), DiskError> {
        let path = self.path.clone();
        let named = self.file.sync_all().and_then(|()| self.name());
        named.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => DiskError::Exists(path.clone()),
            _ => failed(&path, "finish it", error),
        })?;
        let directory = File::open(directory_of(&path)).and_then(|d| d.sync_all());
        directory.map_err(|e| failed(&path, "finish it", e))
    }

    fn name(&mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            if self.replace {
                std::fs::rename(temporary, &self.path)?;
            } else {
                std::fs::hard_link(temporary, &self.path)?;
                std::fs::remove_file(temporary)?;
            }
            self.temporary = None;
            return Ok(());
        }
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let link_to = |to: &Path| rustix::fs::linkat(CWD, &*link, CWD, to, AtFlags::SYMLINK_FOLLOW);
        if !self.replace {
            return Ok(link_to(&self.path)?);
        }
        let temporary = temporary_name(&self.path);
        link_to(&temporary)?;
        std::fs::rename(&temporary, &self.path).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&temporary);
        })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What is left of a failure; its error is told already.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

fn no_unnamed(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT | libc::EINVAL)
    )
}

pub(super) fn failed(path: &Path, doing: &'static str, source: io::Error) -> DiskError {
    DiskError::Host {
        path: path.to_owned(),
        doing,
        source,
    }
}
