//! `struct virtio_net_hdr` (virtio 1.2, 5.1.6), as rings, taps and switches
//! have it before each frame.

use crate::{Checksum, Offload, Segmentation};

/// Bytes of the header with its number of buffers.
pub const VNET_HEADER: usize = 12;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// A header that asks for what does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// `gso_type` has another value.
    #[error("unknown segmentation {0:#x}")]
    Segmentation(u8),
    /// `gso_size` is 0.
    #[error("segments of no size")]
    NoSize,
    /// Segments need checksums of their own.
    #[error("segmentation without a checksum")]
    NoChecksum,
}

/// The header of a frame; the number of buffers is 1.
pub fn encode(offload: &Offload) -> [u8; VNET_HEADER] {
    let (gso, size) = match offload.segmentation {
        Segmentation::None => (GSO_NONE, 0),
        Segmentation::Tcp4 { size } => (GSO_TCPV4, size),
        Segmentation::Tcp6 { size } => (GSO_TCPV6, size),
        Segmentation::Udp { size } => (GSO_UDP_L4, size),
    };
    let (flags, start, offset) = match offload.checksum {
        Checksum::Complete => (0, 0, 0),
        Checksum::Verified => (DATA_VALID, 0, 0),
        Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
    };
    let mut header = [0; VNET_HEADER];
    header[0] = flags;
    header[1] = gso;
    header[2..4].copy_from_slice(&offload.header_len.to_le_bytes());
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    header[10] = 1;
    header
}

/// What a header says; nothing in it is to be trusted, and its places may be
/// outside the frame.
///
/// # Errors
/// [`HeaderError`].
pub fn decode(header: &[u8; VNET_HEADER]) -> Result<Offload, HeaderError> {
    let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1, ..] = *header;
    let size = u16::from_le_bytes([s0, s1]);
    let segmentation = match gso {
        GSO_NONE => Segmentation::None,
        GSO_TCPV4 => Segmentation::Tcp4 { size },
        GSO_TCPV6 => Segmentation::Tcp6 { size },
        GSO_UDP_L4 => Segmentation::Udp { size },
        other => return Err(HeaderError::Segmentation(other)),
    };
    let checksum = if flags & NEEDS_CSUM != 0 {
        Checksum::Partial {
            start: u16::from_le_bytes([c0, c1]),
            offset: u16::from_le_bytes([o0, o1]),
        }
    } else if flags & DATA_VALID != 0 {
        Checksum::Verified
    } else {
        Checksum::Complete
    };
    if segmentation != Segmentation::None {
        if size == 0 {
            return Err(HeaderError::NoSize);
        }
        if !matches!(checksum, Checksum::Partial { .. }) {
            return Err(HeaderError::NoChecksum);
        }
    }
    Ok(Offload {
        checksum,
        segmentation,
        header_len: u16::from_le_bytes([h0, h1]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_and_nonsense_is_refused() {
        let partial = Checksum::Partial {
            start: 34,
            offset: 16,
        };
        for offload in [
            Offload::default(),
            Offload {
                checksum: Checksum::Verified,
                ..Offload::default()
            },
            Offload {
                checksum: partial,
                segmentation: Segmentation::Tcp4 { size: 1448 },
                header_len: 66,
            },
            Offload {
                checksum: partial,
                segmentation: Segmentation::Tcp6 { size: 1428 },
                header_len: 0,
            },
            Offload {
                checksum: partial,
                segmentation: Segmentation::Udp { size: 1200 },
                header_len: 42,
            },
        ] {
            assert_eq!(decode(&encode(&offload)), Ok(offload));
        }
        let mut header = [0; VNET_HEADER];
        header[1] = 3;
        assert_eq!(decode(&header), Err(HeaderError::Segmentation(3)));
        header[1] = 1;
        assert_eq!(decode(&header), Err(HeaderError::NoSize));
        header[4] = 9;
        assert_eq!(decode(&header), Err(HeaderError::NoChecksum));
    }
}
