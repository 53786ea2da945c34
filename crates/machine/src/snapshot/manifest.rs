//! The manifest of a snapshot.

use std::io::Read;
use std::path::{Path, PathBuf};

use arch::CpuIdentity;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{SnapshotError, files};
use crate::description::Description;

/// Version of the directory's format that this program writes and reads.
pub const FORMAT_VERSION: u64 = 1;
/// What the manifest says it is.
const FORMAT: &str = "holm-snapshot";
/// Its name.
pub(super) const MANIFEST: &str = "manifest.json";
/// Largest manifest, in bytes.
const MANIFEST_MAX: u64 = 4 << 20;

/// What a snapshot is. Version [`FORMAT_VERSION`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 32 hexadecimal digits, different for every snapshot.
    pub id: String,
    /// Unix time at which the machine stood, in seconds.
    pub created: u64,
    /// Version of the holm that made it.
    pub holm: String,
    /// Engine that the machine ran on; any other can go on with it.
    pub engine: String,
    /// The CPU that the guest knows.
    pub cpu: CpuIdentity,
    /// The machine.
    pub machine: Description,
    /// Of an incremental snapshot: what it builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// RAM.
    pub memory: MemoryFile,
    /// CPUs and devices.
    pub state: StateFile,
    /// Disks, in the order of the machine's.
    pub disks: Vec<DiskFile>,
    /// How long the guest stood, in microseconds.
    pub stopped_us: u64,
}

/// The snapshot that an incremental one builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its id.
    pub id: String,
    /// Where it was; a directory of the same name beside the snapshot is as
    /// good.
    pub directory: PathBuf,
}

/// RAM in files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFile {
    /// Bytes of RAM.
    pub size: u64,
    /// Number of pages held here.
    pub pages: u64,
    /// BLAKE3 of those pages, in ascending order.
    pub digest: String,
    /// BLAKE3 of the list of their runs.
    pub list_digest: String,
}

/// The state of CPUs and devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    /// Bytes.
    pub size: u64,
    /// BLAKE3.
    pub digest: String,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskFile {
    /// How its contents are kept.
    pub kept: DiskKept,
    /// Where: a file in the snapshot's directory, or the path of a file that
    /// is only referred to.
    pub file: PathBuf,
    /// The file's format.
    pub format: disk::Format,
    /// Bytes of the file.
    pub size: u64,
    /// BLAKE3 of its contents; of a file that is referred to, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Of a file that is referred to: when it was last changed, in nanoseconds
    /// of Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_ns: Option<i64>,
    /// Files that the image builds on: they are only referred to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub below: Vec<FileBelow>,
}

/// A file that a disk's image builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileBelow {
    /// Its absolute path.
    pub file: PathBuf,
    /// Bytes of the file.
    pub size: u64,
    /// When it was last changed, in nanoseconds of Unix time.
    pub modified_ns: i64,
}

/// How a snapshot keeps the contents of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKept {
    /// A copy without what is zero, or what is in the files below.
    Copied,
    /// A copy that shares blocks with the machine's disk.
    Cloned,
    /// The machine cannot write the disk: it is the same file.
    Referred,
}

#[derive(Serialize)]
struct Written<'a> {
    format: &'a str,
    version: u64,
    digest: String,
    snapshot: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Found<'a> {
    format: String,
    version: u64,
    digest: String,
    #[serde(borrow)]
    snapshot: &'a RawValue,
}

/// The digest as manifests write it.
pub(super) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

impl Manifest {
    /// As the file's text.
    pub(super) fn to_text(&self) -> serde_json::Result<String> {
        let snapshot = serde_json::value::to_raw_value(self)?;
        let mut text = serde_json::to_string(&Written {
            format: FORMAT,
            version: FORMAT_VERSION,
            digest: digest(snapshot.get().as_bytes()),
            snapshot: &snapshot,
        })?;
        text.push('\n');
        Ok(text)
    }

    /// Reads the manifest of a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`]: no manifest, another format or version, changed.
    pub(super) fn read(directory: &Path) -> Result<Self, SnapshotError> {
        let path = directory.join(MANIFEST);
        use std::io::ErrorKind::{NotADirectory, NotFound};
        let file = files::open(&path).map_err(|source| match source.kind() {
            NotFound | NotADirectory => SnapshotError::Unfit {
                path: directory.to_owned(),
                reason: format!("it has no {MANIFEST}; is it a directory made by `holm snapshot`?"),
            },
            _ => SnapshotError::file("reading", &path)(source),
        })?;
        let mut text = Vec::new();
        file.take(MANIFEST_MAX + 1)
            .read_to_end(&mut text)
            .map_err(SnapshotError::file("reading", &path))?;
        if text.len() as u64 > MANIFEST_MAX {
            return Err(SnapshotError::damaged(&path, "is too long"));
        }
        let text = std::str::from_utf8(&text)
            .map_err(|e| SnapshotError::damaged(&path, format!("is no text: {e}")))?;
        Self::from_text(directory, text)
    }

    fn from_text(directory: &Path, text: &str) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u64,
        }
        let path = directory.join(MANIFEST);
        let unreadable = |e: serde_json::Error| {
            SnapshotError::damaged(&path, format!("cannot be understood: {e}"))
        };
        let head: Head = serde_json::from_str(text).map_err(unreadable)?;
        if head.format != FORMAT {
            return Err(SnapshotError::Unfit {
                path: directory.to_owned(),
                reason: format!("it is of the format {:?}, not {FORMAT:?}", head.format),
            });
        }
        if head.version != FORMAT_VERSION {
            return Err(SnapshotError::Version {
                path: directory.to_owned(),
                found: head.version,
            });
        }
        let found: Found<'_> = serde_json::from_str(text).map_err(unreadable)?;
        debug_assert!(found.format == FORMAT && found.version == FORMAT_VERSION);
        let body = found.snapshot.get();
        if digest(body.as_bytes()) != found.digest {
            let what = "was changed after it was made";
            return Err(SnapshotError::damaged(&path, what));
        }
        serde_json::from_str(body).map_err(unreadable)
    }
}
