//! The host's own port in a network, which a process of its own serves: the
//! files by which a daemon and that process know each other. They lie in one
//! directory, and [`crate::launch::parse`] reads them.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::vpc::{Cidr, Protocol};

/// What the port is to be: [`HostPort`].
pub const HOST_PORT_FILE: &str = "port.json";
/// What is to be led elsewhere on the host: [`RedirectList`]; it may change,
/// and be missing.
pub const HOST_PORT_REDIRECTS: &str = "redirects.json";
/// What has become of it: [`HostPortStatus`].
pub const HOST_PORT_STATUS: &str = "status.json";

/// A port to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// [`crate::launch::LAUNCH_VERSION`].
    pub version: u32,
    /// The interface that the host gets, at most 15 letters.
    pub interface: String,
    /// Directory in which the network's members meet.
    pub network: PathBuf,
    /// The network's block, to which the host gets a route.
    pub vpc: Cidr,
}

/// What its process says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPortStatus {
    /// [`crate::launch::LAUNCH_VERSION`].
    pub version: u32,
    /// The host's address in the network; `None`: the host does not reach it.
    pub address: Option<Ipv4Addr>,
    /// Why the host does not reach it, for people.
    pub refused: Option<String>,
    /// Why ports are not led elsewhere, for people.
    pub not_redirected: Option<String>,
}

/// Ports of public addresses at which the machines could not listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedirectList {
    /// [`crate::launch::LAUNCH_VERSION`].
    pub version: u32,
    /// They.
    pub redirects: Vec<Redirect>,
}

/// A port that is led to another of the same address, for clients on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// A public address of a machine.
    pub address: Ipv4Addr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port that clients address.
    pub port: u16,
    /// The port that answers.
    pub to: u16,
}
