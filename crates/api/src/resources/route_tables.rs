//! Where packets of subnets go.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use control::{Plane, Refusal};
use model::{Route, RouteTable, RouteTableId, RouteTarget, Tags};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created, read_id};
use crate::extract::{Admin, Body, IdempotencyKey, InQuery};
use crate::listing::{Facts, Shown};
use crate::problem::{Code, Problem};

/// Where packets of subnets go; those to the network's own addresses stay in
/// it by every table.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteTableView {
    /// Its id.
    #[schema(example = "rtb-0123456789abcdef0")]
    pub id: String,
    /// Its tag `Name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its network.
    pub vpc_id: String,
    /// Subnets that name no table have this one.
    pub is_main: bool,
    /// Its routes.
    pub routes: Vec<RouteView>,
    /// Subnets that name it.
    pub subnet_ids: Vec<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

/// A route.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteView {
    /// To where.
    #[schema(example = "0.0.0.0/0")]
    pub destination: String,
    /// By which internet gateway.
    pub gateway_id: String,
}

impl Shown for RouteTable {
    type View = RouteTableView;

    fn show(_: &Plane, found: &Found<Self>) -> RouteTableView {
        let table = &found.record;
        let routes = table.routes.iter().map(|route| {
            let RouteTarget::InternetGateway(gateway) = &route.target;
            RouteView {
                destination: route.destination.to_string(),
                gateway_id: gateway.to_string(),
            }
        });
        let subnets = table.associations.iter();
        RouteTableView {
            id: table.id.to_string(),
            name: table.meta.name().map(str::to_owned),
            vpc_id: table.vpc.to_string(),
            is_main: table.main.is_some(),
            routes: routes.collect(),
            subnet_ids: subnets.map(|a| a.subnet.to_string()).collect(),
            created: table.meta.created.to_string(),
            tags: table.meta.tags.clone(),
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

impl Resource for RouteTable {
    type Id = RouteTableId;

    const NAMES: Names = Names {
        id: "route_table",
        path: "/v1/route-tables",
        one: "a route table",
        all: "route tables",
        tag: "network",
    };
}

impl Removable for RouteTable {
    const REMOVAL: &'static str = "Removes a route table that no subnet has";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        let (caller, id) = (&target.caller, &target.id);
        target.plane.delete_route_table(caller, id).await
    }
}

/// A route table that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRouteTableBody {
    /// Its network.
    pub vpc_id: String,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// A route that is to be written.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteBody {
    /// To where.
    #[schema(example = "0.0.0.0/0")]
    pub destination: String,
    /// By which internet gateway, which is attached to the table's network.
    pub gateway_id: String,
}

/// Which route.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RouteQuery {
    /// To where
    pub destination: String,
}

/// A subnet that something is done for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OfSubnetBody {
    /// The subnet.
    pub subnet_id: String,
}

fn destination(text: &str) -> Result<ipnet::IpNet, Problem> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        let detail = format!("destination: {shown:?} is no network");
        Problem::new(Code::InvalidValue, detail).next("write it as 0.0.0.0/0")
    })
}

/// Makes a route table that no subnet has
#[utoipa::path(post, path = "/v1/route-tables", operation_id = "create_route_table", tag = "network",
    request_body = NewRouteTableBody,
    responses((status = 201, description = "It is there", body = RouteTableView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    key: IdempotencyKey,
    Body(body): Body<NewRouteTableBody>,
) -> Result<Response, Problem> {
    let (token, vpc) = (key.token(&body)?, read_id(&body.vpc_id)?);
    let made = app
        .plane
        .create_route_table_once(&caller, &vpc, body.tags, token.as_ref())
        .await?;
    created::<RouteTable>(&app.plane, &caller, &made.id)
}

/// Writes a route, in place of one with the same destination
#[utoipa::path(put, path = "/v1/route-tables/{route_table_id}/routes", operation_id = "put_route", tag = "network",
    request_body = RouteBody,
    responses((status = 200, description = "The table as it is now", body = RouteTableView)))]
pub async fn put_route(
    target: Target<RouteTable>,
    Body(body): Body<RouteBody>,
) -> Result<Response, Problem> {
    let (plane, caller) = (&target.plane, &target.caller);
    let route = Route {
        destination: destination(&body.destination)?,
        target: RouteTarget::InternetGateway(read_id(&body.gateway_id)?),
    };
    let table = plane.own::<RouteTable>(caller, target.id.as_str())?;
    let mut routes = table.record.routes.iter();
    let replace = routes.any(|other| other.destination == route.destination);
    plane.put_route(caller, &target.id, route, replace).await?;
    target.now(StatusCode::OK)
}

/// Removes a route
#[utoipa::path(delete, path = "/v1/route-tables/{route_table_id}/routes", operation_id = "delete_route", tag = "network",
    params(RouteQuery),
    responses((status = 204, description = "It is gone")))]
pub async fn delete_route(
    target: Target<RouteTable>,
    InQuery(query): InQuery<RouteQuery>,
) -> Result<StatusCode, Problem> {
    let to = destination(&query.destination)?;
    let (plane, caller) = (&target.plane, &target.caller);
    plane.delete_route(caller, &target.id, to).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a subnet that names no table name this one
#[utoipa::path(post, path = "/v1/route-tables/{route_table_id}/associate", operation_id = "associate_route_table", tag = "network",
    request_body = OfSubnetBody,
    responses((status = 200, description = "As it is now", body = RouteTableView)))]
pub async fn associate(
    target: Target<RouteTable>,
    Body(body): Body<OfSubnetBody>,
) -> Result<Response, Problem> {
    let subnet = read_id(&body.subnet_id)?;
    let (plane, caller) = (&target.plane, &target.caller);
    plane
        .associate_route_table(caller, &target.id, &subnet)
        .await?;
    target.now(StatusCode::OK)
}

/// Has a subnet no longer name this table: it has its network's main one
#[utoipa::path(post, path = "/v1/route-tables/{route_table_id}/disassociate", operation_id = "disassociate_route_table", tag = "network",
    request_body = OfSubnetBody,
    responses((status = 200, description = "As it is now", body = RouteTableView)))]
pub async fn disassociate(
    target: Target<RouteTable>,
    Body(body): Body<OfSubnetBody>,
) -> Result<Response, Problem> {
    let (plane, caller) = (&target.plane, &target.caller);
    let table = plane.own::<RouteTable>(caller, target.id.as_str())?;
    let mut all = table.record.associations.iter();
    let found = all.find(|association| association.subnet.as_str() == body.subnet_id);
    let Some(association) = found else {
        let detail = format!("{} does not name {}", body.subnet_id, target.id);
        return Err(Problem::new(Code::NotFound, detail)
            .next("`subnet_ids` of a table are those that name it"));
    };
    plane
        .disassociate_route_table(caller, &association.id)
        .await?;
    target.now(StatusCode::OK)
}

/// Makes this table its network's main one, for subnets that name none
#[utoipa::path(post, path = "/v1/route-tables/{route_table_id}/make-main", operation_id = "make_main_route_table", tag = "network",
    responses((status = 200, description = "As it is now", body = RouteTableView)))]
pub async fn make_main(target: Target<RouteTable>) -> Result<Response, Problem> {
    let (plane, caller) = (&target.plane, &target.caller);
    let table = plane.own::<RouteTable>(caller, target.id.as_str())?;
    let all = plane.list::<RouteTable>(caller).into_iter();
    let mains = all.filter(|other| other.record.vpc == table.record.vpc);
    let main = mains.filter_map(|other| other.record.main.clone()).next();
    let main = main.ok_or_else(|| {
        let detail = format!("{} has no main table", table.record.vpc);
        Problem::new(Code::NotFound, detail)
    })?;
    plane
        .replace_route_table_association(caller, &main, &target.id)
        .await?;
    target.now(StatusCode::OK)
}
