//! What each request does.

use std::path::Path;
use std::time::Duration;

use machine_protocol::vpc::PortReport;
use machine_protocol::{
    Description, DiskCopied, DiskReport, ErrorCode, EventKind, Metrics, NicReport, Reply, Request,
    RunState, SnapshotMade,
};

use net::vpc::VpcNetwork;
use serde::Deserialize;
use virtio::net::NetHandle;

use crate::control::Event;
use crate::description::Disk;
use crate::hotplug::AttachedNic;
use crate::machine::Inner;
use crate::nic::Nic;
use crate::outcome::MachineError;
use crate::storage::DiskPort;

/// Does a request; never waits for the guest.
pub(super) fn answer(machine: &Inner, request: &Request) -> Reply {
    if machine.control().has_ended() {
        return Reply::Error {
            code: ErrorCode::Failed,
            message: "the machine has ended".into(),
        };
    }
    match request {
        Request::Describe {} => return Reply::Description(describe(machine)),
        Request::Metrics {} => return metrics(machine),
        Request::Snapshot {
            directory,
            incremental,
        } => return snapshot(machine, Path::new(directory), *incremental),
        Request::CopyDisk { disk, file } => return copy_disk(machine, disk, Path::new(file)),
        Request::AttachDisk { disk } => {
            return match attach(machine, disk) {
                Ok(disk) => Reply::Attached { disk },
                Err(message) => refused(message),
            };
        }
        Request::DetachDisk { disk, force } => {
            return done(machine.detach_disk(disk, *force));
        }
        Request::AttachNic { nic } => {
            return match attach_nic(machine, nic) {
                Ok(nic) => Reply::NicAttached { nic },
                Err(message) => refused(message),
            };
        }
        Request::DetachNic { nic, force } => return done(machine.detach_nic(nic, *force)),
        Request::ConfigureNic { nic, port } => {
            return match machine.configure_nic(*nic, (**port).clone()) {
                Ok(report) => Reply::NicConfigured(report),
                Err(error) => refused(error.to_string()),
            };
        }
        Request::SetLink { nic, up } => return done(machine.set_link(nic, *up)),
        Request::GrowDisk { disk, size } => return done(machine.grow_disk(disk, *size)),
        Request::Pause {} => return done(machine.pause()),
        Request::Resume {} => machine.resume(),
        Request::PowerButton {} => machine.board().press_power_button(),
        Request::Reset {} => machine.control().post(Event::Reset),
        // Done by the session, after the answer.
        Request::Kill {} => {}
        Request::Nmi {} => machine.control().nmi(0),
        Request::Balloon { memory } => return balloon(machine, *memory),
        Request::Events { after, .. } => return Reply::Events(machine.events().after(*after)),
        Request::Console { .. }
        | Request::Type { .. }
        | Request::TakeKeyboard {}
        | Request::ConsoleSize { .. } => {
            return Reply::Error {
                code: ErrorCode::Failed,
                message: "this connection is not attached to the console; ask for `console` first"
                    .into(),
            };
        }
    }
    Reply::Done
}

fn balloon(machine: &Inner, memory: u64) -> Reply {
    let Some(balloon) = &machine.board().peripherals().balloon else {
        return Reply::Error {
            code: ErrorCode::Failed,
            message: "this machine has no balloon; start it with --balloon on".into(),
        };
    };
    balloon.set_memory(memory);
    machine.events().note(EventKind::BalloonTarget { memory });
    Reply::Done
}

fn refused(message: String) -> Reply {
    Reply::Error {
        code: ErrorCode::Failed,
        message,
    }
}

fn done(result: Result<(), MachineError>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => refused(error.to_string()),
    }
}

fn attach(machine: &Inner, disk: &serde_json::Value) -> Result<String, String> {
    let disk = Disk::deserialize(disk).map_err(|e| format!("the disk is not described: {e}"))?;
    if !disk.file.is_absolute() {
        return Err("a disk's file is named by its absolute path".into());
    }
    machine.attach_disk(&disk).map_err(|e| e.to_string())
}

fn attach_nic(machine: &Inner, nic: &serde_json::Value) -> Result<String, String> {
    let nic = Nic::deserialize(nic).map_err(|e| format!("the card is not described: {e}"))?;
    let capture = nic.capture.as_ref();
    if capture.is_some_and(|capture| !capture.file.is_absolute()) {
        return Err("a capture file is named by its absolute path".into());
    }
    machine.attach_nic(&nic).map_err(|e| e.to_string())
}

fn snapshot(machine: &Inner, directory: &Path, incremental: bool) -> Reply {
    let failed = |message: String| Reply::Error {
        code: ErrorCode::Failed,
        message,
    };
    if !directory.is_absolute() {
        return failed("a snapshot's directory is named by its absolute path".into());
    }
    let microseconds = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    match crate::snapshot::create(machine, directory, incremental) {
        Ok(made) => {
            machine.events().note(EventKind::SnapshotTaken {
                directory: directory.display().to_string(),
            });
            Reply::Snapshot(SnapshotMade {
                id: made.id,
                stopped_us: microseconds(made.stopped),
                took_us: microseconds(made.took),
                memory_bytes: made.memory,
            })
        }
        Err(error) => failed(error.to_string()),
    }
}

fn copy_disk(machine: &Inner, disk: &str, file: &Path) -> Reply {
    if !file.is_absolute() {
        return refused("a copy is named by its absolute path".into());
    }
    let microseconds = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    match crate::snapshot::copy_disk(machine, disk, file) {
        Ok(made) => Reply::DiskCopied(DiskCopied {
            format: made.format.name().into(),
            stopped_us: microseconds(made.stopped),
            took_us: microseconds(made.took),
        }),
        Err(error) => refused(error.to_string()),
    }
}

fn describe(machine: &Inner) -> Description {
    let d = machine.description();
    let mut generation_id = [0; 16];
    // Zero if the machine is too small to have one.
    let _ = machine
        .ram()
        .read(arch::layout::GENERATION_ID, &mut generation_id);
    let state = match machine.control().is_paused() {
        true => RunState::Paused,
        false if machine.uptime().is_none() => RunState::Created,
        false => RunState::Running,
    };
    Description {
        pid: std::process::id(),
        state,
        engine: machine.engine_name().into(),
        cpus: d.cpus,
        memory: d.memory,
        disks: machine.board().disks().iter().map(disk).collect(),
        nics: d.nics.iter().map(|nic| nic.network.to_string()).collect(),
        attached_nics: machine.board().attached_nics().iter().map(nic).collect(),
        links_down: links_down(machine),
        ports: ports(machine),
        uptime_seconds: machine.uptime().map_or(0, |t| t.as_secs()),
        uuid: hexadecimal(d.uuid),
        generation_id: hexadecimal(generation_id),
        guest_update: machine.guest_update(),
    }
}

fn links_down(machine: &Inner) -> Vec<String> {
    let cards = machine.board().named_cards().into_iter();
    let down = cards.filter(|(_, port)| !port.card.link_up());
    down.map(|(name, _)| name).collect()
}

fn ports(machine: &Inner) -> Vec<PortReport> {
    let nics = (0u32..).zip(machine.board().nics());
    nics.filter_map(|(nic, port)| Some(port.vpc.as_ref()?.report(nic)))
        .collect()
}

fn port_metrics(nic: usize, port: &VpcNetwork, metrics: &mut Metrics) {
    let nic = || ("nic", nic.to_string());
    let m = port.metrics();
    for (direction, packets, bytes) in [
        ("sent", m.vpc_sent_packets, m.vpc_sent_bytes),
        ("received", m.vpc_received_packets, m.vpc_received_bytes),
    ] {
        let labels = [nic(), ("direction", direction.into())];
        metrics.add("holm_port_packets_total", &labels, packets);
        metrics.add("holm_port_bytes_total", &labels, bytes);
    }
    for (name, count) in m.iter() {
        if let Some(reason) = name.strip_prefix("dropped_") {
            let labels = [nic(), ("reason", reason.into())];
            metrics.add("holm_port_dropped_packets_total", &labels, count);
        }
    }
    metrics.add("holm_port_tracked_flows", &[nic()], m.tracked_now);
    metrics.add("holm_port_names_answered_total", &[nic()], m.dns_own);
    let gateway = port.gateway_metrics();
    for (direction, count) in [("out", gateway.tcp_out), ("in", gateway.tcp_in)] {
        let labels = [nic(), ("direction", direction.into())];
        metrics.add("holm_port_gateway_connections_total", &labels, count);
    }
}

fn disk(port: &DiskPort) -> DiskReport {
    DiskReport {
        name: port.name.clone(),
        file: port.disk.file.display().to_string(),
        size: port.size(),
        read_only: port.disk.read_only,
        serial: port.disk.serial.clone().unwrap_or_default(),
        attached: port.disk.port.is_some(),
        in_use: port.control.is_in_use(),
        failure: port.failure(),
    }
}

fn nic(attached: &AttachedNic) -> NicReport {
    NicReport {
        name: attached.name().to_owned(),
        network: attached.nic.network.to_string(),
        mac: attached.port.card.mac().to_string(),
        in_use: attached.in_use,
    }
}

fn nic_metrics(name: &str, card: &NetHandle, metrics: &mut Metrics) {
    let stats = card.stats();
    let up = u64::from(card.link_up());
    metrics.add("holm_nic_link_up", &[("nic", name.to_owned())], up);
    for (direction, d) in [("received", stats.received), ("sent", stats.sent)] {
        let labels = [("nic", name.to_owned()), ("direction", direction.into())];
        metrics.add("holm_nic_packets_total", &labels, d.packets);
        metrics.add("holm_nic_bytes_total", &labels, d.bytes);
        metrics.add("holm_nic_errors_total", &labels, d.errors);
        metrics.add("holm_nic_drops_total", &labels, d.drops);
    }
}

fn disk_metrics(port: &DiskPort, metrics: &mut Metrics) {
    let stats = port.control.stats();
    let disk = || ("disk", port.name.clone());
    for (operation, count, bytes) in [
        ("read", stats.reads, stats.read_bytes),
        ("write", stats.writes, stats.written_bytes),
    ] {
        let labels = [disk(), ("operation", operation.into())];
        metrics.add("holm_disk_operations_total", &labels, count);
        metrics.add("holm_disk_bytes_total", &labels, bytes);
    }
    for (operation, count) in [("flush", stats.flushes), ("discard", stats.discards)] {
        let labels = [disk(), ("operation", operation.into())];
        metrics.add("holm_disk_operations_total", &labels, count);
    }
    metrics.add("holm_disk_errors_total", &[disk()], stats.errors);
    metrics.add("holm_disk_throttled_total", &[disk()], stats.throttled);
    metrics.add("holm_disk_size_bytes", &[disk()], port.size());
}

/// Memory of the host that this process has, its part of what it shares with
/// others included (proc_pid_smaps_rollup(5), `Pss`), in bytes.
fn host_memory() -> Option<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn hexadecimal(id: [u8; 16]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

fn metrics(machine: &Inner) -> Reply {
    let mut metrics = Metrics::default();
    for vcpu in 0..machine.cpus() {
        let Some(stats) = machine.control().on_vcpu(vcpu, |v| v.stats()) else {
            return Reply::Error {
                code: ErrorCode::Failed,
                message: "the machine has ended".into(),
            };
        };
        for (name, value) in stats.counters {
            let name = format!("holm_vcpu_{name}_total");
            metrics.add(&name, &[("vcpu", vcpu.to_string())], value);
        }
    }
    metrics.add("holm_memory_size_bytes", &[], machine.description().memory);
    if let Some(bytes) = host_memory() {
        metrics.add("holm_memory_resident_bytes", &[], bytes);
    }
    if let Some(uptime) = machine.uptime() {
        metrics.add("holm_uptime_seconds", &[], uptime.as_secs());
    }
    if let Some(balloon) = &machine.board().peripherals().balloon {
        let report = balloon.report();
        metrics.add("holm_balloon_target_bytes", &[], report.target);
        metrics.add("holm_balloon_taken_bytes", &[], report.actual);
        metrics.add("holm_balloon_reported_bytes_total", &[], report.reported);
    }
    for (index, port) in machine.board().nics().enumerate() {
        nic_metrics(&index.to_string(), &port.card, &mut metrics);
        if let Some(vpc) = &port.vpc {
            port_metrics(index, vpc, &mut metrics);
        }
    }
    for attached in machine.board().attached_nics() {
        nic_metrics(attached.name(), &attached.port.card, &mut metrics);
    }
    for port in machine.board().disks() {
        disk_metrics(&port, &mut metrics);
    }
    Reply::Metrics(metrics)
}
