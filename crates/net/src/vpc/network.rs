//! A port: what its owner holds while a card serves it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use machine_protocol::vpc::{
    BY_THE_SIDE, PortConfig, PortReport, Protocol, PublishedPort, UnpublishedPort,
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::compiled::Compiled;
use super::counters::{Counters, PortMetrics};
use super::error::VpcError;
use super::link::VpcLink;
use super::publish;
use super::track::{SavedFlow, Track};
use crate::switch::{Switch, SwitchName};
use crate::user::{Publication, UserError, UserMetrics, UserNetwork, UserState};
use crate::{Link, LinkError, Network};

/// Version of [`PortState`] that this program writes.
const VERSION: u32 = 1;

/// Ports below are often not for everybody to bind, and then answer by the
/// side.
const PRIVILEGED: u16 = 1024;

/// What a port keeps over a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Version of this state.
    pub version: u32,
    /// Of the gateway: connections that ended with the process.
    pub user: UserState,
    /// Tracked flows to other members, which go on if those do.
    pub flows: Vec<SavedFlow>,
}

/// Between the owner of a port and the thread of its card.
pub(super) struct Shared {
    current: RwLock<Arc<Compiled>>,
    /// Counts the configurations.
    generation: AtomicU64,
    pub counters: Arc<Counters>,
    pub track: Mutex<Track>,
}

impl Shared {
    /// The configuration, if it is another than that of `seen`.
    pub fn newer(&self, seen: &mut u64) -> Option<Arc<Compiled>> {
        let now = self.generation.load(Ordering::Acquire);
        if now == *seen {
            return None;
        }
        *seen = now;
        Some(Arc::clone(&self.current.read()))
    }
}

/// What the ports at the public address came to.
#[derive(Default)]
struct Published {
    open: Vec<(PublishedPort, Publication)>,
    left: Vec<UnpublishedPort>,
}

/// A machine's port in a VPC. See the module.
pub struct VpcNetwork {
    shared: Arc<Shared>,
    user: UserNetwork,
    switch: Switch,
    published: Mutex<Published>,
    mtu: u16,
}

impl VpcNetwork {
    /// A port in the VPC whose members meet in `directory`.
    ///
    /// # Errors
    /// [`VpcError`].
    pub fn new(directory: &Path, config: PortConfig) -> Result<Self, VpcError> {
        config.check()?;
        let mtu = config.mtu;
        let name = directory.file_name().and_then(|name| name.to_str());
        let name = name.and_then(|name| name.parse::<SwitchName>().ok());
        let name = match name {
            Some(name) => name,
            None => "vpc".parse()?,
        };
        let counters = Arc::<Counters>::default();
        let compiled = Arc::new(Compiled::new(config));
        let port = Self {
            switch: Switch::at(directory, &name, mtu)?,
            user: UserNetwork::new(compiled.user_config(&counters))?,
            shared: Arc::new(Shared {
                current: RwLock::new(compiled),
                generation: AtomicU64::new(1),
                counters,
                track: Mutex::new(Track::new(Instant::now())),
            }),
            published: Mutex::default(),
            mtu,
        };
        port.publish();
        Ok(port)
    }

    /// Replaces the configuration, for the next packet on. Flows that are
    /// tracked go on.
    ///
    /// # Errors
    /// [`VpcError::Config`], [`VpcError::Address`]; the port is as before then.
    pub fn configure(&self, config: PortConfig) -> Result<(), VpcError> {
        config.check()?;
        let is = self.config().address;
        if config.address != is {
            return Err(VpcError::Address {
                is,
                asked: config.address,
            });
        }
        {
            let mut current = self.shared.current.write();
            *current = Arc::new(Compiled::new(config));
            self.shared.generation.fetch_add(1, Ordering::Release);
        }
        self.publish();
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> PortConfig {
        self.shared.current.read().config.clone()
    }

    /// Opens and closes ports at the public address as the rules ask.
    fn publish(&self) {
        let mut published = self.published.lock();
        let compiled = Arc::clone(&self.shared.current.read());
        let wanted = publish::wanted(&compiled);
        published.open.retain(|(port, publication)| {
            let keep = wanted.ports.contains(&(port.protocol, port.port))
                && compiled
                    .config
                    .public
                    .is_some_and(|ip| publication.host.ip() == ip);
            if !keep {
                // It is gone in any case.
                let _ = self.user.unpublish(*publication);
            }
            keep
        });
        published.left = wanted.left;
        let Some(public) = compiled.config.public else {
            return;
        };
        for (protocol, port) in wanted.ports {
            let open = published.open.iter();
            let mut open = open.filter(|(open, _)| (open.protocol, open.port) == (protocol, port));
            let beside = open.next().map(|(open, _)| open.host_port);
            if beside == Some(port) {
                continue;
            }
            let mut opened = |host_port| {
                let (udp, host) = (protocol == Protocol::UDP, (public, host_port).into());
                let publication = Publication {
                    host,
                    guest: port,
                    udp,
                };
                self.user.publish(publication)?;
                let one = PublishedPort {
                    protocol,
                    port,
                    host_port,
                };
                published.open.push((one, publication));
                Ok::<_, UserError>(())
            };
            let Err(error) = opened(port) else {
                continue;
            };
            let mut reason = reason(&error);
            let side = port.checked_add(BY_THE_SIDE).filter(|_| port < PRIVILEGED);
            let side = beside.or_else(|| side.filter(|side| opened(*side).is_ok()));
            if let Some(side) = side {
                reason = format!("{reason}; it answers at port {side} instead");
            }
            published.left.push(UnpublishedPort {
                protocol,
                port,
                last: port,
                reason,
            });
        }
    }

    /// What the port is, as card number `nic` of its machine.
    pub fn report(&self, nic: u32) -> PortReport {
        let config = self.config();
        let published = self.published.lock();
        PortReport {
            nic,
            address: config.address,
            mac: machine_protocol::vpc::mac_text(config.address),
            public: config.public,
            published: published.open.iter().map(|(port, _)| *port).collect(),
            unpublished: published.left.clone(),
            link_up: config.link_up,
        }
    }

    /// Leads a connected stream socket to a TCP port of the guest, past all
    /// rules: the way of the machine's owner.
    pub fn hand(&self, socket: OwnedFd, guest: u16) {
        self.user.hand(socket, guest);
    }

    /// What the port has passed and dropped.
    pub fn metrics(&self) -> PortMetrics {
        let tracked = self.shared.track.lock().len();
        self.shared.counters.tracked_now.set(tracked);
        self.shared.counters.read()
    }

    /// What its gateway has done.
    pub fn gateway_metrics(&self) -> UserMetrics {
        self.user.metrics()
    }

    /// What survives a snapshot; at any time.
    pub fn save(&self) -> PortState {
        PortState {
            version: VERSION,
            user: self.user.save(),
            flows: self.shared.track.lock().save(),
        }
    }

    /// Takes back a saved state.
    ///
    /// # Errors
    /// [`VpcError::Version`], [`VpcError::User`].
    pub fn restore(&self, state: PortState) -> Result<(), VpcError> {
        if state.version != VERSION {
            return Err(VpcError::Version(state.version, VERSION));
        }
        self.user.restore(state.user)?;
        self.shared
            .track
            .lock()
            .restore(&state.flows, Instant::now());
        Ok(())
    }

    fn link(&self) -> std::io::Result<VpcLink> {
        let compiled = Arc::clone(&self.shared.current.read());
        let user = self
            .user
            .link(compiled.user_config(&self.shared.counters))?;
        VpcLink::new(
            Arc::clone(&self.shared),
            compiled,
            user,
            self.switch.link()?,
        )
    }
}

/// Why a port does not answer, in words for the machine's owner.
fn reason(error: &UserError) -> String {
    match error {
        UserError::Publish { hint, source, .. } => format!("{source}; {hint}"),
        other => other.to_string(),
    }
}

impl Network for VpcNetwork {
    fn open(&self, pairs: u16) -> Result<Vec<Box<dyn Link>>, LinkError> {
        (0..pairs.min(self.most_pairs()))
            .map(|_| {
                let link = self.link().map_err(|source| LinkError::Host {
                    network: self.describe(),
                    what: "joining the VPC",
                    source,
                })?;
                Ok(Box::new(link) as Box<dyn Link>)
            })
            .collect()
    }

    fn most_pairs(&self) -> u16 {
        1
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn describe(&self) -> String {
        let current = self.shared.current.read();
        format!("vpc port {}", current.config.address)
    }
}
