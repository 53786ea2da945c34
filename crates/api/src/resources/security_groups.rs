//! What may come to instances, and what may go from them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use control::{NewSecurityGroup, Plane, Refusal};
use model::{
    Direction, Peer, Ports, Protocol, SecurityGroup, SecurityGroupId, SecurityGroupRule,
    SecurityGroupRuleId, Tags,
};
use serde::{Deserialize, Serialize};
use store::Found;
use utoipa::ToSchema;

use crate::App;
use crate::collection::{Names, Removable, Resource, Target, created, read_id};
use crate::extract::{Admin, Body, InPath};
use crate::listing::{Facts, Shown};
use crate::problem::{Code, Problem};

/// What may come to its members, and what may go from them. Answers to what
/// was let through may always pass.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SecurityGroupView {
    /// Its id.
    #[schema(example = "sg-0123456789abcdef0")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its network.
    pub vpc_id: String,
    /// What its owner says of it.
    pub description: String,
    /// What it lets through.
    pub rules: Vec<RuleView>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// What its owner wrote on it.
    pub tags: Tags,
}

/// In or out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// To the members.
    #[default]
    Ingress,
    /// From them.
    Egress,
}

/// A rule: what it says is let through.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleView {
    /// Its id.
    #[schema(example = "sgr-0123456789abcdef0")]
    pub id: String,
    /// In or out.
    pub direction: Way,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `all`, or a number.
    #[schema(example = "tcp")]
    pub protocol: String,
    /// First port, or type of ICMP message (-1: all); missing: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_port: Option<i32>,
    /// Last port, or code of ICMP message (-1: all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_port: Option<i32>,
    /// From or to whom: a CIDR, or a group's id.
    #[schema(example = "0.0.0.0/0")]
    pub peer: String,
    /// What its owner says of it.
    pub description: String,
}

impl From<&SecurityGroupRule> for RuleView {
    fn from(rule: &SecurityGroupRule) -> Self {
        Self {
            id: rule.id.to_string(),
            direction: match rule.direction {
                Direction::Ingress => Way::Ingress,
                Direction::Egress => Way::Egress,
            },
            protocol: match rule.protocol {
                Protocol::All => "all".into(),
                other => other.name(),
            },
            from_port: rule.ports.map(|p| p.from),
            to_port: rule.ports.map(|p| p.to),
            peer: match &rule.peer {
                Peer::Ipv4(net) => net.to_string(),
                Peer::Ipv6(net) => net.to_string(),
                Peer::Group(id) => id.to_string(),
            },
            description: rule.description.clone(),
        }
    }
}

impl Shown for SecurityGroup {
    type View = SecurityGroupView;

    fn show(_: &Plane, found: &Found<Self>) -> SecurityGroupView {
        let group = &found.record;
        SecurityGroupView {
            id: group.id.to_string(),
            name: group.name.clone(),
            vpc_id: group.vpc.to_string(),
            description: group.description.clone(),
            rules: group.rules.iter().map(RuleView::from).collect(),
            created: group.meta.created.to_string(),
            tags: group.meta.tags.clone(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            name: Some(&self.name),
            state: None,
            tags: Some(&self.meta.tags),
        }
    }
}

impl Resource for SecurityGroup {
    type Id = SecurityGroupId;

    const NAMES: Names = Names {
        id: "security_group",
        path: "/v1/security-groups",
        one: "a security group",
        all: "security groups",
        tag: "network",
    };
}

impl Removable for SecurityGroup {
    const REMOVAL: &'static str = "Removes a security group that nothing names";

    async fn remove(target: &Target<Self>) -> Result<(), Refusal> {
        target
            .plane
            .delete_security_group(&target.caller, &target.id)
            .await
    }
}

/// A group that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSecurityGroupBody {
    /// Its name.
    pub name: String,
    /// Its network; the default if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpc_id: Option<String>,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// What is written on it.
    #[serde(default)]
    pub tags: Tags,
}

/// Rules that are to be added.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRulesBody {
    /// They, all or none.
    pub rules: Vec<NewRuleBody>,
}

/// A rule that is to be added.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRuleBody {
    /// In (if missing) or out.
    #[serde(default)]
    pub direction: Way,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `all`, or a number.
    #[schema(example = "tcp")]
    pub protocol: String,
    /// First port, or type of ICMP message (-1: all); missing: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_port: Option<i32>,
    /// Last port, or code of ICMP message (-1: all); `from_port` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_port: Option<i32>,
    /// From or to whom: a CIDR, or a group's id.
    #[schema(example = "0.0.0.0/0")]
    pub peer: String,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
}

impl NewRuleBody {
    fn rule(&self) -> Result<SecurityGroupRule, Problem> {
        let wrong = |what: String| Problem::new(Code::InvalidValue, what);
        let protocol = Protocol::parse(&self.protocol).map_err(|e| wrong(e.to_string()))?;
        let ports = match (self.from_port, self.to_port) {
            (None, None) => None,
            (Some(from), to) => Some(Ports {
                from,
                to: to.unwrap_or(from),
            }),
            (None, Some(_)) => return Err(wrong("to_port is nothing without from_port".into())),
        };
        let peer = self.peer.parse().map(Peer::Ipv4).ok();
        let peer = peer.or_else(|| self.peer.parse().map(Peer::Ipv6).ok());
        let peer = peer.or_else(|| self.peer.parse().map(Peer::Group).ok());
        let peer = peer.ok_or_else(|| {
            wrong(format!(
                "peer: {:?} is neither a CIDR nor a group",
                self.peer
            ))
            .next("write 0.0.0.0/0, 10.0.0.7/32, ::/0 or sg-…")
        })?;
        Ok(SecurityGroupRule {
            id: SecurityGroupRuleId::random(),
            direction: match self.direction {
                Way::Ingress => Direction::Ingress,
                Way::Egress => Direction::Egress,
            },
            protocol,
            ports,
            peer,
            description: self.description.clone(),
            tags: Tags::new(),
        })
    }
}

/// Makes a security group, which lets nothing in and everything out
#[utoipa::path(post, path = "/v1/security-groups", operation_id = "create_security_group", tag = "network",
    request_body = NewSecurityGroupBody,
    responses((status = 201, description = "It is there", body = SecurityGroupView)))]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    Body(body): Body<NewSecurityGroupBody>,
) -> Result<Response, Problem> {
    let new = NewSecurityGroup {
        vpc: body.vpc_id.as_deref().map(read_id).transpose()?,
        name: body.name,
        description: body.description,
        tags: body.tags,
    };
    let made = app.plane.create_security_group(&caller, new).await?;
    created::<SecurityGroup>(&app.plane, &caller, &made.id)
}

/// Adds rules to a security group; they hold for running instances at once
#[utoipa::path(post, path = "/v1/security-groups/{security_group_id}/rules", operation_id = "add_rules", tag = "network",
    request_body = NewRulesBody,
    responses((status = 200, description = "The group as it is now", body = SecurityGroupView)))]
pub async fn add_rules(
    target: Target<SecurityGroup>,
    Body(body): Body<NewRulesBody>,
) -> Result<Response, Problem> {
    let rules = body.rules.iter().map(NewRuleBody::rule);
    let rules = rules.collect::<Result<Vec<_>, _>>()?;
    if rules.is_empty() {
        let problem = Problem::new(Code::InvalidValue, "rules: there are none");
        return Err(problem.next("send at least one rule"));
    }
    target
        .plane
        .authorize(&target.caller, &target.id, rules)
        .await?;
    target.now(StatusCode::OK)
}

/// Removes a rule of a security group
#[utoipa::path(delete, path = "/v1/security-groups/{security_group_id}/rules/{rule_id}", operation_id = "delete_rule", tag = "network",
    params(("security_group_id" = String, Path, description = "The group's id"),
        ("rule_id" = String, Path, description = "The rule's id")),
    responses((status = 204, description = "It is gone")))]
pub async fn delete_rule(
    target: Target<SecurityGroup>,
    InPath(ids): InPath<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (plane, rule) = (&target.plane, read_id(&ids.1)?);
    plane
        .revoke(&target.caller, &target.id, &[rule], &[])
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
