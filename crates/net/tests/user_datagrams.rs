//! DHCP, ICMP and UDP of a guest through the user network.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::{dhcpv4, icmp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, IpEndpoint, Ipv4Address};
use support::{Guest, network};

fn udp_socket(guest: &mut Guest, port: u16) -> SocketHandle {
    let make = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 200_000]);
    let mut socket = udp::Socket::new(make(), make());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

fn send(guest: &mut Guest, socket: SocketHandle, to: &str, data: &[u8]) {
    let to: SocketAddr = to.parse().unwrap();
    let socket = guest.sockets.get_mut::<udp::Socket<'_>>(socket);
    socket.send_slice(data, IpEndpoint::from(to)).unwrap();
}

fn receive(guest: &mut Guest, socket: SocketHandle) -> (Vec<u8>, String) {
    let mut got = None;
    guest.until("a datagram", |guest| {
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(socket);
        if let Ok((data, meta)) = socket.recv() {
            let from = SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port);
            got = Some((data.to_vec(), from.to_string()));
        }
        got.is_some()
    });
    got.unwrap()
}

#[test]
fn dhcp_gives_qemus_addresses() {
    let network = network(|config| config.hostname = Some("box".into()));
    let mut guest = Guest::new(&network, false);
    guest.iface.update_ip_addrs(|all| all.clear());
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let mut found = None;
    guest.until("a lease", |guest| {
        let socket = guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
        if let Some(dhcpv4::Event::Configured(config)) = socket.poll() {
            found = Some((config.address, config.router, config.dns_servers.clone()));
        }
        found.is_some()
    });
    let (address, router, dns) = found.unwrap();
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!(router, Some(Ipv4Address::new(10, 0, 2, 2)));
    assert_eq!(dns.as_slice(), [Ipv4Address::new(10, 0, 2, 3)]);
    let state = network.save();
    assert_eq!(state.leases.iter().count(), 1);
}

#[test]
fn the_gateway_answers_pings() {
    let network = network(|_| {});
    let mut guest = Guest::new(&network, false);
    let make = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 10_000]);
    let mut socket = icmp::Socket::new(make(), make());
    socket.bind(icmp::Endpoint::Ident(0x1234)).unwrap();
    let handle = guest.sockets.add(socket);
    let data = [7; 1000];
    let request = Icmpv4Repr::EchoRequest {
        ident: 0x1234,
        seq_no: 3,
        data: &data,
    };
    let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
    let to = IpAddress::v4(10, 0, 2, 2);
    let place = socket.send(request.buffer_len(), to).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(place), &Default::default());
    guest.until("an answer", |guest| {
        let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let Ok((bytes, from)) = socket.recv() else {
            return false;
        };
        assert_eq!(from, to);
        let packet = Icmpv4Packet::new_checked(bytes).unwrap();
        let reply = Icmpv4Repr::parse(&packet, &Default::default()).unwrap();
        let expected = Icmpv4Repr::EchoReply {
            ident: 0x1234,
            seq_no: 3,
            data: &data,
        };
        assert_eq!(reply, expected);
        true
    });
}

#[test]
fn datagrams_and_name_servers() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let name_server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let name_server_at = name_server.local_addr().unwrap();
    let port = server.local_addr().unwrap().port();
    for socket in [server, name_server] {
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..length], from).unwrap();
            }
        });
    }
    let network = network(|config| config.resolvers = Some(vec![name_server_at]));
    let mut guest = Guest::new(&network, false);
    let socket = udp_socket(&mut guest, 5000);
    for (to, length) in [
        (format!("10.0.2.2:{port}"), 100),
        ("10.0.2.3:53".to_owned(), 40),
        (format!("10.0.2.2:{port}"), 1472),
        ("[fec0::3]:53".to_owned(), 50),
        (format!("10.0.2.2:{port}"), 1),
    ] {
        let data: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        send(&mut guest, socket, &to, &data);
        assert_eq!(receive(&mut guest, socket), (data, to));
    }
    assert_eq!(network.metrics().dns_queries, 2);
}

#[test]
fn strangers_are_not_heard_and_closed_ports_are_told() {
    let network = network(|_| {});
    let mut guest = Guest::new(&network, false);
    let socket = udp_socket(&mut guest, 5001);
    let closed = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    guest.heard = Some(Vec::new());
    send(
        &mut guest,
        socket,
        &format!("10.0.2.2:{closed}"),
        b"anyone?",
    );
    guest.until("port unreachable", |guest| {
        let heard = guest.heard.as_ref().unwrap();
        heard
            .iter()
            .any(|frame| frame.get(23) == Some(&1) && frame.get(34..36) == Some(&[3, 3]))
    });
    assert_eq!(network.metrics().udp_in, 0);
}

#[test]
fn published_datagrams_reach_the_guest_and_its_answers_their_senders() {
    let network = network(|config| config.publish = vec!["0:7/udp".parse().unwrap()]);
    let host = network.publications()[0].host;
    let mut guest = Guest::new(&network, false);
    let socket = udp_socket(&mut guest, 7);
    let clients = [
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    ];
    // The guest's card becomes known.
    send(&mut guest, socket, "10.0.2.2:9", b"");
    guest.pass(Duration::from_millis(20));
    for (number, client) in clients.iter().enumerate() {
        client
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        client.send_to(&[number as u8], host).unwrap();
        let (data, from) = receive(&mut guest, socket);
        assert_eq!(data, [number as u8]);
        assert!(from.starts_with("10.0.2.2:"), "{from}");
        send(&mut guest, socket, &from, &[number as u8 + 100]);
        guest.poll();
        let mut answer = [0; 10];
        assert_eq!(client.recv_from(&mut answer).unwrap(), (1, host));
        assert_eq!(answer[0], number as u8 + 100);
    }
}

#[test]
fn routers_are_advertised() {
    let network = network(|_| {});
    let mut guest = Guest::new(&network, false);
    guest.heard = Some(Vec::new());
    guest.poll();
    let heard = guest.heard.as_ref().unwrap();
    let advertisement = heard
        .iter()
        .find(|frame| frame.get(54) == Some(&134))
        .unwrap();
    let text: Vec<String> = advertisement
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // The prefix fec0::/64 and the name server fec0::3.
    assert!(text.concat().contains("fec00000000000000000000000000000"));
    assert!(text.concat().contains("fec00000000000000000000000000003"));
}

/// An IPv4 packet of the guest in an Ethernet frame, its header complete.
fn ipv4_frame(place: u16, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    ipv4_frame_of(17, 64, place, to, payload)
}

fn ipv4_frame_of(protocol: u8, hops: u8, place: u16, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x52, 0x55, 10, 0, 2, 2];
    frame.extend(support::MAC);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend([0x12, 0x34]);
    frame.extend(place.to_be_bytes());
    frame.extend([hops, protocol, 0, 0, 10, 0, 2, 15]);
    frame.extend(to);
    let words = frame[14..34].chunks(2);
    let sum: u32 = words.map(|p| u32::from(p[0]) << 8 | u32::from(p[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn large_datagrams_cross_in_fragments() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let port = server.local_addr().unwrap().port();
    let network = network(|_| {});
    let mut guest = Guest::new(&network, false);
    guest.heard = Some(Vec::new());
    let data: Vec<u8> = (0..3992u32).map(|n| (n % 251) as u8).collect();
    let mut datagram = 5000u16.to_be_bytes().to_vec();
    datagram.extend(port.to_be_bytes());
    datagram.extend(4000u16.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(&data);
    for (number, part) in datagram
        .chunks(1480)
        .enumerate()
        .collect::<Vec<_>>()
        .iter()
        .rev()
    {
        let more = if *number < 2 { 0x2000 } else { 0 };
        let place = (number * 1480 / 8) as u16 | more;
        let frame = ipv4_frame(place, [10, 0, 2, 2], part);
        guest
            .link
            .transmit(&net::Offload::default(), &frame)
            .unwrap();
    }
    let mut got = vec![0; 65_536];
    let (length, from) = server.recv_from(&mut got).unwrap();
    assert_eq!(got[..length], data);
    server.send_to(&data, from).unwrap();
    let mut whole = vec![0; 4000];
    let mut there = 0;
    guest.until("all fragments", |guest| {
        for frame in guest.heard.as_mut().unwrap().drain(..) {
            if frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17) {
                assert!(frame.len() <= 1514);
                let place = usize::from(u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff) * 8;
                let length = frame.len() - 34;
                whole[place..place + length].copy_from_slice(&frame[34..]);
                there += length;
            }
        }
        there == 4000
    });
    assert_eq!(whole[8..], data);
}

/// As traceroute asks, by each of its ways: the router says that it was the
/// last hop, and what is for the router itself arrives.
#[test]
fn a_packet_of_one_hop_comes_to_the_router_and_no_further() {
    let network = network(|_| {});
    let mut guest = Guest::new(&network, false);
    guest.heard = Some(Vec::new());
    let udp = [
        &5000u16.to_be_bytes()[..],
        &[0x82, 0x9a, 0, 12, 0, 0],
        b"text",
    ]
    .concat();
    // An echo request, and the start of a TCP connection.
    let echo = [8, 0, 0xf7, 0xfd - 2, 0, 1, 0, 3];
    let mut tcp = vec![0; 20];
    (tcp[1], tcp[3], tcp[12], tcp[13]) = (9, 80, 0x50, 2);
    let there = [192, 0, 2, 1];
    let sent = [(17, &udp[..]), (1, &echo), (6, &tcp)];
    for (protocol, payload) in sent {
        let frame = ipv4_frame_of(protocol, 1, 0, there, payload);
        let sent = guest.link.transmit(&net::Offload::default(), &frame);
        assert_eq!(sent.unwrap(), net::Sent::Yes);
    }
    // No error is told of an error, or of a fragment that is not the first.
    for (protocol, place, payload) in [(1, 0, &[3, 3, 0xfc, 0xfc][..]), (17, 100, &udp)] {
        let frame = ipv4_frame_of(protocol, 1, place, there, payload);
        guest
            .link
            .transmit(&net::Offload::default(), &frame)
            .unwrap();
    }
    guest.pass(Duration::from_millis(50));
    let heard = guest.heard.take().unwrap();
    let errors = heard.iter().filter(|frame| frame.get(23) == Some(&1));
    let errors: Vec<_> = errors.collect();
    assert_eq!(errors.len(), sent.len());
    for (error, (protocol, payload)) in errors.iter().zip(sent) {
        assert_eq!(error[26..30], [10, 0, 2, 2]);
        assert_eq!(error[34..36], [11, 0], "time exceeded");
        // The packet itself is quoted.
        assert_eq!(
            (error[42 + 9], &error[42 + 16..42 + 20]),
            (protocol, &there[..])
        );
        assert_eq!(&error[62..62 + payload.len()], payload);
    }
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut own = udp.clone();
    own[2..4].copy_from_slice(&port.to_be_bytes());
    let frame = ipv4_frame_of(17, 1, 0, [10, 0, 2, 2], &own);
    guest
        .link
        .transmit(&net::Offload::default(), &frame)
        .unwrap();
    let mut got = [0; 10];
    assert_eq!(server.recv_from(&mut got).unwrap().0, 4);
}
