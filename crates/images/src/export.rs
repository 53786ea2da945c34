//! Images as files for elsewhere.

use std::path::Path;

use disk::Format;
use disk::manage::{self, CreateOptions};

use crate::library::Library;
use crate::{Digest, ForeignFormat, ImagesError, ImportFormat, Progress, foreign};

impl Library {
    /// Writes an image's disk to a new file, whole or not at all; another file
    /// of this name is replaced if `replace` says so. The image is read whole
    /// and compared first. Bytes of the file.
    ///
    /// # Errors
    /// [`ImagesError::Corrupt`], a file that exists, or the host's.
    pub fn export(
        &self,
        digest: &Digest,
        to: &Path,
        format: ImportFormat,
        replace: bool,
        progress: Progress<'_>,
    ) -> Result<u64, ImagesError> {
        self.verify(digest, true, &mut |_, _| {})?;
        let from = self.use_image(digest)?;
        export_disk((&from, Format::Raw), to, format, replace, progress)
    }
}

/// Writes what a disk shows, with all that it builds on, to a new file: see
/// [`Library::export`].
///
/// # Errors
/// A disk that cannot be used, a file that exists, or the host's.
pub fn export_disk(
    from: (&Path, Format),
    to: &Path,
    format: ImportFormat,
    replace: bool,
    progress: Progress<'_>,
) -> Result<u64, ImagesError> {
    match format {
        ImportFormat::Native(format) => {
            let mut options = CreateOptions::new(format, 0);
            options.replace = replace;
            manage::convert(from.0, Some(from.1), to, &options, progress)?;
        }
        ImportFormat::Foreign(format) => {
            let write = match format {
                ForeignFormat::Vhd => foreign::write_vhd,
                ForeignFormat::Vmdk => foreign::write_vmdk,
            };
            let source = crate::import::open_trusted(from.0, from.1)?;
            foreign::write_new(to, replace, |file| write(file, &*source, progress))?;
        }
    }
    let meta = std::fs::metadata(to).map_err(ImagesError::host(to, "look at it"))?;
    Ok(meta.len())
}
