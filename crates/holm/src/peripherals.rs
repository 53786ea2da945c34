//! `holm run`: the devices that tie the guest to its host.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use machine::{Peripherals, WatchdogAction};

use crate::failure::Failure;

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

fn serial_log(text: &str) -> Result<LogOption, String> {
    const DEFAULT: u64 = 16 << 20;
    const LEAST: u64 = 4096;
    let (path, most) = match text.split_once(",max=") {
        Some((path, size)) => (path, crate::cli::size(size)?),
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
            watchdog: self.watchdog.map(|action| match action {
                Watchdog::Reset => WatchdogAction::Reset,
                Watchdog::Poweroff => WatchdogAction::PowerOff,
                Watchdog::Pause => WatchdogAction::Pause,
                Watchdog::Nothing => WatchdogAction::Nothing,
            }),
        }
    }
}

/// A Unix socket that is removed with the value.
pub struct OwnSocket(PathBuf);

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on a new Unix socket that only this user can reach. One that a
/// killed process has left there is replaced.
///
/// # Errors
/// [`Failure::Host`].
pub fn listen(path: &Path) -> Result<(UnixListener, OwnSocket), Failure> {
    let failed = |what: &str| Failure::Host(format!("listening at {}: {what}", path.display()));
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(failed(
            "another process serves this socket; choose another path",
        ));
    }
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() {
            return Err(failed("there is a file of that name; choose another path"));
        }
        std::fs::remove_file(path).map_err(|e| failed(&e.to_string()))?;
    }
    let listener = UnixListener::bind(path).map_err(|e| failed(&e.to_string()))?;
    let own = OwnSocket(path.to_owned());
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| failed(&e.to_string()))?;
    Ok((listener, own))
}
