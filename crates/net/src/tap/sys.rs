//! The requests to the kernel of taps, interfaces and bridges.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::InterfaceName;
use crate::MacAddress;

// Linux: include/uapi/linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
/// TUN_F_CSUM.
pub const CSUM: u32 = 1;
/// TUN_F_TSO4.
pub const TSO4: u32 = 2;
/// TUN_F_TSO6.
pub const TSO6: u32 = 4;
/// TUN_F_USO4 and TUN_F_USO6: Linux knows only both.
pub const USO: u32 = 0x60;

/// `struct ifreq` (Linux: include/uapi/linux/if.h).
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: [u8; 24],
}

impl Request {
    fn new(name: &InterfaceName) -> Self {
        Self {
            name: name.bytes(),
            data: [0; 24],
        }
    }

    fn with(mut self, data: &[u8]) -> Self {
        for (to, from) in self.data.iter_mut().zip(data) {
            *to = *from;
        }
        self
    }
}

fn request(fd: RawFd, code: libc::c_ulong, request: &mut Request) -> io::Result<()> {
    // SAFETY: every code used with this function reads and writes at most the
    // 40 bytes of a `struct ifreq`, which `Request` has.
    let result = unsafe { libc::ioctl(fd, code as _, std::ptr::from_mut(request)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Opens one queue of a tap, which is made if it does not exist and the
/// caller may; its name.
pub fn open(name: &InterfaceName, several: bool) -> io::Result<(File, InterfaceName)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let queues = if several { IFF_MULTI_QUEUE } else { 0 };
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queues;
    let mut ifreq = Request::new(name).with(&flags.to_ne_bytes());
    request(file.as_raw_fd(), TUNSETIFF, &mut ifreq)?;
    let size = crate::vnet::VNET_HEADER as libc::c_int;
    // SAFETY: the kernel reads one int.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let made = CStr::from_bytes_until_nul(&ifreq.name)
        .ok()
        .and_then(|name| name.to_str().ok())
        .and_then(|name| name.parse().ok());
    let made = made.ok_or_else(|| io::Error::other("the kernel gave it an odd name"))?;
    Ok((file, made))
}

/// Says what the reader of the tap accepts.
pub fn set_offload(tap: &File, flags: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    let result = unsafe {
        libc::ioctl(
            tap.as_raw_fd(),
            TUNSETOFFLOAD as _,
            libc::c_ulong::from(flags),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the kernel leads frames to this queue.
pub fn set_queue(tap: &File, attached: bool) -> io::Result<()> {
    let flags = match attached {
        true => IFF_ATTACH_QUEUE,
        false => IFF_DETACH_QUEUE,
    };
    let nameless = Request {
        name: [0; 16],
        data: [0; 24],
    };
    let mut ifreq = nameless.with(&flags.to_ne_bytes());
    request(tap.as_raw_fd(), TUNSETQUEUE, &mut ifreq)
}

/// A way to ask for things of interfaces.
pub struct Interfaces(OwnedFd);

impl Interfaces {
    /// In this process's network namespace.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are involved; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn ask(&self, name: &InterfaceName, code: libc::c_ulong, data: &[u8]) -> io::Result<[u8; 24]> {
        let mut ifreq = Request::new(name).with(data);
        request(self.0.as_raw_fd(), code, &mut ifreq)?;
        Ok(ifreq.data)
    }

    /// Largest packet, in bytes.
    pub fn mtu(&self, name: &InterfaceName) -> io::Result<u32> {
        let [a, b, c, d, ..] = self.ask(name, libc::SIOCGIFMTU, &[])?;
        Ok(u32::from_ne_bytes([a, b, c, d]))
    }

    pub fn set_mtu(&self, name: &InterfaceName, mtu: u32) -> io::Result<()> {
        self.ask(name, libc::SIOCSIFMTU, &mtu.to_ne_bytes())?;
        Ok(())
    }

    fn flags(&self, name: &InterfaceName) -> io::Result<u16> {
        let [a, b, ..] = self.ask(name, libc::SIOCGIFFLAGS, &[])?;
        Ok(u16::from_ne_bytes([a, b]))
    }

    pub fn is_up(&self, name: &InterfaceName) -> io::Result<bool> {
        Ok(self.flags(name)? & libc::IFF_UP as u16 != 0)
    }

    pub fn set_up(&self, name: &InterfaceName, up: bool) -> io::Result<()> {
        let bit = libc::IFF_UP as u16;
        let flags = self.flags(name)? & !bit | if up { bit } else { 0 };
        self.ask(name, libc::SIOCSIFFLAGS, &flags.to_ne_bytes())?;
        Ok(())
    }

    pub fn address(&self, name: &InterfaceName) -> io::Result<MacAddress> {
        let [_, _, a, b, c, d, e, f, ..] = self.ask(name, libc::SIOCGIFHWADDR, &[])?;
        Ok(MacAddress([a, b, c, d, e, f]))
    }

    pub fn set_address(&self, name: &InterfaceName, mac: MacAddress) -> io::Result<()> {
        let mut data = [0; 8];
        data[..2].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        data[2..].copy_from_slice(&mac.0);
        self.ask(name, libc::SIOCSIFHWADDR, &data)?;
        Ok(())
    }

    /// The address of the host there, in a network whose prefix has so many
    /// bits.
    pub fn set_ipv4(&self, name: &InterfaceName, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // struct sockaddr_in: family, port, address.
        let data = |address: Ipv4Addr| {
            let mut data = [0; 16];
            data[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            data[4..8].copy_from_slice(&address.octets());
            data
        };
        let host_bits = 32u32.saturating_sub(prefix.into());
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0));
        self.ask(name, libc::SIOCSIFADDR, &data(address))?;
        self.ask(name, libc::SIOCSIFNETMASK, &data(mask))?;
        Ok(())
    }

    pub fn add_to_bridge(&self, bridge: &InterfaceName, port: &InterfaceName) -> io::Result<()> {
        const SIOCBRADDIF: libc::c_ulong = 0x89a2;
        let [a, b, c, d, ..] = self.ask(port, libc::SIOCGIFINDEX, &[])?;
        self.ask(bridge, SIOCBRADDIF, &[a, b, c, d])?;
        Ok(())
    }
}
