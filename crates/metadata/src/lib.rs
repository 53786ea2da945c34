//! What a guest is told about itself.
//!
//! [`serve`] is EC2's instance metadata service (IMDS, versions 1 and 2) for one
//! instance on one Unix socket: whoever connects there is that instance, so the
//! socket is the identity. The monitor's network leads 169.254.169.254 and
//! fd00:ec2::254 to it. What to say comes from a [`Source`]; this crate knows no
//! store. [`nocloud`] makes the same known to images that look for a seed disk.
//! `docs/provisioning.md` tells users about both.
#![forbid(unsafe_code)]

mod facts;
mod identity;
pub mod nocloud;
mod path;
mod server;
mod service;
#[cfg(test)]
mod tests;
mod token;
mod tree;

pub use facts::{Facts, Interface, Lifecycle, Options, PublicAddress, PublicKey, Source, Tokens};
pub use identity::SmbiosIdentity;
pub use server::{MOST_CONNECTIONS, serve};
pub use token::{TOKEN_SECONDS, TokenKey};
