//! A machine's directory.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use machine_protocol::host_port::{
    HOST_PORT_FILE, HOST_PORT_REDIRECTS, HOST_PORT_STATUS, HostPort, HostPortStatus, Redirect,
    RedirectList,
};
use machine_protocol::launch::{
    self, EXIT_FILE, Exit, LAUNCH_FILE, LAUNCH_VERSION, LOCK_FILE, Launch, MESSAGES, RUNNING_FILE,
    Running, SERIAL_LOG,
};
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};

use crate::driver::DriverError;

/// What directories that are being removed begin with.
const GONE: &str = ".gone-";
/// Bytes of `machine.log` that are looked at.
const TAIL: u64 = 4096;
/// No file of a machine is longer.
const FILE_MAX: u64 = 4 << 20;

/// A directory, for this user only.
pub fn make(path: &Path) -> io::Result<()> {
    let mut make = DirBuilder::new();
    make.recursive(true).mode(0o700).create(path)
}

/// The directory of a machine; it need not exist.
#[derive(Clone, Debug)]
pub struct Directory {
    machine: String,
    path: PathBuf,
    gone: PathBuf,
}

/// What is in it.
pub struct Files {
    pub launch: Launch,
    pub running: Option<Running>,
    pub exit: Option<Exit>,
    /// A process holds the lock.
    pub has_process: bool,
}

/// The ids of what has a directory in this one.
pub async fn list(within: &Path, what: &'static str) -> Result<Vec<String>, DriverError> {
    let within = within.to_owned();
    blocking("listing", what, move || {
        let mut found = Vec::new();
        let entries = match fs::read_dir(within) {
            Err(e) if is_missing(&e) => return Ok(found),
            other => other?,
        };
        for entry in entries {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            let name = name.strip_prefix(GONE).unwrap_or(&name);
            if is_id(name) {
                found.push(name.to_owned());
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    })
    .await
}

fn is_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

/// Removes what has an id in a directory, with all that is in it.
pub async fn remove(within: &Path, id: &str) -> Result<(), DriverError> {
    let doing = "removing the files of";
    if !is_id(id) {
        return Err(DriverError::refused(doing, id, "it is no id"));
    }
    let path = within.join(id);
    blocking(doing, id, move || ignore_missing(fs::remove_dir_all(path))).await
}

impl Directory {
    pub fn of(machines: &Path, machine: &str) -> Result<Self, DriverError> {
        if !is_id(machine) {
            let machine: String = machine.chars().take(64).collect();
            return Err(DriverError::refused("naming", &machine, "it is no id"));
        }
        Ok(Self {
            machine: machine.to_owned(),
            path: machines.join(machine),
            gone: machines.join(format!("{GONE}{machine}")),
        })
    }

    pub fn machine(&self) -> &str {
        &self.machine
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, DriverError> {
        let directory = self.clone();
        blocking(doing, &self.machine, move || work(&directory)).await
    }

    /// What it says; `None`: there is no machine.
    pub async fn read(&self) -> Result<Option<Files>, DriverError> {
        let read = |directory: &Self| {
            // First: a process that ends now has written its end before.
            let has_process = directory.is_locked()?;
            let Some(launch) = directory.parse(LAUNCH_FILE)? else {
                return Ok(None);
            };
            Ok(Some(Files {
                launch,
                running: directory.parse(RUNNING_FILE)?,
                exit: directory.parse(EXIT_FILE)?,
                has_process,
            }))
        };
        self.blocking("reading the files of", read).await
    }

    fn parse<T: DeserializeOwned>(&self, name: &'static str) -> io::Result<Option<T>> {
        let Some(text) = self.read_file(name)? else {
            return Ok(None);
        };
        let parsed = launch::parse(name, &text);
        parsed.map(Some).map_err(io::Error::other)
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path.join(name)) {
            Err(e) if is_missing(&e) => return Ok(None),
            other => other?,
        };
        let mut text = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut text)?;
        Ok(Some(text))
    }

    /// What the process says of itself in the lock file.
    pub async fn lock_holder(&self) -> Result<Option<Vec<u8>>, DriverError> {
        let read = |directory: &Self| directory.read_file(LOCK_FILE);
        self.blocking("reading the lock of", read).await
    }

    fn is_locked(&self) -> io::Result<bool> {
        let lock = match File::options().write(true).open(self.path.join(LOCK_FILE)) {
            Err(e) if is_missing(&e) => return Ok(false),
            other => other?,
        };
        match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// A process runs the machine.
    pub async fn has_process(&self) -> Result<bool, DriverError> {
        self.blocking("observing", Self::is_locked).await
    }

    /// No process runs the machine, within this time.
    pub async fn is_gone_within(&self, limit: Duration) -> Result<bool, DriverError> {
        let end = Instant::now() + limit;
        loop {
            if !self.has_process().await? {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            sleep(super::AGAIN).await;
        }
    }

    /// Makes it ready for a start: the lock, and the file for messages;
    /// `None`: a process runs the machine already.
    pub async fn prepare(&self, launch: &Launch) -> Result<Option<(File, File)>, DriverError> {
        let launch = serde_json::to_vec(launch)
            .map_err(|e| DriverError::refused("describing", &self.machine, e))?;
        let old = &[RUNNING_FILE, EXIT_FILE];
        self.prepare_file(LAUNCH_FILE, launch, old).await
    }

    /// The same for the host's own port in a network.
    pub async fn prepare_port(&self, port: &HostPort) -> Result<Option<(File, File)>, DriverError> {
        let port = serde_json::to_vec(port)
            .map_err(|e| DriverError::refused("describing", &self.machine, e))?;
        self.prepare_file(HOST_PORT_FILE, port, &[HOST_PORT_STATUS])
            .await
    }

    /// Lets the process of a host's port end by itself.
    pub async fn dismiss_port(&self) -> Result<(), DriverError> {
        let dismiss =
            |directory: &Self| ignore_missing(fs::remove_file(directory.path.join(HOST_PORT_FILE)));
        self.blocking("dismissing the process of", dismiss).await
    }

    /// Tells the process of the host's port what it is to lead elsewhere, if
    /// that is something else than before.
    pub async fn write_redirects(&self, redirects: Vec<Redirect>) -> Result<(), DriverError> {
        let write = move |directory: &Self| {
            let list = RedirectList {
                version: LAUNCH_VERSION,
                redirects,
            };
            let content = serde_json::to_vec(&list)?;
            match directory.read_file(HOST_PORT_REDIRECTS)? {
                Some(is) if is == content => Ok(()),
                None if list.redirects.is_empty() => Ok(()),
                _ => directory.write(HOST_PORT_REDIRECTS, &content),
            }
        };
        self.blocking("writing the redirects of", write).await
    }

    async fn prepare_file(
        &self,
        file: &'static str,
        content: Vec<u8>,
        old: &'static [&'static str],
    ) -> Result<Option<(File, File)>, DriverError> {
        let prepare = move |directory: &Self| {
            make(&directory.path)?;
            let Some(lock) = directory.lock()? else {
                return Ok(None);
            };
            for old in old {
                ignore_missing(fs::remove_file(directory.path.join(old)))?;
            }
            directory.write(file, &content)?;
            let mut messages = File::options();
            let messages = messages
                .append(true)
                .create(true)
                .mode(0o600)
                .open(directory.path.join(MESSAGES))?;
            Ok(Some((lock, messages)))
        };
        self.blocking("preparing", prepare).await
    }

    /// What the host's port there is to be, and what it says of itself.
    pub async fn read_port(
        &self,
    ) -> Result<(Option<HostPort>, Option<HostPortStatus>), DriverError> {
        let read = |directory: &Self| {
            Ok((
                directory.parse(HOST_PORT_FILE)?,
                directory.parse(HOST_PORT_STATUS)?,
            ))
        };
        self.blocking("reading the files of", read).await
    }

    fn lock(&self) -> io::Result<Option<File>> {
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(self.path.join(LOCK_FILE))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Whole or not at all.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let unfinished = self.path.join(format!("{name}.new"));
        let mut options = File::options();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&unfinished)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// What Holm said last of the machine.
    pub async fn last_message(&self) -> String {
        let read = |directory: &Self| directory.tail(MESSAGES, TAIL);
        let text = self.blocking("reading the messages of", read).await;
        let text = text.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        match last {
            Some(line) => line.trim().trim_start_matches("holm: ").to_owned(),
            None => "its process ended without a word".into(),
        }
    }

    fn tail(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut file = match File::open(self.path.join(name)) {
            Err(e) if is_missing(&e) => return Ok(Vec::new()),
            other => other?,
        };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut text = Vec::new();
        file.take(most).read_to_end(&mut text)?;
        Ok(text)
    }

    /// The end of what the serial console printed.
    pub async fn console_log(&self, most: usize) -> Result<Vec<u8>, DriverError> {
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        let read = move |directory: &Self| {
            let new = directory.tail(SERIAL_LOG, most)?;
            let left = most.saturating_sub(new.len() as u64);
            let mut text = directory.tail(&format!("{SERIAL_LOG}.1"), left)?;
            text.extend(new);
            Ok(text)
        };
        self.blocking("reading the console of", read).await
    }

    /// Puts a file into it, in place of an older one.
    pub async fn place(&self, name: &'static str, content: &[u8]) -> Result<(), DriverError> {
        let content = content.to_vec();
        let place = move |directory: &Self| {
            make(&directory.path)?;
            directory.write(name, &content)
        };
        self.blocking("writing a file of", place).await
    }

    /// Listens on a socket in it, in place of a daemon that died.
    pub async fn listen(&self, name: &'static str) -> Result<UnixListener, DriverError> {
        let doing = "listening for";
        let listen = move |directory: &Self| {
            make(&directory.path)?;
            ignore_missing(fs::remove_file(directory.path.join(name)))?;
            // A socket's path has at most 107 bytes, a directory's may have more.
            let within = File::open(&directory.path)?;
            let short = format!("/proc/self/fd/{}/{name}", within.as_raw_fd());
            let listener = std::os::unix::net::UnixListener::bind(short)?;
            let path = directory.path.join(name);
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = self.blocking(doing, listen).await?;
        UnixListener::from_std(listener).map_err(|e| DriverError::again(doing, &self.machine, e))
    }

    /// Removes it, unless a process runs the machine.
    pub async fn remove(&self) -> Result<(), DriverError> {
        let remove = |directory: &Self| {
            ignore_missing(fs::remove_dir_all(&directory.gone))?;
            if !directory.path.try_exists()? {
                return Ok(());
            }
            let Some(lock) = directory.lock()? else {
                return Err(io::Error::other("it runs"));
            };
            // A process that waits for the lock finds its directory gone.
            fs::rename(&directory.path, &directory.gone)?;
            drop(lock);
            fs::remove_dir_all(&directory.gone)
        };
        self.blocking("removing the files of", remove).await
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if is_missing(&e) => Ok(()),
        other => other,
    }
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DriverError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(DriverError::again(doing, what, error)),
        Err(error) => Err(DriverError::again(doing, what, error)),
    }
}
