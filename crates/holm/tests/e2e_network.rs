//! Machines on networks: switches, a router between them, taps and bridges.

mod common;
#[path = "common/terminal.rs"]
mod terminal;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{BOOT, Console, SOON, holm, image};
use terminal::Terminal;

/// A machine `tiny` with a shell on its console.
struct Node(Console);

impl Node {
    fn start(runtime: &Path, options: &[&str]) -> Self {
        image("tiny");
        let mut command = holm();
        command
            .args(["run", "tiny", "--append", "quiet"])
            .args(options)
            .env("XDG_RUNTIME_DIR", runtime);
        Self(Console::start(&mut command).unwrap())
    }

    /// Waits for the shell and sets the cards' addresses.
    fn up(&mut self, addresses: &[&str]) {
        self.0.expect("# ", BOOT).unwrap();
        for (n, address) in addresses.iter().enumerate() {
            self.run(&format!(
                "ip link set eth{n} up; ip addr add {address}/24 dev eth{n}"
            ));
        }
    }

    /// Types a command without waiting for its end.
    fn start_command(&mut self, command: &str) {
        self.0
            .send(&format!("echo BE''GIN; {command}; echo EN''D $?\n"))
            .unwrap();
    }

    /// What the command printed; it must succeed.
    fn finish_command(&mut self) -> String {
        self.0.expect("BEGIN\r\n", BOOT).unwrap();
        let output = self.0.expect("END ", BOOT).unwrap();
        let status = self.0.expect("\n", SOON).unwrap();
        assert_eq!(status.trim(), "0", "{output}");
        output.replace("\r\n", "\n")
    }

    fn run(&mut self, command: &str) -> String {
        self.start_command(command);
        self.finish_command()
    }

    fn off(mut self) {
        self.0.send("poweroff -f\n").unwrap();
        let (status, _) = self.0.finish(SOON).unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

/// Frames of a pcap file with nanoseconds: seconds and bytes.
fn frames(file: &Path) -> Vec<(u32, Vec<u8>)> {
    let bytes = fs::read(file).unwrap();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_3c4d, 1));
    let mut frames = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let length = word(at + 8) as usize;
        assert!(word(at + 4) < 1_000_000_000 && word(at + 12) as usize >= length);
        frames.push((word(at), bytes[at + 16..at + 16 + length].to_vec()));
        at += 16 + length;
    }
    frames
}

#[test]
fn a_router_machine_leads_from_one_switch_to_another() {
    let runtime = tempfile::tempdir().unwrap();
    let pcap = runtime.path().join("a.pcap");
    let net = format!("switch=left,pcap={}", pcap.display());
    let mut a = Node::start(runtime.path(), &["--net", &net]);
    let mut router = Node::start(
        runtime.path(),
        &["--net", "switch=left", "--net", "switch=right"],
    );
    let mut b = Node::start(runtime.path(), &["--net", "switch=right,rate=80mbit"]);
    a.up(&["10.1.0.2"]);
    router.up(&["10.1.0.1", "10.2.0.1"]);
    b.up(&["10.2.0.2"]);
    router.run("echo 1 > /proc/sys/net/ipv4/ip_forward");
    a.run("ip route add default via 10.1.0.1");
    b.run("ip route add default via 10.2.0.1");
    let ping = a.run("ping -c 3 -s 1400 10.2.0.2");
    assert!(ping.contains("ttl=63"), "{ping}");
    assert!(ping.contains(" 0% packet loss"), "{ping}");

    // 8 MiB through the router, whole, and not faster than the cap allows.
    let sum = b.run("head -c 8388608 /dev/urandom > /tmp/x; md5sum < /tmp/x");
    a.start_command("nc -l -p 5000 | md5sum");
    a.0.expect("BEGIN\r\n", SOON).unwrap();
    let begin = Instant::now();
    b.run("until nc 10.1.0.2 5000 < /tmp/x; do usleep 100000; done");
    let got = a.0.expect("END ", BOOT).unwrap();
    assert!(
        begin.elapsed() > Duration::from_millis(700),
        "8 MiB at 80 Mbit/s take 0.8 s, not {:?}",
        begin.elapsed()
    );
    assert_eq!(got.replace("\r\n", "\n"), sum);

    // The capture has the echo requests, as sent.
    let requests = frames(&pcap)
        .iter()
        .filter(|(_, frame)| frame.len() == 14 + 20 + 8 + 1400 && frame[23] == 1 && frame[34] == 8)
        .count();
    assert_eq!(requests, 3);
    for node in [a, router, b] {
        node.off();
    }
    let left = fs::read_dir(runtime.path().join("holm/switch/left")).unwrap();
    assert_eq!(left.count(), 0, "members that ended in order leave nothing");
}

#[test]
fn a_killed_member_harms_nobody_and_counters_are_shown() {
    let runtime = tempfile::tempdir().unwrap();
    image("tiny");
    let mut victim = Node::start(runtime.path(), &["--net", "switch=lab"]);
    victim.up(&["10.1.0.2"]);
    drop(victim); // Killed.
    let mut b = Node::start(runtime.path(), &["--net", "switch=lab"]);
    b.up(&["10.1.0.2"]);
    let variable = format!("XDG_RUNTIME_DIR={}", runtime.path().display());
    let arguments = [
        &variable,
        env!("CARGO_BIN_EXE_holm"),
        "run",
        "tiny",
        "--append",
        "quiet",
        "--net",
        "switch=lab,mac=02:00:00:00:00:aa",
    ];
    let mut a = Terminal::start("env", &arguments);
    a.expect("# ", BOOT);
    a.send("ip link set eth0 up; ip addr add 10.1.0.1/24 dev eth0; ping -c 4 10.1.0.2\r");
    a.expect("4 packets received", BOOT);
    a.send("\x01c");
    a.expect("(holm) ", SOON);
    a.send("statistics\r");
    a.expect("network card 0: 02:00:00:00:00:aa on switch lab, up", SOON);
    let counters = a.expect("(holm) ", SOON);
    let packets: Vec<u64> = counters
        .lines()
        .filter_map(|line| {
            let (count, _) = line.split_once(" packets")?;
            count.split_whitespace().last()?.parse().ok()
        })
        .collect();
    assert!(
        packets.len() == 2 && packets.iter().all(|n| *n >= 5),
        "{counters}"
    );
    a.send("quit\r");
    assert_eq!(a.finish(SOON), Some(20));
    b.off();
}

/// Taps and bridges need privilege: a network namespace gives it, and keeps
/// the host's network as it is.
#[test]
fn taps_and_bridges_are_used_and_left_as_they_were() {
    in_its_own_network("bridge.sh", &[]);
}

/// What traces routes in a guest sees its router, the host's, and the end.
#[test]
fn a_route_is_traced_through_the_user_network() {
    in_its_own_network("traceroute.sh", &[]);
}

/// A daemon with privilege: private addresses and port 22 of public ones are
/// reached from the host.
#[test]
fn the_host_reaches_private_addresses_and_leaves_nothing() {
    let tiny = image("tiny");
    in_its_own_network("host_port.sh", &[tiny.as_os_str()]);
}

/// Runs a script that ends with "ALL-WELL", with the path of holm first.
fn in_its_own_network(script: &str, arguments: &[&OsStr]) {
    image("tiny");
    let directory = tempfile::tempdir().unwrap();
    let root = rustix::process::geteuid().is_root();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    let output = Command::new("unshare")
        .args(if root {
            &["-n", "-m"][..]
        } else {
            &["-r", "-n", "-m"]
        })
        .arg("sh")
        .args([
            scripts.join(script).as_os_str(),
            env!("CARGO_BIN_EXE_holm").as_ref(),
        ])
        .args(arguments)
        .current_dir(directory.path())
        .env("HOME", std::env::var_os("HOME").unwrap_or_default())
        .stdin(Stdio::null())
        .output()
        .expect("unshare is needed (package util-linux)");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("ALL-WELL"), "{text}\n{errors}");
}

#[test]
fn impossible_networks_are_refused_with_the_way_out() {
    let refused = |net: &str| {
        let output = common::run(&["tiny", "--net", net]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    image("tiny");
    let (code, text) = refused("bridge=holm-no-such");
    assert_eq!(code, Some(16), "{text}");
    assert!(
        text.contains("holm-no-such") && text.contains("--net user"),
        "{text}"
    );
    let (code, text) = refused("switch=a/b");
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = refused("user,queues=9");
    assert_eq!(code, Some(16), "{text}");
    assert!(text.contains("1 queue pair"), "{text}");
    let (code, text) = refused("user,pcap=/no/where/x.pcap");
    assert_eq!(code, Some(14), "{text}");
    assert!(text.contains("/no/where/x.pcap"), "{text}");
}
