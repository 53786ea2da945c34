//! Security groups' rules in a form that is quick to ask.

use std::collections::HashSet;
use std::net::IpAddr;

use machine_protocol::vpc::{Cidr, PortConfig, Protocol, Rule};

/// What rules are asked about: what begins a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Number of its protocol.
    pub protocol: u8,
    /// TCP and UDP: the port that it goes to; ICMP: its type.
    pub number: u16,
    /// ICMP: its code.
    pub code: u8,
    /// The other's address.
    pub remote: IpAddr,
}

/// Rules of one direction.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Ready>);

/// One rule.
#[derive(Clone, Debug)]
struct Ready {
    protocol: Protocol,
    from: Option<u16>,
    to: Option<u16>,
    others: Others,
}

/// Addresses of the others.
#[derive(Clone, Debug, Default)]
struct Others {
    single: HashSet<IpAddr>,
    blocks: Vec<Cidr>,
}

impl Others {
    fn add(&mut self, block: Cidr) {
        if block == Cidr::one(block.first()) {
            self.single.insert(block.first());
        } else {
            self.blocks.push(block);
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.blocks.iter().any(|block| block.contains(address)) || self.single.contains(&address)
    }
}

fn number(value: Option<i32>) -> Option<u16> {
    value.and_then(|value| u16::try_from(value).ok())
}

impl Rules {
    /// Rules of a configuration that was checked.
    pub fn new(rules: &[Rule], config: &PortConfig) -> Self {
        let ready = |rule: &Rule| {
            let mut others = Others::default();
            let groups = rule
                .groups
                .iter()
                .filter_map(|name| config.groups.get(name));
            for block in rule.cidrs.iter().chain(groups.flatten()) {
                others.add(*block);
            }
            Ready {
                protocol: rule.protocol,
                from: number(rule.from),
                to: number(rule.to),
                others,
            }
        };
        Self(rules.iter().map(ready).collect())
    }

    /// Whether any rule lets it pass.
    pub fn allow(&self, question: &Question) -> bool {
        self.0.iter().any(|rule| rule.allows(question))
    }

    /// Ranges of ports of this protocol that a rule opens for any of these
    /// addresses.
    pub fn open_ranges(&self, protocol: Protocol, others: &[IpAddr]) -> Vec<(u16, u16)> {
        let open = self.0.iter().filter(|rule| {
            (rule.protocol == Protocol::All || rule.protocol == protocol)
                && others.iter().any(|other| rule.others.contains(*other))
        });
        open.map(|rule| match rule.protocol {
            Protocol::All => (0, u16::MAX),
            _ => (rule.from.unwrap_or(0), rule.to.unwrap_or(u16::MAX)),
        })
        .collect()
    }
}

impl Ready {
    fn allows(&self, question: &Question) -> bool {
        if !self.others.contains(question.remote) {
            return false;
        }
        match self.protocol {
            Protocol::All => true,
            Protocol::Number(number) if number != question.protocol => false,
            Protocol::TCP | Protocol::UDP => {
                self.from.is_none_or(|from| from <= question.number)
                    && self.to.is_none_or(|to| question.number <= to)
            }
            Protocol::ICMP | Protocol::ICMPV6 => {
                self.from.is_none_or(|kind| kind == question.number)
                    && self.to.is_none_or(|code| code == u16::from(question.code))
            }
            Protocol::Number(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rules as EC2 documents them, word by word.
    fn naive(rules: &[Rule], config: &PortConfig, q: &Question) -> bool {
        let name = match q.protocol {
            1 => "icmp".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            58 => "icmpv6".to_owned(),
            other => other.to_string(),
        };
        for rule in rules {
            let text = rule.protocol.to_string();
            let mut blocks = rule.cidrs.clone();
            for group in &rule.groups {
                blocks.extend(config.groups[group].clone());
            }
            let ours = blocks.iter().any(|block| match (block.first(), q.remote) {
                (IpAddr::V4(a), IpAddr::V4(b)) => (0..32u8)
                    .take(block.prefix().into())
                    .all(|bit| u32::from(a) >> (31 - bit) & 1 == u32::from(b) >> (31 - bit) & 1),
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    (0..128u8).take(block.prefix().into()).all(|bit| {
                        u128::from(a) >> (127 - bit) & 1 == u128::from(b) >> (127 - bit) & 1
                    })
                }
                _ => false,
            });
            let (from, to) = (rule.from.unwrap_or(-1), rule.to.unwrap_or(-1));
            let numbers = match text.as_str() {
                "tcp" | "udp" => from == -1 || (from..=to).contains(&i32::from(q.number)),
                "icmp" | "icmpv6" => {
                    (from == -1 || from == i32::from(q.number))
                        && (to == -1 || to == i32::from(q.code))
                }
                _ => true,
            };
            if ours && numbers && (text == "all" || text == name) {
                return true;
            }
        }
        false
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u32..16).prop_map(|n| IpAddr::from((0x0a00_0000 | n).to_be_bytes())),
            (0u128..16).prop_map(|n| IpAddr::from((0xfd00 << 112 | n).to_be_bytes())),
        ]
    }

    fn block() -> impl Strategy<Value = Cidr> {
        (address(), 0u8..=5).prop_map(|(address, up)| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let prefix = if up == 5 { 0 } else { bits - up };
            let first = match address {
                IpAddr::V4(a) => {
                    let mask = u32::MAX.checked_shl((32 - prefix).into()).unwrap_or(0);
                    IpAddr::from((u32::from(a) & mask).to_be_bytes())
                }
                IpAddr::V6(a) => {
                    let mask = u128::MAX.checked_shl((128 - prefix).into()).unwrap_or(0);
                    IpAddr::from((u128::from(a) & mask).to_be_bytes())
                }
            };
            Cidr::new(first, prefix).unwrap()
        })
    }

    fn protocol() -> impl Strategy<Value = Protocol> {
        prop_oneof![
            Just(Protocol::All),
            Just(Protocol::TCP),
            Just(Protocol::UDP),
            Just(Protocol::ICMP),
            Just(Protocol::ICMPV6),
            Just(Protocol::Number(50)),
        ]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let blocks = || prop::collection::vec(block(), 0..3);
        (protocol(), -1i32..6, 0i32..6, blocks(), any::<bool>()).prop_map(
            |(protocol, from, more, cidrs, group)| {
                let ports = matches!(protocol, Protocol::TCP | Protocol::UDP);
                let to = match (ports, from) {
                    (true, -1) => -1,
                    (true, from) => from + more,
                    (false, _) => more - 1,
                };
                Rule {
                    protocol,
                    from: Some(from).filter(|n| *n != -1 || more > 2),
                    to: Some(to),
                    cidrs,
                    groups: group.then(|| "sg-1".to_owned()).into_iter().collect(),
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn rules_mean_what_ec2_says(
            rules in prop::collection::vec(rule(), 0..5),
            group in prop::collection::vec(block(), 0..3),
            questions in prop::collection::vec(
                (prop::sample::select(vec![1u8, 6, 17, 50, 58, 99]), 0u16..8, 0u8..4, address()),
                20,
            ),
        ) {
            let subnet = "10.0.0.0/24".parse().unwrap();
            let mut config = PortConfig::new("10.0.0.5".parse().unwrap(), subnet, vec![subnet]);
            config.groups.insert("sg-1".into(), group);
            let ready = Rules::new(&rules, &config);
            for (protocol, number, code, remote) in questions {
                let question = Question { protocol, number, code, remote };
                prop_assert_eq!(ready.allow(&question), naive(&rules, &config, &question), "{:?}", question);
            }
        }
    }
}
