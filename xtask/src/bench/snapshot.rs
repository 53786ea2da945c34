//! Snapshots of an idle `debian` of 4 GiB: how long the guest stands, what a
//! snapshot takes, how soon a machine runs again, and what many machines from
//! one snapshot cost their host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::figures::Figures;
use super::sides::{PATIENCE, Side, Sides};
use crate::console::Console;
use crate::host;
use crate::image::{self, Name};

/// Machines from one snapshot at once.
const CLONES: [usize; 3] = [1, 10, 50];
/// Time over which their CPU is measured.
const IDLE: Duration = Duration::from_secs(10);
/// Time for restored guests to be idle again.
const CALM: Duration = Duration::from_secs(5);

impl Sides {
    /// All of it; only Holm's side.
    ///
    /// # Errors
    /// If a guest does not get there.
    pub fn snapshot(&self, side: Side, figures: &mut Figures) -> Result<()> {
        if side != Side::Holm {
            return Ok(());
        }
        image::make(Name::Debian, false)?;
        let place = host::cache()?.join(format!("bench/snapshot-{}", std::process::id()));
        fs::create_dir_all(&place).context("making the benchmark's directory")?;
        let done = self.snapshot_at(&place, figures);
        // What failed before is the error to tell.
        let _ = fs::remove_dir_all(&place);
        done
    }

    fn at(&self, place: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.holm);
        command.args(arguments).env("XDG_RUNTIME_DIR", place);
        command
    }

    fn snapshot_at(&self, place: &Path, figures: &mut Figures) -> Result<()> {
        let mut run = self.at(
            place,
            &[
                "run", "debian", "--cpus", "2", "--memory", "4G", "--name", "bench",
            ],
        );
        let mut console = Console::start(run.args(&self.options))?;
        console.expect("debian login: ", PATIENCE)?;
        console.send("root\n")?;
        console.expect("root@debian:~# ", PATIENCE)?;
        thread::sleep(CALM);
        let idle = self.take(place, "idle", &[])?;
        add(figures, "idle, full", &idle);
        add(
            figures,
            "idle, incremental",
            &self.take(place, "more", &["--incremental"])?,
        );
        // A guest that writes memory as fast as it can, a gigabyte in all.
        console.send(
            "mount -o remount,size=3G /dev/shm; head -c 1G /dev/zero | tr '\\0' x > /dev/shm/a; \
             (while true; do dd if=/dev/shm/a of=/dev/shm/b bs=1M conv=notrunc 2>/dev/null; done) & \
             echo BU\"SY\"\n",
        )?;
        console.expect("BUSY", PATIENCE)?;
        thread::sleep(CALM);
        add(
            figures,
            "writing 1 GiB, full",
            &self.take(place, "busy", &[])?,
        );
        host::output(&mut self.at(place, &["kill", "bench"]))?;
        console.finish(PATIENCE)?;
        for (snapshot, what) in [("idle", "idle"), ("busy", "writing 1 GiB")] {
            for _ in 0..5 {
                let took = self.restore(&place.join(snapshot))?;
                let name = format!("{what}: exec to running, ms");
                figures.add("snapshot", &name, Side::Holm, took.as_secs_f64() * 1e3);
            }
        }
        for clones in CLONES {
            self.density(place, clones, figures)?;
        }
        Ok(())
    }

    fn take(&self, place: &Path, name: &str, more: &[&str]) -> Result<serde_json::Value> {
        let directory = place.join(name).display().to_string();
        let mut command = self.at(
            place,
            &["snapshot", "create", "bench", &directory, "-o", "json"],
        );
        let made = host::output(command.args(more))?;
        serde_json::from_str(&made).context("reading the answer of holm snapshot")
    }

    /// Time from the start of `holm restore` until the guest's vCPUs run.
    fn restore(&self, snapshot: &Path) -> Result<Duration> {
        let start = Instant::now();
        let mut child = Command::new(&self.holm)
            .arg("restore")
            .arg(snapshot)
            .args(["--serial", "null"])
            .env("HOLM_LOG", "holm=info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting holm restore")?;
        let lines = child.stderr.take().map(BufReader::new);
        let mut machine = Machines(vec![child]);
        for line in lines.into_iter().flat_map(BufRead::lines) {
            if line
                .context("reading what holm says")?
                .contains("the guest runs")
            {
                return Ok(start.elapsed());
            }
        }
        let status = machine.0.pop().map(|mut child| child.wait());
        bail!("holm restore ended: {status:?}")
    }

    /// Memory and CPU of idle machines from one snapshot.
    fn density(&self, place: &Path, clones: usize, figures: &mut Figures) -> Result<()> {
        let snapshot = place.join("idle").display().to_string();
        let mut machines = Machines(Vec::new());
        for n in 0..clones {
            let name = format!("clone{n}");
            let mut command = self.at(
                place,
                &["restore", &snapshot, "--clone", "--serial", "null"],
            );
            command.args(["--name", &name]).stdin(Stdio::null());
            machines
                .0
                .push(command.spawn().context("starting a clone")?);
        }
        let end = Instant::now() + PATIENCE;
        for n in 0..clones {
            let name = format!("clone{n}");
            while host::output(&mut self.at(place, &["show", &name])).is_err() {
                if Instant::now() > end {
                    bail!("{name} does not run");
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
        thread::sleep(CALM);
        let before = machines.cpu()?;
        thread::sleep(IDLE);
        let cpu = (machines.cpu()? - before) / IDLE.as_secs_f64() / clones as f64 * 100.0;
        let memory = machines.memory()? / clones as f64;
        let mut add = |what: &str, value| {
            let name = format!("{clones} idle: {what}");
            figures.add("snapshot", &name, Side::Holm, value);
        };
        add("MiB each (PSS)", memory);
        add("% of a CPU each", cpu);
        Ok(())
    }
}

fn add(figures: &mut Figures, what: &str, made: &serde_json::Value) {
    let value = |field: &str| made[field].as_u64().unwrap_or_default() as f64;
    let mut add = |name: &str, value: f64| {
        figures.add("snapshot", &format!("{what}: {name}"), Side::Holm, value);
    };
    add("stands, ms", value("stopped_us") / 1e3);
    add("takes, s", value("took_us") / 1e6);
    add("memory, MiB", value("memory_bytes") / f64::from(1 << 20));
}

/// Killed when dropped.
struct Machines(Vec<Child>);

impl Machines {
    fn file(child: &Child, name: &str) -> Result<String> {
        let path = PathBuf::from(format!("/proc/{}/{name}", child.id()));
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// CPU time of all, in seconds.
    fn cpu(&self) -> Result<f64> {
        let mut ticks = 0.0;
        for child in &self.0 {
            let stat = Self::file(child, "stat")?;
            // Fields 14 and 15; the name in field 2 may hold spaces.
            let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            let numbers = fields.split_whitespace().skip(11).take(2);
            ticks += numbers.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>();
        }
        // USER_HZ is 100 on every Linux.
        Ok(ticks / 100.0)
    }

    /// Their part of the host's memory, in MiB: shared pages by halves, thirds
    /// and so on. The snapshot's pages count while they are mapped.
    fn memory(&self) -> Result<f64> {
        let mut kib = 0.0;
        for child in &self.0 {
            let rollup = Self::file(child, "smaps_rollup")?;
            let pss = rollup.lines().find_map(|l| l.strip_prefix("Pss:"));
            let number = pss.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
            kib += number.context("smaps_rollup has no Pss")?;
        }
        Ok(kib / 1024.0)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
