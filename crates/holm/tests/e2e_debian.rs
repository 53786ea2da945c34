//! A whole Debian: systemd to the login prompt, programs, disks, power.

mod common;
#[path = "common/debian.rs"]
mod debian;
#[path = "common/terminal.rs"]
mod terminal;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{BOOT, SOON, image};
use debian::{OFF, logged_in, power_off, sh};
use terminal::Terminal;

#[test]
fn boots_logs_in_and_runs_debians_programs() {
    let mut console = logged_in(&["--cpus", "2"]);
    let (output, status) = sh(
        &mut console,
        "systemctl is-system-running --wait\n\
         systemctl --failed --no-legend --no-pager\n\
         apt-get --version | head -n 1 | cut -d' ' -f1,3\n\
         python3 -c 'import math; print(math.factorial(30) % 1000000007, math.pi)'\n\
         perl -e 'print join(\",\", map { $_ * $_ } 1..5), \"\\n\"'\n\
         findmnt -no SOURCE,FSTYPE /\n\
         dpkg --verify libc6 bash coreutils | grep -v '^missing *[a-z]* */usr/share/'; echo intact\n\
         nproc",
        BOOT,
    );
    let expected = "running\napt (amd64)\n109361473 3.141592653589793\n1,4,9,16,25\n\
                    /dev/vda ext4\nintact\n2\n";
    assert_eq!((output.as_str(), status), (expected, 0));
    power_off(console);
}

#[test]
fn stress_ng_finds_nothing_wrong() {
    let mut console = logged_in(&["--cpus", "2", "--memory", "2G"]);
    let (output, status) = sh(
        &mut console,
        "cd /var/tmp; bad=0\n\
         for s in fork exec pthread mutex sigsegv sigfpe signest timer itimer mmap mprotect vm \
         vecmath matrix fp atomic pipe futex hdd; do\n\
           stress-ng --$s 2 --timeout 3s --verify > log 2>&1 || { echo $s; cat log; bad=1; }\n\
         done\n\
         dmesg | grep -E 'BUG|WARNING|Oops|lockup|rcu.*stall|general protection' && bad=1\n\
         exit $bad",
        Duration::from_secs(600),
    );
    assert_eq!((output.as_str(), status), ("", 0));
    power_off(console);
}

#[test]
fn the_power_button_shuts_down_cleanly() {
    image("debian");
    let mut terminal = Terminal::start(env!("CARGO_BIN_EXE_holm"), &["run", "debian"]);
    terminal.expect("debian login: ", BOOT);
    // logind listens for the button once it has started.
    std::thread::sleep(Duration::from_secs(3));
    terminal.send("\x01c");
    terminal.expect("(holm) ", SOON);
    terminal.send("power\rcontinue\r");
    assert_eq!(terminal.finish(OFF), Some(0));
}

#[test]
fn synced_files_survive_a_killed_machine() {
    let directory =
        tempfile::tempdir_in(image("debian").canonicalize().unwrap().parent().unwrap()).unwrap();
    let keep = directory.path().join("kept");
    let keep_option = ["--keep", keep.to_str().unwrap()];
    let mut console = logged_in(&keep_option);
    let (sums, status) = sh(
        &mut console,
        "mkdir /var/files; cd /var/files\n\
         for i in $(seq 200); do head -c $((i * 331)) /dev/urandom > $i; done\n\
         sync; cat $(seq 200) | sha256sum",
        BOOT,
    );
    assert_eq!(status, 0, "{sums}");
    // Files that are being written when the power goes.
    console
        .send("while :; do cp -r /var/files /var/more; rm -r /var/more; done\n")
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    drop(console);
    let mut console = logged_in(&keep_option);
    let (again, _) = sh(
        &mut console,
        "cd /var/files; cat $(seq 200) | sha256sum",
        BOOT,
    );
    assert_eq!(again, sums);
    let (errors, _) = sh(
        &mut console,
        "dmesg | grep -E 'EXT4-fs.*error|I/O error'",
        SOON,
    );
    assert_eq!(errors, "");
    power_off(console);
    is_clean(&keep.join("root.img"));
}

fn is_clean(disk: &Path) {
    let fsck = ["/usr/sbin/e2fsck", "/sbin/e2fsck"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("e2fsck is needed (package e2fsprogs)");
    let output = Command::new(fsck)
        .args(["-f", "-n"])
        .arg(disk)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn an_image_is_not_changed_by_its_machines() {
    let disk = image("debian").join("root.img");
    let before = std::fs::metadata(&disk).unwrap().modified().unwrap();
    let mut console = logged_in(&[]);
    let (_, status) = sh(&mut console, "echo changed > /etc/changed; sync", SOON);
    assert_eq!(status, 0);
    power_off(console);
    assert_eq!(
        std::fs::metadata(&disk).unwrap().modified().unwrap(),
        before
    );
    let mut console = logged_in(&[]);
    let (output, _) = sh(&mut console, "ls /etc/changed 2>/dev/null", SOON);
    assert_eq!(output, "");
}
