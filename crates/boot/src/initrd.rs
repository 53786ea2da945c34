//! The initial RAM disk: checked, placed as high as the kernel can reach.

use memory::{GuestRam, PAGE_SIZE};

use crate::BootError;
use crate::file::ImageFile;
use crate::map::put;

/// Copies the initrd to the highest page-aligned place that ends at or below
/// `last` and above `lowest`; its address and size.
pub fn load(
    ram: &GuestRam,
    file: Option<&ImageFile>,
    lowest: u64,
    last: u64,
) -> Result<Option<(u64, u64)>, BootError> {
    let Some(file) = file else {
        return Ok(None);
    };
    file.check_size(ram.low_size())?;
    let top = ram.low_size().min(last.saturating_add(1));
    let start = top.saturating_sub(file.size()) & !(PAGE_SIZE - 1);
    if start < lowest {
        return Err(BootError::NoRoom {
            what: "kernel and the initrd",
            needed: lowest + file.size().next_multiple_of(PAGE_SIZE),
            available: top,
        });
    }
    let mut chunk = vec![0u8; 1 << 20];
    let mut done = 0;
    while done < file.size() {
        let want = (file.size() - done).min(chunk.len() as u64) as usize;
        let n = file.read_at(done, &mut chunk[..want])?;
        if n < want {
            return Err(bad(
                file,
                "the file became shorter while it was read".into(),
            ));
        }
        put(ram, "initrd", start + done, &chunk[..n])?;
        done += n as u64;
    }
    Ok(Some((start, file.size())))
}

fn bad(file: &ImageFile, reason: String) -> BootError {
    BootError::BadInitrd {
        path: file.path().into(),
        reason,
    }
}

/// Refuses what Linux could not unpack: unknown signatures, and uncompressed
/// cpio archives that end early.
pub fn check(file: &ImageFile) -> Result<(), BootError> {
    let mut head = [0u8; 2048];
    let n = file.read_at(0, &mut head)?;
    let head = &head[..n];
    if head.starts_with(b"07070") {
        return check_cpio(file);
    }
    let compressed: [&[u8]; 8] = [
        b"\x1f\x8b",
        b"\x1f\x9e",
        b"BZh",
        b"\x5d\x00\x00",
        b"\xfd7zXZ\0",
        b"\x89LZO\0\r\n\x1a\n",
        b"\x02\x21\x4c\x18",
        b"\x28\xb5\x2f\xfd",
    ];
    let images: [&[u8]; 3] = [b"hsqs", b"-rom1fs-", b"\x45\x3d\xcd\x28"];
    let ext = head.get(0x438..0x43a) == Some(&[0x53, 0xef]);
    if ext
        || compressed
            .iter()
            .chain(&images)
            .any(|s| head.starts_with(s))
    {
        return Ok(());
    }
    let first: Vec<String> = head.iter().take(6).map(|b| format!("{b:02x}")).collect();
    Err(bad(
        file,
        format!("its first bytes are {}", first.join(" ")),
    ))
}

/// Walks a "newc" archive to its trailer; what follows that is the kernel's
/// affair (Debian appends a compressed archive).
fn check_cpio(file: &ImageFile) -> Result<(), BootError> {
    const HEADER: u64 = 110;
    let mut at = 0u64;
    let truncated = || bad(file, "the cpio archive ends before its trailer".into());
    loop {
        let mut h = [0u8; HEADER as usize + 11];
        let n = file.read_at(at, &mut h)?;
        if n < HEADER as usize {
            return Err(truncated());
        }
        if !h.starts_with(b"070701") && !h.starts_with(b"070702") {
            return Err(bad(file, format!("no cpio header at byte {at}")));
        }
        let field = |i: usize| {
            std::str::from_utf8(&h[6 + i * 8..14 + i * 8])
                .ok()
                .and_then(|s| u64::from_str_radix(s, 16).ok())
                .ok_or_else(|| bad(file, format!("a malformed cpio header at byte {at}")))
        };
        let (size, name) = (field(6)?, field(11)?);
        if name == 11 && n == h.len() && h[HEADER as usize..] == *b"TRAILER!!!\0" {
            return Ok(());
        }
        at = (at + HEADER + name).next_multiple_of(4) + size.next_multiple_of(4);
        if at > file.size() {
            return Err(truncated());
        }
    }
}
