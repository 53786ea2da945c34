//! Disks that exist apart from instances.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use control::{AttachVolume, NewVolume, Plane, Refusal, VolumeChange};
use model::{Tags, Volume, VolumeId, VolumeKind};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created, read_id};
use crate::extract::{Admin, Body, IdempotencyKey};
use crate::listing::{Facts, Shown};
use crate::problem::{Code, Problem};

/// A disk that exists apart from instances.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Its id.
    #[schema(example = "vol-0123456789abcdef0")]
    pub id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Capacity in bytes.
    pub size: u64,
    /// What it is doing: `creating`, `available`, `in-use`, `deleting`, `error`.
    pub state: String,
    /// Its kind, which says how fast it is.
    #[schema(example = "gp3")]
    pub kind: String,
    /// Operations each second, where its owner chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u32>,
    /// MiB each second, where its owner chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<u32>,
    /// What it held when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Zone that it is in.
    pub zone: String,
    /// Instance that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentView>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

/// A volume's being in an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttachmentView {
    /// The instance.
    pub instance_id: String,
    /// Name of its device there.
    #[schema(example = "/dev/sdf")]
    pub device: String,
    /// How far it is: `attaching`, `attached`, `detaching`.
    pub state: String,
    /// The volume goes with the instance.
    pub delete_on_termination: bool,
    /// Since when.
    #[schema(format = DateTime)]
    pub since: String,
}

impl Shown for Volume {
    type View = VolumeView;

    fn show(_: &Plane, found: &Found<Self>) -> VolumeView {
        let volume = &found.record;
        let attachment = volume.attachment.as_ref();
        VolumeView {
            id: volume.id.to_string(),
            name: volume.meta.name().map(str::to_owned),
            size: volume.size,
            state: volume.state.name().into(),
            kind: volume.kind.name().into(),
            iops: volume.iops,
            throughput: volume.throughput,
            snapshot_id: volume.snapshot.as_ref().map(ToString::to_string),
            zone: volume.zone.clone(),
            attachment: attachment.map(|a| AttachmentView {
                instance_id: a.instance.to_string(),
                device: a.device.clone(),
                state: a.state.name().into(),
                delete_on_termination: a.delete_on_termination,
                since: a.since.to_string(),
            }),
            failure: volume.failure.clone(),
            created: volume.meta.created.to_string(),
            tags: volume.meta.tags.clone(),
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

impl Resource for Volume {
    type Id = VolumeId;

    const NAMES: Names = Names {
        id: "volume",
        path: "/v1/volumes",
        one: "a volume",
        all: "volumes",
        tag: "storage",
    };
}

impl Removable for Volume {
    const REMOVAL: &'static str = "Removes a volume that is in no instance, with what it holds";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        target.plane.delete_volume(&target.caller, &target.id).await
    }
}

/// A volume that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolumeBody {
    /// Capacity in bytes; that of the snapshot if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What it holds at first; nothing if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Its kind: gp3 (if missing), gp2, io1, io2, st1, sc1 or standard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Operations each second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u32>,
    /// MiB each second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<u32>,
    /// Zone that it is in; the first if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// What is to be changed of a volume; what is missing stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeChangeBody {
    /// Capacity in bytes, not smaller than it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Operations each second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u32>,
    /// MiB each second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<u32>,
}

/// Where a volume is to be attached.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachBody {
    /// To which instance.
    pub instance_id: String,
    /// Name of its device there; a free one if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/dev/sdf")]
    pub device: Option<String>,
    /// The volume goes with the instance.
    #[serde(default)]
    pub delete_on_termination: bool,
}

/// How a volume is to be detached.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachBody {
    /// From which instance; from where it is if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Without asking the guest, which loses what it has not written.
    #[serde(default)]
    pub force: bool,
}

fn kind(name: Option<&str>) -> Result<Option<VolumeKind>, Problem> {
    let Some(name) = name else { return Ok(None) };
    let kind = VolumeKind::named(name);
    kind.map(Some).ok_or_else(|| {
        let all = VolumeKind::ALL.map(VolumeKind::name).join(", ");
        Problem::new(
            Code::InvalidValue,
            format!("kind: there is no kind {name:?} of volumes"),
        )
        .next(format!("choose one of {all}"))
    })
}

/// Makes a volume
#[utoipa::path(post, path = "/v1/volumes", operation_id = "create_volume", tag = "storage",
    request_body = NewVolumeBody,
    responses((status = 201, description = "It is there", body = VolumeView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    key: IdempotencyKey,
    Body(body): Body<NewVolumeBody>,
) -> Result<Response, Problem> {
    let token = key.token(&body)?;
    let new = NewVolume {
        size: body.size,
        snapshot: body.snapshot_id.as_deref().map(read_id).transpose()?,
        kind: kind(body.kind.as_deref())?.unwrap_or_default(),
        iops: body.iops,
        throughput: body.throughput,
        zone: body.zone,
        tags: body.tags,
    };
    let made = app
        .plane
        .create_volume(&caller, new, token.as_ref())
        .await?;
    created::<Volume>(&app.plane, &caller, &made.id)
}

/// Changes a volume; its file system is the guest's to grow
#[utoipa::path(patch, path = "/v1/volumes/{volume_id}", operation_id = "change_volume", tag = "storage",
    request_body = VolumeChangeBody,
    responses((status = 200, description = "As it is now", body = VolumeView)))]
pub async fn change(
    target: Target<Volume>,
    Body(body): Body<VolumeChangeBody>,
) -> Result<Response, Problem> {
    let change = VolumeChange {
        size: body.size,
        kind: kind(body.kind.as_deref())?,
        iops: body.iops,
        throughput: body.throughput,
    };
    target
        .plane
        .modify_volume(&target.caller, &target.id, change)
        .await?;
    target.now(StatusCode::OK)
}

/// Attaches a volume to an instance, running or not
#[utoipa::path(post, path = "/v1/volumes/{volume_id}/attach", operation_id = "attach_volume", tag = "storage",
    request_body = AttachBody,
    responses((status = 200, description = "As it is now", body = VolumeView)))]
pub async fn attach(
    target: Target<Volume>,
    Body(body): Body<AttachBody>,
) -> Result<Response, Problem> {
    let new = AttachVolume {
        volume: target.id.clone(),
        instance: read_id(&body.instance_id)?,
        device: body.device,
        delete_on_termination: body.delete_on_termination,
    };
    target.plane.attach_volume(&target.caller, new).await?;
    target.now(StatusCode::OK)
}

/// Takes a volume out of its instance
#[utoipa::path(post, path = "/v1/volumes/{volume_id}/detach", operation_id = "detach_volume", tag = "storage",
    request_body = DetachBody,
    responses((status = 200, description = "As it is now", body = VolumeView)))]
pub async fn detach(
    target: Target<Volume>,
    Body(body): Body<DetachBody>,
) -> Result<Response, Problem> {
    let from = body.instance_id.as_deref().map(read_id).transpose()?;
    target
        .plane
        .detach_volume(&target.caller, &target.id, from.as_ref(), body.force)
        .await?;
    target.now(StatusCode::OK)
}
