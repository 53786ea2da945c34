//! Loading an entry's kernel and initial RAM disks.

use std::io;

use super::{Source, Survey};
use crate::entry::Pieces;
use crate::filesystem::FsError;

/// Initial RAM disks start at a page in the output.
const ALIGN: u64 = 4096;
/// Archives in a row begin at a multiple of 4 (Linux, "initramfs buffer
/// format").
const ARCHIVE_ALIGN: u64 = 4;

/// Takes bytes at a position, in ascending order.
pub type Output<'a> = &'a mut dyn FnMut(u64, &[u8]) -> io::Result<()>;

impl Survey {
    /// Writes an entry's kernel to the start of the output, and behind it its
    /// initial RAM disks as one.
    ///
    /// # Errors
    /// For people: which file and why. None of the two has more than `limit`
    /// bytes.
    pub fn load(&self, index: usize, limit: u64, out: Output<'_>) -> Result<Pieces, String> {
        let entry = self.entries.get(index).ok_or("there is no such entry")?;
        match &entry.source {
            Source::None => Err(entry
                .info
                .problem
                .clone()
                .unwrap_or_else(|| "it starts no Linux kernel".into())),
            Source::Files { kernel, initrds } => {
                let kernel = self.file(kernel, 0, limit, out)?;
                let start = kernel.next_multiple_of(ALIGN);
                let mut size = 0;
                for (n, initrd) in initrds.iter().enumerate() {
                    if n > 0 {
                        size = pad(start, size, out)?;
                    }
                    size += self.file(initrd, start + size, limit.saturating_sub(size), out)?;
                }
                Ok(pieces(kernel, start, size))
            }
            Source::Uki {
                volume,
                path,
                sections,
            } => {
                let part = |section: Option<crate::uki::Section>, at: u64| {
                    (*volume, path.as_str(), section.unwrap_or(NOTHING), at)
                };
                let kernel = self.section(part(sections.linux, 0), limit, out)?;
                let start = kernel.next_multiple_of(ALIGN);
                let mut size = self.section(part(sections.ucode, start), limit, out)?;
                if size > 0 {
                    size = pad(start, size, out)?;
                }
                let left = limit.saturating_sub(size);
                size += self.section(part(sections.initrd, start + size), left, out)?;
                Ok(pieces(kernel, start, size))
            }
        }
    }

    fn file(
        &self,
        (volume, path): &(usize, String),
        at: u64,
        limit: u64,
        out: Output<'_>,
    ) -> Result<u64, String> {
        let volume = self.volumes.0.get(*volume).ok_or("its device is gone")?;
        let mut done = 0;
        let copied = volume.fs.copy(path, limit, &mut |bytes| {
            out(at + done, bytes)?;
            done += bytes.len() as u64;
            Ok(())
        });
        let shown = |e: FsError| match e {
            FsError::TooLarge { path, limit } => format!(
                "{path} of {} does not fit: kernel and initrd have room for {limit} bytes below \
                 3 GiB of this machine's memory; give it more with --memory",
                volume.shown()
            ),
            e => format!("{path} of {}: {e}", volume.shown()),
        };
        copied.map_err(shown)?;
        Ok(done)
    }

    fn section(
        &self,
        (volume, path, section, at): (usize, &str, crate::uki::Section, u64),
        limit: u64,
        out: Output<'_>,
    ) -> Result<u64, String> {
        const PIECE: u64 = 8 << 20;
        if section.size > limit {
            return Err(format!(
                "{path}: a section of {} bytes does not fit in {limit} bytes",
                section.size
            ));
        }
        let volume = self.volumes.0.get(volume).ok_or("its device is gone")?;
        let mut done = 0;
        while done < section.size {
            let length = (section.size - done).min(PIECE);
            let bytes = volume.fs.read_part(path, section.offset + done, length);
            let bytes = bytes.map_err(|e| format!("{path} of {}: {e}", volume.shown()))?;
            if bytes.is_empty() {
                return Err(format!("{path} ends in the middle of a section"));
            }
            out(at + done, &bytes).map_err(|e| e.to_string())?;
            done += bytes.len() as u64;
        }
        Ok(done)
    }
}

const NOTHING: crate::uki::Section = crate::uki::Section { offset: 0, size: 0 };

fn pieces(kernel: u64, initrd_start: u64, initrd: u64) -> Pieces {
    Pieces {
        kernel,
        initrd_start,
        initrd,
    }
}

/// Zeroes up to where the next archive may begin.
fn pad(start: u64, size: u64, out: Output<'_>) -> Result<u64, String> {
    let padded = size.next_multiple_of(ARCHIVE_ALIGN);
    let zeroes = [0; ARCHIVE_ALIGN as usize];
    let zeroes = zeroes.get(..(padded - size) as usize).unwrap_or_default();
    out(start + size, zeroes).map_err(|e| e.to_string())?;
    Ok(padded)
}
