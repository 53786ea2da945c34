//! QEMU's guest agent, as Debian's `qemu-guest-agent` speaks it: JSON lines
//! through the channel `org.qemu.guest_agent.0`.
//!
//! [`Link`] is the machine's side: it sends one request at a time into the
//! guest, finds the start of answers again after whatever went wrong
//! (`guest-sync-delimited`), and passes answers on without looking into them.
//! [`attend`] offers a link to a local client on a Unix socket, one JSON line for
//! each request and each answer. [`Client`] is such a client, with the agent's
//! commands as functions. What a guest answers is bounded in time and size.
#![forbid(unsafe_code)]

mod client;
mod commands;
mod link;
mod serve;

pub use client::{AgentError, Client, Fault};
pub use commands::{Balloon, ExecStatus, FileSystem, GuestFile, Process};
pub use link::{Link, LinkError, RawChannel};
pub use serve::{Local, REQUEST_MAX, attend, refusal};

/// Name of the channel in the guest.
pub const CHANNEL: &str = "org.qemu.guest_agent.0";
