//! Checksums that come with downloads.

use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// What a file must be: `sha256:` or `sha512:` and hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    long: bool,
    hex: String,
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no checksum: one is sha256: and 64, or sha512: and 128, hexadecimal digits"
            )
        };
        let (name, hex) = text.split_once(':').ok_or_else(wrong)?;
        let long = match (name, hex.len()) {
            ("sha256", 64) => false,
            ("sha512", 128) => true,
            _ => return Err(wrong()),
        };
        match hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(Self {
                long,
                hex: hex.to_ascii_lowercase(),
            }),
            false => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if self.long { "sha512" } else { "sha256" };
        write!(f, "{name}:{}", self.hex)
    }
}

impl Checksum {
    /// What the same sum of a file is, hearing of the bytes read.
    pub(super) fn same_of(&self, file: &mut File, mut heard: impl FnMut(u64)) -> io::Result<Self> {
        let (mut short, mut long) = (Sha256::new(), Sha512::new());
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let length = file.read(&mut buffer)?;
            let bytes = buffer.get(..length).unwrap_or_default();
            match (length, self.long) {
                (0, _) => break,
                (_, true) => long.update(bytes),
                (_, false) => short.update(bytes),
            }
            done += length as u64;
            heard(done);
        }
        let sum: Vec<u8> = match self.long {
            true => long.finalize().to_vec(),
            false => short.finalize().to_vec(),
        };
        Ok(Self {
            long: self.long,
            hex: sum.iter().map(|b| format!("{b:02x}")).collect(),
        })
    }
}
