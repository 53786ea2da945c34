//! Security groups.

use control::{Kind, NewSecurityGroup, Refusal};
use model::{
    Direction, Peer, Protocol, SecurityGroup, SecurityGroupId, SecurityGroupRule,
    SecurityGroupRuleId, VpcId,
};

use super::{Handler, Reply};
use crate::call::Call;
use crate::describe::{Described, Listing, Selection, none, one, owned, paged, tag_set};
use crate::error::Error;
use crate::permissions::{
    AUTHORIZE_EGRESS, AUTHORIZE_INGRESS, REVOKE_EGRESS, REVOKE_INGRESS, rules,
};
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateSecurityGroup",
        understood: &[
            "GroupName",
            "GroupDescription",
            "VpcId",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DescribeSecurityGroups",
        understood: &[
            "GroupId.N",
            "GroupName.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DescribeSecurityGroupRules",
        understood: &[
            "SecurityGroupRuleId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: RULE_LISTING.filters,
        run: |call| Box::pin(describe_rules(call)),
    },
    Handler {
        name: "DeleteSecurityGroup",
        understood: &["GroupId", "GroupName"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
    Handler {
        name: "AuthorizeSecurityGroupIngress",
        understood: AUTHORIZE_INGRESS,
        filters: &[],
        run: |call| Box::pin(authorize(call, Direction::Ingress)),
    },
    Handler {
        name: "AuthorizeSecurityGroupEgress",
        understood: AUTHORIZE_EGRESS,
        filters: &[],
        run: |call| Box::pin(authorize(call, Direction::Egress)),
    },
    Handler {
        name: "RevokeSecurityGroupIngress",
        understood: REVOKE_INGRESS,
        filters: &[],
        run: |call| Box::pin(revoke(call, Direction::Ingress)),
    },
    Handler {
        name: "RevokeSecurityGroupEgress",
        understood: REVOKE_EGRESS,
        filters: &[],
        run: |call| Box::pin(revoke(call, Direction::Egress)),
    },
];

const LISTING: Listing = Listing {
    ids: "GroupId",
    filters: &[
        "description",
        "egress.ip-permission.cidr",
        "egress.ip-permission.from-port",
        "egress.ip-permission.group-id",
        "egress.ip-permission.ipv6-cidr",
        "egress.ip-permission.protocol",
        "egress.ip-permission.to-port",
        "group-id",
        "group-name",
        "ip-permission.cidr",
        "ip-permission.from-port",
        "ip-permission.group-id",
        "ip-permission.ipv6-cidr",
        "ip-permission.protocol",
        "ip-permission.to-port",
        "owner-id",
        "tag",
        "tag-key",
        "vpc-id",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

const RULE_LISTING: Listing = Listing {
    ids: "SecurityGroupRuleId",
    filters: &["group-id", "security-group-rule-id", "tag", "tag-key"],
    pages: Some((5, 1000)),
    pages_of_ids: true,
};

fn field(group: &SecurityGroup, name: &str) -> Vec<String> {
    match name {
        "description" => one(&group.description),
        "group-id" => one(&group.id),
        "group-name" => one(&group.name),
        "owner-id" => one(&group.meta.account),
        "vpc-id" => one(&group.vpc),
        _ => {
            let (direction, name) = match name.strip_prefix("egress.") {
                Some(name) => (Direction::Egress, name),
                None => (Direction::Ingress, name),
            };
            let rules = group.rules.iter().filter(|r| r.direction == direction);
            rules.flat_map(|rule| rule_field(rule, name)).collect()
        }
    }
}

fn rule_field(rule: &SecurityGroupRule, name: &str) -> Vec<String> {
    match (name, &rule.peer) {
        ("ip-permission.cidr", Peer::Ipv4(net)) => one(net),
        ("ip-permission.ipv6-cidr", Peer::Ipv6(net)) => one(net),
        ("ip-permission.group-id", Peer::Group(id)) => one(id),
        ("ip-permission.from-port", _) => one(rule.ports.map_or(-1, |ports| ports.from)),
        ("ip-permission.to-port", _) => one(rule.ports.map_or(-1, |ports| ports.to)),
        ("ip-permission.protocol", _) => one(rule.protocol.name()),
        _ => none(),
    }
}

/// Rules of one protocol and range of ports are one permission, as EC2 shows
/// them.
fn permissions(group: &SecurityGroup, direction: Direction) -> Vec<Element> {
    let of = |rule: &&SecurityGroupRule| rule.direction == direction;
    let mut kinds: Vec<(Protocol, Option<model::Ports>)> = Vec::new();
    for rule in group.rules.iter().filter(of) {
        if !kinds.contains(&(rule.protocol, rule.ports)) {
            kinds.push((rule.protocol, rule.ports));
        }
    }
    let permission = |(protocol, ports): (Protocol, Option<model::Ports>)| {
        let rules: Vec<_> = group
            .rules
            .iter()
            .filter(of)
            .filter(|rule| rule.protocol == protocol && rule.ports == ports)
            .collect();
        let each = |show: &dyn Fn(&Peer) -> Option<Element>| -> Vec<Element> {
            let shown = rules.iter().filter_map(|rule| {
                let text = Some(&rule.description).filter(|text| !text.is_empty());
                Some(show(&rule.peer)?.option("description", text))
            });
            shown.collect()
        };
        Element::item()
            .text("ipProtocol", protocol.name())
            .option("fromPort", ports.map(|ports| ports.from))
            .option("toPort", ports.map(|ports| ports.to))
            .list(
                "groups",
                each(&|peer| match peer {
                    Peer::Group(id) => Some(
                        Element::item()
                            .text("userId", &group.meta.account)
                            .text("groupId", id),
                    ),
                    _ => None,
                }),
            )
            .list(
                "ipRanges",
                each(&|peer| match peer {
                    Peer::Ipv4(net) => Some(Element::item().text("cidrIp", net)),
                    _ => None,
                }),
            )
            .list(
                "ipv6Ranges",
                each(&|peer| match peer {
                    Peer::Ipv6(net) => Some(Element::item().text("cidrIpv6", net)),
                    _ => None,
                }),
            )
            .list("prefixListIds", [])
    };
    kinds.into_iter().map(permission).collect()
}

fn arn(call: &Call<'_>, group: &SecurityGroup) -> String {
    call.arn(&group.meta.account, "security-group", group.id.as_str())
}

fn show(call: &Call<'_>, group: &SecurityGroup) -> Element {
    let element = Element::item()
        .text("groupId", &group.id)
        .text("groupName", &group.name)
        .text("groupDescription", &group.description)
        .text("vpcId", &group.vpc)
        .text("securityGroupArn", arn(call, group))
        .list("ipPermissions", permissions(group, Direction::Ingress))
        .list("ipPermissionsEgress", permissions(group, Direction::Egress));
    owned(element, &group.meta)
}

fn show_rule(call: &Call<'_>, group: &SecurityGroup, rule: &SecurityGroupRule) -> Element {
    let owner = &group.meta.account;
    let text = Some(&rule.description).filter(|text| !text.is_empty());
    let element = Element::item()
        .text("securityGroupRuleId", &rule.id)
        .text("groupId", &group.id)
        .text("groupOwnerId", owner)
        .text("isEgress", rule.direction == Direction::Egress)
        .text("ipProtocol", rule.protocol.name())
        .text("fromPort", rule.ports.map_or(-1, |ports| ports.from))
        .text("toPort", rule.ports.map_or(-1, |ports| ports.to))
        .option("description", text)
        .text(
            "securityGroupRuleArn",
            call.arn(owner, "security-group-rule", rule.id.as_str()),
        );
    let element = match &rule.peer {
        Peer::Ipv4(net) => element.text("cidrIpv4", net),
        Peer::Ipv6(net) => element.text("cidrIpv6", net),
        Peer::Group(id) => element.child(
            Element::new("referencedGroupInfo")
                .text("groupId", id)
                .text("userId", owner),
        ),
    };
    tag_set(element, &rule.tags)
}

async fn create(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let vpc: Option<VpcId> = sent.id("VpcId")?;
    let new = NewSecurityGroup {
        vpc,
        name: sent.require("GroupName")?.to_owned(),
        description: sent.require("GroupDescription")?.to_owned(),
        tags: specified(sent, &["security-group"], "security-group")?,
    };
    call.dry_run()?;
    let group = call
        .plane()
        .create_security_group(&call.caller, new)
        .await?;
    let reply = vec![
        Element::leaf("return", true),
        Element::leaf("groupId", &group.id),
        Element::leaf("securityGroupArn", arn(call, &group)),
    ];
    let tags = tag_set(Element::new(""), &group.meta.tags);
    Ok(reply.into_iter().chain(tags.into_children()).collect())
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let mut groups = call.nouns::<SecurityGroup, SecurityGroupId>("GroupId")?;
    let names = call.parameters.texts("GroupName");
    for name in &names {
        if !groups.iter().any(|group| group.name == *name) {
            return Err(Refusal::not_found(Kind::SecurityGroup, name).into());
        }
    }
    groups.retain(|group| names.is_empty() || names.contains(&group.name));
    call.dry_run()?;
    let (page, token) = selection.cut(groups, |group, name| field(group, name));
    let items = page.iter().map(|group| show(call, group));
    Ok(paged("securityGroupInfo", items, token))
}

/// A rule with the group that it is of.
struct Ruled {
    group: SecurityGroup,
    rule: SecurityGroupRule,
}

impl Described for Ruled {
    fn key(&self) -> String {
        self.rule.id.to_string()
    }

    fn tags(&self) -> Option<&model::Tags> {
        Some(&self.rule.tags)
    }
}

async fn describe_rules(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &RULE_LISTING)?;
    let ids: Vec<SecurityGroupRuleId> = call.parameters.ids("SecurityGroupRuleId")?;
    let mut rules = Vec::new();
    for found in call.plane().list::<SecurityGroup>(&call.caller) {
        for rule in &found.record.rules {
            if ids.is_empty() || ids.contains(&rule.id) {
                rules.push(Ruled {
                    group: found.record.clone(),
                    rule: rule.clone(),
                });
            }
        }
    }
    for id in &ids {
        if !rules.iter().any(|ruled| ruled.rule.id == *id) {
            return Err(Error::new(
                "InvalidSecurityGroupRuleId.NotFound",
                format!("The security group rule ID '{id}' does not exist"),
            ));
        }
    }
    rules.sort_by_key(Described::key);
    call.dry_run()?;
    let (page, token) = selection.cut(rules, |ruled, name| match name {
        "group-id" => one(&ruled.group.id),
        "security-group-rule-id" => one(&ruled.rule.id),
        _ => none(),
    });
    let items = page
        .iter()
        .map(|ruled| show_rule(call, &ruled.group, &ruled.rule));
    Ok(paged("securityGroupRuleSet", items, token))
}

/// The group that a request names by its id, or in the default VPC by its
/// name.
fn named(call: &Call<'_>) -> Result<SecurityGroupId, Error> {
    if let Some(id) = call.parameters.id("GroupId")? {
        return Ok(id);
    }
    let Some(name) = call.parameters.text("GroupName") else {
        return Err(Error::missing("GroupId"));
    };
    call.group_named(name, None)
}

async fn delete(call: &Call<'_>) -> Reply {
    let id = named(call)?;
    let found = call.plane().find::<SecurityGroup>(&call.caller, &id)?;
    if found.record.name == "default" {
        return Err(Error::new(
            "CannotDelete",
            "the specified group: \"default\" name: \"default\" cannot be deleted by a user",
        ));
    }
    call.dry_run()?;
    call.plane()
        .delete_security_group(&call.caller, &id)
        .await?;
    Ok(vec![
        Element::leaf("return", true),
        Element::leaf("groupId", &id),
    ])
}

async fn authorize(call: &Call<'_>, direction: Direction) -> Reply {
    let id = named(call)?;
    let found = call.plane().find::<SecurityGroup>(&call.caller, &id)?;
    let mut rules = rules(call, direction, &found.record)?;
    if rules.is_empty() {
        return Err(Error::missing("IpPermissions"));
    }
    let tags = specified(
        &call.parameters,
        &["security-group-rule"],
        "security-group-rule",
    )?;
    for rule in &mut rules {
        rule.tags.clone_from(&tags);
    }
    call.dry_run()?;
    let rules = call.plane().authorize(&call.caller, &id, rules).await?;
    let shown = rules
        .iter()
        .map(|rule| show_rule(call, &found.record, rule));
    Ok(vec![
        Element::leaf("return", true),
        Element::new("securityGroupRuleSet").extend(shown),
    ])
}

async fn revoke(call: &Call<'_>, direction: Direction) -> Reply {
    let id = named(call)?;
    let found = call.plane().find::<SecurityGroup>(&call.caller, &id)?;
    let ids: Vec<SecurityGroupRuleId> = call.parameters.ids("SecurityGroupRuleId")?;
    let same = rules(call, direction, &found.record)?;
    if ids.is_empty() && same.is_empty() {
        return Err(Error::missing("IpPermissions"));
    }
    call.dry_run()?;
    let revoked = call.plane().revoke(&call.caller, &id, &ids, &same).await?;
    let shown = revoked.iter().map(|rule| {
        let element = Element::item()
            .text("securityGroupRuleId", &rule.id)
            .text("groupId", &id)
            .text("isEgress", rule.direction == Direction::Egress)
            .text("ipProtocol", rule.protocol.name())
            .text("fromPort", rule.ports.map_or(-1, |ports| ports.from))
            .text("toPort", rule.ports.map_or(-1, |ports| ports.to));
        match &rule.peer {
            Peer::Ipv4(net) => element.text("cidrIpv4", net),
            Peer::Ipv6(net) => element.text("cidrIpv6", net),
            Peer::Group(peer) => element.text("referencedGroupId", peer),
        }
    });
    let shown: Vec<Element> = shown.collect();
    Ok(vec![
        Element::leaf("return", true),
        Element::new("revokedSecurityGroupRuleSet").extend(shown),
    ])
}
