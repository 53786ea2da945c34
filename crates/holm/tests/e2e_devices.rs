//! The devices that tie a Debian guest to its host, on one boot: the agent's
//! channel first, for everything else is done through it.

mod common;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{BOOT, holm, image};

struct Machine {
    holm: Child,
    directory: tempfile::TempDir,
}

impl Machine {
    fn start(options: impl Fn(&Path) -> Vec<String>) -> Self {
        image("debian");
        let directory = tempfile::tempdir().unwrap();
        let holm = holm()
            .args([
                "run",
                "debian",
                "--memory",
                "1G",
                "--cpus",
                "2",
                "--timeout",
                "20m",
            ])
            .arg("--serial")
            .arg(format!(
                "file={}",
                directory.path().join("serial").display()
            ))
            .arg("--agent-socket")
            .arg(directory.path().join("agent"))
            .args(["--name", "devices"])
            .env("XDG_RUNTIME_DIR", directory.path())
            .args(options(directory.path()))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("errors")).unwrap())
            .spawn()
            .unwrap();
        let machine = Self { holm, directory };
        let up = machine
            .holm(&["exec", "--wait", "4m"], &["true"])
            .status()
            .unwrap();
        assert!(up.success(), "{}", machine.serial());
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn serial(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("serial")).unwrap_or_default()).into()
    }

    /// `holm COMMAND... MACHINE -- WORDS...`.
    fn holm(&self, command: &[&str], words: &[&str]) -> Command {
        let mut holm = holm();
        holm.args(command).arg(self.path("agent"));
        if !words.is_empty() {
            holm.arg("--").args(words);
        }
        holm
    }

    /// Runs a script in the guest; what it printed. It must succeed.
    fn sh(&self, script: &str) -> String {
        let output = self
            .holm(&["exec"], &["sh", "-c", script])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{script}: {:?}\n{text}{errors}",
            output.status
        );
        text
    }

    /// What comes of a file in the guest.
    fn place(&self, path: &str) -> String {
        format!("{}:{path}", self.path("agent").display())
    }

    /// MiB of the monitor that are in the host's memory.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.holm.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1024
    }

    /// A command about machines by their names; what it printed. It must
    /// succeed.
    fn ask(&self, words: &[&str]) -> String {
        let mut holm = holm();
        holm.args(words)
            .env("XDG_RUNTIME_DIR", self.directory.path());
        holm.env("XDG_STATE_HOME", self.path("state"));
        let output = holm.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn balloon(&self, words: &[&str]) -> serde_json::Value {
        let output = self
            .holm(&["balloon", "-o", "json"], &[])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn power_off(mut self) {
        let _ = self.holm(&["exec"], &["systemctl", "poweroff"]).output();
        assert_eq!(self.wait(), Some(0), "{}", self.serial());
        assert!(!self.path("agent").exists(), "the socket is left behind");
    }

    /// The status it ends with.
    fn wait(&mut self) -> Option<i32> {
        let end = Instant::now() + BOOT;
        let status = loop {
            if let Some(status) = self.holm.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "no end: {}", self.serial());
            std::thread::sleep(Duration::from_millis(50));
        };
        status.code()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.holm.kill();
        let _ = self.holm.wait();
    }
}

#[test]
fn the_guest_and_its_host_work_together() {
    let machine = Machine::start(|directory| {
        let sockets = format!("cid=5,socket={}", directory.join("vsock").display());
        std::fs::create_dir(directory.join("share")).unwrap();
        std::fs::write(directory.join("share/host"), "from the host\n").unwrap();
        std::fs::write(directory.join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", directory.join("share/way-out")).unwrap();
        let large: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(directory.join("share/from-host"), large).unwrap();
        common::compile(&directory.join("share"), "fsx", &[]);
        let share = format!("{},tag=work,writeback", directory.join("share").display());
        vec!["--vsock".into(), sockets, "--share".into(), share]
    });
    programs_run(&machine);
    files_are_copied(&machine);
    file_systems_freeze(&machine);
    sockets_reach_both_ways(&machine);
    a_folder_is_shared(&machine);
    freed_memory_returns_to_the_host(&machine);
    the_balloon_takes_and_gives(&machine);
    running_clones_are_told_apart(&machine);
    assert_eq!(machine.sh("dmesg | grep -E 'BUG|WARNING|Oops' || true"), "");
    machine.power_off();
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < end, "{what}: not after two minutes");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Two clones that run on from one instant, on one switch: their guests' drivers
/// have other addresses, random numbers of their own, and the time of day.
fn running_clones_are_told_apart(machine: &Machine) {
    let switch = format!("switch=clones{},name=lab", std::process::id());
    machine.ask(&["attach", "devices", "--net", &switch, "--wait", "60s"]);
    let find = "for c in /sys/class/net/*; do
        [ $(readlink -f $c/device/../.. | grep -c '00:1[8-9a-f].0') = 0 ] || echo ${c##*/}; done";
    let card = machine.sh(find).trim().to_owned();
    machine.sh(&format!("ip link set {card} up; date -s 2001-01-01"));
    let snapshot = machine.path("snapshot").display().to_string();
    machine.ask(&["snapshot", "create", "devices", &snapshot]);

    let mac = format!("cat /sys/class/net/{card}/address");
    let mut seen = vec![(machine.sh(&mac), String::new())];
    let names = ["clone-1", "clone-2"];
    for name in names {
        let (sockets, null) = (
            machine.path(name).display().to_string(),
            ["--serial", "null"],
        );
        let mut words = vec!["restore", &snapshot, "--clone", "--detach", "--name", name];
        words.extend(null);
        machine.ask(&[&words[..], &["--vsock-socket", &sockets]].concat());
    }
    for name in names {
        eventually("the clone was told", || {
            let events = machine.ask(&["events", name]);
            assert!(!events.contains("not told"), "{events}");
            events.contains("the restored guest was told: ")
        });
        let shown = machine.ask(&["show", name]);
        let sh = |script: &str| machine.ask(&["exec", name, "--", "sh", "-c", script]);
        assert!(shown.contains(&format!("{card} has the address {}", sh(&mac).trim())));
        assert!(shown.contains("its random numbers begin anew;"), "{shown}");
        assert!(sh("date +%Y").trim().parse::<u32>().unwrap() > 2025);
        seen.push((sh(&mac), sh("head -c 16 /dev/urandom | od -An -tx1")));
    }
    let different: std::collections::BTreeSet<_> = seen.iter().map(|(mac, _)| mac).collect();
    assert_eq!(different.len(), 3, "{seen:?}");
    assert_ne!(seen[1].1, seen[2].1);

    let sh = |name: &str, script: &str| machine.ask(&["exec", name, "--", "sh", "-c", script]);
    let address = format!("ip -6 -o addr show dev {card} scope link | grep -o 'fe80[^/]*'");
    eventually("the clones reach each other", || {
        let other = sh(names[1], &format!("{address} || true"));
        let ping = format!(
            "ping -6 -c1 -W1 {}%{card} > /dev/null && echo reached",
            other.trim()
        );
        sh(names[0], &format!("{ping} || true")) == "reached\n"
    });
    sh(names[0], "ping -c1 -W10 10.0.2.2");
    for name in names {
        machine.ask(&["kill", name]);
    }
    machine.ask(&["detach", "devices", "lab", "--wait", "60s"]);
}

/// Made, read, mapped, renamed, linked and synced; with sums both ways; and
/// nothing beside the folder is reached.
fn a_folder_is_shared(machine: &Machine) {
    let output = machine.sh(
        "mkdir -p /mnt/work; mount -t virtiofs work /mnt/work; cd /mnt/work; cat host
         head -c 20M /dev/urandom > big; sync; echo 3 > /proc/sys/vm/drop_caches
         cp big copy; cmp big copy; mkdir -p d/e; mv copy d/e/moved; ln d/e/moved hard
         ln -s host link; cat link; chmod 750 host; stat -c '%a %U' host
         mknod device c 1 3 2>/dev/null || echo refused
         mkdir tree; cp -a /usr/lib/python3.11/encodings tree; touch -h link
         diff -r /usr/lib/python3.11/encodings tree/encodings && echo same
         (umask 0; mkdir open; touch open/file; stat -c %a open open/file)
         cat way-out 2>/dev/null || echo nothing there; ls ../work/.. > /dev/null
         python3 -c 'import os
for i in range(500): open(\"d/%d\" % i, \"w\").write(str(i))
print(len(os.listdir(\"d\")), open(\"d/499\").read())'
         cp /bin/echo program; ./program mapped and run
         ./fsx random model 7 800 > random.told
         sha256sum big from-host; cd /; umount /mnt/work",
    );
    let share = machine.path("share");
    let expected = format!(
        "from the host\nfrom the host\n750 root\nrefused\nsame\n777\n666\nnothing there\n\
         501 499\nmapped and run\n{}  big\n{}  from-host\n",
        sum(&share.join("big")),
        sum(&share.join("from-host"))
    );
    assert_eq!(output, expected);
    assert_eq!(sum(&share.join("d/e/moved")), sum(&share.join("hard")));
    // What random operations made of a file is what the guest says it is.
    assert_eq!(sum(&share.join("random")), sum(&share.join("model")));
    let random = share.join("random").metadata().unwrap();
    let (size, seconds, nanos) = (random.len(), random.mtime(), random.mtime_nsec());
    assert_eq!(
        std::fs::read_to_string(share.join("random.told")).unwrap(),
        format!("{size} {seconds}.{nanos:09}\n")
    );
    assert_eq!(std::fs::read_to_string(share.join("d/77")).unwrap(), "77");
    assert_eq!(
        std::fs::read_to_string(machine.path("secret")).unwrap(),
        "secret"
    );
}

/// The guest, who is root there, changes nothing.
fn a_read_only_folder_stays(machine: &Machine) {
    let output = machine.sh(
        "mkdir -p /mnt/kept; mount -t virtiofs kept /mnt/kept; cd /mnt/kept; cat host
         for command in 'rm host' 'touch new' 'mkdir new' 'mv host new' 'chmod 600 host' 'ln host new' \\
             'truncate -s 0 host' 'dd if=/dev/zero of=host' 'ln -s x new' 'setfattr -n user.x -v 1 host'; do
             $command 2>/dev/null && echo \"$command: done\"
         done
         mount -o remount,rw /mnt/kept; rm -f host 2>/dev/null || echo still
         cat host; cd /; umount /mnt/kept",
    );
    assert_eq!(output, "from the host\nstill\nfrom the host\n");
    let entries = std::fs::read_dir(machine.path("kept")).unwrap();
    assert_eq!(entries.count(), 1);
}

/// What both sides send: 8 MB that are not the same everywhere.
const STREAM: &str = "b = b''.join(i.to_bytes(4, 'little') for i in range(2000000))";

fn sockets_reach_both_ways(machine: &Machine) {
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};
    let mut expected = Vec::new();
    for i in 0..2_000_000u32 {
        expected.extend(i.to_le_bytes());
    }
    let python =
        |machine: &Machine, program: String| machine.sh(&format!("python3 -c \"{program}\""));
    // From the guest to several programs of the host at once.
    let listener = UnixListener::bind(machine.path("vsock_700")).unwrap();
    let echo = std::thread::spawn(move || {
        let streams = (0..4).map(|_| {
            let mut stream = listener.accept().unwrap().0;
            std::thread::spawn(move || {
                let mut data = Vec::new();
                stream.read_to_end(&mut data).unwrap();
                stream.write_all(&data).unwrap();
                data
            })
        });
        let streams: Vec<_> = streams.collect();
        streams
            .into_iter()
            .map(|s| s.join().unwrap())
            .collect::<Vec<_>>()
    });
    let sizes = python(
        machine,
        format!(
            "import socket, threading
{STREAM}
def one():
  s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.connect((2, 700))
  s.sendall(b); s.shutdown(socket.SHUT_WR); d = b''.join(iter(lambda: s.recv(65536), b''))
  print(d == b)
t = [threading.Thread(target=one) for _ in range(4)]
[x.start() for x in t]; [x.join() for x in t]"
        ),
    );
    assert_eq!(sizes, "True\nTrue\nTrue\nTrue\n");
    assert!(echo.join().unwrap().iter().all(|data| *data == expected));
    let refused = python(
        machine,
        "import socket; print(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect_ex((2, 701)))".into(),
    );
    assert_eq!(refused, "104\n");
    // From the host to the guest.
    let server = machine
        .holm(&["exec"], &["python3", "-c", "import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.bind((socket.VMADDR_CID_ANY, 22)); s.listen()
print('ready', flush=True)
c = s.accept()[0]; d = b''.join(iter(lambda: c.recv(65536), b''))
c.sendall(d); c.close()"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut server = server;
    let mut line = String::new();
    let mut lines = std::io::BufReader::new(server.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
    let mut stream = UnixStream::connect(machine.path("vsock")).unwrap();
    stream.write_all(b"CONNECT 22\n").unwrap();
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK ");
    let mut writer = stream.try_clone().unwrap();
    let data = expected.clone();
    let writer = std::thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    let start = back.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    assert!(back[start..] == expected);
    assert!(server.wait().unwrap().success());
}

fn freed_memory_returns_to_the_host(machine: &Machine) {
    let before = machine.resident();
    let used = machine.sh(
        "python3 -c 'x = bytearray(b\"1\") * (400 << 20); print(len(x) >> 20, flush=True)
import os; os.kill(os.getppid(), 0); input()' </dev/null 2>/dev/null; true",
    );
    assert_eq!(used, "400\n");
    // The program has ended: Linux reports what it finds free.
    eventually("freed memory is with the host", || {
        machine.resident() < before + 150
    });
    let reported = machine.balloon(&[])["reported"].as_u64().unwrap();
    assert!(reported >= 300 << 20, "{reported}");
}

fn the_balloon_takes_and_gives(machine: &Machine) {
    let report = machine.balloon(&["512M"]);
    assert_eq!(report["target"], 512 << 20);
    assert_eq!(report["driver"], true);
    eventually("the balloon is full", || {
        machine.balloon(&[])["actual"] == 512 << 20
    });
    // What is in the balloon is of no use to the guest.
    let report = machine.balloon(&[]);
    let available = report["statistics"]["available"].as_u64().unwrap();
    assert!(available < 512 << 20, "{report}");
    assert_eq!(machine.sh("echo alive"), "alive\n");
    machine.balloon(&["1G"]);
    eventually("the balloon is empty", || {
        machine.balloon(&[])["actual"] == 0
    });
    // Never below a floor, and a guest in need takes pages back.
    let report = machine.balloon(&["1M"]);
    assert_eq!(report["target"], (1024 - 64) << 20);
    machine.balloon(&["1G"]);
    assert_eq!(
        machine.sh("head -c 100M /dev/zero | sha256sum | head -c 8"),
        "20492a4d"
    );
}

#[test]
fn a_guest_that_hangs_or_panics_is_seen() {
    let mut machine = Machine::start(|directory| {
        let log = format!("{},max=64K", directory.join("log").display());
        std::fs::create_dir(directory.join("kept")).unwrap();
        std::fs::write(directory.join("kept/host"), "from the host\n").unwrap();
        let share = format!("{},tag=kept,readonly", directory.join("kept").display());
        let options = [
            "--share",
            &share,
            "--watchdog",
            "nothing",
            "--append",
            "panic=1",
            "--serial-log",
            &log,
        ];
        options.map(String::from).to_vec()
    });
    a_read_only_folder_stays(&machine);
    // The id is there, and the kernel knows of it.
    assert_eq!(
        machine.sh("ls -d /sys/bus/acpi/devices/HOLMVGID:00 | wc -l"),
        "1\n"
    );
    machine.sh("modprobe wdat_wdt; python3 -c '
import fcntl, struct, os, time
dog = os.open(\"/dev/watchdog0\", os.O_WRONLY)
fcntl.ioctl(dog, 0xC0045706, struct.pack(\"i\", 1))
time.sleep(4)
os.write(dog, b\"V\")'");
    let errors = |machine: &Machine| std::fs::read_to_string(machine.path("errors")).unwrap();
    eventually("the watchdog has barked", || {
        errors(&machine).contains("watchdog in time")
    });
    assert_eq!(machine.sh("echo still there"), "still there\n");
    // The connection breaks with the guest.
    let _ = machine
        .holm(
            &["exec"],
            &[
                "sh",
                "-c",
                "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
            ],
        )
        .output();
    assert_eq!(machine.wait(), Some(26), "{}", machine.serial());
    assert!(
        errors(&machine).contains("kernel has panicked"),
        "{}",
        errors(&machine)
    );
    let log = std::fs::read_to_string(machine.path("log")).unwrap();
    assert!(
        log.contains("Kernel panic") && log.contains("debian login:"),
        "{log}"
    );
}

fn programs_run(machine: &Machine) {
    let script = "echo out; echo err >&2; exit 7";
    let output = machine
        .holm(&["exec"], &["sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(
        (&*output.stdout, &*output.stderr),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(output.status.code(), Some(7));
    let killed = machine
        .holm(&["exec"], &["sh", "-c", "kill -9 $$"])
        .status()
        .unwrap();
    assert_eq!(killed.code(), Some(137));
    // No shell sees the arguments.
    let output = machine
        .holm(&["exec"], &["echo", "$HOME", "a  b"])
        .output()
        .unwrap();
    assert_eq!(&*output.stdout, b"$HOME a  b\n");
    // Much input, and output while the program runs.
    let mut child = machine
        .holm(
            &["exec", "-i"],
            &[
                "sh",
                "-c",
                "sha256sum; echo first; while :; do sleep 1; done",
            ],
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let data: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    child.stdin.take().unwrap().write_all(&data).unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(
        lines.next().unwrap().unwrap(),
        format!("{}  -", sha256(&data))
    );
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    child.kill().unwrap();
    child.wait().unwrap();
    let missing = machine
        .holm(&["exec"], &["no-such-program"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(machine.sh("seq 200000 | tail -n 1"), "200000\n");
}

fn sha256(data: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), data).unwrap();
    sum(file.path())
}

fn sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8_lossy(&output.stdout)[..64].into()
}

fn files_are_copied(machine: &Machine) {
    use std::os::unix::fs::PermissionsExt;
    let here = machine.path("here");
    let data: Vec<u8> = (0..9_000_001u32)
        .map(|n| (n.wrapping_mul(n) >> 5) as u8)
        .collect();
    std::fs::write(&here, data).unwrap();
    std::fs::set_permissions(&here, std::fs::Permissions::from_mode(0o751)).unwrap();
    let there = machine.place("/var/tmp/there file");
    let copied = holm()
        .arg("cp")
        .args([here.to_str().unwrap(), &there])
        .status()
        .unwrap();
    assert!(copied.success());
    assert_eq!(
        machine.sh("cd /var/tmp; stat -c %a 'there file'; sha256sum <'there file'"),
        format!("751\n{}  -\n", sum(&here))
    );
    let back = machine.path("back");
    let copied = holm()
        .arg("cp")
        .args([&there, back.to_str().unwrap()])
        .status()
        .unwrap();
    assert!(copied.success());
    assert_eq!(sum(&back), sum(&here));
    assert_eq!(back.metadata().unwrap().permissions().mode() & 0o777, 0o751);
    // A device has no end: it is refused, and nothing is left.
    let bad = holm()
        .args([
            "cp",
            &machine.place("/dev/zero"),
            machine.path("zero").to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(24));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("/dev/zero"));
    assert!(!machine.path("zero").exists());
}

fn file_systems_freeze(machine: &Machine) {
    assert!(machine.holm(&["fsfreeze"], &[]).status().unwrap().success());
    let refused = machine.holm(&["exec"], &["true"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(24));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("frozen"));
    assert!(machine.holm(&["fsthaw"], &[]).status().unwrap().success());
    assert_eq!(
        machine.sh("echo written > /var/tmp/after; cat /var/tmp/after"),
        "written\n"
    );
}
