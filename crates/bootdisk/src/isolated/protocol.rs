//! What parent and child say: small binary frames. The parent believes the
//! child no more than the disk.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::entry::{Found, Pieces};

/// Longest message, in bytes.
const LONGEST: u32 = 64 << 20;
/// Most bytes of one read from the disk.
pub const LONGEST_READ: u32 = 4 << 20;

/// The first byte of what the child says: it wants bytes of the disk.
pub const READ: u8 = b'R';
/// The first byte of what the child says: here is the answer.
pub const ANSWER: u8 = b'A';

/// What the child is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The disk's size in bytes.
    pub size: u64,
    /// Load an entry too.
    pub load: Option<Load>,
}

/// Which entry to load, and how.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Number, id or title; the default entry if missing.
    pub entry: Option<String>,
    /// Most bytes of the kernel, and of the initrds together.
    pub limit: u64,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// What is on the disk.
    Found(Found),
    /// An entry was written to the output.
    Loaded(Found, usize, Pieces),
    /// The entry that was asked for cannot be loaded.
    Refused(Found, Option<usize>, String),
    /// The reader failed, by its own account.
    Failed(String),
}

/// Sends a message: length and JSON.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).ok().filter(|n| *n <= LONGEST);
    let length = length.ok_or_else(|| io::Error::other("a message is too long"))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&text)?;
    to.flush()
}

/// Takes a message.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(io::Error::other("a message is too long"));
    }
    let mut text = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
