//! Elastic addresses.

use control::Refusal;
use model::{AllocationId, AssociationId, ElasticAddress, Instance, InstanceId, InterfaceId};

use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, Selection, maybe, none, one, paged, tag_set};
use crate::error::Error;
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "AllocateAddress",
        understood: &[
            "Domain",
            "NetworkBorderGroup",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(allocate(call)),
    },
    Handler {
        name: "AssociateAddress",
        understood: &[
            "AllocationId",
            "InstanceId",
            "PublicIp",
            "AllowReassociation",
            "NetworkInterfaceId",
            "PrivateIpAddress",
        ],
        filters: &[],
        run: |call| Box::pin(associate(call)),
    },
    Handler {
        name: "DescribeAddresses",
        understood: &[
            "PublicIp.N",
            "AllocationId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DescribeAddressesAttribute",
        understood: &["AllocationId.N", "Attribute", "MaxResults", "NextToken"],
        filters: &[],
        run: |call| Box::pin(describe_attribute(call)),
    },
    Handler {
        name: "DisassociateAddress",
        understood: &["AssociationId", "PublicIp"],
        filters: &[],
        run: |call| Box::pin(disassociate(call)),
    },
    Handler {
        name: "ReleaseAddress",
        understood: &["AllocationId", "PublicIp", "NetworkBorderGroup"],
        filters: &[],
        run: |call| Box::pin(release(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "AllocationId",
    filters: &[
        "allocation-id",
        "association-id",
        "instance-id",
        "network-border-group",
        "network-interface-id",
        "network-interface-owner-id",
        "private-ip-address",
        "public-ip",
        "tag",
        "tag-key",
    ],
    pages: None,
    pages_of_ids: true,
};

const ATTRIBUTES: Listing = Listing {
    ids: "AllocationId",
    filters: &[],
    pages: Some((1, 1000)),
    pages_of_ids: true,
};

/// The private address of who has an address.
fn private_ip(call: &Call<'_>, address: &ElasticAddress) -> Option<std::net::Ipv4Addr> {
    let instance = &address.association.as_ref()?.instance;
    let found = call.plane().view().get::<Instance>(instance)?;
    found.record.interfaces.first().map(|card| card.private_ip)
}

fn field(call: &Call<'_>, address: &ElasticAddress, name: &str) -> Vec<String> {
    let association = address.association.as_ref();
    match name {
        "allocation-id" => one(&address.id),
        "association-id" => maybe(association.map(|is| &is.id)),
        "instance-id" => maybe(association.map(|is| &is.instance)),
        "network-border-group" => one(call.door.region()),
        "network-interface-id" => maybe(association.map(|is| &is.interface)),
        "network-interface-owner-id" => maybe(association.map(|_| &address.meta.account)),
        "private-ip-address" => maybe(private_ip(call, address)),
        "public-ip" => one(address.public_ip),
        _ => none(),
    }
}

fn show(call: &Call<'_>, address: &ElasticAddress) -> Element {
    let association = address.association.as_ref();
    let element = Element::item()
        .text("publicIp", address.public_ip)
        .text("allocationId", &address.id)
        .text("domain", "vpc")
        .text("publicIpv4Pool", "amazon")
        .text("networkBorderGroup", call.door.region())
        .option("associationId", association.map(|is| &is.id))
        .option("instanceId", association.map(|is| &is.instance))
        .option("networkInterfaceId", association.map(|is| &is.interface))
        .option(
            "networkInterfaceOwnerId",
            association.map(|_| &address.meta.account),
        )
        .option("privateIpAddress", private_ip(call, address));
    tag_set(element, &address.meta.tags)
}

async fn allocate(call: &Call<'_>) -> Reply {
    call.only("Domain", &["vpc"])?;
    call.only("NetworkBorderGroup", &[call.door.region()])?;
    let kind = "elastic-ip";
    let tags = specified(&call.parameters, &[kind], kind)?;
    call.dry_run()?;
    let address = call.plane().allocate_address(&call.caller, tags).await?;
    Ok(vec![
        Element::leaf("publicIp", address.public_ip),
        Element::leaf("allocationId", &address.id),
        Element::leaf("domain", "vpc"),
        Element::leaf("publicIpv4Pool", "amazon"),
        Element::leaf("networkBorderGroup", call.door.region()),
    ])
}

/// The address of a text.
fn by_ip(call: &Call<'_>, text: &str) -> Result<ElasticAddress, Error> {
    let unknown = || {
        let message = format!("Address '{text}' not found.");
        Error::new("InvalidAddress.NotFound", message)
    };
    let ip = text.parse().map_err(|_| {
        let asked = "It must be an IPv4 address.";
        Error::invalid("PublicIp", text, asked)
    })?;
    let found = call.plane().elastic_address(ip).ok_or_else(unknown)?;
    match found.record.meta.account == call.caller.account {
        true => Ok(found.record.clone()),
        false => Err(unknown()),
    }
}

/// The address that a call names by its id or itself.
fn named(call: &Call<'_>) -> Result<ElasticAddress, Error> {
    let id: Option<AllocationId> = call.parameters.id("AllocationId")?;
    match (id, call.parameters.text("PublicIp")) {
        (Some(_), Some(_)) => Err(Error::combination(
            "You may specify public IP or allocation id, but not both in the same call",
        )),
        (Some(id), None) => {
            let found = call.plane().find::<ElasticAddress>(&call.caller, &id)?;
            Ok(found.record.clone())
        }
        (None, Some(text)) => by_ip(call, text),
        (None, None) => Err(Error::new(
            "MissingParameter",
            "Either public IP or allocation id must be specified",
        )),
    }
}

/// The instance that a call names by its id or by its card's.
fn target(call: &Call<'_>) -> Result<InstanceId, Error> {
    let sent = &call.parameters;
    let instance: Option<InstanceId> = sent.id("InstanceId")?;
    let card: Option<InterfaceId> = sent.id("NetworkInterfaceId")?;
    let of_card = |card: &InterfaceId| {
        let mut all = call.plane().list::<Instance>(&call.caller).into_iter();
        let found = all.find(|i| i.record.interfaces.iter().any(|own| own.id == *card));
        let found = found.map(|found| found.record.id.clone());
        found.ok_or_else(|| Refusal::not_found(control::Kind::Interface, card))
    };
    let chosen = match (instance, card) {
        (Some(_), Some(_)) => {
            return Err(Error::combination(
                "Name an instance or a network interface, not both",
            ));
        }
        (Some(instance), None) => instance,
        (None, Some(card)) => of_card(&card)?,
        (None, None) => return Err(Error::missing("InstanceId")),
    };
    let found = call.plane().find::<Instance>(&call.caller, &chosen)?;
    if let Some(private) = sent.text("PrivateIpAddress") {
        let has = found.record.interfaces.first();
        if has.is_none_or(|card| card.private_ip.to_string() != private) {
            let asked = "It must be the instance's own.";
            return Err(Error::invalid("PrivateIpAddress", private, asked));
        }
    }
    Ok(chosen)
}

async fn associate(call: &Call<'_>) -> Reply {
    let address = named(call)?;
    let instance = target(call)?;
    let again = call.parameters.boolean("AllowReassociation")?;
    call.dry_run()?;
    let id = call
        .plane()
        .associate_address(&call.caller, &address.id, &instance, again.unwrap_or(true))
        .await?;
    Ok(vec![Element::leaf("associationId", id)])
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let ips = call.parameters.texts("PublicIp");
    let mut all = call.nouns::<ElasticAddress, AllocationId>("AllocationId")?;
    if !ips.is_empty() {
        let mut named = Vec::new();
        for text in &ips {
            named.push(by_ip(call, text)?.id);
        }
        all.retain(|address| named.contains(&address.id));
    }
    call.dry_run()?;
    let (all, _) = selection.cut(all, |address, name| field(call, address, name));
    let items = all.iter().map(|address| show(call, address));
    Ok(paged("addressesSet", items, None))
}

/// No address has a name in the world's DNS.
async fn describe_attribute(call: &Call<'_>) -> Reply {
    call.only("Attribute", &["domain-name"])?;
    let selection = Selection::parse(call, &ATTRIBUTES)?;
    let all = call.nouns::<ElasticAddress, AllocationId>("AllocationId")?;
    call.dry_run()?;
    let (page, token) = selection.cut(all, |_, _| none());
    let items = page.iter().map(|address| {
        Element::item()
            .text("publicIp", address.public_ip)
            .text("allocationId", &address.id)
    });
    Ok(paged("addressSet", items, token))
}

async fn disassociate(call: &Call<'_>) -> Reply {
    let id: Option<AssociationId> = call.parameters.id("AssociationId")?;
    let id = match (id, call.parameters.text("PublicIp")) {
        (Some(id), _) => id,
        (None, Some(text)) => match by_ip(call, text)?.association {
            Some(is) => is.id,
            None => return Err(Refusal::not_found(control::Kind::Association, text).into()),
        },
        (None, None) => return Err(Error::missing("AssociationId")),
    };
    call.dry_run()?;
    call.plane().disassociate_address(&call.caller, &id).await?;
    done()
}

async fn release(call: &Call<'_>) -> Reply {
    call.only("NetworkBorderGroup", &[call.door.region()])?;
    let address = named(call)?;
    call.dry_run()?;
    call.plane()
        .release_address(&call.caller, &address.id)
        .await?;
    done()
}
