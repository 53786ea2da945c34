//! Taps: a card on an interface of the host, and through it on its bridges.

mod link;
mod sys;

use std::fmt;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{Link, LinkError, MacAddress, Network};
use link::TapLink;
use sys::Interfaces;

/// Most queue pairs of one tap; Linux has 256, more than any guest's vCPUs.
const MOST_PAIRS: u16 = 64;
/// What taps of [`Tap::on_bridge`] are called; the kernel puts in a number.
const PATTERN: &str = "holm%d";

/// The name of an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        bytes
    }
}

/// Text that cannot name an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be an interface: a name has 1 to 15 letters, digits, '-', '_' or '.'")]
pub struct NameError(String);

impl FromStr for InterfaceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let sound =
            (1..=15).contains(&text.len()) && text.bytes().all(good) && !matches!(text, "." | "..");
        match sound {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tap that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host has no taps, or not for this user.
    #[error("opening /dev/net/tun: {0}; load the kernel's module tun, and let this user open it")]
    Device(io::Error),
    /// The tap is not this user's, or cannot be made.
    #[error(
        "opening tap {name}: {source}; only root can make taps: have one made for this user with \
         `ip tuntap add dev {name} mode tap user NAME` and `ip link set {name} up`"
    )]
    Open {
        /// Its name.
        name: InterfaceName,
        /// The host's error.
        source: io::Error,
    },
    /// Somebody uses it already.
    #[error("tap {0} is in use by another process; end that, or take another tap")]
    Busy(InterfaceName),
    /// It has one queue where several were asked for.
    #[error(
        "tap {0} has one queue: take queues=1, or have it made anew with `ip tuntap add … multi_queue`"
    )]
    OneQueue(InterfaceName),
    /// There is no such bridge, or this user may not change it.
    #[error(
        "attaching a tap to bridge {bridge}: {what}: {source}; this takes an existing bridge (`ip \
         link add {bridge} type bridge`) and root or CAP_NET_ADMIN: else use --net user or --net \
         switch=NAME"
    )]
    Bridge {
        /// Its name.
        bridge: InterfaceName,
        /// What was being done.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// The interface is down, and this user may not change that.
    #[error("tap {name} is down and cannot be brought up: {source}; `ip link set {name} up`")]
    Down {
        /// Its name.
        name: InterfaceName,
        /// The host's error.
        source: io::Error,
    },
    /// The host failed otherwise.
    #[error("tap {name}: {what}: {source}")]
    Host {
        /// Its name.
        name: InterfaceName,
        /// What was being done.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// What an interface of the host is in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// Address of its card.
    pub mac: MacAddress,
    /// The host's address.
    pub address: Ipv4Addr,
    /// Bits of the prefix of the network, which is on the link.
    pub prefix: u8,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

/// A tap. One that Holm made goes with it, whatever way the process ends: the
/// kernel removes it with its last descriptor, from its bridge, too.
pub struct Tap {
    name: InterfaceName,
    bridge: Option<InterfaceName>,
    /// It was down before, and is down again afterwards.
    brought_up: bool,
    several: bool,
    mtu: u16,
    /// Keeps the tap, and is its first queue.
    queues: Mutex<Vec<File>>,
}

impl Tap {
    /// The tap of this name with this many queues: an existing one of this
    /// user, or a new one if the user may make one.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn named(name: &InterfaceName, pairs: u16) -> Result<Self, TapError> {
        let mut tap = Self::open_queues(name, pairs)?;
        let host = |what| {
            let name = name.clone();
            move |source| TapError::Host { name, what, source }
        };
        let interfaces = Interfaces::new().map_err(host("asking the kernel"))?;
        if !interfaces.is_up(name).map_err(host("reading its flags"))? {
            interfaces
                .set_up(name, true)
                .map_err(|source| TapError::Down {
                    name: name.clone(),
                    source,
                })?;
            tap.brought_up = true;
        }
        let mtu = interfaces.mtu(name).map_err(host("reading its MTU"))?;
        tap.mtu = mtu.clamp(68, 65_535) as u16;
        Ok(tap)
    }

    /// A new tap as a port of this bridge.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn on_bridge(bridge: &InterfaceName, pairs: u16) -> Result<Self, TapError> {
        let failed = |what| {
            let bridge = bridge.clone();
            move |source| TapError::Bridge {
                bridge,
                what,
                source,
            }
        };
        let interfaces = Interfaces::new().map_err(failed("asking the kernel"))?;
        let mtu = interfaces.mtu(bridge).map_err(failed("reading its MTU"))?;
        let pattern = InterfaceName(PATTERN.into());
        let mut tap = match Self::open_queues(&pattern, pairs) {
            Ok(tap) => tap,
            Err(TapError::Open { source, .. }) => return Err(failed("making a tap")(source)),
            Err(error) => return Err(error),
        };
        // A bridge whose address was never set takes the lowest of its ports':
        // this one is above all others.
        let mut random = [0; 5];
        getrandom::fill(&mut random)
            .map_err(|e| failed("choosing an address")(io::Error::other(e.to_string())))?;
        let [a, b, c, d, e] = random;
        interfaces
            .set_address(&tap.name, MacAddress([0xfe, a, b, c, d, e]))
            .map_err(failed("setting the tap's address"))?;
        // And the lowest MTU of its ports.
        interfaces
            .set_mtu(&tap.name, mtu)
            .map_err(failed("setting the tap's MTU"))?;
        let address = interfaces
            .address(bridge)
            .map_err(failed("reading its address"))?;
        interfaces
            .add_to_bridge(bridge, &tap.name)
            .map_err(failed("adding the tap"))?;
        // Without other ports it takes even that one, and none when that goes.
        if interfaces.address(bridge).ok() != Some(address) {
            interfaces
                .set_address(bridge, address)
                .map_err(failed("keeping its address"))?;
        }
        interfaces
            .set_up(&tap.name, true)
            .map_err(failed("bringing the tap up"))?;
        if !interfaces.is_up(bridge).unwrap_or(true) {
            tracing::warn!(%bridge, "this bridge is down: `ip link set {bridge} up`");
        }
        tap.bridge = Some(bridge.clone());
        tap.mtu = mtu.clamp(68, 65_535) as u16;
        Ok(tap)
    }

    /// A new tap of this name that is the host's own way into a network.
    ///
    /// # Errors
    /// [`TapError`]; the tap is gone then.
    pub fn of_host(name: &InterfaceName, host: &HostAddress) -> Result<Self, TapError> {
        let failed = |what| {
            let name = name.clone();
            move |source| TapError::Host { name, what, source }
        };
        let interfaces = Interfaces::new().map_err(failed("asking the kernel"))?;
        let mut tap = Self::open_queues(name, 1)?;
        // Nothing but IPv4 is carried; without this the kernel would talk, and
        // it does not matter more.
        let v6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        let _ = std::fs::write(v6, "1");
        interfaces
            .set_address(name, host.mac)
            .map_err(failed("setting its card address"))?;
        interfaces
            .set_mtu(name, host.mtu.into())
            .map_err(failed("setting its MTU"))?;
        interfaces
            .set_ipv4(name, host.address, host.prefix)
            .map_err(failed("setting its address"))?;
        interfaces
            .set_up(name, true)
            .map_err(failed("bringing it up"))?;
        tap.mtu = host.mtu;
        Ok(tap)
    }

    fn open_queues(name: &InterfaceName, pairs: u16) -> Result<Self, TapError> {
        let pairs = pairs.clamp(1, MOST_PAIRS);
        // An existing tap has one of both kinds.
        let (first, made, several) = match sys::open(name, true) {
            Ok((file, made)) => (file, made, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let (file, made) = sys::open(name, false).map_err(|e| refused(name, e))?;
                (file, made, false)
            }
            Err(error) => return Err(refused(name, error)),
        };
        if pairs > 1 && !several {
            return Err(TapError::OneQueue(made));
        }
        let mut queues = vec![first];
        for _ in 1..pairs {
            let (file, _) = sys::open(&made, true).map_err(|e| refused(&made, e))?;
            queues.push(file);
        }
        Ok(Self {
            name: made,
            bridge: None,
            brought_up: false,
            several,
            mtu: 1500,
            queues: Mutex::new(queues),
        })
    }

    /// The name of its interface.
    pub fn name(&self) -> &InterfaceName {
        &self.name
    }
}

fn refused(name: &InterfaceName, source: io::Error) -> TapError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EACCES) => TapError::Device(source),
        Some(libc::EBUSY) => TapError::Busy(name.clone()),
        _ => TapError::Open {
            name: name.clone(),
            source,
        },
    }
}

impl Network for Tap {
    fn open(&self, pairs: u16) -> Result<Vec<Box<dyn Link>>, LinkError> {
        let wrong = |what| {
            let network = self.describe();
            move |source| LinkError::Host {
                network,
                what,
                source,
            }
        };
        let queues = self.queues.lock();
        let mut links: Vec<Box<dyn Link>> = Vec::new();
        for (index, queue) in queues.iter().take(pairs.into()).enumerate() {
            let file = queue
                .try_clone()
                .map_err(wrong("taking one of its queues"))?;
            // Only the first is served before the guest says otherwise.
            let active = index == 0;
            let mut link = TapLink::new(file, self.describe(), self.several && pairs > 1, active);
            if !active {
                link.detach().map_err(wrong("detaching a queue"))?;
            }
            links.push(Box::new(link));
        }
        Ok(links)
    }

    fn most_pairs(&self) -> u16 {
        self.queues.lock().len() as u16
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn describe(&self) -> String {
        match &self.bridge {
            Some(bridge) => format!("bridge {bridge} by tap {}", self.name),
            None => format!("tap {}", self.name),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.brought_up {
            // It may be gone, or go now.
            let _ = Interfaces::new().and_then(|i| i.set_up(&self.name, false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!("tap0".parse::<InterfaceName>().is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-letters-", "x%d", "ä"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }
}
