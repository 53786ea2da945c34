//! A virtual disk on an image.

use std::io;
use std::sync::Arc;

use memory::GuestRam;

use super::fast::FastFiles;
use super::queue::ImageQueue;
use super::{Image, ImageOptions};
use crate::layer::Layer;
use crate::open::DiskOptions;
use crate::raw::check_options;
use crate::{Aio, BlockBackend, BlockInfo, BlockQueue, DiskError, SECTOR, io_uring_usable};

/// See the module.
struct ImageDisk {
    image: Arc<Image>,
    /// `None`: the host has no io_uring for us.
    files: Option<Arc<FastFiles>>,
    info: BlockInfo,
}

/// Opens a disk on a chain of files.
pub(crate) fn open_image_disk(
    layers: Vec<Layer>,
    options: &DiskOptions,
) -> Result<Arc<dyn BlockBackend>, DiskError> {
    check_options(&options.raw())?;
    let image = Image::from_layers(
        layers,
        &ImageOptions {
            path: options.path.clone(),
            format: options.format,
            read_only: options.read_only,
            scratch: options.scratch,
        },
    )?;
    let size = image.size();
    let block = u64::from(options.logical_block);
    if size == 0 || !size.is_multiple_of(block) {
        return Err(DiskError::Image {
            path: options.path.clone(),
            reason: format!(
                "its disk has {size} bytes, which is no number of {block}-byte blocks; see holm \
                 disk resize"
            ),
        });
    }
    let cluster = image.granularity().clamp(512, 1 << 20) as u32;
    let info = BlockInfo {
        sectors: size / SECTOR,
        logical_block: options.logical_block,
        physical_block: 4096.max(options.logical_block),
        optimal_io: cluster.max(4096),
        read_only: options.read_only,
        serial: options.serial.clone(),
        discard: image.can_discard(),
        discard_granularity: cluster.max(options.logical_block),
    };
    let uring = match options.aio {
        Aio::Threads => false,
        Aio::Auto => io_uring_usable().is_ok(),
        Aio::Uring => io_uring_usable()
            .map(|()| true)
            .map_err(DiskError::NoUring)?,
    };
    let files = uring.then(|| FastFiles::new(&image, options.scratch, options.caching).into());
    let image = Arc::new(image);
    Ok(Arc::new(ImageDisk { image, files, info }))
}

impl BlockBackend for ImageDisk {
    fn info(&self) -> &BlockInfo {
        &self.info
    }

    fn sectors(&self) -> u64 {
        self.image.size() / SECTOR
    }

    fn grow(&self, sectors: u64) -> Result<(), DiskError> {
        let refuse = |why: String| {
            let disk = self.describe();
            Err(DiskError::Grow { disk, why })
        };
        let block = u64::from(self.info.logical_block);
        let Some(size) = sectors.checked_mul(SECTOR).filter(|s| *s < 1 << 56) else {
            return refuse("that is larger than any image".into());
        };
        if self.info.read_only {
            return refuse("it is read-only".into());
        }
        if size < self.image.size() || !size.is_multiple_of(block) {
            return refuse(format!(
                "it has {} bytes in blocks of {block}, and a disk in use does not become smaller",
                self.image.size()
            ));
        }
        self.image.grow(size).or_else(|e| refuse(e.to_string()))
    }

    fn open_queue(&self, ram: Arc<GuestRam>) -> Result<Box<dyn BlockQueue>, DiskError> {
        let (image, files) = (self.image.clone(), self.files.clone());
        let queue = ImageQueue::new(image, files, self.info.clone(), ram)?;
        Ok(Box::new(queue))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.image.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.image.read(out, offset)
    }

    fn image(&self) -> Option<&Arc<Image>> {
        Some(&self.image)
    }

    fn close(&self) -> io::Result<()> {
        self.image.finish()
    }

    fn describe(&self) -> String {
        let mut text = self.image.format().name().to_owned();
        for (_, format) in self.image.files().skip(1) {
            text = format!("{text} on {format}");
        }
        text
    }
}
