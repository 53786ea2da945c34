//! A port's configuration, ready for each packet.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use machine_protocol::vpc::{PortConfig, mac_of};

use super::counters::Counters;
use super::names::Names;
use super::policy::PortPolicy;
use super::rules::{Question, Rules};
use crate::MacAddress;
use crate::user::{Reach, Subnet4, Subnet6, UserConfig};

/// Addresses of the metadata service.
pub const METADATA4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same over IPv6.
pub const METADATA6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// Further address of the name server.
pub const NAME_SERVER4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
/// Lease of the address, in seconds, as in EC2.
const LEASE: u32 = 3600;

/// See the module.
#[derive(Debug)]
pub struct Compiled {
    pub config: PortConfig,
    /// The guest's card.
    pub mac: MacAddress,
    pub gateway: Ipv4Addr,
    pub name_server: Ipv4Addr,
    pub ingress: Rules,
    pub egress: Rules,
    pub names: Names,
    /// Cards behind the members' IPv6 addresses.
    cards6: HashMap<Ipv6Addr, MacAddress>,
}

/// Where a packet of the guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the port itself, and what stands behind its own addresses.
    Port,
    /// To the member of the VPC with this card.
    Member(MacAddress),
    /// Out of the VPC.
    Out,
    /// To nobody.
    Nowhere,
}

impl Compiled {
    /// Prepares a configuration that was checked.
    pub fn new(config: PortConfig) -> Self {
        let mut cards6 = HashMap::new();
        for host in &config.names {
            let card = host.addresses.iter().find_map(|address| match address {
                IpAddr::V4(v4) => Some(MacAddress(mac_of(*v4))),
                IpAddr::V6(_) => None,
            });
            for address in &host.addresses {
                if let (IpAddr::V6(v6), Some(card)) = (address, card) {
                    cards6.insert(*v6, card);
                }
            }
        }
        Self {
            mac: MacAddress(mac_of(config.address)),
            gateway: config.gateway(),
            name_server: config.name_server(),
            ingress: Rules::new(&config.ingress, &config),
            egress: Rules::new(&config.egress, &config),
            names: Names::new(&config),
            cards6,
            config,
        }
    }

    /// Whether an address is the guest's own.
    pub fn is_guest(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.config.address,
            IpAddr::V6(a) => self.config.ipv6 == Some(a),
        }
    }

    /// Whether the port answers for an address itself.
    pub fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => {
                a == self.gateway || a == self.name_server || a == METADATA4 || a == NAME_SERVER4
            }
            IpAddr::V6(a) => {
                let six = self.subnet6();
                a == METADATA6
                    || six.is_some_and(|s| a == s.gateway() || a == s.dns() || a == s.router())
            }
        }
    }

    /// Whether an address is the name server's.
    pub fn is_name_server(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.name_server || a == NAME_SERVER4,
            IpAddr::V6(a) => self.subnet6().is_some_and(|s| a == s.dns()),
        }
    }

    /// The card of a member.
    pub fn card_of(&self, address: IpAddr) -> Option<MacAddress> {
        match address {
            IpAddr::V4(a) => Some(MacAddress(mac_of(a))),
            IpAddr::V6(a) => self.cards6.get(&a).copied(),
        }
    }

    /// Where a packet to this address goes.
    pub fn way(&self, to: IpAddr) -> Way {
        if self.is_own(to) {
            return Way::Port;
        }
        let last = self.config.subnet.last4().map(IpAddr::V4);
        if self.is_guest(to) || last == Some(to) || to == self.config.subnet.first() {
            return Way::Nowhere;
        }
        if self.config.is_in_vpc(to) {
            return self.card_of(to).map_or(Way::Nowhere, Way::Member);
        }
        let link_local = match to {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        if link_local { Way::Nowhere } else { Way::Out }
    }

    fn subnet6(&self) -> Option<Subnet6> {
        let address = self.config.ipv6?;
        let network = u128::from(address) & !u128::from(u64::MAX);
        Some(Subnet6 {
            network: network.into(),
        })
    }

    /// Where metadata is served.
    pub fn metadata(&self) -> Option<&PathBuf> {
        self.config.metadata.as_ref().map(|m| &m.socket)
    }

    /// Addresses as which clients on the host count.
    pub fn host_addresses(&self) -> Vec<IpAddr> {
        let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        all.extend(&self.config.host_addresses);
        all
    }

    /// Whether a member may begin this. The host's own port counts as itself
    /// and as any of the host's addresses.
    pub fn admits(&self, question: &Question) -> bool {
        if self.ingress.allow(question) {
            return true;
        }
        let is_host = question.remote == IpAddr::V4(self.config.host_address());
        is_host
            && self.host_addresses().into_iter().any(|remote| {
                let question = Question {
                    remote,
                    ..*question
                };
                self.ingress.allow(&question)
            })
    }

    /// The gateway behind the port, as a user network.
    pub fn user_config(self: &Arc<Self>, counters: &Arc<Counters>) -> UserConfig {
        let config = &self.config;
        let network = match config.subnet.first() {
            IpAddr::V4(first) => first,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        UserConfig {
            v4: Subnet4 {
                gateway: self.gateway,
                dns: self.name_server,
                guest: config.address,
                ..Subnet4::new(network, config.subnet.prefix())
            },
            v6: self.subnet6(),
            guest6: config.ipv6,
            mtu: config.mtu,
            hostname: config.hostname.clone(),
            search: Some(config.domain.clone().into_iter().collect()),
            more_dns: vec![NAME_SERVER4],
            only_card: Some(self.mac),
            lease: LEASE,
            reach: match config.reach_host {
                true => Reach::Everything,
                false => Reach::NotTheHost,
            },
            policy: Arc::new(PortPolicy::new(Arc::clone(self), Arc::clone(counters))),
            ..UserConfig::default()
        }
    }
}
