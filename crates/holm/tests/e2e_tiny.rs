//! The stock Debian kernel to user space, and what a guest sees and can do.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{BOOT, Console, SOON, base64, compile, cpu_time, holm, image, run, tar_disk, tiny};

fn boots_with(cpus: u32) {
    let answer = tiny(
        &["--cpus", &cpus.to_string()],
        "uname -s; nproc; dmesg -r | grep -c '<[0-3]>'",
    );
    let lines: Vec<&str> = answer.output.lines().collect();
    assert_eq!(
        lines,
        ["Linux", &cpus.to_string(), "0"],
        "{}",
        answer.output
    );
    // grep found no line of level "error" or worse, so its status is 1.
    assert_eq!((answer.status, answer.code), (1, Some(0)));
}

#[test]
fn boots_with_one_cpu() {
    boots_with(1);
}

#[test]
fn boots_with_two_cpus() {
    boots_with(2);
}

#[test]
fn boots_with_four_cpus() {
    boots_with(4);
}

#[test]
fn a_guest_has_the_memory_asked_for() {
    for megabytes in [256u64, 1024, 5120] {
        let answer = tiny(
            &["--memory", &format!("{megabytes}M")],
            "grep MemTotal /proc/meminfo | tr -dc 0-9",
        );
        let seen: u64 = answer.output.trim().parse().unwrap();
        let asked = megabytes * 1024;
        // The kernel keeps its own text and page structures out of the total.
        assert!(
            seen < asked && seen > asked * 9 / 10 - 64 * 1024,
            "{seen} of {asked} KiB"
        );
    }
}

#[test]
fn a_command_reports_its_output_and_status() {
    let answer = tiny(&[], "echo out; exit 42");
    assert_eq!(
        (answer.output.as_str(), answer.status, answer.code),
        ("out\n", 42, Some(0))
    );
}

#[test]
fn the_debug_exit_port_gives_the_status() {
    image("tiny");
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "debugexit", &[]);
    let disk = tar_disk(directory.path(), &[&program]);
    let disk = format!("{},readonly", disk.display());
    let unpack = "cd /tmp && tar xf /dev/vda && ./debugexit";
    for value in [0u8, 3, 127] {
        let append = format!(
            "quiet cmd={}",
            base64(format!("{unpack} {value}").as_bytes())
        );
        let output = run(&["tiny", "--debug-exit", "--disk", &disk, "--append", &append]);
        assert_eq!(output.status.code(), Some(i32::from(value) << 1 | 1));
    }
    // Without the option the port is nothing, and the guest goes on.
    let answer = tiny(
        &["--disk", &disk],
        &format!("{unpack} 3 && echo still here"),
    );
    assert_eq!(
        (answer.output.as_str(), answer.code),
        ("still here\n", Some(0))
    );
}

#[test]
fn a_reset_ends_the_machine_or_boots_it_again() {
    image("tiny");
    let append = format!("quiet cmd={}", base64(b"reboot -f; sleep 60"));
    let output = run(&["tiny", "--append", &append]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let mut console =
        Console::start(holm().args(["run", "tiny", "--on-reset", "reboot", "--append", &append]))
            .unwrap();
    for _ in 0..3 {
        console.expect("HOLM-READY ", BOOT).unwrap();
    }
}

#[test]
fn a_triple_fault_has_its_own_status() {
    image("tiny");
    let append = format!("quiet reboot=triple cmd={}", base64(b"reboot -f; sleep 60"));
    let output = run(&["tiny", "--append", &append]);
    assert_eq!(output.status.code(), Some(12));
    assert!(String::from_utf8_lossy(&output.stderr).contains("triple fault"));
}

#[test]
fn a_timeout_ends_a_machine_that_does_not() {
    image("tiny");
    let start = std::time::Instant::now();
    let output = run(&["tiny", "--timeout", "3s"]);
    assert_eq!(output.status.code(), Some(10));
    assert!((3..30).contains(&start.elapsed().as_secs()));
}

#[test]
fn a_serial_console_goes_to_a_file() {
    image("tiny");
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("console.log");
    let serial = format!("file={}", log.display());
    let append = format!("quiet cmd={}", base64(b"echo in the file"));
    let output = run(&["tiny", "--serial", &serial, "--append", &append]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    assert!(fs::read_to_string(log).unwrap().contains("in the file\r\n"));
}

#[test]
fn piped_input_reaches_the_shell_and_its_end_is_harmless() {
    image("tiny");
    let mut console = Console::start(holm().args(["run", "tiny", "--append", "quiet"])).unwrap();
    console.expect("# ", BOOT).unwrap();
    console
        .send("echo gr\u{fc}\u{df}e \u{1f600} | tee /tmp/x; wc -c < /tmp/x\n")
        .unwrap();
    console
        .expect("\ngr\u{fc}\u{df}e \u{1f600}\r\n13\r\n", SOON)
        .unwrap();
    // The sleep outlives the end of stdin.
    console.send("sleep 2; poweroff -f\n").unwrap();
    let (status, _) = console.finish(SOON).unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_long_paste_arrives_complete() {
    image("tiny");
    let mut console = Console::start(holm().args(["run", "tiny", "--append", "quiet"])).unwrap();
    console.expect("# ", BOOT).unwrap();
    console
        .send("stty raw -echo; echo GO''ON; head -c 40000 | md5sum; stty sane\n")
        .unwrap();
    console.expect("GOON", SOON).unwrap();
    console.expect("\n", SOON).unwrap();
    let text: String = (0..40_000u32)
        .map(|i| char::from(b'!' + (i * i % 89) as u8))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("text");
    fs::write(&file, &text).unwrap();
    let sum = std::process::Command::new("md5sum")
        .arg(&file)
        .output()
        .unwrap()
        .stdout;
    let sum = String::from_utf8(sum).unwrap();
    console.send(&text).unwrap();
    console
        .expect(sum.split(' ').next().unwrap(), BOOT)
        .unwrap();
}

#[test]
fn an_idle_guest_lets_the_host_sleep() {
    image("tiny");
    let mut console =
        Console::start(holm().args(["run", "tiny", "--cpus", "2", "--append", "quiet"])).unwrap();
    console.expect("# ", BOOT).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let before = cpu_time(console.id());
    std::thread::sleep(Duration::from_secs(10));
    let used = cpu_time(console.id()) - before;
    assert!(
        used < Duration::from_millis(200),
        "{used:?} in 10 s is over 2% of a core"
    );
}

#[test]
fn disks_are_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let (data, fixed) = (
        directory.path().join("data.img"),
        directory.path().join("fixed.img"),
    );
    File::create(&data).unwrap().set_len(8 << 20).unwrap();
    fs::write(&fixed, [b'F'; 4096]).unwrap();
    let answer = tiny(
        &[
            "--disk",
            &format!("{},serial=DATA-1", data.display()),
            "--disk",
            &format!("{},readonly", fixed.display()),
        ],
        "set -e\n\
         cat /sys/block/vda/serial /sys/block/vda/size /sys/block/vda/ro; echo\n\
         cat /sys/block/vdb/size /sys/block/vdb/ro\n\
         yes holm | head -c 1048576 | dd of=/dev/vda bs=64k seek=4 conv=fsync 2>/dev/null\n\
         dd if=/dev/vda bs=64k skip=4 count=16 2>/dev/null | md5sum\n\
         yes holm | head -c 1048576 | md5sum\n\
         head -c 3 /dev/vdb; echo\n\
         if dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null; then echo WROTE; fi",
    );
    let lines: Vec<&str> = answer
        .output
        .lines()
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(
        lines[..5],
        ["DATA-116384", "0", "8", "1", lines[4]],
        "{}",
        answer.output
    );
    assert_eq!(
        lines[4], lines[5],
        "the guest read other data than it wrote"
    );
    assert_eq!(lines[6..], ["FFF"], "{}", answer.output);
    let mut written = [0; 5];
    File::open(&data)
        .unwrap()
        .read_exact_at(&mut written, 256 << 10)
        .unwrap();
    assert_eq!(&written, b"holm\n");
    assert_eq!(fs::read(&fixed).unwrap(), [b'F'; 4096]);
}

#[test]
fn random_numbers_come_from_the_host() {
    let answer = tiny(
        &[],
        "cat /sys/class/misc/hw_random/rng_current; head -c 32 /dev/hwrng | od -An -tx1 | tr -d ' \\n'",
    );
    let (name, bytes) = answer.output.split_once('\n').unwrap();
    assert!(name.starts_with("virtio_rng"), "{name}");
    assert_eq!(bytes.len(), 64);
    assert_ne!(bytes, "0".repeat(64));
}

#[test]
fn the_guests_clock_is_right_and_runs_at_the_right_speed() {
    let answer = tiny(
        &[],
        "date +%s; a=$(cat /proc/uptime); sleep 3; echo $a; cat /proc/uptime; date +%s",
    );
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let numbers: Vec<f64> = answer
        .output
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let [start, before, _, after, _, end] = numbers[..] else {
        panic!("{}", answer.output)
    };
    assert!(
        (now - end).abs() < 5.0,
        "the guest says {end}, the host {now}"
    );
    assert!(
        (2.9..4.0).contains(&(after - before)),
        "{} s of uptime",
        after - before
    );
    assert!((2.0..=5.0).contains(&(end - start)));
}

#[test]
fn cpu_models_show_what_they_name() {
    let flags = |model: &str| tiny(&["--cpu", model], "grep -m1 ^flags /proc/cpuinfo").output;
    let v2 = flags("v2");
    for flag in ["sse4_2", "popcnt", "ssse3", "cx16", "lahf_lm"] {
        assert!(
            v2.split_whitespace().any(|f| f == flag),
            "v2 lacks {flag}: {v2}"
        );
    }
    assert!(!v2.contains("avx") && !v2.contains("bmi2"), "{v2}");
    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    if host.contains(" avx2 ") && host.contains(" bmi2 ") {
        let v3 = flags("v3");
        for flag in ["avx2", "bmi1", "bmi2", "fma", "movbe", "f16c"] {
            assert!(
                v3.split_whitespace().any(|f| f == flag),
                "v3 lacks {flag}: {v3}"
            );
        }
    } else {
        let output = run(&["tiny", "--cpu", "v3"]);
        assert_eq!(output.status.code(), Some(16));
    }
}
