//! Frames with TCP segments.

use std::net::SocketAddr;

use super::buffer::HEADROOM;
use crate::user::context::Context;
use crate::user::wire::{self, ETHERNET, Ethernet, IpHeader, Mac, TcpHeader, protocol};
use crate::{Abilities, Offload, Segmentation};

/// From where to where a segment goes.
#[derive(Clone, Copy)]
pub struct Envelope {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub from_card: Mac,
    pub to_card: Mac,
    /// Most hops that it goes.
    pub hops: u8,
}

impl Envelope {
    /// Most data in one frame for a guest with these abilities.
    pub fn most(&self, guest: Abilities, mss: u16) -> usize {
        let mss = usize::from(mss.max(1));
        if whole(guest, self.from) {
            super::buffer::MOST / mss * mss
        } else {
            mss
        }
    }

    /// Writes the headers in front of the data, which begins at [`HEADROOM`]
    /// and has `length` bytes; returns where the frame begins.
    pub fn seal(
        &self,
        buffer: &mut [u8],
        length: usize,
        header: &TcpHeader,
        mss: u16,
        guest: Abilities,
    ) -> Option<(usize, Offload)> {
        let mut ip = IpHeader::new(self.from.ip(), self.to.ip(), protocol::TCP)?;
        ip.hops = self.hops;
        let l4 = ETHERNET + ip.length();
        let start = HEADROOM.checked_sub(l4 + header.length())?;
        let frame = buffer.get_mut(start..HEADROOM + length)?;
        Ethernet::write(frame, self.to_card, self.from_card, ip.kind());
        ip.write(frame.get_mut(ETHERNET..)?, header.length() + length)?;
        header.write(frame.get_mut(l4..)?);
        let cut = length > usize::from(mss);
        let checksum = wire::seal(frame, l4, 16, &ip, guest.partial_checksum);
        let offload = Offload {
            checksum,
            segmentation: match (cut, self.from) {
                (false, _) => Segmentation::None,
                (true, SocketAddr::V4(_)) => Segmentation::Tcp4 { size: mss },
                (true, SocketAddr::V6(_)) => Segmentation::Tcp6 { size: mss },
            },
            header_len: if cut {
                u16::try_from(l4 + header.length()).unwrap_or(0)
            } else {
                0
            },
        };
        Some((start, offload))
    }
}

/// Whether the guest takes segments that are larger than its MSS.
fn whole(guest: Abilities, address: SocketAddr) -> bool {
    let cuts = match address {
        SocketAddr::V4(_) => guest.tcp4,
        SocketAddr::V6(_) => guest.tcp6,
    };
    cuts && guest.partial_checksum
}

/// Sends a segment without data that belongs to no connection.
pub fn send_bare(context: &mut Context, from: SocketAddr, to: SocketAddr, header: &TcpHeader) {
    let Some(to_card) = context.card_of(to.ip()) else {
        return;
    };
    let envelope = Envelope {
        from,
        to,
        from_card: context.mac(),
        to_card,
        hops: context.config.policy.hops(from.ip()),
    };
    let mut buffer = vec![0; HEADROOM];
    let sealed = envelope.seal(&mut buffer, 0, header, u16::MAX, context.guest);
    if let Some((start, offload)) = sealed {
        let frame = buffer.get(start..).unwrap_or_default().to_vec();
        context.push(offload, frame);
    }
}
