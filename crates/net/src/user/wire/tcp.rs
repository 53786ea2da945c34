//! TCP segments (RFC 9293).

use super::{be16, be32, put};

/// Bits of the flags field.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset the connection.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement field is valid.
    pub const ACK: u8 = 16;
}

/// Length of a header without options.
const HEADER: usize = 20;

/// A segment that was read.
pub struct Tcp<'a> {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Next byte that the sender expects.
    pub ack: u32,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Window, not scaled.
    pub window: u16,
    /// Maximum segment size, on a SYN.
    pub mss: Option<u16>,
    /// Window scale, on a SYN.
    pub scale: Option<u8>,
    /// Data.
    pub payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// Reads a segment.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header_len = usize::from(*bytes.get(12)? >> 4) * 4;
        let options = bytes.get(HEADER..header_len)?;
        let mut tcp = Self {
            source: be16(bytes, 0)?,
            destination: be16(bytes, 2)?,
            seq: be32(bytes, 4)?,
            ack: be32(bytes, 8)?,
            flags: *bytes.get(13)?,
            window: be16(bytes, 14)?,
            mss: None,
            scale: None,
            payload: bytes.get(header_len..)?,
        };
        if tcp.flags & flag::SYN != 0 {
            tcp.read_options(options);
        }
        Some(tcp)
    }

    fn read_options(&mut self, mut options: &[u8]) {
        while let Some(&kind) = options.first() {
            let length = match kind {
                0 => return,
                1 => 1,
                _ => match options.get(1) {
                    Some(&length) if length >= 2 => usize::from(length),
                    _ => return,
                },
            };
            match (kind, length) {
                (2, 4) => self.mss = be16(options, 2),
                (3, 3) => self.scale = options.get(2).map(|shift| (*shift).min(14)),
                _ => {}
            }
            options = options.get(length..).unwrap_or_default();
        }
    }

    /// Whether all of these flags are set.
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// A header to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpHeader {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Window, scaled as agreed.
    pub window: u16,
    /// Options of a SYN: maximum segment size, and window scale if wanted.
    pub syn: Option<(u16, Option<u8>)>,
}

impl TcpHeader {
    /// Its length.
    pub const fn length(&self) -> usize {
        match self.syn {
            None => HEADER,
            Some((_, None)) => HEADER + 4,
            Some((_, Some(_))) => HEADER + 8,
        }
    }

    /// Writes it; the checksum stays 0.
    pub fn write(&self, bytes: &mut [u8]) {
        let mut header = [0; HEADER + 8];
        header[0..2].copy_from_slice(&self.source.to_be_bytes());
        header[2..4].copy_from_slice(&self.destination.to_be_bytes());
        header[4..8].copy_from_slice(&self.seq.to_be_bytes());
        header[8..12].copy_from_slice(&self.ack.to_be_bytes());
        header[12] = match self.length() {
            24 => 0x60,
            28 => 0x70,
            _ => 0x50,
        };
        header[13] = self.flags;
        header[14..16].copy_from_slice(&self.window.to_be_bytes());
        if let Some((mss, scale)) = self.syn {
            header[20..22].copy_from_slice(&[2, 4]);
            header[22..24].copy_from_slice(&mss.to_be_bytes());
            if let Some(scale) = scale {
                header[24..28].copy_from_slice(&[1, 3, 3, scale]);
            }
        }
        put(bytes, 0, header.get(..self.length()).unwrap_or_default());
    }
}
