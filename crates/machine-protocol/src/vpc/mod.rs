//! The port of a machine in a virtual private cloud (VPC): what the daemon
//! tells a machine about its network card, and what the machine says of it.
//! `docs/network-vpc.md` shows the JSON.

mod cidr;
mod report;
mod rule;

pub use cidr::{Cidr, CidrError};
pub use report::{BY_THE_SIDE, PortReport, PublishedPort, UnpublishedPort};
pub use rule::{Protocol, ProtocolError, Rule};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of [`PortConfig`] that this program writes and reads.
pub const PORT_VERSION: u32 = 1;
/// Largest IP packet of a port unless said otherwise, in bytes.
pub const PORT_MTU: u16 = 1500;

/// The card address that belongs to a private address. Every member of a VPC
/// derives it, so nobody asks for it.
#[must_use]
pub const fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    // Locally administered, for one card.
    [0x0a, 0x48, a, b, c, d]
}

/// [`mac_of`] as text, such as `0a:48:0a:00:01:04`.
#[must_use]
pub fn mac_text(address: Ipv4Addr) -> String {
    let [a, b, c, d, e, f] = mac_of(address);
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A machine's port in a VPC: all that its network card knows. It can be
/// replaced as a whole while the machine runs
/// ([`crate::Request::ConfigureNic`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// [`PORT_VERSION`]; others are refused.
    pub version: u32,
    /// The machine's private address (EC2: `PrivateIpAddress`). Its card
    /// address is [`mac_of`] it.
    pub address: Ipv4Addr,
    /// The IPv4 block of its subnet, /8 to /28. The gateway is its first
    /// address after the subnet's own: 10.0.1.1 of 10.0.1.0/24.
    pub subnet: Cidr,
    /// All blocks of the VPC, IPv4 and IPv6; they hold the subnet. The VPC's
    /// name server is number 2 of the first IPv4 block.
    pub vpc: Vec<Cidr>,
    /// The machine's IPv6 address, in a /64 that is its subnet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Host name that DHCP gives the guest, without domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Domain of the VPC, in which the guest searches names, such as
    /// `ec2.internal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Names that the VPC's name server knows, besides the world's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<HostName>,
    /// Whether there is a way out: packets to elsewhere than the VPC leave by
    /// the host's network, with its address (EC2: a route to an internet
    /// gateway, and a public address).
    #[serde(default)]
    pub internet: bool,
    /// Whether the guest may reach the host itself: its own addresses, and its
    /// loopback by the gateway's address. Off, as in EC2, which has no host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reach_host: bool,
    /// Largest IP packet, in bytes, 1280 to 9001, told by DHCP.
    #[serde(default = "port_mtu")]
    pub mtu: u16,
    /// The metadata service; `None`: 169.254.169.254 refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MetadataPort>,
    /// Address of the host's loopback (127.0.0.0/8) at which the ports answer
    /// that ingress rules open for the host's clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<Ipv4Addr>,
    /// Addresses as which a client on the host counts for ingress rules, besides
    /// 127.0.0.1: those of the host in its own networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_addresses: Vec<IpAddr>,
    /// What may begin from outside. Empty: nothing.
    #[serde(default)]
    pub ingress: Vec<Rule>,
    /// What the guest may begin. Empty: nothing.
    #[serde(default)]
    pub egress: Vec<Rule>,
    /// Sets of addresses that rules name: the members of security groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Vec<Cidr>>,
    /// Whether the cable is plugged in.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub link_up: bool,
    /// It is the port of the host itself and not of a machine: its address is
    /// [`Self::host_address`], and no DHCP answers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host: bool,
}

/// A name of a machine in the VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostName {
    /// The name, in [`PortConfig::domain`] if it has no dot.
    pub name: String,
    /// Its addresses; the first name of an address is also its reverse.
    pub addresses: Vec<IpAddr>,
}

/// How a guest reaches its metadata service (EC2: IMDS) at 169.254.169.254
/// and fd00:ec2::254, TCP port 80.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataPort {
    /// Unix stream socket of the host that each connection is led to; who
    /// listens there knows by it which machine asks.
    pub socket: PathBuf,
    /// Hops that its answers go at most (EC2: `HttpPutResponseHopLimit`), 1 to
    /// 64. It holds for every packet of the service, not only for tokens.
    #[serde(default = "one_hop")]
    pub hop_limit: u8,
}

const fn port_mtu() -> u16 {
    PORT_MTU
}

const fn yes() -> bool {
    true
}

const fn one_hop() -> u8 {
    1
}

/// A port that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Another version of the form.
    #[error(
        "the port's configuration has version {0}, and this holm knows version {PORT_VERSION}; \
         use the same holm for the daemon and its machines"
    )]
    Version(u32),
    /// A field's value.
    #[error("the port's {field} {value} is not possible: {why}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        why: &'static str,
    },
    /// A rule names a group that is not there.
    #[error("a rule of the port names the group {0:?}, which `groups` does not have")]
    Group(String),
}

impl PortConfig {
    /// A port with these addresses that lets nothing in or out.
    #[must_use]
    pub fn new(address: Ipv4Addr, subnet: Cidr, vpc: Vec<Cidr>) -> Self {
        Self {
            version: PORT_VERSION,
            address,
            subnet,
            vpc,
            ipv6: None,
            hostname: None,
            domain: None,
            names: Vec::new(),
            internet: false,
            reach_host: false,
            mtu: PORT_MTU,
            metadata: None,
            public: None,
            host_addresses: Vec::new(),
            ingress: Vec::new(),
            egress: Vec::new(),
            groups: BTreeMap::new(),
            link_up: true,
            host: false,
        }
    }

    /// The host's own port in the VPC of this block: the host begins what it
    /// likes, and nothing is begun towards it.
    #[must_use]
    pub fn of_host(vpc: Cidr) -> Self {
        let any = Cidr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let mut port = Self::new(Ipv4Addr::UNSPECIFIED, vpc, vec![vpc]);
        port.address = port.host_address();
        port.egress = vec![Rule::all(Protocol::All, any.into_iter().collect())];
        port.host = true;
        port
    }

    /// The host's address in the VPC: number 3 of its first IPv4 block. No
    /// machine has it, because the first four of each subnet are reserved.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        self.nth(3)
    }

    fn nth(&self, number: u32) -> Ipv4Addr {
        let first = self.vpc.iter().find_map(|block| block.host4(number));
        first.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The gateway: the subnet's first address after its own.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.host4(1).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The name server: number 2 of the VPC's first IPv4 block.
    #[must_use]
    pub fn name_server(&self) -> Ipv4Addr {
        self.nth(2)
    }

    /// Whether an address belongs to the VPC.
    #[must_use]
    pub fn is_in_vpc(&self, address: IpAddr) -> bool {
        self.vpc.iter().any(|block| block.contains(address))
    }

    /// Whether all fields fit each other.
    ///
    /// # Errors
    /// [`PortError`]: the first that does not.
    pub fn check(&self) -> Result<(), PortError> {
        if self.version != PORT_VERSION {
            return Err(PortError::Version(self.version));
        }
        let wrong = |field, value: String, why| Err(PortError::Field { field, value, why });
        let subnet = self.subnet;
        if !subnet.is_ipv4() || !(8..=28).contains(&subnet.prefix()) {
            return wrong("subnet", subnet.to_string(), "an IPv4 block of /8 to /28");
        }
        let last = subnet.last4();
        let mut reserved = (0..=3).filter_map(|n| subnet.host4(n));
        let free = match self.host {
            true => self.address == self.host_address(),
            false => Some(self.address) != last && reserved.all(|taken| taken != self.address),
        };
        if !subnet.contains(self.address.into()) || !free {
            let why = "an address of the subnet but its first four and its last";
            return wrong("address", self.address.to_string(), why);
        }
        if !self.is_in_vpc(subnet.first()) || !self.is_in_vpc(self.address.into()) {
            return wrong("subnet", subnet.to_string(), "part of a block of `vpc`");
        }
        if !(1280..=9001).contains(&self.mtu) {
            return wrong("mtu", self.mtu.to_string(), "1280 to 9001 bytes");
        }
        if let Some(public) = self.public.filter(|public| !public.is_loopback()) {
            return wrong("public", public.to_string(), "an address of 127.0.0.0/8");
        }
        let fits =
            |v6: Ipv6Addr| self.is_in_vpc(v6.into()) && u128::from(v6) & u128::from(u64::MAX) > 3;
        if let Some(v6) = self.ipv6.filter(|v6| !fits(*v6)) {
            let why = "part of an IPv6 block of `vpc`, and not among the first four of its /64";
            return wrong("ipv6", v6.to_string(), why);
        }
        if let Some(metadata) = &self.metadata {
            if !(1..=64).contains(&metadata.hop_limit) {
                let hops = metadata.hop_limit.to_string();
                return wrong("metadata.hop_limit", hops, "1 to 64");
            }
            if !metadata.socket.is_absolute() {
                let path = metadata.socket.display().to_string();
                return wrong("metadata.socket", path, "an absolute path");
            }
        }
        for rule in self.ingress.iter().chain(&self.egress) {
            rule.check()?;
            if let Some(name) = rule.groups.iter().find(|g| !self.groups.contains_key(*g)) {
                return Err(PortError::Group(name.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PortConfig {
        let text = r#"{
            "version": 1, "address": "10.0.1.4", "subnet": "10.0.1.0/24",
            "vpc": ["10.0.0.0/16"], "hostname": "web", "domain": "ec2.internal",
            "names": [{"name": "db", "addresses": ["10.0.2.5"]}],
            "internet": true,
            "metadata": {"socket": "/run/m.sock"}, "public": "127.86.0.5",
            "ingress": [
                {"protocol": "tcp", "from": 22, "to": 22, "cidrs": ["0.0.0.0/0"]},
                {"protocol": "icmp", "from": 8, "to": -1, "groups": ["sg-1"]}],
            "egress": [{"protocol": "all", "cidrs": ["0.0.0.0/0", "::/0"]}],
            "groups": {"sg-1": ["10.0.1.4/32"]}
        }"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_documented_form_is_read_and_means_the_same_when_written() {
        let config = config();
        config.check().unwrap();
        assert_eq!(config.gateway(), Ipv4Addr::new(10, 0, 1, 1));
        assert_eq!(config.name_server(), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(config.mtu, 1500);
        assert!(config.link_up);
        assert_eq!(config.metadata.as_ref().unwrap().hop_limit, 1);
        assert_eq!(mac_text(config.address), "0a:48:0a:00:01:04");
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<PortConfig>(&text).unwrap(), config);
    }

    #[test]
    fn the_hosts_port_has_the_address_that_no_machine_can_have() {
        let vpc: Cidr = "10.0.0.0/16".parse().unwrap();
        let port = PortConfig::of_host(vpc);
        port.check().unwrap();
        assert_eq!(port.address, Ipv4Addr::new(10, 0, 0, 3));
        assert!(port.ingress.is_empty() && port.egress.len() == 1);
        let mut machine = port.clone();
        machine.host = false;
        assert!(machine.check().is_err());
        let mut other = port;
        other.address = Ipv4Addr::new(10, 0, 0, 4);
        assert!(other.check().is_err());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        type Change = fn(&mut PortConfig);
        let cases: [(Change, &str); 10] = [
            (|c| c.version = 2, "version 2"),
            (|c| c.address = Ipv4Addr::new(10, 0, 2, 4), "address"),
            (|c| c.address = Ipv4Addr::new(10, 0, 1, 1), "address"),
            (|c| c.address = Ipv4Addr::new(10, 0, 1, 255), "address"),
            (|c| c.vpc.clear(), "subnet"),
            (|c| c.mtu = 100, "mtu"),
            (
                |c| c.public = Some(Ipv4Addr::new(10, 0, 0, 1)),
                "127.0.0.0/8",
            ),
            (|c| c.ipv6 = Some(Ipv6Addr::LOCALHOST), "ipv6"),
            (|c| c.groups.clear(), "sg-1"),
            (|c| c.ingress[0].to = Some(7), "from 22"),
        ];
        for (change, part) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let text = serde_json::to_string(&config()).unwrap();
        let bad = text.replacen("\"internet\"", "\"colour\":1,\"internet\"", 1);
        let error = serde_json::from_str::<PortConfig>(&bad).unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
    }
}
