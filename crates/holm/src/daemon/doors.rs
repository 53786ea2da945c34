//! Where the daemon listens.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use host::{Driver, Layout};
use model::InstanceId;
use prometheus::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::{Arguments, Daemon, DaemonError, rest};

/// Time for answers that are being given when the daemon ends.
pub const GRACE: Duration = Duration::from_secs(5);
/// The socket of the REST interface in the directory `run`.
pub const API_SOCKET: &str = "api.sock";
/// In the directory `run`: URL of the EC2 interface, while a daemon serves it.
pub const EC2_FILE: &str = "ec2";

/// Sockets that are listened on.
pub struct Listeners {
    /// REST, for this user.
    pub api: UnixListener,
    /// REST by TCP, if that is wanted.
    pub api_tcp: Option<TcpListener>,
    /// EC2.
    pub ec2: TcpListener,
}

/// Listens: on the sockets that systemd gives, else on new ones.
pub async fn listen(layout: &Layout, arguments: &Arguments) -> Result<Listeners, DaemonError> {
    let mut given = listenfd::ListenFd::from_env();
    let api = match given_unix(&mut given)? {
        Some(listener) => listener,
        None => unix(layout)?,
    };
    let ec2 = match given_tcp(&mut given)? {
        Some(listener) => listener,
        None => tcp("EC2", "--ec2", arguments.ec2).await?,
    };
    let api_tcp = match arguments.api {
        Some(address) => Some(tcp("REST", "--api", address).await?),
        None => None,
    };
    let address = ec2.local_addr().map_err(DaemonError::host("listening"))?;
    let file = layout.run().join(EC2_FILE);
    let new = file.with_extension("new");
    fs::write(&new, format!("http://{address}\n"))
        .and_then(|()| fs::rename(&new, &file))
        .map_err(DaemonError::host(format!("writing {}", file.display())))?;
    Ok(Listeners { api, api_tcp, ec2 })
}

fn given_unix(given: &mut listenfd::ListenFd) -> Result<Option<UnixListener>, DaemonError> {
    for index in 0..given.len() {
        if let Ok(Some(listener)) = given.take_unix_listener(index) {
            let listener = nonblocking(listener.set_nonblocking(true), listener)?;
            return UnixListener::from_std(listener)
                .map(Some)
                .map_err(DaemonError::host("using systemd's socket"));
        }
    }
    Ok(None)
}

fn given_tcp(given: &mut listenfd::ListenFd) -> Result<Option<TcpListener>, DaemonError> {
    for index in 0..given.len() {
        if let Ok(Some(listener)) = given.take_tcp_listener(index) {
            let listener = nonblocking(listener.set_nonblocking(true), listener)?;
            return TcpListener::from_std(listener)
                .map(Some)
                .map_err(DaemonError::host("using systemd's socket"));
        }
    }
    Ok(None)
}

fn nonblocking<T>(set: io::Result<()>, listener: T) -> Result<T, DaemonError> {
    set.map_err(DaemonError::host("using systemd's socket"))?;
    Ok(listener)
}

/// The Unix socket, in place of that of a daemon that died: the store's lock
/// says that none lives.
fn unix(layout: &Layout) -> Result<UnixListener, DaemonError> {
    let path = layout.run().join(API_SOCKET);
    let doing = format!("listening at {}", path.display());
    let listen = || {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = bind(layout, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    listen().map_err(DaemonError::host(doing))
}

fn bind(layout: &Layout, path: &std::path::Path) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;
    match path.as_os_str().len() {
        0..=100 => UnixListener::bind(path),
        // A socket's path has at most 107 bytes.
        _ => {
            let run = fs::File::open(layout.run())?;
            UnixListener::bind(format!("/proc/self/fd/{}/{API_SOCKET}", run.as_raw_fd()))
        }
    }
}

async fn tcp(what: &str, option: &str, address: SocketAddr) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(address)
        .await
        .map_err(DaemonError::host(format!(
            "listening for {what} at {address} (choose another address with {option})"
        )))
}

/// Serves all doors until the daemon ends.
///
/// # Errors
/// What the doors need is not there.
pub fn serve(
    daemon: &Daemon,
    listeners: Listeners,
    serving: &mut JoinSet<()>,
) -> Result<(), DaemonError> {
    let Listeners { api, api_tcp, ec2 } = listeners;
    let registry = Registry::new();
    rest::serve(daemon, api, api_tcp, &ec2, registry.clone(), serving)?;
    let consoles = Box::new(Consoles(daemon.driver.clone()));
    let door = ec2::Door::new(daemon.plane.clone(), consoles);
    let door = door.map_err(|source| DaemonError::Records {
        directory: daemon.layout.root().display().to_string(),
        source,
    })?;
    let door = door.counted(&registry).map_err(|e| DaemonError::Host {
        doing: "counting requests of EC2".into(),
        source: io::Error::other(e),
    })?;
    let ended = daemon.clone();
    serving.spawn(async move { ec2::serve(ec2, Arc::new(door), ended.ended()).await });
    Ok(())
}

/// What machines' consoles said, as EC2 gives it out.
struct Consoles(Arc<dyn Driver>);

/// Most bytes of a console that EC2 gives out.
const CONSOLE_MAX: usize = 64 << 10;

#[async_trait::async_trait]
impl ec2::Consoles for Consoles {
    async fn read(&self, instance: &InstanceId) -> io::Result<Option<ec2::Console>> {
        let log = self.0.console_log(instance.as_str(), CONSOLE_MAX).await;
        let output = log.map_err(io::Error::other)?;
        Ok((!output.is_empty()).then(|| ec2::Console {
            output,
            at: SystemTime::now(),
        }))
    }
}
