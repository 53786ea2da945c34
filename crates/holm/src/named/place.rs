//! Where the machines of this user are that have names and no daemon.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use machine_protocol::launch::{AGENT_SOCKET, CONTROL_SOCKET};

use crate::failure::Failure;
use crate::socket;

/// Longest name: a Unix socket's path must hold it.
const NAME_MAX: usize = 48;

/// The directory of all named machines.
fn machines() -> PathBuf {
    runtime().join("machines")
}

/// The directory of what is kept of this user until the host is started anew.
pub fn runtime() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    named
        .filter(|path| path.is_absolute())
        .into_iter()
        .chain([PathBuf::from(format!("/run/user/{user}"))])
        .find(|path| path.is_dir())
        .unwrap_or_else(|| std::env::temp_dir().join(format!("holm-{user}")))
        .join("holm")
}

/// A machine's name, on the command line.
///
/// # Errors
/// Says what a name is.
pub fn name(text: &str) -> Result<String, String> {
    let fits = (1..=NAME_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text.as_bytes()[0].is_ascii_alphanumeric();
    match fits {
        true => Ok(text.into()),
        false => Err(format!(
            "a name is 1 to {NAME_MAX} letters, digits, '-', '_' and '.', and begins with a letter or digit"
        )),
    }
}

/// The directory of the machine of this name.
pub fn directory(name: &str) -> PathBuf {
    machines().join(name)
}

/// Whether a machine of this name runs that no daemon keeps.
pub fn stands_alone(name: &str) -> bool {
    // A killed process leaves its directory behind.
    self::name(name).is_ok() && socket::connect(&directory(name).join(CONTROL_SOCKET)).is_ok()
}

/// The names of machines that run, which no daemon keeps.
pub fn running() -> Vec<String> {
    let mut names = names().unwrap_or_default();
    names.retain(|name| stands_alone(name));
    names
}

/// The names in use, or left behind by processes that were killed.
///
/// # Errors
/// The host's.
pub fn names() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(machines()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|text| name(text).is_ok())
        .collect();
    names.sort();
    Ok(names)
}

/// A name held by this process.
pub struct Claim {
    name: String,
    directory: PathBuf,
    /// Locked as long as the name is held.
    _lock: File,
}

impl Claim {
    /// Takes a name. One that a killed process has left is taken over.
    ///
    /// # Errors
    /// [`Failure::Usage`] if a running machine has it, [`Failure::Host`].
    pub fn take(name: &str) -> Result<Self, Failure> {
        let directory = directory(name);
        let failed = |e: io::Error| {
            Failure::Host(format!(
                "taking the name {name:?} at {}: {e}",
                directory.display()
            ))
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed)?;
        let owner = fs::symlink_metadata(&directory).map_err(failed)?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(failed(io::Error::other("it belongs to another user")));
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                name: name.to_owned(),
                directory,
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(Failure::Usage(format!(
                "a machine named {name:?} runs already; choose another name, or end it with `holm stop {name}`"
            ))),
            Err(fs::TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it serves its control socket.
    pub fn control(&self) -> PathBuf {
        self.directory.join(CONTROL_SOCKET)
    }

    /// Where it serves its guest's agent.
    pub fn agent(&self) -> PathBuf {
        self.directory.join(AGENT_SOCKET)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for file in [CONTROL_SOCKET, AGENT_SOCKET, "lock"] {
            // Gone already is as good.
            let _ = fs::remove_file(self.directory.join(file));
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_elsewhere() {
        for good in ["a", "web-1", "x.y_z", "9lives"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        let long = "x".repeat(NAME_MAX + 1);
        for bad in ["", ".", "..", "a/b", "-x", " a", "\u{e4}", "a\n", &long] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }
}
