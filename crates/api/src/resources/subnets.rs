//! Subnets.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use control::{NewSubnet, Plane, Refusal};
use model::{Subnet, SubnetId, Tags};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created, read_id};
use crate::extract::{Admin, Body, network};
use crate::listing::{Facts, Shown};
use crate::problem::Problem;

/// Addresses of a network that are together.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SubnetView {
    /// Its id.
    #[schema(example = "subnet-0123456789abcdef0")]
    pub id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its network.
    pub vpc_id: String,
    /// Its addresses.
    #[schema(example = "172.31.0.0/20")]
    pub cidr: String,
    /// Zone that it is in.
    pub zone: String,
    /// Where instances are that name no subnet.
    pub is_default: bool,
    /// Instances get an address at which the host reaches them.
    pub map_public_ip: bool,
    /// Its router.
    #[schema(format = Ipv4)]
    pub gateway: String,
    /// Addresses that instances can still have.
    pub free_addresses: u32,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

impl Shown for Subnet {
    type View = SubnetView;

    fn show(plane: &Plane, found: &Found<Self>) -> SubnetView {
        let subnet = &found.record;
        SubnetView {
            id: subnet.id.to_string(),
            name: subnet.meta.name().map(str::to_owned),
            vpc_id: subnet.vpc.to_string(),
            cidr: subnet.cidr.to_string(),
            zone: subnet.zone.clone(),
            is_default: subnet.is_default,
            map_public_ip: subnet.map_public_ip,
            gateway: subnet.gateway().to_string(),
            free_addresses: plane.free_addresses(subnet),
            created: subnet.meta.created.to_string(),
            tags: subnet.meta.tags.clone(),
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

impl Resource for Subnet {
    type Id = SubnetId;

    const NAMES: Names = Names {
        id: "subnet",
        path: "/v1/subnets",
        one: "a subnet",
        all: "subnets",
        tag: "network",
    };
}

impl Removable for Subnet {
    const REMOVAL: &'static str = "Removes a subnet in which no instance is";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        target.plane.delete_subnet(&target.caller, &target.id).await
    }
}

/// A subnet that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSubnetBody {
    /// Its network.
    pub vpc_id: String,
    /// Its addresses, of its network's: a prefix of 16 to 28 bits.
    #[schema(example = "10.0.1.0/24")]
    pub cidr: String,
    /// Zone that it is in; the first if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// What is to be changed of a subnet.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubnetChangeBody {
    /// Instances get an address at which the host reaches them.
    pub map_public_ip: bool,
}

/// Makes a subnet
#[utoipa::path(post, path = "/v1/subnets", operation_id = "create_subnet", tag = "network",
    request_body = NewSubnetBody,
    responses((status = 201, description = "It is there", body = SubnetView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewSubnetBody>,
) -> Result<Response, Problem> {
    let new = NewSubnet {
        vpc: read_id(&body.vpc_id)?,
        cidr: network("cidr", &body.cidr)?,
        zone: body.zone,
        tags: body.tags,
    };
    let made = app.plane.create_subnet(&caller, new).await?;
    created::<Subnet>(&app.plane, &caller, &made.id)
}

/// Changes a subnet
#[utoipa::path(patch, path = "/v1/subnets/{subnet_id}", operation_id = "change_subnet", tag = "network",
    request_body = SubnetChangeBody,
    responses((status = 200, description = "As it is now", body = SubnetView)))]
pub async fn change(
    target: Target<Subnet>,
    Body(body): Body<SubnetChangeBody>,
) -> Result<Response, Problem> {
    target
        .plane
        .modify_subnet(&target.caller, &target.id, body.map_public_ip)
        .await?;
    target.now(StatusCode::OK)
}
