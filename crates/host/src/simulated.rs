//! A host in memory: for tests of the management plane, at any scale. It is a
//! stand-in for no feature: what it says it did, it did to nothing real.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use machine_protocol::launch::{Ended, Launch};
use machine_protocol::vpc::PortConfig;
use machine_protocol::{Event, EventKind, RunState};
use parking_lot::Mutex;
use provisioning::BootProgress;
use tokio::net::UnixListener;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::driver::{
    Content, Driver, DriverError, Facts, Happened, Inventory, MachineEnd, Observed, VolumeFile,
    VolumeSource, VolumeSpec,
};

/// How a simulated host behaves.
#[derive(Clone, Debug)]
pub struct SimulatedConfig {
    /// Of its random numbers: the same seed, the same delays and failures.
    pub seed: u64,
    /// Longest time that a step takes.
    pub delay: Duration,
    /// Of a thousand steps, how many fail, half of them after they had an
    /// effect.
    pub failures: u32,
    /// Guests power off when the button is pressed.
    pub guests_listen: bool,
    /// Network cards are told of their networks, which is much work at scale.
    pub takes_ports: bool,
}

impl Default for SimulatedConfig {
    /// No delays, no failures.
    fn default() -> Self {
        Self {
            seed: 1,
            delay: Duration::ZERO,
            failures: 0,
            guests_listen: true,
            takes_ports: true,
        }
    }
}

/// A host in memory. Clones are the same host.
#[derive(Clone)]
pub struct Simulated {
    config: SimulatedConfig,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    random: u64,
    machines: BTreeMap<String, Machine>,
    volumes: BTreeMap<String, VolumeSpec>,
    contents: BTreeSet<String>,
    /// Seed disks, by machine.
    seeds: BTreeMap<String, Vec<u8>>,
    /// That cards have been in.
    networks: BTreeSet<String>,
    /// To the daemon that adopted the host last.
    changed: Option<UnboundedSender<Happened>>,
}

struct Machine {
    launch: Launch,
    end: Option<MachineEnd>,
    disks: BTreeSet<String>,
    /// Last configurations of its network cards.
    nics: BTreeMap<usize, PortConfig>,
    /// What it told.
    events: Vec<Event>,
}

impl Machine {
    fn end(&mut self, how: Option<Ended>) {
        self.end.get_or_insert(MachineEnd {
            how,
            message: "it was simulated".into(),
            at_ms: None,
        });
    }
}

impl Simulated {
    /// An empty host, and what happens to its machines.
    #[must_use]
    pub fn new(config: SimulatedConfig) -> (Self, UnboundedReceiver<Happened>) {
        let (changed, changes) = mpsc::unbounded_channel();
        let state = State {
            random: config.seed,
            changed: Some(changed),
            ..State::default()
        };
        let host = Self {
            config,
            state: Arc::new(Mutex::new(state)),
        };
        (host, changes)
    }

    /// The same host for another daemon, which is told of changes from now on,
    /// and again of what machines that run have told.
    #[must_use]
    pub fn adopted(&self) -> (Self, UnboundedReceiver<Happened>) {
        let (changed, changes) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        for (id, machine) in state.machines.iter().filter(|(_, m)| m.end.is_none()) {
            for event in &machine.events {
                let told = Some((machine.launch.number, event.clone()));
                let machine = id.clone();
                // The receiver is here.
                let _ = changed.send(Happened { machine, told });
            }
        }
        state.changed = Some(changed);
        drop(state);
        (self.clone(), changes)
    }

    /// Puts contents into the library.
    pub fn add_content(&self, digest: &str) {
        self.state.lock().contents.insert(digest.into());
    }

    /// The guest of a machine powers off by itself, or its process is killed
    /// (`None`).
    pub fn end(&self, machine: &str, how: Option<Ended>) {
        if let Some(machine) = self.state.lock().machines.get_mut(machine) {
            machine.end(how);
        }
        self.tell(machine);
    }

    /// Something happens to a machine, which tells it.
    pub fn happen(&self, machine: &str, kind: EventKind) {
        let mut state = self.state.lock();
        let Some(found) = state.machines.get_mut(machine) else {
            return;
        };
        let event = Event {
            number: found.events.len() as u64 + 1,
            at_milliseconds: 0,
            kind,
        };
        found.events.push(event.clone());
        let told = Some((found.launch.number, event));
        let machine = machine.to_owned();
        if let Some(changed) = &state.changed {
            // Without a receiver the daemon is gone.
            let _ = changed.send(Happened { machine, told });
        }
    }

    /// The launch of a machine that is there.
    #[must_use]
    pub fn launched(&self, machine: &str) -> Option<Launch> {
        let state = self.state.lock();
        state.machines.get(machine).map(|m| m.launch.clone())
    }

    /// The seed disk of a machine.
    #[must_use]
    pub fn seed(&self, machine: &str) -> Option<Vec<u8>> {
        self.state.lock().seeds.get(machine).cloned()
    }

    /// The last configuration of a network card of a machine.
    #[must_use]
    pub fn nic(&self, machine: &str, nic: usize) -> Option<PortConfig> {
        let state = self.state.lock();
        state.machines.get(machine)?.nics.get(&nic).cloned()
    }

    /// All that is there: machines, volumes and contents.
    #[must_use]
    pub fn left(&self) -> (Inventory, Vec<String>) {
        let state = self.state.lock();
        let inventory = Inventory {
            machines: state.machines.keys().cloned().collect(),
            volumes: state.volumes.keys().cloned().collect(),
            networks: state.networks.iter().cloned().collect(),
        };
        (inventory, state.contents.iter().cloned().collect())
    }

    fn tell(&self, machine: &str) {
        if let Some(changed) = &self.state.lock().changed {
            // Without a receiver the daemon is gone.
            let _ = changed.send(Happened::look(machine.to_owned()));
        }
    }

    /// Takes a step: with its delay, and perhaps with a failure.
    async fn step<T>(
        &self,
        doing: &'static str,
        what: &str,
        work: impl FnOnce(&mut State) -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        let (pause, fate) = {
            let mut state = self.state.lock();
            let longest = u64::try_from(self.config.delay.as_micros()).unwrap_or(u64::MAX);
            let pause = match longest {
                0 => 0,
                longest => state.random() % longest,
            };
            (Duration::from_micros(pause), state.random() % 1000)
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let failures = u64::from(self.config.failures);
        let failed = || DriverError::again(doing, what, "a simulated failure");
        if fate < failures / 2 {
            return Err(failed());
        }
        let done = work(&mut self.state.lock())?;
        match fate < failures {
            true => Err(failed()),
            false => Ok(done),
        }
    }
}

impl State {
    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn running(&mut self, machine: &str) -> Option<&mut Machine> {
        let machine = self.machines.get_mut(machine);
        machine.filter(|machine| machine.end.is_none())
    }

    /// Files of disks that a launch names and nobody has made.
    fn missing_disk(&self, launch: &Launch) -> Option<String> {
        let disks = launch.machine["disks"].as_array()?;
        let files = disks.iter().filter_map(|disk| disk["file"].as_str());
        let mut missing = files.filter(|file| {
            let volume = file.strip_prefix("/simulated/volumes/");
            let seed = file.strip_prefix("/simulated/machines/");
            let seed = seed.and_then(|file| file.strip_suffix("/seed.img"));
            !volume.is_some_and(|id| self.volumes.contains_key(id))
                && !seed.is_some_and(|id| self.seeds.contains_key(id))
        });
        missing.next().map(str::to_owned)
    }
}

/// Networks that a launch has cards in.
fn networks(launch: &Launch) -> impl Iterator<Item = String> {
    let cards = launch.machine["nics"].as_array().into_iter().flatten();
    cards.filter_map(|card| {
        let directory = card["network"]["vpc"]["directory"].as_str()?;
        directory.rsplit('/').next().map(str::to_owned)
    })
}

#[async_trait]
impl Driver for Simulated {
    async fn inventory(&self) -> Result<Inventory, DriverError> {
        let list = |state: &mut State| {
            Ok(Inventory {
                machines: state.machines.keys().cloned().collect(),
                volumes: state.volumes.keys().cloned().collect(),
                networks: state.networks.iter().cloned().collect(),
            })
        };
        self.step("listing", "everything", list).await
    }

    async fn observe(&self, machine: &str) -> Result<Observed, DriverError> {
        let observe = |state: &mut State| {
            let Some(found) = state.machines.get(machine) else {
                return Ok(Observed::Absent);
            };
            let number = found.launch.number;
            Ok(match found.end.clone() {
                Some(end) => Observed::Ended { number, end },
                None => Observed::Running {
                    number,
                    facts: Facts {
                        pid: 0,
                        engine: "simulated".into(),
                        state: RunState::Running,
                        since_ms: 0,
                        disks: found.disks.iter().cloned().collect(),
                    },
                },
            })
        };
        self.step("observing", machine, observe).await
    }

    async fn launch(&self, machine: &str, launch: &Launch) -> Result<(), DriverError> {
        let doing = "starting the machine";
        let start = |state: &mut State| {
            if state.running(machine).is_some() {
                return Ok(());
            }
            if let Some(file) = state.missing_disk(launch) {
                let reason = format!("there is no disk {file}");
                return Err(DriverError::refused(doing, machine, reason));
            }
            let disks = launch.machine["disks"].as_array().into_iter().flatten();
            let disks = disks.filter_map(|disk| disk["name"].as_str().map(str::to_owned));
            let started = Machine {
                launch: launch.clone(),
                end: None,
                disks: disks.collect(),
                nics: BTreeMap::new(),
                events: Vec::new(),
            };
            state.networks.extend(networks(launch));
            state.machines.insert(machine.to_owned(), started);
            Ok(())
        };
        self.step(doing, machine, start).await
    }

    async fn press_power_button(&self, machine: &str) -> Result<(), DriverError> {
        let listens = self.config.guests_listen;
        let press = |state: &mut State| {
            if let Some(machine) = state.running(machine).filter(|_| listens) {
                machine.end(Some(Ended::PoweredOff));
            }
            Ok(())
        };
        let pressed = self.step("pressing the power button of", machine, press);
        let pressed = pressed.await;
        self.tell(machine);
        pressed
    }

    async fn kill(&self, machine: &str) -> Result<(), DriverError> {
        let kill = |state: &mut State| {
            if let Some(machine) = state.running(machine) {
                machine.end(Some(Ended::Killed));
            }
            Ok(())
        };
        let killed = self.step("ending the machine", machine, kill).await;
        self.tell(machine);
        killed
    }

    async fn remove(&self, machine: &str) -> Result<(), DriverError> {
        let doing = "removing the files of";
        let remove = |state: &mut State| {
            if state.running(machine).is_some() {
                return Err(DriverError::again(doing, machine, "it runs"));
            }
            state.machines.remove(machine);
            Ok(())
        };
        self.step(doing, machine, remove).await
    }

    async fn attach_disk(
        &self,
        machine: &str,
        disk: &serde_json::Value,
    ) -> Result<(), DriverError> {
        let doing = "attaching a disk to";
        let attach = |state: &mut State| {
            let Some(machine) = state.running(machine) else {
                return Err(DriverError::again(doing, machine, "it does not run"));
            };
            let name = disk["name"].as_str().unwrap_or_default();
            machine.disks.insert(name.to_owned());
            Ok(())
        };
        self.step(doing, machine, attach).await
    }

    async fn detach_disk(
        &self,
        machine: &str,
        name: &str,
        _force: bool,
    ) -> Result<(), DriverError> {
        let detach = |state: &mut State| {
            if let Some(machine) = state.running(machine) {
                machine.disks.remove(name);
            }
            Ok(())
        };
        self.step("detaching a disk from", machine, detach).await
    }

    async fn grow_disk(&self, machine: &str, name: &str, _size: u64) -> Result<(), DriverError> {
        self.step(
            "growing a disk of",
            &format!("{machine} {name}"),
            |_| Ok(()),
        )
        .await
    }

    async fn configure_nic(
        &self,
        machine: &str,
        nic: usize,
        port: &PortConfig,
    ) -> Result<(), DriverError> {
        let configure = |state: &mut State| {
            if let Some(machine) = state.running(machine) {
                machine.nics.insert(nic, port.clone());
            }
            Ok(())
        };
        let doing = "configuring the network card of";
        self.step(doing, machine, configure).await
    }

    fn takes_ports(&self) -> bool {
        self.config.takes_ports
    }

    async fn remove_network(&self, network: &str) -> Result<(), DriverError> {
        let remove = |state: &mut State| {
            state.networks.remove(network);
            Ok(())
        };
        self.step("removing the files of", network, remove).await
    }

    async fn place_seed(&self, machine: &str, volume: &[u8]) -> Result<(), DriverError> {
        let place = |state: &mut State| {
            state.seeds.insert(machine.to_owned(), volume.to_vec());
            Ok(())
        };
        self.step("writing a file of", machine, place).await
    }

    async fn metadata_listener(&self, _: &str) -> Result<Option<UnixListener>, DriverError> {
        Ok(None)
    }

    async fn boot_progress(
        &self,
        _: &str,
        _: SystemTime,
    ) -> Result<Option<BootProgress>, DriverError> {
        Ok(None)
    }

    async fn console_log(&self, machine: &str, most: usize) -> Result<Vec<u8>, DriverError> {
        let read = |state: &mut State| {
            let text = match state.machines.get(machine) {
                Some(_) => b"a simulated guest\n".to_vec(),
                None => Vec::new(),
            };
            Ok(text.into_iter().take(most).collect())
        };
        self.step("reading the console of", machine, read).await
    }

    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<VolumeFile, DriverError> {
        let doing = "making the volume";
        let make = |state: &mut State| {
            if let VolumeSource::Content(digest) = &volume.source
                && !state.contents.contains(digest)
                && !state.volumes.contains_key(&volume.id)
            {
                let reason = format!("there are no contents {digest}");
                return Err(DriverError::refused(doing, &volume.id, reason));
            }
            if volume.source == VolumeSource::Made && !state.volumes.contains_key(&volume.id) {
                return Err(DriverError::refused(doing, &volume.id, "its file is gone"));
            }
            let there = state.volumes.entry(volume.id.clone());
            let there = there.or_insert_with(|| volume.clone());
            there.size = there.size.max(volume.size);
            Ok(VolumeFile {
                path: PathBuf::from(format!("/simulated/volumes/{}", volume.id)),
                format: "raw".into(),
            })
        };
        self.step(doing, &volume.id, make).await
    }

    async fn remove_volume(&self, volume: &str) -> Result<(), DriverError> {
        let remove = |state: &mut State| {
            state.volumes.remove(volume);
            Ok(())
        };
        self.step("removing the volume", volume, remove).await
    }

    async fn snapshot_volume(
        &self,
        volume: &str,
        snapshot: &str,
        _machine: Option<&str>,
    ) -> Result<Content, DriverError> {
        let doing = "making a snapshot of";
        let keep = |state: &mut State| {
            if !state.volumes.contains_key(volume) {
                return Err(DriverError::refused(
                    doing,
                    volume,
                    "there is no such volume",
                ));
            }
            let name = snapshot.to_owned();
            state.contents.insert(name.clone());
            Ok(Content { name, stored: 0 })
        };
        self.step(doing, volume, keep).await
    }

    async fn remove_content(&self, name: &str) -> Result<(), DriverError> {
        let remove = |state: &mut State| {
            state.contents.remove(name);
            Ok(())
        };
        self.step("removing the contents", name, remove).await
    }
}
