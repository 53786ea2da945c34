//! What happens to a machine, as it tells who asks ([`crate::Request::Events`]).

use serde::{Deserialize, Serialize};

/// Something that happened, by its number and time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Numbers of a machine's events begin with 1 and have no gaps.
    pub number: u64,
    /// Milliseconds since 1970 on the host's clock.
    pub at_milliseconds: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// Its vCPUs were started.
    Started,
    /// It was paused.
    Paused,
    /// It goes on after a pause.
    Resumed,
    /// It was reset and starts again.
    Rebooted,
    /// Its guest's kernel panicked and stands, or is about to reset.
    GuestPanicked,
    /// Its guest's kernel panicked and its crash kernel runs.
    GuestCrashLoaded,
    /// Its guest did not ping the watchdog in time.
    WatchdogExpired,
    /// The host failed a request of its disk; `paused` if the machine waits
    /// for the host to be repaired.
    DiskError {
        /// The disk's file.
        disk: String,
        /// What the host says.
        message: String,
        /// The machine was paused for it.
        paused: bool,
    },
    /// A device was attached while it ran.
    DeviceAttached {
        /// Its name.
        device: String,
    },
    /// A device was detached while it ran.
    DeviceDetached {
        /// Its name.
        device: String,
    },
    /// Its guest was asked to do with this much memory.
    BalloonTarget {
        /// In bytes.
        memory: u64,
    },
    /// The port of a network card was configured.
    NicConfigured {
        /// Which card, from 0.
        nic: u32,
    },
    /// A port that rules open for the host's clients cannot answer at the
    /// machine's public address.
    PortNotPublished {
        /// Which card, from 0.
        nic: u32,
        /// Address, port and protocol, such as `127.86.0.5:22/tcp`.
        port: String,
        /// Why, and what can be done.
        message: String,
    },
    /// A restored guest was told what it could not know: the time, and a clone
    /// its addresses and new random numbers.
    GuestUpdated {
        /// What was done.
        message: String,
    },
    /// A restored guest was not told, or not all.
    GuestNotUpdated {
        /// Why, and what was done.
        message: String,
    },
    /// A snapshot was taken.
    SnapshotTaken {
        /// Its directory.
        directory: String,
    },
    /// Somebody has the console's keyboard now.
    KeyboardTaken,
    /// It ended; no event follows.
    Ended {
        /// How, in words.
        outcome: String,
    },
}

impl EventKind {
    /// One line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Started => "started".into(),
            Self::Paused => "paused".into(),
            Self::Resumed => "resumed".into(),
            Self::Rebooted => "rebooted".into(),
            Self::GuestPanicked => "the guest's kernel has panicked".into(),
            Self::GuestCrashLoaded => {
                "the guest's kernel has panicked; its crash kernel runs".into()
            }
            Self::WatchdogExpired => "the guest has not pinged its watchdog in time".into(),
            Self::DiskError {
                disk,
                message,
                paused,
            } => {
                let paused = if *paused { "; the machine waits" } else { "" };
                format!("disk {disk}: {message}{paused}")
            }
            Self::DeviceAttached { device } => format!("{device} attached"),
            Self::DeviceDetached { device } => format!("{device} detached"),
            Self::BalloonTarget { memory } => {
                format!("the guest is to do with {} MiB", memory >> 20)
            }
            Self::NicConfigured { nic } => format!("network card {nic} was configured"),
            Self::PortNotPublished { port, message, .. } => {
                format!("{port} does not answer: {message}")
            }
            Self::GuestUpdated { message } => format!("the restored guest was told: {message}"),
            Self::GuestNotUpdated { message } => {
                format!("the restored guest was not told all: {message}")
            }
            Self::SnapshotTaken { directory } => format!("snapshot taken to {directory}"),
            Self::KeyboardTaken => "the console's keyboard was taken".into(),
            Self::Ended { outcome } => format!("ended: {outcome}"),
        }
    }
}

/// The answer to [`crate::Request::Events`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// How many were asked for but are forgotten.
    pub missed: u64,
    /// In order.
    pub events: Vec<Event>,
}
