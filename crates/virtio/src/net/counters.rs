//! What a card has done.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// One direction of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionStats {
    /// Frames that crossed; a large segment is one.
    pub packets: u64,
    /// Their bytes, without what virtio puts before them.
    pub bytes: u64,
    /// Frames that were malformed or did not fit.
    pub errors: u64,
    /// Sound frames that were thrown away: no carrier, or no room beyond.
    pub drops: u64,
}

/// Counters of a card since its machine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStats {
    /// To the guest.
    pub received: DirectionStats,
    /// From the guest.
    pub sent: DirectionStats,
    /// Frames that came but were not for this guest.
    pub filtered: u64,
}

#[derive(Debug, Default)]
pub(super) struct Direction {
    packets: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    drops: AtomicU64,
}

impl Direction {
    pub(super) fn crossed(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.drops.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> DirectionStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DirectionStats {
            packets: get(&self.packets),
            bytes: get(&self.bytes),
            errors: get(&self.errors),
            drops: get(&self.drops),
        }
    }

    fn set(&self, stats: &DirectionStats) {
        let put = |counter: &AtomicU64, value| counter.store(value, Ordering::Relaxed);
        put(&self.packets, stats.packets);
        put(&self.bytes, stats.bytes);
        put(&self.errors, stats.errors);
        put(&self.drops, stats.drops);
    }
}

/// The counters, shared by the card's threads.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub received: Direction,
    pub sent: Direction,
    filtered: AtomicU64,
}

impl Counters {
    pub(super) fn filtered(&self) {
        self.filtered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> NetStats {
        NetStats {
            received: self.received.read(),
            sent: self.sent.read(),
            filtered: self.filtered.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set(&self, stats: &NetStats) {
        self.received.set(&stats.received);
        self.sent.set(&stats.sent);
        self.filtered.store(stats.filtered, Ordering::Relaxed);
    }
}
