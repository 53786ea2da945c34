//! `holm top`: what each machine uses of the host.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use machine_protocol::launch::CONTROL_SOCKET;
use machine_protocol::{Description, Metrics};
use serde::Serialize;

use super::client::Client;
use super::{place, state};
use crate::exit_code;
use crate::form::{self, Output};
use crate::plane;
use crate::state_directory;

/// Longest time over which a single sample is taken.
const SAMPLE: Duration = Duration::from_secs(1);

/// `holm top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Time over which rates are taken, and between two pictures (--interval 5s)
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = crate::values::duration)]
    pub interval: Duration,

    /// One picture only; so it is, too, where standard output is no terminal, and with -o
    #[arg(long)]
    pub once: bool,

    /// Form of the answer
    #[command(flatten)]
    pub output: Output,
}

/// What a machine uses. Rates are of the time since the sample before.
#[derive(Debug, Serialize)]
struct Usage {
    name: String,
    /// Of one that a daemon keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    state: &'static str,
    cpus: u32,
    /// 100 is one CPU of the host.
    cpu_percent: f64,
    /// Memory of the host that its process has, with its part of what machines
    /// share; unknown of one that an older holm runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_used_bytes: Option<u64>,
    memory_size_bytes: u64,
    disk_read_bytes_per_second: u64,
    disk_written_bytes_per_second: u64,
    network_received_bytes_per_second: u64,
    network_sent_bytes_per_second: u64,
    uptime_seconds: u64,
}

/// Where a machine is asked.
struct Place {
    name: String,
    id: Option<String>,
    socket: PathBuf,
}

/// Counters at an instant.
struct Reading {
    at: Instant,
    description: Description,
    cpu: Duration,
    memory: Option<u64>,
    disk: [u64; 2],
    network: [u64; 2],
}

/// Shows what machines use until it is interrupted, or once.
pub fn run(arguments: &Top) -> u8 {
    let once = arguments.once || !arguments.output.is_text() || !form::on_terminal();
    let mut before = read_all();
    loop {
        std::thread::sleep(match once {
            true => arguments.interval.min(SAMPLE),
            false => arguments.interval,
        });
        let now = read_all();
        let of = |place: &Place| {
            before
                .iter()
                .find(|(other, _)| other.socket == place.socket)
        };
        let usages: Vec<Usage> = now
            .iter()
            .map(|(place, reading)| usage(place, of(place).map(|(_, r)| r), reading))
            .collect();
        if once {
            form::print(arguments.output, &usages, || text(&usages));
            return exit_code::SUCCESS;
        }
        form::draw(&text(&usages));
        before = now;
    }
}

fn places() -> Vec<Place> {
    let alone = place::names().unwrap_or_default().into_iter();
    let alone = alone.map(|name| Place {
        socket: place::directory(&name).join(CONTROL_SOCKET),
        id: None,
        name,
    });
    let layout = host::Layout::new(state_directory::resolve(None));
    let kept = plane::instances::all().unwrap_or_default().into_iter();
    let kept = kept.filter(|i| i.state == "running").map(|i| Place {
        name: i.name.unwrap_or_default(),
        socket: layout.machine(&i.id).join(CONTROL_SOCKET),
        id: Some(i.id),
    });
    kept.chain(alone).collect()
}

fn read_all() -> Vec<(Place, Reading)> {
    // Who does not answer is ending.
    let read = |place: Place| Some((read(&place)?, place));
    let all = places().into_iter().filter_map(read);
    all.map(|(reading, place)| (place, reading)).collect()
}

fn read(place: &Place) -> Option<Reading> {
    let mut client = Client::at(&place.name, &place.socket).ok()?;
    let description = client.describe().ok()?;
    let metrics = client.metrics().ok()?;
    let both = |name: &str, label: [&str; 2]| label.map(|v| sum(&metrics, name, Some(v)));
    Some(Reading {
        at: Instant::now(),
        cpu: cpu_time(description.pid).unwrap_or_default(),
        memory: Some(sum(&metrics, "holm_memory_resident_bytes", None)).filter(|m| *m > 0),
        disk: both("holm_disk_bytes_total", ["read", "write"]),
        network: both("holm_nic_bytes_total", ["received", "sent"]),
        description,
    })
}

/// Of the samples that have a label of this value, or of all.
fn sum(metrics: &Metrics, name: &str, value: Option<&str>) -> u64 {
    let samples = metrics.samples.get(name).into_iter().flatten();
    let samples = samples.filter(|s| value.is_none_or(|v| s.labels.iter().any(|l| l.1 == v)));
    samples.map(|s| s.value).fold(0, u64::saturating_add)
}

/// CPU time that a process has used (proc(5), `stat`).
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_secs_f64(
        (user + system) as f64 / ticks as f64,
    ))
}

fn usage(place: &Place, before: Option<&Reading>, now: &Reading) -> Usage {
    // Of one that has just appeared no rate is known yet.
    let before = before.filter(|before| before.description.pid == now.description.pid);
    let passed = before.map_or(Duration::ZERO, |b| now.at.duration_since(b.at));
    let seconds = passed.as_secs_f64().max(0.001);
    let rate = |now: u64, before: Option<u64>| {
        let more = before.map_or(0, |before| now.saturating_sub(before));
        (more as f64 / seconds) as u64
    };
    let disk = |index: usize| rate(now.disk[index], before.map(|b| b.disk[index]));
    let network = |index: usize| rate(now.network[index], before.map(|b| b.network[index]));
    let used = before.map_or(Duration::ZERO, |b| now.cpu.saturating_sub(b.cpu));
    Usage {
        name: place.name.clone(),
        id: place.id.clone(),
        state: state(now.description.state),
        cpus: now.description.cpus,
        cpu_percent: (used.as_secs_f64() / seconds * 1000.0).round() / 10.0,
        memory_used_bytes: now.memory,
        memory_size_bytes: now.description.memory,
        disk_read_bytes_per_second: disk(0),
        disk_written_bytes_per_second: disk(1),
        network_received_bytes_per_second: network(0),
        network_sent_bytes_per_second: network(1),
        uptime_seconds: now.description.uptime_seconds,
    }
}

fn text(usages: &[Usage]) -> String {
    let names = [
        "NAME",
        "ID",
        "STATE",
        "CPU%",
        "MEMORY",
        "OF",
        "READ/S",
        "WRITTEN/S",
        "IN/S",
        "OUT/S",
        "UP",
    ];
    let rows = usages.iter().map(|u| {
        [
            u.name.clone(),
            u.id.clone().unwrap_or_default(),
            u.state.to_owned(),
            format!("{:.1}", u.cpu_percent),
            u.memory_used_bytes.map_or_else(|| "-".into(), form::bytes),
            form::bytes(u.memory_size_bytes),
            form::bytes(u.disk_read_bytes_per_second),
            form::bytes(u.disk_written_bytes_per_second),
            form::bytes(u.network_received_bytes_per_second),
            form::bytes(u.network_sent_bytes_per_second),
            form::time(u.uptime_seconds),
        ]
    });
    form::table(names, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_time() {
        let pid = std::process::id();
        assert!(cpu_time(pid).is_some());
        assert!(cpu_time(u32::MAX).is_none());
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let mut metrics = Metrics::default();
        let labels = |d: &str| [("disk", "a".to_owned()), ("operation", d.to_owned())];
        metrics.add("holm_disk_bytes_total", &labels("read"), 5);
        metrics.add("holm_disk_bytes_total", &labels("read"), 6);
        metrics.add("holm_disk_bytes_total", &labels("write"), 7);
        assert_eq!(sum(&metrics, "holm_disk_bytes_total", Some("read")), 11);
        assert_eq!(sum(&metrics, "holm_disk_bytes_total", None), 18);
        assert_eq!(sum(&metrics, "none", Some("read")), 0);
    }
}
