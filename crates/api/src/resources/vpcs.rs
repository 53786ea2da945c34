//! Networks.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use control::{NewVpc, Plane, Refusal};
use model::{Tags, Vpc, VpcId};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created};
use crate::extract::{Admin, Body, network};
use crate::listing::{Facts, Shown};
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

impl Resource for Vpc {
    type Id = VpcId;

    const NAMES: Names = Names {
        id: "vpc",
        path: "/v1/vpcs",
        one: "a network",
        all: "networks",
        tag: "network",
    };
}

impl Removable for Vpc {
    const REMOVAL: &'static str = "Removes a network that has nothing in it";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        target.plane.delete_vpc(&target.caller, &target.id).await
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
    created::<Vpc>(&app.plane, &caller, &made.id)
}

/// Changes a network
#[utoipa::path(patch, path = "/v1/vpcs/{vpc_id}", operation_id = "change_vpc", tag = "network",
    request_body = VpcChangeBody,
    responses((status = 200, description = "As it is now", body = VpcView)))]
pub async fn change(
    target: Target<Vpc>,
    Body(body): Body<VpcChangeBody>,
) -> Result<Response, Problem> {
    target
        .plane
        .modify_vpc(
            &target.caller,
            &target.id,
            body.dns_support,
            body.dns_hostnames,
        )
        .await?;
    target.now(StatusCode::OK)
}
