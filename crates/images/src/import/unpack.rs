//! Compressed files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::ImagesError;
use crate::digest::is_zero;

/// Most memory that the decoder of a stream may take, in KiB.
const MOST_MEMORY: u32 = 1 << 20;
/// Bytes that are unpacked at once.
const PIECE: usize = 1 << 18;
/// Zeroes of this many bytes become holes.
const GRAIN: usize = 4096;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz`
    Gzip,
    /// `.xz`
    Xz,
    /// `.zst`
    Zstd,
}

impl Compression {
    /// The one of this name.
    ///
    /// # Errors
    /// A text that lists the names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "gz" | "gzip" => Ok(Self::Gzip),
            "xz" => Ok(Self::Xz),
            "zst" | "zstd" => Ok(Self::Zstd),
            _ => Err(format!(
                "{name:?} is no compression: say none, gz, xz or zst"
            )),
        }
    }

    /// What the end of a file's name says. Contents do not count: a raw disk
    /// may begin with anything.
    pub(super) fn by_name(name: &str) -> Self {
        let end = name.rsplit_once('.').map(|(_, end)| end);
        let end = end.unwrap_or_default().to_ascii_lowercase();
        Self::parse(&end).unwrap_or(Self::None)
    }
}

/// Unpacks a file into another, which becomes sparse and at most `most` bytes
/// long. Hears of the bytes read of the packed file.
pub(super) fn unpack(
    from: &Path,
    how: Compression,
    to: &Path,
    most: u64,
    heard: &mut dyn FnMut(u64, u64),
) -> Result<(), ImagesError> {
    let open = |e| ImagesError::host(from, "open it")(e);
    let packed = File::open(from).map_err(open)?;
    let length = packed.metadata().map_err(open)?.len();
    let counted = Counted {
        inner: packed,
        count: std::sync::Arc::default(),
    };
    let count = counted.count.clone();
    let bad = |e: io::Error| match e.raw_os_error() {
        Some(_) => ImagesError::host(from, "read it")(e),
        None => ImagesError::Malformed {
            path: from.into(),
            reason: format!("it cannot be unpacked: {e}"),
        },
    };
    let counted = BufReader::with_capacity(PIECE, counted);
    let mut reader: Box<dyn Read> = match how {
        Compression::None => Box::new(counted),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(counted)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            counted,
            true,
            MOST_MEMORY,
        )),
        Compression::Zstd => Box::new(Frames(Some(counted), None)),
    };
    let target = File::create_new(to).map_err(ImagesError::host(to, "make it"))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0u64;
    loop {
        let filled = fill(&mut *reader, &mut buffer).map_err(bad)?;
        if filled == 0 {
            break;
        }
        let bytes = buffer.get(..filled).unwrap_or_default();
        if at + filled as u64 > most {
            return Err(ImagesError::Refused(format!(
                "{}: unpacked it has more than {most} bytes; say --max-size if that is right",
                from.display()
            )));
        }
        for (start, part) in (0..).step_by(GRAIN).zip(bytes.chunks(GRAIN)) {
            if !is_zero(part) {
                let written = target.write_all_at(part, at + start as u64);
                written.map_err(ImagesError::host(to, "write it"))?;
            }
        }
        at += filled as u64;
        heard(count.load(std::sync::atomic::Ordering::Relaxed), length);
    }
    target
        .set_len(at)
        .map_err(ImagesError::host(to, "write it"))
}

/// Reads until the buffer is full or the stream ends.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Counts what is read.
struct Counted {
    inner: File,
    count: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        let count = std::sync::atomic::Ordering::Relaxed;
        self.count.fetch_add(length as u64, count);
        Ok(length)
    }
}

type Packed = BufReader<Counted>;
type Frame = ruzstd::decoding::StreamingDecoder<Packed, ruzstd::decoding::FrameDecoder>;

/// Zstandard frames one after another.
struct Frames(Option<Packed>, Option<Frame>);

impl Read for Frames {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        use std::io::BufRead;
        loop {
            if let Some(frame) = &mut self.1 {
                match frame.read(out)? {
                    0 if !out.is_empty() => self.0 = self.1.take().map(Frame::into_inner),
                    length => return Ok(length),
                }
            }
            let Some(mut packed) = self.0.take() else {
                return Ok(0);
            };
            if packed.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let begun = Frame::new(packed).map_err(io::Error::other)?;
            self.1 = Some(begun);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn packed(program: &str, contents: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program} is needed by this test: {e}"));
        let mut input = child.stdin.take().unwrap();
        let contents = contents.to_vec();
        let writer = std::thread::spawn(move || input.write_all(&contents).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn what_other_programs_pack_is_unpacked_sparse_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut contents = vec![0; 3 << 20];
        for (at, byte) in contents.iter_mut().enumerate().skip(1 << 20).take(100_000) {
            *byte = (at % 251) as u8;
        }
        contents.extend(b"end");
        for (program, how) in [
            ("gzip", Compression::Gzip),
            ("xz", Compression::Xz),
            ("zstd", Compression::Zstd),
        ] {
            // Twice: packed files may be joined.
            let half = contents.len() / 2;
            let mut bytes = packed(program, &contents[..half]);
            bytes.extend(packed(program, &contents[half..]));
            let from = directory.path().join(format!("packed.{program}"));
            std::fs::write(&from, &bytes).unwrap();
            let to = |name: &str| directory.path().join(format!("{program}-{name}"));
            let good = unpack(&from, how, &to("good"), 4 << 20, &mut |_, _| {});
            good.unwrap();
            assert!(std::fs::read(to("good")).unwrap() == contents, "{program}");
            let small = unpack(&from, how, &to("small"), 2 << 20, &mut |_, _| {});
            let text = small.unwrap_err().to_string();
            assert!(text.contains("more than 2097152 bytes"), "{text}");
            for damage in [bytes.len() / 2, bytes.len() - 30] {
                let cut = directory.path().join("cut");
                std::fs::write(&cut, &bytes[..damage]).unwrap();
                let result = unpack(&cut, how, &to("cut"), 4 << 20, &mut |_, _| {});
                let text = result.unwrap_err().to_string();
                assert!(text.contains("cannot be unpacked"), "{program}: {text}");
                std::fs::remove_file(to("cut")).unwrap();
            }
        }
        assert_eq!(Compression::by_name("a.qcow2.XZ"), Compression::Xz);
        assert_eq!(Compression::by_name("gz"), Compression::None);
    }
}
