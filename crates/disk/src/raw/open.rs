//! Opening a raw disk: what is it, may we, is it free, what can it do.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::Format;
use crate::layer::{Access, Layer};
use crate::raw::cached::PageCache;
use crate::raw::lock::share_lock;
use crate::raw::{Aio, Caching, Direct, Files, RawDisk, RawOptions, uring};
use crate::{BlockInfo, DiskError, SECTOR, SERIAL_MAX};

pub(super) fn open(options: &RawOptions) -> Result<RawDisk, DiskError> {
    let access = Access {
        read_only: options.read_only,
        unlocked: false,
    };
    adopt(
        options,
        Layer::open(&options.path, Some(Format::Raw), access)?,
    )
}

/// The disk on a file that is open and locked.
pub(super) fn adopt(options: &RawOptions, layer: Layer) -> Result<RawDisk, DiskError> {
    check_options(options)?;
    let path = &options.path;
    let buffered = layer.file;
    let mut how = OpenOptions::new();
    how.read(true).write(!options.read_only);
    let host = |doing| {
        move |source| DiskError::Host {
            path: path.clone(),
            doing,
            source,
        }
    };
    let meta = buffered.metadata().map_err(host("look at it"))?;
    let device = check_type(path, meta.file_type())?;
    let size = size_of(&buffered, device).map_err(host("find out its size"))?;
    if size == 0 {
        return Err(DiskError::Empty(path.clone()));
    }
    if !size.is_multiple_of(u64::from(options.logical_block)) {
        return Err(DiskError::PartialSector {
            path: path.clone(),
            size,
            block: options.logical_block,
        });
    }
    let mut direct = open_direct(options, &mut how, &buffered)?;
    if let Some(direct) = direct.as_mut().filter(|_| options.caching == Caching::Auto) {
        direct.cached = PageCache::new(&buffered, size).ok();
    }
    let block = if device {
        ioctl_u32(&buffered, libc::BLKPBSZGET).unwrap_or(4096)
    } else {
        meta.blksize() as u32
    };
    let physical_block = sane_block(block.max(options.logical_block));
    let discard = !options.read_only && can_punch(&buffered, device, size);
    let uring = match options.aio {
        Aio::Threads => false,
        Aio::Auto => uring::usable().is_ok(),
        Aio::Uring => uring::usable().map(|()| true).map_err(DiskError::NoUring)?,
    };
    Ok(RawDisk {
        files: Arc::new(Files {
            buffered,
            direct,
            sectors: AtomicU64::new(size / SECTOR),
            guarded: layer.guarded && !options.read_only,
        }),
        info: BlockInfo {
            sectors: size / SECTOR,
            logical_block: options.logical_block,
            physical_block,
            optimal_io: 0,
            read_only: options.read_only,
            serial: options.serial.clone(),
            discard,
            discard_granularity: physical_block,
        },
        uring,
    })
}

/// The file of an image, for data at places that its tables give. Below
/// `reach` bytes what is in the page cache is read from there.
pub(crate) fn image_files(
    path: &Path,
    file: &Arc<File>,
    read_only: bool,
    caching: Caching,
    reach: u64,
) -> Files {
    let mut options = RawOptions::new(path);
    (options.read_only, options.caching) = (read_only, caching);
    let mut how = OpenOptions::new();
    how.read(true).write(!read_only);
    let mut direct = open_direct(&options, &mut how, file).ok().flatten();
    if let Some(direct) = &mut direct {
        // The tables, and data that is new, go through the page cache: no page
        // may be written both ways at once.
        direct.offset_align = direct.offset_align.max(4096);
        direct.cached = PageCache::new(file, reach).ok();
    }
    Files {
        buffered: file.clone(),
        direct,
        // The tables tell what is there.
        sectors: AtomicU64::new(u64::MAX / SECTOR),
        guarded: false,
    }
}

pub(crate) fn check_options(options: &RawOptions) -> Result<(), DiskError> {
    let serial = &options.serial;
    if serial.len() > SERIAL_MAX || !serial.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Err(DiskError::Serial(serial.clone()));
    }
    if !matches!(options.logical_block, 512 | 4096) {
        return Err(DiskError::BlockSize(options.logical_block));
    }
    Ok(())
}

pub(crate) fn open_error(path: &Path, read_only: bool, source: io::Error) -> DiskError {
    let path = path.to_owned();
    match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => DiskError::Missing(path),
        (io::ErrorKind::PermissionDenied, _) | (_, Some(libc::EROFS)) => DiskError::Permission {
            path,
            access: if read_only {
                "reading"
            } else {
                "reading and writing"
            },
            hint: if read_only {
                ""
            } else {
                ", or attach it read-only"
            },
        },
        _ => DiskError::Host {
            path,
            doing: "open it",
            source,
        },
    }
}

/// Whether it is a block device; an error if it is no disk at all.
pub(crate) fn check_type(path: &Path, kind: FileType) -> Result<bool, DiskError> {
    let kind = if kind.is_file() {
        return Ok(false);
    } else if kind.is_block_device() {
        return Ok(true);
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_char_device() {
        "character device"
    } else if kind.is_fifo() {
        "pipe"
    } else if kind.is_socket() {
        "socket"
    } else {
        "special file"
    };
    Err(DiskError::NotADisk {
        path: path.to_owned(),
        kind,
    })
}

fn size_of(file: &File, device: bool) -> io::Result<u64> {
    if !device {
        return Ok(file.metadata()?.len());
    }
    // The end of a block device is found by seeking.
    let mut file = file;
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Makes the file larger, or sees that the block device is.
pub(super) fn grow(files: &Files, info: &BlockInfo, sectors: u64) -> Result<(), DiskError> {
    let refuse = |why: String| {
        let disk = "raw".to_owned();
        Err(DiskError::Grow { disk, why })
    };
    let now = files.sectors.load(Ordering::Acquire);
    if sectors < now {
        return refuse(format!(
            "it has {} bytes, and a disk in use does not become smaller",
            now * SECTOR
        ));
    }
    let Some(size) = sectors.checked_mul(SECTOR).filter(|s| *s < 1 << 62) else {
        return refuse("that is larger than any file".into());
    };
    if !size.is_multiple_of(info.logical_block.into()) {
        return refuse(format!("its blocks have {} bytes", info.logical_block));
    }
    if info.read_only {
        return refuse("it is read-only".into());
    }
    let grown = files.buffered.metadata().and_then(|meta| {
        if meta.is_file() && meta.len() < size {
            files.buffered.set_len(size)?;
        }
        size_of(&files.buffered, !meta.is_file())
    });
    match grown {
        Ok(there) if there >= size => {
            files.sectors.fetch_max(sectors, Ordering::AcqRel);
            Ok(())
        }
        Ok(there) => refuse(format!(
            "the block device has {there} bytes; make it larger first"
        )),
        Err(error) => refuse(error.to_string()),
    }
}

fn open_direct(
    options: &RawOptions,
    how: &mut OpenOptions,
    buffered: &File,
) -> Result<Option<Direct>, DiskError> {
    if options.caching == Caching::Buffered {
        return Ok(None);
    }
    let direct = how
        .custom_flags(libc::O_DIRECT)
        .open(&options.path)
        .ok()
        .filter(|file| same_file(file, buffered))
        .and_then(alignment);
    match &direct {
        None if options.caching == Caching::Direct => {
            return Err(DiskError::NoDirect(options.path.clone()));
        }
        Some(direct) if !options.read_only => share_lock(buffered, &direct.file),
        _ => {}
    }
    Ok(direct)
}

fn same_file(a: &File, b: &File) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// What direct I/O on the file demands; `None` if it does not work.
fn alignment(file: File) -> Option<Direct> {
    let told = statx_dio_align(&file);
    let largest = 4096;
    #[repr(align(4096))]
    struct Probe([u8; 4096]);
    let mut probe = Probe([0; 4096]);
    if told.is_some_and(|(_, offset)| offset == 0) {
        return None;
    }
    let measured = [512, 4096].into_iter().find(|&align| {
        let part = probe.0.get_mut(..align as usize);
        // At the second block, so that a larger true block size shows.
        part.is_some_and(|part| file.read_at(part, align % largest).is_ok())
    })?;
    let (memory_align, offset_align) = match told {
        Some((memory, offset)) => (memory.max(1), offset.max(measured)),
        None => (measured, measured),
    };
    let usable = |align: u64| align.is_power_of_two() && align <= 1 << 20;
    (usable(memory_align) && usable(offset_align)).then_some(Direct {
        file,
        memory_align,
        offset_align,
        cached: None,
    })
}

/// Memory and offset alignment of direct I/O as the kernel tells it (Linux
/// 6.1, statx(2) STATX_DIOALIGN); offset 0: not possible.
fn statx_dio_align(file: &File) -> Option<(u64, u64)> {
    const STATX_DIOALIGN: u32 = 0x2000;
    // The structure has 256 bytes; libc's lacks the fields wanted here, which
    // are the 32-bit words 38 and 39.
    let mut words = [0u32; 64];
    // SAFETY: an open descriptor, an empty path with AT_EMPTY_PATH, and room
    // for the whole structure, suitably aligned for its use as words.
    let done = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            words.as_mut_ptr(),
        )
    };
    (done == 0 && words[0] & STATX_DIOALIGN != 0)
        .then(|| (u64::from(words[38]), u64::from(words[39])))
}

/// Whether holes can be punched: tried behind the end of a file; block devices
/// are asked.
fn can_punch(file: &File, device: bool, size: u64) -> bool {
    if device {
        return ioctl_discards(file);
    }
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let Ok(offset) = libc::off64_t::try_from(size.next_multiple_of(4096)) else {
        return false;
    };
    // SAFETY: an open descriptor; nothing lies behind the end of the file.
    unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, 4096) == 0 }
}

fn ioctl_discards(file: &File) -> bool {
    let Ok(meta) = file.metadata() else {
        return false;
    };
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let limit = format!("/sys/dev/block/{major}:{minor}/queue/discard_max_bytes");
    std::fs::read_to_string(limit).is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|n| n > 0))
}

fn ioctl_u32(file: &File, request: libc::Ioctl) -> Option<u32> {
    let mut value: libc::c_uint = 0;
    // SAFETY: the requests used here store one unsigned int.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) };
    (done == 0).then_some(value)
}

fn sane_block(block: u32) -> u32 {
    if block.is_power_of_two() && (512..=65536).contains(&block) {
        block
    } else {
        4096
    }
}
