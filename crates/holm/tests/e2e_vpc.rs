//! Managed machines' networks: ports in a VPC, their rules, names and metadata,
//! and the ways to a guest from the host.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{BOOT, Console, SOON, holm, image};
use machine_protocol::vpc::{Cidr, HostName, MetadataPort, PortConfig, PortReport, Protocol, Rule};
use machine_protocol::{Hello, Reply, Request};

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);
/// Adds the address that DHCP gives, its route and its name server.
const LEASE: &str = "printf '#!/bin/sh\\n[ $1 = bound ] || exit 0\\n\
    ip addr add $ip/$mask dev $interface\\nip route add default via $router\\n\
    echo nameserver $dns > /etc/resolv.conf\\necho search $domain >> /etc/resolv.conf\\n' > /tmp/lease\n\
    chmod +x /tmp/lease; ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up; udhcpc -n -q -f -i eth0 -s /tmp/lease";

/// A machine `tiny` in a VPC.
struct Node {
    console: Console,
    runtime: PathBuf,
    name: &'static str,
    port: PortConfig,
}

impl Node {
    fn start(runtime: &Path, vpc: &str, name: &'static str, port: PortConfig) -> Self {
        image("tiny");
        let file = runtime.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_string(&port).unwrap()).unwrap();
        let net = format!(
            "vpc={},port={},door={}",
            runtime.join(vpc).display(),
            file.display(),
            runtime.join(format!("{name}.door")).display()
        );
        let mut command = holm();
        command
            .args(["run", "tiny", "--memory", "128M", "--append", "quiet"])
            .args(["--name", name, "--net", &net])
            .env("XDG_RUNTIME_DIR", runtime);
        Self {
            console: Console::start(&mut command).unwrap(),
            runtime: runtime.to_owned(),
            name,
            port,
        }
    }

    /// Waits for the shell, and has the guest ask for its address.
    fn up(&mut self) {
        self.console.expect("# ", BOOT).unwrap();
        let leased = self.run(LEASE);
        let own = format!("lease of {} obtained from", self.port.address);
        assert!(leased.contains(&own), "{leased}");
        // The image has no client for DHCPv6; the route is advertised.
        let v6 = self.port.ipv6.unwrap();
        self.run(&format!("ip -6 addr add {v6}/128 dev eth0"));
        self.run(
            "for i in $(seq 200); do ip -6 route | grep -q ^default && break; usleep 100000; done; \
             ip -6 route | grep ^default",
        );
    }

    fn begin(&mut self, command: &str) {
        let line = format!("echo BE''GIN; {command}; echo EN''D $?\n");
        self.console.send(&line).unwrap();
        self.console.expect("BEGIN\r\n", BOOT).unwrap();
    }

    fn end(&mut self) -> (String, bool) {
        let output = self.console.expect("END ", BOOT).unwrap();
        let status = self.console.expect("\n", SOON).unwrap();
        (output.replace("\r\n", "\n"), status.trim() == "0")
    }

    /// What a command printed, and whether it succeeded.
    fn tries(&mut self, command: &str) -> (String, bool) {
        self.begin(command);
        self.end()
    }

    fn run(&mut self, command: &str) -> String {
        let (output, well) = self.tries(command);
        assert!(well, "{}: {command}: {output}", self.name);
        output
    }

    fn ask(&self, request: &Request) -> Reply {
        let socket = format!("holm/machines/{}/control.sock", self.name);
        let mut stream = UnixStream::connect(self.runtime.join(socket)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let _: Hello = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let line = serde_json::to_string(request).unwrap() + "\n";
        stream.write_all(line.as_bytes()).unwrap();
        serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
    }

    /// Changes the port while the machine runs.
    fn change(&mut self, change: impl FnOnce(&mut PortConfig)) -> PortReport {
        change(&mut self.port);
        let port = Box::new(self.port.clone());
        match self.ask(&Request::ConfigureNic { nic: 0, port }) {
            Reply::NicConfigured(report) => report,
            other => panic!("{other:?}"),
        }
    }

    fn dropped(&self, reason: &str) -> u64 {
        let Reply::Metrics(metrics) = self.ask(&Request::Metrics {}) else {
            panic!("no metrics");
        };
        let samples = &metrics.samples["holm_port_dropped_packets_total"];
        let wanted = ("reason".to_owned(), reason.to_owned());
        let sample = samples.iter().find(|s| s.labels.contains(&wanted));
        sample.unwrap().value
    }

    fn pings(&mut self, to: &str) -> bool {
        // The first may be lost while the ports get to know each other.
        self.tries(&format!("ping -c 2 -W 1 {to} | grep 'ttl='")).1
    }

    /// Whether a ping is lost on its way, or its answer.
    fn loses(&mut self, to: &str) -> bool {
        !self.tries(&format!("ping -c 1 -W 1 {to}")).1
    }

    fn off(mut self) {
        self.console.send("poweroff -f\n").unwrap();
        let (status, _) = self.console.finish(SOON).unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

fn block(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn all(to: &str) -> Rule {
    Rule::all(Protocol::All, vec![block(to)])
}

fn port(runtime: &Path, address: Ipv4Addr, name: &str) -> PortConfig {
    let [a, b, c, _] = address.octets();
    let subnet = block(&format!("{a}.{b}.{c}.0/24"));
    let mut port = PortConfig::new(address, subnet, vec![block("10.0.0.0/16")]);
    port.vpc.push(block("fd00:86::/56"));
    port.ipv6 = Some(six(address));
    port.domain = Some("ec2.internal".into());
    port.names = [("a", A), ("b", B)]
        .map(|(name, address)| HostName {
            name: name.into(),
            addresses: vec![address.into(), six(address).into()],
        })
        .into();
    port.metadata = Some(MetadataPort {
        socket: runtime.join(format!("{name}.imds")),
        hop_limit: 1,
    });
    port.egress = vec![all("0.0.0.0/0")];
    port
}

/// The IPv6 address beside an IPv4 address, in the /64 of its subnet.
fn six(address: Ipv4Addr) -> Ipv6Addr {
    let [_, _, subnet, host] = address.octets();
    Ipv6Addr::new(
        0xfd00,
        0x86,
        0,
        subnet.into(),
        0,
        0,
        0,
        0x100 + u16::from(host),
    )
}

/// A metadata service that knows nothing but whose it is.
fn metadata(runtime: &Path, name: &'static str) {
    let listener = UnixListener::bind(runtime.join(format!("{name}.imds"))).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut request = [0; 1024];
            // A client may go at any time.
            let _ = client.read(&mut request);
            let _ = write!(client, "HTTP/1.0 200 OK\r\n\r\nI am {name}\n");
        }
    });
}

/// Says something to a server in the guest as soon as it listens.
fn says(connect: impl Fn() -> std::io::Result<Box<dyn Duplex>>, text: &str) -> bool {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if let Ok(mut stream) = connect()
            && stream.write_all(text.as_bytes()).is_ok()
        {
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).is_ok() && answer.contains("well") {
                return true;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

#[test]
fn machines_of_a_vpc_live_by_their_rules() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    // One address for each test that runs at a time.
    let public = Ipv4Addr::from(0x7f57_0000 | (std::process::id() & 0xffff));
    let mut config = port(runtime, A, "a");
    config.public = Some(public);
    config.ingress = vec![Rule::ports(
        Protocol::TCP,
        2300,
        2301,
        vec![block("0.0.0.0/0")],
    )];
    let mut a = Node::start(runtime, "vpc-1", "a", config);
    let mut config = port(runtime, B, "b");
    config
        .groups
        .insert("sg-a".into(), vec![Cidr::one(A.into())]);
    let mut from_a = Rule::all(Protocol::ICMP, vec![]);
    from_a.groups = vec!["sg-a".into()];
    config.ingress = vec![from_a];
    let mut b = Node::start(runtime, "vpc-1", "b", config);
    // Another VPC with the same addresses.
    let mut config = port(runtime, Ipv4Addr::new(10, 0, 2, 9), "c");
    config.ingress = vec![all("0.0.0.0/0")];
    let mut c = Node::start(runtime, "vpc-2", "c", config);
    for node in [&mut a, &mut b, &mut c] {
        node.up();
    }
    between_machines(&mut a, &mut b, &mut c);
    names_and_metadata(runtime, &mut a, &mut b);
    out_of_the_vpc(&mut a);
    from_the_host(runtime, public, &mut a);
    for node in [a, b, c] {
        node.off();
    }
}

fn between_machines(a: &mut Node, b: &mut Node, c: &mut Node) {
    let ping = a.run("ping -c 2 -W 5 10.0.2.5");
    assert!(ping.contains("ttl=63"), "routed between subnets: {ping}");
    assert!(b.loses("10.0.1.4"), "a lets no pings in");
    assert!(a.dropped("ingress") > 0);
    assert!(c.loses("10.0.2.5"), "another VPC");

    // Spoofed: another address, and another card.
    b.change(|port| port.ingress.push(all("10.0.0.0/16")));
    assert!(c.port.ingress == [all("0.0.0.0/0")] && a.pings("10.0.2.5"));
    let spoof = "ip addr add 10.0.1.77/32 dev eth0; ping -c 1 -W 1 -I 10.0.1.77 10.0.2.5";
    assert!(!a.tries(spoof).1);
    assert!(a.dropped("spoofed") > 0);
    a.run("ip addr del 10.0.1.77/32 dev eth0");
    let to_b = format!("ping6 -c 2 -W 5 {}", six(B));
    assert!(
        !a.tries(&to_b.replace("-c 2 -W 5", "-c 1 -W 1")).1,
        "egress is IPv4 alone"
    );
    a.change(|port| port.egress.push(all("::/0")));
    b.change(|port| {
        port.ingress
            .push(Rule::all(Protocol::ICMPV6, vec![Cidr::one(six(A).into())]))
    });
    let ping = a.run(&to_b);
    assert!(ping.contains("ttl=63"), "{ping}");

    // A connection that is open goes on when its rule is gone; none begins.
    b.begin("rm -f /tmp/got; (sleep 600 | nc -l -p 7000 > /tmp/got &) ; sleep 1");
    assert!(b.end().1);
    a.run("mkfifo /tmp/f; (nc 10.0.2.5 7000 < /tmp/f &) ; exec 3> /tmp/f; echo one >&3; sleep 1");
    b.change(|port| port.ingress.clear());
    a.run("echo two >&3; exec 3>&-");
    let got =
        "for i in $(seq 50); do grep -q two /tmp/got && break; usleep 100000; done; cat /tmp/got";
    assert_eq!(b.run(got), "one\ntwo\n");
    assert!(a.loses("10.0.2.5"), "the rule is gone");
    let (_, connected) = a.tries("nc -w 1 10.0.2.5 7000 < /dev/null");
    assert!(!connected);
}

fn names_and_metadata(runtime: &Path, a: &mut Node, b: &mut Node) {
    let found = a.run("nslookup b.ec2.internal; nslookup 10.0.2.5");
    assert!(found.contains("Address: 10.0.2.5"), "{found}");
    assert!(found.contains("name = b.ec2.internal"), "{found}");

    let ask = "echo GET / | nc -w 5 169.254.169.254 80 | tail -n 1 | grep am";
    let (_, answered) = a.tries(ask);
    assert!(!answered, "nobody serves yet, and it is refused at once");
    metadata(runtime, "a");
    metadata(runtime, "b");
    assert_eq!(a.run(ask), "I am a\n");
    assert_eq!(b.run(ask), "I am b\n");
    assert_eq!(
        a.run(&ask.replace("169.254.169.254", "fd00:ec2::254")),
        "I am a\n"
    );
}

/// A server of the host stands for the world, by the gateway's address.
fn out_of_the_vpc(a: &mut Node) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let _ = client.unwrap().write_all(b"HTTP/1.0 200 OK\r\n\r\noutside");
        }
    });
    let (said, out) = a.tries("nc -w 20 198.51.100.1 80 2>&1 < /dev/null");
    assert!(!out && said.contains("unreachable"), "{said}");
    let host = format!("echo GET / | nc -w 2 10.0.1.1 {web} | grep outside");
    assert!(!a.tries(&host).1, "the host is not reachable");
    a.change(|port| {
        port.internet = true;
        port.reach_host = true;
    });
    assert!(a.run(&host).contains("outside"));
    a.change(|port| port.egress = vec![all("10.0.0.0/24")]);
    assert!(!a.tries(&host).1, "no egress rule lets it out");
    a.change(|port| port.egress = vec![all("0.0.0.0/0")]);
}

fn from_the_host(runtime: &Path, public: Ipv4Addr, a: &mut Node) {
    let serve =
        "printf '#!/bin/sh\\nread x; echo $x >> /tmp/said; echo well\\n' > /tmp/s; chmod +x /tmp/s";
    a.run(serve);
    a.run("for p in 2300 2302; do (nc -ll -p $p -e /tmp/s &) ; done");
    let at = |port: u16| {
        move || -> std::io::Result<Box<dyn Duplex>> {
            let stream = TcpStream::connect((public, port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(Box::new(stream))
        }
    };
    assert!(says(at(2300), "by the public address\n"));
    let refused = TcpStream::connect((public, 2302)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    // No rule opens 2302, but the owner has a door of his own.
    let door = runtime.join("a.door");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        fs::metadata(&door).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let by_the_door = || -> std::io::Result<Box<dyn Duplex>> {
        let mut stream = UnixStream::connect(&door)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"2302\n")?;
        Ok(Box::new(stream))
    };
    assert!(says(by_the_door, "by the door\n"));

    // Rules open and close ports; one that is taken is told, and harms nothing.
    let taken = TcpListener::bind((public, 2303)).unwrap();
    let report = a.change(|port| {
        port.ingress = vec![Rule::ports(
            Protocol::TCP,
            2302,
            2303,
            vec![block("127.0.0.0/8")],
        )];
    });
    assert_eq!(report.published.len(), 1, "{report:?}");
    assert_eq!(
        (report.published[0].port, report.unpublished[0].port),
        (2302, 2303)
    );
    assert!(says(at(2302), "by the new rule\n"));
    assert!(TcpStream::connect((public, 2300)).is_err());
    drop(taken);
    let said = a.run("sort -u /tmp/said");
    assert_eq!(
        said,
        "by the door\nby the new rule\nby the public address\n"
    );
}
