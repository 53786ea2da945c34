//! The name servers behind the network's own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant, SystemTime};

use super::nat::DNS_PORT;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often the file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// A query without an answer for so long makes the next one go elsewhere.
const PATIENCE: Duration = Duration::from_secs(2);

/// The host's name servers, in the order that they are asked.
pub struct Resolvers {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    /// Index of the one that is asked.
    preferred: usize,
    /// When the oldest query went out that has no answer.
    unanswered: Option<Instant>,
    file: Option<Watched>,
}

struct Watched {
    looked: Instant,
    stamp: Option<(SystemTime, u64)>,
}

impl Resolvers {
    /// Servers that never change.
    pub fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            search: Vec::new(),
            preferred: 0,
            unanswered: None,
            file: None,
        }
    }

    /// The host's, read again when they change.
    pub fn of_host() -> Self {
        let mut resolvers = Self::fixed(Vec::new());
        resolvers.file = Some(Watched {
            looked: Instant::now(),
            stamp: stamp(),
        });
        resolvers.read();
        resolvers
    }

    fn read(&mut self) {
        let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        (self.servers, self.search) = parse(&text);
        self.preferred = 0;
        self.unanswered = None;
    }

    /// The one to ask.
    pub fn current(&mut self) -> SocketAddr {
        if let Some(file) = &mut self.file
            && file.looked.elapsed() >= LOOK
        {
            file.looked = Instant::now();
            let now = stamp();
            if now != file.stamp {
                file.stamp = now;
                self.read();
            }
        }
        let localhost = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS_PORT);
        self.servers
            .get(self.preferred)
            .copied()
            .unwrap_or(localhost)
    }

    /// A query goes out at `now`.
    pub fn asked(&mut self, now: Instant) {
        let since = *self.unanswered.get_or_insert(now);
        if now.saturating_duration_since(since) >= PATIENCE {
            self.failed();
            self.unanswered = Some(now);
        }
    }

    /// An answer came.
    pub fn answered(&mut self) {
        self.unanswered = None;
    }

    /// The one that is asked cannot be reached: the next one is.
    pub fn failed(&mut self) {
        self.preferred = (self.preferred + 1) % self.servers.len().max(1);
        self.unanswered = None;
    }

    /// Domains to search names in.
    pub fn search(&self) -> &[String] {
        &self.search
    }
}

fn stamp() -> Option<(SystemTime, u64)> {
    let data = fs::metadata(RESOLV_CONF).ok()?;
    Some((data.modified().ok()?, data.len()))
}

/// Servers and search domains of a resolv.conf(5).
fn parse(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let mut servers = Vec::new();
    let mut search = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().and_then(server)),
            Some("search" | "domain") => search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    (servers, search)
}

fn server(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, DNS_PORT));
    }
    // A link-local address with its interface.
    let (address, zone) = text.split_once('%')?;
    let index = match zone.parse() {
        Ok(index) => index,
        Err(_) => fs::read_to_string(format!("/sys/class/net/{zone}/ifindex"))
            .ok()?
            .trim()
            .parse()
            .ok()?,
    };
    Some(SocketAddrV6::new(address.parse().ok()?, DNS_PORT, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# x\nnameserver 192.0.2.1\nnameserver 2001:db8::1 \nnameserver fe80::1%1\n\
                    nameserver junk\ndomain a.example\nsearch b.example c.example\noptions ndots:2\n";
        let (servers, search) = parse(text);
        let text: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]);
        assert_eq!(search, ["b.example", "c.example"]);
    }

    #[test]
    fn a_server_that_does_not_answer_gives_way() {
        let a = "192.0.2.1:53".parse().unwrap();
        let b = "192.0.2.2:53".parse().unwrap();
        let mut resolvers = Resolvers::fixed(vec![a, b]);
        let start = Instant::now();
        resolvers.asked(start);
        resolvers.asked(start + Duration::from_secs(1));
        assert_eq!(resolvers.current(), a);
        resolvers.asked(start + Duration::from_secs(3));
        assert_eq!(resolvers.current(), b);
        resolvers.answered();
        resolvers.asked(start + Duration::from_secs(60));
        assert_eq!(resolvers.current(), b);
        resolvers.failed();
        assert_eq!(resolvers.current(), a);
    }
}
