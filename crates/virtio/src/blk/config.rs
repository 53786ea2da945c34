//! Features and configuration of a block device (virtio 1.2, 5.2.3, 5.2.4).

use disk::{BlockInfo, SECTOR};

use super::QUEUE_SIZE;

/// Feature bits.
pub(super) mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Offset of the `writeback` field.
pub(super) const WRITEBACK: u64 = 32;
const LENGTH: usize = 60;

/// Most bytes in one buffer of a request.
const SIZE_MAX: u32 = 4 << 20;
/// Most buffers of a request; header and status take two descriptors.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most sectors in one discard or write-zeroes (2 GiB).
const RANGE_MAX: u32 = 4 << 20;

pub(super) fn features(info: &BlockInfo, queues: u16) -> u64 {
    let mut features = feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::FLUSH
        | feature::TOPOLOGY
        | feature::CONFIG_WCE;
    if queues > 1 {
        features |= feature::MQ;
    }
    if info.read_only {
        features |= feature::RO;
    } else {
        features |= feature::WRITE_ZEROES;
        if info.discard {
            features |= feature::DISCARD;
        }
    }
    features
}

/// `struct virtio_blk_config` as far as the offered features fill it.
pub(super) fn image(info: &BlockInfo, sectors: u64, queues: u16, writeback: bool) -> [u8; LENGTH] {
    let mut image = [0; LENGTH];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in image.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    let block = info.logical_block.max(1);
    let exponent = (info.physical_block / block).max(1).ilog2() as u8;
    let minimum = u16::try_from(info.physical_block / block).unwrap_or(1);
    put(0, &sectors.to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &block.to_le_bytes());
    put(24, &[exponent, 0]);
    put(26, &minimum.to_le_bytes());
    put(28, &(info.optimal_io / block).to_le_bytes());
    put(WRITEBACK as usize, &[u8::from(writeback)]);
    put(34, &queues.to_le_bytes());
    if !info.read_only {
        let alignment = info.discard_granularity / SECTOR as u32;
        put(36, &RANGE_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &alignment.max(1).to_le_bytes());
        put(48, &RANGE_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
    }
    image
}
