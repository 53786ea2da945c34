//! Internet gateways.

use model::{InternetGateway, InternetGatewayId, VpcId};

use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, maybe, none, one, owned};
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateInternetGateway",
        understood: &[
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DescribeInternetGateways",
        understood: &[
            "InternetGatewayId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "AttachInternetGateway",
        understood: &["InternetGatewayId", "VpcId"],
        filters: &[],
        run: |call| Box::pin(attach(call)),
    },
    Handler {
        name: "DetachInternetGateway",
        understood: &["InternetGatewayId", "VpcId"],
        filters: &[],
        run: |call| Box::pin(detach(call)),
    },
    Handler {
        name: "DeleteInternetGateway",
        understood: &["InternetGatewayId"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "InternetGatewayId",
    filters: &[
        "attachment.state",
        "attachment.vpc-id",
        "internet-gateway-id",
        "owner-id",
        "tag",
        "tag-key",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

fn field(gateway: &InternetGateway, name: &str) -> Vec<String> {
    match name {
        "attachment.state" => maybe(gateway.vpc.as_ref().map(|_| "available")),
        "attachment.vpc-id" => maybe(gateway.vpc.as_ref()),
        "internet-gateway-id" => one(&gateway.id),
        "owner-id" => one(&gateway.meta.account),
        _ => none(),
    }
}

fn show(element: Element, gateway: &InternetGateway) -> Element {
    let attachments = gateway.vpc.iter().map(|vpc| {
        Element::item()
            .text("vpcId", vpc)
            .text("state", "available")
    });
    let element = element
        .text("internetGatewayId", &gateway.id)
        .list("attachmentSet", attachments);
    owned(element, &gateway.meta)
}

async fn create(call: &Call<'_>) -> Reply {
    let kind = "internet-gateway";
    let tags = specified(&call.parameters, &[kind], kind)?;
    call.dry_run()?;
    let gateway = call
        .plane()
        .create_internet_gateway(&call.caller, tags)
        .await?;
    Ok(vec![show(Element::new("internetGateway"), &gateway)])
}

async fn describe(call: &Call<'_>) -> Reply {
    call.describe::<InternetGateway, InternetGatewayId>(
        &LISTING,
        "internetGatewaySet",
        field,
        |gateway| show(Element::item(), gateway),
    )
}

fn both(call: &Call<'_>) -> Result<(InternetGatewayId, VpcId), crate::error::Error> {
    let both = (
        call.parameters.require_id("InternetGatewayId")?,
        call.parameters.require_id("VpcId")?,
    );
    call.dry_run()?;
    Ok(both)
}

async fn attach(call: &Call<'_>) -> Reply {
    let (gateway, vpc) = both(call)?;
    call.plane()
        .attach_internet_gateway(&call.caller, &gateway, &vpc)
        .await?;
    done()
}

async fn detach(call: &Call<'_>) -> Reply {
    let (gateway, vpc) = both(call)?;
    call.plane()
        .detach_internet_gateway(&call.caller, &gateway, &vpc)
        .await?;
    done()
}

async fn delete(call: &Call<'_>) -> Reply {
    let id: InternetGatewayId = call.parameters.require_id("InternetGatewayId")?;
    call.plane().find::<InternetGateway>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane()
        .delete_internet_gateway(&call.caller, &id)
        .await?;
    done()
}
