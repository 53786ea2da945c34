//! Where the frames of a network card go.
//!
//! A [`Network`] is what a card is plugged into; a [`Link`] is one queue
//! pair's way to it. Frames cross a link as plain bytes, with the work that
//! was left to the other side ([`Offload`]), so that a 64 KiB TCP segment
//! crosses as one frame.
#![deny(unsafe_code)]

pub mod capture;
pub mod host_port;
mod link;
mod mac;
mod offload;
mod rate;
pub mod segment;
pub mod switch;
pub mod tap;
pub mod user;
pub mod vnet;
pub mod vpc;

pub use link::{Frame, Link, LinkError, MAX_FRAME, Network, Sent};
pub use mac::{MacAddress, MacError};
pub use offload::{Abilities, Checksum, Offload, Segmentation};
pub use rate::{Rate, TokenBucket};
