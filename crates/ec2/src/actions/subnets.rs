//! Subnets.

use control::NewSubnet;
use model::{Subnet, SubnetId, VpcId};

use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, none, one, owned};
use crate::error::Error;
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateSubnet",
        understood: &[
            "VpcId",
            "CidrBlock",
            "AvailabilityZone",
            "AvailabilityZoneId",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DescribeSubnets",
        understood: &[
            "SubnetId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "ModifySubnetAttribute",
        understood: &["SubnetId", "MapPublicIpOnLaunch.Value"],
        filters: &[],
        run: |call| Box::pin(modify_attribute(call)),
    },
    Handler {
        name: "DeleteSubnet",
        understood: &["SubnetId"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "SubnetId",
    filters: &[
        "availability-zone",
        "availabilityZone",
        "availability-zone-id",
        "available-ip-address-count",
        "cidr",
        "cidr-block",
        "cidrBlock",
        "default-for-az",
        "defaultForAz",
        "ipv6-native",
        "map-public-ip-on-launch",
        "owner-id",
        "state",
        "subnet-arn",
        "subnet-id",
        "tag",
        "tag-key",
        "vpc-id",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

fn field(call: &Call<'_>, subnet: &Subnet, name: &str) -> Vec<String> {
    match name {
        "availability-zone" | "availabilityZone" => one(&subnet.zone),
        "availability-zone-id" => one(call.zone_id(&subnet.zone)),
        "available-ip-address-count" => one(call.plane().free_addresses(subnet)),
        "cidr" | "cidr-block" | "cidrBlock" => one(subnet.cidr),
        "default-for-az" | "defaultForAz" => one(subnet.is_default),
        "ipv6-native" => one(false),
        "map-public-ip-on-launch" => one(subnet.map_public_ip),
        "owner-id" => one(&subnet.meta.account),
        "state" => one("available"),
        "subnet-arn" => one(arn(call, subnet)),
        "subnet-id" => one(&subnet.id),
        "vpc-id" => one(&subnet.vpc),
        _ => none(),
    }
}

fn arn(call: &Call<'_>, subnet: &Subnet) -> String {
    call.arn(&subnet.meta.account, "subnet", subnet.id.as_str())
}

fn show(call: &Call<'_>, element: Element, subnet: &Subnet) -> Element {
    let element = element
        .text("subnetId", &subnet.id)
        .text("subnetArn", arn(call, subnet))
        .text("state", "available")
        .text("vpcId", &subnet.vpc)
        .text("cidrBlock", subnet.cidr)
        .list("ipv6CidrBlockAssociationSet", [])
        .text(
            "availableIpAddressCount",
            call.plane().free_addresses(subnet),
        )
        .text("availabilityZone", &subnet.zone)
        .text("availabilityZoneId", call.zone_id(&subnet.zone))
        .text("defaultForAz", subnet.is_default)
        .text("mapPublicIpOnLaunch", subnet.map_public_ip)
        .text("assignIpv6AddressOnCreation", false)
        .text("enableDns64", false)
        .text("ipv6Native", false)
        .child(
            Element::new("privateDnsNameOptionsOnLaunch")
                .text("hostnameType", "ip-name")
                .text("enableResourceNameDnsARecord", false)
                .text("enableResourceNameDnsAAAARecord", false),
        );
    owned(element, &subnet.meta)
}

async fn create(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let cidr = sent.require("CidrBlock")?;
    let cidr = cidr
        .parse()
        .map_err(|_| Error::invalid("cidrBlock", cidr, "This is not a valid CIDR block."))?;
    let vpc: VpcId = sent.require_id("VpcId")?;
    let zone = match sent.text("AvailabilityZone") {
        Some(zone) => Some(zone.to_owned()),
        None => sent
            .text("AvailabilityZoneId")
            .map(|id| call.zone_of_id(id))
            .transpose()?,
    };
    let tags = specified(sent, &["subnet"], "subnet")?;
    call.dry_run()?;
    let new = NewSubnet {
        vpc,
        cidr,
        zone,
        tags,
    };
    let subnet = call.plane().create_subnet(&call.caller, new).await?;
    Ok(vec![show(call, Element::new("subnet"), &subnet)])
}

async fn describe(call: &Call<'_>) -> Reply {
    call.describe::<Subnet, SubnetId>(
        &LISTING,
        "subnetSet",
        |subnet, name| field(call, subnet, name),
        |subnet| show(call, Element::item(), subnet),
    )
}

async fn modify_attribute(call: &Call<'_>) -> Reply {
    let id: SubnetId = call.parameters.require_id("SubnetId")?;
    let value = call.parameters.structure("MapPublicIpOnLaunch");
    let value = value.map(|value| value.boolean("Value")).transpose()?;
    let value = value
        .flatten()
        .ok_or_else(|| Error::missing("MapPublicIpOnLaunch.Value"))?;
    call.plane().modify_subnet(&call.caller, &id, value).await?;
    done()
}

async fn delete(call: &Call<'_>) -> Reply {
    let id: SubnetId = call.parameters.require_id("SubnetId")?;
    call.plane().find::<Subnet>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane().delete_subnet(&call.caller, &id).await?;
    done()
}
