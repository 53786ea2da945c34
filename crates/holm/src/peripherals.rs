//! `holm run`: the devices that tie the guest to its host.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use clap::Args;
use machine::Peripherals;

use crate::failure::Failure;

/// Their options.
#[derive(Args, Debug)]
pub struct Options {
    /// Serves the guest's agent there, for `holm exec`, `holm cp`, `holm fsfreeze` and
    /// `holm fsthaw` (--agent-socket /tmp/web1.agent); the guest needs qemu-guest-agent
    #[arg(long, value_name = "PATH")]
    pub agent_socket: Option<PathBuf>,
}

impl Options {
    /// For the machine's description.
    pub fn describe(&self) -> Peripherals {
        Peripherals { agent: true }
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
