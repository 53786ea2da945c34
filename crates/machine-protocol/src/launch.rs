//! The files by which a machine's process and who started it know each other:
//! all in the machine's own directory, the process's working directory. They
//! survive both.

use serde::{Deserialize, Serialize};

/// Version of [`Launch`], [`Process`], [`Running`] and [`Exit`]. Others are refused.
pub const LAUNCH_VERSION: u32 = 1;

/// What is started: [`Launch`], written before the process is.
pub const LAUNCH_FILE: &str = "machine.json";
/// Locked (flock) as long as the process lives; it holds its [`Process`],
/// and is written in place.
pub const LOCK_FILE: &str = "lock";
/// [`Running`], written when the machine runs.
pub const RUNNING_FILE: &str = "running.json";
/// [`Exit`], written when it has ended.
pub const EXIT_FILE: &str = "exit.json";
/// The control socket.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The socket of the guest's agent.
pub const AGENT_SOCKET: &str = "agent.sock";
/// What the serial console printed; the older half is in `serial.log.1`.
pub const SERIAL_LOG: &str = "serial.log";
/// What Holm says of the machine.
pub const MESSAGES: &str = "machine.log";

/// What the process says on its standard output, on a line, when the machine
/// runs. It closes the output then, or at its end.
pub const RUNS: &str = "runs";

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// [`LAUNCH_VERSION`].
    pub version: u32,
    /// Which start of the machine this is, counted by who starts it.
    pub number: u64,
    /// Its CPU engine.
    #[serde(default)]
    pub engine: Engine,
    /// Most bytes that are kept of the serial console.
    pub serial_log_bytes: u64,
    /// The machine, as crate `machine` describes it.
    pub machine: serde_json::Value,
}

/// A CPU engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// KVM where it runs guests at hardware speed, else the software CPU.
    #[default]
    Auto,
    /// Hardware virtualization.
    Kvm,
    /// The software CPU.
    Soft,
}

/// The process that holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// [`LAUNCH_VERSION`].
    pub version: u32,
    /// Its number on the host.
    pub pid: u32,
    /// When it was started, in clock ticks since the host was (field 22 of
    /// `/proc/PID/stat`): tells it from a later process of the same number.
    pub start_ticks: u64,
    /// The host's boot id.
    pub boot_id: String,
}

/// That the machine runs, or ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// [`LAUNCH_VERSION`].
    pub version: u32,
    /// [`Launch::number`].
    pub number: u64,
    /// Since when, in milliseconds of Unix time.
    pub at_ms: u64,
}

/// A machine's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// [`LAUNCH_VERSION`].
    pub version: u32,
    /// [`Launch::number`].
    pub number: u64,
    /// How it ended.
    pub how: Ended,
    /// The same for people, with the error where there is one.
    pub message: String,
    /// The guest's kernel had panicked since it was last started.
    pub panicked: bool,
    /// When, in milliseconds of Unix time.
    pub at_ms: u64,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The guest powered it off.
    PoweredOff,
    /// The guest reset it, and that is its end.
    Reset,
    /// Its power was cut by a request.
    Killed,
    /// The process was asked to end by a signal.
    Signal,
    /// The guest shut down by a triple fault, or wrote to the debug-exit port.
    Crashed,
    /// It could not be started, or Holm or the host failed.
    Failed,
}

/// A file that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Another version.
    #[error(
        "{file} has version {found}, and this holm reads version {LAUNCH_VERSION}; use the holm that wrote it, or a newer one"
    )]
    Version {
        /// Its name.
        file: &'static str,
        /// Its version.
        found: u32,
    },
    /// Not JSON, or not this.
    #[error("{file} is damaged: {source}")]
    Damaged {
        /// Its name.
        file: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl Process {
    /// When a process was started, from its `/proc/PID/stat`.
    #[must_use]
    pub fn start_ticks(stat: &str) -> Option<u64> {
        // Field 22; the name, field 2, may hold spaces and parentheses.
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(19)?.parse().ok()
    }
}

/// Reads one of the files.
///
/// # Errors
/// [`LaunchError`].
pub fn parse<T: serde::de::DeserializeOwned>(
    file: &'static str,
    text: &[u8],
) -> Result<T, LaunchError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let damaged = |source| LaunchError::Damaged { file, source };
    let Head { version } = serde_json::from_slice(text).map_err(damaged)?;
    if version != LAUNCH_VERSION {
        return Err(LaunchError::Version {
            file,
            found: version,
        });
    }
    serde_json::from_slice(text).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_documented_form_and_others_are_refused_by_name() {
        let exit = Exit {
            version: LAUNCH_VERSION,
            number: 3,
            how: Ended::PoweredOff,
            message: "the guest powered off".into(),
            panicked: false,
            at_ms: 7,
        };
        let text = serde_json::to_string(&exit).unwrap();
        assert!(text.contains(r#""how":"powered-off""#), "{text}");
        assert_eq!(parse::<Exit>(EXIT_FILE, text.as_bytes()).unwrap(), exit);
        let newer = text.replace("\"version\":1", "\"version\":2,\"more\":1");
        let error = parse::<Exit>(EXIT_FILE, newer.as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("exit.json has version 2"),
            "{error}"
        );
        let unknown = text.replace("\"panicked\"", "\"colour\":1,\"panicked\"");
        let error = parse::<Exit>(EXIT_FILE, unknown.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
        assert!(parse::<Launch>(LAUNCH_FILE, b"").is_err());
    }
}
