//! Machines that start from their disk, as a user runs them.

mod common;

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bootdisk::ReaderError;
use bootdisk::isolated::Reader;
use common::{BOOT, Console, SOON, base64, holm, image, run};

const UUID: &str = "11111111-2222-4333-8444-666666666666";
const MENU: &str = "set default=second\n\
    menuentry First --id first { linux /boot/vmlinuz word=first console=ttyS0\n initrd /boot/initrd }\n\
    menuentry Second --id second { search --fs-uuid --set=root 11111111-2222-4333-8444-666666666666\n\
    linux /boot/vmlinuz word=second\n initrd /boot/initrd }\n\
    menuentry Broken { linux /boot/none }\n";

fn tool(name: &str, arguments: &[&str]) {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("env");
    command
        .arg(format!("PATH={path}"))
        .arg(name)
        .args(arguments);
    let done = command.output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{name} {arguments:?}: {error}");
}

/// A GPT disk with `tiny`'s kernel and initrd on ext4, and a menu.
fn disk(directory: &Path) -> PathBuf {
    let tiny = image("tiny");
    let boot = directory.join("root/boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    fs::copy(tiny.join("vmlinuz"), boot.join("vmlinuz")).unwrap();
    fs::copy(tiny.join("initrd"), boot.join("initrd")).unwrap();
    fs::write(boot.join("grub/grub.cfg"), MENU).unwrap();
    let disk = directory.join("disk.img");
    fs::File::create(&disk).unwrap().set_len(66 << 20).unwrap();
    let script = directory.join("table");
    fs::write(&script, "label: gpt\nstart=1MiB, size=64MiB, type=L\n").unwrap();
    let (disk_text, root) = (disk.to_str().unwrap(), directory.join("root"));
    let table = format!("sfdisk -q {disk_text} < {}", script.display());
    tool("sh", &["-c", &table]);
    let root = root.to_str().unwrap();
    let options = "offset=1048576";
    tool(
        "mke2fs",
        &[
            "-q", "-F", "-t", "ext4", "-U", UUID, "-d", root, "-E", options, disk_text, "64M",
        ],
    );
    disk
}

fn entries(arguments: &[&str]) -> Output {
    let mut command = holm();
    command
        .arg("boot-entries")
        .args(arguments)
        .stdin(Stdio::null());
    command.output().unwrap()
}

/// The command line that the guest sees when started so.
fn cmdline(options: &[&str]) -> String {
    let script = base64(b"echo BOOT-LINE $(cat /proc/cmdline)");
    let append = format!("cmd={script}");
    let mut console =
        Console::start(holm().arg("run").args(options).args(["--append", &append])).unwrap();
    console.expect("HOLM-READY ", BOOT).unwrap();
    console.expect("\n", SOON).unwrap();
    // The kernel has its say on the console too.
    console.expect("BOOT-LINE ", BOOT).unwrap();
    let output = console.expect("\n", SOON).unwrap();
    let (status, _) = console.finish(SOON).unwrap();
    assert_eq!(status.code(), Some(0));
    output.replace(&append, "").trim().to_owned()
}

#[test]
fn a_disk_starts_by_its_own_menu() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let disk = disk.to_str().unwrap();
    let listed = entries(&[disk, "-o", "json"]);
    assert_eq!(listed.status.code(), Some(0));
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let second = &listed["entries"][1];
    assert_eq!(
        (&second["number"], &second["id"], &second["default"]),
        (&1.into(), &"second".into(), &true.into())
    );
    assert_eq!(second["initrds"][0], "/boot/initrd");
    assert!(
        listed["entries"][2]["problem"]
            .as_str()
            .unwrap()
            .contains("/boot/none")
    );
    let text = String::from_utf8(entries(&[disk]).stdout).unwrap();
    assert!(text.contains("* 1  Second\n"), "{text}");

    assert_eq!(
        cmdline(&[disk]),
        "BOOT_IMAGE=/boot/vmlinuz word=second console=ttyS0"
    );
    let first = "BOOT_IMAGE=/boot/vmlinuz word=first console=ttyS0";
    assert_eq!(cmdline(&[disk, "--entry", "First"]), first);
    let own = [disk, "--entry", "0", "--cmdline", "console=ttyS0 mine"];
    assert_eq!(cmdline(&own), "console=ttyS0 mine");
}

#[test]
fn what_cannot_start_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let disk = disk.to_str().unwrap();
    let noise = directory.path().join("noise.img");
    fs::write(&noise, vec![0x5a; 1 << 20]).unwrap();
    let noise = noise.to_str().unwrap();
    for (arguments, code, words) in [
        (
            &[disk, "--entry", "nowhere"][..],
            14,
            "0: First, 1: Second, 2: Broken",
        ),
        (&[disk, "--entry", "2"], 14, "--entry"),
        (&[disk, "--entry", "9"], 14, "\"9\""),
        (&[noise], 14, "--kernel"),
        (&["/nowhere/disk.img"], 14, "/nowhere/disk.img"),
        (&[disk, "--initrd", noise], 2, "--kernel"),
        (&[disk, "--keep", noise], 2, "--keep"),
        (&["tiny", "--entry", "1"], 2, "--entry"),
        (&["--kernel", noise, "--entry", "1"], 2, "--entry"),
        (&[disk, "--memory", "4M"], 14, "--memory"),
    ] {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
    }
    let listed = entries(&[noise]);
    assert_eq!(listed.status.code(), Some(14));
    assert_eq!(entries(&["/nowhere"]).status.code(), Some(14));
}

/// The one child's status and limits.
fn child() -> (String, String) {
    let thread = "/proc/thread-self/children";
    let children = fs::read_to_string(thread).unwrap();
    let child = children.split_whitespace().next().unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/{child}/{name}")).unwrap();
    (read("status"), read("limits"))
}

#[test]
fn the_disks_reader_can_do_nothing_but_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = disk(directory.path());
    let file = fs::File::open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    let reader = Reader::of(env!("CARGO_BIN_EXE_holm"));
    let looked = std::cell::Cell::new(false);
    let found = reader.list(size, &|offset, out| {
        let (status, limits) = child();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let limit = |name: &str| {
            let line = limits.lines().find(|l| l.starts_with(name)).unwrap();
            assert!(!line.contains("unlimited"), "{line}");
        };
        for name in [
            "Max cpu time",
            "Max address space",
            "Max file size",
            "Max core file size",
        ] {
            limit(name);
        }
        looked.set(true);
        file.read_exact_at(out, offset)
    });
    assert!(looked.get());
    assert_eq!(found.unwrap().entries.len(), 3);

    // A disk that fails in the middle is an error of that disk.
    let reads = std::cell::Cell::new(0);
    let broken = reader.list(size, &|offset, out| {
        reads.set(reads.get() + 1);
        match reads.get() {
            1..3 => file.read_exact_at(out, offset),
            _ => Err(io::ErrorKind::Other.into()),
        }
    });
    assert!(broken.unwrap().entries.is_empty());
    // So is a program that is no reader, and one that is not there.
    for program in ["/bin/true", "/bin/cat"] {
        let failed = Reader::of(program).list(size, &|_, _| Ok(()));
        assert!(matches!(failed, Err(ReaderError::Failed(_))), "{failed:?}");
    }
    // However a reader ends or goes on, it is over and has a reason.
    let script = directory.path().join("reader");
    for (text, words) in [
        ("kill -ABRT $$", "memory"),
        ("kill -XCPU $$", "time"),
        ("kill -SYS $$", "must not"),
        ("kill -SEGV $$", "signal 11"),
        ("exec sleep 1000", "too long"),
        ("exec yes RRRRRRRRRRRR >&0", "too long"),
        ("exec yes A >&0", "gave no answer"),
        ("printf 'A\\2\\0\\0\\0{}' >&0; sleep 1000", "gave no answer"),
    ] {
        // Written by another process: a program that is open for writing, here
        // or in a fork of another test's thread, cannot be run.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\"; chmod 755 \"$0\"";
        tool("sh", &["-c", write, script.to_str().unwrap(), text]);
        let reader = Reader::of(&script).with_patience(Duration::from_secs(2));
        match reader.list(size, &|_, _| Ok(())) {
            Err(ReaderError::Failed(why)) if why.contains(words) => {}
            other => panic!("{text}: {other:?}"),
        }
    }
    let failed = Reader::of("/nowhere").list(size, &|_, _| Ok(()));
    assert!(matches!(failed, Err(ReaderError::Start(_))), "{failed:?}");
}

/// Damaged disks through the whole way: an answer or an error, never a crash.
#[test]
fn damaged_disks_are_read_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = disk(directory.path());
    let content = fs::read(&path).unwrap();
    let used: Vec<usize> = (0..content.len() / 512)
        .filter(|n| content[n * 512..(n + 1) * 512].iter().any(|b| *b != 0))
        .filter(|n| *n < 8192)
        .collect();
    let reader = Reader::of(env!("CARGO_BIN_EXE_holm"));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % below
    };
    let (mut good, mut refused) = (0, 0);
    for _ in 0..40 {
        let mut damaged = content.clone();
        for _ in 0..random(20) {
            let at = used[random(used.len())] * 512 + random(512);
            damaged[at] = random(256) as u8;
        }
        let read = |offset: u64, out: &mut [u8]| {
            let at = offset as usize;
            out.copy_from_slice(&damaged[at..at + out.len()]);
            Ok(())
        };
        match reader.load(damaged.len() as u64, &read, None, 64 << 20) {
            Ok(loaded) => {
                assert!(loaded.file.metadata().unwrap().len() >= loaded.pieces.kernel);
                good += 1;
            }
            Err(ReaderError::Start(error)) => panic!("{error}"),
            Err(_) => refused += 1,
        }
    }
    assert!(good > 0 && refused > 0, "{good} {refused}");
}

fn login(console: &mut Console) {
    console.expect("debian login: ", BOOT).unwrap();
    console.send("root\n").unwrap();
    console.expect("root@debian:~# ", BOOT).unwrap();
    console.send("stty -echo\n").unwrap();
    console.expect("# ", SOON).unwrap();
}

fn sh(console: &mut Console, script: &str) -> String {
    let script = base64(script.as_bytes());
    let line = format!("echo; echo BEGIN; echo {script} | base64 -d | sh 2>&1; echo END $?\n");
    console.send(&line).unwrap();
    console.expect("\nBEGIN\r\n", SOON).unwrap();
    let output = console.expect("END ", BOOT).unwrap();
    console.expect("# ", SOON).unwrap();
    output.replace("\r\n", "\n")
}

/// Debian's own GRUB configuration, made anew by the guest, is what the
/// machine starts after its reboot: at once, so that much of it is in the
/// file system's journal only.
#[test]
fn debian_starts_from_its_disk_and_again_from_what_it_made_of_it() {
    image("debian-disk");
    let options = ["run", "debian-disk", "--cpus", "2", "--on-reset", "reboot"];
    let mut console = Console::start(holm().args(options)).unwrap();
    login(&mut console);
    let script = "systemctl is-system-running --wait\n\
         systemctl --failed --no-legend --no-pager\n\
         findmnt -no SOURCE,FSTYPE /\n\
         tr ' ' '\\n' < /proc/cmdline | grep -v ^BOOT_IMAGE | tr '\\n' ' '; echo\n\
         systemctl is-active ssh systemd-networkd\n\
         which fio iperf3 cloud-init qemu-ga | wc -l";
    let expected = "running\n/dev/vda1 ext4\n\
         root=UUID=5e0b15c6-3a05-4c29-9c0e-0d1500000001 ro quiet console=ttyS0 \n\
         active\nactive\n4\n";
    assert_eq!(sh(&mut console, script), expected);
    let change = "set -e\n\
         echo 'GRUB_CMDLINE_LINUX=\"holm.made=again\"' >> /etc/default/grub\n\
         cp /boot/vmlinuz-*-cloud-amd64 /boot/vmlinuz-99.1-new\n\
         cp /boot/initrd.img-*-cloud-amd64 /boot/initrd.img-99.1-new\n\
         update-grub > /dev/null 2>&1; sync; echo done";
    assert_eq!(sh(&mut console, change), "done\n");
    console.send("echo b > /proc/sysrq-trigger\n").unwrap();
    login(&mut console);
    let line = sh(&mut console, "cat /proc/cmdline");
    assert!(
        line.starts_with("BOOT_IMAGE=/boot/vmlinuz-99.1-new "),
        "{line}"
    );
    assert!(line.contains(" holm.made=again "), "{line}");
    console.send("systemctl poweroff\n").unwrap();
    let (status, rest) = console.finish(Duration::from_secs(120)).unwrap();
    assert_eq!(status.code(), Some(0), "{rest}");
}
