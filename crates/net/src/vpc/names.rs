//! The VPC's own names (RFC 1035): answered here; all others are asked of the
//! host's name servers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use machine_protocol::vpc::{Cidr, PortConfig};

#[cfg(test)]
use crate::user::wire::array;
use crate::user::wire::be16;

/// Life of an answer, in seconds: names move with their machines.
const LIFE: u32 = 60;
/// Most addresses in one answer.
const MOST: usize = 24;
/// Longest name.
const LONGEST: usize = 253;

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const ANY: u16 = 255;
const INTERNET: u16 = 1;
const NO_SUCH_NAME: u8 = 3;

/// Names and addresses of a VPC.
#[derive(Clone, Debug, Default)]
pub struct Names {
    domain: Option<String>,
    addresses: HashMap<String, Vec<IpAddr>>,
    reverse: HashMap<IpAddr, String>,
    blocks: Vec<Cidr>,
}

/// A question as it was asked.
struct Question<'a> {
    /// In small letters, without the last dot.
    name: String,
    kind: u16,
    /// Its bytes, to be repeated.
    bytes: &'a [u8],
}

impl Names {
    pub fn new(config: &PortConfig) -> Self {
        let clean = |name: &str| name.trim_matches('.').to_ascii_lowercase();
        let domain = config
            .domain
            .as_deref()
            .map(clean)
            .filter(|d| !d.is_empty());
        let mut names = Self {
            blocks: config.vpc.clone(),
            ..Self::default()
        };
        for host in &config.names {
            let name = clean(&host.name);
            if name.is_empty() {
                continue;
            }
            let full = match &domain {
                Some(domain) if !name.contains('.') => format!("{name}.{domain}"),
                _ => name.clone(),
            };
            for one in [&name, &full] {
                let known = names.addresses.entry(one.clone()).or_default();
                for address in &host.addresses {
                    if !known.contains(address) {
                        known.push(*address);
                    }
                }
            }
            for address in &host.addresses {
                names
                    .reverse
                    .entry(*address)
                    .or_insert_with(|| full.clone());
            }
        }
        names.domain = domain;
        names
    }

    /// Answers a query, if it is about the VPC.
    pub fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let question = parse(query)?;
        let mut records = Vec::new();
        let mut count = 0u16;
        let mut found = true;
        if let Some(address) = reversed(&question.name) {
            match self.reverse.get(&address) {
                Some(name) if matches!(question.kind, PTR | ANY) => {
                    let mut data = Vec::new();
                    labels(name, &mut data)?;
                    record(&mut records, PTR, &data);
                    count = 1;
                }
                Some(_) => {}
                None if self.blocks.iter().any(|block| block.contains(address)) => found = false,
                None => return None,
            }
        } else if let Some(addresses) = self.addresses.get(&question.name) {
            for address in addresses.iter().take(MOST) {
                match (address, question.kind) {
                    (IpAddr::V4(v4), A | ANY) => record(&mut records, A, &v4.octets()),
                    (IpAddr::V6(v6), AAAA | ANY) => record(&mut records, AAAA, &v6.octets()),
                    _ => continue,
                }
                count += 1;
            }
        } else {
            let domain = self.domain.as_deref()?;
            let inside = question.name.strip_suffix(domain)?;
            if !inside.is_empty() && !inside.ends_with('.') {
                return None;
            }
            found = inside.is_empty();
        }
        let recursion = query.get(2)? & 1;
        let mut out = query.get(..2)?.to_vec();
        // A response, with authority.
        out.extend([
            0x84 | recursion,
            0x80 | if found { 0 } else { NO_SUCH_NAME },
        ]);
        out.extend([0, 1]);
        out.extend(count.to_be_bytes());
        out.extend([0, 0, 0, 0]);
        out.extend(question.bytes);
        out.extend(records);
        Some(out)
    }
}

/// The one question of a plain query.
fn parse(query: &[u8]) -> Option<Question<'_>> {
    let flags = be16(query, 2)?;
    // A response, or an operation other than a query, or not one question.
    if flags & 0xf800 != 0 || be16(query, 4)? != 1 || be16(query, 6)? != 0 {
        return None;
    }
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Longer ones are pointers, which a question does not need.
        let label = query.get(at..at + length).filter(|_| length <= 63)?;
        if !name.is_empty() {
            name.push('.');
        }
        for byte in label {
            // A dot in a label is none between labels.
            if !byte.is_ascii_graphic() || *byte == b'.' {
                return None;
            }
            name.push(byte.to_ascii_lowercase().into());
        }
        if name.len() > LONGEST {
            return None;
        }
        at += length;
    }
    let (kind, class) = (be16(query, at)?, be16(query, at + 2)?);
    (class == INTERNET).then_some(())?;
    Some(Question {
        name,
        kind,
        bytes: query.get(12..at + 4)?,
    })
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut parts = rest.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut address = 0u128;
    let mut digits = 0;
    for digit in rest.split('.').rev() {
        let value = u8::from_str_radix(digit, 16)
            .ok()
            .filter(|_| digit.len() == 1)?;
        address = address << 4 | u128::from(value);
        digits += 1;
        if digits > 32 {
            return None;
        }
    }
    (digits == 32).then(|| Ipv6Addr::from(address).into())
}

fn labels(name: &str, out: &mut Vec<u8>) -> Option<()> {
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|n| (1..=63).contains(n))?;
        out.push(length);
        out.extend(label.as_bytes());
    }
    out.push(0);
    Some(())
}

/// A record for the name of the question.
fn record(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    out.extend([0xc0, 12]);
    out.extend(kind.to_be_bytes());
    out.extend(INTERNET.to_be_bytes());
    out.extend(LIFE.to_be_bytes());
    out.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend(data);
}

/// The first IPv4 address of an answer, for tests.
#[cfg(test)]
pub fn first_address(answer: &[u8]) -> Option<Ipv4Addr> {
    let found = be16(answer, 6)? > 0 && answer.get(3)? & 15 == 0;
    let at = answer.len().checked_sub(4).filter(|_| found)?;
    Some(Ipv4Addr::from(array::<4>(answer, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine_protocol::vpc::HostName;

    pub fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        labels(name, &mut out).unwrap();
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out
    }

    fn names() -> Names {
        let subnet: Cidr = "10.0.0.0/16".parse().unwrap();
        let mut config = PortConfig::new(Ipv4Addr::new(10, 0, 0, 5), subnet, vec![subnet]);
        config.domain = Some("ec2.internal".into());
        config.names = vec![HostName {
            name: "Web".into(),
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        }];
        Names::new(&config)
    }

    #[test]
    fn own_names_are_answered_and_others_are_not() {
        let names = names();
        let address = Some(Ipv4Addr::new(10, 0, 0, 7));
        for name in ["web", "WEB.EC2.internal"] {
            let answer = names.answer(&query(name, A)).unwrap();
            assert_eq!(first_address(&answer), address, "{name}");
            assert_eq!(&answer[..2], [0x12, 0x34]);
        }
        let six = names.answer(&query("web", AAAA)).unwrap();
        assert!(six.ends_with(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]));
        let none = names.answer(&query("web", 15)).unwrap();
        assert_eq!((none[3] & 15, none[7]), (0, 0));
        let unknown = names.answer(&query("db.ec2.internal", A)).unwrap();
        assert_eq!(unknown[3] & 15, NO_SUCH_NAME);
        let reverse = names.answer(&query("7.0.0.10.in-addr.arpa", PTR)).unwrap();
        assert!(reverse.ends_with(b"\x03web\x03ec2\x08internal\0"));
        let unknown = names.answer(&query("8.0.0.10.in-addr.arpa", PTR)).unwrap();
        assert_eq!(unknown[3] & 15, NO_SUCH_NAME);
        for other in [
            "debian.org",
            "notec2.internal",
            "1.1.168.192.in-addr.arpa",
            "db",
        ] {
            assert_eq!(names.answer(&query(other, A)), None, "{other}");
        }
        let mut response = query("web", A);
        response[2] = 0x80;
        assert_eq!(names.answer(&response), None);
        let full = query("web", A);
        for length in 0..full.len() {
            assert_eq!(names.answer(&full[..length]), None);
        }
    }
}
