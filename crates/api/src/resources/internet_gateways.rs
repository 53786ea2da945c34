//! Ways from networks to the world.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use control::{Plane, Refusal};
use model::{InternetGateway, InternetGatewayId, Tags};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created, read_id};
use crate::extract::{Admin, Body};
use crate::listing::{Facts, Shown};
use crate::problem::{Code, Problem};

/// A way from a network to the world, for routes to name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InternetGatewayView {
    /// Its id.
    #[schema(example = "igw-0123456789abcdef0")]
    pub id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The network that it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpc_id: Option<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

impl Shown for InternetGateway {
    type View = InternetGatewayView;

    fn show(_: &Plane, found: &Found<Self>) -> InternetGatewayView {
        let gateway = &found.record;
        InternetGatewayView {
            id: gateway.id.to_string(),
            name: gateway.meta.name().map(str::to_owned),
            vpc_id: gateway.vpc.as_ref().map(ToString::to_string),
            created: gateway.meta.created.to_string(),
            tags: gateway.meta.tags.clone(),
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

impl Resource for InternetGateway {
    type Id = InternetGatewayId;

    const NAMES: Names = Names {
        id: "internet_gateway",
        path: "/v1/internet-gateways",
        one: "an internet gateway",
        all: "internet gateways",
        tag: "network",
    };
}

impl Removable for InternetGateway {
    const REMOVAL: &'static str = "Removes an internet gateway that is attached to nothing";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        let (caller, id) = (&target.caller, &target.id);
        target.plane.delete_internet_gateway(caller, id).await
    }
}

/// An internet gateway that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInternetGatewayBody {
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// A network that something is done for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OfVpcBody {
    /// The network.
    pub vpc_id: String,
}

/// Makes an internet gateway that is attached to nothing
#[utoipa::path(post, path = "/v1/internet-gateways", operation_id = "create_internet_gateway", tag = "network",
    request_body = NewInternetGatewayBody,
    responses((status = 201, description = "It is there", body = InternetGatewayView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewInternetGatewayBody>,
) -> Result<Response, Problem> {
    let made = app
        .plane
        .create_internet_gateway(&caller, body.tags)
        .await?;
    created::<InternetGateway>(&app.plane, &caller, &made.id)
}

/// Attaches an internet gateway to a network
#[utoipa::path(post, path = "/v1/internet-gateways/{internet_gateway_id}/attach", operation_id = "attach_internet_gateway", tag = "network",
    request_body = OfVpcBody,
    responses((status = 200, description = "As it is now", body = InternetGatewayView)))]
pub async fn attach(
    target: Target<InternetGateway>,
    Body(body): Body<OfVpcBody>,
) -> Result<Response, Problem> {
    let vpc = read_id(&body.vpc_id)?;
    target
        .plane
        .attach_internet_gateway(&target.caller, &target.id, &vpc)
        .await?;
    target.now(StatusCode::OK)
}

/// Detaches an internet gateway from its network
#[utoipa::path(post, path = "/v1/internet-gateways/{internet_gateway_id}/detach", operation_id = "detach_internet_gateway", tag = "network",
    responses((status = 200, description = "As it is now", body = InternetGatewayView)))]
pub async fn detach(target: Target<InternetGateway>) -> Result<Response, Problem> {
    let (plane, caller) = (&target.plane, &target.caller);
    let found = plane.own::<InternetGateway>(caller, target.id.as_str())?;
    let Some(vpc) = &found.record.vpc else {
        let detail = format!("{} is attached to no network", target.id);
        return Err(Problem::new(Code::WrongState, detail));
    };
    plane
        .detach_internet_gateway(caller, &target.id, vpc)
        .await?;
    target.now(StatusCode::OK)
}
