//! Rules of security groups.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Cidr, PortError};

/// What a rule is about (EC2: `IpProtocol`): `tcp`, `udp`, `icmp`, `icmpv6`,
/// `all` (`-1` is read, too), or a protocol's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Protocol {
    /// Every protocol.
    All,
    /// The protocol with this number (IANA): 6 is TCP.
    Number(u8),
}

impl Protocol {
    /// ICMP.
    pub const ICMP: Self = Self::Number(1);
    /// TCP.
    pub const TCP: Self = Self::Number(6);
    /// UDP.
    pub const UDP: Self = Self::Number(17);
    /// ICMP of IPv6.
    pub const ICMPV6: Self = Self::Number(58);
}

/// Text that names no protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no protocol: there are tcp, udp, icmp, icmpv6, all, and numbers up to 255")]
pub struct ProtocolError(String);

impl FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Self, ProtocolError> {
        Ok(match text {
            "all" | "-1" => Self::All,
            "icmp" => Self::ICMP,
            "tcp" => Self::TCP,
            "udp" => Self::UDP,
            "icmpv6" => Self::ICMPV6,
            other => {
                let number = other.parse().map_err(|_| ProtocolError(text.to_owned()))?;
                Self::Number(number)
            }
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::All => f.write_str("all"),
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl TryFrom<String> for Protocol {
    type Error = ProtocolError;

    fn try_from(text: String) -> Result<Self, ProtocolError> {
        text.parse()
    }
}

impl From<Protocol> for String {
    fn from(protocol: Protocol) -> Self {
        protocol.to_string()
    }
}

/// What may begin. Ports and addresses are as EC2 has them: of an ingress
/// rule the guest's ports and the others' addresses, of an egress rule the
/// others' ports and addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Of which protocol.
    pub protocol: Protocol,
    /// TCP and UDP: the first port; ICMP: the type. Missing or -1: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i32>,
    /// TCP and UDP: the last port; ICMP: the code. Missing or -1: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i32>,
    /// Addresses of the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<Cidr>,
    /// Addresses of the others: names of sets in
    /// [`super::PortConfig::groups`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

impl Rule {
    /// A rule for a range of ports and some addresses.
    #[must_use]
    pub fn ports(protocol: Protocol, from: u16, to: u16, cidrs: Vec<Cidr>) -> Self {
        Self {
            protocol,
            from: Some(from.into()),
            to: Some(to.into()),
            cidrs,
            groups: Vec::new(),
        }
    }

    /// A rule for all of a protocol and some addresses.
    #[must_use]
    pub const fn all(protocol: Protocol, cidrs: Vec<Cidr>) -> Self {
        Self {
            protocol,
            from: None,
            to: None,
            cidrs,
            groups: Vec::new(),
        }
    }

    /// Whether its numbers are possible.
    ///
    /// # Errors
    /// [`PortError::Field`].
    pub fn check(&self) -> Result<(), PortError> {
        let (from, to) = (self.from.unwrap_or(-1), self.to.unwrap_or(-1));
        let most = match self.protocol {
            Protocol::TCP | Protocol::UDP => 65_535,
            Protocol::ICMP | Protocol::ICMPV6 => 255,
            _ => return Ok(()),
        };
        let ports = most == 65_535;
        let range = (-1..=most).contains(&from) && (-1..=most).contains(&to);
        // A range with one end is as little a range as one that ends before it begins.
        let ordered = !ports || from <= to && (from == -1) == (to == -1);
        if range && ordered {
            return Ok(());
        }
        Err(PortError::Field {
            field: "rule",
            value: format!("for {} from {from} to {to}", self.protocol),
            why: "ports are 0 to 65535 in order, ICMP types and codes 0 to 255, or -1 for any",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_the_documented_form() {
        let rule: Rule = serde_json::from_str(
            r#"{"protocol":"tcp","from":22,"to":80,"cidrs":["10.0.0.0/8"],"groups":["sg-1"]}"#,
        )
        .unwrap();
        rule.check().unwrap();
        let text = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<Rule>(&text).unwrap(), rule);
        for (protocol, text) in [
            ("-1", "all"),
            ("6", "tcp"),
            ("50", "50"),
            ("icmpv6", "icmpv6"),
        ] {
            assert_eq!(protocol.parse::<Protocol>().unwrap().to_string(), text);
        }
        for bad in ["", "sctp ", "256", "-2"] {
            assert!(bad.parse::<Protocol>().is_err(), "{bad}");
        }
        for bad in [
            r#"{"protocol":"tcp","from":80,"to":22}"#,
            r#"{"protocol":"udp","from":1}"#,
            r#"{"protocol":"tcp","from":1,"to":65536}"#,
            r#"{"protocol":"icmp","from":256,"to":-1}"#,
        ] {
            let rule: Rule = serde_json::from_str(bad).unwrap();
            assert!(rule.check().is_err(), "{bad}");
        }
    }
}
