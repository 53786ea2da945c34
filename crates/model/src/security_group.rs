//! What may come to an instance, and what may go from it.

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use store::Record;

use crate::{Invalid, Meta, SecurityGroupId, SecurityGroupRuleId, Tags, VpcId};

/// A security group. Its members' packets pass if a rule of one of their
/// groups lets them, or if they belong to a flow that was let through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its own id.
    pub id: SecurityGroupId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Its network.
    pub vpc: VpcId,
    /// Its name, one of its network's alone.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// What it lets through.
    #[serde(default)]
    pub rules: Vec<SecurityGroupRule>,
}

impl Record for SecurityGroup {
    const KIND: &'static str = "security-group";
    const VERSION: u32 = 1;
}

/// A rule: what it says is let through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRule {
    /// Its own id.
    pub id: SecurityGroupRuleId,
    /// In or out.
    pub direction: Direction,
    /// Of which protocol.
    pub protocol: Protocol,
    /// Which ports, or which kind of ICMP message; `None`: all.
    #[serde(default)]
    pub ports: Option<Ports>,
    /// From or to whom.
    pub peer: Peer,
    /// What its owner says of it.
    #[serde(default)]
    pub description: String,
    /// What its owner wrote on it.
    #[serde(default)]
    pub tags: Tags,
}

impl SecurityGroupRule {
    /// It lets the same through.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.direction == other.direction
            && self.protocol == other.protocol
            && self.ports == other.ports
            && self.peer == other.peer
    }
}

/// In or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the member.
    Ingress,
    /// From it.
    Egress,
}

/// A protocol by its number; EC2's `IpProtocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Every protocol: `-1`.
    All,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
    /// ICMP of IPv6.
    Icmpv6,
    /// Another, by its number.
    Number(u8),
}

impl Protocol {
    /// By a name or a number, as EC2 takes them.
    ///
    /// # Errors
    /// [`Invalid::Rule`].
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "-1" | "all" => Ok(Self::All),
            "tcp" | "6" => Ok(Self::Tcp),
            "udp" | "17" => Ok(Self::Udp),
            "icmp" | "1" => Ok(Self::Icmp),
            "icmpv6" | "58" => Ok(Self::Icmpv6),
            _ => text.parse().map(Self::Number).map_err(|_| {
                Invalid::Rule("a protocol is tcp, udp, icmp, icmpv6, -1 or a number up to 255")
            }),
        }
    }

    /// Its name, as EC2 has it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::All => "-1".into(),
            Self::Tcp => "tcp".into(),
            Self::Udp => "udp".into(),
            Self::Icmp => "icmp".into(),
            Self::Icmpv6 => "icmpv6".into(),
            Self::Number(number) => number.to_string(),
        }
    }

    /// It has ports, or kinds of messages.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Icmp | Self::Icmpv6)
    }
}

/// EC2's `FromPort` and `ToPort`: a range of ports, or a type and a code of
/// ICMP, where -1 is all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ports {
    /// First port, or type.
    pub from: i32,
    /// Last port, or code.
    pub to: i32,
}

impl Ports {
    /// Refuses what a protocol does not have.
    ///
    /// # Errors
    /// [`Invalid::Rule`].
    pub fn check(self, protocol: Protocol) -> Result<(), Invalid> {
        let good = match protocol {
            Protocol::Tcp | Protocol::Udp => {
                0 <= self.from && self.from <= self.to && self.to <= 65535
            }
            Protocol::Icmp | Protocol::Icmpv6 => {
                (-1..=255).contains(&self.from)
                    && (-1..=255).contains(&self.to)
                    && (self.from != -1 || self.to == -1)
            }
            Protocol::All | Protocol::Number(_) => true,
        };
        match (good, protocol) {
            (true, _) => Ok(()),
            (false, Protocol::Icmp | Protocol::Icmpv6) => Err(Invalid::Rule(
                "an ICMP type and code are -1 to 255, and -1 for the type is all codes",
            )),
            (false, _) => Err(Invalid::Rule(
                "ports are 0 to 65535, the first not after the last",
            )),
        }
    }
}

/// From or to whom a rule is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Addresses.
    Ipv4(Ipv4Net),
    /// IPv6 addresses.
    Ipv6(Ipv6Net),
    /// The members of a group.
    Group(SecurityGroupId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_and_ports_are_those_of_ec2() {
        assert_eq!(Protocol::parse("6"), Ok(Protocol::Tcp));
        assert_eq!(Protocol::parse("-1"), Ok(Protocol::All));
        assert_eq!(Protocol::parse("50").unwrap().name(), "50");
        assert!(Protocol::parse("tcpp").is_err() && Protocol::parse("256").is_err());
        let ports = |from, to| Ports { from, to };
        for (protocol, good) in [
            (Protocol::Tcp, ports(22, 22)),
            (Protocol::Udp, ports(0, 65535)),
            (Protocol::Icmp, ports(-1, -1)),
            (Protocol::Icmp, ports(8, -1)),
        ] {
            good.check(protocol).unwrap();
        }
        for (protocol, bad) in [
            (Protocol::Tcp, ports(23, 22)),
            (Protocol::Tcp, ports(-1, -1)),
            (Protocol::Udp, ports(0, 65536)),
            (Protocol::Icmp, ports(-1, 0)),
        ] {
            assert!(bad.check(protocol).is_err(), "{bad:?}");
        }
    }
}
