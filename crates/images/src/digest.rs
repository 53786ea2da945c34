//! The digest of what a guest reads from a disk.
//!
//! It is the BLAKE3 hash of the text `holm image content 1\n`, the disk's size
//! in bytes, and then, of each mebibyte that is not all zeroes, its number and
//! the BLAKE3 hash of its bytes (the last one may be shorter); numbers have 64
//! bits, little endian. So it does not depend on a file's format or holes, and
//! what is zero costs nothing.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::Progress;
use crate::files::next_data;

/// Bytes that are hashed as one.
pub(crate) const PIECE: u64 = 1 << 20;
/// Most threads that read.
const THREADS: usize = 4;

/// Digest of a disk's contents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest of an image: one is \"blake3:\" and 64 hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    /// Its 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first twelve digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.hex().chars().take(12).collect()
    }

    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let hex = hex.as_bytes();
        let mut bytes = [0; 32];
        if hex.len() != 64 || hex.iter().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.strip_prefix("blake3:")
            .and_then(Self::from_hex)
            .ok_or_else(|| DigestError(text.into()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The hashes of a disk's mebibytes, in order.
#[derive(Default)]
pub(crate) struct Pieces(Vec<(u64, blake3::Hash)>);

impl Pieces {
    /// Takes a mebibyte, or what is left at the end; whether it has any data.
    pub(crate) fn add(&mut self, number: u64, bytes: &[u8]) -> bool {
        if is_zero(bytes) {
            return false;
        }
        self.0.push((number, blake3::hash(bytes)));
        true
    }

    /// The digest of a disk of `size` bytes.
    pub(crate) fn finish(mut self, size: u64) -> Digest {
        self.0.sort_unstable_by_key(|(number, _)| *number);
        let mut whole = blake3::Hasher::new();
        whole.update(b"holm image content 1\n");
        whole.update(&size.to_le_bytes());
        for (number, hash) in &self.0 {
            whole.update(&number.to_le_bytes());
            whole.update(hash.as_bytes());
        }
        Digest(*whole.finalize().as_bytes())
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    // Chunks, so that the compiler makes vectors of them.
    let (chunks, tail) = data.as_chunks::<64>();
    let none = |bytes: &[u8]| bytes.iter().fold(0, |bits, byte| bits | byte) == 0;
    chunks.iter().all(|chunk| none(chunk)) && none(tail)
}

/// The digest of a raw disk's file.
pub(crate) fn of_file(file: &File, progress: Progress<'_>) -> io::Result<Digest> {
    let size = file.metadata()?.len();
    let numbers = numbers(file, size)?;
    let (next, done) = (AtomicU64::new(0), Mutex::new(Pieces::default()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS));
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed) as usize;
            let Some(&number) = numbers.get(index) else {
                return Ok(());
            };
            let at = number * PIECE;
            let length = PIECE.min(size - at) as usize;
            let bytes = buffer.get_mut(..length).unwrap_or_default();
            file.read_exact_at(bytes, at)?;
            if !is_zero(bytes) {
                let hash = blake3::hash(bytes);
                let mut pieces = done.lock().unwrap_or_else(|e| e.into_inner());
                pieces.0.push((number, hash));
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = Ok(());
        if others.is_empty() {
            result = work();
        }
        while others.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(std::time::Duration::from_millis(10));
            let index = next.load(Ordering::Relaxed).min(numbers.len() as u64);
            progress(index * PIECE, numbers.len() as u64 * PIECE);
        }
        for thread in others {
            let ended = thread.join();
            result = result.and(ended.unwrap_or_else(|_| Err(io::Error::other("a reader failed"))));
        }
        result
    })?;
    let pieces = done.into_inner().unwrap_or_else(|e| e.into_inner());
    Ok(pieces.finish(size))
}

/// Numbers of the mebibytes that are not holes as a whole.
fn numbers(file: &File, size: u64) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = next_data(file, at)? {
        let from = numbers.last().map_or(0, |last| last + 1);
        let whole = (start / PIECE).max(from)..end.min(size).div_ceil(PIECE);
        numbers.extend(whole);
        at = end;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_written_zeroes_are_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, parts: &[(u64, Vec<u8>)]| {
            let path = directory.path().join(name);
            let file = File::options()
                .create_new(true)
                .read(true)
                .write(true)
                .open(path)
                .unwrap();
            file.set_len((5 << 20) + 512).unwrap();
            for (at, bytes) in parts {
                file.write_all_at(bytes, *at).unwrap();
            }
            of_file(&file, &mut |_, _| {}).unwrap()
        };
        let end = ((5 << 20) + 500, vec![7; 12]);
        let one = make("one", &[(1 << 20, vec![3; 100]), end.clone()]);
        let zeroes = (2 << 20, vec![0; 1 << 20]);
        let two = make("two", &[(1 << 20, vec![3; 100]), zeroes, end.clone()]);
        assert_eq!(one, two);
        let moved = make("three", &[(2 << 20, vec![3; 100]), end]);
        assert_ne!(one, moved);
        assert_eq!(one.to_string().parse::<Digest>().unwrap(), one);
        let mut pieces = Pieces::default();
        let mut bytes = vec![0; 1 << 20];
        assert!(!pieces.add(0, &bytes));
        bytes[..100].fill(3);
        let mut tail = vec![0; 512];
        tail[500..].fill(7);
        assert!(pieces.add(5, &tail) && pieces.add(1, &bytes));
        assert_eq!(pieces.finish((5 << 20) + 512), one);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let long = "é".repeat(32);
        for bad in [
            "",
            "blake3:",
            "sha256:00",
            &format!("blake3:{long}"),
            &"0".repeat(64),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
