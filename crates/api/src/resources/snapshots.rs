//! What volumes held at one moment.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use control::{NewSnapshot, Plane};
use model::{Snapshot, Tags};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::extract::{Admin, Body, IfMatch, InPath, InQuery, Reader};
use crate::listing::{self, Facts, Listing, PageQuery, Shown};
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

/// Lists snapshots
#[utoipa::path(get, path = "/v1/snapshots", operation_id = "list_snapshots", tag = "storage",
    params(PageQuery),
    responses((status = 200, description = "A page of them", body = Listing<SnapshotView>)))]
pub async fn list(
    State(app): State<App>,
    Reader(caller): Reader,
    InQuery(query): InQuery<PageQuery>,
) -> Result<Json<Listing<SnapshotView>>, Problem> {
    listing::list::<Snapshot>(&app.plane, &caller, &query)
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
        volume: listing::id(&body.volume_id)?,
        description: body.description,
        tags: body.tags,
    };
    let made = app.plane.create_snapshot(&caller, new).await?;
    listing::created::<Snapshot>(&app.plane, &caller, "/v1/snapshots", made.id.as_str())
}

/// Shows a snapshot
#[utoipa::path(get, path = "/v1/snapshots/{snapshot_id}", operation_id = "get_snapshot", tag = "storage",
    params(("snapshot_id" = String, Path, description = "Its id")),
    responses((status = 200, description = "It", body = SnapshotView), (status = 304, description = "It is as If-None-Match says")))]
pub async fn get(
    State(app): State<App>,
    Reader(caller): Reader,
    InPath(id): InPath<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    listing::get::<Snapshot>(&app.plane, &caller, &id, &headers)
}

/// Removes a snapshot that no image needs
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot_id}", operation_id = "delete_snapshot", tag = "storage",
    params(("snapshot_id" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone, or will be in a moment")))]
pub async fn delete(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(id): InPath<String>,
    expected: IfMatch,
) -> Result<StatusCode, Problem> {
    let plane = app.expecting::<Snapshot>(&id, expected);
    plane.delete_snapshot(&caller, &listing::id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
