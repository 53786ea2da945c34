//! From opened files to imago's view of an image.

use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::ImageOptions;
use crate::DiskError;
use crate::format::Format;
use crate::layer::{Layer, image_error};
use crate::qcow2::check;
use crate::qcow2::header::Header;
use crate::qcow2::storage::{ImageFile, Role};

/// Builds the view from the lowest file up; the header if it is written.
pub(super) fn build(
    layers: &[Layer],
    options: &ImageOptions,
) -> Result<(FormatAccess<ImageFile>, Option<Header>), DiskError> {
    let Some((top, below)) = layers.split_first() else {
        return Err(DiskError::Unfit("a chain of no files".into()));
    };
    let mut base = None;
    for layer in below.iter().rev() {
        let file = match layer.format {
            Format::Raw => ImageFile::raw(layer.file.clone(), layer.path.clone(), Role::Base),
            Format::Qcow2 => ImageFile::qcow2(layer.file.clone(), layer.path.clone(), Role::Base),
        };
        base = Some(view(layer, file, false, base)?);
    }
    let role = match (options.read_only, options.scratch) {
        (true, _) => Role::Base,
        (false, true) => Role::Scratch,
        (false, false) => Role::Image,
    };
    let (file, path) = (top.file.clone(), top.path.clone());
    let Some(header) = &top.header else {
        let access = view(
            top,
            ImageFile::raw(file, path, role),
            !options.read_only,
            base,
        )?;
        return Ok((access, None));
    };
    let storage = ImageFile::qcow2(file, path, role);
    if options.read_only {
        return Ok((view(top, storage, false, base)?, None));
    }
    let mut header = header.clone();
    let l2 = prepare(top, &mut header)?;
    let storage = storage.with_barrier(&header, l2);
    let access = view(top, storage, true, base)?;
    if options.scratch {
        return Ok((access, None));
    }
    // From here on refcounts may lag behind, until the image is closed.
    header
        .mark_dirty(&top.file, true)
        .and_then(|()| top.file.sync_data())
        .map_err(|e| image_error(&top.path, e))?;
    Ok((access, Some(header)))
}

/// Checks an image before it is written, and mends what a crash has left; the
/// places of its L2 tables.
fn prepare(layer: &Layer, header: &mut Header) -> Result<HashSet<u64>, DiskError> {
    let failed = |e| image_error(&layer.path, e);
    let survey = check::check(&layer.file, header, true).map_err(failed)?;
    let report = &survey.report;
    if report.damage > 0 {
        let first = report.texts.first().map_or("", String::as_str);
        return Err(DiskError::Image {
            path: layer.path.clone(),
            reason: format!(
                "it is damaged ({first}); see holm disk check, or read it only (readonly)"
            ),
        });
    }
    if !report.is_clean() {
        tracing::info!(
            path = %layer.path.display(),
            leaked = report.leaked_clusters,
            errors = report.errors,
            "the disk was not closed; its refcounts were repaired"
        );
    }
    header.autoclear(&layer.file).map_err(failed)?;
    Ok(survey.l2)
}

fn view(
    layer: &Layer,
    file: ImageFile,
    writable: bool,
    base: Option<FormatAccess<ImageFile>>,
) -> Result<FormatAccess<ImageFile>, DiskError> {
    let open = || -> io::Result<FormatAccess<ImageFile>> {
        match layer.format {
            Format::Raw => Ok(FormatAccess::new(Raw::open_image(file, writable)?)),
            Format::Qcow2 => {
                let builder = Qcow2::<ImageFile>::builder(file)
                    .backing(base)
                    .data_file(None)
                    .write(writable);
                let image = builder.open(DenyImplicitOpenGate::default())?;
                Ok(FormatAccess::new(image))
            }
        }
    };
    catch_unwind(AssertUnwindSafe(open))
        .unwrap_or_else(|_| {
            Err(crate::qcow2::header::refuse(
                "the code for its format failed on it",
            ))
        })
        .map_err(|e| image_error(&layer.path, e))
}
