//! Unix sockets that a machine serves.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::outcome::MachineError;

/// A Unix socket that is removed with the value.
#[derive(Debug)]
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
/// [`MachineError::Socket`].
pub fn listen(path: &Path) -> Result<(UnixListener, OwnSocket), MachineError> {
    let failed = |reason: &str| MachineError::Socket {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
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
