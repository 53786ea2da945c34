//! Snapshots.

use control::NewSnapshot;
use model::{Snapshot, SnapshotId, VolumeId};

use super::volumes::gib;
use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, Selection, maybe, none, one, owned, paged};
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateSnapshot",
        understood: &[
            "VolumeId",
            "Description",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DescribeSnapshots",
        understood: &[
            "SnapshotId.N",
            "Owner.N",
            "RestorableBy.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DeleteSnapshot",
        understood: &["SnapshotId"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "SnapshotId",
    filters: &[
        "description",
        "encrypted",
        "owner-id",
        "progress",
        "snapshot-id",
        "start-time",
        "status",
        "storage-tier",
        "tag",
        "tag-key",
        "volume-id",
        "volume-size",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: false,
};

fn field(snapshot: &Snapshot, name: &str) -> Vec<String> {
    match name {
        "description" => one(&snapshot.description),
        "encrypted" => one(false),
        "owner-id" => one(&snapshot.meta.account),
        "progress" => one(format!("{}%", snapshot.progress)),
        "snapshot-id" => one(&snapshot.id),
        "start-time" => one(snapshot.meta.created),
        "status" => one(snapshot.state.name()),
        "storage-tier" => one("standard"),
        "volume-id" => maybe(snapshot.volume.as_ref()),
        "volume-size" => one(gib(snapshot.size)),
        _ => none(),
    }
}

fn show(element: Element, snapshot: &Snapshot) -> Element {
    // EC2 gives what was imported this volume.
    let volume = snapshot.volume.as_ref();
    let element = element
        .text("snapshotId", &snapshot.id)
        .text("volumeId", volume.map_or("vol-ffffffff", |id| id.as_str()))
        .text("status", snapshot.state.name())
        .option("statusMessage", snapshot.failure.as_ref())
        .text("startTime", snapshot.meta.created)
        .option("completionTime", snapshot.completed)
        .text("progress", format!("{}%", snapshot.progress))
        .text("volumeSize", gib(snapshot.size))
        .text("description", &snapshot.description)
        .text("encrypted", false)
        .text("storageTier", "standard");
    owned(element, &snapshot.meta)
}

async fn create(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let volume: VolumeId = sent.require_id("VolumeId")?;
    let new = NewSnapshot {
        volume,
        description: sent.text("Description").unwrap_or_default().to_owned(),
        tags: specified(sent, &["snapshot"], "snapshot")?,
    };
    call.plane()
        .find::<model::Volume>(&call.caller, &new.volume)?;
    call.dry_run()?;
    let snapshot = call.plane().create_snapshot(&call.caller, new).await?;
    let mut shown = show(Element::new(""), &snapshot).into_children();
    // The answer to a creation has no such member.
    shown.retain(|child| child.name() != "storageTier");
    Ok(shown)
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let owners = call.owners("Owner")?;
    let mut snapshots = call.nouns::<Snapshot, SnapshotId>("SnapshotId")?;
    snapshots.retain(|snapshot| {
        owners
            .as_ref()
            .is_none_or(|o| o.contains(&snapshot.meta.account))
    });
    // Whoever may see a snapshot may make volumes of it.
    call.owners("RestorableBy")?;
    call.dry_run()?;
    let (page, token) = selection.cut(snapshots, |snapshot, name| field(snapshot, name));
    let items = page.iter().map(|snapshot| show(Element::item(), snapshot));
    Ok(paged("snapshotSet", items, token))
}

async fn delete(call: &Call<'_>) -> Reply {
    let id: SnapshotId = call.parameters.require_id("SnapshotId")?;
    call.plane().find::<Snapshot>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane().delete_snapshot(&call.caller, &id).await?;
    done()
}
