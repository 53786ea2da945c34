//! Frames that no honest guest and no honest member would send to a port:
//! nothing panics, nobody speaks with another's address, and nothing comes in
//! that no rule and no flow lets in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use fuzzing::{Fuzz, Input};
use machine_protocol::vpc::{Cidr, HostName, PortConfig, Protocol, Rule, mac_of};
use net::switch::{Switch, SwitchName};
use net::vpc::VpcNetwork;
use net::{Abilities, Checksum, Link, Network, Offload, Segmentation};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 5);

const WORDS: [&[u8]; 17] = [
    // DHCPv6: identifier of the client, of the server, a set of addresses.
    &[0, 1, 0, 4, 1, 2, 3, 4],
    &[0, 2, 0, 10, 0, 3, 0, 1, 0x52, 0x55, 10, 0, 1, 1],
    &[0, 3, 0, 12, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0],
    b"\x08\x00",
    b"\x86\xdd",
    b"\x08\x06",
    &[10, 0, 1, 4],
    &[10, 0, 1, 9],
    &[10, 0, 2, 5],
    &[10, 0, 0, 2],
    &[169, 254, 169, 254],
    &[255, 255, 255, 255],
    &[0, 22],
    &[0, 53],
    &[0, 67],
    &[0x45, 0, 0, 40],
    &[0x63, 0x82, 0x53, 0x63, 53, 1, 1],
];

fn config() -> PortConfig {
    let block = |text: &str| text.parse::<Cidr>().unwrap();
    let mut config = PortConfig::new(GUEST, block("10.0.1.0/24"), vec![block("10.0.0.0/16")]);
    config.ipv6 = Some("fd00:0:0:1::4".parse().unwrap());
    config.vpc.push(block("fd00::/56"));
    config.domain = Some("ec2.internal".into());
    config.names = vec![HostName {
        name: "db".into(),
        addresses: vec![FAR.into()],
    }];
    config.ingress = vec![Rule::ports(
        Protocol::TCP,
        22,
        22,
        vec![block("10.0.1.0/24")],
    )];
    // Nothing leaves this host.
    config.egress = vec![Rule::all(Protocol::All, vec![block("10.0.0.0/16")])];
    config
}

/// The head of a frame that comes close to what is taken.
fn frame(input: &mut Input<'_>, from_guest: bool) -> Vec<u8> {
    let shape = input.u8();
    let (own, other) = (
        GUEST,
        input.pick(&[PEER, FAR, PEER, Ipv4Addr::new(8, 8, 8, 8)]),
    );
    let (from, to) = if from_guest {
        (own, other)
    } else {
        (other, own)
    };
    let special = [
        Ipv4Addr::new(10, 0, 1, 1),
        Ipv4Addr::new(10, 0, 0, 2),
        Ipv4Addr::BROADCAST,
    ];
    let to = if shape & 0x30 == 0x30 {
        input.pick(&special)
    } else {
        to
    };
    let mut out = Vec::new();
    out.extend(mac_of(to));
    out.extend(mac_of(from));
    let length = usize::from(input.u8()) + 20;
    let body = input.bytes(length);
    match shape & 7 {
        0 => return body.to_vec(),
        1 => {
            out.extend([8, 6]);
            out.extend(body);
            return out;
        }
        2 => {
            out.extend([0x86, 0xdd]);
            out.extend(packet6(input, body));
            return out;
        }
        _ => out.extend([8, 0]),
    }
    let protocol = input.pick(&[6, 17, 1, 6, 17, 50]);
    let total = (20 + body.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 7]);
    header.extend(input.pick(&[[0x40, 0], [0x40, 0], [0x20, 0], [0, 1], [0x20, 9]]));
    header.extend([input.pick(&[64, 1, 0]), protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let mut ip = Ipv4Packet::new_unchecked(&mut header);
    ip.fill_checksum();
    out.extend(header);
    out.extend(body);
    out
}

/// A packet of IPv6 with a right checksum, as neighbour discovery and DHCPv6
/// want it.
fn packet6(input: &mut Input<'_>, body: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let from = ["fe80::1", "::", "fd00:0:0:1::4", "fd00:0:0:1::9"];
    let to = [
        "ff02::1:2",
        "ff02::2",
        "fe80::2",
        "fd00:0:0:1::3",
        "fd00:ec2::254",
        "fd00:0:0:1::4",
    ];
    let (from, to) = (address(input.pick(&from)), address(input.pick(&to)));
    let protocol: u8 = input.pick(&[58, 17, 17, 6]);
    let mut body = body.to_vec();
    body.resize(body.len().max(20), 0);
    let at = match protocol {
        58 => 2,
        17 => {
            let length = (body.len() as u16).to_be_bytes();
            body[4..6].copy_from_slice(&length);
            6
        }
        _ => 16,
    };
    body[at..at + 2].fill(0);
    let mut sum = u32::from(protocol) + body.len() as u32;
    for half in [&from.octets()[..], &to.octets(), &body].concat().chunks(2) {
        sum += u32::from(half[0]) << 8 | u32::from(*half.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    body[at..at + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([protocol, input.pick(&[255, 64, 1])]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    packet
}

fn drain(link: &mut dyn Link, mut seen: impl FnMut(&[u8])) {
    link.turn(Instant::now());
    for _ in 0..10_000 {
        let Some(frame) = link.incoming().unwrap() else {
            return;
        };
        seen(frame.bytes);
        link.consume();
    }
    panic!("frames without end");
}

/// What left by the switch is the guest's own.
fn honest(frame: &[u8]) {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(ethernet.src_addr().0, mac_of(GUEST));
    assert_eq!(
        ethernet.ethertype(),
        EthernetProtocol::Ipv4,
        "only IP crosses"
    );
    let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
    assert_eq!(ip.src_addr(), GUEST);
    assert!(ip.verify_checksum());
    let to = ip.dst_addr();
    assert_eq!(ethernet.dst_addr().0, mac_of(to));
    assert!(to.octets().starts_with(&[10, 0]) && to != GUEST, "{to}");
}

/// The card of 10.0.1.1.
const GATEWAY_CARD: [u8; 6] = [0x52, 0x55, 10, 0, 1, 1];

/// What came in by the switch is allowed, or answers the guest.
fn allowed(frame: &[u8], spoken: &[(IpAddr, u8)]) -> u8 {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return 1;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
    let from = ip.src_addr();
    // The gateway's and the name server's own.
    if from == Ipv4Addr::new(10, 0, 1, 1) || from == Ipv4Addr::new(10, 0, 0, 2) {
        return 2;
    }
    assert_eq!(ip.dst_addr(), GUEST);
    // Routers of the world speak by the gateway, and only of hops.
    if ethernet.src_addr().0 == GATEWAY_CARD {
        assert!(!from.octets().starts_with(&[10, 0, 1]), "{ip}");
        let time_exceeded = ip.next_header() == IpProtocol::Icmp && ip.payload()[..2] == [11, 0];
        assert!(time_exceeded, "{ip}");
        return 4;
    }
    assert_eq!(ethernet.src_addr().0, mac_of(from));
    let near = from.octets().starts_with(&[10, 0, 1]);
    let ssh = near
        && ip.next_header() == IpProtocol::Tcp
        && ip.frag_offset() == 0
        && TcpPacket::new_unchecked(ip.payload()).dst_port() == 22;
    let follows = near && ip.frag_offset() > 0 && ip.next_header() == IpProtocol::Tcp;
    let answer = spoken.iter().any(|(to, _)| *to == IpAddr::V4(from));
    let error = ip.next_header() == IpProtocol::Icmp && !spoken.is_empty();
    assert!(ssh || follows || answer || error, "{ip}");
    3
}

#[test]
fn a_port_between_a_bad_guest_and_bad_members() {
    let directory = tempfile::tempdir().unwrap();
    let network = VpcNetwork::new(directory.path(), config()).unwrap();
    let mut port = network.open(1).unwrap().remove(0);
    let mut raw = member(directory.path());
    for _ in 0..20 {
        // Hellos.
        drain(&mut *port, |_| {});
        drain(&mut *raw, |_| {});
    }
    let fuzz = Fuzz {
        name: "vpc",
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words: &WORDS,
        longest: 1200,
    };
    let mut spoken = Vec::new();
    fuzz.run(|bytes| {
        let mut input = Input::new(bytes);
        let mut behaviour = Vec::new();
        for _ in 0..8 {
            if input.is_empty() {
                break;
            }
            let from_guest = input.u8() & 1 == 0;
            let frame = frame(&mut input, from_guest);
            let offload = offload(&mut input);
            if from_guest {
                let sent = port.transmit(&offload, &frame).unwrap();
                behaviour.push(sent as u8);
            } else {
                raw.transmit(&offload, &frame).unwrap();
            }
            drain(&mut *raw, |frame| {
                honest(frame);
                let ip = Ipv4Packet::new_unchecked(&frame[14..]);
                let flow = (IpAddr::V4(ip.dst_addr()), 0);
                if !spoken.contains(&flow) {
                    spoken.push(flow);
                }
            });
            drain(&mut *port, |frame| behaviour.push(allowed(frame, &spoken)));
        }
        let m = network.metrics();
        let counts = m.iter().map(|(_, n)| u64::BITS - n.leading_zeros());
        (behaviour, counts.collect::<Vec<_>>())
    });
    let m = network.metrics();
    assert!(
        m.dropped_spoofed > 0 && m.dropped_ingress > 0 && m.vpc_sent_packets > 0,
        "{m:?}"
    );
    assert!(m.tracked_now <= 16_384);
}

fn offload(input: &mut Input<'_>) -> Offload {
    let mut offload = Offload::default();
    if input.u8() & 3 == 0 {
        let (start, offset) = (input.u16(), input.u16());
        offload.checksum = Checksum::Partial { start, offset };
        let size = input.u16().max(1);
        offload.segmentation = input.pick(&[
            Segmentation::None,
            Segmentation::Tcp4 { size },
            Segmentation::Udp { size },
        ]);
    }
    offload
}

/// A member of the switch without any port before it.
fn member(directory: &Path) -> Box<dyn Link> {
    let name: SwitchName = "raw".parse().unwrap();
    let switch = Switch::at(directory, &name, 1500).unwrap();
    let mut link = switch.open(1).unwrap().remove(0);
    link.set_guest_abilities(Abilities {
        partial_checksum: true,
        tcp4: true,
        tcp6: true,
        udp: true,
    });
    link
}

/// Rules change under a running flow, and other VPCs hear nothing.
#[test]
fn rules_change_live_and_vpcs_are_apart() {
    let directory = tempfile::tempdir().unwrap();
    let network = VpcNetwork::new(directory.path(), config()).unwrap();
    let mut port = network.open(1).unwrap().remove(0);
    let mut raw = member(directory.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let mut stranger = member(elsewhere.path());
    let start = Instant::now();
    let mut passes = |network: &VpcNetwork, port_number: u16, source: u16| {
        let segment = syn(PEER, GUEST, source, port_number);
        raw.transmit(&Offload::default(), &segment).unwrap();
        let mut seen = 0;
        let before = network.metrics();
        loop {
            drain(&mut *port, |frame| seen += usize::from(frame == segment));
            drain(&mut *raw, |_| {});
            drain(&mut *stranger, |_| panic!("another VPC's frame"));
            let now = network.metrics();
            if seen > 0 || now.dropped_ingress > before.dropped_ingress {
                return seen > 0;
            }
            if start.elapsed() > Duration::from_secs(60) {
                panic!("neither passed nor dropped");
            }
            // Until both have said hello, frames may be lost.
            raw.transmit(&Offload::default(), &segment).unwrap();
        }
    };
    assert!(passes(&network, 22, 1000));
    assert!(!passes(&network, 80, 1000));
    let mut other = config();
    other.ingress = vec![Rule::ports(
        Protocol::TCP,
        80,
        80,
        vec!["0.0.0.0/0".parse().unwrap()],
    )];
    network.configure(other.clone()).unwrap();
    assert!(passes(&network, 80, 1001));
    assert!(passes(&network, 22, 1000), "a tracked flow goes on");
    assert!(!passes(&network, 22, 1002));
    // A configuration that is refused changes nothing.
    let mut bad = other.clone();
    bad.address = PEER;
    assert!(network.configure(bad).is_err());
    other.version = 9;
    assert!(network.configure(other).is_err());
    assert!(passes(&network, 80, 1003));
    let saved = network.save();
    let again = VpcNetwork::new(elsewhere.path(), config()).unwrap();
    again.restore(saved).unwrap();
    assert!(again.metrics().tracked_now >= 3);
}

/// Port 22 where the host does not let it be bound, or a program of the host
/// has it.
#[test]
fn a_low_port_that_is_taken_answers_by_the_side() {
    let directory = tempfile::tempdir().unwrap();
    let public = Ipv4Addr::from(0x7f58_0000 | (std::process::id() & 0xffff));
    // An unprivileged test cannot have it either.
    let _taken = std::net::TcpListener::bind((public, 1001));
    let mut config = config();
    config.public = Some(public);
    config.ingress = vec![Rule::ports(
        Protocol::TCP,
        1001,
        1001,
        vec!["0.0.0.0/0".parse().unwrap()],
    )];
    let network = VpcNetwork::new(directory.path(), config.clone()).unwrap();
    let mut hint = String::new();
    for _ in 0..2 {
        let report = network.report(0);
        let ports: Vec<_> = report
            .published
            .iter()
            .map(|p| (p.port, p.host_port))
            .collect();
        assert_eq!(ports, [(1001, 11_001)]);
        hint = report.unpublished[0].reason.clone();
        assert!(hint.contains("answers at port 11001 instead"), "{hint}");
        std::net::TcpStream::connect((public, 11_001)).unwrap();
        network.configure(config.clone()).unwrap();
    }
    config.ingress.clear();
    network.configure(config).unwrap();
    assert!(network.report(0).published.is_empty(), "{hint}");
    assert!(std::net::TcpStream::connect((public, 11_001)).is_err());
}

fn syn(from: Ipv4Addr, to: Ipv4Addr, source: u16, destination: u16) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(mac_of(to));
    out.extend(mac_of(from));
    out.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    Ipv4Packet::new_unchecked(&mut ip).fill_checksum();
    out.extend(ip);
    out.extend(source.to_be_bytes());
    out.extend(destination.to_be_bytes());
    out.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    out
}
