//! Which format an image has, and who may say so.
//!
//! A guest writes what it likes to its disk, also the header of a qcow2 image
//! that names any file of the host as its backing file. If such a raw disk
//! were taken for qcow2 the next time, the guest could read that file. So what
//! a file looks like never decides alone:
//!
//! 1. The user's word decides.
//! 2. Else what was decided before, remembered beside the file's contents in
//!    the attribute [`ATTRIBUTE`], which a guest cannot reach.
//! 3. Else the contents, for a file that was never used before: and then a
//!    qcow2 image that leads to other files is refused.
//!
//! A disk that is raw by rule 3 also refuses its guest's write of a qcow2
//! magic number to its first block, for file systems without attributes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::DiskError;

/// First bytes of a qcow2 image (and of qcow, which nothing else here reads).
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Extended attribute of an image file that holds its decided format.
pub const ATTRIBUTE: &str = "user.holm.disk-format";

/// Format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Sector for sector.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl Format {
    /// Its usual name: `raw` or `qcow2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of this name.
    ///
    /// # Errors
    /// A text that lists the names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("{name:?} is no disk format: say raw or qcow2")),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Format of a disk that is read only to be copied into one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForeignFormat {
    /// Virtual PC's and Hyper-V's VHD (not VHDX).
    Vhd,
    /// VMware's VMDK.
    Vmdk,
}

/// What a file that came from elsewhere looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Looks {
    /// A disk that machines can use; raw is what looks like nothing else.
    Native(Format),
    /// A disk to be copied.
    Foreign(ForeignFormat),
}

/// On what a format was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The user, a trusted image's header, or Holm itself earlier.
    Told,
    /// Only the contents: reaches no other file.
    Contents,
}

/// Decides the format of an open file.
pub(crate) fn decide(
    path: &Path,
    file: &File,
    told: Option<Format>,
) -> Result<(Format, Decision), DiskError> {
    let looks = contents(file).map_err(|source| DiskError::Host {
        path: path.to_owned(),
        doing: "read it",
        source,
    })?;
    let (format, decision) = match (told, remembered(file)) {
        (Some(format), _) => (format, Decision::Told),
        (None, Some(Format::Raw)) if looks == Format::Qcow2 => {
            return Err(DiskError::Ambiguous(path.to_owned()));
        }
        (None, Some(format)) => (format, Decision::Told),
        (None, None) => (looks, Decision::Contents),
    };
    if format == Format::Qcow2 && looks != Format::Qcow2 {
        return Err(DiskError::Image {
            path: path.to_owned(),
            reason: "it does not begin as a qcow2 image does; say format=raw if it is a raw one"
                .into(),
        });
    }
    Ok((format, decision))
}

/// What a file looks like.
pub(crate) fn contents(file: &File) -> io::Result<Format> {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == MAGIC => Ok(Format::Qcow2),
        Ok(()) => Ok(Format::Raw),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Format::Raw),
        Err(error) => Err(error),
    }
}

/// What a file from elsewhere looks like, for an import: there a mistaken
/// format cannot reach other files, because an import follows no names. What
/// was remembered of a file of ours counts first.
pub(crate) fn looks_like(path: &Path, file: &File) -> Result<Looks, DiskError> {
    let failed = |source| DiskError::Host {
        path: path.to_owned(),
        doing: "read it",
        source,
    };
    if remembered(file).is_some() {
        return decide(path, file, None).map(|(format, _)| Looks::Native(format));
    }
    if contents(file).map_err(failed)? == Format::Qcow2 {
        return Ok(Looks::Native(Format::Qcow2));
    }
    let begins = |at: u64, word: &[u8]| -> io::Result<bool> {
        let mut found = vec![0; word.len()];
        match file.read_exact_at(&mut found, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            other => other.map(|()| found == word),
        }
    };
    let length = file.metadata().map_err(failed)?.len();
    let vmdk =
        begins(0, b"KDMV").map_err(failed)? || begins(0, b"# Disk Descriptor").map_err(failed)?;
    let footer = length.saturating_sub(512);
    let vhd =
        begins(0, b"conectix").map_err(failed)? || begins(footer, b"conectix").map_err(failed)?;
    Ok(match (vmdk, vhd) {
        (true, _) => Looks::Foreign(ForeignFormat::Vmdk),
        (false, true) => Looks::Foreign(ForeignFormat::Vhd),
        (false, false) => Looks::Native(Format::Raw),
    })
}

fn remembered(file: &File) -> Option<Format> {
    let mut value = [0; 16];
    let length = rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value[..]).ok()?;
    Format::parse(std::str::from_utf8(value.get(..length)?).ok()?).ok()
}

/// Remembers a decision, where the file system can; `false`: it cannot.
pub(crate) fn remember(file: &File, format: Format) -> bool {
    if remembered(file) == Some(format) {
        return true;
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(file, ATTRIBUTE, format.name().as_bytes(), flags).is_ok()
}
