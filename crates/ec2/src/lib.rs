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
mod call;
mod describe;
mod door;
pub mod error;
pub mod facts;
mod filters;
pub mod form;
mod ids;
mod limit;
mod metrics;
mod pages;
pub mod parameters;
mod permissions;
mod refusal;
mod server;
pub mod signature;
mod tagging;
pub mod xml;

pub use call::Call;
pub use door::{Console, Consoles, Door, Request};
pub use server::{BODY_MAX, serve};
