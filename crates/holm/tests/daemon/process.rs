//! The program `holm daemon`.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use host::Layout;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{self, BOOT};

pub fn daemon(layout: &Layout) -> Command {
    let mut command = common::holm();
    command
        .arg("daemon")
        .arg("--state")
        .arg(layout.root())
        .args(["--ec2", "127.0.0.1:0", "--grace", "1s"])
        .stdin(Stdio::null());
    command
}

pub fn start(layout: &Layout) -> Child {
    daemon(layout).spawn().unwrap()
}

pub fn signal(daemon: &Child, signal: Signal) {
    let pid = i32::try_from(daemon.id()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub fn wait(what: &str, test: impl Fn() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < BOOT, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The processes that run machines of a state directory.
pub fn machines(layout: &Layout) -> Vec<u32> {
    let within = layout.machines().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_machine = words.nth(1) == Some(b"machine");
        let of_layout = words
            .next()
            .is_some_and(|d| d.starts_with(within.as_bytes()));
        let pid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let Some(pid) = pid.filter(|_| is_machine && of_layout) {
            found.push(pid);
        }
    }
    found
}
