//! Which address of the host's network stands behind an address that the
//! guest names, and which it may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind};

use super::config::{Reach, UserConfig};
use super::dns::Resolvers;
use super::policy::{Flow, Target, Transport, Verdict};

/// Addresses of the metadata services of clouds that are not link-local.
const METADATA4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];
/// The port of DNS.
pub const DNS_PORT: u16 = 53;

/// How a flow leaves: answers are translated back by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// To the address that the guest named.
    Direct,
    /// To the host's loopback, for the gateway's address.
    Host,
    /// To a name server, for the network's own at this address.
    Dns(IpAddr),
    /// To where the policy said, for this address.
    Policy(SocketAddr),
}

/// Where a flow goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To an address of the host's network.
    To(SocketAddr, Via),
    /// To what the policy said.
    Deliver(Target),
    /// To the network itself, which has no such service.
    Nobody,
    /// Forbidden; the guest is told.
    Refuse,
    /// Dropped.
    Ignore,
}

/// Finds where a flow from the guest goes.
pub fn route(
    config: &UserConfig,
    resolvers: &mut Resolvers,
    transport: Transport,
    guest: SocketAddr,
    remote: SocketAddr,
) -> Route {
    let flow = Flow {
        transport,
        guest,
        remote,
        client: None,
    };
    match config.policy.decide(&flow) {
        Verdict::Default => {}
        Verdict::Deliver(target) => return Route::Deliver(target),
        Verdict::Refuse => return Route::Refuse,
        Verdict::Ignore => return Route::Ignore,
    }
    let address = remote.ip();
    if is_nowhere(address) || config.v4.broadcast() == address || config.v4.network == address {
        return Route::Ignore;
    }
    if config.is_own(address) {
        return own(config, resolvers, remote);
    }
    let inside = match address {
        IpAddr::V4(a) => config.v4.contains(a),
        IpAddr::V6(a) => config.v6.is_none_or(|v6| v6.contains(a)) || is_link_local(address),
    };
    if inside {
        return Route::Nobody;
    }
    let forbidden = match config.reach {
        Reach::Nothing => true,
        Reach::NotTheHost => is_local(address),
        Reach::Everything => false,
    };
    if forbidden || (!config.host_metadata && is_metadata(address)) {
        return Route::Refuse;
    }
    Route::To(remote, Via::Direct)
}

/// The gateway's and the name server's addresses.
fn own(config: &UserConfig, resolvers: &mut Resolvers, remote: SocketAddr) -> Route {
    if config.is_dns(remote.ip()) {
        if remote.port() != DNS_PORT {
            return Route::Nobody;
        }
        if config.reach == Reach::Nothing {
            return Route::Refuse;
        }
        return Route::To(resolvers.current(), Via::Dns(remote.ip()));
    }
    if config.reach != Reach::Everything {
        return Route::Refuse;
    }
    let loopback = match remote {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    Route::To(SocketAddr::new(loopback, remote.port()), Via::Host)
}

/// Addresses that no packet on a link is sent to, or that the host would take
/// for its own loopback.
fn is_nowhere(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            first == 0 || first == 127 || first >= 224
        }
        IpAddr::V6(a) => {
            a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.to_ipv4().is_some()
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// Services that give away who the host is.
fn is_metadata(address: IpAddr) -> bool {
    let known = match address {
        IpAddr::V4(a) => METADATA4.contains(&a),
        IpAddr::V6(a) => METADATA6.contains(&a) || embedded(a).is_some_and(is_metadata),
    };
    known || is_link_local(address)
}

/// The IPv4 address behind an address of NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn embedded(address: Ipv6Addr) -> Option<IpAddr> {
    let s = address.segments();
    let [high, low] = match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [high, low],
        [0x2002, high, low, ..] => [high, low],
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)).into())
}

/// Whether an address is one of the host's own: then a socket can have it.
fn is_local(address: IpAddr) -> bool {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    // Without a socket nothing is known, and the flow would fail for the same reason.
    socket.is_ok_and(|socket| bind(&socket, &SocketAddr::new(address, 0)).is_ok())
}

/// Whether the host has a route to the IPv6 Internet.
pub fn host_has_ipv6() -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let outside = SocketAddr::new(Ipv6Addr::new(0x2001, 0x4860, 0, 0, 0, 0, 0, 1).into(), 53);
    rustix::net::socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None)
        .is_ok_and(|socket| rustix::net::connect(&socket, &outside).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(config: &UserConfig, address: &str) -> Route {
        let guest = "10.0.2.15:1000".parse().unwrap();
        let mut resolvers = Resolvers::fixed(vec!["192.0.2.53:53".parse().unwrap()]);
        route(
            config,
            &mut resolvers,
            Transport::Tcp,
            guest,
            address.parse().unwrap(),
        )
    }

    #[test]
    fn the_host_the_name_server_and_the_world() {
        let dns = |address: &str| Via::Dns(address.parse().unwrap());
        let config = UserConfig::default();
        for (address, target, via) in [
            ("10.0.2.2:80", "127.0.0.1:80", Via::Host),
            ("[fec0::2]:80", "[::1]:80", Via::Host),
            ("10.0.2.3:53", "192.0.2.53:53", dns("10.0.2.3")),
            ("[fec0::3]:53", "192.0.2.53:53", dns("fec0::3")),
            ("198.51.100.1:443", "198.51.100.1:443", Via::Direct),
        ] {
            let expected = Route::To(target.parse().unwrap(), via);
            assert_eq!(to(&config, address), expected, "{address}");
        }
        for address in [
            "10.0.2.3:80",
            "10.0.2.77:80",
            "[fec0::77]:80",
            "[fe80::2]:9",
        ] {
            let wanted = if address.contains("fe80") {
                Route::To("[::1]:9".parse().unwrap(), Via::Host)
            } else {
                Route::Nobody
            };
            assert_eq!(to(&config, address), wanted, "{address}");
        }
    }

    #[test]
    fn names_of_the_hosts_loopback_lead_nowhere() {
        for address in [
            "0.0.0.0:22",
            "127.0.0.1:22",
            "127.1.2.3:22",
            "255.255.255.255:67",
            "224.0.0.251:5353",
            "10.0.2.255:22",
            "[::]:22",
            "[::1]:22",
            "[::ffff:127.0.0.1]:22",
            "[::127.0.0.1]:22",
            "[ff02::fb]:22",
        ] {
            assert_eq!(
                to(&UserConfig::default(), address),
                Route::Ignore,
                "{address}"
            );
        }
    }

    #[test]
    fn metadata_of_the_hosts_cloud_is_refused() {
        let open = UserConfig {
            host_metadata: true,
            ..UserConfig::default()
        };
        for address in [
            "169.254.169.254:80",
            "168.63.129.16:80",
            "[fd00:ec2::254]:80",
            "[64:ff9b::169.254.169.254]:80",
        ] {
            assert_eq!(to(&UserConfig::default(), address), Route::Refuse);
            let direct = Route::To(address.parse().unwrap(), Via::Direct);
            assert_eq!(to(&open, address), direct);
        }
    }

    #[test]
    fn reach_is_kept() {
        let config = |reach| UserConfig {
            reach,
            host_metadata: true,
            ..UserConfig::default()
        };
        let not_the_host = config(Reach::NotTheHost);
        assert_eq!(to(&not_the_host, "10.0.2.2:80"), Route::Refuse);
        assert!(matches!(
            to(&not_the_host, "198.51.100.1:80"),
            Route::To(..)
        ));
        assert!(matches!(to(&not_the_host, "10.0.2.3:53"), Route::To(..)));
        assert!(is_local("127.0.0.1".parse().unwrap()));
        let nothing = config(Reach::Nothing);
        for address in ["10.0.2.2:80", "10.0.2.3:53", "198.51.100.1:80"] {
            assert_eq!(to(&nothing, address), Route::Refuse);
        }
    }
}
