//! From a file or URL as its user names it to an image.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::checksum::Checksum;
use super::fetch::{self, Download};
use super::unpack::{Compression, unpack};
use super::{ImportOptions, Library};
use crate::library::DOWNLOADS;
use crate::staging::{self, Staging};
use crate::{Digest, ImagesError};

/// A step of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bytes come from a server.
    Downloading,
    /// The checksum is compared.
    Checking,
    /// A compressed file is unpacked.
    Unpacking,
    /// The disk is copied into the library.
    Copying,
}

/// Hears how far an import is: bytes done, and bytes in all, of a step.
pub type StageProgress<'a> = &'a mut dyn FnMut(Stage, u64, u64);

/// Where a disk comes from.
#[derive(Clone, Debug)]
pub struct Location {
    /// A path, or a URL with `http`, `https` or `file`.
    pub place: String,
    /// What the file must be, as it comes: before it is unpacked.
    pub checksum: Option<Checksum>,
    /// How it is compressed; `None`: what the end of its name says.
    pub compression: Option<Compression>,
    /// Most bytes of the download, and of what is unpacked.
    pub most: u64,
}

/// The file to be imported.
enum Got {
    Local(PathBuf),
    Remote(Download),
}

impl Got {
    fn path(&self) -> &Path {
        match self {
            Self::Local(path) => path,
            Self::Remote(download) => download.path(),
        }
    }
}

impl Library {
    /// Imports a disk from a file or URL. An interrupted download goes on the
    /// next time.
    ///
    /// # Errors
    /// [`ImagesError::Fetch`], [`ImagesError::Checksum`], and those of
    /// [`Library::import`].
    pub fn bring(
        &self,
        from: &Location,
        options: &ImportOptions,
        heard: StageProgress<'_>,
    ) -> Result<Digest, ImagesError> {
        let mut options = options.clone();
        let most = options.most.unwrap_or(u64::MAX);
        options.most = Some(most.min(from.most));
        let got = self.get_file(from, &mut options, heard)?;
        let checked = check(&got, from, &options.source, heard);
        let imported = checked.and_then(|()| self.unpack_and_import(&got, from, &options, heard));
        if let Got::Remote(download) = got {
            // What is wrong with a file stays wrong.
            download.discard();
        }
        imported
    }

    fn get_file(
        &self,
        from: &Location,
        options: &mut ImportOptions,
        heard: StageProgress<'_>,
    ) -> Result<Got, ImagesError> {
        let local = |path: &str| Got::Local(PathBuf::from(path));
        let got = match from.place.split_once("://") {
            Some(("file", rest)) => match rest.strip_prefix("localhost").unwrap_or(rest) {
                path if path.starts_with('/') => local(path),
                _ => {
                    return Err(ImagesError::Refused(format!(
                        "{}: a file URL has three slashes and an absolute path: file:///srv/disk.img",
                        from.place
                    )));
                }
            },
            Some(("http" | "https", _)) => {
                let url = &from.place;
                if options.source.is_empty() {
                    options.source = fetch::shown(url);
                }
                let directory = self.directory().join(DOWNLOADS);
                let mut heard = |done, all| heard(Stage::Downloading, done, all);
                Got::Remote(fetch::fetch(url, &directory, from.most, &mut heard)?)
            }
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Err(ImagesError::Refused(format!(
                    "{}: {scheme} is not known here; give a path or a URL with http, https or file",
                    fetch::shown(&from.place)
                )));
            }
            _ => local(&from.place),
        };
        if options.source.is_empty() {
            let name = got.path().file_name().unwrap_or_default();
            options.source = name.to_string_lossy().into_owned();
        }
        Ok(got)
    }

    fn unpack_and_import(
        &self,
        got: &Got,
        from: &Location,
        options: &ImportOptions,
        heard: StageProgress<'_>,
    ) -> Result<Digest, ImagesError> {
        let name = from.place.split(['?', '#']).next().unwrap_or_default();
        let how = from.compression.unwrap_or(Compression::by_name(name));
        if how == Compression::None {
            let mut heard = |done, all| heard(Stage::Copying, done, all);
            return self.import(got.path(), options, &mut heard);
        }
        let parent = self.directory().join(DOWNLOADS);
        let failed = || ImagesError::host(&parent, "unpack a file in it");
        staging::sweep(&parent).map_err(failed())?;
        let staging = Staging::begin(&parent).map_err(failed())?;
        let unpacked = staging.path().join("disk");
        let mut unpacking = |done, all| heard(Stage::Unpacking, done, all);
        unpack(got.path(), how, &unpacked, from.most, &mut unpacking)?;
        let mut copying = |done, all| heard(Stage::Copying, done, all);
        self.import(&unpacked, options, &mut copying)
    }
}

fn check(
    got: &Got,
    from: &Location,
    source: &str,
    heard: StageProgress<'_>,
) -> Result<(), ImagesError> {
    let Some(wanted) = &from.checksum else {
        return Ok(());
    };
    let path = got.path();
    let failed = || ImagesError::host(path, "read it");
    let mut file = File::open(path).map_err(failed())?;
    let all = file.metadata().map_err(failed())?.len();
    let found = wanted.same_of(&mut file, |done| heard(Stage::Checking, done, all));
    let found = found.map_err(failed())?;
    match found == *wanted {
        true => Ok(()),
        false => Err(ImagesError::Checksum {
            file: source.into(),
            found: found.to_string(),
            wanted: wanted.to_string(),
        }),
    }
}
