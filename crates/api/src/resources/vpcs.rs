//! Networks.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use control::{NewVpc, Plane};
use model::{Tags, Vpc};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::extract::{Admin, Body, IfMatch, InPath, InQuery, Reader, network};
use crate::listing::{self, Facts, Listing, PageQuery, Shown};
use crate::problem::Problem;

/// A network of its own (EC2's VPC).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VpcView {
    /// Its id.
    #[schema(example = "vpc-0123456789abcdef0")]
    pub id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its addresses.
    #[schema(example = "172.31.0.0/16")]
    pub cidr: String,
    /// Where instances are that name no subnet.
    pub is_default: bool,
    /// Its name server answers.
    pub dns_support: bool,
    /// Instances have names of their own in the world, too.
    pub dns_hostnames: bool,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

impl Shown for Vpc {
    type View = VpcView;

    fn show(_: &Plane, found: &Found<Self>) -> VpcView {
        let vpc = &found.record;
        VpcView {
            id: vpc.id.to_string(),
            name: vpc.meta.name().map(str::to_owned),
            cidr: vpc.cidr.to_string(),
            is_default: vpc.is_default,
            dns_support: vpc.dns_support,
            dns_hostnames: vpc.dns_hostnames,
            created: vpc.meta.created.to_string(),
            tags: vpc.meta.tags.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: self.meta.name(),
            state: None,
            tags: Some(&self.meta.tags),
        }
    }
}

/// A network that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVpcBody {
    /// Its addresses: a prefix of 16 to 28 bits.
    #[schema(example = "10.0.0.0/16")]
    pub cidr: String,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// What is to be changed of a network.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VpcChangeBody {
    /// Its name server answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_support: Option<bool>,
    /// Instances have names of their own in the world, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_hostnames: Option<bool>,
}

/// Lists networks
#[utoipa::path(get, path = "/v1/vpcs", operation_id = "list_vpcs", tag = "network",
    params(PageQuery),
    responses((status = 200, description = "A page of them", body = Listing<VpcView>)))]
pub async fn list(
    State(app): State<App>,
    Reader(caller): Reader,
    InQuery(query): InQuery<PageQuery>,
) -> Result<Json<Listing<VpcView>>, Problem> {
    listing::list::<Vpc>(&app.plane, &caller, &query)
}

/// Makes a network, with a route table and a security group
#[utoipa::path(post, path = "/v1/vpcs", operation_id = "create_vpc", tag = "network",
    request_body = NewVpcBody,
    responses((status = 201, description = "It is there", body = VpcView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewVpcBody>,
) -> Result<Response, Problem> {
    let new = NewVpc {
        cidr: network("cidr", &body.cidr)?,
        tags: body.tags,
    };
    let made = app.plane.create_vpc(&caller, new).await?;
    listing::created::<Vpc>(&app.plane, &caller, "/v1/vpcs", made.id.as_str())
}

/// Shows a network
#[utoipa::path(get, path = "/v1/vpcs/{vpc_id}", operation_id = "get_vpc", tag = "network",
    params(("vpc_id" = String, Path, description = "Its id")),
    responses((status = 200, description = "It", body = VpcView), (status = 304, description = "It is as If-None-Match says")))]
pub async fn get(
    State(app): State<App>,
    Reader(caller): Reader,
    InPath(id): InPath<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    listing::get::<Vpc>(&app.plane, &caller, &id, &headers)
}

/// Changes a network
#[utoipa::path(patch, path = "/v1/vpcs/{vpc_id}", operation_id = "change_vpc", tag = "network",
    params(("vpc_id" = String, Path, description = "Its id")),
    request_body = VpcChangeBody,
    responses((status = 200, description = "As it is now", body = VpcView)))]
pub async fn change(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(id): InPath<String>,
    expected: IfMatch,
    Body(body): Body<VpcChangeBody>,
) -> Result<Response, Problem> {
    let plane = app.expecting::<Vpc>(&id, expected);
    plane
        .modify_vpc(
            &caller,
            &listing::id(&id)?,
            body.dns_support,
            body.dns_hostnames,
        )
        .await?;
    listing::now::<Vpc>(&plane, &caller, &id, StatusCode::OK)
}

/// Removes a network that has nothing in it
#[utoipa::path(delete, path = "/v1/vpcs/{vpc_id}", operation_id = "delete_vpc", tag = "network",
    params(("vpc_id" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is gone, or will be in a moment")))]
pub async fn delete(
    State(app): State<App>,
    Admin(caller): Admin,
    InPath(id): InPath<String>,
    expected: IfMatch,
) -> Result<StatusCode, Problem> {
    let plane = app.expecting::<Vpc>(&id, expected);
    plane.delete_vpc(&caller, &listing::id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
