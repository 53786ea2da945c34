//! Errors of datagrams on their way, as the host's kernel queues them
//! (IP_RECVERR of ip(7), IPV6_RECVERR of ipv6(7)).

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::{SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, sock_extended_err, sockaddr_in6};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, setsockopt,
    sockopt,
};
use rustix::io::Errno;

use super::icmp::Unreachable;

/// Asks for errors of this socket. Without them the guest only waits longer.
pub fn ask(socket: &OwnedFd, v4: bool) {
    let _ = if v4 {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)
    };
}

/// What became of a datagram.
pub struct Error {
    /// Where it was to go.
    pub to: SocketAddr,
    /// Why it did not arrive.
    pub why: Unreachable,
    /// Who says that it went too far, or that nobody listens there.
    pub by: Option<IpAddr>,
    /// Bytes of it that are known.
    pub length: usize,
}

/// Types of ICMP and of ICMPv6: time exceeded.
const EXPIRED4: u8 = 11;
const EXPIRED6: u8 = 3;

/// The next error; the beginning of what was sent goes to `data`.
pub fn next(socket: &OwnedFd, data: &mut [u8]) -> Option<Error> {
    let mut parts = [IoSliceMut::new(data)];
    let mut control = nix::cmsg_space!(sock_extended_err, sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)
            .ok()?;
    let to = message.address.and_then(|address| {
        let v4 = address
            .as_sockaddr_in()
            .map(|a| SocketAddr::V4(SocketAddrV4::from(*a)));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|a| SocketAddr::V6(SocketAddrV6::from(*a)))
        })
    })?;
    let length = message.bytes;
    let (error, by) = message.cmsgs().ok()?.find_map(|one| match one {
        ControlMessageOwned::Ipv4RecvErr(error, by) => {
            let by = by.map(|by| SocketAddr::V4(SockaddrIn::from(by).into()).ip());
            Some((error, by))
        }
        ControlMessageOwned::Ipv6RecvErr(error, by) => {
            let by = by.map(|by| SocketAddr::V6(SockaddrIn6::from(by).into()).ip());
            Some((error, by))
        }
        _ => None,
    })?;
    let expired = match error.ee_origin {
        SO_EE_ORIGIN_ICMP => error.ee_type == EXPIRED4,
        SO_EE_ORIGIN_ICMP6 => error.ee_type == EXPIRED6,
        _ => false,
    };
    let errno = Errno::from_raw_os_error(i32::try_from(error.ee_errno).ok()?);
    let why = match expired {
        true => Unreachable::Hops,
        false => meaning(errno)?,
    };
    Some(Error {
        to,
        why,
        by: by.filter(|_| matches!(why, Unreachable::Hops | Unreachable::Port)),
        length,
    })
}

/// What an error of sending a datagram means to its sender.
pub const fn meaning(errno: Errno) -> Option<Unreachable> {
    match errno {
        Errno::CONNREFUSED => Some(Unreachable::Port),
        Errno::NETUNREACH | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL => Some(Unreachable::Network),
        Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Unreachable::Host),
        Errno::ACCESS | Errno::PERM => Some(Unreachable::Prohibited),
        _ => None,
    }
}
