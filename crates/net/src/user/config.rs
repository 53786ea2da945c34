//! What a user network is told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::policy::{FlowPolicy, Open};
use super::publication::Publication;
use super::wire::Mac;
use crate::user::UserError;

/// The IPv4 side of a user network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet4 {
    /// Its first address.
    pub network: Ipv4Addr,
    /// Length of its prefix, 8 to 28.
    pub prefix: u8,
    /// The gateway, which stands for the host itself: usually number 2.
    pub gateway: Ipv4Addr,
    /// The name server: usually number 3.
    pub dns: Ipv4Addr,
    /// The first guest, to which publications lead: usually number 15, or 4 in
    /// a subnet of 16 addresses.
    pub guest: Ipv4Addr,
}

impl Default for Subnet4 {
    fn default() -> Self {
        Self::new(Ipv4Addr::new(10, 0, 2, 0), 24)
    }
}

impl Subnet4 {
    /// A subnet with the usual addresses.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Self {
        let host = |number: u32| Ipv4Addr::from(u32::from(network).wrapping_add(number));
        Self {
            network,
            prefix,
            gateway: host(2),
            dns: host(3),
            guest: host(if prefix > 27 { 4 } else { 15 }),
        }
    }

    /// Its mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(
            u32::MAX
                .checked_shl(32 - u32::from(self.prefix))
                .unwrap_or(0),
        )
    }

    /// The address of all its machines.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !u32::from(self.mask()))
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask()) == u32::from(self.network)
    }

    /// Whether a guest may use an address as its own.
    pub fn is_guest(&self, address: Ipv4Addr) -> bool {
        self.contains(address)
            && ![self.network, self.broadcast(), self.gateway, self.dns].contains(&address)
    }
}

impl std::str::FromStr for Subnet4 {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let wrong = || UserError::Subnet(text.to_owned());
        let (network, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let subnet = Self::new(
            network.parse().map_err(|_| wrong())?,
            prefix.parse().map_err(|_| wrong())?,
        );
        let good = (8..=28).contains(&subnet.prefix)
            && u32::from(subnet.network) & !u32::from(subnet.mask()) == 0
            && subnet
                .network
                .octets()
                .first()
                .is_some_and(|n| *n != 0 && *n != 127 && *n < 224);
        good.then_some(subnet).ok_or_else(wrong)
    }
}

/// The IPv6 side of a user network: a /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet6 {
    /// Its first address; the lower 64 bits are 0.
    pub network: Ipv6Addr,
}

impl Default for Subnet6 {
    fn default() -> Self {
        Self {
            network: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0),
        }
    }
}

impl Subnet6 {
    /// The address with this number in the subnet.
    pub fn host(&self, number: u16) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.network) | u128::from(number))
    }

    /// Stands for the host itself: number 2.
    pub fn gateway(&self) -> Ipv6Addr {
        self.host(2)
    }

    /// The name server: number 3.
    pub fn dns(&self) -> Ipv6Addr {
        self.host(3)
    }

    /// The router's address on the link, from which it advertises.
    pub fn router(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        u128::from(address) >> 64 == u128::from(self.network) >> 64
    }

    /// Whether a guest may use an address as its own.
    pub fn is_guest(&self, address: Ipv6Addr) -> bool {
        let link_local = address.segments()[0] & 0xffc0 == 0xfe80;
        (self.contains(address) || link_local)
            && ![self.network, self.gateway(), self.dns(), self.router()].contains(&address)
    }
}

/// Bounds of what a guest can make its monitor hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections. Further ones are reset.
    pub tcp: usize,
    /// UDP ports of the guest in use. The one that was idle longest gives way.
    pub udp: usize,
    /// Bytes under way in each direction of all TCP connections together.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp: 8192,
            udp: 2048,
            bytes: 64 << 20,
        }
    }
}

/// How far a guest gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// The world, and the host by its alias.
    #[default]
    Everything,
    /// The world, but none of the host's own addresses.
    NotTheHost,
    /// Nothing but DHCP; publications work.
    Nothing,
}

/// What a user network is told. The default is QEMU's network.
#[derive(Clone, Debug)]
pub struct UserConfig {
    /// IPv4 addresses.
    pub v4: Subnet4,
    /// IPv6 addresses; `None`: no IPv6.
    pub v6: Option<Subnet6>,
    /// Largest IP packet, in bytes, 1280 to 65,520.
    pub mtu: u16,
    /// Host name that DHCP gives the guest.
    pub hostname: Option<String>,
    /// Domains that the guest searches names in; `None`: the host's.
    pub search: Option<Vec<String>>,
    /// Further IPv4 addresses of the network's own name server.
    pub more_dns: Vec<Ipv4Addr>,
    /// The network's one card: DHCP gives [`Subnet4::guest`] to it and nothing
    /// to others, and no other address is a guest's. `None`: any card.
    pub only_card: Option<Mac>,
    /// The one IPv6 address of that card, given by DHCPv6; without it guests make
    /// addresses of their own in the advertised prefix.
    pub guest6: Option<Ipv6Addr>,
    /// Length of DHCP leases, in seconds.
    pub lease: u32,
    /// Name servers; `None`: the host's `/etc/resolv.conf`, read again when
    /// it changes.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// How far the guest gets.
    pub reach: Reach,
    /// Lets the guest reach link-local addresses and the metadata services of
    /// clouds at the host's place in the network. Those give away the host's
    /// credentials.
    pub host_metadata: bool,
    /// Host ports that lead to the guest.
    pub publish: Vec<Publication>,
    /// Decides on each flow first.
    pub policy: Arc<dyn FlowPolicy>,
    /// Bounds.
    pub limits: Limits,
}

impl Default for UserConfig {
    fn default() -> Self {
        Self {
            v4: Subnet4::default(),
            v6: Some(Subnet6::default()),
            mtu: 1500,
            hostname: None,
            search: None,
            more_dns: Vec::new(),
            only_card: None,
            guest6: None,
            lease: 86_400,
            resolvers: None,
            reach: Reach::default(),
            host_metadata: false,
            publish: Vec::new(),
            policy: Arc::new(Open),
            limits: Limits::default(),
        }
    }
}

impl UserConfig {
    /// Card address of the gateway, made of its IP address as QEMU does.
    pub fn gateway_mac(&self) -> Mac {
        let [a, b, c, d] = self.v4.gateway.octets();
        Mac([0x52, 0x55, a, b, c, d])
    }

    /// Whether the network answers for an address itself.
    pub fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.v4.gateway || self.is_dns(address),
            IpAddr::V6(a) => self
                .v6
                .is_some_and(|v6| a == v6.gateway() || a == v6.dns() || a == v6.router()),
        }
    }

    /// Whether an address is the network's own name server's.
    pub fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.v4.dns || self.more_dns.contains(&a),
            IpAddr::V6(a) => self.v6.is_some_and(|v6| a == v6.dns()),
        }
    }

    /// Whether a guest may send from an address.
    pub fn is_guest(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) if self.only_card.is_some() => a == self.v4.guest,
            IpAddr::V4(a) => self.v4.is_guest(a),
            IpAddr::V6(a) if self.only_card.is_some() && !a.is_unicast_link_local() => {
                self.guest6 == Some(a)
            }
            IpAddr::V6(a) => self.v6.is_some_and(|v6| v6.is_guest(a)),
        }
    }

    pub(super) fn check(&self) -> Result<(), UserError> {
        if !(1280..=65_520).contains(&self.mtu) {
            return Err(UserError::Mtu(self.mtu));
        }
        let text = format!("{}/{}", self.v4.network, self.v4.prefix);
        if text.parse::<Subnet4>().is_err() {
            return Err(UserError::Subnet(text));
        }
        let lower = self
            .v6
            .is_some_and(|v6| u128::from(v6.network) & u128::from(u64::MAX) != 0);
        if let (Some(v6), true) = (self.v6, lower) {
            return Err(UserError::Subnet(format!("{}/64", v6.network)));
        }
        Ok(())
    }
}
