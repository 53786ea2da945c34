//! Network interfaces, which come and go with their instances, and access
//! lists, which let everything through.

use model::{
    Instance, InstanceState, Interface, InterfaceId, SecurityGroup, Subnet, Tags, Vpc, mac_of,
};

use super::{Handler, Reply};
use crate::call::Call;
use crate::describe::{
    Described, Listing, Selection, many, maybe, none, one, owned, paged, tag_set,
};
use crate::error::Error;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "DescribeNetworkInterfaces",
        understood: &[
            "NetworkInterfaceId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DescribeNetworkAcls",
        understood: &[
            "NetworkAclId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: ACL_LISTING.filters,
        run: |call| Box::pin(describe_acls(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "NetworkInterfaceId",
    filters: &[
        "addresses.association.owner-id",
        "addresses.association.public-ip",
        "addresses.primary",
        "addresses.private-ip-address",
        "association.ip-owner-id",
        "association.public-ip",
        "attachment.attachment-id",
        "attachment.attach-time",
        "attachment.delete-on-termination",
        "attachment.device-index",
        "attachment.instance-id",
        "attachment.instance-owner-id",
        "attachment.status",
        "availability-zone",
        "availability-zone-id",
        "description",
        "group-id",
        "group-name",
        "interface-type",
        "ipv6-addresses.ipv6-address",
        "mac-address",
        "network-interface-id",
        "owner-id",
        "private-dns-name",
        "private-ip-address",
        "requester-managed",
        "source-dest-check",
        "status",
        "subnet-id",
        "tag",
        "tag-key",
        "vpc-id",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

const ACL_LISTING: Listing = Listing {
    ids: "NetworkAclId",
    filters: &[
        "association.association-id",
        "association.network-acl-id",
        "association.subnet-id",
        "default",
        "network-acl-id",
        "owner-id",
        "tag",
        "tag-key",
        "vpc-id",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

/// An interface, its instance and its place there.
pub struct Card {
    /// The instance.
    pub instance: Instance,
    /// The interface.
    pub interface: Interface,
    /// Its number.
    pub index: usize,
}

impl Described for Card {
    fn key(&self) -> String {
        self.interface.id.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.interface.tags)
    }
}

/// A MAC as EC2 writes it.
pub fn mac(interface: &Interface) -> String {
    let bytes = mac_of(interface.private_ip).map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}

/// `groupSet` of an interface or an instance.
pub fn group_set(call: &Call<'_>, interface: &Interface) -> Vec<Element> {
    let items = interface.groups.iter().map(|id| {
        let group = call.plane().view().get::<SecurityGroup>(id);
        Element::item()
            .text("groupId", id)
            .option("groupName", group.map(|group| group.record.name.clone()))
    });
    items.collect()
}

fn group_names(call: &Call<'_>, interface: &Interface) -> Vec<String> {
    let groups = interface.groups.iter();
    groups
        .filter_map(|id| call.plane().view().get::<SecurityGroup>(id))
        .map(|group| group.record.name.clone())
        .collect()
}

fn zone(call: &Call<'_>, interface: &Interface) -> Option<String> {
    let subnet = call.plane().view().get::<Subnet>(&interface.subnet)?;
    Some(subnet.record.zone.clone())
}

/// When an instance got its cards: when it was made.
fn attached(instance: &Instance) -> String {
    instance.meta.created.to_string()
}

fn field(call: &Call<'_>, card: &Card, name: &str) -> Vec<String> {
    let interface = &card.interface;
    match name {
        "addresses.association.owner-id" | "association.ip-owner-id" => {
            maybe(interface.public_ip.map(|_| &card.instance.meta.account))
        }
        "addresses.association.public-ip" | "association.public-ip" => maybe(interface.public_ip),
        "addresses.primary" | "attachment.delete-on-termination" => one(true),
        "addresses.private-ip-address" | "private-ip-address" => one(interface.private_ip),
        "attachment.attachment-id" => one(&interface.attachment),
        "attachment.attach-time" => one(attached(&card.instance)),
        "attachment.device-index" => one(card.index),
        "attachment.instance-id" => one(&card.instance.id),
        "attachment.instance-owner-id" | "owner-id" => one(&card.instance.meta.account),
        "attachment.status" => one("attached"),
        "availability-zone" => maybe(zone(call, interface)),
        "availability-zone-id" => maybe(zone(call, interface).map(|zone| call.zone_id(&zone))),
        "description" => one(&interface.description),
        "group-id" => many(&interface.groups),
        "group-name" => group_names(call, interface),
        "interface-type" => one("interface"),
        "ipv6-addresses.ipv6-address" => many(&interface.ipv6),
        "mac-address" => one(mac(interface)),
        "network-interface-id" => one(&interface.id),
        "private-dns-name" => one(call.private_name(&card.instance)),
        "requester-managed" => one(false),
        "source-dest-check" => one(interface.source_dest_check),
        "status" => one("in-use"),
        "subnet-id" => one(&interface.subnet),
        "vpc-id" => one(&interface.vpc),
        _ => none(),
    }
}

/// The public address of an interface, as elements have it.
pub fn association(instance: &Instance, interface: &Interface) -> Option<Element> {
    let address = interface.public_ip?;
    Some(
        Element::new("association")
            .text("ipOwnerId", &instance.meta.account)
            .text("publicDnsName", address)
            .text("publicIp", address),
    )
}

fn show(call: &Call<'_>, card: &Card) -> Element {
    let (instance, interface) = (&card.instance, &card.interface);
    let name = call.private_name(instance);
    let zone = zone(call, interface);
    let address = Element::item()
        .text("privateIpAddress", interface.private_ip)
        .text("privateDnsName", &name)
        .text("primary", true)
        .extend(association(instance, interface));
    let ipv6 = interface.ipv6.iter();
    let element = Element::item()
        .text("networkInterfaceId", &interface.id)
        .text("subnetId", &interface.subnet)
        .text("vpcId", &interface.vpc)
        .option("availabilityZone", zone.as_deref())
        .option(
            "availabilityZoneId",
            zone.as_deref().map(|zone| call.zone_id(zone)),
        )
        .text("description", &interface.description)
        .text("ownerId", &instance.meta.account)
        .text("requesterManaged", false)
        .text("status", "in-use")
        .text("macAddress", mac(interface))
        .text("privateIpAddress", interface.private_ip)
        .text("privateDnsName", &name)
        .text("sourceDestCheck", interface.source_dest_check)
        .text("interfaceType", "interface")
        .list("groupSet", group_set(call, interface))
        .child(
            Element::new("attachment")
                .text("attachmentId", &interface.attachment)
                .text("instanceId", &instance.id)
                .text("instanceOwnerId", &instance.meta.account)
                .text("deviceIndex", card.index)
                .text("networkCardIndex", 0)
                .text("status", "attached")
                .text("attachTime", attached(instance))
                .text("deleteOnTermination", true),
        )
        .extend(association(instance, interface))
        .list("privateIpAddressesSet", [address])
        .list(
            "ipv6AddressesSet",
            ipv6.map(|ip| Element::item().text("ipv6Address", ip)),
        );
    tag_set(element, &interface.tags)
}

/// All interfaces that the caller may see.
fn cards(call: &Call<'_>) -> Vec<Card> {
    let mut cards = Vec::new();
    for found in call.plane().list::<Instance>(&call.caller) {
        if found.record.state == InstanceState::Terminated {
            continue;
        }
        for (index, interface) in found.record.interfaces.iter().enumerate() {
            cards.push(Card {
                instance: found.record.clone(),
                interface: interface.clone(),
                index,
            });
        }
    }
    cards.sort_by_key(Described::key);
    cards
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let ids: Vec<InterfaceId> = call.parameters.ids("NetworkInterfaceId")?;
    let mut cards = cards(call);
    for id in &ids {
        if !cards.iter().any(|card| card.interface.id == *id) {
            return Err(control::Refusal::not_found(control::Kind::Interface, id).into());
        }
    }
    cards.retain(|card| ids.is_empty() || ids.contains(&card.interface.id));
    call.dry_run()?;
    let (page, token) = selection.cut(cards, |card, name| field(call, card, name));
    let items = page.iter().map(|card| show(call, card));
    Ok(paged("networkInterfaceSet", items, token))
}

/// The access list of a VPC and the subnets that it is of: all.
struct Acl {
    vpc: Vpc,
    subnets: Vec<Subnet>,
    tags: Tags,
}

impl Described for Acl {
    fn key(&self) -> String {
        self.vpc.acl.to_string()
    }

    fn tags(&self) -> Option<&Tags> {
        Some(&self.tags)
    }
}

fn acl_association(subnet: &Subnet) -> String {
    subnet.id.as_str().replacen("subnet-", "aclassoc-", 1)
}

fn acl_field(acl: &Acl, name: &str) -> Vec<String> {
    match name {
        "association.association-id" => many(acl.subnets.iter().map(acl_association)),
        "association.network-acl-id" => many(acl.subnets.iter().map(|_| &acl.vpc.acl)),
        "association.subnet-id" => many(acl.subnets.iter().map(|subnet| &subnet.id)),
        "default" => one(true),
        "network-acl-id" => one(&acl.vpc.acl),
        "owner-id" => one(&acl.vpc.meta.account),
        "vpc-id" => one(&acl.vpc.id),
        _ => none(),
    }
}

fn show_acl(acl: &Acl) -> Element {
    // Rule 100 lets everything through; 32767 is what EC2 ends each list with.
    let entries =
        [(true, 100), (true, 32767), (false, 100), (false, 32767)].map(|(egress, number)| {
            Element::item()
                .text("ruleNumber", number)
                .text("protocol", "-1")
                .text("ruleAction", if number == 100 { "allow" } else { "deny" })
                .text("egress", egress)
                .text("cidrBlock", "0.0.0.0/0")
        });
    let subnets = acl.subnets.iter().map(|subnet| {
        Element::item()
            .text("networkAclAssociationId", acl_association(subnet))
            .text("networkAclId", &acl.vpc.acl)
            .text("subnetId", &subnet.id)
    });
    let element = Element::item()
        .text("networkAclId", &acl.vpc.acl)
        .text("vpcId", &acl.vpc.id)
        .text("default", true)
        .list("entrySet", entries)
        .list("associationSet", subnets);
    owned(
        element,
        &model::Meta {
            tags: Tags::new(),
            ..acl.vpc.meta.clone()
        },
    )
}

async fn describe_acls(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &ACL_LISTING)?;
    let ids: Vec<model::NetworkAclId> = call.parameters.ids("NetworkAclId")?;
    let subnets = call.plane().list::<Subnet>(&call.caller);
    let mut acls: Vec<Acl> = call
        .plane()
        .list::<Vpc>(&call.caller)
        .iter()
        .map(|vpc| Acl {
            vpc: vpc.record.clone(),
            subnets: subnets
                .iter()
                .filter(|subnet| subnet.record.vpc == vpc.record.id)
                .map(|subnet| subnet.record.clone())
                .collect(),
            tags: Tags::new(),
        })
        .collect();
    for id in &ids {
        if !acls.iter().any(|acl| acl.vpc.acl == *id) {
            return Err(Error::new(
                "InvalidNetworkAclID.NotFound",
                format!("The networkAcl ID '{id}' does not exist"),
            ));
        }
    }
    acls.retain(|acl| ids.is_empty() || ids.contains(&acl.vpc.acl));
    acls.sort_by_key(Described::key);
    call.dry_run()?;
    let (page, token) = selection.cut(acls, acl_field);
    Ok(paged("networkAclSet", page.iter().map(show_acl), token))
}
