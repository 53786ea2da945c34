//! How far a guest has come since it was started, and what went wrong there.
//!
//! [`observe`] asks the guest's agent once: it reports the stages of systemd and
//! cloud-init with their times, and a user-data script that failed with its
//! output. As long as no agent answers, and in guests that have none, it reads
//! the serial console. Nothing is remembered between two calls: each
//! [`BootProgress`] is the whole picture of the guest's present boot.
//! `docs/provisioning.md` tells users what they see of it.
#![forbid(unsafe_code)]

mod agent_report;
mod cloud_init;
mod console;
mod file_systems;
mod progress;

use std::path::Path;
use std::time::SystemTime;

pub use file_systems::{FileSystem, file_systems};
pub use progress::{BootProgress, Failure, Seen, Stage, StageReport};

/// Where a machine can be observed.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Its agent socket.
    pub agent: &'a Path,
    /// The log of its serial console; one that is not there says nothing.
    pub serial: &'a Path,
    /// When its guest was last started or reset.
    pub started: SystemTime,
}

/// How far the guest has come. Takes a fraction of a second, and at most
/// [`PATIENCE`] if the guest's agent hangs; call it about once a second until
/// [`BootProgress::is_over`], on a thread that may wait.
pub fn observe(places: Places) -> BootProgress {
    match agent_report::ask(places.agent) {
        Some(answer) => answer,
        None => console::read(places.serial, places.started),
    }
}

pub use agent_report::PATIENCE;
