//! Images: a directory with an `image.json` (version 1) and the files it names.
//! `cargo xtask image` makes them under `$XDG_CACHE_HOME/holm/images`.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use disk::Format;
use serde::Deserialize;

use crate::image_library;

/// The only version of `image.json` so far.
const VERSION: u32 = 1;
/// No description is this long.
const LONGEST: u64 = 1 << 20;

/// What an image gives a machine; paths are absolute or relative to the
/// current directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    /// Kernel; without one, the first disk says what starts.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Templates of the disks: never written to.
    pub disks: Vec<Template>,
}

/// A disk of an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    /// The file.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
    /// The guest may not write.
    pub readonly: bool,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No directory of this name.
    #[error(
        "there is no image {name:?}: neither in the library (`holm image ls`), nor a directory with \
         an image.json, nor a disk, nor made by `cargo xtask image` (looked in {looked})"
    )]
    Missing {
        /// As given.
        name: String,
        /// The directory of made images.
        looked: String,
    },
    /// The library has it, and it cannot be used.
    #[error("{0}")]
    Library(String),
    /// The description cannot be read.
    #[error("reading {path}: {error}")]
    Unreadable {
        /// `image.json`.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The description is not one.
    #[error("{path} is no description of an image: {reason}")]
    Malformed {
        /// `image.json`.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A description of a later Holm.
    #[error("{path} has version {version}; this Holm reads version {VERSION}: use a newer Holm")]
    Version {
        /// `image.json`.
        path: String,
        /// Its version.
        version: u32,
    },
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(rename = "version")]
    _version: u32,
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "digest")]
    _digest: String,
    kernel: Option<String>,
    initrd: Option<String>,
    #[serde(default)]
    cmdline: String,
    #[serde(default)]
    disks: Vec<DiskDescription>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskDescription {
    file: String,
    #[serde(default = "raw")]
    format: Format,
    #[serde(default)]
    readonly: bool,
}

fn raw() -> Format {
    Format::Raw
}

/// What `holm run` is asked to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// An image.
    Image(Image),
    /// A file or block device: a whole disk.
    Disk(PathBuf),
}

impl Target {
    /// Finds an image by its name or directory, or a disk by its path.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn find(name: &str, images: Option<&Path>) -> Result<Self, ImageError> {
        match Image::find(name, images) {
            Err(missing @ ImageError::Missing { .. }) if !Path::new(name).exists() => {
                match library(name)? {
                    Some(file) => Ok(Self::Image(Image::of_library(file))),
                    None => Err(missing),
                }
            }
            // What it is, the disk's reader tells better than this.
            Err(ImageError::Missing { .. }) if Path::new(name).exists() && !is_directory(name) => {
                Ok(Self::Disk(name.into()))
            }
            other => other.map(Self::Image),
        }
    }
}

/// The disk of an image of the library.
fn library(name: &str) -> Result<Option<PathBuf>, ImageError> {
    image_library::find(name).map_err(|e| ImageError::Library(e.to_string()))
}

fn is_directory(name: &str) -> bool {
    Path::new(name).is_dir()
}

impl Image {
    /// A disk of the library, which starts by what it holds.
    fn of_library(file: PathBuf) -> Self {
        Self {
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            disks: vec![Template {
                file,
                format: Format::Raw,
                readonly: false,
            }],
        }
    }

    /// Finds an image by its name, or by the path of its directory.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn find(name: &str, images: Option<&Path>) -> Result<Self, ImageError> {
        let as_path = Path::new(name);
        let plain = as_path.components().count() == 1
            && matches!(as_path.components().next(), Some(Component::Normal(_)));
        let made = images.filter(|_| plain).map(|images| images.join(name));
        made.into_iter()
            .chain([as_path.to_path_buf()])
            .find(|directory| directory.join("image.json").exists())
            .ok_or_else(|| ImageError::Missing {
                name: name.to_owned(),
                looked: images
                    .map_or_else(|| "no cache directory".into(), |i| i.display().to_string()),
            })
            .and_then(|directory| Self::read(&directory))
    }

    fn read(directory: &Path) -> Result<Self, ImageError> {
        // The name may be a link that is replaced at any time.
        let directory = directory
            .canonicalize()
            .unwrap_or_else(|_| directory.to_path_buf());
        let path = directory.join("image.json");
        let shown = path.display().to_string();
        let unreadable = |error| ImageError::Unreadable {
            path: shown.clone(),
            error,
        };
        let malformed = |reason: String| ImageError::Malformed {
            path: shown.clone(),
            reason,
        };
        let size = fs::metadata(&path).map_err(unreadable)?.len();
        if size > LONGEST {
            return Err(malformed(format!("it has {size} bytes")));
        }
        let text = fs::read(&path).map_err(unreadable)?;
        let Versioned { version } =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if version != VERSION {
            return Err(ImageError::Version {
                path: shown,
                version,
            });
        }
        let description: Description =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        let inside = |file: &str| match Path::new(file).components().collect::<Vec<_>>()[..] {
            [Component::Normal(name)] => Ok(directory.join(name)),
            _ => Err(malformed(format!(
                "{file:?} is not a file of the image's directory"
            ))),
        };
        if description.kernel.is_none() && description.disks.is_empty() {
            return Err(malformed("it names neither a kernel nor a disk".into()));
        }
        Ok(Self {
            kernel: description.kernel.as_deref().map(inside).transpose()?,
            initrd: description.initrd.as_deref().map(inside).transpose()?,
            cmdline: description.cmdline,
            disks: description
                .disks
                .iter()
                .map(|disk| {
                    Ok(Template {
                        file: inside(&disk.file)?,
                        format: disk.format,
                        readonly: disk.readonly,
                    })
                })
                .collect::<Result<_, ImageError>>()?,
        })
    }
}

/// Where made images are: `$XDG_CACHE_HOME/holm/images`, by default under
/// `~/.cache`.
pub fn directory() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("holm/images"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(json: &str) -> (tempfile::TempDir, Result<Image, ImageError>) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("x")).unwrap();
        fs::write(directory.path().join("x/image.json"), json).unwrap();
        let found = Image::find("x", Some(directory.path()));
        (directory, found)
    }

    const GOOD: &str = r#"{"version":1,"name":"x","digest":"sha256:0","kernel":"vmlinuz",
        "initrd":"initrd","cmdline":"console=ttyS0","disks":[{"file":"root.img"}]}"#;

    #[test]
    fn a_made_image_is_found_by_name_and_by_path() {
        let (directory, by_name) = image(GOOD);
        let by_path = Image::find(directory.path().join("x").to_str().unwrap(), None);
        assert_eq!(by_name.as_ref().unwrap(), by_path.as_ref().unwrap());
        let image = by_name.unwrap();
        assert!(image.kernel.unwrap().ends_with("x/vmlinuz"));
        assert!(!image.disks[0].readonly);
    }

    #[test]
    fn a_file_is_a_disk() {
        let (directory, _) = image(GOOD);
        let disk = directory.path().join("disk.img");
        fs::write(&disk, "x").unwrap();
        let find = |path: &Path| Target::find(path.to_str().unwrap(), None);
        assert_eq!(find(&disk).unwrap(), Target::Disk(disk.clone()));
        assert!(matches!(
            find(&directory.path().join("x")).unwrap(),
            Target::Image(_)
        ));
        assert!(find(directory.path()).is_err());
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        let reason = |json: &str| image(json).1.unwrap_err().to_string();
        assert!(reason(&GOOD.replace("\"version\":1", "\"version\":2")).contains("newer Holm"));
        assert!(reason(&GOOD.replace("vmlinuz", "../vmlinuz")).contains("not a file of"));
        assert!(reason(&GOOD.replace("vmlinuz", "/etc/passwd")).contains("not a file of"));
        assert!(reason(&GOOD.replace("\"initrd\"", "\"surprise\"")).contains("surprise"));
        assert!(reason("{").contains("no description"));
        let neither = r#"{"version":1,"name":"x","digest":""}"#;
        assert!(reason(neither).contains("neither"));
        let missing = Image::find("../nowhere", None).unwrap_err().to_string();
        assert!(missing.contains("cargo xtask image"), "{missing}");
    }
}
