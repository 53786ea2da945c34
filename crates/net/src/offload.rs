//! Work on a frame that its sender left to the receiver (virtio 1.2, 5.1.6).

/// State of a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// As on the wire: complete, to be verified by who cares.
    #[default]
    Complete,
    /// Only the pseudo header is summed: the sum over the bytes from `start`
    /// belongs at `start + offset` (VIRTIO_NET_HDR_F_NEEDS_CSUM).
    Partial {
        /// Where the sum begins, in bytes from the frame's first.
        start: u16,
        /// Where the sum goes, in bytes from `start`.
        offset: u16,
    },
    /// Already verified (VIRTIO_NET_HDR_F_DATA_VALID).
    Verified,
}

/// Whether a frame stands for several on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segmentation {
    /// One frame.
    #[default]
    None,
    /// TCP over IPv4, to be cut into segments of `size` bytes of payload.
    Tcp4 {
        /// Payload of each segment, in bytes; not 0.
        size: u16,
    },
    /// TCP over IPv6, likewise.
    Tcp6 {
        /// Payload of each segment, in bytes; not 0.
        size: u16,
    },
    /// UDP over IPv4 or IPv6, to be cut into datagrams (VIRTIO_NET_HDR_GSO_UDP_L4).
    Udp {
        /// Payload of each datagram, in bytes; not 0.
        size: u16,
    },
}

/// The work left on one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its checksum.
    pub checksum: Checksum,
    /// Its segmentation.
    pub segmentation: Segmentation,
    /// Length of all headers, in bytes, for [`Segmentation`]; a hint, 0: unknown.
    pub header_len: u16,
}

/// Which work a receiver of frames accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// [`Checksum::Partial`].
    pub partial_checksum: bool,
    /// [`Segmentation::Tcp4`].
    pub tcp4: bool,
    /// [`Segmentation::Tcp6`].
    pub tcp6: bool,
    /// [`Segmentation::Udp`].
    pub udp: bool,
}
