//! A user network: what its owner holds while a card serves it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::UserError;
use super::config::UserConfig;
use super::counters::{Counters, UserMetrics};
use super::dhcp::Leases;
use super::doors::Doors;
use super::publication::Publication;
use super::stack::UserLink;
use super::tcp::Ends;
use super::wire::Mac;
use crate::{Link, LinkError, Network};

/// Version of [`UserState`] that this program writes.
const VERSION: u32 = 1;
/// Most cards remembered.
const MAX_CARDS: usize = 256;

/// What a user network keeps over a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserState {
    /// Version of this state.
    pub version: u32,
    /// Who has which address by DHCP.
    pub leases: Leases,
    /// Cards behind the guest's addresses.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// TCP connections that were open: the guest's end, and the other. They
    /// do not survive, and the guest is told so.
    pub connections: Vec<(SocketAddr, SocketAddr)>,
}

/// Between the owner of a network and the thread of its card.
pub(super) struct Shared {
    pub counters: Arc<Counters>,
    pub doors: Arc<Doors>,
    pub leases: Mutex<Leases>,
    pub connections: Arc<Mutex<HashSet<Ends>>>,
    pub restored: Mutex<Option<UserState>>,
    neighbours: Mutex<BTreeMap<IpAddr, Mac>>,
}

impl Shared {
    /// A card behind an address was seen.
    pub fn remember(&self, address: IpAddr, card: Mac) {
        let mut known = self.neighbours.lock();
        if known.len() >= MAX_CARDS {
            known.clear();
        }
        known.insert(address, card);
    }
}

/// The host's network, for one guest, without any privilege: a subnet of its
/// own with DHCP, name server and router, behind which the monitor's own
/// sockets speak for the guest.
pub struct UserNetwork {
    config: UserConfig,
    shared: Arc<Shared>,
}

impl UserNetwork {
    /// Checks the configuration and opens all publications.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn new(config: UserConfig) -> Result<Self, UserError> {
        config.check()?;
        raise_descriptors();
        let doors = Arc::new(Doors::open(&config.publish)?);
        Ok(Self {
            config,
            shared: Arc::new(Shared {
                counters: Arc::default(),
                doors,
                leases: Mutex::default(),
                connections: Arc::default(),
                restored: Mutex::new(None),
                neighbours: Mutex::default(),
            }),
        })
    }

    /// Publishes one more port of the guest; where the host listens.
    ///
    /// # Errors
    /// [`UserError::Publish`] if the host refuses,
    /// [`UserError::AlreadyPublished`].
    pub fn publish(&self, publication: Publication) -> Result<SocketAddr, UserError> {
        self.shared.doors.add(publication)
    }

    /// Ends a publication. Connections that came through it go on.
    ///
    /// # Errors
    /// [`UserError::NotPublished`].
    pub fn unpublish(&self, publication: Publication) -> Result<(), UserError> {
        self.shared.doors.remove(publication)
    }

    /// All publications, with the host's ports that they have.
    pub fn publications(&self) -> Vec<Publication> {
        self.shared.doors.list()
    }

    /// Leads a connected stream socket to a TCP port of the first guest,
    /// whatever the policy says: the way of the machine's owner. The socket is
    /// closed when the guest refuses, or when too many wait.
    pub fn hand(&self, socket: OwnedFd, guest: u16) {
        if !self.shared.doors.hand(socket, guest) {
            self.shared.counters.limited.one();
        }
    }

    /// A link with another configuration than the network's own.
    pub(crate) fn link(&self, config: UserConfig) -> io::Result<UserLink> {
        UserLink::new(config, Arc::clone(&self.shared))
    }

    /// What it has done so far.
    pub fn metrics(&self) -> UserMetrics {
        self.shared.counters.read()
    }

    /// TCP connections there are: the guest's end, and the other as the guest
    /// sees it.
    pub fn connections(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let mut all: Vec<Ends> = self.shared.connections.lock().iter().copied().collect();
        all.sort_unstable();
        all
    }

    /// What survives a snapshot; at any time.
    pub fn save(&self) -> UserState {
        UserState {
            version: VERSION,
            leases: self.shared.leases.lock().clone(),
            neighbours: self
                .shared
                .neighbours
                .lock()
                .iter()
                .map(|(address, card)| (*address, *card))
                .collect(),
            connections: self.connections(),
        }
    }

    /// Takes back a saved state: leases go on, and the guest's connections of
    /// then are reset.
    ///
    /// # Errors
    /// [`UserError::Version`].
    pub fn restore(&self, state: UserState) -> Result<(), UserError> {
        if state.version != VERSION {
            return Err(UserError::Version(state.version, VERSION));
        }
        *self.shared.leases.lock() = state.leases.clone();
        *self.shared.restored.lock() = Some(state);
        self.shared.doors.tell();
        Ok(())
    }
}

impl Network for UserNetwork {
    fn open(&self, pairs: u16) -> Result<Vec<Box<dyn Link>>, LinkError> {
        (0..pairs.min(self.most_pairs()))
            .map(|_| {
                let link = UserLink::new(self.config.clone(), Arc::clone(&self.shared));
                link.map(|link| Box::new(link) as Box<dyn Link>)
                    .map_err(|source| LinkError::Host {
                        network: self.describe(),
                        what: "setting up its sockets",
                        source,
                    })
            })
            .collect()
    }

    fn most_pairs(&self) -> u16 {
        1
    }

    fn mtu(&self) -> u16 {
        self.config.mtu
    }

    fn describe(&self) -> String {
        let v4 = self.config.v4;
        format!("user network {}/{}", v4.network, v4.prefix)
    }
}

/// Each flow is a descriptor: as many as the host allows.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // If not, fewer flows are possible.
    let _ = setrlimit(Resource::Nofile, raised);
}
