//! What `holm image` puts into the library of the state directory becomes an
//! image of the daemon: one for each version of a name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control::{Caller, Plane, Refusal, RegisterImage};
use images::{ImagesError, Library, NameRecord, NameVersion, Target};
use model::{Claim, DATASOURCE_TAG, Image, Snapshot, TAGS_MAX, Tags, check_tags};

/// Between two looks at the library's names.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Library(#[from] ImagesError),
    #[error(transparent)]
    Plane(#[from] Refusal),
}

/// Follows the library until it is dropped.
pub async fn adopt_images(plane: Plane, library: Library) {
    let library = Arc::new(library);
    let mut seen = None;
    loop {
        let names = look(library.clone()).await;
        match names {
            Ok(names) if seen.as_ref() != Some(&names) => {
                match agree(&plane, &library, &names).await {
                    Ok(()) => seen = Some(names),
                    Err(error) => tracing::warn!(%error, "taking in the image library"),
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "reading the image library"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(library: Arc<Library>) -> Result<Vec<NameRecord>, Failed> {
    let names = tokio::task::spawn_blocking(move || library.names());
    Ok(names.await.map_err(|_| Refusal::Busy)??)
}

/// That a version of a name was taken in: it is not again, should its owner
/// deregister the image.
fn claim(image: &str) -> String {
    format!("library/{image}")
}

async fn agree(plane: &Plane, library: &Library, names: &[NameRecord]) -> Result<(), Failed> {
    let caller = Caller::owner(plane.site()?.account);
    let mut there = BTreeSet::new();
    for name in names {
        let Target::Versions {
            versions, current, ..
        } = &name.target
        else {
            continue;
        };
        for version in versions {
            let image = format!("{}@{}", name.name, version.number);
            let is_current = version.number == *current;
            if plane.view().get::<Claim>(claim(&image)).is_none() {
                take_in(plane, &caller, library, &image, version).await?;
            }
            let family = is_current.then(|| name.name.clone());
            name_family(plane, &caller, &image, family).await?;
            there.insert(image);
        }
    }
    let gone = plane.view().starting::<Claim>(&claim(""));
    for found in gone {
        let image = found.id.strip_prefix(&claim("")).unwrap_or_default();
        if !there.contains(image) {
            let_go(plane, &caller, image).await?;
        }
    }
    Ok(())
}

async fn take_in(
    plane: &Plane,
    caller: &Caller,
    library: &Library,
    image: &str,
    version: &NameVersion,
) -> Result<(), Failed> {
    let Some(stored) = library.get(&version.digest)? else {
        return Ok(());
    };
    let content = version.digest.to_string();
    let kept = plane
        .view()
        .filter::<Snapshot>(|s| s.content.as_ref() == Some(&content) && !s.deleting);
    let snapshot = match kept.first() {
        Some(found) => found.record.id.clone(),
        None => {
            let (size, allocated) = (stored.manifest.size, stored.allocated);
            let text = format!("content of {image}");
            let adopted = plane.adopt_snapshot(caller, &content, size, allocated, &text);
            adopted.await?.id
        }
    };
    let new = RegisterImage {
        description: stored.manifest.source.chars().take(255).collect(),
        login: stored.manifest.labels.get("login").cloned(),
        tags: tags(&stored.manifest.labels),
        ..RegisterImage::of(image, snapshot)
    };
    match plane.register_image(caller, new).await {
        // By a daemon that died before it noted that.
        Ok(_) | Err(Refusal::Exists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let taken = plane.transact(|batch| {
        let holder = content.clone();
        batch.put(&claim(image), &Claim { holder })
    });
    taken.await?;
    tracing::info!(image, "an image of the library");
    Ok(())
}

/// An image's labels as tags: of itself, so that it is found by its licence,
/// say, and with another key of what is made of it. What cannot be a tag is
/// left out.
fn tags(labels: &BTreeMap<String, String>) -> Tags {
    let datasource = labels.get("datasource");
    let mut tags: Tags = datasource
        .map(|source| (DATASOURCE_TAG.to_owned(), source.clone()))
        .into_iter()
        .collect();
    for (key, value) in labels {
        let one = Tags::from([(key.clone(), value.clone())]);
        if tags.len() < TAGS_MAX && check_tags(&one).is_ok() {
            tags.extend(one);
        }
    }
    tags
}

/// Of a name's versions the current one is what the bare name means.
async fn name_family(
    plane: &Plane,
    caller: &Caller,
    image: &str,
    family: Option<String>,
) -> Result<(), Failed> {
    for found in plane.list::<Image>(caller) {
        if found.record.name == image && found.record.family != family {
            let id = found.record.id.clone();
            let set = plane.modify_image(caller, &id, |image| {
                image.family.clone_from(&family);
                Ok(())
            });
            set.await?;
        }
    }
    Ok(())
}

/// A version that is no longer in the library: its image goes, too.
async fn let_go(plane: &Plane, caller: &Caller, image: &str) -> Result<(), Failed> {
    for found in plane.list::<Image>(caller) {
        if found.record.name == image && found.record.meta.account == caller.account {
            plane.deregister_image(caller, &found.record.id).await?;
            for disk in &found.record.disks {
                let Some(snapshot) = &disk.snapshot else {
                    continue;
                };
                match plane.delete_snapshot(caller, snapshot).await {
                    Ok(()) | Err(Refusal::InUse { .. } | Refusal::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    let forgotten = plane.transact(|batch| {
        batch.discard::<Claim>(&claim(image));
        Ok(())
    });
    forgotten.await?;
    tracing::info!(image, "an image left the library");
    Ok(())
}
