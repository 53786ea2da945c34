//! A `debian` that is logged in on its console.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::common::{BOOT, Console, SOON, base64, holm, image};

/// Time for a clean shutdown.
pub const OFF: Duration = Duration::from_secs(120);

pub fn logged_in(options: &[&str]) -> Console {
    image("debian");
    log_in(holm().args(["run", "debian"]).args(options))
}

/// The same for a command that starts a Debian.
pub fn log_in(command: &mut Command) -> Console {
    let mut console = Console::start(command).unwrap();
    console.expect("debian login: ", BOOT).unwrap();
    console.send("root\n").unwrap();
    console.expect("root@debian:~# ", BOOT).unwrap();
    console.send("stty -echo\n").unwrap();
    console.expect("# ", SOON).unwrap();
    console
}

/// Runs a script; what it printed, and its status.
pub fn sh(console: &mut Console, script: &str, patience: Duration) -> (String, i32) {
    let script = base64(script.as_bytes());
    console
        .send(&format!(
            "echo; echo BEGIN; echo {script} | base64 -d | sh; echo END $?\n"
        ))
        .unwrap();
    console.expect("\nBEGIN\r\n", SOON).unwrap();
    let output = console.expect("END ", patience).unwrap();
    let status = console
        .expect("\r\n", SOON)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    (output.replace("\r\n", "\n"), status)
}

pub fn power_off(mut console: Console) {
    console.send("systemctl poweroff\n").unwrap();
    let (status, rest) = console.finish(OFF).unwrap();
    assert_eq!(status.code(), Some(0), "{rest}");
}

/// Options that make the guest's apt reach its mirror as the host's does.
pub fn apt_options() -> String {
    let dump = Command::new("apt-config")
        .args(["dump", "--format", "%f=%v%n", "Acquire"])
        .output()
        .unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    let wanted = |line: &&str| {
        let name = line.split('=').next().unwrap_or_default();
        name.contains("::Proxy") || name.contains("Check-")
    };
    let mut options = String::new();
    for line in dump.lines().filter(wanted) {
        let line = line
            .replace("//127.0.0.1:", "//10.0.2.2:")
            .replace("//localhost:", "//10.0.2.2:");
        write!(options, " -o {line}").unwrap();
    }
    for name in ["http_proxy", "https_proxy"] {
        if let Ok(proxy) = std::env::var(name) {
            let scheme = name.trim_end_matches("_proxy");
            let proxy = proxy.replace("//127.0.0.1:", "//10.0.2.2:");
            write!(options, " -o Acquire::{scheme}::Proxy={proxy}").unwrap();
        }
    }
    options
}
