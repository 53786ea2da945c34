//! What a port has passed and what it has dropped, in numbers.

use serde::Serialize;

use crate::user::counters::Counter;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters, written by the card's thread and read by any.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        /// The values of a port's counters at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct PortMetrics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// All values.
            pub fn read(&self) -> PortMetrics {
                PortMetrics { $($name: self.$name.get(),)* }
            }
        }

        impl PortMetrics {
            /// Names and values.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Packets to other members of the VPC.
    vpc_sent_packets,
    /// Bytes of their frames.
    vpc_sent_bytes,
    /// Packets of other members of the VPC, let in.
    vpc_received_packets,
    /// Bytes of their frames.
    vpc_received_bytes,
    /// Packets and flows that no egress rule lets out.
    dropped_egress,
    /// Packets and flows that no ingress rule lets in.
    dropped_ingress,
    /// Frames of the guest from a card or address that is not its own.
    dropped_spoofed,
    /// Frames of other members that are no honest member's.
    dropped_foreign,
    /// Packets of the guest to a group or to all, which a VPC does not carry.
    dropped_group,
    /// Packets of the guest to where no route leads.
    dropped_no_route,
    /// Packets of the guest whose hops ended, between subnets.
    dropped_hops,
    /// Frames dropped: malformed, or of a protocol that is not carried.
    dropped_malformed,
    /// Flows not tracked, and so dropped, since the table was full.
    dropped_untracked,
    /// Flows that are tracked now.
    tracked_now,
    /// Names answered from the VPC's own.
    dns_own,
}
