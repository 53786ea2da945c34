//! One file of an image, opened, locked and understood; and chains of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::DiskError;
use crate::format::{self, Decision, Format};
use crate::qcow2::header::{Header, length_of};
use crate::raw::{check_type, lock, open_error};

/// Most files in a chain of backing files.
pub const MAX_LAYERS: usize = 64;

/// How a chain is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// The first file is only read.
    pub read_only: bool,
    /// Other machines may write meanwhile: nothing is locked. For looking at
    /// headers only.
    pub unlocked: bool,
}

/// A file of a chain.
#[derive(Debug)]
pub(crate) struct Layer {
    pub path: PathBuf,
    pub file: Arc<File>,
    pub format: Format,
    /// The guest may not make its raw disk look like an image.
    pub guarded: bool,
    /// Of a qcow2 image.
    pub header: Option<Header>,
}

impl Layer {
    /// Opens a file, for what the user or its overlay says it is.
    pub(crate) fn open(
        path: &Path,
        told: Option<Format>,
        access: Access,
    ) -> Result<Self, DiskError> {
        let (layer, decision) = Self::open_any(path, told, access)?;
        let alone = layer.header.as_ref().is_none_or(|h| h.backing.is_none());
        if decision == Decision::Contents && !alone {
            return Err(DiskError::Untold(path.to_owned()));
        }
        if !access.read_only && !access.unlocked {
            format::remember(&layer.file, layer.format);
        }
        Ok(layer)
    }

    /// Opens a file of which nothing below will be used.
    pub(crate) fn open_alone(
        path: &Path,
        told: Option<Format>,
        access: Access,
    ) -> Result<Self, DiskError> {
        Ok(Self::open_any(path, told, access)?.0)
    }

    fn open_any(
        path: &Path,
        told: Option<Format>,
        access: Access,
    ) -> Result<(Self, Decision), DiskError> {
        let read_only = access.read_only;
        let meta = std::fs::metadata(path).map_err(|e| open_error(path, read_only, e))?;
        check_type(path, meta.file_type())?;
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|e| open_error(path, read_only, e))?;
        if !access.unlocked {
            lock(path, &file, read_only)?;
        }
        let (format, decision) = format::decide(path, &file, told)?;
        let header = match format {
            Format::Raw => None,
            Format::Qcow2 => Some(Header::read(&file).map_err(|e| image_error(path, e))?),
        };
        if let Some(reason) = header
            .as_ref()
            .filter(|_| !read_only)
            .and_then(Header::unwritable)
        {
            return Err(DiskError::Image {
                path: path.to_owned(),
                reason,
            });
        }
        // Even if the guest cannot get at the attribute, the user may copy the
        // file: what was only looked at stays guarded.
        let guarded = format == Format::Raw && decision == Decision::Contents;
        let layer = Self {
            path: path.to_owned(),
            file: Arc::new(file),
            format,
            guarded,
            header,
        };
        Ok((layer, decision))
    }

    /// Size of the disk that the layer holds, in bytes.
    pub(crate) fn size(&self) -> Result<u64, DiskError> {
        match &self.header {
            Some(header) => Ok(header.size),
            None => length_of(&self.file).map_err(|source| DiskError::Host {
                path: self.path.clone(),
                doing: "find out its size",
                source,
            }),
        }
    }

    /// The file it builds on and its format.
    pub(crate) fn backing(&self) -> Result<Option<(PathBuf, Format)>, DiskError> {
        let Some(backing) = self.header.as_ref().and_then(|h| h.backing.as_ref()) else {
            return Ok(None);
        };
        let wrong = |reason: String| DiskError::Image {
            path: self.path.clone(),
            reason,
        };
        let path = resolve(&self.path, &backing.name).map_err(wrong)?;
        match backing.format.as_deref() {
            Some(name) => match Format::parse(name) {
                Ok(format) => Ok(Some((path, format))),
                Err(_) => Err(wrong(format!(
                    "its backing file {} has the format {name:?}; raw and qcow2 are possible",
                    backing.name
                ))),
            },
            None => Err(wrong(format!(
                "it does not say which format its backing file {0} has; set it with holm disk \
                 rebase --unsafe --backing {0} --backing-format raw|qcow2 IMAGE",
                backing.name
            ))),
        }
    }
}

/// A file and all that it builds on, the top first.
pub(crate) fn open_chain(
    path: &Path,
    told: Option<Format>,
    access: Access,
) -> Result<Vec<Layer>, DiskError> {
    let mut layers = vec![Layer::open(path, told, access)?];
    let mut seen = vec![identity(&layers[0])?];
    while let Some((path, format)) = layers.last().map_or(Ok(None), Layer::backing)? {
        let top = &layers[0].path;
        if layers.len() >= MAX_LAYERS {
            return Err(DiskError::TooDeep(top.clone()));
        }
        let base = Access {
            read_only: true,
            ..access
        };
        // A loop would meet its own lock first.
        let meta = std::fs::metadata(&path).map_err(|e| below(top, open_error(&path, true, e)))?;
        if seen.contains(&(meta.dev(), meta.ino())) {
            return Err(DiskError::Loop(path));
        }
        let layer = Layer::open(&path, Some(format), base).map_err(|e| below(top, e))?;
        seen.push(identity(&layer)?);
        layers.push(layer);
    }
    Ok(layers)
}

fn below(top: &Path, source: DiskError) -> DiskError {
    DiskError::Backing {
        path: top.to_owned(),
        source: Box::new(source),
    }
}

fn identity(layer: &Layer) -> Result<(u64, u64), DiskError> {
    let meta = layer.file.metadata().map_err(|source| DiskError::Host {
        path: layer.path.clone(),
        doing: "look at it",
        source,
    })?;
    Ok((meta.dev(), meta.ino()))
}

/// Where a backing file's name leads: relative names start at the image's
/// directory.
///
/// # Errors
/// Why the name is no path.
pub(crate) fn resolve(image: &Path, name: &str) -> Result<PathBuf, String> {
    let first = name.split('/').next().unwrap_or_default();
    let path = match first.split_once(':') {
        Some(("file", _)) => name.strip_prefix("file:").unwrap_or(name),
        Some((protocol, _)) => {
            return Err(format!(
                "its backing file is reached by {protocol}:, and Holm reads files only"
            ));
        }
        None => name,
    };
    let directory = match image.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    Ok(directory.join(path))
}

/// The name by which an image at `image` should refer to `backing`: as given
/// if absolute, else made relative to the image's directory.
pub(crate) fn refer(image: &Path, backing: &Path) -> io::Result<String> {
    let path = if backing.is_absolute() {
        backing.to_path_buf()
    } else {
        let directory = image.parent().filter(|p| *p != Path::new(""));
        let directory = directory.unwrap_or(Path::new("."));
        relative(&directory.canonicalize()?, &backing.canonicalize()?)
    };
    match path.into_os_string().into_string() {
        // A colon in the first part would be taken for a protocol.
        Ok(name) if name.split('/').next().is_some_and(|p| p.contains(':')) => {
            Ok(format!("./{name}"))
        }
        Ok(name) => Ok(name),
        Err(name) => Err(io::Error::other(format!("the path {name:?} is no text"))),
    }
}

/// The way from one absolute path to another.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let shared = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

/// What is wrong with an image, or the host's error.
pub(crate) fn image_error(path: &Path, error: io::Error) -> DiskError {
    let path = path.to_owned();
    if error.raw_os_error().is_some() {
        return DiskError::Host {
            path,
            doing: "read it",
            source: error,
        };
    }
    DiskError::Image {
        path,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_backing_files_lead_from_the_image() {
        let from = |image: &str, name: &str| resolve(Path::new(image), name);
        assert_eq!(from("/a/b.qcow2", "c.img"), Ok("/a/c.img".into()));
        assert_eq!(from("b.qcow2", "../c.img"), Ok("./../c.img".into()));
        assert_eq!(from("/a/b", "/c/d"), Ok("/c/d".into()));
        assert_eq!(from("/a/b", "file:c"), Ok("/a/c".into()));
        assert_eq!(from("/a/b", "./c:d"), Ok("/a/./c:d".into()));
        for name in ["nbd://host/x", "json:{}", "https://x/y"] {
            assert!(from("/a/b", name).is_err(), "{name}");
        }
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
        assert_eq!(way("/a/b", "/a/c/d"), Path::new("../c/d"));
        assert_eq!(way("/a", "/a/d"), Path::new("d"));
        assert_eq!(way("/x/y", "/a"), Path::new("../../a"));
    }
}
