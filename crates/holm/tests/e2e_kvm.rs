//! The KVM engine, where the CI's own host may have no KVM: QEMU emulates a
//! host with AMD's virtualization, in which our program runs real guests on
//! the kernel's KVM. One boot of that host serves all checks.

mod common;
#[path = "../../../xtask/src/image/cpio.rs"]
#[allow(dead_code, reason = "the images need all of it")]
mod cpio;
#[path = "kvm/inside.rs"]
mod inside;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use common::{BOOT, Console, base64, image};
use cpio::Archive;

/// Emulated CPUs of that host: with two, its kernel hangs at times.
const CPUS: &str = "1";
const MEMORY: &str = "1280";
/// Checks, each of which ends with a line of this.
const STEPS: u32 = 5;
const END_OF_STEP: &str = "== UPTIME ";
/// Any one of them, on a busy host.
const STEP: Duration = Duration::from_secs(240);
/// QEMU's emulation of a host hangs at times.
const ATTEMPTS: u32 = 3;

#[test]
fn the_kvm_engine_in_an_emulated_host() {
    if let Ok(step) = std::env::var("HOLM_IN_EMULATED_HOST") {
        inside::run(&step);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("initrd");
    fs::write(&initrd, host_files(directory.path())).unwrap();
    let mut said = None;
    for attempt in 1..=ATTEMPTS {
        match run_host(&initrd) {
            Ok(text) => {
                said = Some(text);
                break;
            }
            Err(error) => eprintln!("the emulated host, attempt {attempt}: {error:#}"),
        }
    }
    let said = said.expect("the emulated host ran to its end");
    eprintln!("{said}");

    let (doctor, status) = step(&said, "doctor");
    assert_eq!(status, 0);
    let doctor: serde_json::Value = serde_json::from_str(&doctor).unwrap();
    assert_eq!(doctor["engine"]["auto"], "kvm", "{doctor}");
    assert_eq!(doctor["kvm"]["usable"], true);

    assert_eq!(step(&said, "engines").1, 0);

    let (machine, status) = step(&said, "machine");
    assert_eq!(status, 0);
    for expected in [
        "cpus 2",
        "kvm-clock: Using msrs",
        // Two busy vCPUs share one CPU.
        "time-was-stolen",
        "disk-is-right",
        "hello from the host",
        "after-the-reset",
    ] {
        assert!(machine.contains(expected), "{expected}");
    }
    assert!(!machine.contains("trouble"));
    // Of the disk, the network card and the console at least.
    let events = machine.matches("an interrupt has an event of its own");
    assert!(events.count() >= 3, "devices interrupt by irqfds");
    for refused in ["KVM refuses", "KVM takes no", "KVM has no", "no event for"] {
        assert!(!machine.contains(refused), "{refused}");
    }
    // Of 4,096,000 zeroes, from each of two pipelines.
    let sums = machine.matches("0f8b44f3cec741c78cb7129af541247b").count();
    assert_eq!(sums, 2, "both pipelines end");

    let (snapshots, status) = step(&said, "snapshots");
    assert_eq!(status, 0);
    let kvm = snapshots.find(r#""engine":"kvm""#).unwrap();
    let soft = snapshots.find(r#""engine":"soft""#).unwrap();
    assert!(kvm < soft);

    assert_eq!(step(&said, "work").1, 0);
}

/// What a step printed, and its status.
fn step(said: &str, name: &str) -> (String, i32) {
    let after = |text: &str| said.split_once(text).map(|(_, rest)| rest.to_owned());
    let begun = after(&format!("== BEGIN {name}\n")).unwrap_or_else(|| panic!("no step {name}"));
    let (text, status) = begun
        .split_once(&format!("== END {name} "))
        .unwrap_or_else(|| panic!("step {name} did not end"));
    let status = status.lines().next().unwrap_or_default();
    (text.to_owned(), status.trim().parse().unwrap())
}

/// Boots the emulated host and lets it run its script to the end; all it
/// printed.
fn run_host(initrd: &Path) -> anyhow::Result<String> {
    let arms = u8::from(qemu_version()? >= (9, 1));
    let command = format!("DEBUG_REGISTERS={arms} sh /test/machine.sh");
    let command = base64(command.as_bytes());
    let append = format!("console=ttyS0 loglevel=1 panic=-1 cmd={command}");
    let mut console = Console::start(
        Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"])
            .args(["-smp", CPUS, "-m", MEMORY, "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(image("tiny").join("vmlinuz"))
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &append]),
    )?;
    console.expect("HOLM-READY ", BOOT)?;
    let mut said = String::new();
    for _ in 0..STEPS {
        said += &console.expect(END_OF_STEP, STEP)?;
    }
    said += &console.expect("== END of all", STEP)?;
    console.finish(BOOT)?;
    Ok(said.replace("\r\n", "\n"))
}

/// Major and minor number.
fn qemu_version() -> anyhow::Result<(u32, u32)> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output();
    let output = output.context("qemu-system-x86_64 is needed (package qemu-system-x86)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = text.split_once(" version ").and_then(|(_, rest)| {
        let mut numbers = rest.split('.').map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    numbers.with_context(|| format!("no version in {text:?}"))
}

/// The root of the emulated host: the image `tiny` with KVM's modules, our
/// program, this test, and the image `tiny` again for the guests.
fn host_files(scratch: &Path) -> Vec<u8> {
    let tiny = image("tiny");
    let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = read(&tiny.join("initrd"));
    bytes.extend(read(&tiny.join("kvm-modules.cpio")));
    let mut archive = Archive::default();
    let programs = [
        (PathBuf::from(env!("CARGO_BIN_EXE_holm")), "bin/holm"),
        (std::env::current_exe().unwrap(), "test/e2e_kvm"),
    ];
    for directory in [
        "test",
        "lib64",
        "lib/x86_64-linux-gnu",
        "root/.cache",
        "root/.cache/holm",
        "root/.cache/holm/images",
        "root/.cache/holm/images/tiny",
    ] {
        archive.directory(directory);
    }
    let mut libraries = Vec::new();
    for (from, to) in &programs {
        let stripped = scratch.join("stripped");
        let done = Command::new("strip")
            .arg("-o")
            .args([&stripped, from])
            .status();
        assert!(done.expect("strip is needed (package binutils)").success());
        archive.file(to, 0o755, &read(&stripped));
        libraries.extend(libraries_of(from));
    }
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        archive.file(
            library.trim_start_matches('/'),
            0o755,
            &read(Path::new(&library)),
        );
    }
    for name in ["vmlinuz", "initrd", "image.json"] {
        let to = format!("root/.cache/holm/images/tiny/{name}");
        archive.file(&to, 0o644, &read(&tiny.join(name)));
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kvm");
    for name in ["machine.sh", "guest.sh"] {
        archive.file(&format!("test/{name}"), 0o644, &read(&scripts.join(name)));
    }
    let devices = read(&tiny.join("device-modules.cpio"));
    archive.file("test/device-modules.cpio", 0o644, &devices);
    archive.file("test/hello", 0o644, b"hello from the host\n");
    bytes.extend(archive.finish());
    bytes
}

/// The shared libraries of a program, as the dynamic linker finds them.
fn libraries_of(program: &Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/')).map(str::to_owned)
    };
    text.lines().filter_map(path).collect()
}
