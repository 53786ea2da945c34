//! A machine's own copies of its image's disks: the image is a template and
//! never changes, and any number of machines run from it at once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::image::Template;

/// Why a copy cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("copying the image's disk {from} to {to}: {error}")]
pub struct CopyError {
    from: String,
    to: String,
    error: io::Error,
}

/// A machine's disk.
#[derive(Debug)]
pub struct OwnDisk {
    /// To open it by.
    pub path: PathBuf,
    /// Keeps a copy without a name alive.
    _unnamed: Option<File>,
}

/// Copies a template for a machine: into `keep` if it is not there yet, else
/// to a file without a name that vanishes with this process, whatever ends it.
///
/// # Errors
/// [`CopyError`], for instance when the disk is full.
pub fn own(template: &Template, keep: Option<&Path>) -> Result<OwnDisk, CopyError> {
    if template.readonly {
        return Ok(OwnDisk {
            path: template.file.clone(),
            _unnamed: None,
        });
    }
    let directory = match keep {
        Some(directory) => directory.to_path_buf(),
        None => scratch(&template.file),
    };
    let name = template.file.file_name().unwrap_or_default();
    let made = match keep {
        Some(directory) => kept(&template.file, &directory.join(name)),
        None => unnamed(&template.file, &directory),
    };
    made.map_err(|error| CopyError {
        from: template.file.display().to_string(),
        to: directory.display().to_string(),
        error,
    })
}

/// Beside the image, where a copy may share its blocks; `/var/tmp` if the
/// image's place is read-only.
fn scratch(template: &Path) -> PathBuf {
    let beside = template.parent().unwrap_or(Path::new("."));
    match rustix::fs::access(beside, rustix::fs::Access::WRITE_OK) {
        Ok(()) => beside.to_path_buf(),
        Err(_) => PathBuf::from("/var/tmp"),
    }
}

fn kept(template: &Path, path: &Path) -> io::Result<OwnDisk> {
    let kept = OwnDisk {
        path: path.to_path_buf(),
        _unnamed: None,
    };
    if path.exists() {
        return Ok(kept);
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let copied = File::create(&new)
        .and_then(|target| copy(template, &target).and_then(|()| target.sync_all()))
        .and_then(|()| fs::rename(&new, path));
    if copied.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    copied.map(|()| kept)
}

fn unnamed(template: &Path, directory: &Path) -> io::Result<OwnDisk> {
    let anonymous = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(directory);
    let target = match anonymous {
        // Some file systems have no files without names.
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            let path = directory.join(format!(".holm-{}.img", std::process::id()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            fs::remove_file(&path)?;
            file
        }
        other => other?,
    };
    copy(template, &target)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), target.as_raw_fd());
    Ok(OwnDisk {
        path: path.into(),
        _unnamed: Some(target),
    })
}

fn copy(template: &Path, target: &File) -> io::Result<()> {
    machine::copy_sparse(&File::open(template)?, target).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn template(directory: &Path) -> Template {
        let file = directory.join("root.img");
        let disk = File::create(&file).unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(b"start", 0).unwrap();
        disk.write_all_at(b"middle", 32 << 20).unwrap();
        Template {
            file,
            readonly: false,
        }
    }

    fn at(path: &Path, offset: u64) -> [u8; 6] {
        let mut bytes = [0; 6];
        File::open(path)
            .unwrap()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    }

    #[test]
    fn a_copy_is_equal_sparse_and_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let template = template(directory.path());
        let own = own(&template, None).unwrap();
        assert_eq!(&at(&own.path, 0), b"start\0");
        assert_eq!(&at(&own.path, 32 << 20), b"middle");
        let metadata = fs::metadata(&own.path).unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "the copy is not sparse");
        OpenOptions::new()
            .write(true)
            .open(&own.path)
            .unwrap()
            .write_all_at(b"x", 0)
            .unwrap();
        assert_eq!(&at(&template.file, 0), b"start\0", "the template changed");
        let names = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(names, 1, "the copy has a name");
    }

    #[test]
    fn kept_disks_stay() {
        let directory = tempfile::tempdir().unwrap();
        let template = template(directory.path());
        let keep = directory.path().join("a/b");
        let first = own(&template, Some(&keep)).unwrap();
        assert_eq!(first.path, keep.join("root.img"));
        OpenOptions::new()
            .write(true)
            .open(&first.path)
            .unwrap()
            .write_all_at(b"X", 0)
            .unwrap();
        let second = own(&template, Some(&keep)).unwrap();
        assert_eq!(&at(&second.path, 0), b"Xtart\0");
    }

    #[test]
    fn a_missing_template_is_named() {
        let template = Template {
            file: "/nowhere/root.img".into(),
            readonly: false,
        };
        let error = own(&template, None).unwrap_err().to_string();
        assert!(error.contains("/nowhere/root.img"), "{error}");
    }
}
