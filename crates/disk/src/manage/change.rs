//! Changing images: their size, what they build on, and moving what an
//! overlay holds into its backing file.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::create::{CreateOptions, create};
use super::{PIECE, Progress, decided, during, parts, pieces};
use crate::DiskError;
use crate::format::Format;
use crate::image::Origin;
use crate::layer::{Access, Layer, image_error, open_chain, refer, resolve};
use crate::qcow2::header::Backing;
use crate::{Image, ImageOptions};

/// What an image is to build on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing: it becomes whole by itself.
    None,
    /// Another file, and its format if known.
    File(PathBuf, Option<Format>),
}

/// Changes the size of an image's disk. Smaller only with `shrink`: what lay
/// behind is lost.
///
/// # Errors
/// [`DiskError`]: a size that does not fit, an image in use, or the host's
/// error.
pub fn resize(path: &Path, told: Option<Format>, size: u64, shrink: bool) -> Result<(), DiskError> {
    if size == 0 || !size.is_multiple_of(512) || size >= 1 << 56 {
        return Err(DiskError::Unfit(
            "a disk has a multiple of 512 bytes, and not none".into(),
        ));
    }
    let mut image = Image::open(&ImageOptions::write(path, told))?;
    let now = image.size();
    let failed = during(path, "change its size");
    if size < now && !shrink {
        return Err(DiskError::Unfit(format!(
            "{}: its disk has {now} bytes; to make it smaller loses what is behind, so say \
             --shrink (and shrink its file systems first)",
            path.display()
        )));
    }
    match size < now {
        true => image.shrink(size).map_err(&failed)?,
        false => image.grow(size).map_err(&failed)?,
    }
    image.close().map_err(&failed)
}

/// Moves what an overlay holds into its backing file, and empties the
/// overlay. Ends it early, the overlay is still whole: it may be done again.
/// Other overlays on the same backing file become worthless.
///
/// # Errors
/// [`DiskError`]: no backing file, one in use, or the host's error.
pub fn commit(path: &Path, told: Option<Format>, progress: Progress<'_>) -> Result<(), DiskError> {
    let access = Access {
        read_only: false,
        unlocked: false,
    };
    let overlay = Layer::open_alone(path, told, access)?;
    let cluster = overlay.header.as_ref().map(|h| h.cluster_size());
    let Some((base_path, base_format)) = overlay.backing()? else {
        return Err(DiskError::Unfit(format!(
            "{}: it builds on no other image, so there is nothing to commit to",
            path.display()
        )));
    };
    decided(&overlay);
    // Only what it holds itself is read: its backing file is not below it here.
    let overlay = Image::from_layers(vec![overlay], &ImageOptions::read(path, told))?;
    let base = Image::open(&ImageOptions::write(&base_path, Some(base_format)))?;
    let failed = during(path, "commit it");
    if overlay.size() > base.size() {
        base.grow(overlay.size()).map_err(&failed)?;
    }
    let size = overlay.size();
    let mut buffer = vec![0; PIECE as usize];
    let moved = parts(
        0,
        size,
        |at, max| overlay.origin(at, max),
        |origin, at, length| {
            match origin {
                Origin::Own => pieces(at, length, |at, length| {
                    let piece = buffer.get_mut(..length as usize).unwrap_or_default();
                    overlay.read(piece, at)?;
                    base.write(piece, at)
                }),
                Origin::OwnZero => base.zero(at, length, true),
                Origin::Below => Ok(()),
            }?;
            progress(at + length, size);
            Ok(())
        },
    );
    moved.and_then(|()| base.close()).map_err(&failed)?;
    // The old overlay stays locked until the new one has its place.
    let empty = CreateOptions {
        size: Some(size),
        cluster_size: cluster,
        replace: true,
        ..CreateOptions::overlay(&base_path, Some(base_format))
    };
    create(path, &empty)?;
    drop(overlay);
    Ok(())
}

/// Gives a qcow2 image another backing file, or none. What it shows stays the
/// same: where the new one differs, the image gets data of its own. With
/// `trust` only the name changes: for a backing file that was moved.
///
/// # Errors
/// [`DiskError`]: files that do not fit or are in use, or the host's error.
pub fn rebase(
    path: &Path,
    told: Option<Format>,
    base: &Base,
    trust: bool,
    progress: Progress<'_>,
) -> Result<(), DiskError> {
    let backing = match base {
        Base::None => None,
        Base::File(file, told) => Some(new_backing(path, file, *told, trust)?),
    };
    let image;
    let alone;
    let layer = if trust {
        let access = Access {
            read_only: false,
            unlocked: false,
        };
        alone = Layer::open_alone(path, told, access)?;
        &alone
    } else {
        image = keep_contents(path, told, backing.as_ref(), progress)?;
        image.top()
    };
    let Some(header) = &layer.header else {
        return Err(DiskError::Unfit(format!(
            "{}: a raw image builds on no other",
            path.display()
        )));
    };
    let named = backing.as_ref().map(|new| &new.named);
    let written = header.with_backing(&layer.file, named).and_then(|first| {
        layer.file.write_all_at(&first, 0)?;
        layer.file.sync_data()
    });
    written.map_err(|e| image_error(path, e))?;
    decided(layer);
    Ok(())
}

/// Makes a copy of an image's file usable in its new place: its format is
/// remembered, and it names what it builds on as seen from everywhere.
///
/// # Errors
/// [`DiskError`]: what is copied is no such image, or the host's error.
pub fn adopt_copy(copy: &Path, original: &Path, told: Option<Format>) -> Result<(), DiskError> {
    let access = Access {
        read_only: false,
        unlocked: false,
    };
    // What the original was decided to be, which the copy does not tell.
    let source = Access {
        read_only: true,
        unlocked: true,
    };
    let format = Layer::open_alone(original, told, source)?.format;
    let layer = Layer::open_alone(copy, Some(format), access)?;
    decided(&layer);
    let backing = layer.header.as_ref().and_then(|h| h.backing.clone());
    let (Some(header), Some(mut backing)) = (&layer.header, backing) else {
        return Ok(());
    };
    let wrong = |reason| DiskError::Image {
        path: original.to_owned(),
        reason,
    };
    let file = resolve(original, &backing.name).map_err(wrong)?;
    let absolute = std::path::absolute(&file).map_err(during(&file, "find it"))?;
    backing.name = refer(copy, &absolute).map_err(during(&file, "name it"))?;
    let written = header
        .with_backing(&layer.file, Some(&backing))
        .and_then(|first| layer.file.write_all_at(&first, 0));
    written.map_err(|e| image_error(copy, e))
}

struct NewBacking {
    path: PathBuf,
    format: Format,
    named: Backing,
}

fn new_backing(
    image: &Path,
    file: &Path,
    told: Option<Format>,
    trust: bool,
) -> Result<NewBacking, DiskError> {
    let format = match (told, trust) {
        // It need not be there.
        (Some(format), true) => format,
        _ => {
            let access = Access {
                read_only: true,
                unlocked: true,
            };
            // A chain has its first file at least.
            open_chain(file, told, access)?[0].format
        }
    };
    let name = match file.exists() {
        true => refer(image, file).map_err(during(file, "name it"))?,
        false => file.display().to_string(),
    };
    Ok(NewBacking {
        path: file.to_owned(),
        format,
        named: Backing {
            name,
            format: Some(format.name().to_owned()),
        },
    })
}

/// Copies into the image what would look different on the new backing file;
/// the image, closed but for its lock.
fn keep_contents(
    path: &Path,
    told: Option<Format>,
    backing: Option<&NewBacking>,
    progress: Progress<'_>,
) -> Result<Image, DiskError> {
    let image = Image::open(&ImageOptions::write(path, told))?;
    let below = match backing {
        Some(new) => Some(Image::open(&ImageOptions::read(
            &new.path,
            Some(new.format),
        ))?),
        None => None,
    };
    if let Some(below) = &below {
        let own = std::fs::metadata(path).map_err(during(path, "look at it"))?;
        for (file, _) in below.files() {
            use std::os::unix::fs::MetadataExt;
            let other = std::fs::metadata(file).map_err(during(file, "look at it"))?;
            if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
                return Err(DiskError::Loop(path.to_owned()));
            }
        }
    }
    let size = image.size();
    let (mut old, mut new) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    let cluster = image.granularity() as usize;
    let kept = parts(
        0,
        size,
        |at, max| image.origin(at, max),
        |origin, at, length| {
            if origin == Origin::Below {
                pieces(at, length, |at, length| {
                    let old = old.get_mut(..length as usize).unwrap_or_default();
                    let new = new.get_mut(..length as usize).unwrap_or_default();
                    image.read(old, at)?;
                    read_below(below.as_ref(), new, at)?;
                    let parts = old.chunks(cluster).zip(new.chunks(cluster));
                    for (n, (old, new)) in (0..).zip(parts) {
                        if old != new {
                            image.write(old, at + n * cluster as u64)?;
                        }
                    }
                    Ok(())
                })?;
            }
            progress(at + length, size);
            Ok(())
        },
    );
    kept.and_then(|()| image.finish())
        .map_err(during(path, "rebase it"))?;
    Ok(image)
}

/// Reads a lower image, which may be shorter or none.
fn read_below(below: Option<&Image>, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    let there = below.map_or(0, |b| b.size().saturating_sub(offset));
    let length = there.min(out.len() as u64) as usize;
    let (data, behind) = out.split_at_mut(length);
    behind.fill(0);
    match below {
        Some(below) if length > 0 => below.read(data, offset),
        _ => Ok(()),
    }
}
