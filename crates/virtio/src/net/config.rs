//! Features and configuration of a network card (virtio 1.2, 5.1.3, 5.1.4).

use net::{Abilities, MacAddress};

/// Feature bits.
pub mod feature {
    /// The device completes partial checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver accepts partial checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver can change what it accepts.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// The device says the MTU.
    pub const MTU: u64 = 1 << 3;
    /// The device says the address.
    pub const MAC: u64 = 1 << 5;
    /// The driver accepts large TCP segments over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver accepts large TCP segments over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device accepts large TCP segments over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device accepts large TCP segments over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// One frame may be in several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device says whether there is a carrier.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Reception can be filtered.
    pub const CTRL_RX: u64 = 1 << 18;
    /// VLANs can be filtered.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// Reception can be filtered in more ways.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The device can ask the driver to announce itself.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// The driver can change the address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The driver accepts large UDP packets over IPv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The driver accepts large UDP packets over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device accepts large UDP packets.
    pub const HOST_USO: u64 = 1 << 56;
    /// The device says the speed.
    pub const SPEED_DUPLEX: u64 = 1 << 63;

    /// What the driver can change by control command.
    pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;
}

/// There is a carrier.
const LINK_UP: u16 = 1;
/// The driver is to announce itself.
const ANNOUNCE: u16 = 2;
const FULL_DUPLEX: u8 = 1;

/// What the device offers with this many queue pairs.
pub(super) fn offered(pairs: u16) -> u64 {
    use feature::*;
    let several = if pairs > 1 { MQ } else { 0 };
    let control = CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR;
    let control = control | CTRL_GUEST_OFFLOADS | GUEST_ANNOUNCE;
    let host = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_USO;
    let says = MTU | MAC | STATUS | SPEED_DUPLEX;
    control | host | says | GUEST_OFFLOADS | MRG_RXBUF | several
}

/// What a driver accepts that has these features on.
pub(super) fn abilities(features: u64) -> Abilities {
    let has = |bits: u64| features & bits == bits;
    let partial_checksum = has(feature::GUEST_CSUM);
    Abilities {
        partial_checksum,
        tcp4: partial_checksum && has(feature::GUEST_TSO4),
        tcp6: partial_checksum && has(feature::GUEST_TSO6),
        udp: partial_checksum && has(feature::GUEST_USO4 | feature::GUEST_USO6),
    }
}

/// What the configuration says now.
pub(super) struct Config {
    pub mac: MacAddress,
    pub link_up: bool,
    pub announce: bool,
    pub pairs: u16,
    pub mtu: u16,
    /// In Mbit/s.
    pub speed: u32,
}

/// `struct virtio_net_config` up to `duplex`.
pub(super) fn image(config: &Config) -> [u8; 17] {
    let status = if config.link_up { LINK_UP } else { 0 };
    let status = status | if config.announce { ANNOUNCE } else { 0 };
    let mut image = [0; 17];
    image[..6].copy_from_slice(&config.mac.0);
    image[6..8].copy_from_slice(&status.to_le_bytes());
    image[8..10].copy_from_slice(&config.pairs.to_le_bytes());
    image[10..12].copy_from_slice(&config.mtu.to_le_bytes());
    image[12..16].copy_from_slice(&config.speed.to_le_bytes());
    image[16] = FULL_DUPLEX;
    image
}
