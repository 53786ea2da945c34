//! Copying a disk into a new image.

use std::path::Path;

use super::create::{CreateOptions, Preallocate, fill};
use super::new_file::NewFile;
use super::{PIECE, Progress, during, open_source, parts, pieces};
use crate::DiskError;
use crate::format::{self, Format};
use crate::image::Extent;
use crate::layer::{Layer, image_error};
use crate::qcow2::header::Header;
use crate::{Image, ImageOptions};

/// Copies what an image and all below it show into a new image, which builds
/// on nothing; zeroes take no space in it. Whole or not at all.
///
/// # Errors
/// [`DiskError`]: options that do not fit, an image that cannot be used, or
/// the host's error.
pub fn convert(
    source: &Path,
    told: Option<Format>,
    target: &Path,
    options: &CreateOptions,
    progress: Progress<'_>,
) -> Result<u64, DiskError> {
    let from = open_source(source, told)?;
    let size = from.size().next_multiple_of(512);
    let options = CreateOptions {
        size: Some(size),
        ..options.clone()
    };
    let new = NewFile::begin(target, options.replace)?;
    fill(new.file(), target, &options, None)?;
    let header = match options.format {
        Format::Raw => None,
        Format::Qcow2 => Some(Header::read(new.file()).map_err(|e| image_error(target, e))?),
    };
    let layer = Layer {
        path: target.to_owned(),
        file: new.file().clone(),
        format: options.format,
        guarded: false,
        header,
    };
    // It is synced as a whole before it gets its name.
    let mut how = ImageOptions::write(target, Some(options.format));
    how.scratch = true;
    let to = Image::from_layers(vec![layer], &how)?;
    let keep_zeroes = options.preallocate == Preallocate::Full;
    let grain = to.granularity().max(4096) as usize;
    let mut buffer = vec![0; PIECE as usize];
    let copied = parts(
        0,
        from.size(),
        |at, max| from.extent(at, max),
        |extent, at, length| {
            if extent == Extent::Data {
                pieces(at, length, |at, length| {
                    let piece = buffer.get_mut(..length as usize).unwrap_or_default();
                    from.read(piece, at)?;
                    match keep_zeroes {
                        true => to.write(piece, at),
                        false => write_data(&to, piece, at, grain),
                    }
                })?;
            }
            progress(at + length, size);
            Ok(())
        },
    );
    copied
        .and_then(|()| to.close())
        .map_err(during(target, "write it"))?;
    format::remember(new.file(), options.format);
    new.commit()?;
    Ok(size)
}

/// Writes a piece but for the parts of `grain` bytes that are zero.
fn write_data(to: &Image, piece: &[u8], at: u64, grain: usize) -> std::io::Result<()> {
    let mut run: Option<(usize, usize)> = None;
    for (start, part) in (0..).step_by(grain).zip(piece.chunks(grain)) {
        if is_zero(part) {
            if let Some((from, end)) = run.take() {
                to.write(piece.get(from..end).unwrap_or_default(), at + from as u64)?;
            }
        } else {
            let from = run.map_or(start, |(from, _)| from);
            run = Some((from, start + part.len()));
        }
    }
    match run {
        Some((from, end)) => to.write(piece.get(from..end).unwrap_or_default(), at + from as u64),
        None => Ok(()),
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(data: &[u8]) -> bool {
    // Chunks, so that the compiler makes vectors of them.
    let (chunks, tail) = data.as_chunks::<64>();
    let none = |bytes: &[u8]| bytes.iter().fold(0, |bits, byte| bits | byte) == 0;
    chunks.iter().all(|chunk| none(chunk)) && none(tail)
}
