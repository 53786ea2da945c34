//! What the library of images has under a name can be used: it is an image of
//! this installation's owner, as long as the name is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control::{Caller, Plane, Refusal, RegisterDisk, RegisterImage};
use images::{ImagesError, Library, Target};
use model::{Image, Snapshot, SnapshotId, Tags};
use store::Found;

/// Between two looks at the library.
const PERIOD: Duration = Duration::from_secs(2);
/// The tag of an image that was made for a name of the library, and the name
/// with its version.
const TAG: &str = "holm:library";
/// Name of the root disk's device, as most images of EC2 have it.
const ROOT: &str = "/dev/xvda";
/// The label of who may log in.
const LOGIN: &str = "login";

/// An image of the library, under one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    /// The name without the version.
    family: String,
    digest: String,
    size: u64,
    stored: u64,
    login: Option<String>,
    source: String,
}

/// Why the library and the plane do not agree.
#[derive(Debug, thiserror::Error)]
enum LibraryError {
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error(transparent)]
    Plane(#[from] Refusal),
    #[error("reading the library: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// Looks at the library again and again.
pub async fn adopt_images(plane: Plane, library: Library) {
    let library = Arc::new(library);
    let mut complained = String::new();
    loop {
        let said = match adopt(&plane, &library).await {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        if said != complained && !said.is_empty() {
            tracing::error!(error = said, "taking in the images of the library");
        }
        complained = said;
        tokio::time::sleep(PERIOD).await;
    }
}

/// Makes the plane's images agree with the library once.
async fn adopt(plane: &Plane, library: &Arc<Library>) -> Result<(), LibraryError> {
    let reading = library.clone();
    let named = tokio::task::spawn_blocking(move || read(&reading)).await??;
    let caller = Caller::owner(plane.site()?.account);
    let of_library = |image: &Image| image.meta.tags.contains_key(TAG);
    let known = plane.view().filter::<Image>(of_library);
    for image in &known {
        let name = image.record.meta.tags.get(TAG);
        let is = name.and_then(|name| named.get(name));
        let same = is.is_some_and(|named| has(plane, &image.record, &named.digest));
        if !same {
            forget(plane, &caller, image).await?;
        }
    }
    for (name, image) in &named {
        let tagged = |i: &Image| i.meta.tags.get(TAG) == Some(name);
        if !plane.view().any::<Image>(tagged) {
            register(plane, &caller, name, image).await?;
        }
    }
    Ok(())
}

/// All names with versions, as `debian@2`.
fn read(library: &Library) -> Result<BTreeMap<String, Named>, ImagesError> {
    let mut found = BTreeMap::new();
    for record in library.names()? {
        let Target::Versions { versions, .. } = record.target else {
            continue;
        };
        for version in versions {
            let Some(stored) = library.get(&version.digest)? else {
                continue;
            };
            let named = Named {
                family: record.name.clone(),
                digest: version.digest.to_string(),
                size: stored.manifest.size,
                stored: stored.allocated,
                login: stored.manifest.labels.get(LOGIN).cloned(),
                source: stored.manifest.source,
            };
            found.insert(format!("{}@{}", record.name, version.number), named);
        }
    }
    Ok(found)
}

fn snapshot_of(plane: &Plane, digest: &str) -> Option<SnapshotId> {
    let of = |s: &Snapshot| s.content.as_deref() == Some(digest) && !s.deleting;
    let found = plane.view().filter::<Snapshot>(of);
    found.first().map(|found| found.record.id.clone())
}

fn has(plane: &Plane, image: &Image, digest: &str) -> bool {
    let snapshot = image.disks.first().and_then(|disk| disk.snapshot.as_ref());
    let snapshot = snapshot.and_then(|id| plane.view().get::<Snapshot>(id));
    snapshot.is_some_and(|s| s.record.content.as_deref() == Some(digest))
}

async fn register(
    plane: &Plane,
    caller: &Caller,
    name: &str,
    image: &Named,
) -> Result<(), LibraryError> {
    let snapshot = match snapshot_of(plane, &image.digest) {
        Some(snapshot) => snapshot,
        None => {
            let description = format!("{name} of the image library");
            let (digest, size) = (image.digest.as_str(), image.size);
            let adopted = plane.adopt_snapshot(caller, digest, size, image.stored, &description);
            adopted.await?.id
        }
    };
    let new = RegisterImage {
        name: name.to_owned(),
        description: image.source.chars().take(255).collect(),
        disks: vec![RegisterDisk {
            device: ROOT.into(),
            snapshot: Some(snapshot),
            size: None,
            delete_on_termination: true,
        }],
        family: Some(image.family.clone()),
        login: image.login.clone(),
        tags: Tags::from([(TAG.to_owned(), name.to_owned())]),
    };
    match plane.register_image(caller, new).await {
        // Its owner made another image of that name.
        Err(Refusal::Exists { .. }) => Ok(()),
        other => {
            let made = other?;
            tracing::info!(image = %made.id, name, "an image of the library");
            Ok(())
        }
    }
}

/// The name is gone from the library: so is the image, and what it was made of
/// if nothing else is.
async fn forget(plane: &Plane, caller: &Caller, image: &Found<Image>) -> Result<(), LibraryError> {
    plane.deregister_image(caller, &image.record.id).await?;
    for disk in &image.record.disks {
        let Some(snapshot) = &disk.snapshot else {
            continue;
        };
        match plane.delete_snapshot(caller, snapshot).await {
            Err(Refusal::InUse { .. } | Refusal::NotFound { .. }) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use images::ImportOptions;
    use store::Sqlite;

    #[tokio::test]
    async fn what_has_a_name_in_the_library_is_an_image() {
        let directory = tempfile::tempdir().unwrap();
        let library = Arc::new(Library::open(&directory.path().join("images")).unwrap());
        let store = Sqlite::open(&directory.path().join("store")).unwrap();
        let plane = Plane::open(Arc::new(store)).await.unwrap();
        let caller = Caller::owner(plane.site().unwrap().account);
        let disk = directory.path().join("disk.img");
        std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
        let mut options = ImportOptions::default();
        options.labels.insert(LOGIN.into(), "debian".into());
        let digest = library.import(&disk, &options, &mut |_, _| {}).unwrap();
        adopt(&plane, &library).await.unwrap();
        assert!(plane.list::<Image>(&caller).is_empty(), "it has no name");

        library.tag(digest, "debian", true).unwrap();
        for _ in 0..2 {
            adopt(&plane, &library).await.unwrap();
        }
        let image = plane.image_named(&caller, "debian").unwrap();
        assert_eq!(
            (image.name.as_str(), image.login.as_deref()),
            ("debian@1", Some("debian"))
        );
        assert_eq!(plane.list::<Image>(&caller).len(), 1);
        let snapshots = plane.list::<Snapshot>(&caller);
        assert_eq!(snapshots[0].record.content, Some(digest.to_string()));
        assert_eq!(snapshots[0].record.size, 1 << 20);

        library.untag("debian", None).unwrap();
        adopt(&plane, &library).await.unwrap();
        assert!(plane.list::<Image>(&caller).is_empty());
        assert!(
            plane
                .list::<Snapshot>(&caller)
                .iter()
                .all(|s| s.record.deleting)
        );
    }
}
