//! Networks and what is in them.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use store::Record;

use crate::{
    DhcpOptionsId, InternetGatewayId, Invalid, Meta, NetworkAclId, RouteTableAssociationId,
    RouteTableId, SubnetId, VpcId,
};

/// A virtual private cloud: a network of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// Its own id.
    pub id: VpcId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Its IPv6 addresses.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// Its account's default.
    #[serde(default)]
    pub is_default: bool,
    /// Its name server answers (`enableDnsSupport`).
    #[serde(default = "yes")]
    pub dns_support: bool,
    /// Instances have names (`enableDnsHostnames`).
    #[serde(default)]
    pub dns_hostnames: bool,
    /// Id of its access list, which lets everything through.
    pub acl: NetworkAclId,
    /// Id of its DHCP options, which are Holm's.
    pub dhcp_options: DhcpOptionsId,
}

impl Record for Vpc {
    const KIND: &'static str = "vpc";
    const VERSION: u32 = 1;
}

impl Vpc {
    /// Refuses addresses that a VPC cannot have (CreateVpc): a prefix of 16 to
    /// 28, no loopback, multicast or link-local addresses.
    ///
    /// # Errors
    /// [`Invalid::Network`].
    pub fn check_cidr(cidr: Ipv4Net) -> Result<(), Invalid> {
        let refused = |reason| {
            Err(Invalid::Network {
                what: "a VPC",
                text: cidr.to_string(),
                reason,
            })
        };
        let first = cidr.network();
        if !(16..=28).contains(&cidr.prefix_len()) {
            return refused("its prefix is 16 to 28 bits long");
        }
        if cidr.addr() != first {
            return refused("there are bits set after the prefix");
        }
        if first.is_loopback()
            || first.is_multicast()
            || first.is_link_local()
            || first.octets()[0] == 0
            || first.octets()[0] >= 240
        {
            return refused("these addresses are reserved");
        }
        Ok(())
    }

    /// Its name server: the third of its addresses.
    #[must_use]
    pub fn dns_server(&self) -> Ipv4Addr {
        nth(self.cidr, 2)
    }
}

/// Addresses of a VPC that are together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its own id.
    pub id: SubnetId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Its network.
    pub vpc: VpcId,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Its IPv6 addresses.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// Zone that it is in.
    pub zone: String,
    /// Its zone's default.
    #[serde(default)]
    pub is_default: bool,
    /// Instances get an address at which the host reaches them.
    #[serde(default)]
    pub map_public_ip: bool,
}

impl Record for Subnet {
    const KIND: &'static str = "subnet";
    const VERSION: u32 = 1;
}

impl Subnet {
    /// Refuses addresses that a subnet cannot have (CreateSubnet): a prefix of
    /// at most 28, inside its VPC.
    ///
    /// # Errors
    /// [`Invalid::Network`].
    pub fn check_cidr(cidr: Ipv4Net, vpc: Ipv4Net) -> Result<(), Invalid> {
        let refused = |reason| {
            Err(Invalid::Network {
                what: "a subnet",
                text: cidr.to_string(),
                reason,
            })
        };
        if cidr.prefix_len() > 28 || cidr.prefix_len() < 16 {
            return refused("its prefix is 16 to 28 bits long");
        }
        if cidr.addr() != cidr.network() {
            return refused("there are bits set after the prefix");
        }
        match vpc.contains(&cidr) {
            true => Ok(()),
            false => refused("its addresses are not in its VPC's"),
        }
    }

    /// Its router: the second of its addresses.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        nth(self.cidr, 1)
    }

    /// An instance may have this address: all but the first four and the last,
    /// as in EC2.
    #[must_use]
    pub fn is_assignable(&self, address: Ipv4Addr) -> bool {
        let first = u32::from(self.cidr.network());
        let number = u32::from(address).wrapping_sub(first);
        self.cidr.contains(&address) && number >= 4 && address != self.cidr.broadcast()
    }

    /// Number of addresses that instances may have.
    #[must_use]
    pub fn assignable(&self) -> u32 {
        (1_u32 << (32 - u32::from(self.cidr.prefix_len().clamp(1, 28)))).saturating_sub(5)
    }
}

fn nth(cidr: Ipv4Net, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()).wrapping_add(number))
}

/// The MAC of the card that has a private address: 0a:48 and the address, which
/// every member of its network derives.
#[must_use]
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x48, a, b, c, d]
}

/// What joins a VPC to the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternetGateway {
    /// Its own id.
    pub id: InternetGatewayId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// VPC that it is attached to.
    #[serde(default)]
    pub vpc: Option<VpcId>,
}

impl Record for InternetGateway {
    const KIND: &'static str = "internet-gateway";
    const VERSION: u32 = 1;
}

/// Where packets of subnets go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Its own id.
    pub id: RouteTableId,
    /// Owner, time, tags.
    pub meta: Meta,
    /// Its network.
    pub vpc: VpcId,
    /// Id of its being its VPC's main table, of subnets that name no other.
    #[serde(default)]
    pub main: Option<RouteTableAssociationId>,
    /// Beside that to the VPC's own addresses, which every table has.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Subnets that name it.
    #[serde(default)]
    pub associations: Vec<Association>,
}

impl Record for RouteTable {
    const KIND: &'static str = "route-table";
    const VERSION: u32 = 1;
}

impl RouteTable {
    /// Whether an address of the world has a way out by it.
    #[must_use]
    pub fn reaches_internet(&self) -> bool {
        self.routes.iter().any(|route| {
            matches!(route.target, RouteTarget::InternetGateway(_))
                && route.destination.prefix_len() == 0
        })
    }
}

/// A way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// To where.
    pub destination: ipnet::IpNet,
    /// By what.
    pub target: RouteTarget,
}

/// What a way goes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteTarget {
    /// To the world.
    InternetGateway(InternetGatewayId),
}

/// A subnet's use of a route table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Association {
    /// Its own id.
    pub id: RouteTableAssociationId,
    /// The subnet.
    pub subnet: SubnetId,
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_the_sizes_that_ec2_allows() {
        for good in ["172.31.0.0/16", "10.0.0.0/28"] {
            Vpc::check_cidr(good.parse().unwrap()).unwrap();
        }
        for bad in [
            "10.0.0.0/15",
            "10.0.0.0/29",
            "10.0.0.1/24",
            "127.0.0.0/16",
            "224.0.0.0/16",
        ] {
            assert!(Vpc::check_cidr(bad.parse().unwrap()).is_err(), "{bad}");
        }
        let vpc = "10.1.0.0/16".parse().unwrap();
        Subnet::check_cidr("10.1.4.0/24".parse().unwrap(), vpc).unwrap();
        for bad in ["10.2.0.0/24", "10.1.0.0/29", "10.0.0.0/14"] {
            assert!(
                Subnet::check_cidr(bad.parse().unwrap(), vpc).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_first_four_addresses_and_the_last_are_kept() {
        let subnet = Subnet {
            id: SubnetId::random(),
            meta: Meta::new(crate::AccountId::random(), crate::Tags::new()),
            vpc: VpcId::random(),
            cidr: "10.1.4.0/28".parse().unwrap(),
            ipv6: None,
            zone: "a".into(),
            is_default: false,
            map_public_ip: false,
        };
        let free = (0..=u8::MAX).filter(|n| subnet.is_assignable(Ipv4Addr::new(10, 1, 4, *n)));
        assert_eq!(free.collect::<Vec<_>>(), (4..15).collect::<Vec<_>>());
        assert_eq!(subnet.assignable(), 11);
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 1, 4, 1));
        assert_eq!(mac_of(subnet.gateway()), [0x0a, 0x48, 10, 1, 4, 1]);
    }
}
