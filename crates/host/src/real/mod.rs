//! A host of processes and files.

mod directory;
mod process;
mod volumes;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use machine_protocol::launch::{AGENT_SOCKET, Launch, RUNS, SERIAL_LOG};
use machine_protocol::vpc::PortConfig;
use machine_protocol::{Reply, Request, RunState};
use parking_lot::Mutex;
use provisioning::BootProgress;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{sleep, timeout};

use crate::control_client::{ControlClient, ControlError};
use crate::driver::{
    Content, Driver, DriverError, Facts, Happened, Inventory, MachineEnd, Observed, VolumeFile,
    VolumeSpec,
};
use crate::layout::{Layout, METADATA_SOCKET, SEED_DISK};
use directory::{Directory, Files};

/// How long a start is waited for; it goes on after that.
const START: Duration = Duration::from_secs(60);
/// How long a machine has to end after it was told to, before its process is
/// killed.
const END: Duration = Duration::from_secs(5);
/// How long a killed process may take to go: it may hold gigabytes.
const GONE: Duration = Duration::from_secs(30);
/// How long a copy of a disk may take.
const COPY: Duration = Duration::from_secs(3600);
/// Between two looks at a process that is about to go.
const AGAIN: Duration = Duration::from_millis(20);

/// What a real host needs to know.
#[derive(Clone, Debug)]
pub struct RealConfig {
    /// The program `holm`, whose command `machine` runs machines.
    pub program: PathBuf,
    /// The state directory.
    pub layout: Layout,
}

/// A host of processes and files.
pub struct Real {
    config: RealConfig,
    files: volumes::Files,
    changed: UnboundedSender<Happened>,
    /// Machines whose events are followed.
    followed: Arc<Mutex<HashSet<String>>>,
}

impl Real {
    /// This host, and what happens to its machines.
    ///
    /// # Errors
    /// The directories cannot be made.
    pub fn new(config: RealConfig) -> std::io::Result<(Self, UnboundedReceiver<Happened>)> {
        directory::make(&config.layout.machines())?;
        let files = volumes::Files::open(&config.layout).map_err(std::io::Error::other)?;
        let (changed, changes) = mpsc::unbounded_channel();
        let real = Self {
            config,
            files,
            changed,
            followed: Arc::default(),
        };
        Ok((real, changes))
    }

    fn directory(&self, machine: &str) -> Result<Directory, DriverError> {
        Directory::of(&self.config.layout.machines(), machine)
    }

    /// Connects to a machine; `None`: it has no process any more.
    async fn connect(
        &self,
        doing: &'static str,
        directory: &Directory,
    ) -> Result<Option<ControlClient>, DriverError> {
        match ControlClient::connect(directory.path()).await {
            Ok(client) => Ok(Some(client)),
            Err(_) if !directory.has_process().await? => Ok(None),
            Err(error) => Err(failed(doing, directory, &error)),
        }
    }

    /// Tells what happens to a start of the machine, and of its end, as soon as
    /// it comes.
    fn follow(&self, directory: &Directory, number: u64) {
        let machine = directory.machine().to_owned();
        if !self.followed.lock().insert(machine.clone()) {
            return;
        }
        let (followed, changed) = (self.followed.clone(), self.changed.clone());
        let path = directory.path().to_owned();
        tokio::spawn(async move {
            if let Ok(client) = ControlClient::connect(&path).await {
                let tell = |event| {
                    tracing::debug!(machine, ?event, "machine event");
                    let told = Some((number, event));
                    let machine = machine.clone();
                    // Without a receiver the daemon is ending.
                    let _ = changed.send(Happened { machine, told });
                };
                if let Err(error) = client.follow(tell).await {
                    tracing::debug!(machine, %error, "following a machine");
                }
            }
            followed.lock().remove(&machine);
            let _ = changed.send(Happened::look(machine));
        });
    }

    /// Waits until a started machine says that it runs; whether it did.
    async fn until_it_runs(&self, directory: &Directory, mut child: Child) -> bool {
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            let mut output = BufReader::new(output);
            // An error is as good as an end: the files tell what happened.
            let _ = timeout(START, output.read_line(&mut line)).await;
        }
        let (changed, machine) = (self.changed.clone(), directory.machine().to_owned());
        tokio::spawn(async move {
            let status = child.wait().await;
            tracing::info!(machine, ?status, "machine process ended");
            let _ = changed.send(Happened::look(machine));
        });
        line.trim_end() == RUNS
    }

    async fn running(
        &self,
        directory: &Directory,
        files: &Files,
    ) -> Result<Option<Observed>, DriverError> {
        let number = files.launch.number;
        let mut client = match ControlClient::connect(directory.path()).await {
            Ok(client) => client,
            Err(ControlError::Unreachable(_)) => return Ok(Some(Observed::Starting { number })),
            Err(error @ ControlError::Version { .. }) => {
                return Err(failed("asking", directory, &error));
            }
            // It may have ended just now.
            Err(_) => return Ok(None),
        };
        let Ok(description) = client.describe().await else {
            return Ok(None);
        };
        match description.state {
            RunState::Created => return Ok(Some(Observed::Starting { number })),
            RunState::Ended => return Ok(None),
            RunState::Running | RunState::Paused => {}
        }
        self.follow(directory, number);
        Ok(Some(Observed::Running {
            number,
            facts: Facts {
                pid: description.pid,
                engine: description.engine,
                state: description.state,
                since_ms: files.running.as_ref().map_or(0, |running| running.at_ms),
                disks: description.disks.into_iter().map(|d| d.name).collect(),
            },
        }))
    }
}

fn failed(
    doing: &'static str,
    directory: &Directory,
    error: &dyn std::fmt::Display,
) -> DriverError {
    DriverError::again(doing, directory.machine(), error)
}

#[async_trait]
impl Driver for Real {
    async fn inventory(&self) -> Result<Inventory, DriverError> {
        Ok(Inventory {
            machines: directory::list(&self.config.layout.machines(), "the machines").await?,
            volumes: self.files.ids().await?,
            networks: directory::list(&self.config.layout.networks(), "the networks").await?,
        })
    }

    async fn observe(&self, machine: &str) -> Result<Observed, DriverError> {
        let directory = self.directory(machine)?;
        let end = tokio::time::Instant::now() + END;
        loop {
            let Some(files) = directory.read().await? else {
                return Ok(Observed::Absent);
            };
            if !files.has_process {
                return Ok(ended(&files));
            }
            if let Some(observed) = self.running(&directory, &files).await? {
                return Ok(observed);
            }
            if tokio::time::Instant::now() > end {
                return Err(failed("observing", &directory, &"it neither runs nor ends"));
            }
            sleep(AGAIN).await;
        }
    }

    async fn launch(&self, machine: &str, launch: &Launch) -> Result<(), DriverError> {
        let directory = self.directory(machine)?;
        let doing = "starting the machine";
        let Some((lock, messages)) = directory.prepare(launch).await? else {
            return Ok(());
        };
        let child = Command::new(&self.config.program)
            .arg("machine")
            .arg(directory.path())
            // The lock goes to the process without a moment in which nobody has it.
            .stdin(Stdio::from(lock))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(messages))
            .current_dir("/")
            .spawn()
            .map_err(|e| {
                let program = self.config.program.display();
                failed(doing, &directory, &format!("running {program}: {e}"))
            })?;
        if self.until_it_runs(&directory, child).await {
            self.follow(&directory, launch.number);
            return Ok(());
        }
        match self.observe(machine).await? {
            Observed::Prepared { .. } | Observed::Absent => {
                let said = directory.last_message().await;
                Err(failed(doing, &directory, &said))
            }
            _ => Ok(()),
        }
    }

    async fn press_power_button(&self, machine: &str) -> Result<(), DriverError> {
        let (directory, doing) = (self.directory(machine)?, "pressing the power button of");
        let Some(mut client) = self.connect(doing, &directory).await? else {
            return Ok(());
        };
        // A paused guest could not hear the button.
        for request in [Request::Resume {}, Request::PowerButton {}] {
            if let Err(error) = client.ask(&request).await
                && directory.has_process().await?
            {
                return Err(failed(doing, &directory, &error));
            }
        }
        Ok(())
    }

    async fn kill(&self, machine: &str) -> Result<(), DriverError> {
        let (directory, doing) = (self.directory(machine)?, "ending the machine");
        if !directory.has_process().await? {
            return Ok(());
        }
        if let Ok(mut client) = ControlClient::connect(directory.path()).await
            && client.ask(&Request::Kill {}).await.is_ok()
            && directory.is_gone_within(END).await?
        {
            return Ok(());
        }
        tracing::warn!(machine, "killing a machine's process that does not end");
        let end = tokio::time::Instant::now() + GONE;
        while tokio::time::Instant::now() < end {
            // A process that has only just begun has not said yet which it is.
            process::kill(&directory).await?;
            if directory.is_gone_within(AGAIN).await? {
                return Ok(());
            }
        }
        Err(failed(doing, &directory, &"its process does not end"))
    }

    async fn remove(&self, machine: &str) -> Result<(), DriverError> {
        self.directory(machine)?.remove().await
    }

    async fn attach_disk(
        &self,
        machine: &str,
        disk: &serde_json::Value,
    ) -> Result<(), DriverError> {
        let (directory, doing) = (self.directory(machine)?, "attaching a disk to");
        let Some(mut client) = self.connect(doing, &directory).await? else {
            return Err(failed(doing, &directory, &"it does not run"));
        };
        let attach = async {
            let there = client.describe().await?.disks;
            if there.iter().any(|d| disk["name"] == d.name.as_str()) {
                return Ok(());
            }
            let disk = disk.clone();
            client.ask(&Request::AttachDisk { disk }).await.map(drop)
        };
        attach
            .await
            .map_err(|error| refused(doing, &directory, &error))
    }

    async fn detach_disk(&self, machine: &str, name: &str, force: bool) -> Result<(), DriverError> {
        let (directory, doing) = (self.directory(machine)?, "detaching a disk from");
        let Some(mut client) = self.connect(doing, &directory).await? else {
            return Ok(());
        };
        let detach = async {
            let there = client.describe().await?.disks;
            if !there.iter().any(|d| d.name == name) {
                return Ok(());
            }
            let disk = name.to_owned();
            let request = Request::DetachDisk { disk, force };
            client.ask(&request).await.map(drop)
        };
        detach
            .await
            .map_err(|error| refused(doing, &directory, &error))
    }

    async fn grow_disk(&self, machine: &str, name: &str, size: u64) -> Result<(), DriverError> {
        let (directory, doing) = (self.directory(machine)?, "growing a disk of");
        let Some(mut client) = self.connect(doing, &directory).await? else {
            return Ok(());
        };
        let grow = async {
            let there = client.describe().await?.disks;
            if there.iter().any(|d| d.name == name && d.size >= size) {
                return Ok(());
            }
            let disk = name.to_owned();
            client
                .ask(&Request::GrowDisk { disk, size })
                .await
                .map(drop)
        };
        grow.await
            .map_err(|error| refused(doing, &directory, &error))
    }

    async fn configure_nic(
        &self,
        machine: &str,
        nic: usize,
        port: &PortConfig,
    ) -> Result<(), DriverError> {
        let directory = self.directory(machine)?;
        let doing = "configuring the network card of";
        let Some(mut client) = self.connect(doing, &directory).await? else {
            return Ok(());
        };
        let request = Request::ConfigureNic {
            nic: u32::try_from(nic).unwrap_or(u32::MAX),
            port: Box::new(port.clone()),
        };
        let told = client.ask(&request).await.map(drop);
        told.map_err(|error| refused(doing, &directory, &error))
    }

    async fn remove_network(&self, network: &str) -> Result<(), DriverError> {
        directory::remove(&self.config.layout.networks(), network).await
    }

    async fn place_seed(&self, machine: &str, volume: &[u8]) -> Result<(), DriverError> {
        self.directory(machine)?.place(SEED_DISK, volume).await
    }

    async fn metadata_listener(&self, machine: &str) -> Result<Option<UnixListener>, DriverError> {
        let listener = self.directory(machine)?.listen(METADATA_SOCKET).await?;
        Ok(Some(listener))
    }

    async fn boot_progress(
        &self,
        machine: &str,
        started: SystemTime,
    ) -> Result<Option<BootProgress>, DriverError> {
        let directory = self.directory(machine)?.path().to_owned();
        let observe = move || {
            provisioning::observe(provisioning::Places {
                agent: &directory.join(AGENT_SOCKET),
                serial: &directory.join(SERIAL_LOG),
                started,
            })
        };
        let observed = tokio::task::spawn_blocking(observe).await;
        let wrong = |e| DriverError::again("watching the boot of", machine, e);
        observed.map(Some).map_err(wrong)
    }

    async fn console_log(&self, machine: &str, most: usize) -> Result<Vec<u8>, DriverError> {
        self.directory(machine)?.console_log(most).await
    }

    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<VolumeFile, DriverError> {
        self.files.ensure(volume).await
    }

    async fn remove_volume(&self, volume: &str) -> Result<(), DriverError> {
        self.files.remove(volume).await
    }

    async fn snapshot_volume(
        &self,
        volume: &str,
        snapshot: &str,
        machine: Option<&str>,
    ) -> Result<Content, DriverError> {
        let doing = "making a snapshot of";
        if let Some(machine) = machine {
            let directory = self.directory(machine)?;
            if let Some(client) = self.connect(doing, &directory).await? {
                let copy = |file| copy_disk(client, &directory, volume, file);
                return self.files.snapshot_live(volume, snapshot, copy).await;
            }
        }
        self.files.snapshot(volume, snapshot).await
    }

    async fn remove_content(&self, name: &str) -> Result<(), DriverError> {
        self.files.remove_content(name).await
    }
}

async fn copy_disk(
    mut client: ControlClient,
    directory: &Directory,
    disk: &str,
    file: PathBuf,
) -> Result<String, DriverError> {
    let doing = "copying a disk of";
    let request = Request::CopyDisk {
        disk: disk.to_owned(),
        file: file.display().to_string(),
    };
    match client.ask_long(&request, COPY).await {
        Ok(Reply::DiskCopied(copied)) => Ok(copied.format),
        Ok(_) => Err(failed(
            doing,
            directory,
            &"it gave an answer to something else",
        )),
        Err(error) => Err(failed(doing, directory, &error)),
    }
}

fn refused(doing: &'static str, directory: &Directory, error: &ControlError) -> DriverError {
    match error {
        ControlError::Refused(reason) => refused_by(doing, directory, reason),
        other => failed(doing, directory, other),
    }
}

fn refused_by(doing: &'static str, directory: &Directory, reason: &str) -> DriverError {
    DriverError::refused(doing, directory.machine(), reason)
}

/// What the files say of a machine without a process.
fn ended(files: &Files) -> Observed {
    let number = files.launch.number;
    if let Some(exit) = files.exit.as_ref().filter(|exit| exit.number == number) {
        let end = MachineEnd {
            how: Some(exit.how),
            message: exit.message.clone(),
            at_ms: Some(exit.at_ms),
        };
        return Observed::Ended { number, end };
    }
    match files.running.as_ref().filter(|run| run.number == number) {
        Some(_) => Observed::Ended {
            number,
            end: MachineEnd {
                how: None,
                message: "its process was killed, or the host was started anew".into(),
                at_ms: None,
            },
        },
        None => Observed::Prepared { number },
    }
}
