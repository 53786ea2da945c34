//! Comparing what two images show.

use std::path::Path;

use super::convert::is_zero;
use super::{PIECE, Progress, during, open_source};
use crate::format::Format;
use crate::image::Extent;
use crate::{DiskError, Image};

/// Where two images differ first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first byte that differs; what one image lacks counts as zeroes.
    pub offset: u64,
}

/// Compares two images; `None`: they show the same. Where one is shorter, the
/// other must have zeroes.
///
/// # Errors
/// [`DiskError`]: an image that cannot be used, or the host's error.
pub fn compare(
    a: (&Path, Option<Format>),
    b: (&Path, Option<Format>),
    progress: Progress<'_>,
) -> Result<Option<Difference>, DiskError> {
    let first = open_source(a.0, a.1)?;
    let second = open_source(b.0, b.1)?;
    let size = first.size().max(second.size());
    let mut buffers = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
    let mut at = 0;
    while at < size {
        let most = (size - at).min(1 << 30);
        let (x, length) = there(&first, at, most).map_err(during(a.0, "read it"))?;
        let (y, length) = there(&second, at, length).map_err(during(b.0, "read it"))?;
        let length = match x == Extent::Zero && y == Extent::Zero {
            true => length,
            false => length.min(PIECE),
        };
        if x == Extent::Data || y == Extent::Data {
            let take = length as usize;
            let left = buffers.0.get_mut(..take).unwrap_or_default();
            let right = buffers.1.get_mut(..take).unwrap_or_default();
            load(&first, x, left, at).map_err(during(a.0, "read it"))?;
            load(&second, y, right, at).map_err(during(b.0, "read it"))?;
            if left != right {
                let same = left.iter().zip(right.iter()).take_while(|(l, r)| l == r);
                let offset = at + same.count() as u64;
                return Ok(Some(Difference { offset }));
            }
        }
        at += length;
        progress(at, size);
    }
    Ok(None)
}

fn there(image: &Image, at: u64, max: u64) -> std::io::Result<(Extent, u64)> {
    match image.size().checked_sub(at) {
        None | Some(0) => Ok((Extent::Zero, max)),
        Some(rest) => image.extent(at, rest.min(max)),
    }
}

fn load(image: &Image, extent: Extent, out: &mut [u8], at: u64) -> std::io::Result<()> {
    if extent == Extent::Data {
        return image.read(out, at);
    }
    if !is_zero(out) {
        out.fill(0);
    }
    Ok(())
}
