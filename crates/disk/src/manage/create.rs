//! Making images.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, format::PreallocateMode};
use rustix::fs::FallocateFlags;

use super::new_file::{NewFile, failed};
use crate::DiskError;
use crate::format::{self, Format};
use crate::layer::{Access, open_chain, refer};
use crate::qcow2::storage::{ImageFile, Role};

/// What is reserved of an image when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocate {
    /// Nothing.
    #[default]
    Off,
    /// A qcow2 image's tables.
    Metadata,
    /// The space of all data.
    Full,
}

/// An image to be made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Its format; with a backing file it must be qcow2.
    pub format: Format,
    /// Size of its disk in bytes; `None`: the backing file's.
    pub size: Option<u64>,
    /// What it builds on, and that one's format if known.
    pub backing: Option<(PathBuf, Option<Format>)>,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB; `None`: 64 KiB.
    pub cluster_size: Option<u64>,
    /// What is reserved at once.
    pub preallocate: Preallocate,
    /// Another file of this name is replaced.
    pub replace: bool,
}

impl CreateOptions {
    /// An empty disk.
    pub fn new(format: Format, size: u64) -> Self {
        Self {
            format,
            size: Some(size),
            backing: None,
            cluster_size: None,
            preallocate: Preallocate::Off,
            replace: false,
        }
    }

    /// A qcow2 image that holds what changes on `backing`.
    pub fn overlay(backing: impl Into<PathBuf>, format: Option<Format>) -> Self {
        Self {
            size: None,
            backing: Some((backing.into(), format)),
            ..Self::new(Format::Qcow2, 0)
        }
    }
}

/// Makes an image at `path`, whole or not at all; its size in bytes.
///
/// # Errors
/// [`DiskError`]: options that do not fit, a backing file that cannot be used,
/// or the host's error.
pub fn create(path: &Path, options: &CreateOptions) -> Result<u64, DiskError> {
    let mut options = options.clone();
    let backing = match &options.backing {
        Some((backing, told)) => {
            let (format, size) = look_at(backing, *told)?;
            options.size.get_or_insert(size);
            let name = refer(path, backing).map_err(|e| failed(backing, "name it", e))?;
            Some((name, format))
        }
        None => None,
    };
    let new = NewFile::begin(path, options.replace)?;
    let size = fill(new.file(), path, &options, backing)?;
    format::remember(new.file(), options.format);
    new.commit()?;
    Ok(size)
}

/// Makes an overlay on `backing` in an empty file that is open already and
/// need not have a name; its disk is as large as the backing one's.
///
/// # Errors
/// As [`create`].
pub fn create_overlay_in(
    file: &Arc<File>,
    backing: &Path,
    told: Option<Format>,
) -> Result<u64, DiskError> {
    let (format, size) = look_at(backing, told)?;
    let absolute = backing
        .canonicalize()
        .map_err(|e| failed(backing, "find it", e))?;
    let name = refer(Path::new("/"), &absolute).map_err(|e| failed(backing, "name it", e))?;
    let options = CreateOptions {
        size: Some(size),
        ..CreateOptions::overlay(backing, Some(format))
    };
    fill(file, backing, &options, Some((name, format)))
}

/// A backing file's format, and its size in bytes in whole sectors.
fn look_at(backing: &Path, told: Option<Format>) -> Result<(Format, u64), DiskError> {
    let access = Access {
        read_only: true,
        unlocked: true,
    };
    let chain = open_chain(backing, told, access)?;
    // A chain has its first file at least.
    let size = chain[0].size()?;
    Ok((chain[0].format, size.next_multiple_of(512)))
}

/// Makes the image in an open file.
pub(super) fn fill(
    file: &Arc<File>,
    path: &Path,
    options: &CreateOptions,
    backing: Option<(String, Format)>,
) -> Result<u64, DiskError> {
    let size = check(options)?;
    match options.format {
        Format::Raw => {
            let made = match options.preallocate {
                Preallocate::Full if size > 0 => {
                    let flags = FallocateFlags::empty();
                    rustix::fs::fallocate(file, flags, 0, size).map_err(Into::into)
                }
                _ => file.set_len(size),
            };
            made.map_err(|e| failed(path, "make it", e))?;
        }
        Format::Qcow2 => {
            let storage = ImageFile::raw(file.clone(), path.to_owned(), Role::Scratch);
            let mut builder = Qcow2::<ImageFile>::create_builder(storage).size(size);
            if let Some(cluster) = options.cluster_size {
                builder = builder.cluster_size(cluster as usize);
            }
            if let Some((name, format)) = backing {
                builder = builder.backing(name, format.name().to_owned());
            }
            let mode = match options.preallocate {
                Preallocate::Off => PreallocateMode::None,
                Preallocate::Metadata => PreallocateMode::FormatAllocate,
                Preallocate::Full => PreallocateMode::FullAllocate,
            };
            let made = builder.preallocate(mode).create();
            made.map_err(|e| failed(path, "make it", e))?;
        }
    }
    Ok(size)
}

/// Checks options against each other; the size.
fn check(options: &CreateOptions) -> Result<u64, DiskError> {
    let unfit = |text: &str| Err(DiskError::Unfit(text.into()));
    let raw = options.format == Format::Raw;
    if raw && options.backing.is_some() {
        return unfit("a raw image cannot build on another; make a qcow2 image");
    }
    if raw && options.preallocate == Preallocate::Metadata {
        return unfit("a raw image has no tables to preallocate");
    }
    if options.backing.is_some() && options.preallocate != Preallocate::Off {
        return unfit("an image that builds on another cannot be preallocated");
    }
    match options.cluster_size {
        Some(_) if raw => return unfit("a raw image has no clusters"),
        Some(size) if !size.is_power_of_two() || !(512..=2 << 20).contains(&size) => {
            return unfit("clusters have a power of two of bytes, from 512 to 2M");
        }
        _ => {}
    }
    match options.size {
        Some(size) if size > 0 && size.is_multiple_of(512) && size < 1 << 56 => Ok(size),
        Some(_) => unfit("a disk has a multiple of 512 bytes, and not none"),
        None => unfit("say how large the disk is to be"),
    }
}
