//! `holm run`: the devices that tie the guest to its host.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use machine::{Peripherals, Share, VsockSocket, WatchdogAction};

/// Their options.
#[derive(Args, Debug)]
pub struct Options {
    /// Serves the guest's agent there, for `holm exec`, `holm cp`, `holm fsfreeze` and
    /// `holm fsthaw` (--agent-socket /tmp/web1.agent); the guest needs qemu-guest-agent
    #[arg(long, value_name = "PATH")]
    pub agent_socket: Option<PathBuf>,

    /// Whether memory that the guest frees returns to the host, and `holm balloon` can ask for more
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub balloon: Switch,

    /// Sockets between guest and host: `CONNECT PORT` at this Unix socket reaches the guest's port,
    /// and the guest's port N of context 2 is PATH_N (--vsock cid=3,socket=/tmp/web1.vsock)
    #[arg(long, value_name = "cid=N,socket=PATH", value_parser = vsock)]
    pub vsock: Option<VsockSocket>,

    /// Shares a folder of the host with the guest, which mounts it with `mount -t virtiofs TAG DIR`; the
    /// tag is holm unless given (--share src,tag=src,readonly). With writeback small writes are quick, but
    /// reach the host when a file is closed, and the guest does not see what the host changes meanwhile
    #[arg(long, value_name = "DIRECTORY[,tag=TAG][,readonly][,writeback]", value_parser = share)]
    pub share: Option<Share>,

    /// What is done with a guest that stops pinging its watchdog (--watchdog reset); without
    /// this the machine has none
    #[arg(long, value_enum, value_name = "ACTION")]
    pub watchdog: Option<Watchdog>,

    /// Keeps what the serial console prints in this file, appended to, and at most SIZE of it (16M):
    /// the older half is in FILE.1 (--serial-log web1.log,max=4M)
    #[arg(long, value_name = "FILE[,max=SIZE]", value_parser = serial_log)]
    pub serial_log: Option<LogOption>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// There is one
    On,
    /// There is none
    Off,
}

/// `--watchdog`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Watchdog {
    /// As if the guest had reset itself: see --on-reset
    Reset,
    /// Ends the machine
    Poweroff,
    /// Pauses the machine
    Pause,
    /// Only says so
    Nothing,
}

/// `--serial-log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOption {
    /// The file.
    pub path: PathBuf,
    /// Most bytes.
    pub most: u64,
}

fn vsock(text: &str) -> Result<VsockSocket, String> {
    const FORM: &str = "sockets are cid=N,socket=PATH, with N from 3 to 4294967294";
    let (cid, path) = text.split_once(",socket=").ok_or(FORM)?;
    let cid = cid.strip_prefix("cid=").and_then(|cid| cid.parse().ok());
    match cid {
        Some(cid) if (3..u32::MAX).contains(&cid) && !path.is_empty() => Ok(VsockSocket {
            cid,
            socket: path.into(),
        }),
        _ => Err(FORM.into()),
    }
}

fn share(text: &str) -> Result<Share, String> {
    let mut words = text.split(',');
    let mut share = Share {
        folder: words.next().unwrap_or_default().into(),
        tag: "holm".into(),
        read_only: false,
        write_back: false,
    };
    for word in words {
        match word.strip_prefix("tag=") {
            Some(tag) if (1..=36).contains(&tag.len()) => share.tag = tag.into(),
            None if word == "readonly" => share.read_only = true,
            None if word == "writeback" => share.write_back = true,
            _ => {
                return Err(
                    "a share is DIRECTORY[,tag=TAG][,readonly][,writeback]; a tag has 1 to 36 bytes"
                        .into(),
                );
            }
        }
    }
    Ok(share)
}

/// `--serial-log`'s argument.
///
/// # Errors
/// Says what it looks like.
pub fn serial_log(text: &str) -> Result<LogOption, String> {
    const DEFAULT: u64 = 16 << 20;
    const LEAST: u64 = 4096;
    let (path, most) = match text.split_once(",max=") {
        Some((path, size)) => (path, crate::values::size(size)?),
        None => (text, DEFAULT),
    };
    if path.is_empty() || most < LEAST {
        return Err("a serial log is FILE[,max=SIZE], with at least 4K".into());
    }
    let path = path.into();
    Ok(LogOption { path, most })
}

impl Options {
    /// For the machine's description.
    pub fn describe(&self) -> Peripherals {
        Peripherals {
            agent: true,
            balloon: self.balloon == Switch::On,
            vsock: self.vsock.clone(),
            share: self.share.clone(),
            watchdog: self.watchdog.map(|action| match action {
                Watchdog::Reset => WatchdogAction::Reset,
                Watchdog::Poweroff => WatchdogAction::PowerOff,
                Watchdog::Pause => WatchdogAction::Pause,
                Watchdog::Nothing => WatchdogAction::Nothing,
            }),
        }
    }
}
