//! Where the frames of a network card go.
//!
//! A [`Network`] is what a card is plugged into; a [`Link`] is one queue
//! pair's way to it. Frames cross a link as plain bytes, with the work that
//! was left to the other side ([`Offload`]), so that a 64 KiB TCP segment
//! crosses as one frame.
#![forbid(unsafe_code)]

mod link;
mod offload;
pub mod user;

pub use link::{Frame, Link, LinkError, Network, Sent};
pub use offload::{Abilities, Checksum, Offload, Segmentation};
