//! Operations on image files that no machine uses. Each leaves its files as
//! they were, or as they should become, whenever it ends; what it must not
//! touch meanwhile it locks.

mod change;
mod compare;
mod convert;
mod create;
mod info;
mod new_file;

use std::io;
use std::path::Path;

use crate::DiskError;
use crate::format::{self, Format};
use crate::layer::{Access, Layer, image_error};
use crate::qcow2::check;
use crate::{Image, ImageOptions, Report};

pub use change::{Base, adopt_copy, commit, rebase, resize};
pub use compare::{Difference, compare};
pub use convert::convert;
pub use create::{CreateOptions, Preallocate, create, create_overlay_in};
pub use info::{Info, Lower, info};

/// Hears how far a long operation is: bytes done, and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Data moves in pieces of this many bytes.
const PIECE: u64 = 2 << 20;

/// Checks a qcow2 image's tables; with `repair` mends what can be mended.
///
/// # Errors
/// [`DiskError`]: it is no qcow2 image, is in use, or the host's error.
pub fn check(path: &Path, told: Option<Format>, repair: bool) -> Result<Report, DiskError> {
    let access = Access {
        read_only: !repair,
        unlocked: false,
    };
    let mut layer = Layer::open_alone(path, told, access)?;
    let Some(mut header) = layer.header.take() else {
        return Err(DiskError::Unfit(format!(
            "{}: a raw image has no tables to check",
            path.display()
        )));
    };
    let checked = check::check(&layer.file, &mut header, repair);
    let report = checked.map_err(|e| image_error(path, e))?.report;
    if repair && report.damage == 0 {
        let closed = header.mark_dirty(&layer.file, false);
        closed
            .and_then(|()| layer.file.sync_data())
            .map_err(|e| image_error(path, e))?;
    }
    Ok(report)
}

/// Whether a machine, or another operation, has a disk's file in use now: for
/// reading or writing, itself or as a file below another.
///
/// # Errors
/// [`DiskError`]: it cannot be opened.
pub fn in_use(path: &Path) -> Result<bool, DiskError> {
    let file = std::fs::File::open(path).map_err(|e| crate::raw::open_error(path, true, e))?;
    Ok(crate::raw::is_locked(&file))
}

/// What a file that came from elsewhere looks like, to be imported.
///
/// # Errors
/// [`DiskError`]: it cannot be read, or is a raw disk of ours that looks like
/// something else now.
pub fn looks_like(path: &Path, file: &std::fs::File) -> Result<crate::Looks, DiskError> {
    format::looks_like(path, file)
}

/// Remembers beside a file's contents which format it has, so that nobody has
/// to find out from them; `false`: the file system cannot.
pub fn remember_format(file: &std::fs::File, format: Format) -> bool {
    format::remember(file, format)
}

/// An error of the host, or of an image, while something was done to `path`.
fn during(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Host {
        path: path.clone(),
        doing,
        source,
    }
}

/// Opens an image to be read.
fn open_source(path: &Path, told: Option<Format>) -> Result<Image, DiskError> {
    Image::open(&ImageOptions::read(path, told))
}

/// Calls `step` with each part of `from..to` and what is there.
fn parts<T: PartialEq>(
    from: u64,
    to: u64,
    at: impl Fn(u64, u64) -> io::Result<(T, u64)>,
    mut step: impl FnMut(T, u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut offset = from;
    while offset < to {
        let (what, length) = at(offset, to - offset)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        step(what, offset, length)?;
        offset += length;
    }
    Ok(())
}

/// Calls `step` with each piece of a part.
fn pieces(
    offset: u64,
    length: u64,
    mut step: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let end = offset + length;
    let mut at = offset;
    while at < end {
        // Pieces begin at multiples of their length, so that they cover
        // whole clusters.
        let next = end.min((at / PIECE + 1) * PIECE);
        step(at, next - at)?;
        at = next;
    }
    Ok(())
}

/// Remembers that Holm's user has decided a format.
fn decided(layer: &Layer) {
    format::remember(&layer.file, layer.format);
}
