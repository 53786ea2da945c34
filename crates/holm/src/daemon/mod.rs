//! `holm daemon`: the machines of a state directory, and the doors to them.

mod doors;
mod notify;
mod rest;

pub use doors::{API_SOCKET, EC2_FILE};

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use control::{Plane, Refusal};
use host::{Driver, Layout, Patience, Real, RealConfig, Reconciler};
use images::Library;
use store::{Sqlite, StoreError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::console::terminal;
use crate::exit_code;
use crate::state_directory;

/// How often the store's lock is tried, and between two attempts.
const LOCK_ATTEMPTS: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(200);
/// Where the EC2 interface listens unless something else is said.
pub const EC2_PORT: u16 = 4780;
/// Between two looks at what expires.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The store.
    #[error("opening the store in {directory}: {source}")]
    Store {
        /// The state directory.
        directory: String,
        /// Why.
        source: StoreError,
    },
    /// What is in the store.
    #[error("reading the store in {directory}: {source}")]
    Records {
        /// The state directory.
        directory: String,
        /// Why.
        source: Refusal,
    },
    /// The host.
    #[error("{doing}: {source}")]
    Host {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

impl DaemonError {
    fn host(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Host { doing, source }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Store {
                source: StoreError::InUse { .. },
                ..
            }
            | Self::Host { .. } => exit_code::HOST,
            Self::Store { .. } | Self::Records { .. } => exit_code::BAD_FILE,
        }
    }
}

/// A daemon, for its doors.
#[derive(Clone)]
#[allow(dead_code, reason = "for the doors that are not there yet")]
pub struct Daemon {
    /// What is wanted and known.
    pub plane: Plane,
    /// Where things are.
    pub layout: Layout,
    /// This host.
    pub driver: Arc<dyn Driver>,
    /// What makes the host agree.
    pub reconciler: Arc<Reconciler>,
    /// It is to end.
    pub ending: watch::Receiver<bool>,
}

impl Daemon {
    /// Returns when the daemon is to end.
    pub async fn ended(&self) {
        let mut ending = self.ending.clone();
        // The sender lives as long as the daemon.
        let _ = ending.wait_for(|ending| *ending).await;
    }
}

/// `holm daemon`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The state directory (--state /srv/holm); $HOLM_STATE unless given, else /var/lib/holm for root
    /// and ~/.local/state/holm for others
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// Where the EC2 interface listens; port 0 takes any that is free, and DIR/run/ec2 tells it
    #[arg(long, value_name = "ADDR:PORT", default_value_t = (Ipv4Addr::LOCALHOST, EC2_PORT).into())]
    pub ec2: SocketAddr,

    /// Where the REST interface listens by TCP, with tokens, besides its socket DIR/run/api.sock
    /// (--api 127.0.0.1:4781)
    #[arg(long, value_name = "ADDR:PORT")]
    pub api: Option<SocketAddr>,

    /// How long a guest has to shut down before its power is cut (--grace 30s)
    #[arg(long, value_name = "DURATION", value_parser = crate::values::duration)]
    pub grace: Option<Duration>,
}

/// Runs until a signal; the exit status.
pub fn run(arguments: &Arguments) -> u8 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::host("starting threads"));
    let served = runtime.and_then(|runtime| {
        let served = runtime.block_on(serve(arguments));
        // What still reads a disk is not waited for.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(()) => exit_code::SUCCESS,
        Err(error) => {
            terminal::say(&format!("holm: {error}"));
            error.code()
        }
    }
}

async fn serve(arguments: &Arguments) -> Result<(), DaemonError> {
    let layout = Layout::new(state_directory::resolve(arguments.state.as_deref()));
    make(layout.root())?;
    make(&layout.run())?;
    let directory = layout.root().display().to_string();
    // One daemon for each state directory: the store is locked.
    let store = open_store(&layout).await?;
    let plane = Plane::open(Arc::new(store)).await;
    let plane = plane.map_err(|source| DaemonError::Records { directory, source })?;
    let listeners = doors::listen(&layout, arguments).await?;
    let library = Library::open(&layout.images());
    let library = library.map_err(|e| DaemonError::Host {
        doing: "opening the library of images".into(),
        source: io::Error::other(e),
    })?;
    let program = std::env::current_exe().map_err(DaemonError::host("finding this program"))?;
    let config = RealConfig {
        program,
        layout: layout.clone(),
    };
    let (driver, changes) = Real::new(config).map_err(DaemonError::host("making directories"))?;
    let driver: Arc<dyn Driver> = Arc::new(driver);
    let patience = patience(arguments);
    let reconciler = Reconciler::new(plane.clone(), driver.clone(), layout.clone(), patience);
    let (end, ending) = watch::channel(false);
    let daemon = Daemon {
        plane,
        layout,
        driver,
        reconciler: reconciler.clone(),
        ending,
    };
    let mut signals = Signals::new()?;
    let reconciling = tokio::spawn(reconciler.run(changes));
    let mut serving = JoinSet::new();
    doors::serve(&daemon, listeners, &mut serving)?;
    serving.spawn(keep_house(daemon.clone()));
    let adopting = tokio::spawn(host::adopt_images(daemon.plane.clone(), library));
    tracing::info!(state = %daemon.layout.root().display(), "the daemon is ready");
    notify::tell("READY=1");
    signals.next().await;
    notify::tell("STOPPING=1");
    tracing::info!("the daemon ends; its machines go on");
    end.send_replace(true);
    let _ = tokio::time::timeout(doors::GRACE, serving.join_all()).await;
    // Each step may be left at any point: the next daemon takes it up.
    reconciling.abort();
    adopting.abort();
    Ok(())
}

/// A daemon that died a moment ago may have left the lock to a child that has
/// not yet become another program.
async fn open_store(layout: &Layout) -> Result<Sqlite, DaemonError> {
    let mut attempts = 0;
    loop {
        match Sqlite::open(&layout.store()) {
            Err(StoreError::InUse { .. }) if attempts < LOCK_ATTEMPTS => {
                attempts += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            other => {
                let directory = layout.root().display().to_string();
                return other.map_err(|source| DaemonError::Store { directory, source });
            }
        }
    }
}

/// Does what is due at its time, until the daemon ends.
async fn keep_house(daemon: Daemon) {
    loop {
        if let Err(error) = daemon.plane.keep_house().await {
            tracing::error!(%error, "keeping house");
        }
        tokio::select! {
            () = tokio::time::sleep(HOUSEKEEPING) => {}
            () = daemon.ended() => return,
        }
    }
}

fn patience(arguments: &Arguments) -> Patience {
    let mut patience = Patience::default();
    if let Some(grace) = arguments.grace {
        patience.stop = grace;
        patience.terminate = grace.min(patience.terminate);
    }
    patience
}

/// A directory for this user only.
fn make(path: &Path) -> Result<(), DaemonError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(DaemonError::host(format!("making {}", path.display())))
}

/// SIGTERM, SIGINT and SIGHUP.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let listen = |kind| signal(kind).map_err(DaemonError::host("watching for signals"));
        Ok(Self([
            listen(SignalKind::terminate())?,
            listen(SignalKind::interrupt())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
