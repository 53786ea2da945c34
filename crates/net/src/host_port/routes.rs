//! What the host's network already leads elsewhere.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use machine_protocol::vpc::Cidr;

/// Routes that lead so much of the world somewhere are ways out like the
/// default route, and more exact ones go before them.
const WIDE: u8 = 7;

/// Something that has addresses of a block already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    block: Cidr,
    interface: String,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leads to {}", self.block, self.interface)
    }
}

/// The first route or address of the host that overlaps a block, but those of
/// the interface `own`.
pub fn taken(block: Cidr, own: &str) -> io::Result<Option<Taken>> {
    let table = fs::read_to_string("/proc/net/route")?;
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|one| {
        let address = one.address?.as_sockaddr_in()?.ip();
        Some(Taken {
            block: Cidr::one(address.into()),
            interface: one.interface_name,
        })
    });
    let mut all = routes(&table).chain(addresses);
    Ok(all.find(|taken| taken.interface != own && overlap(taken.block, block)))
}

fn overlap(a: Cidr, b: Cidr) -> bool {
    a.contains(b.first()) || b.contains(a.first())
}

/// The routes of a table as Linux shows it (`/proc/net/route`), but wide ones.
fn routes(table: &str) -> impl Iterator<Item = Taken> {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let interface = words.next()?.to_owned();
        let first = number(words.next()?)?;
        let mask = number(words.nth(5)?)?;
        let prefix = u8::try_from(u32::from(mask).leading_ones()).ok()?;
        let block = Cidr::new(IpAddr::V4(first), prefix)?;
        (prefix > WIDE).then_some(Taken { block, interface })
    })
}

/// An address as the kernel prints it: the bytes of a word in its own order.
fn number(text: &str) -> Option<Ipv4Addr> {
    let word = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(word.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
         eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
         tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n\
         eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
         docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\nodd\n";

    #[test]
    fn overlapping_routes_are_found_and_ways_out_are_not() {
        let found = |block: &str| {
            let block: Cidr = block.parse().unwrap();
            let all: Vec<String> = routes(TABLE)
                .filter(|taken| overlap(taken.block, block))
                .map(|taken| taken.to_string())
                .collect();
            all.join(";")
        };
        assert_eq!(found("172.31.0.0/16"), "");
        assert_eq!(found("172.17.3.0/24"), "172.17.0.0/16 leads to docker0");
        assert_eq!(found("192.0.0.0/16"), "192.0.2.0/24 leads to eth0");
        assert!(taken("127.0.0.0/16".parse().unwrap(), "").is_ok());
    }
}
