//! A guest made of smoltcp, plugged into a user network.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use net::user::{UserConfig, UserNetwork};
use net::{Abilities, Checksum, Link, Network, Offload};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint, Ipv4Address};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Longest that any test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Chances in 256 of what happens to each frame, either way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lost: u8,
    pub doubled: u8,
    pub late: u8,
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn byte(&mut self) -> u8 {
        (self.next() >> 24) as u8
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit.max(1)
    }
}

/// The card between smoltcp and the link.
pub struct Card {
    pub to_guest: VecDeque<Vec<u8>>,
    pub from_guest: VecDeque<Vec<u8>>,
    mtu: usize,
    checksums: bool,
}

pub struct Receive(Vec<u8>);
pub struct Transmit<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Receive {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Receive;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Receive, Transmit<'_>)> {
        let frame = self.to_guest.pop_front()?;
        Some((Receive(frame), Transmit(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Transmit<'_>> {
        (self.from_guest.len() < 64).then_some(Transmit(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut all = DeviceCapabilities::default();
        all.medium = Medium::Ethernet;
        all.max_transmission_unit = self.mtu + 14;
        all.checksum = if self.checksums {
            ChecksumCapabilities::default()
        } else {
            let mut none = ChecksumCapabilities::ignored();
            none.ipv4 = smoltcp::phy::Checksum::Both;
            none.icmpv6 = smoltcp::phy::Checksum::Both;
            none
        };
        all
    }
}

pub struct Guest {
    pub link: Box<dyn Link>,
    pub card: Card,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    pub faults: Faults,
    pub random: Random,
    /// Every frame that came from the network.
    pub heard: Option<Vec<Vec<u8>>>,
    held: Vec<Vec<u8>>,
    start: Instant,
}

impl Guest {
    /// A guest with QEMU's static addresses; with `offload` it takes and sends
    /// large segments.
    pub fn new(network: &UserNetwork, offload: bool) -> Self {
        let mut link = network.open(1).unwrap().remove(0);
        link.set_guest_abilities(Abilities {
            partial_checksum: offload,
            tcp4: offload,
            tcp6: offload,
            udp: offload,
        });
        let mut card = Card {
            to_guest: VecDeque::new(),
            from_guest: VecDeque::new(),
            mtu: if offload { 65_535 } else { 1500 },
            checksums: !offload,
        };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut iface = Interface::new(config, &mut card, SmolInstant::ZERO);
        iface.update_ip_addrs(|all| {
            for text in ["10.0.2.15/24", "fec0::15/64"] {
                all.push(text.parse::<IpCidr>().unwrap()).unwrap();
            }
        });
        let gateway = Ipv4Address::new(10, 0, 2, 2);
        iface.routes_mut().add_default_ipv4_route(gateway).unwrap();
        let gateway = "fec0::2".parse().unwrap();
        iface.routes_mut().add_default_ipv6_route(gateway).unwrap();
        Self {
            link,
            card,
            iface,
            sockets: SocketSet::new(Vec::new()),
            faults: Faults::default(),
            random: Random(0x9e37_79b9_7f4a_7c15),
            heard: None,
            held: Vec::new(),
            start: Instant::now(),
        }
    }

    /// One round of everything; whether anything moved.
    pub fn poll(&mut self) -> bool {
        self.link.turn(Instant::now());
        let mut moved = false;
        // Like a card with a ring of limited size.
        while self.card.to_guest.len() < 64 {
            let Some(frame) = self.link.incoming().unwrap() else {
                break;
            };
            let bytes = frame.bytes.to_vec();
            self.link.consume();
            moved = true;
            if let Some(heard) = &mut self.heard {
                heard.push(bytes.clone());
            }
            self.spoil(bytes, true);
        }
        let now = SmolInstant::from_micros(self.start.elapsed().as_micros() as i64);
        self.iface.poll(now, &mut self.card, &mut self.sockets);
        let out: Vec<Vec<u8>> = self.card.from_guest.drain(..).collect();
        for bytes in out {
            moved = true;
            self.spoil(bytes, false);
        }
        let offload = Offload {
            checksum: if self.card.checksums {
                Checksum::Complete
            } else {
                Checksum::Verified
            },
            ..Offload::default()
        };
        let out: Vec<Vec<u8>> = self.card.from_guest.drain(..).collect();
        for bytes in out {
            self.link.transmit(&offload, &bytes).unwrap();
        }
        moved
    }

    /// Passes a frame on, or not.
    fn spoil(&mut self, bytes: Vec<u8>, inward: bool) {
        let queue = if inward {
            &mut self.card.to_guest
        } else {
            &mut self.card.from_guest
        };
        if self.random.byte() < self.faults.lost {
            return;
        }
        if self.random.byte() < self.faults.doubled {
            queue.push_back(bytes.clone());
        }
        if inward && self.random.byte() < self.faults.late && self.held.len() < 8 {
            self.held.push(bytes);
            return;
        }
        queue.push_back(bytes);
        if inward && self.random.byte() < 64 {
            queue.extend(self.held.pop());
        }
    }

    /// Polls until `done`, or fails.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        loop {
            let moved = self.poll();
            if done(self) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "never: {what}");
            if !moved {
                self.rest();
            }
        }
    }

    /// Polls for a while.
    pub fn pass(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            if !self.poll() {
                self.rest();
            }
        }
    }

    fn rest(&self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let fd = self.link.ready_fd();
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let _ = poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], Some(&wait));
    }

    pub fn tcp(&mut self, buffer: usize) -> SocketHandle {
        let make = || tcp::SocketBuffer::new(vec![0; buffer]);
        self.sockets.add(tcp::Socket::new(make(), make()))
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect to a remote address.
    pub fn connect(&mut self, remote: &str, local: u16, buffer: usize) -> SocketHandle {
        let handle = self.tcp(buffer);
        let remote: SocketAddr = remote.parse().unwrap();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(self.iface.context(), IpEndpoint::from(remote), local)
            .unwrap();
        handle
    }
}

/// A network of the default configuration with the name server given.
pub fn network(change: impl FnOnce(&mut UserConfig)) -> UserNetwork {
    let mut config = UserConfig::default();
    change(&mut config);
    UserNetwork::new(config).unwrap()
}
