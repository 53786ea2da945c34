//! Unix sockets in directories whose names may be long.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A socket's path has at most 107 bytes.
const LONG: usize = 100;

/// Connects to the socket at a path, however long that is.
///
/// # Errors
/// The host's.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    match (path.as_os_str().len(), path.parent(), path.file_name()) {
        (LONG.., Some(parent), Some(name)) => {
            let directory = File::open(parent)?;
            let within = format!("/proc/self/fd/{}", directory.as_raw_fd());
            UnixStream::connect(Path::new(&within).join(name))
        }
        _ => UnixStream::connect(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_in_a_deep_directory_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let short = directory.path().join("s");
        let _listener = UnixListener::bind(&short).unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        std::fs::rename(&short, deep.join("s")).unwrap();
        assert!(connect(&deep.join("s")).is_ok());
        assert!(connect(&deep.join("t")).is_err());
    }
}
