//! Packets (virtio 1.2, 5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's context id.
pub const HOST: u64 = 2;
/// Streams are the only type offered.
pub const STREAM: u16 = 1;

/// `op` of a header.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The sender of a shutdown will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a shutdown will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// `virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub source: u64,
    pub destination: u64,
    pub source_port: u32,
    pub destination_port: u32,
    pub length: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buffer: u32,
    pub forwarded: u32,
}

impl Header {
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut rest = &bytes[..];
        let mut take = |count: usize| {
            let (value, after) = rest.split_at(count);
            rest = after;
            let bytes = value.iter().rev();
            bytes.fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        Self {
            source: take(8),
            destination: take(8),
            source_port: take(4) as u32,
            destination_port: take(4) as u32,
            length: take(4) as u32,
            kind: take(2) as u16,
            op: take(2) as u16,
            flags: take(4) as u32,
            buffer: take(4) as u32,
            forwarded: take(4) as u32,
        }
    }

    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let parts: [&[u8]; 10] = [
            &self.source.to_le_bytes(),
            &self.destination.to_le_bytes(),
            &self.source_port.to_le_bytes(),
            &self.destination_port.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buffer.to_le_bytes(),
            &self.forwarded.to_le_bytes(),
        ];
        let all = parts.into_iter().flatten();
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = *from;
        }
        bytes
    }
}
