//! Frames that no honest guest would send: nothing panics, nothing grows
//! without bounds, and what comes back is well formed.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use net::user::{Flow, FlowPolicy, Limits, Target, Verdict};
use net::{Abilities, Checksum, Link, Network, Offload, Segmentation};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};
use support::{MAC, Random, network};

/// Nothing leaves this host: every flow ends at one address of its own.
#[derive(Debug)]
struct Sink(SocketAddr);

impl FlowPolicy for Sink {
    fn decide(&self, flow: &Flow) -> Verdict {
        match flow.remote.port() % 8 {
            0 => Verdict::Refuse,
            1 => Verdict::Ignore,
            2 => Verdict::Deliver(Target::Unix("/nonexistent".into())),
            _ => Verdict::Deliver(Target::Address(self.0)),
        }
    }
}

struct Writer<'a> {
    random: &'a mut Random,
    /// What the network last said it expects, to come close to it.
    expected: u32,
    said: u32,
}

impl Writer<'_> {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    fn near(&mut self, number: u32) -> u32 {
        match self.random.below(8) {
            0 => self.random.next() as u32,
            1 => number.wrapping_add(self.random.below(70_000) as u32),
            2 => number.wrapping_sub(self.random.below(3000) as u32),
            _ => number,
        }
    }

    fn ports(&mut self) -> Vec<u8> {
        let guest = 1000 + self.random.below(2) as u16;
        let remote = self.pick(&[83u16, 83, 83, 83, 53, 67, 80, 81, 82, 84]);
        [guest.to_be_bytes(), remote.to_be_bytes()].concat()
    }

    fn tcp(&mut self) -> Vec<u8> {
        let mut out = self.ports();
        let (seq, ack) = (self.near(self.expected), self.near(self.said));
        out.extend(seq.to_be_bytes());
        out.extend(ack.to_be_bytes());
        let flags = self.pick(&[2u8, 2, 16, 16, 16, 24, 17, 4, 20, 18, 255, 0]);
        let options: &[u8] = if flags & 2 != 0 {
            self.pick(&[
                &[2u8, 4, 5, 0xb4, 3, 3, 14, 0][..],
                &[2, 4, 0, 0],
                &[3, 0, 0, 0],
                &[],
            ])
        } else {
            &[]
        };
        out.push(((5 + options.len() / 4) as u8) << 4);
        out.push(flags);
        let window = self.pick(&[0u16, 1, 100, 60_000, 65_535]);
        out.extend(window.to_be_bytes());
        out.extend([0; 4]);
        out.extend(options);
        let length = self.pick(&[0usize, 0, 1, 100, 1460, 40_000]);
        out.resize(out.len() + length, 7);
        out
    }

    fn udp(&mut self) -> Vec<u8> {
        let mut out = self.ports();
        let length = self.pick(&[0usize, 1, 300, 1472, 30_000]);
        let said = if self.random.below(8) == 0 {
            self.random.next() as u16
        } else {
            8 + length as u16
        };
        out.extend(said.to_be_bytes());
        out.extend([0; 2]);
        if self.random.below(2) == 0 {
            // DHCP, more or less.
            let mut dhcp = vec![0; 240];
            dhcp[..3].copy_from_slice(&[1, 1, 6]);
            dhcp[28..34].copy_from_slice(&MAC);
            dhcp[33] = self.random.byte();
            dhcp[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
            dhcp.extend([
                53,
                1,
                self.random.byte() % 10,
                50,
                4,
                10,
                0,
                2,
                self.random.byte(),
            ]);
            dhcp.push(255);
            out.extend(dhcp);
            let length = (out.len() as u16).to_be_bytes();
            out[2..4].copy_from_slice(&67u16.to_be_bytes());
            out[4..6].copy_from_slice(&length);
        } else {
            out.resize(8 + length, 9);
        }
        out
    }

    fn icmp(&mut self) -> Vec<u8> {
        let kind = self.pick(&[8u8, 128, 133, 135, 134, 0, 3, 143]);
        let mut out = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        let target: std::net::Ipv6Addr = self
            .pick(&["fec0::2", "fec0::3", "fe80::2", "fec0::9"])
            .parse()
            .unwrap();
        out.extend(target.octets());
        let length = self.pick(&[0usize, 8, 64, 2000]);
        out.resize(out.len() + length, 1);
        out
    }

    fn frame(&mut self) -> Vec<u8> {
        let (number, payload) = match self.random.below(6) {
            0..=2 => (6, self.tcp()),
            3 => (17, self.udp()),
            4 => (self.pick(&[1, 58]), self.icmp()),
            _ => (self.random.byte(), vec![3; 40]),
        };
        let gateway = [0x52, 0x55, 10, 0, 2, 2];
        let to = self.pick(&[gateway, gateway, [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]]);
        let mut frame = [to, MAC].concat();
        match self.random.below(8) {
            0 => {
                frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + self.random.byte() % 2]);
                frame.extend(MAC);
                frame.extend([10, 0, 2, self.random.byte(), 0, 0, 0, 0, 0, 0, 10, 0, 2]);
                frame.push(self.random.byte() % 5);
            }
            1 | 2 => self.ipv6(&mut frame, number, &payload),
            _ => self.ipv4(&mut frame, number, &payload),
        }
        for _ in 0..self.pick(&[0, 0, 0, 1, 2, 8]) {
            // Mostly beyond the header whose checksum would be wrong then.
            let skip = self.pick(&[34, 34, 34, 0]).min(frame.len() - 1);
            let place = skip + self.random.below(frame.len() - skip);
            frame[place] = self.random.byte();
        }
        if self.random.below(16) == 0 {
            frame.truncate(self.random.below(frame.len() + 1));
        }
        frame
    }

    fn ipv4(&mut self, frame: &mut Vec<u8>, number: u8, payload: &[u8]) {
        let mut header = vec![0x45, 0];
        header.extend(((20 + payload.len()) as u16).to_be_bytes());
        header.extend([0, self.random.byte() % 4]);
        let place = self.pick(&[0u16, 0, 0, 0, 0x2000, 1, 0x2001, 0x1fff, 8]);
        header.extend(place.to_be_bytes());
        header.extend([64, number, 0, 0]);
        let source = match self.random.below(10) {
            0 => self.pick(&[[10, 0, 2, 2], [0, 0, 0, 0], [8, 8, 8, 8], [127, 0, 0, 1]]),
            _ => [10, 0, 2, 15],
        };
        let to = self.pick(&[
            [10, 0, 2, 2],
            [10, 0, 2, 3],
            [198, 51, 100, 1],
            [127, 0, 0, 1],
            [255; 4],
        ]);
        header.extend(source);
        header.extend(to);
        let sum: u32 = header
            .chunks(2)
            .map(|p| u32::from(p[0]) << 8 | u32::from(p[1]))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = !((folded & 0xffff) + (folded >> 16)) as u16;
        header[10..12].copy_from_slice(&folded.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(header);
        frame.extend(payload);
    }

    fn ipv6(&mut self, frame: &mut Vec<u8>, number: u8, payload: &[u8]) {
        let extension: Vec<u8> = match self.random.below(6) {
            0 => vec![number, 0, 0, self.random.byte() % 3, 0, 0, 0, 1],
            1 => vec![number, 0, 1, 4, 0, 0, 0, 0],
            _ => Vec::new(),
        };
        let next = match (extension.is_empty(), self.random.below(2)) {
            (true, _) => number,
            (false, 0) => 44,
            _ => self.pick(&[0, 43, 60, 44]),
        };
        let source: std::net::Ipv6Addr = self
            .pick(&["fec0::15", "fe80::15", "::", "fec0::2", "2001:db8::1"])
            .parse()
            .unwrap();
        let to: std::net::Ipv6Addr = self
            .pick(&[
                "fec0::2",
                "fec0::3",
                "fe80::2",
                "ff02::2",
                "2001:db8::2",
                "::1",
            ])
            .parse()
            .unwrap();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(((extension.len() + payload.len()) as u16).to_be_bytes());
        frame.extend([next, 255]);
        frame.extend(source.octets());
        frame.extend(to.octets());
        frame.extend(extension);
        frame.extend(payload);
    }

    fn offload(&mut self) -> Offload {
        let checksum = match self.random.below(8) {
            0 => Checksum::Complete,
            1 => Checksum::Verified,
            _ => Checksum::Partial {
                start: self.random.next() as u16,
                offset: self.random.next() as u16,
            },
        };
        let size = self.random.next() as u16;
        let segmentation = match self.random.below(6) {
            0 => Segmentation::Tcp4 { size },
            1 => Segmentation::Tcp6 { size },
            2 => Segmentation::Udp { size },
            _ => Segmentation::None,
        };
        Offload {
            checksum,
            segmentation,
            header_len: self.random.next() as u16,
        }
    }

    /// Learns from a frame of the network, which is to be well formed.
    fn hear(&mut self, bytes: &[u8], complete: bool) {
        let frame = EthernetFrame::new_checked(bytes).unwrap();
        let (number, payload, from, to) = match frame.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(frame.payload()).unwrap();
                assert!(ip.verify_checksum());
                assert_eq!(usize::from(ip.total_len()), frame.payload().len());
                if ip.more_frags() || ip.frag_offset() != 0 {
                    return;
                }
                let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                (ip.next_header(), frame.payload()[20..].to_vec(), from, to)
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(frame.payload()).unwrap();
                assert_eq!(ip.total_len(), frame.payload().len());
                let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                (ip.next_header(), frame.payload()[40..].to_vec(), from, to)
            }
            _ => return,
        };
        match number {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(&payload[..]).unwrap();
                assert!(!complete || tcp.verify_checksum(&from, &to));
                if tcp.syn() {
                    self.expected = tcp.ack_number().0 as u32;
                }
                self.expected = tcp.ack_number().0 as u32;
                self.said = (tcp.seq_number().0 as u32).wrapping_add(tcp.segment_len() as u32);
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(&payload[..]).unwrap();
                assert!(!complete || udp.verify_checksum(&from, &to));
            }
            _ => {}
        }
    }
}

#[test]
fn hostile_frames() {
    let rounds: u64 = std::env::var("HOLM_FUZZ_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(300_000);
    let seed: u64 = std::env::var("HOLM_FUZZ_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0x5eed);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        use std::io::Write;
        let mut kept = Vec::new();
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { break };
            stream.set_nonblocking(true).unwrap();
            // Some are served, some kept, some closed.
            let _ = stream.write(&vec![b'x'; 30_000]);
            if number % 3 != 0 {
                kept.push(stream);
            }
            if kept.len() > 20 {
                kept.clear();
            }
        }
    });
    let limits = Limits {
        tcp: 40,
        udp: 20,
        bytes: 2 << 20,
    };
    let network = network(|config| {
        config.policy = Arc::new(Sink(at));
        config.limits = limits;
        config.resolvers = Some(vec![at]);
    });
    let mut link = network.open(1).unwrap().remove(0);
    let mut random = Random(seed | 1);
    let mut writer = Writer {
        random: &mut random,
        expected: 0,
        said: 0,
    };
    let mut now = Instant::now();
    let mut abilities = Abilities::default();
    for round in 0..rounds {
        let (offload, frame) = (writer.offload(), writer.frame());
        link.transmit(&offload, &frame).unwrap();
        if writer.random.below(3) == 0 {
            drain(link.as_mut(), &mut writer, abilities);
        }
        if writer.random.below(4) == 0 {
            // Time flies, for time-outs.
            let most = if writer.random.below(50) == 0 {
                20_000
            } else {
                10
            };
            now += Duration::from_millis(writer.random.below(most) as u64);
            link.turn(now);
        }
        if round % 5000 == 0 {
            let all = writer.random.below(2) == 0;
            abilities = Abilities {
                partial_checksum: all,
                tcp4: all,
                tcp6: all,
                udp: all,
            };
            while link.incoming().unwrap().is_some() {
                link.consume();
            }
            link.set_guest_abilities(abilities);
        }
        let metrics = network.metrics();
        assert!(metrics.tcp_now <= limits.tcp as u64 && metrics.udp_now <= limits.udp as u64);
    }
    let metrics = network.metrics();
    assert!(
        metrics.tcp_out > 100 && metrics.udp_out > 100,
        "{metrics:?}"
    );
    assert!(
        metrics.dropped_malformed > 100 && metrics.dropped_spoofed > 100,
        "{metrics:?}"
    );
}

fn drain(link: &mut dyn Link, writer: &mut Writer<'_>, abilities: Abilities) {
    for _ in 0..writer.random.below(20) {
        let Some(frame) = link.incoming().unwrap() else {
            break;
        };
        assert!(frame.bytes.len() <= 65_550);
        if !abilities.partial_checksum {
            assert_eq!(frame.offload, Offload::default());
            assert!(frame.bytes.len() <= 1514);
        }
        writer.hear(frame.bytes, !abilities.partial_checksum);
        if writer.random.below(8) != 0 {
            link.consume();
        }
    }
}
