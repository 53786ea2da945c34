//! Route tables.

use ipnet::IpNet;
use model::{
    InternetGatewayId, Route, RouteTable, RouteTableAssociationId, RouteTableId, RouteTarget,
    SubnetId, Vpc, VpcId,
};

use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, many, none, one, owned};
use crate::error::Error;
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateRouteTable",
        understood: &[
            "VpcId",
            "ClientToken",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DescribeRouteTables",
        understood: &[
            "RouteTableId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DeleteRouteTable",
        understood: &["RouteTableId"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
    Handler {
        name: "CreateRoute",
        understood: ROUTE,
        filters: &[],
        run: |call| Box::pin(put_route(call, false)),
    },
    Handler {
        name: "ReplaceRoute",
        understood: ROUTE,
        filters: &[],
        run: |call| Box::pin(put_route(call, true)),
    },
    Handler {
        name: "DeleteRoute",
        understood: &[
            "RouteTableId",
            "DestinationCidrBlock",
            "DestinationIpv6CidrBlock",
        ],
        filters: &[],
        run: |call| Box::pin(delete_route(call)),
    },
    Handler {
        name: "AssociateRouteTable",
        understood: &["RouteTableId", "SubnetId"],
        filters: &[],
        run: |call| Box::pin(associate(call)),
    },
    Handler {
        name: "DisassociateRouteTable",
        understood: &["AssociationId"],
        filters: &[],
        run: |call| Box::pin(disassociate(call)),
    },
    Handler {
        name: "ReplaceRouteTableAssociation",
        understood: &["AssociationId", "RouteTableId"],
        filters: &[],
        run: |call| Box::pin(replace_association(call)),
    },
];

const ROUTE: &[&str] = &[
    "RouteTableId",
    "DestinationCidrBlock",
    "DestinationIpv6CidrBlock",
    "GatewayId",
];

const LISTING: Listing = Listing {
    ids: "RouteTableId",
    filters: &[
        "association.main",
        "association.route-table-association-id",
        "association.route-table-id",
        "association.subnet-id",
        "owner-id",
        "route-table-id",
        "route.destination-cidr-block",
        "route.destination-ipv6-cidr-block",
        "route.gateway-id",
        "route.origin",
        "route.state",
        "tag",
        "tag-key",
        "vpc-id",
    ],
    pages: Some((5, 100)),
    pages_of_ids: true,
};

/// A route as tables show it: where to, by what, whence.
struct Shown {
    destination: IpNet,
    gateway: String,
    origin: &'static str,
    state: &'static str,
}

/// All routes of a table: first that to its VPC.
fn routes(call: &Call<'_>, table: &RouteTable) -> Vec<Shown> {
    let vpc = call.plane().view().get::<Vpc>(&table.vpc);
    let local = vpc.map(|vpc| Shown {
        destination: IpNet::V4(vpc.record.cidr),
        gateway: "local".into(),
        origin: "CreateRouteTable",
        state: "active",
    });
    let others = table.routes.iter().map(|route| {
        let RouteTarget::InternetGateway(id) = &route.target;
        let gateway = call.plane().view().get::<model::InternetGateway>(id);
        let attached = gateway.is_some_and(|g| g.record.vpc.as_ref() == Some(&table.vpc));
        Shown {
            destination: route.destination,
            gateway: id.to_string(),
            origin: "CreateRoute",
            state: if attached { "active" } else { "blackhole" },
        }
    });
    local.into_iter().chain(others).collect()
}

/// Id and, unless it is that of the main table, subnet of each association.
fn associations(table: &RouteTable) -> Vec<(&RouteTableAssociationId, Option<&SubnetId>)> {
    let main = table.main.iter().map(|id| (id, None));
    let named = table.associations.iter().map(|a| (&a.id, Some(&a.subnet)));
    main.chain(named).collect()
}

fn field(call: &Call<'_>, table: &RouteTable, name: &str) -> Vec<String> {
    let associations = associations(table);
    match name {
        "association.main" => many(associations.iter().map(|(_, subnet)| subnet.is_none())),
        "association.route-table-association-id" => many(associations.iter().map(|(id, _)| id)),
        "association.route-table-id" => many(associations.iter().map(|_| &table.id)),
        "association.subnet-id" => many(associations.iter().filter_map(|(_, subnet)| *subnet)),
        "owner-id" => one(&table.meta.account),
        "route-table-id" => one(&table.id),
        "vpc-id" => one(&table.vpc),
        _ => {
            let routes = routes(call, table);
            let with = |what: &dyn Fn(&Shown) -> String| routes.iter().map(what).collect();
            match name {
                "route.destination-cidr-block" => many(
                    routes
                        .iter()
                        .map(|r| r.destination)
                        .filter(|d| matches!(d, IpNet::V4(_))),
                ),
                "route.destination-ipv6-cidr-block" => many(
                    routes
                        .iter()
                        .map(|r| r.destination)
                        .filter(|d| matches!(d, IpNet::V6(_))),
                ),
                "route.gateway-id" => with(&|r| r.gateway.clone()),
                "route.origin" => with(&|r| r.origin.to_owned()),
                "route.state" => with(&|r| r.state.to_owned()),
                _ => none(),
            }
        }
    }
}

fn show(call: &Call<'_>, element: Element, table: &RouteTable) -> Element {
    let routes = routes(call, table).into_iter().map(|route| {
        let destination = match route.destination {
            IpNet::V4(_) => "destinationCidrBlock",
            IpNet::V6(_) => "destinationIpv6CidrBlock",
        };
        Element::item()
            .text(destination, route.destination)
            .text("gatewayId", route.gateway)
            .text("state", route.state)
            .text("origin", route.origin)
    });
    let associations = associations(table).into_iter().map(|(id, subnet)| {
        Element::item()
            .text("routeTableAssociationId", id)
            .text("routeTableId", &table.id)
            .option("subnetId", subnet)
            .text("main", subnet.is_none())
            .child(Element::new("associationState").text("state", "associated"))
    });
    let element = element
        .text("routeTableId", &table.id)
        .text("vpcId", &table.vpc)
        .list("routeSet", routes)
        .list("associationSet", associations)
        .list("propagatingVgwSet", []);
    owned(element, &table.meta)
}

async fn create(call: &Call<'_>) -> Reply {
    let vpc: VpcId = call.parameters.require_id("VpcId")?;
    let tags = specified(&call.parameters, &["route-table"], "route-table")?;
    let token = call.token()?;
    call.dry_run()?;
    let table = call
        .plane()
        .create_route_table_once(&call.caller, &vpc, tags, token.as_ref())
        .await?;
    Ok(vec![show(call, Element::new("routeTable"), &table)])
}

async fn describe(call: &Call<'_>) -> Reply {
    call.describe::<RouteTable, RouteTableId>(
        &LISTING,
        "routeTableSet",
        |table, name| field(call, table, name),
        |table| show(call, Element::item(), table),
    )
}

async fn delete(call: &Call<'_>) -> Reply {
    let id: RouteTableId = call.parameters.require_id("RouteTableId")?;
    call.plane().find::<RouteTable>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane().delete_route_table(&call.caller, &id).await?;
    done()
}

/// Where to: one of the two parameters.
fn destination(call: &Call<'_>) -> Result<IpNet, Error> {
    let sent = &call.parameters;
    let (v4, v6) = (
        sent.text("DestinationCidrBlock"),
        sent.text("DestinationIpv6CidrBlock"),
    );
    let (name, text) = match (v4, v6) {
        (Some(text), None) => ("destinationCidrBlock", text),
        (None, Some(text)) => ("destinationIpv6CidrBlock", text),
        (None, None) => return Err(Error::missing("DestinationCidrBlock")),
        (Some(_), Some(_)) => {
            return Err(Error::combination(
                "The parameter DestinationCidrBlock cannot be used with the parameter \
                 DestinationIpv6CidrBlock",
            ));
        }
    };
    let net = text.parse().ok().filter(|net| {
        matches!(
            (net, v4.is_some()),
            (IpNet::V4(_), true) | (IpNet::V6(_), false)
        )
    });
    net.ok_or_else(|| Error::invalid(name, text, "This is not a valid CIDR block."))
}

async fn put_route(call: &Call<'_>, replace: bool) -> Reply {
    let id: RouteTableId = call.parameters.require_id("RouteTableId")?;
    let destination = destination(call)?;
    let gateway: InternetGatewayId = call.parameters.require_id("GatewayId")?;
    call.dry_run()?;
    let route = Route {
        destination,
        target: RouteTarget::InternetGateway(gateway),
    };
    call.plane()
        .put_route(&call.caller, &id, route, replace)
        .await?;
    done()
}

async fn delete_route(call: &Call<'_>) -> Reply {
    let id: RouteTableId = call.parameters.require_id("RouteTableId")?;
    let destination = destination(call)?;
    call.dry_run()?;
    call.plane()
        .delete_route(&call.caller, &id, destination)
        .await?;
    done()
}

async fn associate(call: &Call<'_>) -> Reply {
    let id: RouteTableId = call.parameters.require_id("RouteTableId")?;
    let subnet: SubnetId = call.parameters.require_id("SubnetId")?;
    call.dry_run()?;
    let association = call
        .plane()
        .associate_route_table(&call.caller, &id, &subnet)
        .await?;
    Ok(associated("associationId", &association))
}

async fn disassociate(call: &Call<'_>) -> Reply {
    let association = call.parameters.require_id("AssociationId")?;
    call.dry_run()?;
    call.plane()
        .disassociate_route_table(&call.caller, &association)
        .await?;
    done()
}

async fn replace_association(call: &Call<'_>) -> Reply {
    let association = call.parameters.require_id("AssociationId")?;
    let id: RouteTableId = call.parameters.require_id("RouteTableId")?;
    call.dry_run()?;
    let new = call
        .plane()
        .replace_route_table_association(&call.caller, &association, &id)
        .await?;
    Ok(associated("newAssociationId", &new))
}

fn associated(name: &'static str, id: &RouteTableAssociationId) -> Vec<Element> {
    vec![
        Element::leaf(name, id),
        Element::new("associationState").text("state", "associated"),
    ]
}
