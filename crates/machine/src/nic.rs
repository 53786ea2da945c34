//! Network cards: their description, and the networks behind them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use machine_protocol::vpc::{PortConfig, mac_of};
use net::capture::{CaptureOptions, Captured};
use net::switch::{Switch, SwitchError, SwitchName};
use net::tap::{InterfaceName, Tap, TapError};
use net::user::{Publication, Reach, Subnet4, Subnet6, UserConfig, UserError, UserNetwork};
use net::vpc::{VpcError, VpcNetwork};
use net::{MacAddress, Network, Rate};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use virtio::net::{Net, NetHandle, NetOptions};

use crate::port_door::PortDoor;

/// Most network cards: the PCI slots 8 to 11.
pub const MOST_NICS: usize = 4;
/// Largest IP packet on a switch unless said otherwise, in bytes.
const SWITCH_MTU: u16 = 1500;
/// Bytes captured of each frame unless said otherwise.
const SNAPLEN: u32 = 1 << 18;

/// A virtio network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// What it is plugged into.
    pub network: NicNetwork,
    /// Its address; `None`: derived from the machine's UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Largest IP packet, in bytes; `None`: the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Queue pairs; `None`: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Bound on each direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Where what crosses it is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<NicCapture>,
    /// Name by which an attached card can be detached; others need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Slot of the root port, 24 to 31, behind which it is because it was
    /// attached while the machine ran. Missing: it is on bus 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u8>,
}

/// What a card is plugged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicNetwork {
    /// The host's network, without privilege.
    User(UserNic),
    /// A tap of the host.
    Tap(InterfaceName),
    /// A bridge of the host, by a tap that is made for it.
    Bridge(InterfaceName),
    /// A switch of this user's machines.
    Switch(SwitchName),
    /// A port in a virtual private cloud.
    Vpc(Box<VpcNic>),
}

impl std::fmt::Display for NicNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(_) => f.write_str("user"),
            Self::Tap(name) => write!(f, "tap={name}"),
            Self::Bridge(name) => write!(f, "bridge={name}"),
            Self::Switch(name) => write!(f, "switch={name}"),
            Self::Vpc(vpc) => write!(f, "vpc={}", vpc.port.address),
        }
    }
}

/// A user network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserNic {
    /// Host ports that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publication>,
    /// IPv4 addresses, as in `10.0.2.0/24`; `None`: that for the first card of
    /// the kind, 10.0.3.0/24 for the second …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Without IPv6.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_ipv6: bool,
    /// Host name that the guest gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// How far the guest gets.
    #[serde(default)]
    pub reach: NicReach,
}

/// A port in a virtual private cloud (VPC). The card's address is
/// [`mac_of`] its private address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpcNic {
    /// Absolute path of the directory in which the members of the VPC meet;
    /// made if it is missing, for this user alone.
    pub directory: PathBuf,
    /// The port as it is at the start; a request can change it.
    pub port: PortConfig,
    /// Unix socket by which the machine's owner reaches any TCP port of the
    /// guest, past all rules: a client sends the port's number and a line
    /// feed, and has the connection then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<PathBuf>,
}

/// How far a guest gets by a user network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicReach {
    /// The world and the host.
    #[default]
    Everything,
    /// The world without the host.
    NotTheHost,
    /// Nothing; publications work.
    Nothing,
}

/// Where and how a card's frames are captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicCapture {
    /// The pcap file.
    pub file: PathBuf,
    /// Bytes kept of each frame; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// Bytes after which the file grows no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl Nic {
    /// A card on this network, all else as usual.
    pub fn new(network: NicNetwork) -> Self {
        Self {
            network,
            mac: None,
            mtu: None,
            queues: None,
            rate: None,
            capture: None,
            name: None,
            port: None,
        }
    }
}

/// A network that a card cannot be plugged into.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// A user network.
    #[error("network card {index}: {source}")]
    User {
        /// Which card, from 0.
        index: usize,
        /// Why.
        source: UserError,
    },
    /// A tap or bridge.
    #[error("network card {index}: {source}")]
    Tap {
        /// Which card, from 0.
        index: usize,
        /// Why.
        source: TapError,
    },
    /// A switch.
    #[error("network card {index}: {source}")]
    Switch {
        /// Which card, from 0.
        index: usize,
        /// Why.
        source: SwitchError,
    },
    /// A port in a VPC.
    #[error("network card {index}: {source}")]
    Vpc {
        /// Which card, from 0.
        index: usize,
        /// Why.
        source: Box<VpcError>,
    },
    /// The socket to a card's TCP ports.
    #[error("network card {index}: {reason}")]
    Door {
        /// Which card, from 0.
        index: usize,
        /// Why not.
        reason: String,
    },
    /// A card in a VPC with an address of its own.
    #[error(
        "network card {index}: its address {asked} is not that of {private}, which is {derived}; \
         leave it out"
    )]
    VpcMac {
        /// Which card, from 0.
        index: usize,
        /// As asked for.
        asked: MacAddress,
        /// The private address.
        private: Ipv4Addr,
        /// What it must be.
        derived: MacAddress,
    },
    /// No such card in a VPC.
    #[error("the machine has no network card {index} in a VPC; `describe` lists `ports`")]
    NotInVpc {
        /// Which card, from 0.
        index: usize,
    },
    /// A capture file.
    #[error("network card {index}: making the capture file {file}: {source}")]
    Capture {
        /// Which card, from 0.
        index: usize,
        /// The file.
        file: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// More queue pairs than the network has.
    #[error("network card {index}: {network} serves {most} queue pairs at most, not {asked}")]
    Queues {
        /// Which card, from 0.
        index: usize,
        /// Its network.
        network: String,
        /// As many as it can.
        most: u16,
        /// As many as were asked for.
        asked: u16,
    },
    /// A larger MTU than the network's.
    #[error(
        "network card {index}: an MTU of {asked} is not possible on {network}, whose own is {most}"
    )]
    Mtu {
        /// Which card, from 0.
        index: usize,
        /// Its network.
        network: String,
        /// The network's.
        most: u16,
        /// As asked for.
        asked: u16,
    },
}

/// A card that is ready to be put into a machine.
pub(crate) struct OpenNic {
    pub device: Net,
    pub port: NicPort,
}

/// A card of a machine, for its owner.
#[derive(Clone)]
pub struct NicPort {
    /// The card.
    pub card: NetHandle,
    /// The card's own address: what a driver reads that starts anew.
    pub own: MacAddress,
    /// The network behind it, if that is a user network.
    pub user: Option<Arc<UserNetwork>>,
    /// Its port, if it is in a VPC.
    pub vpc: Option<Arc<VpcNetwork>>,
    /// The way of the machine's owner to the guest's TCP ports.
    pub(crate) door: Arc<Mutex<Option<PortDoor>>>,
}

impl NicPort {
    /// Leaves the network for good.
    pub(crate) fn close(&self) {
        drop(self.door.lock().take());
        self.card.close();
    }
}

/// Opens the networks of all cards.
pub(crate) fn open_all(nics: &[Nic], uuid: &[u8; 16]) -> Result<Vec<OpenNic>, NicError> {
    let mut users = 0;
    let open = |(index, nic): (usize, &Nic)| {
        if let Some(port) = nic.port {
            return open_behind(port, nic, uuid);
        }
        let before = users;
        users += u8::from(matches!(nic.network, NicNetwork::User(_)));
        open(index, nic, uuid, before)
    };
    nics.iter().enumerate().map(open).collect()
}

/// Opens the network of a card behind a root port. It counts from that, so that
/// addresses are the same wherever the machine goes on.
pub(crate) fn open_behind(port: u8, nic: &Nic, uuid: &[u8; 16]) -> Result<OpenNic, NicError> {
    let number = MOST_NICS as u8 + port % 8;
    open(number.into(), nic, uuid, number)
}

fn open(index: usize, nic: &Nic, uuid: &[u8; 16], users: u8) -> Result<OpenNic, NicError> {
    let pairs = nic.queues.unwrap_or(1).max(1);
    let (mut user, mut vpc, mut door) = (None, None, None);
    let tap = |source| NicError::Tap { index, source };
    let mut network: Arc<dyn Network> = match &nic.network {
        NicNetwork::User(described) => {
            let wrong = |source| NicError::User { index, source };
            let config = user_config(described, nic.mtu, users).map_err(wrong)?;
            let network = Arc::new(UserNetwork::new(config).map_err(wrong)?);
            user = Some(network.clone());
            network
        }
        NicNetwork::Tap(name) => Arc::new(Tap::named(name, pairs).map_err(tap)?),
        NicNetwork::Bridge(name) => Arc::new(Tap::on_bridge(name, pairs).map_err(tap)?),
        NicNetwork::Switch(name) => {
            let switch = Switch::new(name, nic.mtu.unwrap_or(SWITCH_MTU));
            Arc::new(switch.map_err(|source| NicError::Switch { index, source })?)
        }
        NicNetwork::Vpc(described) => {
            let port = Arc::new(open_port(index, nic, described)?);
            let reached = described.door.as_deref();
            let reached = reached.map(|path| PortDoor::open(path, &port)).transpose();
            door = reached.map_err(|error| NicError::Door {
                index,
                reason: error.to_string(),
            })?;
            vpc = Some(port.clone());
            port
        }
    };
    if pairs > network.most_pairs() {
        return Err(NicError::Queues {
            index,
            network: network.describe(),
            most: network.most_pairs(),
            asked: pairs,
        });
    }
    if let Some(asked) = nic.mtu.filter(|mtu| *mtu > network.mtu()) {
        return Err(NicError::Mtu {
            index,
            network: network.describe(),
            most: network.mtu(),
            asked,
        });
    }
    if let Some(capture) = &nic.capture {
        let options = CaptureOptions {
            file: capture.file.clone(),
            snaplen: capture.snaplen.unwrap_or(SNAPLEN),
            limit: capture.limit,
        };
        let captured = Captured::new(network, &options).map_err(|source| NicError::Capture {
            index,
            file: capture.file.clone(),
            source,
        })?;
        network = Arc::new(captured);
    }
    let derived = || match &nic.network {
        NicNetwork::Vpc(vpc) => MacAddress(mac_of(vpc.port.address)),
        _ => MacAddress::derived(uuid, index as u8),
    };
    let own = nic.mac.unwrap_or_else(derived);
    let options = NetOptions {
        mac: own,
        pairs,
        mtu: nic.mtu,
        receive_rate: nic.rate,
        transmit_rate: nic.rate,
    };
    let (device, card) = Net::new(network, options);
    if let Some(vpc) = &vpc {
        card.set_plugged(vpc.config().link_up);
    }
    Ok(OpenNic {
        device,
        port: NicPort {
            card,
            own,
            user,
            vpc,
            door: Arc::new(Mutex::new(door)),
        },
    })
}

fn open_port(index: usize, nic: &Nic, vpc: &VpcNic) -> Result<VpcNetwork, NicError> {
    let private = vpc.port.address;
    let derived = MacAddress(mac_of(private));
    if let Some(asked) = nic.mac.filter(|mac| *mac != derived) {
        return Err(NicError::VpcMac {
            index,
            asked,
            private,
            derived,
        });
    }
    VpcNetwork::new(&vpc.directory, vpc.port.clone()).map_err(|source| NicError::Vpc {
        index,
        source: Box::new(source),
    })
}

/// `users`: how many cards before this one are on user networks.
fn user_config(nic: &UserNic, mtu: Option<u16>, users: u8) -> Result<UserConfig, UserError> {
    let usual = UserConfig::default();
    Ok(UserConfig {
        v4: match &nic.subnet {
            Some(text) => text.parse()?,
            None => Subnet4::new(Ipv4Addr::new(10, 0, 2 + users, 0), 24),
        },
        v6: (!nic.without_ipv6).then_some(Subnet6 {
            network: Ipv6Addr::new(0xfec0, 0, 0, users.into(), 0, 0, 0, 0),
        }),
        mtu: mtu.unwrap_or(usual.mtu),
        hostname: nic.hostname.clone(),
        reach: match nic.reach {
            NicReach::Everything => Reach::Everything,
            NicReach::NotTheHost => Reach::NotTheHost,
            NicReach::Nothing => Reach::Nothing,
        },
        publish: nic.publish.clone(),
        ..usual
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_survive_json() {
        let mut nic = Nic::new(NicNetwork::Switch("lab".parse().unwrap()));
        nic.mac = Some(MacAddress([2, 0, 0, 0, 0, 1]));
        nic.rate = Some(Rate::new(1000));
        let user = Nic::new(NicNetwork::User(UserNic::default()));
        let subnet = "10.0.1.0/24".parse().unwrap();
        let vpc = Nic::new(NicNetwork::Vpc(Box::new(VpcNic {
            directory: "/run/vpc".into(),
            port: PortConfig::new(Ipv4Addr::new(10, 0, 1, 4), subnet, vec![subnet]),
            door: None,
        })));
        for nic in [nic, user, vpc] {
            let text = serde_json::to_string(&nic).unwrap();
            assert_eq!(serde_json::from_str::<Nic>(&text).unwrap(), nic, "{text}");
        }
        for bad in [
            r#"{"network":{"switch":"../x"}}"#,
            r#"{"network":{"tap":"much-too-long-a-name"}}"#,
            r#"{"network":{"wifi":"x"}}"#,
        ] {
            assert!(serde_json::from_str::<Nic>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_network_cannot_is_said() {
        let mut nic = Nic::new(NicNetwork::User(UserNic::default()));
        nic.queues = Some(4);
        let error = open_all(&[nic], &[1; 16]).err().unwrap().to_string();
        assert!(
            error.contains("card 0") && error.contains("not 4"),
            "{error}"
        );
        let mut nic = Nic::new(NicNetwork::User(UserNic::default()));
        nic.mtu = Some(70);
        assert!(open_all(&[nic], &[1; 16]).is_err());
    }
}
