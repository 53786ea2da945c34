//! The host's own port in a VPC: an interface of the host (a tap) whose frames
//! go through a port like a machine's ([`crate::vpc`]), so that the host
//! reaches each machine at its private address. It takes CAP_NET_ADMIN, and
//! goes with its process: interface, address and route alike.
//!
//! The host begins what it likes; nothing is begun towards it. Each machine's
//! port judges by its own rules what comes from the host.

mod redirects;
mod routes;

pub use redirects::{RedirectError, Redirects};

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use machine_protocol::vpc::{Cidr, PortConfig, mac_of};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::tap::{HostAddress, InterfaceName, Tap, TapError};
use crate::vpc::{VpcError, VpcNetwork};
use crate::{Link, LinkError, MacAddress, Network, Sent};

/// Frames that go one way before the other way gets its turn.
const AT_ONCE: usize = 256;
/// Pause before a frame that found no room is offered again.
const AGAIN: Duration = Duration::from_millis(1);

/// A host that does not get into a VPC.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// The host has these addresses elsewhere.
    #[error(
        "the host's own network has addresses of {vpc}: {taken}; make the network with another block \
         of addresses (`holm net create --cidr`) if the host is to reach private addresses"
    )]
    Taken {
        /// The VPC's.
        vpc: Cidr,
        /// What has them.
        taken: String,
    },
    /// The interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The port.
    #[error(transparent)]
    Vpc(#[from] VpcError),
    /// It failed while it served.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host failed otherwise.
    #[error("{doing}: {source}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// See the module.
pub struct HostPort {
    tap: Tap,
    vpc: VpcNetwork,
    config: PortConfig,
}

impl HostPort {
    /// Makes the interface, its address and the route to the VPC of this block,
    /// whose members meet in `directory`.
    ///
    /// # Errors
    /// [`HostPortError`]; nothing is left then.
    pub fn open(
        interface: &InterfaceName,
        directory: &Path,
        vpc: Cidr,
    ) -> Result<Self, HostPortError> {
        let config = PortConfig::of_host(vpc);
        let free = || {
            let taken = routes::taken(vpc, interface.as_str());
            let taken = taken.map_err(|source| HostPortError::Host {
                doing: "reading the host's routes",
                source,
            })?;
            match taken {
                None => Ok(()),
                Some(taken) => Err(HostPortError::Taken {
                    vpc,
                    taken: taken.to_string(),
                }),
            }
        };
        free()?;
        let port = VpcNetwork::new(directory, config.clone())?;
        let tap = Tap::of_host(
            interface,
            &HostAddress {
                mac: MacAddress(mac_of(config.address)),
                address: config.address,
                prefix: vpc.prefix(),
                mtu: config.mtu,
            },
        )?;
        // Another may have come at the same time.
        free()?;
        Ok(Self {
            tap,
            vpc: port,
            config,
        })
    }

    /// The host's address in the VPC.
    pub fn address(&self) -> std::net::Ipv4Addr {
        self.config.address
    }

    /// Carries frames until `tick`, which is called at once and then after each
    /// `period`, says that it is enough.
    ///
    /// # Errors
    /// [`HostPortError::Link`]: the interface is gone, for example.
    pub fn serve(
        &self,
        period: Duration,
        mut tick: impl FnMut() -> bool,
    ) -> Result<(), HostPortError> {
        let (mut host, mut vpc) = (one(&self.tap)?, one(&self.vpc)?);
        vpc.set_guest_abilities(host.abilities());
        host.set_guest_abilities(vpc.abilities());
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next {
                next = now + period;
                if !tick() {
                    return Ok(());
                }
            }
            vpc.turn(now);
            let inward = carry(host.as_mut(), vpc.as_mut())?;
            let outward = carry(vpc.as_mut(), host.as_mut())?;
            let due = vpc.turn(Instant::now()).map_or(next, |due| due.min(next));
            if inward == Carried::Some || outward == Carried::Some {
                continue;
            }
            let left = due.saturating_duration_since(Instant::now());
            let blocked = inward == Carried::Blocked;
            wait(
                (!blocked).then(|| host.ready_fd()),
                vpc.ready_fd(),
                if blocked { left.min(AGAIN) } else { left },
            )?;
        }
    }
}

fn one(network: &dyn Network) -> Result<Box<dyn Link>, LinkError> {
    network.open(1)?.pop().ok_or_else(|| LinkError::Host {
        network: network.describe(),
        what: "opening it",
        source: io::Error::other("it has no link"),
    })
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Nothing,
    Some,
    /// There is no room for the next frame.
    Blocked,
}

fn carry(from: &mut dyn Link, to: &mut dyn Link) -> Result<Carried, LinkError> {
    for count in 0..AT_ONCE {
        let Some(frame) = from.incoming()? else {
            return Ok(match count {
                0 => Carried::Nothing,
                _ => Carried::Some,
            });
        };
        match to.transmit(&frame.offload, frame.bytes)? {
            Sent::Yes | Sent::Dropped => from.consume(),
            Sent::Full => return Ok(Carried::Blocked),
        }
    }
    Ok(Carried::Some)
}

fn wait(
    host: Option<BorrowedFd<'_>>,
    vpc: BorrowedFd<'_>,
    most: Duration,
) -> Result<(), HostPortError> {
    let mut all = vec![PollFd::from_borrowed_fd(vpc, PollFlags::IN)];
    all.extend(host.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    let most = Timespec {
        tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: most.subsec_nanos().into(),
    };
    match poll(&mut all, Some(&most)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(HostPortError::Host {
            doing: "waiting for frames",
            source: error.into(),
        }),
    }
}
