//! What an image is, for people and programs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::during;
use crate::DiskError;
use crate::format::Format;
use crate::layer::{Access, Layer, MAX_LAYERS};

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The file.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
    /// Bytes of its disk.
    pub size: u64,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes that the file takes on the host.
    pub allocated: u64,
    /// Bytes of a cluster of a qcow2 image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Version of a qcow2 image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qcow2_version: Option<u32>,
    /// Internal snapshots of a qcow2 image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_snapshots: Option<u32>,
    /// A machine uses it, or one has ended without closing it: refcounts are
    /// mended when it is opened the next time.
    pub dirty: bool,
    /// What it builds on, the nearest first.
    pub backing: Vec<Lower>,
    /// Why the chain ends where it does, if not by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_problem: Option<String>,
}

/// A file below an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lower {
    /// The name in the image above.
    pub name: String,
    /// Where it leads.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
}

/// Looks at an image, which may be in use.
///
/// # Errors
/// [`DiskError`]: it cannot be read. What is wrong with files below it is in
/// the answer.
pub fn info(path: &Path, told: Option<Format>) -> Result<Info, DiskError> {
    let access = Access {
        read_only: true,
        unlocked: true,
    };
    let layer = Layer::open_alone(path, told, access)?;
    let meta = layer.file.metadata().map_err(during(path, "look at it"))?;
    let header = layer.header.as_ref();
    let mut info = Info {
        file: path.to_owned(),
        format: layer.format,
        size: layer.size()?,
        file_size: meta.len(),
        allocated: meta.blocks() * 512,
        cluster_size: header.map(|h| h.cluster_size()),
        qcow2_version: header.map(|h| h.version),
        internal_snapshots: header.map(|h| h.snapshots),
        dirty: header.is_some_and(|h| h.is_dirty()),
        backing: Vec::new(),
        backing_problem: None,
    };
    if let Err(problem) = follow(layer, access, &mut info.backing) {
        info.backing_problem = Some(problem.to_string());
    }
    Ok(info)
}

/// Follows the names of backing files without reading more than headers.
fn follow(mut layer: Layer, access: Access, found: &mut Vec<Lower>) -> Result<(), DiskError> {
    while let Some((file, format)) = layer.backing()? {
        let backing = layer.header.as_ref().and_then(|h| h.backing.as_ref());
        found.push(Lower {
            name: backing.map_or_else(String::new, |b| b.name.clone()),
            file: file.clone(),
            format,
        });
        if found.len() >= MAX_LAYERS {
            return Err(DiskError::TooDeep(layer.path));
        }
        layer = Layer::open_alone(&file, Some(format), access)?;
    }
    Ok(())
}
