//! Opening a virtual disk of any format.

use std::path::PathBuf;
use std::sync::Arc;

use crate::format::Format;
use crate::image::open_image_disk;
use crate::layer::{Access, open_chain};
use crate::raw::RawDisk;
use crate::{Aio, BlockBackend, Caching, DiskError, RawOptions};

/// What to open, and how.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Its format; `None`: what it was decided to be when it was first used,
    /// else what it looks like, unless it then leads to other files.
    pub format: Option<Format>,
    /// Open for reading only; several machines may do so at once.
    pub read_only: bool,
    /// What is written need not survive the machine: flushes cost nothing.
    /// Raw disks pay no heed to it.
    pub scratch: bool,
    /// Serial number that the guest sees; ASCII, at most 20 characters.
    pub serial: String,
    /// Logical block size the guest sees, 512 or 4096 bytes.
    pub logical_block: u32,
    /// Use of the page cache.
    pub caching: Caching,
    /// How operations reach the kernel.
    pub aio: Aio,
}

impl DiskOptions {
    /// The defaults: read-write, no serial number, 512-byte blocks, the
    /// fastest access that the host allows.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let raw = RawOptions::new(path);
        Self {
            path: raw.path,
            format: None,
            read_only: raw.read_only,
            scratch: false,
            serial: raw.serial,
            logical_block: raw.logical_block,
            caching: raw.caching,
            aio: raw.aio,
        }
    }

    pub(crate) fn raw(&self) -> RawOptions {
        RawOptions {
            path: self.path.clone(),
            read_only: self.read_only,
            serial: self.serial.clone(),
            logical_block: self.logical_block,
            caching: self.caching,
            aio: self.aio,
        }
    }
}

/// Opens and locks a disk.
///
/// # Errors
/// [`DiskError`], one for each thing that can be wrong with it.
pub fn open(options: &DiskOptions) -> Result<Arc<dyn BlockBackend>, DiskError> {
    let access = Access {
        read_only: options.read_only,
        unlocked: false,
    };
    let mut layers = open_chain(&options.path, options.format, access)?;
    let top = layers.remove(0);
    if top.format == Format::Raw {
        return Ok(Arc::new(RawDisk::adopt(&options.raw(), top)?));
    }
    layers.insert(0, top);
    open_image_disk(layers, options)
}
