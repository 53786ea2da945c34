//! Rules of security groups in parameters: `IpPermissions`, or the older
//! single ones.

use model::{
    Direction, Peer, Ports, Protocol, SecurityGroup, SecurityGroupId, SecurityGroupRule,
    SecurityGroupRuleId, Tags, VpcId,
};

use crate::call::Call;
use crate::error::Error;
use crate::ids::parse;
use crate::parameters::Parameters;

/// The parameters of rules, and more.
macro_rules! with_rules {
    ($($more:literal),*) => {
        &[
            "GroupId",
            "CidrIp",
            "FromPort",
            "ToPort",
            "IpProtocol",
            "SourceSecurityGroupName",
            "SourceSecurityGroupOwnerId",
            "IpPermissions.N.IpProtocol",
            "IpPermissions.N.FromPort",
            "IpPermissions.N.ToPort",
            "IpPermissions.N.IpRanges.N.CidrIp",
            "IpPermissions.N.IpRanges.N.Description",
            "IpPermissions.N.Ipv6Ranges.N.CidrIpv6",
            "IpPermissions.N.Ipv6Ranges.N.Description",
            "IpPermissions.N.Groups.N.GroupId",
            "IpPermissions.N.Groups.N.GroupName",
            "IpPermissions.N.Groups.N.UserId",
            "IpPermissions.N.Groups.N.VpcId",
            "IpPermissions.N.Groups.N.Description",
            $($more,)*
        ]
    };
}

/// Parameters of AuthorizeSecurityGroupIngress.
pub const AUTHORIZE_INGRESS: &[&str] = with_rules!(
    "GroupName",
    "TagSpecification.N.ResourceType",
    "TagSpecification.N.Tag.N.Key",
    "TagSpecification.N.Tag.N.Value"
);

/// Parameters of AuthorizeSecurityGroupEgress.
pub const AUTHORIZE_EGRESS: &[&str] = with_rules!(
    "TagSpecification.N.ResourceType",
    "TagSpecification.N.Tag.N.Key",
    "TagSpecification.N.Tag.N.Value"
);

/// Parameters of RevokeSecurityGroupIngress.
pub const REVOKE_INGRESS: &[&str] = with_rules!("GroupName", "SecurityGroupRuleId.N");

/// Parameters of RevokeSecurityGroupEgress.
pub const REVOKE_EGRESS: &[&str] = with_rules!("SecurityGroupRuleId.N");

/// The rules of a request, with new ids.
///
/// # Errors
/// `InvalidParameterValue`, `MissingParameter`, `InvalidPermission.Malformed`.
pub fn rules(
    call: &Call<'_>,
    direction: Direction,
    group: &SecurityGroup,
) -> Result<Vec<SecurityGroupRule>, Error> {
    let sent = &call.parameters;
    let mut rules = Vec::new();
    for permission in sent.structures("IpPermissions") {
        let base = base(&permission, direction)?;
        let peers = peers(call, &permission, group)?;
        if peers.is_empty() {
            return Err(Error::new(
                "MissingParameter",
                "Either 'ipRanges', 'ipv6Ranges' or 'groups' should be provided.",
            ));
        }
        rules.extend(
            peers
                .into_iter()
                .map(|(peer, description)| SecurityGroupRule {
                    id: SecurityGroupRuleId::random(),
                    peer,
                    description,
                    ..base.clone()
                }),
        );
    }
    let peer = match (sent.text("CidrIp"), sent.text("SourceSecurityGroupName")) {
        (Some(cidr), _) => Some(ipv4(cidr)?),
        (None, Some(name)) => Some(Peer::Group(call.group_named(name, Some(&group.vpc))?)),
        (None, None) => None,
    };
    if let Some(peer) = peer {
        rules.push(SecurityGroupRule {
            peer,
            ..base(sent, direction)?
        });
    }
    Ok(rules)
}

/// Protocol and ports, of nobody yet.
fn base(from: &Parameters, direction: Direction) -> Result<SecurityGroupRule, Error> {
    let text = from.require("IpProtocol")?;
    let protocol =
        Protocol::parse(text).map_err(|e| Error::invalid("IpProtocol", text, &e.to_string()))?;
    let (first, last) = (
        from.number::<i32>("FromPort")?,
        from.number::<i32>("ToPort")?,
    );
    let ports = match (protocol, first, last) {
        (Protocol::All | Protocol::Number(_), ..) => None,
        (Protocol::Icmp | Protocol::Icmpv6, None, None) => Some(Ports { from: -1, to: -1 }),
        (_, Some(from), Some(to)) => Some(Ports { from, to }),
        (_, None, _) => return Err(Error::missing("fromPort")),
        (_, _, None) => return Err(Error::missing("toPort")),
    };
    if let Some(ports) = ports {
        ports.check(protocol).map_err(|e| {
            Error::new(
                "InvalidParameterValue",
                format!("Invalid value for portRange. {e}"),
            )
        })?;
    }
    Ok(SecurityGroupRule {
        id: SecurityGroupRuleId::random(),
        direction,
        protocol,
        ports,
        peer: Peer::Ipv4(ipnet::Ipv4Net::default()),
        description: String::new(),
        tags: Tags::new(),
    })
}

/// From or to whom, each with its description.
fn peers(
    call: &Call<'_>,
    permission: &Parameters,
    group: &SecurityGroup,
) -> Result<Vec<(Peer, String)>, Error> {
    let mut peers = Vec::new();
    let text = |from: &Parameters| from.text("Description").unwrap_or_default().to_owned();
    for range in permission.structures("IpRanges") {
        peers.push((ipv4(range.require("CidrIp")?)?, text(&range)));
    }
    for range in permission.structures("Ipv6Ranges") {
        let cidr = range.require("CidrIpv6")?;
        let net = cidr.parse().map_err(|_| not_cidr(cidr))?;
        peers.push((Peer::Ipv6(net), text(&range)));
    }
    for other in permission.structures("Groups") {
        let vpc: Option<VpcId> = other.id("VpcId")?;
        let id: SecurityGroupId = match other.text("GroupId") {
            Some(id) => parse(id)?,
            None => {
                let name = other.require("GroupName")?;
                call.group_named(name, vpc.as_ref().or(Some(&group.vpc)))?
            }
        };
        peers.push((Peer::Group(id), text(&other)));
    }
    Ok(peers)
}

fn ipv4(cidr: &str) -> Result<Peer, Error> {
    let net: ipnet::Ipv4Net = cidr.parse().map_err(|_| not_cidr(cidr))?;
    Ok(Peer::Ipv4(net))
}

fn not_cidr(text: &str) -> Error {
    Error::new(
        "InvalidParameterValue",
        format!("CIDR block {text} is malformed"),
    )
}
