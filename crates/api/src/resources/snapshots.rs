//! What volumes held at one moment.

use axum::extract::State;
use axum::response::Response;
use control::{NewSnapshot, Plane, Refusal};
use model::{Snapshot, SnapshotId, Tags};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created, read_id};
use crate::extract::{Admin, Body};
use crate::listing::{Facts, Shown};
use crate::problem::Problem;

/// What a volume held at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// Its id.
    #[schema(example = "snap-0123456789abcdef0")]
    pub id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Volume that it is of; missing: it was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// Capacity in bytes of what it is of.
    pub size: u64,
    /// Bytes that it takes on the host.
    pub stored: u64,
    /// How far it is: `pending`, `completed`, `error`.
    pub state: String,
    /// Of what is to be done, in percent.
    pub progress: u8,
    /// What its owner says of it.
    pub description: String,
    /// When it was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub completed: Option<String>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

impl Shown for Snapshot {
    type View = SnapshotView;

    fn show(_: &Plane, found: &Found<Self>) -> SnapshotView {
        let snapshot = &found.record;
        SnapshotView {
            id: snapshot.id.to_string(),
            name: snapshot.meta.name().map(str::to_owned),
            volume_id: snapshot.volume.as_ref().map(ToString::to_string),
            size: snapshot.size,
            stored: snapshot.stored,
            state: snapshot.state.name().into(),
            progress: snapshot.progress,
            description: snapshot.description.clone(),
            completed: snapshot.completed.map(|t| t.to_string()),
            failure: snapshot.failure.clone(),
            created: snapshot.meta.created.to_string(),
            tags: snapshot.meta.tags.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: self.meta.name(),
            state: Some(self.state.name()),
            tags: Some(&self.meta.tags),
        }
    }
}

impl Resource for Snapshot {
    type Id = SnapshotId;

    const NAMES: Names = Names {
        id: "snapshot",
        path: "/v1/snapshots",
        one: "a snapshot",
        all: "snapshots",
        tag: "storage",
    };
}

impl Removable for Snapshot {
    const REMOVAL: &'static str = "Removes a snapshot that no image needs";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        target
            .plane
            .delete_snapshot(&target.caller, &target.id)
            .await
    }
}

/// A snapshot that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshotBody {
    /// Of which volume, in use or not.
    pub volume_id: String,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// Makes a snapshot of a volume
#[utoipa::path(post, path = "/v1/snapshots", operation_id = "create_snapshot", tag = "storage",
    request_body = NewSnapshotBody,
    responses((status = 201, description = "It is there", body = SnapshotView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewSnapshotBody>,
) -> Result<Response, Problem> {
    let new = NewSnapshot {
        volume: read_id(&body.volume_id)?,
        description: body.description,
        tags: body.tags,
    };
    let made = app.plane.create_snapshot(&caller, new).await?;
    created::<Snapshot>(&app.plane, &caller, &made.id)
}
