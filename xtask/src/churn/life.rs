//! The life of one instance, from its creation to its end, as a user leads it.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::client::Client;
use super::random::Random;

/// How long anything may take, on a busy host with a daemon that dies.
const PATIENCE: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(100);

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// From the request until the instance ran.
    pub to_running: Vec<Duration>,
    /// From the request until it was terminated.
    pub to_terminated: Vec<Duration>,
    pub stops: u64,
    pub reboots: u64,
    pub attachments: u64,
    pub snapshots: u64,
    /// Machines whose process was killed, and that were started again.
    pub deaths: u64,
    /// Ended before it ran.
    pub cut_short: u64,
    /// Times that a machine was seen to be the same process as before.
    pub same_process: u64,
}

impl Done {
    /// Both.
    pub fn add(&mut self, other: Self) {
        self.to_running.extend(other.to_running);
        self.to_terminated.extend(other.to_terminated);
        self.stops += other.stops;
        self.reboots += other.reboots;
        self.attachments += other.attachments;
        self.snapshots += other.snapshots;
        self.deaths += other.deaths;
        self.cut_short += other.cut_short;
        self.same_process += other.same_process;
    }
}

/// Where instances live, and what of.
pub struct Place<'a> {
    pub image: &'a str,
    /// The default one, unless another is named.
    pub subnet: Option<&'a str>,
}

/// A network with a subnet.
pub struct Network {
    id: String,
    /// Its subnet.
    pub subnet: String,
}

impl Network {
    /// Makes it.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn make(client: &Client, number: u64) -> Result<Self> {
        let make = |path: &str, body: Value| -> Result<String> {
            let key = format!("{path}-{number}");
            let made = client
                .ask("POST", path, Some(&body), Some(&key))?
                .done(path)?;
            Ok(made["id"]
                .as_str()
                .context("no id in the answer")?
                .to_owned())
        };
        let cidr = format!("10.{}.0.0/16", number % 200);
        let id = make("/v1/vpcs", json!({ "cidr": cidr }))?;
        let subnet = make("/v1/subnets", json!({ "vpc_id": id, "cidr": cidr }))?;
        Ok(Self { id, subnet })
    }

    /// Removes it, which nothing is in any more.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn remove(self, client: &Client) -> Result<()> {
        for path in [
            format!("/v1/subnets/{}", self.subnet),
            format!("/v1/vpcs/{}", self.id),
        ] {
            let answer = client.ask("DELETE", &path, None, None)?;
            // Of a daemon that was killed before it could answer.
            if answer.status != 404 {
                answer.done(&path)?;
            }
        }
        Ok(())
    }
}

/// One instance.
pub struct Life {
    client: Client,
    machines: PathBuf,
    random: Random,
    name: String,
    id: String,
    requests: u64,
    done: Done,
}

impl Life {
    /// Makes an instance, does with it what comes, and terminates it.
    ///
    /// # Errors
    /// It did not come to the state that was asked for, or the daemon refused.
    pub fn lead(
        client: Client,
        machines: PathBuf,
        random: Random,
        name: String,
        place: &Place,
    ) -> Result<Done> {
        let what = name.clone();
        let mut life = Self {
            client,
            machines,
            random,
            name,
            id: String::new(),
            requests: 0,
            done: Done::default(),
        };
        life.all(place)
            .with_context(|| format!("{what} ({})", life.id))?;
        Ok(life.done)
    }

    fn all(&mut self, place: &Place) -> Result<()> {
        let start = Instant::now();
        let body = json!({
            "image": place.image, "instance_type": "t2.nano", "tags": { "Name": self.name },
            "subnet_id": place.subnet,
        });
        let made = self.post("/v1/instances", &body)?.done("creating")?;
        let id = made["instances"][0]["id"].as_str();
        id.context("no instance in the answer")?
            .clone_into(&mut self.id);
        if self.random.below(8) == 0 {
            thread::sleep(self.random.time(Duration::from_secs(1)));
            self.done.cut_short += 1;
            return self.terminate();
        }
        self.until_state("running")?;
        self.done.to_running.push(start.elapsed());
        if self.random.below(2) == 0 {
            self.until("its kernel to print", |life| {
                let console = life.client.get(&life.path("/console"))?;
                Ok(console
                    .as_str()
                    .is_some_and(|text| text.contains("HOLM-READY")))
            })?;
        }
        for _ in 0..self.random.below(3) {
            match self.random.below(6) {
                0 => self.stop_and_start()?,
                1 => self.reboot()?,
                2 => self.volume()?,
                3 => self.snapshot()?,
                4 => self.die()?,
                _ => self.go_on()?,
            }
        }
        self.terminate()
    }

    fn path(&self, more: &str) -> String {
        format!("/v1/instances/{}{more}", self.id)
    }

    /// A request that is one, however often it is sent.
    fn post(&mut self, path: &str, body: &Value) -> Result<super::client::Answer> {
        self.requests += 1;
        let key = format!("{}-{}", self.name, self.requests);
        self.client.ask("POST", path, Some(body), Some(&key))
    }

    fn until(&self, what: &str, test: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !test(self)? {
            if Instant::now() > end {
                let now = self.client.get(&self.path(""))?;
                bail!("waited in vain for {what}: {now}");
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn until_state(&self, state: &str) -> Result<()> {
        self.until(state, |life| {
            let now = life.client.get(&life.path(""))?;
            let is = now["state"].as_str().unwrap_or_default();
            if is == "terminated" && is != state {
                bail!("it is terminated: {}", now["state_reason"]);
            }
            if is == "stopped" && state == "running" && !now["state_reason"].is_null() {
                let why = now["state_reason"].as_str().unwrap_or_default();
                if !why.starts_with("Client.UserInitiated") {
                    bail!("it stopped by itself: {why}");
                }
            }
            Ok(is == state)
        })
    }

    /// The process of its machine.
    fn process(&self) -> Option<u64> {
        let lock = fs::read(self.machines.join(&self.id).join("lock")).ok()?;
        let lock: Value = serde_json::from_slice(&lock).ok()?;
        lock["pid"].as_u64()
    }

    fn stop_and_start(&mut self) -> Result<()> {
        let force = self.random.below(2) == 0;
        let path = self.path("/stop");
        self.post(&path, &json!({ "force": force }))?
            .done("stopping")?;
        self.until_state("stopped")?;
        if self.process().is_some_and(is_alive) {
            bail!("it is stopped, and its process runs");
        }
        let start = Instant::now();
        let path = self.path("/start");
        self.post(&path, &json!({}))?.done("starting")?;
        self.until_state("running")?;
        self.done.to_running.push(start.elapsed());
        self.done.stops += 1;
        Ok(())
    }

    fn reboot(&mut self) -> Result<()> {
        let before = self.process();
        let path = self.path("/reboot");
        self.post(&path, &json!({}))?.done("rebooting")?;
        self.until("another process", |life| {
            let now = life.process();
            Ok(now.is_some() && now != before)
        })?;
        self.until_state("running")?;
        self.done.reboots += 1;
        Ok(())
    }

    /// A machine does not notice that the daemon dies.
    fn go_on(&mut self) -> Result<()> {
        let before = self.process();
        thread::sleep(self.random.time(Duration::from_secs(3)));
        let after = self.process();
        if before != after || !after.is_some_and(is_alive) {
            bail!("its process was {before:?} and is {after:?}");
        }
        self.done.same_process += 1;
        Ok(())
    }

    /// A volume that comes while the machine runs, and goes, perhaps over a stop.
    fn volume(&mut self) -> Result<()> {
        let made = self.post("/v1/volumes", &json!({ "size": 1 << 30 }))?;
        let made = made.done("making a volume")?;
        let volume = made["id"]
            .as_str()
            .context("no volume in the answer")?
            .to_owned();
        let at = format!("/v1/volumes/{volume}");
        let is = |life: &Self, state: &str| -> Result<bool> {
            let now = life.client.get(&at)?;
            Ok(now["state"] == state)
        };
        self.until("the volume", |life| is(life, "available"))?;
        let attach = json!({ "instance_id": self.id });
        let answer = self.post(&format!("{at}/attach"), &attach)?;
        let now = self.client.get(&at)?;
        if now["attachment"]["instance_id"] != self.id.as_str() {
            answer.done("attaching")?;
        }
        self.until("the attachment", |life| {
            Ok(life.client.get(&at)?["attachment"]["state"] == "attached")
        })?;
        if self.random.below(3) == 0 {
            self.stop_and_start()?;
        }
        // The guest may still boot, and not listen to the button of its slot.
        let force = self.random.below(2) == 0;
        let answer = self.post(&format!("{at}/detach"), &json!({ "force": force }))?;
        if !self.client.get(&at)?["attachment"].is_null() {
            answer.done("detaching")?;
        }
        self.until("the volume to be free", |life| is(life, "available"))?;
        self.client.ask("DELETE", &at, None, None)?;
        self.until("the volume to be gone", |life| {
            let now = life.client.ask("GET", &at, None, None)?;
            Ok(now.status == 404)
        })?;
        self.done.attachments += 1;
        Ok(())
    }

    /// A snapshot of the root volume while the machine runs.
    fn snapshot(&mut self) -> Result<()> {
        let now = self.client.get(&self.path(""))?;
        let volume = now["disks"][0]["volume_id"].clone();
        let made = self.post("/v1/snapshots", &json!({ "volume_id": volume }))?;
        let made = made.done("making a snapshot")?;
        let id = made["id"].as_str().context("no snapshot in the answer")?;
        let at = format!("/v1/snapshots/{id}");
        self.until("the snapshot", |life| {
            let now = life.client.get(&at)?;
            if now["state"] == "error" {
                bail!("the snapshot failed: {now}");
            }
            Ok(now["state"] == "completed")
        })?;
        self.client.ask("DELETE", &at, None, None)?;
        self.until("the snapshot to be gone", |life| {
            let now = life.client.ask("GET", &at, None, None)?;
            Ok(now.status == 404)
        })?;
        self.done.snapshots += 1;
        Ok(())
    }

    /// Its process is killed: soon after its start it stays stopped, with the
    /// reason, until it is started; later it is started again.
    fn die(&mut self) -> Result<()> {
        let before = self.process();
        let process = before.and_then(|pid| i32::try_from(pid).ok());
        let process = process.and_then(rustix::process::Pid::from_raw);
        let process = process.context("it has no process")?;
        rustix::process::kill_process(process, rustix::process::Signal::KILL)?;
        self.until("its end to be seen", |life| {
            let another = life.process().is_some_and(|pid| Some(pid) != before);
            Ok(another || life.client.get(&life.path(""))?["state"] == "stopped")
        })?;
        let now = self.client.get(&self.path(""))?;
        self.done.deaths += 1;
        if now["state"] != "stopped" {
            return self.until_state("running");
        }
        let why = now["state_reason"].as_str().unwrap_or_default();
        if !why.contains("killed") {
            bail!("it was killed, and the reason is {why:?}");
        }
        let path = self.path("/start");
        self.post(&path, &json!({}))?.done("starting")?;
        self.until_state("running")
    }

    fn terminate(&mut self) -> Result<()> {
        let start = Instant::now();
        let path = self.path("");
        self.client
            .ask("DELETE", &path, None, None)?
            .done("terminating")?;
        self.until_state("terminated")?;
        self.done.to_terminated.push(start.elapsed());
        if self.machines.join(&self.id).exists() {
            bail!("it is terminated, and its files are there");
        }
        Ok(())
    }
}

/// A process of this number is there, and is no corpse.
fn is_alive(process: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some(None | Some('Z' | 'X')))
}
