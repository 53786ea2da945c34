//! What a stream costs in the monitor, per direction: the user network's
//! splice, and for comparison smoltcp's TCP as the end of the guest's
//! connection with a copy to and from a socket. The guest is a loop that makes
//! and acknowledges frames. `cargo bench -p net`.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use net::user::{UserConfig, UserNetwork};
use net::{Abilities, Checksum, Link, Network, Offload};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GATEWAY: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const SEGMENT: usize = 44 * 1460;
const BYTES: u64 = 4 << 30;

/// What ends the guest's connection.
trait End {
    fn send(&mut self, frame: &[u8]);
    fn receive(&mut self, each: &mut dyn FnMut(&[u8]));
}

struct Ours(Box<dyn Link>);

impl End for Ours {
    fn send(&mut self, frame: &[u8]) {
        let offload = Offload {
            checksum: Checksum::Verified,
            ..Offload::default()
        };
        self.0.transmit(&offload, frame).unwrap();
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) {
        self.0.turn(Instant::now());
        for _ in 0..16 {
            let Some(frame) = self.0.incoming().unwrap() else {
                return;
            };
            each(frame.bytes);
            self.0.consume();
        }
    }
}

#[derive(Default)]
struct Wire {
    inward: VecDeque<Vec<u8>>,
    outward: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

struct Rx<'a>(Vec<u8>, &'a mut Vec<Vec<u8>>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.0);
        self.1.push(self.0);
        result
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx<'a>;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Rx<'_>, Tx<'_>)> {
        let frame = self.inward.pop_front()?;
        Some((Rx(frame, &mut self.spare), Tx(&mut self.outward)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Tx<'_>> {
        (self.outward.len() < 16).then_some(Tx(&mut self.outward))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut all = DeviceCapabilities::default();
        all.medium = Medium::Ethernet;
        all.max_transmission_unit = 65_535 + 14;
        all.checksum = ChecksumCapabilities::ignored();
        all
    }
}

struct Smol {
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    host: TcpStream,
    buffer: Vec<u8>,
    start: Instant,
}

impl Smol {
    fn new(host: TcpStream, port: u16) -> Self {
        host.set_nonblocking(true).unwrap();
        let mut wire = Wire::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GATEWAY)));
        let mut iface = Interface::new(config, &mut wire, SmolInstant::ZERO);
        iface.update_ip_addrs(|all| all.push("10.0.2.2/24".parse::<IpCidr>().unwrap()).unwrap());
        let make = || tcp::SocketBuffer::new(vec![0; 1 << 20]);
        let mut socket = tcp::Socket::new(make(), make());
        socket.listen(port).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self {
            wire,
            iface,
            sockets,
            handle,
            host,
            buffer: vec![0; 65_536],
            start: Instant::now(),
        }
    }

    fn turn(&mut self) {
        let now = SmolInstant::from_micros(self.start.elapsed().as_micros() as i64);
        self.iface.poll(now, &mut self.wire, &mut self.sockets);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        while socket.can_recv() {
            let sent = socket.recv(|data| {
                let sent = self.host.write(data).unwrap_or(0);
                (sent, sent)
            });
            if sent.unwrap() == 0 {
                break;
            }
        }
        while socket.may_send() && socket.send_queue() + self.buffer.len() <= socket.send_capacity()
        {
            let Ok(count) = self.host.read(&mut self.buffer) else {
                break;
            };
            if count == 0 {
                break;
            }
            socket.send_slice(&self.buffer[..count]).unwrap();
        }
    }
}

impl End for Smol {
    fn send(&mut self, frame: &[u8]) {
        let mut copy = self.wire.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(frame);
        self.wire.inward.push_back(copy);
        self.turn();
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) {
        self.turn();
        for frame in self.wire.outward.drain(..) {
            each(&frame);
        }
    }
}

/// The guest's side of one connection.
struct Guest {
    port: u16,
    seq: u32,
    ack: u32,
    edge: u32,
    scale: u8,
    got: u64,
    frame: Vec<u8>,
}

impl Guest {
    fn new(port: u16) -> Self {
        Self {
            port,
            seq: 1,
            ack: 0,
            edge: 0,
            scale: 0,
            got: 0,
            frame: vec![0x55; 54 + SEGMENT],
        }
    }

    fn frame(&mut self, flags: u8, options: &[u8], length: usize) -> &[u8] {
        let header = 20 + options.len();
        let total = 20 + header + length;
        let mut out = [&GATEWAY[..], &MAC, &[8, 0, 0x45, 0]].concat();
        out.extend((total as u16).to_be_bytes());
        out.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        let sum: u32 = out[14..34]
            .chunks(2)
            .map(|p| u32::from(p[0]) << 8 | u32::from(p[1]))
            .sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        out[24..26].copy_from_slice(&sum.to_be_bytes());
        out.extend(40_000u16.to_be_bytes());
        out.extend(self.port.to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        out.extend([((header / 4) as u8) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        out.extend(options);
        self.frame[..out.len()].copy_from_slice(&out);
        &self.frame[..14 + total]
    }

    /// Hears a frame; whether there is something to acknowledge.
    fn hear(&mut self, frame: &[u8]) -> bool {
        if frame.get(23) != Some(&6) || frame.get(12..14) != Some(&[8, 0]) {
            return false;
        }
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let header = usize::from(frame[46] >> 4) * 4;
        let length = frame.len() - 34 - header;
        let window = u32::from(u16::from_be_bytes([frame[48], frame[49]]));
        if frame[47] & 2 != 0 {
            self.ack = word(38).wrapping_add(1);
            let options = &frame[54..34 + header];
            if let Some(at) = options.windows(2).position(|pair| pair == [3, 3]) {
                self.scale = options[at + 2];
            }
            self.edge = word(42).wrapping_add(window);
            return true;
        }
        self.edge = word(42).wrapping_add(window << self.scale);
        assert_eq!(word(38), self.ack, "nothing is lost here");
        self.ack = self.ack.wrapping_add(length as u32);
        self.got += length as u64;
        length > 0
    }
}

fn run(name: &str, end: &mut dyn End, port: u16, outward: bool) {
    let mut guest = Guest::new(port);
    // ARP, so that the network knows the card.
    let mut arp = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC].concat();
    arp.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    end.send(&arp);
    let syn = guest.frame(2, &[2, 4, 5, 0xb4, 1, 3, 3, 7], 0).to_vec();
    end.send(&syn);
    guest.seq += 1;
    while guest.ack == 0 {
        end.receive(&mut |frame| {
            guest.hear(frame);
        });
    }
    let ack = guest.frame(16, &[], 0).to_vec();
    end.send(&ack);
    let (start, used) = (Instant::now(), on_cpu());
    let mut sent = 0;
    while if outward { sent } else { guest.got } < BYTES && start.elapsed() < Duration::from_secs(5)
    {
        if outward {
            let room = guest.edge.wrapping_sub(guest.seq) as i32;
            if room >= SEGMENT as i32 {
                let frame = guest.frame(24, &[], SEGMENT);
                end.send(frame);
                guest.seq = guest.seq.wrapping_add(SEGMENT as u32);
                sent += SEGMENT as u64;
                continue;
            }
        }
        let mut due = false;
        end.receive(&mut |frame| due |= guest.hear(frame));
        if due && !outward {
            let ack = guest.frame(16, &[], 0).to_vec();
            end.send(&ack);
        }
    }
    let bytes = if outward { sent } else { guest.got } as f64;
    let rate = bytes / start.elapsed().as_secs_f64() / 1e9;
    let way = if outward {
        "guest to host"
    } else {
        "host to guest"
    };
    let cost = (on_cpu() - used) as f64 / (bytes / 65_536.0) / 1000.0;
    println!("{name:8} {way}: {rate:5.2} GB/s, {cost:5.1} us of CPU for 64 KiB");
}

/// Time of this thread on a CPU, in ns (proc(5), schedstat).
fn on_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A server that takes what it gets, or gives without end.
fn server(gives: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0x55; 256 << 10];
        while if gives {
            stream.write_all(&buffer).is_ok()
        } else {
            stream.read(&mut buffer).is_ok_and(|count| count > 0)
        } {}
    });
    at
}

fn main() {
    for _ in 0..2 {
        for outward in [true, false] {
            let at = server(!outward);
            let network = UserNetwork::new(UserConfig::default()).unwrap();
            let mut link = network.open(1).unwrap().remove(0);
            link.set_guest_abilities(Abilities {
                partial_checksum: true,
                tcp4: true,
                tcp6: true,
                udp: true,
            });
            run("splice", &mut Ours(link), at.port(), outward);
            let at = server(!outward);
            let host = TcpStream::connect(at).unwrap();
            run(
                "smoltcp",
                &mut Smol::new(host, at.port()),
                at.port(),
                outward,
            );
        }
    }
}
