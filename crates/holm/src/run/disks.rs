//! A machine's own disks: an image is a template that never changes, and any
//! number of machines run from it at once, each with an overlay of its own
//! that vanishes with the machine, or with a copy that is kept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::Format;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::run::image::Template;

/// Why a machine does not get a disk of its own.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The copy failed.
    #[error("copying the image's disk {from} to {to}: {error}")]
    Copy {
        /// The template.
        from: String,
        /// The directory of the copy.
        to: String,
        /// Why.
        error: io::Error,
    },
    /// The overlay failed.
    #[error("making a temporary overlay on {on} in {directory}: {error}")]
    Overlay {
        /// The disk below.
        on: String,
        /// Where it would be.
        directory: String,
        /// Why.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A machine's disk.
#[derive(Debug)]
pub struct OwnDisk {
    /// To open it by.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What is written to it is lost with the machine.
    pub scratch: bool,
    /// Keeps a file without a name alive.
    _unnamed: Option<Arc<File>>,
}

/// A template's disk for a machine: a copy in `keep`, made if it is not there
/// yet, else an overlay that vanishes with this process, whatever ends it.
///
/// # Errors
/// [`CopyError`], for instance when the host's disk is full.
pub fn own(template: &Template, keep: Option<&Path>) -> Result<OwnDisk, CopyError> {
    let own = |path: PathBuf| OwnDisk {
        path,
        format: template.format,
        scratch: false,
        _unnamed: None,
    };
    if template.readonly {
        return Ok(own(template.file.clone()));
    }
    let Some(directory) = keep else {
        return overlay(&template.file, Some(template.format));
    };
    let path = directory.join(template.file.file_name().unwrap_or_default());
    match kept(template, &path) {
        Ok(()) => Ok(own(path)),
        Err(error) => Err(CopyError::Copy {
            from: template.file.display().to_string(),
            to: directory.display().to_string(),
            error,
        }),
    }
}

/// An overlay on a disk, without a name: it vanishes with this process.
///
/// # Errors
/// [`CopyError::Overlay`].
pub fn overlay(on: &Path, format: Option<Format>) -> Result<OwnDisk, CopyError> {
    let directory = scratch(on);
    let wrong = |error| CopyError::Overlay {
        on: on.display().to_string(),
        directory: directory.display().to_string(),
        error,
    };
    let file = Arc::new(unnamed(&directory).map_err(|e| wrong(e.into()))?);
    disk::manage::create_overlay_in(&file, on, format).map_err(|e| wrong(e.into()))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok(OwnDisk {
        path: path.into(),
        format: Format::Qcow2,
        scratch: true,
        _unnamed: Some(file),
    })
}

/// Beside the disk, where there is most likely space for it; `/var/tmp` if
/// that place is read-only.
fn scratch(disk: &Path) -> PathBuf {
    let beside = match disk.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let writable = rustix::fs::access(beside, rustix::fs::Access::WRITE_OK).is_ok();
    // Not among the device nodes of a block device, which are in memory.
    match writable && !beside.starts_with("/dev") {
        true => beside.to_path_buf(),
        false => PathBuf::from("/var/tmp"),
    }
}

fn kept(template: &Template, path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let copied = File::create(&new)
        .and_then(|target| copy(template, &target, &new).and_then(|()| target.sync_all()))
        .and_then(|()| fs::rename(&new, path));
    if copied.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    copied
}

/// A file without a name.
fn unnamed(directory: &Path) -> io::Result<File> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).mode(0o600);
    let anonymous = how
        .clone()
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(directory);
    match anonymous {
        // Some file systems have no files without names.
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            let path = directory.join(format!(".holm-{}.img", std::process::id()));
            let file = how.create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        other => other,
    }
}

fn copy(template: &Template, target: &File, path: &Path) -> io::Result<()> {
    machine::copy_sparse(&File::open(&template.file)?, target)?;
    let (file, format) = (&template.file, Some(template.format));
    disk::manage::adopt_copy(path, file, format).map_err(io::Error::other)
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
            format: Format::Raw,
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
    fn an_overlay_leaves_the_template_alone_and_is_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let template = template(directory.path());
        let own = own(&template, None).unwrap();
        let open = |write: bool| {
            let mut options = disk::ImageOptions::read(&own.path, Some(own.format));
            (options.read_only, options.scratch) = (!write, write);
            disk::Image::open(&options).unwrap()
        };
        let image = open(true);
        assert_eq!(image.size(), 64 << 20);
        image.write(b"x", 0).unwrap();
        drop(image);
        let mut bytes = [0; 6];
        open(false).read(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"xtart\0");
        open(false).read(&mut bytes, 32 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
        let metadata = fs::metadata(&own.path).unwrap();
        assert!(metadata.blocks() * 512 < 1 << 20, "the overlay is a copy");
        assert_eq!(&at(&template.file, 0), b"start\0", "the template changed");
        let names = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(names, 1, "the overlay has a name");
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
            format: Format::Raw,
            readonly: false,
        };
        let error = own(&template, None).unwrap_err().to_string();
        assert!(error.contains("/nowhere/root.img"), "{error}");
    }
}
