//! One queue of a tap as a card's link.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::sys;
use crate::vnet::{self, VNET_HEADER};
use crate::{Abilities, Frame, Link, LinkError, MAX_FRAME, Offload, Sent};

/// A queue.
pub(super) struct TapLink {
    file: File,
    network: String,
    /// The tap has more queues, of which some may not be served.
    several: bool,
    active: bool,
    buffer: Box<[u8]>,
    /// Bytes in the buffer; 0: none.
    length: usize,
    offload: Offload,
}

impl TapLink {
    pub(super) fn new(file: File, network: String, several: bool, active: bool) -> Self {
        Self {
            file,
            network,
            several,
            active,
            buffer: vec![0; VNET_HEADER + MAX_FRAME + 8].into_boxed_slice(),
            length: 0,
            offload: Offload::default(),
        }
    }

    /// Takes the queue out of service.
    pub(super) fn detach(&mut self) -> io::Result<()> {
        match sys::set_queue(&self.file, false) {
            // It was detached already, by an earlier link to it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    fn wrong(&self, what: &'static str, source: io::Error) -> LinkError {
        LinkError::Host {
            network: self.network.clone(),
            what,
            source,
        }
    }

    /// Reads one frame into the buffer; whether there was one.
    fn fill(&mut self) -> Result<bool, LinkError> {
        loop {
            let length = match self.file.read(&mut self.buffer) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The interface is down; it may come back.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(false),
                Err(e) => return Err(self.wrong("reading a frame", e)),
            };
            let header = self.buffer.first_chunk::<VNET_HEADER>();
            let offload = header.and_then(|header| vnet::decode(header).ok());
            // What the kernel should not have sent is left out.
            if let Some(offload) = offload.filter(|_| length > VNET_HEADER) {
                self.offload = offload;
                self.length = length;
                return Ok(true);
            }
        }
    }
}

impl Link for TapLink {
    fn abilities(&self) -> Abilities {
        // Linux does for the receiver whatever the sender left.
        Abilities {
            partial_checksum: true,
            tcp4: true,
            tcp6: true,
            // Since Linux 6.2 only.
            udp: false,
        }
    }

    fn set_guest_abilities(&mut self, guest: Abilities) {
        let bit = |on: bool, flag: u32| if on { flag } else { 0 };
        let mut flags = bit(guest.partial_checksum, sys::CSUM);
        if guest.partial_checksum {
            flags |= bit(guest.tcp4, sys::TSO4) | bit(guest.tcp6, sys::TSO6);
        }
        let udp = bit(guest.partial_checksum && guest.udp, sys::USO);
        let set = sys::set_offload(&self.file, flags | udp)
            .or_else(|_| sys::set_offload(&self.file, flags));
        if let Err(error) = set {
            // Frames that are already waiting may be as before, anyway.
            tracing::warn!(network = self.network, %error, "offloads cannot be set");
        }
    }

    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        if self.several && active != self.active {
            sys::set_queue(&self.file, active)
                .map_err(|e| self.wrong("attaching or detaching a queue", e))?;
            self.active = active;
        }
        Ok(())
    }

    fn transmit(&mut self, offload: &Offload, frame: &[u8]) -> Result<Sent, LinkError> {
        let header = vnet::encode(offload);
        let parts = [IoSlice::new(&header), IoSlice::new(frame)];
        loop {
            return match self.file.write_vectored(&parts) {
                Ok(_) => Ok(Sent::Yes),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The kernel's buffers are full: as on a congested wire.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Dropped),
                Err(e) => match e.raw_os_error() {
                    // Malformed, no memory, or the interface is down.
                    Some(
                        libc::EINVAL
                        | libc::EIO
                        | libc::ENOMEM
                        | libc::ENOBUFS
                        | libc::EFAULT
                        | libc::EMSGSIZE
                        | libc::ENETDOWN,
                    ) => Ok(Sent::Dropped),
                    _ => Err(self.wrong("writing a frame", e)),
                },
            };
        }
    }

    fn incoming(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        if self.length == 0 && !self.fill()? {
            return Ok(None);
        }
        let bytes = self.buffer.get(VNET_HEADER..self.length);
        Ok(bytes.map(|bytes| Frame {
            offload: self.offload,
            bytes,
        }))
    }

    fn consume(&mut self) {
        self.length = 0;
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn turn(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
}
