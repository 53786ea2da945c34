//! The compressed kernel inside a bzImage.
//!
//! A bzImage unpacks itself when it starts. On the software CPU that is slow,
//! and the monitor can do it natively; the signatures are those of the Linux
//! boot protocol (`payload_offset`).

use std::io::{self, Read};

/// Largest unpacked kernel that is believed; Debian's is 53 MiB.
pub const MAX_UNPACKED: u64 = 1 << 30;
/// Most memory that an LZMA dictionary may take, KiB.
const LZMA_LIMIT_KIB: u32 = 192 * 1024;
/// Largest zstd window (`zstd --ultra` of the kernel's build: 128 MiB).
const ZSTD_WINDOW: u64 = 128 << 20;

/// Compressions of Linux kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA, the "alone" format.
    Lzma,
    /// xz, with the x86 filter.
    Xz,
    /// LZ4, the legacy frame.
    Lz4,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// By signature.
    pub fn detect(data: &[u8]) -> Option<Self> {
        let signatures: [(&[u8], Self); 6] = [
            (b"\x1f\x8b\x08", Self::Gzip),
            (b"BZh", Self::Bzip2),
            (b"\x5d\x00\x00", Self::Lzma),
            (b"\xfd7zXZ\x00", Self::Xz),
            (b"\x02\x21\x4c\x18", Self::Lz4),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
        ];
        let found = signatures.iter().find(|(s, _)| data.starts_with(s));
        found.map(|(_, c)| *c)
    }

    /// A reader of the unpacked bytes.
    ///
    /// # Errors
    /// Damaged headers, and dictionaries larger than any kernel's.
    pub fn reader<'a>(self, data: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
        let other = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(data)),
            Self::Bzip2 => Box::new(bzip2_rs::DecoderReader::new(data)),
            Self::Lzma => Box::new(
                lzma_rust2::LzmaReader::new_mem_limit(data, LZMA_LIMIT_KIB, None)
                    .map_err(|e| other(e.to_string()))?,
            ),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                data,
                false,
                LZMA_LIMIT_KIB,
            )),
            Self::Lz4 => Box::new(Lz4Legacy::new(data)),
            Self::Zstd => Box::new(
                ruzstd::decoding::StreamingDecoder::new_with_max_window_size(data, ZSTD_WINDOW)
                    .map_err(|e| other(e.to_string()))?,
            ),
        })
    }
}

/// LZ4's legacy frame: a signature, then blocks of up to 8 MiB, each with its
/// compressed length.
struct Lz4Legacy<'a> {
    rest: &'a [u8],
    block: Vec<u8>,
    position: usize,
    size: usize,
}

/// Unpacked size of all blocks but the last.
const LZ4_BLOCK: usize = 8 << 20;

impl<'a> Lz4Legacy<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self {
            rest: data.get(4..).unwrap_or_default(),
            block: Vec::new(),
            position: 0,
            size: 0,
        }
    }

    /// Unpacks the next block; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        let bad = |e: &str| io::Error::new(io::ErrorKind::InvalidData, format!("LZ4: {e}"));
        let Some((head, rest)) = self.rest.split_first_chunk::<4>() else {
            return Ok(false);
        };
        let len = u32::from_le_bytes(*head) as usize;
        // The kernel's build appends the unpacked size, 4 bytes, which is no block.
        if len == 0 || rest.is_empty() {
            return Ok(false);
        }
        let packed = rest
            .get(..len)
            .ok_or_else(|| bad("the data ends inside a block"))?;
        self.rest = &rest[len..];
        self.block.resize(LZ4_BLOCK, 0);
        self.size = lz4_flex::block::decompress_into(packed, &mut self.block)
            .map_err(|e| bad(&e.to_string()))?;
        self.position = 0;
        Ok(self.size > 0)
    }
}

impl Read for Lz4Legacy<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position == self.size && !self.next_block()? {
            return Ok(0);
        }
        let ready = &self.block[self.position..self.size];
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.position += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn lz4_legacy_blocks_and_the_appended_size() {
        let data: Vec<u8> = (0..100_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let packed = lz4_flex::block::compress(&data);
        let mut file = b"\x02\x21\x4c\x18".to_vec();
        file.extend((packed.len() as u32).to_le_bytes());
        file.extend(&packed);
        file.extend((data.len() as u32).to_le_bytes());
        let mut out = Vec::new();
        let c = Compression::detect(&file).unwrap();
        c.reader(&file).unwrap().read_to_end(&mut out).unwrap();
        assert_eq!(out, data);
        let cut = &file[..file.len() - 100];
        assert!(c.reader(cut).unwrap().read_to_end(&mut out).is_err());
    }

    #[test]
    fn gzip_round_trip_and_damage() {
        let data = vec![7u8; 300_000];
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&data).unwrap();
        let mut file = gz.finish().unwrap();
        let c = Compression::detect(&file).unwrap();
        assert_eq!(c, Compression::Gzip);
        let mut out = Vec::new();
        c.reader(&file).unwrap().read_to_end(&mut out).unwrap();
        assert_eq!(out, data);
        let middle = file.len() / 2;
        file[middle] ^= 0x55;
        assert!(
            c.reader(&file)
                .unwrap()
                .read_to_end(&mut Vec::new())
                .is_err()
        );
    }

    /// xz is in every Debian system (dpkg needs its library, not the tool),
    /// so what is packed here is by our own dependency's encoder instead.
    #[test]
    fn xz_with_the_x86_filter() {
        let data: Vec<u8> = (0..60_000u32)
            .flat_map(|i| (i * i / 3).to_le_bytes())
            .collect();
        let tool = Command::new("xz")
            .args(["--check=crc32", "--x86", "--lzma2=dict=1MiB", "-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let file = match tool {
            Ok(mut child) => {
                let mut stdin = child.stdin.take().unwrap();
                let copy = data.clone();
                let feed = std::thread::spawn(move || stdin.write_all(&copy));
                let out = child.wait_with_output().unwrap();
                feed.join().unwrap().unwrap();
                out.stdout
            }
            Err(_) => {
                let options = lzma_rust2::XzOptions::with_preset(3);
                let mut w = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                w.write_all(&data).unwrap();
                w.finish().unwrap()
            }
        };
        let c = Compression::detect(&file).unwrap();
        assert_eq!(c, Compression::Xz);
        let mut out = Vec::new();
        c.reader(&file).unwrap().read_to_end(&mut out).unwrap();
        assert_eq!(out, data);
    }
}
