//! A `debian` that is logged in on its console.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::time::Duration;

use crate::common::{BOOT, Console, SOON, base64, holm, image};

/// Time for a clean shutdown.
pub const OFF: Duration = Duration::from_secs(120);

pub fn logged_in(options: &[&str]) -> Console {
    image("debian");
    let mut console = Console::start(holm().args(["run", "debian"]).args(options)).unwrap();
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
