//! What a user network has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters, written by the card's thread and read by any.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        /// The values of the counters of a user network at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct UserMetrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// All values.
            pub fn read(&self) -> UserMetrics {
                UserMetrics { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// TCP connections begun by the guest.
    tcp_out,
    /// TCP connections to the guest, through publications.
    tcp_in,
    /// TCP connections there are now.
    tcp_now,
    /// TCP connections that the host's network refused or could not reach.
    tcp_failed,
    /// Segments sent to the guest again.
    tcp_again,
    /// Bytes of TCP from the guest.
    tcp_bytes_out,
    /// Bytes of TCP to the guest.
    tcp_bytes_in,
    /// UDP datagrams from the guest.
    udp_out,
    /// UDP datagrams to the guest.
    udp_in,
    /// UDP flows there are now.
    udp_now,
    /// Queries to the name server.
    dns_queries,
    /// Flows refused because a limit of this network, or of the host
    /// (descriptors), was reached.
    limited,
    /// Frames dropped: malformed.
    dropped_malformed,
    /// Frames dropped: from an address that is not the guest's.
    dropped_spoofed,
    /// Frames dropped: to a group, or to all.
    dropped_group,
    /// Frames dropped: of a protocol that is not carried.
    dropped_protocol,
    /// Flows refused or dropped by the rules of this network.
    denied,
    /// Packets dropped: fragments that were never completed, or too many.
    dropped_fragments,
    /// Datagrams dropped because a queue was full.
    dropped_full,
}

/// One of them.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// More.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Sets what is not a count but a level.
    pub fn set(&self, level: usize) {
        self.0.store(level as u64, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
