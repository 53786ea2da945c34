//! Snapshots of running machines: paused, captured, incremental, restored,
//! cloned; refused when they are not what they were.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use common::{BOOT, Console, SOON, holm, image};
use serde_json::Value;

fn at(runtime: &Path, arguments: &[&str]) -> Command {
    let mut command = holm();
    command.args(arguments).env("XDG_RUNTIME_DIR", runtime);
    command
}

fn ask(runtime: &Path, arguments: &[&str]) -> Output {
    at(runtime, arguments).output().unwrap()
}

fn done(runtime: &Path, arguments: &[&str]) -> Output {
    let output = ask(runtime, arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    output
}

fn json(runtime: &Path, arguments: &[&str]) -> Value {
    serde_json::from_slice(&done(runtime, arguments).stdout).unwrap()
}

/// A guest's shell.
struct Shell {
    console: Console,
    asked: u32,
}

impl Shell {
    fn start(runtime: &Path, arguments: &[&str]) -> Self {
        let console = Console::start(&mut at(runtime, arguments)).unwrap();
        Self { console, asked: 0 }
    }

    /// What a command prints.
    fn sh(&mut self, command: &str) -> String {
        self.asked += 1;
        let n = self.asked;
        // What is typed is echoed: it must not look like what is printed.
        let line = format!("echo; echo BEGIN'-'{n}; {command}; echo END'-'{n}\n");
        self.console.send(&line).unwrap();
        self.console
            .expect(&format!("\nBEGIN-{n}\r\n"), SOON)
            .unwrap();
        let text = self.console.expect(&format!("END-{n}\r\n"), SOON).unwrap();
        text.replace("\r\n", "\n").trim().to_owned()
    }

    fn number(&mut self, command: &str) -> f64 {
        let text = self.sh(command);
        let number = text.parse();
        number.unwrap_or_else(|_| panic!("{command}: {text:?} is no number"))
    }
}

/// A TCP server that greets; its port.
fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Who asked may have gone.
            let _ = stream.write_all(b"hello from the host\n");
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    port
}

const UPTIME: &str = "cut -d' ' -f1 /proc/uptime";
/// Two programs that keep both CPUs busy with translated code and count.
const COUNTERS: &str = "for c in a b; do (i=0; while true; do i=$((i+1)); \
                        [ $((i % 1000)) != 0 ] || echo $i > /tmp/count-$c; done) & done";

fn counts(shell: &mut Shell) -> [f64; 2] {
    ["a", "b"].map(|c| {
        let end = Instant::now() + SOON;
        loop {
            // Not made yet, or just being written.
            match shell.sh(&format!("cat /tmp/count-{c}")).parse() {
                Ok(count) => return count,
                Err(_) => assert!(Instant::now() < end, "there is no counter"),
            }
        }
    })
}

/// Waits until both counters have moved on.
fn still_counts(shell: &mut Shell, before: [f64; 2]) {
    let end = Instant::now() + SOON;
    while counts(shell)
        .iter()
        .zip(before)
        .any(|(now, then)| *now <= then)
    {
        assert!(Instant::now() < end, "the counters stand");
        thread::sleep(Duration::from_millis(50));
    }
}

fn reaches_the_host(shell: &mut Shell, port: u16) {
    let end = Instant::now() + SOON;
    // A restored card's first frames may come before the host's answers.
    while shell.sh(&format!("nc 10.0.2.2 {port} < /dev/null")) != "hello from the host" {
        assert!(Instant::now() < end, "the guest's network is dead");
    }
}

#[test]
fn a_machine_goes_on_from_its_snapshots_and_its_clones_beside_each_other() {
    image("tiny");
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    let place = |name: &str| directory.path().join(name).display().to_string();
    let disk = place("disk.img");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let port = greeter();
    let mut shell = Shell::start(
        runtime,
        &[
            "run", "tiny", "--name", "one", "--cpus", "2", "--memory", "256M", "--append", "quiet",
            "--disk", &disk,
        ],
    );
    shell.console.expect("HOLM-READY ", BOOT).unwrap();
    shell.console.expect("# ", BOOT).unwrap();
    shell.sh("stty -echo; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up");
    reaches_the_host(&mut shell, port);
    shell.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=8 2>/dev/null; sync; state=first");
    let first_disk = shell.sh("md5sum < /dev/vda");
    shell.sh(COUNTERS);
    still_counts(&mut shell, [0.0; 2]);

    a_pause_is_not_felt(runtime, &mut shell);

    // The first in full, the second only what changed; the guest goes on.
    let before = counts(&mut shell);
    let made = json(
        runtime,
        &["snapshot", "create", "one", &place("first"), "-o", "json"],
    );
    assert!(made["memory_bytes"].as_u64().unwrap() > 16 << 20, "{made}");
    still_counts(&mut shell, before);
    shell.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=8 2>/dev/null; state=second");
    let second_disk = shell.sh("md5sum < /dev/vda");
    let made = json(
        runtime,
        &[
            "snapshot",
            "create",
            "one",
            &place("second"),
            "--incremental",
            "-o",
            "json",
        ],
    );
    let whole = json(
        runtime,
        &["snapshot", "show", &place("first"), "-o", "json"],
    );
    let pages = whole["memory"]["pages"].as_u64().unwrap();
    assert!(
        made["memory_bytes"].as_u64().unwrap() < pages * 4096,
        "{made}"
    );
    shell.sh("dd if=/dev/zero of=/dev/vda bs=1M count=8 2>/dev/null; sync; state=third");
    let again = ask(runtime, &["snapshot", "create", "one", &place("first")]);
    assert_eq!(again.status.code(), Some(28), "it exists");
    done(runtime, &["kill", "one"]);
    shell.console.finish(SOON).unwrap();
    for name in ["first", "second"] {
        done(runtime, &["snapshot", "check", &place(name)]);
    }

    let mut shell = Shell::start(runtime, &["restore", &place("first"), "--name", "one"]);
    assert_eq!(shell.sh("echo $state"), "first");
    let now = counts(&mut shell);
    assert!(now[0] >= before[0] && now[1] >= before[1]);
    still_counts(&mut shell, now);
    // The page cache came with the memory; the rest is read from the disk.
    assert_eq!(
        shell.sh("echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/vda"),
        first_disk
    );
    reaches_the_host(&mut shell, port);
    done(
        runtime,
        &[
            "snapshot",
            "create",
            "one",
            &place("third"),
            "--incremental",
        ],
    );
    done(runtime, &["kill", "one"]);
    shell.console.finish(SOON).unwrap();

    clones(runtime, &place("second"), &second_disk, port);
    let mut shell = Shell::start(runtime, &["restore", &place("third"), "--check"]);
    assert_eq!(
        shell.sh("echo $state; md5sum < /dev/vda"),
        format!("first\n{first_disk}")
    );
    shell.console.send("poweroff -f\n").unwrap();
    let (status, _) = shell.console.finish(SOON).unwrap();
    assert_eq!(status.code(), Some(0));
    damaged(runtime, &directory.path().join("second"));
}

fn a_pause_is_not_felt(runtime: &Path, shell: &mut Shell) {
    let start = Instant::now();
    let before = shell.number(UPTIME);
    done(runtime, &["pause", "one"]);
    let pause = Instant::now();
    thread::sleep(Duration::from_secs(4));
    let paused = pause.elapsed();
    done(runtime, &["resume", "one"]);
    let guest = shell.number(UPTIME) - before;
    let host = (start.elapsed() - paused).as_secs_f64();
    assert!(
        guest <= host + 0.1,
        "the guest's clock went on by {guest} s in {host} s"
    );
    // Its timers do not wait for the time that was lost.
    shell.sh("sleep 1");
}

/// Two machines from one snapshot at once: each its own, and told apart.
fn clones(runtime: &Path, snapshot: &str, disk: &str, port: u16) {
    let mut clones = ["two", "three"]
        .map(|name| Shell::start(runtime, &["restore", snapshot, "--clone", "--name", name]));
    for (n, shell) in clones.iter_mut().enumerate() {
        assert_eq!(
            shell.sh("echo $state; md5sum < /dev/vda"),
            format!("second\n{disk}")
        );
        shell.sh(&format!("state=clone-{n}; echo {n} > /dev/vda; sync"));
        reaches_the_host(shell, port);
    }
    for (n, shell) in clones.iter_mut().enumerate() {
        assert_eq!(
            shell.sh("echo $state; head -n1 /dev/vda"),
            format!("clone-{n}\n{n}")
        );
    }
    let shown = ["two", "three"].map(|name| json(runtime, &["show", name, "-o", "json"]));
    for field in ["uuid", "generation_id"] {
        assert_ne!(shown[0][field], shown[1][field], "{field}");
    }
    for (name, shell) in ["two", "three"].into_iter().zip(clones) {
        done(runtime, &["kill", name]);
        shell.console.finish(SOON).unwrap();
    }
}

/// Every kind of damage is refused before a guest runs, by its name.
fn damaged(runtime: &Path, snapshot: &Path) {
    let refused = |what: &str, text: &str| {
        let path = snapshot.display().to_string();
        let output = ask(runtime, &["restore", &path, "--check", "--serial", "null"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(14), "{what}: {error}");
        assert!(error.contains(text), "{what}: {error}");
    };
    let manifest = snapshot.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for (what, from, to, says) in [
        ("version", "\"version\":1", "\"version\":2", "version 2"),
        ("format", "holm-snapshot", "other-format", "other-format"),
        ("contents", "\"cpus\":2", "\"cpus\":1", "was changed"),
    ] {
        fs::write(&manifest, text.replacen(from, to, 1)).unwrap();
        refused(what, says);
    }
    fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    refused("half a manifest", "damaged");
    fs::write(&manifest, &text).unwrap();
    let flip = |file: &str| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(snapshot.join(file))
            .unwrap();
        let (size, mut byte) = (file.metadata().unwrap().len(), [0]);
        // The disk's first bytes are data; so are the last of the others.
        let at = if size > 32 << 20 { 100 } else { size - 1 };
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    for file in ["state.json", "memory.pages", "disk-0.img"] {
        flip(file);
        refused(file, file);
        flip(file);
    }
    let memory = fs::File::options()
        .write(true)
        .open(snapshot.join("memory"))
        .unwrap();
    let size = memory.metadata().unwrap().len();
    memory.set_len(size - 4096).unwrap();
    refused("short memory", "memory");
    memory.set_len(size).unwrap();
    fs::rename(
        snapshot.with_file_name("first"),
        snapshot.with_file_name("gone"),
    )
    .unwrap();
    refused("no parent", "builds on");
}
