//! Disks of a running machine: a host that runs out of space, several queues,
//! discards, limits, and disks that come, grow and go.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{BOOT, Console, SOON, holm, image};
use serde_json::Value;

/// Starts `tiny` as machine `d` and waits for its shell.
fn start(command: &mut Command, runtime: &Path) -> Console {
    image("tiny");
    command
        .env("XDG_RUNTIME_DIR", runtime)
        .env("HOLM", env!("CARGO_BIN_EXE_holm"));
    let mut console = Console::start(command).unwrap();
    console.expect("leave the shell", BOOT).unwrap();
    console.expect("# ", SOON).unwrap();
    console
}

/// What a command in the guest printed.
fn guest(console: &mut Console, command: &str) -> String {
    begin(console, command);
    end(console)
}

fn begin(console: &mut Console, command: &str) {
    // The shell echoes what is typed, and breaks long lines.
    let line = format!("echo BEG''IN; {command}; echo EN''D\n");
    console.send(&line).unwrap();
    console.expect("BEGIN\r\n", SOON).unwrap();
}

fn end(console: &mut Console) -> String {
    let output = console.expect("END\r\n", BOOT).unwrap();
    output.replace("\r\n", "\n").trim().to_owned()
}

fn ask(runtime: &Path, arguments: &[&str]) -> Output {
    let mut command = holm();
    command.args(arguments).env("XDG_RUNTIME_DIR", runtime);
    command.output().unwrap()
}

fn done(runtime: &Path, arguments: &[&str]) -> String {
    let output = ask(runtime, arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

fn show(runtime: &Path) -> Value {
    serde_json::from_str(&done(runtime, &["show", "d", "-o", "json"])).unwrap()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs holm with its disk on a file system that is too small, in a mount
/// namespace of its own.
const SMALL: &str = "mount -t tmpfs -o size=12m small \"$1\" && \
    head -c 6M /dev/zero > \"$1/other\" && truncate -s 64M \"$1/disk.img\" && \
    exec \"$HOLM\" run tiny --name d --cpus 2 --append quiet --disk \"$1/disk.img,name=data\"";

#[test]
fn a_full_host_pauses_the_machine_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (runtime, small) = (directory.path(), directory.path().join("small"));
    fs::create_dir(&small).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c", SMALL, "sh"])
        .arg(&small);
    let mut console = start(&mut command, runtime);
    // The path as the machine's process sees it.
    let pid = show(runtime)["pid"].to_string();
    let small = Path::new("/proc")
        .join(pid)
        .join("root")
        .join(small.strip_prefix("/").unwrap());

    assert_eq!(guest(&mut console, "ls /sys/block/vda/mq | wc -l"), "2");
    guest(&mut console, "head -c 10485760 /dev/urandom > /tmp/data");
    begin(
        &mut console,
        "dd if=/tmp/data of=/dev/vda bs=1M conv=fsync 2>/dev/null; echo wrote $?",
    );
    let is_paused = || show(runtime)["state"] == "paused";
    wait_for("a pause", is_paused);
    let failure = show(runtime)["disks"][0]["failure"].to_string();
    assert!(failure.contains("No space left"), "{failure}");
    assert!(done(runtime, &["show", "d"]).contains("No space left"));
    // As long as there is no space it is paused again.
    let resumed = ask(runtime, &["resume", "d"]);
    wait_for("another pause", is_paused);
    // On a slow host it fails again after the command has looked.
    if !resumed.status.success() {
        assert_eq!(resumed.status.code(), Some(28));
        let said = String::from_utf8_lossy(&resumed.stderr);
        assert!(said.contains("paused again"), "{said}");
    }
    fs::remove_file(small.join("other")).unwrap();
    done(runtime, &["resume", "d"]);
    assert_eq!(end(&mut console), "wrote 0");
    assert_eq!(show(runtime)["state"], "running");
    assert_eq!(show(runtime)["disks"][0]["failure"], Value::Null);
    let same = "echo 3 > /proc/sys/vm/drop_caches; \
        head -c 10485760 /dev/vda | cmp - /tmp/data && echo same; dmesg | grep -ci 'i/o error'";
    assert_eq!(guest(&mut console, same), "same\n0");

    let blocks = || fs::metadata(small.join("disk.img")).unwrap().blocks() * 512;
    assert!(blocks() >= 10 << 20);
    guest(&mut console, "blkdiscard /dev/vda");
    wait_for("the space to be free again", || blocks() < 1 << 20);
    done(runtime, &["kill", "d"]);
    console.finish(SOON).unwrap();
}

#[test]
fn limits_and_block_sizes_are_seen_by_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    let disk = directory.path().join("disk.img");
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let disk = format!(
        "{},bps=4M,bps-burst=1M,block-size=4096,serial=SLOW",
        disk.display()
    );
    let mut command = holm();
    command.args([
        "run", "tiny", "--name", "d", "--append", "quiet", "--disk", &disk,
    ]);
    let mut console = start(&mut command, runtime);
    let block = guest(&mut console, "cat /sys/block/vda/queue/logical_block_size");
    assert_eq!(block, "4096");
    // 8 MiB at 4 MiB each second, of which 1 MiB and one request are free.
    let read = "a=$(cut -d. -f1 /proc/uptime); head -c 8388608 /dev/vda > /dev/null; \
        b=$(cut -d. -f1 /proc/uptime); [ $((b - a)) -ge 1 ] && echo slow";
    assert_eq!(guest(&mut console, read), "slow");
    let metrics = done(runtime, &["metrics", "d"]);
    let throttled = "holm_disk_throttled_total{disk=\"disk0\"} ";
    let at = metrics.find(throttled).expect("the counter is there") + throttled.len();
    assert!(!metrics[at..].starts_with('0'), "{metrics}");
    done(runtime, &["kill", "d"]);
    console.finish(SOON).unwrap();
}

/// Starts `tiny` as machine `d` with one disk, and a second one beside it.
fn with_two_disks(directory: &Path) -> (Console, String) {
    let (first, second) = (directory.join("first.img"), directory.join("second.img"));
    File::create(&first).unwrap().set_len(64 << 20).unwrap();
    File::create(&second).unwrap().set_len(16 << 20).unwrap();
    let mut command = holm();
    let first = format!("{},name=root", first.display());
    command.args(["run", "tiny", "--name", "d", "--cpus", "2"]);
    command.args(["--append", "quiet", "--disk", &first]);
    let console = start(&mut command, directory);
    (console, second.display().to_string())
}

const ALL_DISKS: &str = "cd /sys/block; echo vd*; cd /";

#[test]
fn disks_come_grow_and_go_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    let (mut console, second) = with_two_disks(runtime);
    // The other disk is busy all the time.
    let load = "(while :; do dd if=/dev/urandom of=/dev/vda bs=64k count=200 conv=fsync; \
        done) > /dev/null 2>&1 & echo $!";
    guest(&mut console, load);

    let disk = format!("{second},name=data,serial=HOT-1");
    let said = done(runtime, &["attach", "d", "--disk", &disk, "--wait", "60s"]);
    assert!(
        said.contains("data: attached, and the guest uses it"),
        "{said}"
    );
    let serial = guest(
        &mut console,
        "cat /sys/block/vdb/serial /sys/block/vdb/size",
    );
    assert_eq!(serial.replace('\n', ""), "HOT-132768");
    let disks = &show(runtime)["disks"];
    assert_eq!(disks[1]["name"], "data");
    assert_eq!(
        (&disks[1]["attached"], &disks[1]["in_use"]),
        (&true.into(), &true.into())
    );

    done(runtime, &["grow", "d", "data", "24M"]);
    let grown = "until [ $(cat /sys/block/vdb/size) = 49152 ]; do usleep 50000; done; echo grown";
    assert_eq!(guest(&mut console, grown), "grown");
    assert_eq!(
        ask(runtime, &["grow", "d", "data", "8M"]).status.code(),
        Some(28)
    );
    let write = "head -c 20971520 /dev/urandom > /tmp/data; \
        dd if=/tmp/data of=/dev/vdb bs=1M conv=fsync 2> /dev/null; \
        echo 3 > /proc/sys/vm/drop_caches; head -c 20971520 /dev/vdb | cmp - /tmp/data && echo same; \
        md5sum < /tmp/data";
    let written = guest(&mut console, write);
    let sum = written.strip_prefix("same\n").expect(&written);

    // A copy is of one instant, whatever is written meanwhile, and holds it all.
    let copy = runtime.join("copy.img").display().to_string();
    let said = done(runtime, &["snapshot", "disk", "d", "data", &copy]);
    assert!(said.starts_with("raw; the guest stood"), "{said}");
    let busy = runtime.join("busy.img").display().to_string();
    done(runtime, &["snapshot", "disk", "d", "root", &busy]);
    assert_eq!(std::fs::metadata(&busy).unwrap().len(), 64 << 20);
    let copied = Command::new("sh")
        .args(["-c", "head -c 20971520 \"$1\" | md5sum", "sh", &copy])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(copied.stdout).unwrap().trim(), sum);

    // What cannot be is refused by name.
    let refused = |arguments: &[&str], why: &str| {
        let output = ask(runtime, arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(28), "{arguments:?}: {text}");
        assert!(text.contains(why), "{arguments:?}: {text}");
    };
    refused(&["attach", "d", "--disk", &second], "already in use");
    refused(
        &["attach", "d", "--disk", "/nonexistent.img"],
        "no such file",
    );
    refused(&["attach", "d", "--disk", "/dev/zero,name=data"], "data");
    refused(
        &["snapshot", "disk", "d", "data", &copy],
        "such a file already",
    );
    refused(
        &["snapshot", "disk", "d", "other", "x"],
        "no disk \"other\"",
    );
    refused(&["detach", "d", "root"], "since the machine started");
    refused(&["detach", "d", "other"], "no disk \"other\"");
    refused(&["grow", "d", "other", "1G"], "no disk \"other\"");

    done(runtime, &["detach", "d", "data", "--wait", "60s"]);
    assert_eq!(guest(&mut console, ALL_DISKS), "vda");
    assert_eq!(show(runtime)["disks"].as_array().unwrap().len(), 1);
    let host = Command::new("sh")
        .args(["-c", "head -c 20971520 \"$1\" | md5sum", "sh", &second])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(host.stdout).unwrap().trim(), sum);

    // Again, for reading only, and pulled out.
    let disk = format!("{second},readonly");
    let said = done(runtime, &["attach", "d", "--disk", &disk, "--wait", "60s"]);
    let name = said.split(':').next().unwrap();
    let read = "cat /sys/block/vdb/ro; head -c 20971520 /dev/vdb | md5sum";
    assert_eq!(guest(&mut console, read), format!("1\n{sum}"));
    done(runtime, &["detach", "d", name, "--force"]);
    let gone = "until [ ! -e /sys/block/vdb ]; do usleep 50000; done; echo gone";
    assert_eq!(guest(&mut console, gone), "gone");
    let events = done(runtime, &["events", "d"]);
    assert_eq!(events.matches("attached").count(), 2, "{events}");
    assert_eq!(events.matches("detached").count(), 2, "{events}");
    done(runtime, &["kill", "d"]);
    console.finish(SOON).unwrap();
}

#[test]
fn attached_devices_are_in_a_snapshot_and_in_what_is_made_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    let (mut console, second) = with_two_disks(runtime);
    let disk = format!("{second},name=data");
    done(runtime, &["attach", "d", "--disk", &disk, "--wait", "60s"]);
    guest(
        &mut console,
        "echo attached before | dd of=/dev/vdb conv=fsync 2> /dev/null",
    );
    let nic = ["attach", "d", "--net", "user,name=out", "--wait", "60s"];
    done(runtime, &nic);
    let gateway = "ping -c 1 -w 30 10.0.7.2 | grep -o '1 packets received'";
    let up = format!("ip link set eth1 up; ip addr add 10.0.7.15/24 dev eth1; {gateway}");
    assert_eq!(guest(&mut console, &up), "1 packets received");
    let carrier =
        |text| format!("until grep {text} /sys/class/net/eth1/carrier; do sleep 0.1; done");
    done(runtime, &["link", "d", "out", "down"]);
    assert_eq!(guest(&mut console, &carrier("0")), "0");
    assert_eq!(show(runtime)["links_down"], serde_json::json!(["out"]));
    done(runtime, &["link", "d", "out", "up"]);
    assert_eq!(guest(&mut console, &carrier("1")), "1");
    let snapshot = runtime.join("snapshot");
    let snapshot = snapshot.to_str().unwrap();
    done(runtime, &["snapshot", "create", "d", snapshot]);
    guest(
        &mut console,
        "echo written after it | dd of=/dev/vdb conv=fsync 2> /dev/null",
    );
    done(runtime, &["kill", "d"]);
    console.finish(SOON).unwrap();

    let mut command = holm();
    command
        .args(["restore", snapshot, "--name", "d"])
        .env("XDG_RUNTIME_DIR", runtime);
    let mut console = Console::start(&mut command).unwrap();
    let read = "echo 3 > /proc/sys/vm/drop_caches; head -n 1 /dev/vdb";
    assert_eq!(guest(&mut console, read), "attached before");
    assert_eq!(guest(&mut console, gateway), "1 packets received");
    let nics = show(runtime)["attached_nics"].take();
    assert_eq!(
        (&nics[0]["name"], &nics[0]["in_use"]),
        (&"out".into(), &true.into())
    );
    done(runtime, &["detach", "d", "out", "--wait", "60s"]);
    assert_eq!(
        guest(&mut console, "ls /sys/class/net | tr '\\n' ' '"),
        "eth0 lo"
    );
    done(runtime, &["detach", "d", "data", "--wait", "60s"]);
    assert_eq!(guest(&mut console, ALL_DISKS), "vda");
    let disk = format!("{second},name=again");
    done(runtime, &["attach", "d", "--disk", &disk, "--wait", "60s"]);
    assert_eq!(guest(&mut console, read), "written after it");
    done(runtime, &["kill", "d"]);
    console.finish(SOON).unwrap();
}
