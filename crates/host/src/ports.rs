//! What each machine's network card is told: its network's addresses and
//! names, and who may reach it.
//!
//! What belongs to a network as a whole is computed once for all its cards, and
//! a card is told again only if what it is told has changed: a change of one
//! instance costs one look at its network.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use control::{Plane, View};
use ipnet::{Ipv4Net, Ipv6Net};
use machine_protocol::vpc::{Cidr, HostName, MetadataPort, PortConfig, Protocol, Rule};
use model::{
    Direction, Instance, Interface, Peer, SecurityGroup, SecurityGroupId, SecurityGroupRule,
    Subnet, SubnetId, Vpc, VpcId,
};
use store::Found;

use crate::layout::Layout;
use crate::metadata_service::DOMAIN;

/// What the cards of one network share.
pub struct Network {
    vpc: Arc<Found<Vpc>>,
    names: Vec<HostName>,
    /// As which its own clients count.
    host: Vec<IpAddr>,
    /// Of `names`, `host` and the network itself.
    digest: u64,
    groups: HashMap<SecurityGroupId, Group>,
    subnets: HashMap<SubnetId, Ground>,
}

/// A security group, as cards need it.
struct Group {
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
    /// Groups that its rules name.
    named: Vec<SecurityGroupId>,
    members: Vec<Cidr>,
    /// Of the rules, and of the members.
    digests: (u64, u64),
}

/// A subnet, as cards need it.
struct Ground {
    cidr: Cidr,
    /// It has a way to the world.
    internet: bool,
}

fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn v4(net: Ipv4Net) -> Option<Cidr> {
    Cidr::new(net.network().into(), net.prefix_len())
}

fn v6(net: Ipv6Net) -> Option<Cidr> {
    Cidr::new(net.network().into(), net.prefix_len())
}

fn addresses(card: &Interface) -> impl Iterator<Item = IpAddr> {
    let more = card.ipv6.iter().copied().map(IpAddr::from);
    std::iter::once(IpAddr::from(card.private_ip)).chain(more)
}

impl Network {
    /// A network as it is now; `None`: there is none.
    pub fn of(plane: &Plane, id: &VpcId) -> Option<Self> {
        let view = plane.view();
        let vpc = view.get::<Vpc>(id)?;
        let in_it = |i: &Instance| !i.is_terminated() && i.vpc() == Some(id);
        let instances = view.filter::<Instance>(in_it);
        let mut names = Vec::with_capacity(instances.len());
        let mut members: HashMap<&SecurityGroupId, Vec<Cidr>> = HashMap::new();
        for instance in &instances {
            let cards = &instance.record.interfaces;
            let all: Vec<IpAddr> = cards.iter().flat_map(addresses).collect();
            for card in cards {
                for group in &card.groups {
                    let own = addresses(card).map(Cidr::one);
                    members.entry(group).or_default().extend(own);
                }
                push_name(&mut names, &instance.record.hostname, card, all.clone());
            }
        }
        let groups = view.filter::<SecurityGroup>(|group| group.vpc == *id);
        let groups = groups.iter().map(|found| {
            let mut members = members.remove(&found.record.id).unwrap_or_default();
            members.sort_unstable();
            (found.record.id.clone(), Group::of(&found.record, members))
        });
        let groups = groups.collect();
        let subnets = view.filter::<Subnet>(|subnet| subnet.vpc == *id);
        let subnets = subnets.iter().filter_map(|found| {
            let table = plane.route_table_of(&found.record);
            let ground = Ground {
                cidr: v4(found.record.cidr)?,
                internet: table.is_some_and(|table| table.reaches_internet()),
            };
            Some((found.record.id.clone(), ground))
        });
        let words = |name: &HostName| (name.name.clone(), name.addresses.clone());
        let all: Vec<_> = names.iter().map(words).collect();
        let (cidr, ipv6, dns) = (vpc.record.cidr, vpc.record.ipv6, vpc.record.dns_support);
        let host = host_addresses();
        Some(Self {
            digest: digest(&(all, &host, cidr, ipv6, dns)),
            host,
            subnets: subnets.collect(),
            vpc,
            names,
            groups,
        })
    }

    /// What a card would be told, in short: another number when that differs.
    pub fn fingerprint(&self, instance: &Instance, card: &Interface) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.digest.hash(&mut hasher);
        (card.private_ip, &card.ipv6, card.public_ip).hash(&mut hasher);
        instance.metadata_options.hop_limit.hash(&mut hasher);
        instance.hostname.hash(&mut hasher);
        let ground = self.subnets.get(&card.subnet);
        ground.map(|g| (g.cidr, g.internet)).hash(&mut hasher);
        for id in &card.groups {
            let group = self.groups.get(id);
            group.map(|group| group.digests.0).hash(&mut hasher);
            for named in group.iter().flat_map(|group| &group.named) {
                let named = self.groups.get(named);
                named.map(|group| group.digests.1).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// What a card is told; `None`: its subnet is gone.
    pub fn port(
        &self,
        layout: &Layout,
        instance: &Instance,
        card: &Interface,
    ) -> Option<PortConfig> {
        let ground = self.subnets.get(&card.subnet)?;
        let blocks = [v4(self.vpc.record.cidr), self.vpc.record.ipv6.and_then(v6)];
        let blocks = blocks.into_iter().flatten().collect();
        let mut port = PortConfig::new(card.private_ip, ground.cidr, blocks);
        port.ipv6 = card.ipv6.first().copied();
        port.hostname = Some(instance.hostname.clone());
        port.domain = Some(DOMAIN.into());
        if self.vpc.record.dns_support {
            port.names.clone_from(&self.names);
        }
        // As in EC2: who has no public address has no way through the gateway.
        port.internet = ground.internet && card.public_ip.is_some();
        port.public = card.public_ip;
        port.host_addresses.clone_from(&self.host);
        port.metadata = Some(MetadataPort {
            socket: layout.metadata_socket(instance.id.as_str()),
            hop_limit: instance.metadata_options.hop_limit.clamp(1, 64),
        });
        let groups = card.groups.iter().filter_map(|id| self.groups.get(id));
        let mut named = BTreeMap::new();
        for group in groups {
            port.ingress.extend(group.ingress.iter().cloned());
            port.egress.extend(group.egress.iter().cloned());
            for id in &group.named {
                let members = self.groups.get(id).map(|group| group.members.clone());
                named.insert(id.to_string(), members.unwrap_or_default());
            }
        }
        port.groups = named;
        Some(port)
    }
}

/// Most addresses of the host that cards are told.
const HOST_ADDRESSES: usize = 64;

/// Addresses of the host in its own networks.
fn host_addresses() -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let address = |one: nix::ifaddrs::InterfaceAddress| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))?;
        let local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        (!ip.is_loopback() && !local).then_some(ip)
    };
    let mut all: Vec<IpAddr> = all.filter_map(address).collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(HOST_ADDRESSES);
    all
}

/// The instance's own name first: it is the address's reverse. The address as
/// a name is always there, as in EC2.
fn push_name(names: &mut Vec<HostName>, own: &str, card: &Interface, all: Vec<IpAddr>) {
    let [a, b, c, d] = card.private_ip.octets();
    let usual = format!("ip-{a}-{b}-{c}-{d}");
    if own != usual {
        names.push(HostName {
            name: own.to_owned(),
            addresses: all,
        });
    }
    names.push(HostName {
        name: usual,
        addresses: addresses(card).collect(),
    });
}

impl Group {
    fn of(group: &SecurityGroup, members: Vec<Cidr>) -> Self {
        let of = |direction: Direction| {
            let rules = group.rules.iter().filter(move |r| r.direction == direction);
            rules.filter_map(rule).collect::<Vec<Rule>>()
        };
        let named = group.rules.iter().filter_map(|rule| match &rule.peer {
            Peer::Group(id) => Some(id.clone()),
            _ => None,
        });
        let named: HashSet<SecurityGroupId> = named.collect();
        let mut named: Vec<SecurityGroupId> = named.into_iter().collect();
        named.sort();
        let rules = group.rules.iter();
        let rules: Vec<_> = rules
            .map(|r| (r.direction, r.protocol, r.ports, r.peer.clone()))
            .collect();
        Self {
            ingress: of(Direction::Ingress),
            egress: of(Direction::Egress),
            named,
            digests: (digest(&rules), digest(&members)),
            members,
        }
    }
}

fn rule(rule: &SecurityGroupRule) -> Option<Rule> {
    let protocol = match rule.protocol {
        model::Protocol::All => Protocol::All,
        model::Protocol::Tcp => Protocol::TCP,
        model::Protocol::Udp => Protocol::UDP,
        model::Protocol::Icmp => Protocol::ICMP,
        model::Protocol::Icmpv6 => Protocol::ICMPV6,
        model::Protocol::Number(number) => Protocol::Number(number),
    };
    let ports = rule.ports.filter(|_| rule.protocol.has_ports());
    let mut told = Rule::all(protocol, Vec::new());
    told.from = ports.map(|ports| ports.from);
    told.to = ports.map(|ports| ports.to);
    match &rule.peer {
        Peer::Ipv4(net) => told.cidrs = vec![v4(*net)?],
        Peer::Ipv6(net) => told.cidrs = vec![v6(*net)?],
        Peer::Group(id) => told.groups = vec![id.to_string()],
    }
    Some(told)
}

/// Networks that something concerns: the changed record's, or all (`None`).
pub fn concerned(view: &View, kind: &str, id: &str) -> Concerned {
    use store::Record;
    let one = |vpc: Option<VpcId>| vpc.map_or(Concerned::All, Concerned::One);
    match kind {
        Instance::KIND => {
            let found = view.get::<Instance>(id);
            match found {
                Some(found) => found
                    .record
                    .vpc()
                    .cloned()
                    .map_or(Concerned::None, Concerned::One),
                None => Concerned::None,
            }
        }
        SecurityGroup::KIND => one(view.get::<SecurityGroup>(id).map(|g| g.record.vpc.clone())),
        Subnet::KIND => one(view.get::<Subnet>(id).map(|s| s.record.vpc.clone())),
        Vpc::KIND => one(view.get::<Vpc>(id).map(|v| v.record.id.clone())),
        model::RouteTable::KIND => one(view
            .get::<model::RouteTable>(id)
            .map(|t| t.record.vpc.clone())),
        _ => Concerned::None,
    }
}

/// Which networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concerned {
    /// None.
    None,
    /// This.
    One(VpcId),
    /// Perhaps each.
    All,
}
