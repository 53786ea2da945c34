//! Small files of ours with versions, written whole or not at all; names; and
//! copies that keep holes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ImagesError;
use crate::staging::sync_directory;

/// No description of ours is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// Checks a name that becomes a file's.
pub(crate) fn name(text: &str) -> Result<&str, ImagesError> {
    let fits = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
    match fits {
        true => Ok(text),
        false => Err(ImagesError::BadName(text.into())),
    }
}

/// A description with what it is and its version before it.
#[derive(Serialize)]
struct Versioned<'a, T> {
    format: &'a str,
    version: u64,
    #[serde(flatten)]
    value: &'a T,
}

/// Which kind of file it is, and the only version that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub format: &'static str,
    pub version: u64,
}

impl Kind {
    /// Reads a description; `None`: there is none.
    pub(crate) fn read<T: DeserializeOwned>(self, path: &Path) -> Result<Option<T>, ImagesError> {
        let failed = || ImagesError::host(path, "read it");
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed())?,
        };
        let mut text = Vec::new();
        file.take(LONGEST + 1)
            .read_to_end(&mut text)
            .map_err(failed())?;
        self.parse(&text, path).map(Some)
    }

    /// The value of a description's text.
    pub(crate) fn parse<T: DeserializeOwned>(
        self,
        text: &[u8],
        path: &Path,
    ) -> Result<T, ImagesError> {
        let wrong = |reason: String| ImagesError::Malformed {
            path: path.into(),
            reason,
        };
        if text.len() as u64 > LONGEST {
            return Err(wrong("it is too long to be one of Holm's files".into()));
        }
        let mut value: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|e| wrong(format!("it is no such file: {e}")))?;
        let format = value.remove("format");
        if format.as_ref().and_then(|f| f.as_str()) != Some(self.format) {
            return Err(wrong(format!("it is no {} file", self.format)));
        }
        let version = value.remove("version").and_then(|v| v.as_u64());
        match version {
            Some(version) if version == self.version => {}
            Some(version) => {
                return Err(ImagesError::Version {
                    path: path.into(),
                    version,
                    known: self.version,
                });
            }
            None => return Err(wrong("it has no version".into())),
        }
        serde_json::from_value(value.into()).map_err(|e| wrong(e.to_string()))
    }

    /// Writes a description, replacing another.
    pub(crate) fn write<T: Serialize>(self, path: &Path, value: &T) -> Result<(), ImagesError> {
        let whole = Versioned {
            format: self.format,
            version: self.version,
            value,
        };
        let text = serde_json::to_vec_pretty(&whole)
            .map_err(io::Error::other)
            .and_then(|text| write_whole(path, &text));
        text.map_err(ImagesError::host(path, "write it"))
    }
}

/// Writes a file whole or not at all, durably.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}-{number}", std::process::id()));
    let written = File::create(&new)
        .and_then(|mut file| {
            file.write_all(contents)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Makes a file and locks it for as long as it is open.
pub(crate) fn lock(path: &Path) -> Result<File, ImagesError> {
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).open(path);
    let file = file.map_err(ImagesError::host(path, "make it"))?;
    file.lock().map_err(ImagesError::host(path, "lock it"))?;
    Ok(file)
}

/// Removes a file; whether there was one.
pub(crate) fn remove_file(path: &Path) -> Result<bool, ImagesError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(ImagesError::host(path, "remove it")(e)),
    }
}

/// Makes a directory and those above it.
pub(crate) fn make_directory(path: &Path) -> Result<(), ImagesError> {
    fs::create_dir_all(path).map_err(ImagesError::host(path, "make it"))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Names of the visible entries of a directory, sorted.
pub(crate) fn entries(directory: &Path) -> Result<Vec<String>, ImagesError> {
    let failed = || ImagesError::host(directory, "list it");
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if let Ok(found) = entry.file_name().into_string()
            && name(&found).is_ok()
        {
            names.push(found);
        }
    }
    names.sort();
    Ok(names)
}

/// Copies a file with its holes; shares its blocks where the file system can.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::create_new(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at)? {
        (&source).seek(SeekFrom::Start(start))?;
        (&target).seek(SeekFrom::Start(start))?;
        // This is copy_file_range where the host can.
        let copied = io::copy(&mut (&source).take(end - start), &mut &target)?;
        if copied != end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = end;
    }
    Ok(())
}

/// The next part of a file at or after `at` that is no hole.
pub(crate) fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::SeekFrom::{Data, Hole};
    match rustix::fs::seek(file, Data(at)) {
        Ok(start) => Ok(Some((start, rustix::fs::seek(file, Hole(start))?))),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // No such seeking: all of it is data.
        Err(rustix::io::Errno::INVAL) => {
            let length = file.metadata()?.len();
            Ok((at < length).then_some((at, length)))
        }
        Err(e) => Err(e.into()),
    }
}

/// Bytes that the files of a directory take on the host.
pub(crate) fn allocated(directory: &Path) -> Result<u64, ImagesError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |e| ImagesError::host(directory, "list it")(e);
    let mut sum = 0;
    for entry in fs::read_dir(directory).map_err(failed)? {
        sum += entry.and_then(|e| e.metadata()).map_err(failed)?.blocks() * 512;
    }
    Ok(sum)
}

/// A path from everywhere.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, ImagesError> {
    path.canonicalize()
        .map_err(ImagesError::host(path, "find it"))
}
