//! Writing VHD (dynamic) and VMDK (sparse, in one file). Both put what is not
//! zero behind their tables, in the order of the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::vhd::checksum;
use crate::digest::is_zero;
use crate::import::Source;
use crate::{ImagesError, Progress};

const SECTOR: u64 = 512;
/// Bytes of a block of a VHD.
const BLOCK: u64 = 2 << 20;
/// Bytes of a grain of a VMDK.
const GRAIN: u64 = 64 << 10;
/// Entries of a grain table.
const PER_TABLE: u64 = 512;
/// Largest disks of the formats.
const VHD_LARGEST: u64 = 2040 << 30;
const VMDK_LARGEST: u64 = 2 << 40;

/// Makes a file that has its name only when it is whole.
///
/// # Errors
/// A file that exists and is not to be replaced, or the host's.
pub fn write_new(
    to: &Path,
    replace: bool,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), ImagesError> {
    let failed = |e| ImagesError::host(to, "make it")(e);
    if !replace && to.symlink_metadata().is_ok() {
        return Err(disk::DiskError::Exists(to.into()).into());
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let new = to.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let made = File::create(&new)
        .and_then(|file| fill(&file).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&new, to));
    if made.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&new);
    }
    made.map_err(failed)
}

fn too_large(most: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the format has no disks of more than {most} bytes"),
    )
}

/// Calls `put` with each part of `size` bytes that is not zero, and its number.
fn parts(
    disk: &dyn Source,
    size: u64,
    progress: Progress<'_>,
    mut put: impl FnMut(usize, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; size as usize];
    let all = disk.size();
    let mut at = 0;
    while at < all {
        let (data, length) = disk.extent(at)?;
        if !data && at + length >= at + size {
            // Only whole parts are skipped: `at` stays a multiple of them.
            at += length / size * size;
            continue;
        }
        let there = size.min(all - at) as usize;
        let (here, behind) = buffer.split_at_mut(there);
        disk.read(here, at)?;
        behind.fill(0);
        if !is_zero(&buffer) {
            put((at / size) as usize, &buffer)?;
        }
        at += size;
        progress(at.min(all), all);
    }
    Ok(())
}

/// Writes a dynamic VHD.
pub fn write_vhd(file: &File, disk: &dyn Source, progress: Progress<'_>) -> io::Result<()> {
    let size = disk.size().next_multiple_of(SECTOR);
    if size > VHD_LARGEST {
        return Err(too_large(VHD_LARGEST));
    }
    let blocks = size.div_ceil(BLOCK);
    let mut table = vec![u32::MAX; blocks as usize];
    // The table fills whole sectors.
    let table_bytes = (blocks * 4).next_multiple_of(SECTOR);
    let mut next = 512 + 1024 + table_bytes;
    let bitmap = [0xff; 512];
    parts(disk, BLOCK, progress, |number, bytes| {
        file.write_all_at(&bitmap, next)?;
        file.write_all_at(bytes, next + 512)?;
        if let Some(entry) = table.get_mut(number) {
            *entry = (next / SECTOR) as u32;
        }
        next += 512 + BLOCK;
        Ok(())
    })?;
    let footer = vhd_footer(size);
    file.write_all_at(&footer, 0)?;
    file.write_all_at(&dynamic_header(blocks), 512)?;
    let mut entries = vec![0xff; table_bytes as usize];
    for (slot, entry) in entries.as_chunks_mut::<4>().0.iter_mut().zip(&table) {
        *slot = entry.to_be_bytes();
    }
    file.write_all_at(&entries, 512 + 1024)?;
    file.write_all_at(&footer, next)
}

/// Puts bytes at a place of a header.
fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = header.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn vhd_footer(size: u64) -> [u8; 512] {
    let mut footer = [0; 512];
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 8, &2u32.to_be_bytes());
    put(&mut footer, 12, &0x1_0000u32.to_be_bytes());
    put(&mut footer, 16, &512u64.to_be_bytes());
    // Said so, the size counts and not the geometry, which cannot be exact.
    put(&mut footer, 28, b"win ");
    put(&mut footer, 32, &0x1_0000u32.to_be_bytes());
    put(&mut footer, 36, b"Wi2k");
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &geometry(size / SECTOR));
    put(&mut footer, 60, &3u32.to_be_bytes());
    let id = blake3::hash(&size.to_be_bytes());
    put(&mut footer, 68, id.as_bytes().get(..16).unwrap_or_default());
    let sum = checksum(&footer, 64);
    put(&mut footer, 64, &sum.to_be_bytes());
    footer
}

/// Cylinders, heads and sectors, by the format's specification.
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(65535 * 16 * 255);
    let (per_track, heads, cylinder_heads);
    if sectors >= 65535 * 16 * 63 {
        (per_track, heads) = (255, 16);
        cylinder_heads = sectors / per_track;
    } else {
        let mut track = 17;
        let mut product = sectors / track;
        let mut h = product.div_ceil(1024).max(4);
        if product >= h * 1024 || h > 16 {
            (track, h) = (31, 16);
            product = sectors / track;
        }
        if product >= h * 1024 {
            (track, h) = (63, 16);
            product = sectors / track;
        }
        (per_track, heads, cylinder_heads) = (track, h, product);
    }
    let cylinders = (cylinder_heads / heads) as u16;
    let [high, low] = cylinders.to_be_bytes();
    [high, low, heads as u8, per_track as u8]
}

fn dynamic_header(blocks: u64) -> [u8; 1024] {
    let mut header = [0; 1024];
    put(&mut header, 0, b"cxsparse");
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &1536u64.to_be_bytes());
    put(&mut header, 24, &0x1_0000u32.to_be_bytes());
    put(&mut header, 28, &(blocks as u32).to_be_bytes());
    put(&mut header, 32, &(BLOCK as u32).to_be_bytes());
    let sum = checksum(&header, 36);
    put(&mut header, 36, &sum.to_be_bytes());
    header
}

/// Writes a sparse VMDK in one file.
pub fn write_vmdk(file: &File, disk: &dyn Source, progress: Progress<'_>) -> io::Result<()> {
    // Capacities are whole grains.
    let size = disk.size().next_multiple_of(GRAIN);
    if size > VMDK_LARGEST {
        return Err(too_large(VMDK_LARGEST));
    }
    let grains = size / GRAIN;
    let tables = grains.div_ceil(PER_TABLE);
    // Header, descriptor, two directories with their tables, data.
    let descriptor_at = 1;
    let descriptor_sectors = 20;
    let directory_sectors = (tables * 4).div_ceil(SECTOR);
    let table_sectors = PER_TABLE * 4 / SECTOR;
    let redundant_at = descriptor_at + descriptor_sectors;
    let each = directory_sectors + tables * table_sectors;
    let directory_at = redundant_at + each;
    let data_at = (directory_at + each).next_multiple_of(GRAIN / SECTOR);
    let mut entries = vec![0u32; (tables * PER_TABLE) as usize];
    let mut next = data_at;
    parts(disk, GRAIN, progress, |number, bytes| {
        file.write_all_at(bytes, next * SECTOR)?;
        if let Some(entry) = entries.get_mut(number) {
            *entry = next as u32;
        }
        next += GRAIN / SECTOR;
        Ok(())
    })?;
    for at in [redundant_at, directory_at] {
        let first = at + directory_sectors;
        let directory = (0..tables).map(|n| ((first + n * table_sectors) as u32).to_le_bytes());
        let directory: Vec<u8> = directory.flatten().collect();
        file.write_all_at(&directory, at * SECTOR)?;
        let table: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect();
        file.write_all_at(&table, first * SECTOR)?;
    }
    let text = descriptor(size / SECTOR);
    file.write_all_at(text.as_bytes(), descriptor_at * SECTOR)?;
    let mut header = [0; 512];
    put(&mut header, 0, b"KDMV");
    put(&mut header, 4, &1u32.to_le_bytes());
    // The line ends below are there, and the redundant directory too.
    put(&mut header, 8, &3u32.to_le_bytes());
    for (at, value) in [
        (12, size / SECTOR),
        (20, GRAIN / SECTOR),
        (28, descriptor_at),
        (36, descriptor_sectors),
        (48, redundant_at),
        (56, directory_at),
        (64, data_at),
    ] {
        put(&mut header, at, &value.to_le_bytes());
    }
    put(&mut header, 44, &(PER_TABLE as u32).to_le_bytes());
    put(&mut header, 73, b"\n \r\n");
    file.set_len(next * SECTOR)?;
    file.write_all_at(&header, 0)
}

fn descriptor(sectors: u64) -> String {
    let cylinders = (sectors / (16 * 63)).min(16383);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"monolithicSparse\"\n\n# Extent description\n\
         RW {sectors} SPARSE \"disk.vmdk\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n"
    )
}
