//! Host ports that lead to the guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, sockopt};
use serde::{Deserialize, Serialize};

use super::UserError;
use super::policy::Transport;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;

/// A port of the host that leads to a port of the guest. Written
/// `[ADDR:]HOST:GUEST[/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Publication {
    /// Where the host listens. 127.0.0.1 unless said otherwise; port 0: any
    /// that is free.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// UDP, not TCP.
    pub udp: bool,
}

impl Publication {
    /// Its transport.
    pub const fn transport(&self) -> Transport {
        if self.udp {
            Transport::Udp
        } else {
            Transport::Tcp
        }
    }

    /// Opens the host's socket.
    pub(super) fn open(&self) -> Result<(OwnedFd, SocketAddr), UserError> {
        self.socket().map_err(|errno| UserError::Publish {
            publication: *self,
            hint: hint(errno, self.host),
            source: errno.into(),
        })
    }

    fn socket(&self) -> Result<(OwnedFd, SocketAddr), Errno> {
        let family = match self.host {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let (kind, protocol) = if self.udp {
            (SocketType::DGRAM, ipproto::UDP)
        } else {
            (SocketType::STREAM, ipproto::TCP)
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, kind, flags, Some(protocol))?;
        if family == AddressFamily::INET6 {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if !self.udp {
            // For a machine that starts again at once.
            sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        bind(&socket, &self.host)?;
        if !self.udp {
            listen(&socket, BACKLOG)?;
        }
        let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        Ok((socket, bound))
    }
}

fn hint(errno: Errno, host: SocketAddr) -> &'static str {
    match errno {
        Errno::ADDRINUSE => "another program listens there: choose another host port",
        Errno::ACCESS | Errno::PERM if host.port() < 1024 => {
            "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE: choose one above"
        }
        Errno::ADDRNOTAVAIL => "the host has no such address",
        Errno::AFNOSUPPORT => "the host has no IPv6",
        _ => "the host refuses it",
    }
}

impl fmt::Display for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.udp { "/udp" } else { "" };
        write!(f, "{}:{}{kind}", self.host, self.guest)
    }
}

impl FromStr for Publication {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let wrong = || UserError::Publication(text.to_owned());
        let (ports, udp) = match text.rsplit_once('/') {
            None => (text, false),
            Some((ports, "tcp")) => (ports, false),
            Some((ports, "udp")) => (ports, true),
            Some(_) => return Err(wrong()),
        };
        let (host, guest) = ports.rsplit_once(':').ok_or_else(wrong)?;
        let (address, port) = match host.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
            Some((address, port)) => {
                let inner = address
                    .strip_prefix('[')
                    .and_then(|rest| rest.strip_suffix(']'));
                let address = match inner {
                    Some(v6) => IpAddr::V6(v6.parse().map_err(|_| wrong())?),
                    None => IpAddr::V4(address.parse().map_err(|_| wrong())?),
                };
                (address, port)
            }
        };
        let guest: u16 = guest.parse().map_err(|_| wrong())?;
        if guest == 0 {
            return Err(wrong());
        }
        Ok(Self {
            host: SocketAddr::new(address, port.parse().map_err(|_| wrong())?),
            guest,
            udp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publications_are_read_and_written() {
        for (text, full) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("0.0.0.0:5353:53/udp", "0.0.0.0:5353:53/udp"),
            ("[::1]:2222:22", "[::1]:2222:22"),
            ("1:2/tcp", "127.0.0.1:1:2"),
        ] {
            assert_eq!(text.parse::<Publication>().unwrap().to_string(), full);
        }
        for text in [
            "", "80", "a:1", "1:0", "1:70000", "::1:1:2", "1:2/sctp", "x:1:2",
        ] {
            let error = text.parse::<Publication>().unwrap_err().to_string();
            assert!(error.contains("[ADDR:]HOST:GUEST[/udp]"), "{error}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let first: Publication = "0:22".parse().unwrap();
        let (_held, bound) = first.open().unwrap();
        let second: Publication = format!("{}:22", bound.port()).parse().unwrap();
        let error = second.open().unwrap_err().to_string();
        assert!(error.contains("another program listens there"), "{error}");
        assert!(error.contains(&bound.to_string()), "{error}");
    }
}
