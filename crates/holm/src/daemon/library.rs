//! Images of the library become images from which instances can be made.

use std::collections::HashSet;
use std::time::Duration;

use control::{Caller, Refusal, RegisterDisk, RegisterImage};
use images::{Library, Stored};
use model::{Image, Snapshot, SnapshotState, Tags};

use super::Daemon;

/// Time between looks at the library, which other processes fill.
const LOOK: Duration = Duration::from_secs(2);
/// Label of an image that says who may log in.
const LOGIN: &str = "login";
/// Name of the root disk's device.
const ROOT: &str = "/dev/xvda";

/// Registers what is new in the library, until the daemon ends.
pub async fn follow(daemon: Daemon) {
    let mut failed = HashSet::new();
    loop {
        for stored in read(&daemon).await {
            let digest = stored.manifest.digest.to_string();
            if failed.contains(&digest) || is_known(&daemon, &digest) {
                continue;
            }
            if let Err(error) = register(&daemon, &stored).await {
                tracing::error!(%error, image = digest, "an image of the library is not offered");
                failed.insert(digest);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = daemon.ended() => return,
        }
    }
}

/// The images that have names.
async fn read(daemon: &Daemon) -> Vec<Stored> {
    let directory = daemon.layout.images();
    let list = move || match Library::find(&directory)? {
        Some(library) => library.list().map(|(stored, _)| stored),
        None => Ok(Vec::new()),
    };
    let mut stored = match tokio::task::spawn_blocking(list).await {
        Ok(Ok(stored)) => stored,
        Ok(Err(error)) => {
            tracing::warn!(%error, "reading the library of images");
            Vec::new()
        }
        Err(_) => Vec::new(),
    };
    stored.retain(|image| !image.names.is_empty());
    stored
}

fn is_known(daemon: &Daemon, digest: &str) -> bool {
    let view = daemon.plane.view();
    let of = |s: &Snapshot| s.content.as_deref() == Some(digest) && !s.deleting;
    view.any::<Snapshot>(of)
}

async fn register(daemon: &Daemon, stored: &Stored) -> Result<(), Refusal> {
    let plane = &daemon.plane;
    let caller = Caller::owner(plane.site()?.account);
    let digest = stored.manifest.digest.to_string();
    let Some(name) = stored.names.first() else {
        return Ok(());
    };
    let family = name.split('@').next().unwrap_or(name);
    let snapshot = plane
        .adopt_snapshot(
            &caller,
            &digest,
            stored.manifest.size,
            stored.allocated,
            &stored.manifest.source,
        )
        .await?;
    debug_assert_eq!(snapshot.state, SnapshotState::Completed);
    let taken = |name: &String| plane.view().any::<Image>(|image| image.name == *name);
    let short = stored.manifest.digest.short();
    let name = match taken(name) {
        true => format!("{family}-{short}"),
        false => name.clone(),
    };
    let labelled = stored.manifest.labels.get(LOGIN).cloned();
    let usual = ["debian", "ubuntu", "fedora"];
    let usual = usual.into_iter().find(|usual| family.starts_with(usual));
    let new = RegisterImage {
        name: name.clone(),
        description: stored.manifest.source.clone(),
        disks: vec![RegisterDisk {
            device: ROOT.into(),
            snapshot: Some(snapshot.id),
            size: None,
            delete_on_termination: true,
        }],
        family: Some(family.to_owned()),
        login: labelled.or_else(|| usual.map(str::to_owned)),
        tags: Tags::new(),
    };
    let image = plane.register_image(&caller, new).await?;
    tracing::info!(image = %image.id, name, "an image of the library is offered");
    Ok(())
}
