//! Disks that are read to become images.

use std::io;
use std::path::Path;

use disk::{Extent, Format, Image, ImageOptions};

use crate::{ForeignFormat, ImagesError, ImportFormat, foreign};

/// A disk in any format, read from its start to its end.
pub(crate) trait Source {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Whether there may be anything but zeroes at `at`, and for how many
    /// bytes that holds, at least one.
    fn extent(&self, at: u64) -> io::Result<(bool, u64)>;

    /// Reads; the range lies on the disk.
    fn read(&self, out: &mut [u8], at: u64) -> io::Result<()>;
}

/// A raw file or a qcow2 image.
struct Native(Image);

impl Source for Native {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn extent(&self, at: u64) -> io::Result<(bool, u64)> {
        let (extent, length) = self.0.extent(at, self.0.size() - at)?;
        Ok((extent == Extent::Data, length))
    }

    fn read(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read(out, at)
    }
}

/// Opens a disk of which nothing is known but what its user says: an image
/// that leads to other files is refused.
pub(crate) fn open(
    path: &Path,
    told: Option<ImportFormat>,
) -> Result<Box<dyn Source>, ImagesError> {
    let format = ImportFormat::decide(path, told)?;
    match format {
        ImportFormat::Foreign(ForeignFormat::Vhd) => Ok(Box::new(foreign::Vhd::open(path)?)),
        ImportFormat::Foreign(ForeignFormat::Vmdk) => Ok(Box::new(foreign::Vmdk::open(path)?)),
        ImportFormat::Native(format) => {
            let info = disk::manage::info(path, Some(format))?;
            let leads = info.backing.first().map(|lower| lower.name.clone());
            if leads.is_some() || info.backing_problem.is_some() {
                return Err(ImagesError::Refused(format!(
                    "{}: it builds on another file ({}), which an import does not follow. If you \
                     trust it, make it whole first: holm disk convert --format qcow2 {0} whole.qcow2",
                    path.display(),
                    leads.unwrap_or_else(|| "which cannot be read".into()),
                )));
            }
            Ok(Box::new(open_chain(path, format)?))
        }
    }
}

/// Opens a disk of ours with all that it builds on.
pub(crate) fn open_trusted(path: &Path, format: Format) -> Result<Box<dyn Source>, ImagesError> {
    Ok(Box::new(open_chain(path, format)?))
}

fn open_chain(path: &Path, format: Format) -> Result<Native, ImagesError> {
    Ok(Native(Image::open(&ImageOptions::read(
        path,
        Some(format),
    ))?))
}
