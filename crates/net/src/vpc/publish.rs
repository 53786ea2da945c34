//! Which ports answer at the public address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use machine_protocol::vpc::{Protocol, UnpublishedPort};

use super::compiled::Compiled;

/// Most ports of one range that are listened at; of a wider one only the
/// usual ones are.
pub const MOST_OF_A_RANGE: usize = 64;
/// Most ports of a card that are listened at.
pub const MOST_PUBLISHED: usize = 256;

/// Ports that people use, in the order of their need.
const USUAL_TCP: [u16; 32] = [
    22, 80, 443, 8080, 8443, 3000, 5000, 8000, 8888, 3306, 5432, 6379, 27_017, 9090, 9100, 9200,
    3389, 5900, 5672, 15_672, 2379, 6443, 10_250, 25, 53, 110, 143, 389, 465, 587, 636, 993,
];
const USUAL_UDP: [u16; 6] = [53, 123, 500, 1194, 4500, 51_820];

/// Ports to be listened at, and ranges that are not as a whole.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub ports: Vec<(Protocol, u16)>,
    pub left: Vec<UnpublishedPort>,
}

/// Finds them.
pub fn wanted(port: &Compiled) -> Wanted {
    let mut wanted = Wanted::default();
    if port.config.public.is_none() || !port.config.link_up {
        return wanted;
    }
    let host: Vec<IpAddr> = port.host_addresses();
    let mut ports = BTreeSet::new();
    for (protocol, usual) in [(Protocol::TCP, &USUAL_TCP[..]), (Protocol::UDP, &USUAL_UDP)] {
        for (first, last) in port.ingress.open_ranges(protocol, &host) {
            let all = usize::from(last.saturating_sub(first)) < MOST_OF_A_RANGE;
            let range: Vec<u16> = match all {
                true => (first.max(1)..=last).collect(),
                false => {
                    let inside = usual.iter().copied();
                    inside.filter(|n| (first..=last).contains(n)).collect()
                }
            };
            let mut left = !all;
            for port in range {
                let one = (protocol, port);
                if ports.contains(&one) {
                    continue;
                }
                if ports.len() < MOST_PUBLISHED {
                    ports.insert(one);
                } else {
                    left = true;
                }
            }
            let part = UnpublishedPort {
                protocol,
                port: first,
                last,
                reason: format!(
                    "a range of more than {MOST_OF_A_RANGE} ports answers at the usual ports only, \
                     and a card at {MOST_PUBLISHED} at most; open the ports that you need one by one"
                ),
            };
            if left && !wanted.left.contains(&part) {
                wanted.left.push(part);
            }
        }
    }
    wanted.ports = ports.into_iter().collect();
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine_protocol::vpc::{Cidr, PortConfig, Rule};

    fn of(rules: Vec<Rule>) -> Wanted {
        let subnet: Cidr = "10.0.0.0/16".parse().unwrap();
        let mut config = PortConfig::new([10, 0, 0, 5].into(), subnet, vec![subnet]);
        config.public = Some([127, 86, 0, 5].into());
        config.host_addresses = vec![[192, 0, 2, 7].into()];
        config.ingress = rules;
        wanted(&Compiled::new(config))
    }

    fn tcp(first: u16, last: u16, from: &str) -> Rule {
        Rule::ports(Protocol::TCP, first, last, vec![from.parse().unwrap()])
    }

    #[test]
    fn ports_that_the_host_may_reach_are_published_within_bounds() {
        let ports = |wanted: &Wanted| -> Vec<u16> { wanted.ports.iter().map(|p| p.1).collect() };
        let some = of(vec![
            tcp(22, 22, "0.0.0.0/0"),
            tcp(80, 81, "127.0.0.0/8"),
            tcp(443, 443, "192.0.2.0/24"),
            tcp(5432, 5432, "10.0.0.0/16"),
            Rule::all(Protocol::ICMP, vec!["0.0.0.0/0".parse().unwrap()]),
        ]);
        assert_eq!(ports(&some), [22, 80, 81, 443]);
        assert!(some.left.is_empty());
        let all = of(vec![Rule::all(
            Protocol::All,
            vec!["0.0.0.0/0".parse().unwrap()],
        )]);
        assert_eq!(all.ports.len(), USUAL_TCP.len() + USUAL_UDP.len());
        assert_eq!(all.left.len(), 2);
        let many: Vec<Rule> = (0..10)
            .map(|n| tcp(n * 64, n * 64 + 63, "0.0.0.0/0"))
            .collect();
        let many = of(many);
        assert_eq!(many.ports.len(), MOST_PUBLISHED);
        assert!(!many.left.is_empty());
    }
}
