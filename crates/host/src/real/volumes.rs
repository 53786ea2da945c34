//! Volumes, snapshots and images, as files.

use std::path::PathBuf;
use std::sync::Arc;

use images::{Digest, ImagesError, Library, Origin, Volumes};

use crate::driver::{Content, DriverError, VolumeFile, VolumeSource, VolumeSpec};
use crate::layout::Layout;

/// What contents that volumes' snapshots keep begin with; others are images of
/// the library.
const SNAPSHOT: &str = "snap-";

/// The files of all volumes, snapshots and images.
#[derive(Clone)]
pub struct Files(Arc<Inner>);

struct Inner {
    library: Library,
    volumes: Volumes,
}

impl Files {
    /// Opens or makes their directories.
    pub fn open(layout: &Layout) -> Result<Self, ImagesError> {
        Ok(Self(Arc::new(Inner {
            library: Library::open(&layout.images())?,
            volumes: Volumes::open(&layout.volumes())?,
        })))
    }

    /// Works with the files on a thread that may wait.
    async fn with<T: Send + 'static>(
        &self,
        doing: &'static str,
        what: &str,
        work: impl FnOnce(&Inner) -> Result<T, ImagesError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let inner = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(failed(doing, what, &error)),
            Err(error) => Err(DriverError::again(doing, what, error)),
        }
    }

    pub async fn ids(&self) -> Result<Vec<String>, DriverError> {
        let list = |inner: &Inner| {
            let (volumes, unreadable) = inner.volumes.list()?;
            for (id, error) in unreadable {
                tracing::error!(volume = id, %error, "a volume that cannot be read");
            }
            Ok(volumes.into_iter().map(|volume| volume.id).collect())
        };
        self.with("listing", "the volumes", list).await
    }

    pub async fn ensure(&self, spec: &VolumeSpec) -> Result<VolumeFile, DriverError> {
        let wanted = spec.clone();
        let ensure = move |inner: &Inner| inner.ensure(&wanted);
        self.with("making the volume", &spec.id, ensure).await
    }

    pub async fn remove(&self, id: &str) -> Result<(), DriverError> {
        let volume = id.to_owned();
        let remove = move |inner: &Inner| inner.volumes.delete(&volume);
        self.with("removing the volume", id, remove).await
    }

    /// Of a volume that no machine uses.
    pub async fn snapshot(&self, volume: &str, snapshot: &str) -> Result<Content, DriverError> {
        let (of, id) = (volume.to_owned(), snapshot.to_owned());
        let keep = move |inner: &Inner| {
            let made = inner.volumes.snapshot(&of, &id)?;
            Ok(Content {
                name: made.id,
                stored: made.allocated,
            })
        };
        self.with("making a snapshot of", volume, keep).await
    }

    /// Of a volume that a machine uses, which `copy` asks to copy it to a file
    /// and to say in which format.
    pub async fn snapshot_live<F: Future<Output = Result<String, DriverError>>>(
        &self,
        volume: &str,
        snapshot: &str,
        copy: impl FnOnce(PathBuf) -> F,
    ) -> Result<Content, DriverError> {
        let doing = "making a snapshot of";
        let (of, id) = (volume.to_owned(), snapshot.to_owned());
        let begin = move |inner: &Inner| {
            if let Some(there) = inner.volumes.get_snapshot(&id)? {
                return Ok(Err(Content {
                    name: there.id,
                    stored: there.allocated,
                }));
            }
            inner.volumes.begin_capture(&of, &id).map(Ok)
        };
        let capture = match self.with(doing, volume, begin).await? {
            Ok(capture) => capture,
            Err(there) => return Ok(there),
        };
        let format = copy(capture.file()).await?;
        let format = disk::Format::parse(&format);
        let format = format.map_err(|e| DriverError::refused(doing, volume, e))?;
        let finish = move |inner: &Inner| {
            let made = inner.volumes.finish_capture(capture, format)?;
            Ok(Content {
                name: made.id,
                stored: made.allocated,
            })
        };
        self.with(doing, volume, finish).await
    }

    pub async fn roll_back(
        &self,
        volume: &str,
        snapshot: &str,
        token: &str,
    ) -> Result<(), DriverError> {
        let (of, to, token) = (volume.to_owned(), snapshot.to_owned(), token.to_owned());
        let back = move |inner: &Inner| inner.volumes.rollback(&of, &to, &token).map(drop);
        self.with("rolling back the volume", volume, back).await
    }

    pub async fn remove_content(&self, name: &str) -> Result<(), DriverError> {
        let content = name.to_owned();
        let remove = move |inner: &Inner| {
            if content.starts_with(SNAPSHOT) {
                return inner.volumes.delete_snapshot(&content);
            }
            let used = inner.volumes.images_in_use()?;
            match inner.library.remove(&digest(&content)?, &used) {
                // It has a name, or a volume builds on it: `holm image prune` comes later.
                Err(ImagesError::InUse { .. }) => Ok(()),
                other => other,
            }
        };
        self.with("removing the contents", name, remove).await
    }
}

impl Inner {
    fn ensure(&self, spec: &VolumeSpec) -> Result<VolumeFile, ImagesError> {
        let origin = match &spec.source {
            VolumeSource::Made => None,
            VolumeSource::Empty => Some(Origin::Empty),
            VolumeSource::Content(name) if name.starts_with(SNAPSHOT) => {
                Some(Origin::Snapshot(name.clone()))
            }
            VolumeSource::Content(name) => {
                Some(Origin::Image {
                    // A damaged image is refused here.
                    file: self.library.use_image(&digest(name)?)?,
                    format: disk::Format::Raw,
                })
            }
        };
        let mut volume = match origin {
            Some(origin) => self.volumes.create(&spec.id, &origin, Some(spec.size))?,
            None => self.volumes.get(&spec.id)?.ok_or(ImagesError::Missing {
                what: "volume",
                id: spec.id.clone(),
            })?,
        };
        if volume.size < spec.size {
            volume = self.volumes.grow(&spec.id, spec.size)?;
        }
        Ok(VolumeFile {
            path: volume.file,
            format: volume.format.name().into(),
        })
    }
}

fn digest(name: &str) -> Result<Digest, ImagesError> {
    let digest = name.parse();
    digest.map_err(|_| ImagesError::NoImage(name.to_owned()))
}

fn failed(doing: &'static str, what: &str, error: &ImagesError) -> DriverError {
    match error {
        ImagesError::NoImage(_)
        | ImagesError::Ambiguous(_)
        | ImagesError::Corrupt { .. }
        | ImagesError::Exists { .. }
        | ImagesError::Missing { .. }
        | ImagesError::BadName(_)
        | ImagesError::Malformed { .. }
        | ImagesError::Version { .. } => DriverError::refused(doing, what, error),
        _ => DriverError::again(doing, what, error),
    }
}
