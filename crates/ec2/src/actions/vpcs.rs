//! VPCs.

use control::NewVpc;
use model::{Vpc, VpcId};

use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, none, one, owned};
use crate::error::Error;
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateVpc",
        understood: &[
            "CidrBlock",
            "InstanceTenancy",
            "AmazonProvidedIpv6CidrBlock",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DescribeVpcs",
        understood: &[
            "VpcId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DescribeVpcAttribute",
        understood: &["VpcId", "Attribute"],
        filters: &[],
        run: |call| Box::pin(describe_attribute(call)),
    },
    Handler {
        name: "ModifyVpcAttribute",
        understood: &[
            "VpcId",
            "EnableDnsSupport.Value",
            "EnableDnsHostnames.Value",
        ],
        filters: &[],
        run: |call| Box::pin(modify_attribute(call)),
    },
    Handler {
        name: "DeleteVpc",
        understood: &["VpcId"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
    Handler {
        name: "CreateDefaultVpc",
        understood: &[],
        filters: &[],
        run: |call| Box::pin(create_default(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "VpcId",
    filters: &[
        "cidr",
        "cidr-block-association.association-id",
        "cidr-block-association.cidr-block",
        "cidr-block-association.state",
        "dhcp-options-id",
        "is-default",
        "isDefault",
        "owner-id",
        "state",
        "tag",
        "tag-key",
        "vpc-id",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

fn field(vpc: &Vpc, name: &str) -> Vec<String> {
    match name {
        "cidr" | "cidr-block-association.cidr-block" => one(vpc.cidr),
        "cidr-block-association.association-id" => one(association(vpc)),
        "cidr-block-association.state" => one("associated"),
        "dhcp-options-id" => one(&vpc.dhcp_options),
        "is-default" | "isDefault" => one(vpc.is_default),
        "owner-id" => one(&vpc.meta.account),
        "state" => one("available"),
        "vpc-id" => one(&vpc.id),
        _ => none(),
    }
}

/// Every VPC has its one block for good; its association is named after it.
fn association(vpc: &Vpc) -> String {
    vpc.id.as_str().replacen("vpc-", "vpc-cidr-assoc-", 1)
}

fn show(element: Element, vpc: &Vpc) -> Element {
    let block = |set, item: Element, state| {
        Element::new(set).child(item.child(Element::new(state).text("state", "associated")))
    };
    let element = element
        .text("vpcId", &vpc.id)
        .text("state", "available")
        .text("cidrBlock", vpc.cidr)
        .child(block(
            "cidrBlockAssociationSet",
            Element::item()
                .text("cidrBlock", vpc.cidr)
                .text("associationId", association(vpc)),
            "cidrBlockState",
        ))
        .text("dhcpOptionsId", &vpc.dhcp_options)
        .text("instanceTenancy", "default")
        .text("isDefault", vpc.is_default);
    owned(element, &vpc.meta)
}

async fn create(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let cidr = sent.require("CidrBlock")?;
    let cidr = cidr.parse().map_err(|_| {
        Error::new(
            "InvalidParameterValue",
            format!(
                "Value ({cidr}) for parameter cidrBlock is invalid. This is not a valid CIDR block."
            ),
        )
    })?;
    call.only("InstanceTenancy", &["default"])?;
    call.only("AmazonProvidedIpv6CidrBlock", &["false"])?;
    let tags = specified(sent, &["vpc"], "vpc")?;
    call.dry_run()?;
    let vpc = call
        .plane()
        .create_vpc(&call.caller, NewVpc { cidr, tags })
        .await?;
    Ok(vec![show(Element::new("vpc"), &vpc)])
}

async fn create_default(call: &Call<'_>) -> Reply {
    call.dry_run()?;
    let vpc = call.plane().create_default_vpc(&call.caller).await?;
    Ok(vec![show(Element::new("vpc"), &vpc)])
}

async fn describe(call: &Call<'_>) -> Reply {
    call.describe::<Vpc, VpcId>(&LISTING, "vpcSet", field, |vpc| show(Element::item(), vpc))
}

async fn describe_attribute(call: &Call<'_>) -> Reply {
    let id: VpcId = call.parameters.require_id("VpcId")?;
    let attribute = call.parameters.require("Attribute")?;
    let found = call.plane().find::<Vpc>(&call.caller, &id)?;
    let vpc = &found.record;
    let (name, value) = match attribute {
        "enableDnsSupport" => ("enableDnsSupport", vpc.dns_support),
        "enableDnsHostnames" => ("enableDnsHostnames", vpc.dns_hostnames),
        "enableNetworkAddressUsageMetrics" => ("enableNetworkAddressUsageMetrics", false),
        other => {
            return Err(Error::invalid(
                "Attribute",
                other,
                "It is enableDnsSupport, enableDnsHostnames or enableNetworkAddressUsageMetrics.",
            ));
        }
    };
    call.dry_run()?;
    Ok(vec![
        Element::leaf("vpcId", &vpc.id),
        Element::new(name).text("value", value),
    ])
}

async fn modify_attribute(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let id: VpcId = sent.require_id("VpcId")?;
    let value = |name: &str| match sent.structure(name) {
        Some(structure) => structure.boolean("Value"),
        None => Ok(None),
    };
    let (support, hostnames) = (value("EnableDnsSupport")?, value("EnableDnsHostnames")?);
    if support.is_some() && hostnames.is_some() {
        return Err(Error::combination(
            "Fields for multiple attribute types specified: enableDnsSupport, enableDnsHostnames",
        ));
    }
    if support.or(hostnames).is_none() {
        return Err(Error::missing("EnableDnsSupport"));
    }
    call.plane()
        .modify_vpc(&call.caller, &id, support, hostnames)
        .await?;
    done()
}

async fn delete(call: &Call<'_>) -> Reply {
    let id: VpcId = call.parameters.require_id("VpcId")?;
    call.plane().find::<Vpc>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane().delete_vpc(&call.caller, &id).await?;
    done()
}
