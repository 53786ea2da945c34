//! Sizes of instances.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use model::{CATALOGUE, InstanceType};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::extract::{Admin, Body, InPath, Reader};
use crate::listing::Listing;
use crate::problem::Problem;

/// A size of instances.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceTypeView {
    /// Its name.
    #[schema(example = "t3.micro")]
    pub name: String,
    /// vCPUs.
    pub cpus: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// It is this account's own, and can be removed.
    pub custom: bool,
}

impl From<&InstanceType> for InstanceTypeView {
    fn from(size: &InstanceType) -> Self {
        Self {
            name: size.name.clone().into_owned(),
            cpus: size.cpus,
            memory_mib: size.memory_mib,
            custom: !size.is_catalogued(),
        }
    }
}

/// A size that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInstanceTypeBody {
    /// Its name.
    #[schema(example = "lab.tiny")]
    pub name: String,
    /// vCPUs.
    #[schema(minimum = 1)]
    pub cpus: u32,
    /// RAM in MiB.
    #[schema(minimum = 1)]
    pub memory_mib: u64,
}

/// Lists sizes: those that every Holm has, and custom ones
#[utoipa::path(get, path = "/v1/instance-types", operation_id = "list_instance_types", tag = "instances",
    responses((status = 200, description = "All of them", body = Listing<InstanceTypeView>)))]
pub async fn list(State(app): State<App>, _reader: Reader) -> Json<Listing<InstanceTypeView>> {
    let custom = app.plane.view().all::<InstanceType>();
    let custom = custom
        .iter()
        .map(|found| InstanceTypeView::from(&found.record));
    let items = CATALOGUE.iter().map(InstanceTypeView::from).chain(custom);
    Json(Listing {
        items: items.collect(),
        next: None,
    })
}

/// Shows a size
#[utoipa::path(get, path = "/v1/instance-types/{name}", operation_id = "get_instance_type", tag = "instances",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "It", body = InstanceTypeView)))]
pub async fn get(
    State(app): State<App>,
    _reader: Reader,
    InPath(name): InPath<String>,
) -> Result<Json<InstanceTypeView>, Problem> {
    let size = app.plane.instance_type(&name)?;
    Ok(Json(InstanceTypeView::from(&size)))
}

/// Makes a size
#[utoipa::path(post, path = "/v1/instance-types", operation_id = "create_instance_type", tag = "instances",
    request_body = NewInstanceTypeBody,
    responses((status = 201, description = "It is there", body = InstanceTypeView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewInstanceTypeBody>,
) -> Result<(StatusCode, Json<InstanceTypeView>), Problem> {
    let made = app
        .plane
        .create_instance_type(&caller, &body.name, body.cpus, body.memory_mib)
        .await?;
    Ok((StatusCode::CREATED, Json(InstanceTypeView::from(&made))))
}

/// Removes a custom size; instances that have it keep it
#[utoipa::path(delete, path = "/v1/instance-types/{name}", operation_id = "delete_instance_type", tag = "instances",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
pub async fn delete(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(name): InPath<String>,
) -> Result<StatusCode, Problem> {
    app.plane.delete_instance_type(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
