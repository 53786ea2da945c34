//! Where the members of a switch find each other: a directory of sockets.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::{SwitchError, SwitchName};

/// Longest wait for another member that joins.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// Members that can knock while one stands still.
const BACKLOG: i32 = 128;
const SUFFIX: &str = ".member";

/// The directory of one switch.
pub(super) struct Place {
    path: PathBuf,
}

/// A member's socket, at which others knock. Its name goes with it.
pub(super) struct Listener {
    pub socket: OwnedFd,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If not, the next that joins removes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Place {
    /// Makes the directory, or checks that it is this user's alone.
    pub(super) fn prepare(name: &SwitchName) -> Result<Self, SwitchError> {
        Self::prepare_under(&runtime(), name)
    }

    pub(super) fn prepare_under(runtime: &Path, name: &SwitchName) -> Result<Self, SwitchError> {
        let mut path = runtime.to_path_buf();
        for part in ["holm", "switch", name.as_str()] {
            path.push(part);
            private(&path)?;
        }
        Ok(Self { path })
    }

    /// Makes or checks a directory that its owner has chosen.
    pub(super) fn at(path: &Path) -> Result<Self, SwitchError> {
        private(path)?;
        Ok(Self {
            path: path.to_path_buf(),
        })
    }

    /// Becomes a member: the socket to listen at, and one connected socket to
    /// each other member. Members join one after the other, so that each pair
    /// connects once.
    pub(super) fn join(&self) -> io::Result<(Listener, Vec<OwnedFd>)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty())?;
        lock(&directory)?;
        let mut peers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(SUFFIX)) else {
                continue;
            };
            let socket = seqpacket()?;
            match connect(&socket, &address(&directory, name)?) {
                Ok(()) => peers.push(socket),
                // Nobody listens there any more, and none will.
                Err(Errno::CONNREFUSED) => fs::remove_file(entry.path())?,
                Err(Errno::NOENT) => {}
                Err(error) => {
                    let member = entry.path();
                    tracing::warn!(?member, %error, "this member of the switch does not answer");
                }
            }
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|e| io::Error::other(e.to_string()))?;
        let unique = u64::from_ne_bytes(random);
        let name = format!("{}-{unique:016x}{SUFFIX}", std::process::id());
        let socket = seqpacket()?;
        bind(&socket, &address(&directory, &name)?)?;
        let listener = Listener {
            socket,
            path: self.path.join(name),
        };
        listen(&listener.socket, BACKLOG)?;
        // Closing the directory releases the lock.
        Ok((listener, peers))
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// The address of a socket in an open directory, short however long the
/// directory's path is.
fn address(directory: &impl AsRawFd, name: &str) -> io::Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    Ok(SocketAddrUnix::new(path)?)
}

fn lock(directory: &impl AsFd) -> io::Result<()> {
    let end = Instant::now() + JOIN_PATIENCE;
    loop {
        match rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::other(
                    "another machine that is joining does not get on",
                ));
            }
            other => return Ok(other?),
        }
    }
}

/// `$XDG_RUNTIME_DIR`, or what stands for it on this host.
fn runtime() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let named = named.filter(|path| path.is_absolute());
    named
        .into_iter()
        .chain([PathBuf::from(format!("/run/user/{user}"))])
        .find(|path| path.is_dir())
        .unwrap_or_else(|| std::env::temp_dir().join(format!("holm-{user}")))
}

/// Makes a directory for this user alone, with its parent if that is in a
/// place for everybody; or checks that it is one.
fn private(path: &Path) -> Result<(), SwitchError> {
    let wrong = |source| SwitchError::Place {
        path: path.to_path_buf(),
        source,
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        private(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(wrong)?,
    }
    let metadata = fs::symlink_metadata(path).map_err(wrong)?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || !own || metadata.mode() & 0o022 != 0 {
        return Err(SwitchError::NotPrivate(path.to_path_buf()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn name() -> SwitchName {
        "lab".parse().unwrap()
    }

    #[test]
    fn each_pair_of_members_is_connected_once() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::prepare_under(dir.path(), &name()).unwrap();
        let mut members = Vec::new();
        for before in 0..4 {
            let (listener, peers) = place.join().unwrap();
            assert_eq!(peers.len(), before);
            members.push((listener, peers));
        }
        members.truncate(1);
        assert_eq!(place.join().unwrap().1.len(), 1);
    }

    #[test]
    fn what_the_dead_leave_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::prepare_under(dir.path(), &name()).unwrap();
        let (listener, _) = place.join().unwrap();
        let left = listener.path.clone();
        // As after SIGKILL: closed, but not removed.
        let copy = left.with_extension("kept");
        fs::hard_link(&left, &copy).unwrap();
        drop(listener);
        fs::rename(&copy, &left).unwrap();
        let (_listener, peers) = place.join().unwrap();
        assert!(peers.is_empty() && !left.exists());
    }

    #[test]
    fn a_place_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Place::prepare_under(dir.path(), &name()).unwrap();
        let path = dir.path().join("holm/switch/lab");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        let error = Place::prepare_under(dir.path(), &name()).err().unwrap();
        assert!(error.to_string().contains("lab"), "{error}");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        assert!(Place::prepare_under(dir.path(), &name()).is_err());
    }
}
