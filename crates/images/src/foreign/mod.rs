//! Formats that are only read, to become images: VHD and VMDK. What their
//! files say is checked before it is used; none of them leads to another file.

mod bytes;
mod vhd;
mod vmdk;
mod write;

use std::fs::File;
use std::path::Path;

use disk::Format;

use crate::ImagesError;

pub use vhd::Vhd;
pub use vmdk::Vmdk;
pub(crate) use write::{write_new, write_vhd, write_vmdk};

pub use disk::ForeignFormat;

/// Format of a disk that is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportFormat {
    /// One that machines use.
    Native(Format),
    /// One that is only read.
    Foreign(ForeignFormat),
}

impl ImportFormat {
    /// The format of this name.
    ///
    /// # Errors
    /// A text that lists the names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "vhd" | "vpc" => Ok(Self::Foreign(ForeignFormat::Vhd)),
            "vmdk" => Ok(Self::Foreign(ForeignFormat::Vmdk)),
            _ => Format::parse(name).map(Self::Native).map_err(|_| {
                format!("{name:?} is no format of a disk: say raw, qcow2, vmdk or vhd")
            }),
        }
    }

    /// What was told, or what the file looks like.
    pub(crate) fn decide(path: &Path, told: Option<Self>) -> Result<Self, ImagesError> {
        if let Some(told) = told {
            return Ok(told);
        }
        let file = File::open(path).map_err(ImagesError::host(path, "open it"))?;
        Ok(match disk::manage::looks_like(path, &file)? {
            disk::Looks::Native(format) => Self::Native(format),
            disk::Looks::Foreign(format) => Self::Foreign(format),
        })
    }
}
