//! What instances are made from.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use control::{CreateImage, Plane, Refusal, RegisterDisk, RegisterImage};
use model::{Image, ImageId, Tags};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created, read_id};
use crate::extract::{Admin, Body};
use crate::listing::{Facts, Shown};
use crate::problem::Problem;

/// What instances are made from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// Its id.
    #[schema(example = "ami-0123456789abcdef0")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is a version of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Who may log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// Whether it can be used: `pending`, `available`, `failed`.
    pub state: String,
    /// What its owner says of it.
    pub description: String,
    /// Name of the root disk's device.
    pub root_device: String,
    /// Its disks; the first is the root.
    pub disks: Vec<ImageDiskView>,
    /// All accounts may use it.
    pub public: bool,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

/// A disk of an image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageDiskView {
    /// Name of its device.
    pub device: String,
    /// What it holds; missing: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Capacity in bytes.
    pub size: u64,
    /// Volumes made of it go with their instance.
    pub delete_on_termination: bool,
}

impl Shown for Image {
    type View = ImageView;

    fn show(_: &Plane, found: &Found<Self>) -> ImageView {
        let image = &found.record;
        let disks = image.disks.iter().map(|disk| ImageDiskView {
            device: disk.device.clone(),
            snapshot_id: disk.snapshot.as_ref().map(ToString::to_string),
            size: disk.size,
            delete_on_termination: disk.delete_on_termination,
        });
        ImageView {
            id: image.id.to_string(),
            name: image.name.clone(),
            family: image.family.clone(),
            login: image.login.clone(),
            state: image.state.name().into(),
            description: image.description.clone(),
            root_device: image.root_device.clone(),
            disks: disks.collect(),
            public: image.public,
            failure: image.failure.clone(),
            created: image.meta.created.to_string(),
            tags: image.meta.tags.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: Some(&self.name),
            state: Some(self.state.name()),
            tags: Some(&self.meta.tags),
        }
    }
}

impl Resource for Image {
    type Id = ImageId;

    const NAMES: Names = Names {
        id: "image",
        path: "/v1/images",
        one: "an image",
        all: "images",
        tag: "images",
    };
}

impl Removable for Image {
    const REMOVAL: &'static str = "Removes an image; its snapshots and instances stay";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        target
            .plane
            .deregister_image(&target.caller, &target.id)
            .await
    }
}

/// An image that is to be made of snapshots.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewImageBody {
    /// Its name.
    pub name: String,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// Its disks; the first is the root.
    pub disks: Vec<NewImageDiskBody>,
    /// What it is a version of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Who may log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// A disk of such an image.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewImageDiskBody {
    /// Name of its device.
    #[schema(example = "/dev/xvda")]
    pub device: String,
    /// What it holds; nothing if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Capacity in bytes; the snapshot's if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Volumes made of it stay when their instance goes.
    #[serde(default)]
    pub keep_on_termination: bool,
}

/// An image that is to be made of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureBody {
    /// Of which, running or stopped.
    pub instance_id: String,
    /// Its name.
    pub name: String,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// What is to be changed of an image; what is missing stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageChangeBody {
    /// What its owner says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it is a version of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Who may log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// All accounts may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
}

/// Makes an image of snapshots
#[utoipa::path(post, path = "/v1/images", operation_id = "create_image", tag = "images",
    request_body = NewImageBody,
    responses((status = 201, description = "It is there", body = ImageView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewImageBody>,
) -> Result<Response, Problem> {
    let disks = body.disks.into_iter().map(|disk| {
        Ok(RegisterDisk {
            device: disk.device,
            snapshot: disk.snapshot_id.as_deref().map(read_id).transpose()?,
            size: disk.size,
            delete_on_termination: !disk.keep_on_termination,
        })
    });
    let new = RegisterImage {
        name: body.name,
        description: body.description,
        disks: disks.collect::<Result<_, Problem>>()?,
        family: body.family,
        login: body.login,
        tags: body.tags,
    };
    let made = app.plane.register_image(&caller, new).await?;
    created::<Image>(&app.plane, &caller, &made.id)
}

/// Makes an image of an instance's disks
#[utoipa::path(post, path = "/v1/images/capture", operation_id = "capture_image", tag = "images",
    request_body = CaptureBody,
    responses((status = 201, description = "It is there", body = ImageView)))]
pub async fn capture(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<CaptureBody>,
) -> Result<Response, Problem> {
    let new = CreateImage {
        instance: read_id(&body.instance_id)?,
        name: body.name,
        description: body.description,
        tags: body.tags,
        snapshot_tags: Tags::new(),
    };
    let made = app.plane.create_image(&caller, new).await?;
    created::<Image>(&app.plane, &caller, &made.id)
}

/// Changes an image
#[utoipa::path(patch, path = "/v1/images/{image_id}", operation_id = "change_image", tag = "images",
    request_body = ImageChangeBody,
    responses((status = 200, description = "As it is now", body = ImageView)))]
pub async fn change(
    target: Target<Image>,
    Body(body): Body<ImageChangeBody>,
) -> Result<Response, Problem> {
    let some = |new: &Option<String>| new.clone();
    target
        .plane
        .modify_image(&target.caller, &target.id, |image| {
            if let Some(text) = some(&body.description) {
                image.description = text;
            }
            image.family = some(&body.family).or_else(|| image.family.take());
            image.login = some(&body.login).or_else(|| image.login.take());
            image.public = body.public.unwrap_or(image.public);
            Ok(())
        })
        .await?;
    target.now(StatusCode::OK)
}
