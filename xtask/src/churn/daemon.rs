//! A daemon that is killed at random moments, and started again at once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::random::Random;

/// A daemon that has not begun to answer after this will not.
const READY: Duration = Duration::from_secs(60);

/// What a daemon takes of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// KiB of memory.
    pub resident: u64,
    /// Open files and sockets.
    pub files: usize,
    pub threads: usize,
}

/// How to start daemons.
#[derive(Clone)]
pub struct Program {
    /// The program `holm`.
    pub holm: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// Where it may leave what does not stay.
    pub temporary: PathBuf,
    /// What daemons say.
    pub log: PathBuf,
}

impl Program {
    /// `holm`, with the state directory.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.holm);
        command
            .env("HOLM_STATE", &self.state)
            .env("TMPDIR", &self.temporary)
            .env("XDG_RUNTIME_DIR", &self.temporary)
            .stdin(Stdio::null());
        command
    }

    /// Starts a daemon.
    ///
    /// # Errors
    /// It cannot be.
    pub fn daemon(&self) -> Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        self.command()
            .args(["daemon", "--ec2", "127.0.0.1:0", "--grace", "1s"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the daemon")
    }
}

/// A daemon, whichever process it is now.
pub struct Daemons {
    keeper: JoinHandle<Result<Child>>,
    ending: Arc<AtomicBool>,
    killed: Arc<AtomicU64>,
}

impl Daemons {
    /// Starts one; with `kill`, it is killed after random times of up to that.
    pub fn start(program: Program, kill: Option<Duration>, mut random: Random) -> Result<Self> {
        let mut child = program.daemon()?;
        let ending = Arc::new(AtomicBool::new(false));
        let killed = Arc::new(AtomicU64::new(0));
        let (end, count) = (ending.clone(), killed.clone());
        let keeper = thread::spawn(move || {
            loop {
                // Soon after its start as often as later.
                let most = kill.map(|most| match random.below(2) {
                    0 => most / 10,
                    _ => most,
                });
                let lives = most.map(|most| random.time(most));
                let born = Instant::now();
                while lives.is_none_or(|lives| born.elapsed() < lives) {
                    if end.load(Ordering::Acquire) {
                        return Ok(child);
                    }
                    if let Some(status) = child.try_wait()? {
                        bail!("the daemon ended by itself: {status}");
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                child.kill()?;
                child.wait()?;
                count.fetch_add(1, Ordering::AcqRel);
                child = program.daemon()?;
            }
        });
        Ok(Self {
            keeper,
            ending,
            killed,
        })
    }

    /// How often it was killed.
    pub fn killed(&self) -> u64 {
        self.killed.load(Ordering::Acquire)
    }

    /// No daemon is killed any more; the one that is left.
    ///
    /// # Errors
    /// A daemon ended by itself.
    pub fn spare(self) -> Result<Child> {
        self.ending.store(true, Ordering::Release);
        match self.keeper.join() {
            Ok(left) => left,
            Err(_) => bail!("the thread that kills daemons failed"),
        }
    }
}

/// Waits until a daemon answers.
///
/// # Errors
/// It does not.
pub fn until_ready(client: &super::client::Client) -> Result<()> {
    let end = Instant::now() + READY;
    loop {
        match client.get("/healthz") {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// What a process takes now.
///
/// # Errors
/// It is gone.
pub fn usage(process: u32) -> Result<Usage> {
    let directory = Path::new("/proc").join(process.to_string());
    let status = fs::read_to_string(directory.join("status"))?;
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Ok(Usage {
        resident: number("VmRSS:").unwrap_or_default(),
        files: fs::read_dir(directory.join("fd"))?.count(),
        threads: number("Threads:").unwrap_or_default() as usize,
    })
}
