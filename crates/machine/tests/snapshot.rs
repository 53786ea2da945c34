//! Snapshots of small machines: made, incremental, restored; those of older
//! formats; damaged and hostile ones.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{CpuChoice, CpuModel, Description, Machine, MachineError, RunState, Snapshot};
use serde_json::Value;
use support::{Screen, consoles, description, machine};

fn soft(
    ram: Arc<memory::GuestRam>,
    cpus: u32,
    cpu: CpuChoice,
) -> Result<Arc<dyn engine::Engine>, engine::EngineError> {
    engine_soft::SoftEngine::new(ram, cpus, cpu)
}

/// A guest that is as small as one can be and counts in a register.
fn small(cpus: u32) -> Description {
    let mut d = description("spin", cpus, "");
    d.memory = 4 << 20;
    d.cpu_model = CpuModel::V2;
    d
}

fn restore(snapshot: &Snapshot) -> Result<Machine, MachineError> {
    let screen = Arc::new(Screen::default());
    let description = snapshot.manifest().machine.clone();
    Machine::from_snapshot(snapshot, description, &soft, consoles(&screen))
}

/// Runs a little.
fn run_on(m: &Machine) {
    m.start(None).unwrap();
    m.resume();
    assert_eq!(m.run_state(), RunState::Running);
    assert!(m.wait_for(Duration::from_millis(20)).is_none());
}

#[test]
fn a_chain_of_snapshots_restores_in_every_state() {
    let place = tempfile::tempdir().unwrap();
    let at = |n: usize| place.path().join(n.to_string());
    let (m, _) = machine(small(2), &soft);
    m.start(None).unwrap();
    let written = |m: &Machine, n: u8| {
        // As a device would.
        let mut page = vec![n; 4096];
        page[0] = 7;
        m.write_memory(0x20_0000 + u64::from(n) * 4096, &page)
            .unwrap();
        m.write_memory(0x30_0000, &[n; 4096]).unwrap();
        // Zero again after the first.
        m.write_memory(0x31_0000, &[u8::from(n == 0); 4096])
            .unwrap();
    };
    let error = m.snapshot(&at(9), true).unwrap_err().to_string();
    assert!(error.contains("make a full one"), "{error}");
    for n in 0..4 {
        written(&m, n);
        m.snapshot(&at(n.into()), n > 0).unwrap();
    }
    m.pause();
    let paused = m.snapshot(&at(4), true).unwrap();
    assert!(paused.stopped.is_zero() && m.run_state() == RunState::Paused);
    let error = m.snapshot(&at(4), false).unwrap_err().to_string();
    assert!(error.contains("something of this name"), "{error}");
    drop(m);
    for n in [3, 0, 2] {
        let snapshot = Snapshot::open(&at(n.into())).unwrap();
        assert_eq!(snapshot.depth(), usize::from(n) + 1);
        snapshot.check_contents().unwrap();
        let m = restore(&snapshot).unwrap();
        assert_eq!(m.run_state(), RunState::Created);
        let mut byte = [0];
        for page in 0..5 {
            m.read_memory(0x20_0001 + page * 4096, &mut byte).unwrap();
            let expected = if page <= u64::from(n) { page as u8 } else { 0 };
            assert_eq!(byte[0], expected, "page {page} of {n}");
        }
        m.read_memory(0x30_0fff, &mut byte).unwrap();
        assert_eq!(byte[0], n);
        m.read_memory(0x31_0000, &mut byte).unwrap();
        assert_eq!(byte[0], u8::from(n == 0));
        run_on(&m);
        // The chain goes on from here.
        m.snapshot(&at(10 + usize::from(n)), true).unwrap();
        drop(m);
        let again = Snapshot::open(&at(10 + usize::from(n))).unwrap();
        assert_eq!(again.depth(), usize::from(n) + 2);
        run_on(&restore(&again).unwrap());
    }
    let (m, _) = machine(small(1), &soft);
    m.start(None).unwrap();
    m.snapshot(&at(20), false).unwrap();
    fs::rename(at(20), at(21)).unwrap();
    let error = m.snapshot(&at(22), true).unwrap_err().to_string();
    assert!(error.contains("is gone"), "{error}");
    drop(m);
    // A chain is found where its parts lie beside each other.
    let moved = tempfile::tempdir().unwrap();
    let to = moved.path().join("all");
    fs::rename(place.path(), &to).unwrap();
    Snapshot::open(&to.join("3")).unwrap();
    fs::create_dir_all(place.path()).unwrap();
}

#[test]
fn a_snapshot_fits_only_its_own_machine() {
    let place = tempfile::tempdir().unwrap();
    let (m, _) = machine(small(1), &soft);
    m.start(None).unwrap();
    m.snapshot(&place.path().join("s"), false).unwrap();
    let snapshot = Snapshot::open(&place.path().join("s")).unwrap();
    let screen = Arc::new(Screen::default());
    let mut other = small(1);
    other.memory = 8 << 20;
    let error = Machine::from_snapshot(&snapshot, other, &soft, consoles(&screen));
    assert!(matches!(error.err().unwrap(), MachineError::Snapshot(_)));
    for (pointer, value, text) in [
        ("/cpu/vendor", Value::from("Transmeta"), "Transmeta"),
        ("/cpu/tsc_khz", Value::from(77), "77 kHz"),
        ("/cpu/features/l1_ecx", Value::from(u32::MAX), "lacks"),
        ("/machine/memory", Value::from(8 << 20), "one machine"),
        ("/machine/cpus", Value::from(2), "CPUs"),
        ("/engine", Value::from("kvm"), ""),
    ] {
        let copy = place.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        copy_snapshot(&place.path().join("s"), &copy);
        edit(&copy, |body| {
            *body.pointer_mut(pointer).unwrap() = value.clone()
        });
        let restored = Snapshot::open(&copy)
            .map_err(MachineError::from)
            .and_then(|s| restore(&s));
        match restored {
            Ok(m) => {
                assert_eq!(text, "", "{pointer} was not seen");
                run_on(&m);
            }
            Err(error) => assert!(error.to_string().contains(text), "{pointer}: {error}"),
        }
    }
}

/// What only has the name of a snapshot's file is refused at once: reading a
/// FIFO would never end.
#[test]
fn what_is_no_file_is_refused_at_once() {
    let place = tempfile::tempdir().unwrap();
    let original = place.path().join("original");
    let (m, _) = machine(small(1), &soft);
    m.start(None).unwrap();
    m.snapshot(&original, false).unwrap();
    drop(m);
    for file in ["manifest.json", "state.json", "memory.pages", "memory"] {
        let copy = place.path().join(file);
        copy_snapshot(&original, &copy);
        fs::remove_file(copy.join(file)).unwrap();
        let fifo = std::process::Command::new("mkfifo")
            .arg(copy.join(file))
            .status();
        assert!(fifo.unwrap().success());
        let opened = Snapshot::open(&copy).and_then(|s| s.check_contents());
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("no file"), "{error}");
    }
}

fn copy_snapshot(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Changes a manifest and makes its digest right again, as who forges would.
fn edit(snapshot: &Path, change: impl FnOnce(&mut Value)) {
    let path = snapshot.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    change(&mut manifest["snapshot"]);
    let body = serde_json::to_string(&manifest["snapshot"]).unwrap();
    let digest = blake3::hash(body.as_bytes()).to_hex();
    let text = format!(
        "{{\"format\":\"holm-snapshot\",\"version\":1,\"digest\":\"{digest}\",\"snapshot\":{body}}}"
    );
    fs::write(&path, text).unwrap();
}

/// Makes the digests of the other files right again.
fn forge_digests(snapshot: &Path) {
    let state = fs::read(snapshot.join("state.json")).unwrap();
    let list = fs::read(snapshot.join("memory.pages")).unwrap();
    edit(snapshot, |body| {
        body["state"]["size"] = state.len().into();
        body["state"]["digest"] = blake3::hash(&state).to_hex().to_string().into();
        body["memory"]["list_digest"] = blake3::hash(&list).to_hex().to_string().into();
    });
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n.max(1)
    }

    /// Another value in place of one somewhere in a JSON document.
    fn change(&mut self, value: &mut Value) {
        let number = [0, 1, 2, 63, 64, 255, 4096, u64::from(u32::MAX), u64::MAX];
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let at = self.below(fields.len() as u64) as usize;
                let key = fields.keys().nth(at).unwrap().clone();
                if self.below(20) == 0 {
                    fields.remove(&key);
                } else {
                    self.change(fields.get_mut(&key).unwrap());
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let at = self.below(items.len() as u64) as usize;
                match self.below(12) {
                    0 => drop(items.remove(at)),
                    1 => items.push(items[at].clone()),
                    _ => self.change(&mut items[at]),
                }
            }
            Value::Bool(b) => *b = !*b,
            Value::String(text) => {
                *text = ["", "../../etc/passwd", "/", "x\u{0}y"][self.below(4) as usize].into();
            }
            Value::Number(_) if self.below(2) == 0 => *value = self.below(1 << 31).into(),
            _ => *value = number[self.below(number.len() as u64) as usize].into(),
        }
    }
}

/// Random damage, most of it with digests that fit again: a reason is told, or
/// the machine runs; nothing panics or hangs. HOLM_FUZZ_SECONDS: for how long.
#[test]
fn damage_and_forgery_harm_nothing() {
    let seconds = std::env::var("HOLM_FUZZ_SECONDS").ok();
    let seconds: Option<u64> = seconds.and_then(|s| s.parse().ok());
    let rounds = seconds.map_or(400, |_| u64::MAX);
    let limit = Instant::now() + Duration::from_secs(seconds.unwrap_or(40));
    let place = tempfile::tempdir().unwrap();
    let original = place.path().join("original");
    let mut described = small(2);
    described.peripherals.balloon = true;
    described.peripherals.agent = true;
    described.peripherals.watchdog = Some(machine::WatchdogAction::Nothing);
    described.nics = vec![machine::Nic::new(machine::NicNetwork::User(
        machine::UserNic::default(),
    ))];
    let (m, _) = machine(described, &soft);
    m.start(None).unwrap();
    m.snapshot(&original, false).unwrap();
    drop(m);
    let mut random = Random(0x1234_5678_9abc_def1);
    let copy = place.path().join("copy");
    let (mut refused, mut ran) = (0, 0);
    for round in 0..rounds {
        if Instant::now() > limit {
            break;
        }
        let _ = fs::remove_dir_all(&copy);
        copy_snapshot(&original, &copy);
        damage(&copy, &mut random, round % 4);
        let restored = Snapshot::open(&copy)
            .map_err(MachineError::from)
            .and_then(|s| restore(&s));
        match restored {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
            Ok(m) => {
                m.start(None).unwrap();
                m.resume();
                let _ = m.wait_for(Duration::from_millis(3));
                ran += 1;
            }
        }
    }
    assert!(refused > 20 && ran > 5, "{refused} refused, {ran} ran");
}

fn damage(snapshot: &Path, random: &mut Random, kind: u64) {
    let state = snapshot.join("state.json");
    match kind {
        // Bytes of any file.
        0 => {
            let name = ["manifest.json", "state.json", "memory.pages"][random.below(3) as usize];
            let path = snapshot.join(name);
            let mut bytes = fs::read(&path).unwrap();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.below(256) as u8;
            }
            bytes.truncate(bytes.len() - (random.below(3) * random.below(40)) as usize);
            fs::write(&path, bytes).unwrap();
        }
        // A forged manifest.
        1 => edit(snapshot, |body| random.change(body)),
        // A forged list of pages.
        2 => {
            let path = snapshot.join("memory.pages");
            let mut bytes = fs::read(&path).unwrap();
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.below(256) as u8;
            fs::write(&path, bytes).unwrap();
            forge_digests(snapshot);
        }
        // A forged state.
        _ => {
            let mut value: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
            for _ in 0..=random.below(3) {
                random.change(&mut value);
            }
            fs::write(&state, serde_json::to_vec(&value).unwrap()).unwrap();
            forge_digests(snapshot);
        }
    }
}

/// A snapshot as every holm since format version 1 must read it. Its pages are
/// in one file without holes; `HOLM_WRITE_FIXTURE=1` writes it anew.
fn fixture() -> PathBuf {
    fixtures().join("snapshot-1")
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn runs(list: &[u8]) -> Vec<(u64, usize)> {
    let word = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap());
    list.chunks(16)
        .map(|run| (word(&run[..8]) * 4096, word(&run[8..]) as usize * 4096))
        .collect()
}

#[test]
fn a_snapshot_of_format_version_1_restores() {
    let place = tempfile::tempdir().unwrap();
    let snapshot = place.path().join("snapshot");
    if std::env::var_os("HOLM_WRITE_FIXTURE").is_some() {
        let (m, _) = machine(small(1), &soft);
        m.start(None).unwrap();
        let _ = m.wait_for(Duration::from_millis(200));
        m.snapshot(&snapshot, false).unwrap();
        let memory = fs::read(snapshot.join("memory")).unwrap();
        let list = fs::read(snapshot.join("memory.pages")).unwrap();
        let parts = runs(&list)
            .into_iter()
            .map(|(at, n)| &memory[at as usize..][..n]);
        fs::create_dir_all(fixture()).unwrap();
        fs::write(fixture().join("pages"), parts.collect::<Vec<_>>().concat()).unwrap();
        for name in ["manifest.json", "memory.pages", "state.json"] {
            fs::copy(snapshot.join(name), fixture().join(name)).unwrap();
        }
        fs::remove_dir_all(&snapshot).unwrap();
    }
    fs::create_dir(&snapshot).unwrap();
    for name in ["manifest.json", "memory.pages", "state.json"] {
        fs::copy(fixture().join(name), snapshot.join(name)).unwrap();
    }
    let pages = fs::read(fixture().join("pages")).unwrap();
    let memory = fs::File::create(snapshot.join("memory")).unwrap();
    memory.set_len(4 << 20).unwrap();
    let mut rest = &pages[..];
    for (at, n) in runs(&fs::read(snapshot.join("memory.pages")).unwrap()) {
        let (part, more) = rest.split_at(n);
        memory.write_all_at(part, at).unwrap();
        rest = more;
    }
    // It was made on another host.
    let ram = memory::GuestRam::new(4 << 20, 4 << 20).unwrap();
    let cpu = soft(ram, 1, CpuModel::V2.into()).unwrap().cpu();
    edit(&snapshot, |body| {
        body["cpu"] = serde_json::to_value(&cpu).unwrap()
    });
    let snapshot = Snapshot::open(&snapshot).unwrap();
    snapshot.check_contents().unwrap();
    let m = restore(&snapshot).unwrap();
    let before = m.registers(0).unwrap();
    assert!(before.rip >= 0x10_0000, "{:#x}", before.rip);
    run_on(&m);
    assert!(m.registers(0).unwrap().tsc > before.tsc);
}

/// A console that nobody reads.
struct Unread;

impl machine::ConsoleSink for Unread {
    fn output(&self, _: &[u8]) {}
}

/// The state of a Debian guest that used every device, two of them attached
/// while it ran: each part of it must still be understood.
#[test]
fn every_device_of_format_version_1_restores() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for name in ["manifest.json", "state.json"] {
        fs::copy(fixtures().join("snapshot-1-devices").join(name), at(name)).unwrap();
    }
    fs::write(at("memory.pages"), "").unwrap();
    let sparse = |name: &str, size: u64| fs::File::create(at(name)).unwrap().set_len(size);
    sparse("memory", 512 << 20).unwrap();
    for (n, size) in [4 << 30, 8 << 20, 8 << 20].into_iter().enumerate() {
        sparse(&format!("disk-{n}.img"), size).unwrap();
    }
    fs::create_dir(at("share")).unwrap();
    for file in ["file", "open"] {
        fs::write(at("share").join(file), "x").unwrap();
    }
    let ram = memory::GuestRam::new(4 << 20, 4 << 20).unwrap();
    let cpu = soft(ram, 1, CpuModel::V2.into()).unwrap().cpu();
    edit(&place.path().canonicalize().unwrap(), |body| {
        body["cpu"] = serde_json::to_value(&cpu).unwrap()
    });
    forge_digests(place.path());

    let snapshot = Snapshot::open(place.path()).unwrap();
    let mut here = snapshot.manifest().machine.clone();
    for disk in &mut here.disks {
        disk.file = place.path().join(&disk.file);
    }
    let name = format!("switch-{}", std::process::id());
    here.nics[1].network = machine::NicNetwork::Switch(name.parse().unwrap());
    here.peripherals.vsock.as_mut().unwrap().socket = at("vsock");
    here.peripherals.share.as_mut().unwrap().folder = at("share");
    let screen = Arc::new(Screen::default());
    let mut consoles = consoles(&screen);
    consoles.virtio = Some(Arc::new(Unread));
    let m = Machine::from_snapshot(&snapshot, here, &soft, consoles).unwrap();
    let names: Vec<String> = m.disks().into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, ["disk0", "disk1", "two"]);
    let card = &m.attached_nics()[0];
    assert_eq!((card.name(), m.attached_nics().len()), ("out", 1));
    // What drivers had set up is as it was.
    let before: Value = serde_json::from_slice(&fs::read(at("state.json")).unwrap()).unwrap();
    let now = serde_json::to_value(m.save().unwrap()).unwrap();
    let virtio = |state: &Value| state["devices"]["virtio"].as_array().unwrap().clone();
    let kept = ["queues", "driver_features", "status", "device_id", "msix"];
    for (before, now) in virtio(&before).iter().zip(&virtio(&now)) {
        for part in kept {
            assert_eq!(
                before[1][part], now[1][part],
                "{part} of slot {}",
                before[0]
            );
        }
    }
    for part in ["watchdog", "ports"] {
        assert_eq!(before["devices"][part], now["devices"][part], "{part}");
    }
    assert_eq!(before["vcpus"][0]["rip"], now["vcpus"][0]["rip"]);
}
