//! The EC2 query protocol (version 2016-11-15) and STS, in front of Holm.
//!
//! [`serve`] takes connections, [`Door`] answers requests: it verifies who
//! signed ([`signature`]), reads the form into a tree ([`parameters`]),
//! refuses what EC2 does not have ([`facts`]) or Holm does not understand, and
//! calls the action's handler ([`actions`]), which answers with XML ([`xml`]).
//! What an action does is decided elsewhere.
#![forbid(unsafe_code)]

pub mod access;
pub mod actions;
mod door;
pub mod error;
pub mod facts;
pub mod form;
mod limit;
pub mod parameters;
mod server;
pub mod signature;
pub mod xml;

pub use door::{Door, Options};
pub use server::{BODY_MAX, serve};
