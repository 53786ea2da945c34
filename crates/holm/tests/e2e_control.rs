//! Machines with names: found, paused, reset, measured and ended from other
//! processes; clients that misbehave harm nothing.

mod common;
#[path = "common/terminal.rs"]
mod terminal;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::{BOOT, Console, SOON, holm, image};
use rustix::termios::LocalModes;
use serde_json::Value;
use terminal::Terminal;

fn at(runtime: &Path, arguments: &[&str]) -> Command {
    let mut command = holm();
    command
        .args(arguments)
        .env("XDG_RUNTIME_DIR", runtime)
        .env("XDG_STATE_HOME", runtime.join("state"));
    command
}

fn ask(runtime: &Path, arguments: &[&str]) -> Output {
    at(runtime, arguments).output().unwrap()
}

fn json(runtime: &Path, arguments: &[&str]) -> Value {
    let output = ask(runtime, arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn start(runtime: &Path, name: &str, more: &[&str]) -> Console {
    image("tiny");
    let mut arguments = vec!["run", "tiny", "--name", name, "--append", "quiet"];
    arguments.extend(more);
    let mut console = Console::start(&mut at(runtime, &arguments)).unwrap();
    console.expect("HOLM-READY ", BOOT).unwrap();
    console
}

fn interrupts(runtime: &Path) -> u64 {
    let metrics = json(runtime, &["metrics", "one", "-o", "json"]);
    let samples = &metrics["samples"]["holm_vcpu_interrupts_total"];
    let values = samples.as_array().unwrap().iter();
    values.map(|sample| sample["value"].as_u64().unwrap()).sum()
}

#[test]
fn a_named_machine_is_found_paused_measured_and_ended() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    assert_eq!(json(runtime, &["ls", "-o", "json"]), serde_json::json!([]));
    let mut console = start(runtime, "one", &["--cpus", "2"]);

    let all = json(runtime, &["ls", "-o", "json"]);
    assert_eq!(all[0]["name"], "one");
    assert_eq!(
        (&all[0]["state"], &all[0]["cpus"]),
        (&"running".into(), &2.into())
    );
    let again = ask(runtime, &["run", "tiny", "--name", "one"]);
    assert_eq!(again.status.code(), Some(2), "the name is taken");

    assert_eq!(ask(runtime, &["pause", "one"]).status.code(), Some(0));
    assert_eq!(
        json(runtime, &["show", "one", "-o", "json"])["state"],
        "paused"
    );
    let asked = ask(runtime, &["exec", "one", "--", "true"]);
    let text = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(text.contains("`holm resume one`"), "{text}");
    let before = interrupts(runtime);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        interrupts(runtime),
        before,
        "a paused machine takes no interrupts"
    );
    assert_eq!(ask(runtime, &["resume", "one"]).status.code(), Some(0));
    console.send("echo still $((6*7))\n").unwrap();
    console.expect("still 42", SOON).unwrap();
    assert!(interrupts(runtime) > before);

    clients_that_misbehave(&runtime.join("holm/machines/one/control.sock"));
    let text = ask(runtime, &["metrics", "one"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("holm_memory_size_bytes "), "{text}");
    assert!(
        text.contains("# TYPE holm_memory_resident_bytes gauge"),
        "{text}"
    );

    // Nothing listens to the power button in this image.
    let stopped = ask(runtime, &["stop", "one", "--wait", "1s"]);
    let text = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(stopped.status.code(), Some(0), "{text}");
    assert!(text.contains("power cut"), "{text}");
    console.finish(SOON).unwrap();
    assert_eq!(json(runtime, &["ls", "-o", "json"]), serde_json::json!([]));
    assert_eq!(ask(runtime, &["show", "one"]).status.code(), Some(28));
}

/// Half a line, nonsense, too much, no patience: the next client is served.
fn clients_that_misbehave(socket: &Path) {
    let mut silent = UnixStream::connect(socket).unwrap();
    silent.write_all(b"{\"request\":").unwrap();
    let mut flood = UnixStream::connect(socket).unwrap();
    let mut crowd: Vec<UnixStream> = Vec::new();
    for _ in 0..60 {
        crowd.extend(UnixStream::connect(socket));
    }
    flood
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let junk = vec![b'x'; 1 << 20];
    // It may be cut off on the way.
    let _ = flood.write_all(&junk);
    drop(crowd);
    drop(flood);
    let deadline = std::time::Instant::now() + SOON;
    let (mut stream, mut reader) = loop {
        let stream = UnixStream::connect(socket).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut hello = String::new();
        let read = reader.read_line(&mut hello);
        if read.is_ok() && hello.contains("\"protocol\":1") {
            break (stream, reader);
        }
        assert!(
            std::time::Instant::now() < deadline,
            "no client is served any more"
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    for (line, expected) in [
        ("{\"request\":\"fly\"}", "fly"),
        ("nonsense", "malformed"),
        ("{\"request\":\"pause\",\"for\":1}", "for"),
        ("{\"request\":\"describe\"}", "running"),
    ] {
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        assert!(answer.contains(expected), "{line}: {answer}");
    }
    let mut rest = Vec::new();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn a_killed_process_leaves_its_name_free() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    let console = start(runtime, "two", &[]);
    let pid = json(runtime, &["show", "two", "-o", "json"])["pid"].to_string();
    assert!(
        Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    drop(console);
    assert_eq!(json(runtime, &["ls", "-o", "json"]), serde_json::json!([]));
    let console = start(runtime, "two", &[]);
    assert_eq!(ask(runtime, &["kill", "two"]).status.code(), Some(0));
    console.finish(SOON).unwrap();
    for bad in ["", "../x", "a\nb"] {
        assert_eq!(
            ask(runtime, &["show", bad]).status.code(),
            Some(2),
            "{bad:?}"
        );
    }
}

/// `holm console` on a terminal of its own.
fn console(runtime: &Path, arguments: &[&str]) -> Terminal {
    let runtime = format!("XDG_RUNTIME_DIR={}", runtime.display());
    let words = [&runtime, env!("CARGO_BIN_EXE_holm"), "console"];
    Terminal::start("env", &[&words, arguments].concat())
}

/// Kills a machine in the background, whatever becomes of the test.
struct AtTheEnd<'a>(&'a Path, &'a str);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        // It has ended, if all went well.
        let _ = ask(self.0, &["kill", self.1]);
    }
}

#[test]
fn a_machine_in_the_background_is_followed_and_used_from_several_consoles() {
    image("tiny");
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    let run = ["run", "tiny", "--name", "far", "--append", "quiet", "-d"];
    let started = ask(runtime, &run);
    let text = String::from_utf8_lossy(&started.stderr);
    assert_eq!(started.status.code(), Some(0), "{text}");
    let _end = AtTheEnd(runtime, "far");
    let all = json(runtime, &["ls", "-o", "json"]);
    assert_eq!(
        (&all[0]["name"], &all[0]["state"]),
        (&"far".into(), &"running".into())
    );
    assert_eq!(
        ask(runtime, &run).status.code(),
        Some(2),
        "the name is taken"
    );
    let bad = ["run", "--kernel", "/no/such", "--name", "bad", "--detach"];
    let bad = ask(runtime, &bad);
    assert_eq!(bad.status.code(), Some(14), "as without --detach");
    assert!(String::from_utf8_lossy(&bad.stderr).contains("/no/such"));

    let mut follower = at(runtime, &["events", "far", "--follow", "-o", "json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut watcher = console(runtime, &["far", "--watch", "--replay", "256K"]);
    watcher.expect("(watching)", SOON);
    watcher.expect("# ", BOOT);
    let mut first = console(runtime, &["far"]);
    let before = first.settings();
    // What was printed before is printed again.
    first.expect("# ", SOON);
    assert!(!first.settings().local_modes.contains(LocalModes::ICANON));
    first.send("echo first $((6*7))\r");
    first.expect("first 42", SOON);
    watcher.expect("first 42", SOON);
    watcher.send("not for the guest\r");
    let mut second = console(runtime, &["far", "--replay", "0"]);
    second.expect("another has the keyboard", SOON);
    second.send("in vain\r");
    second.expect("another has the keyboard", SOON);
    second.send("\x01t");
    second.expect("you have the keyboard", SOON);
    first.expect("another has taken", SOON);
    second.send("echo second $((6*8)); stty size\r");
    second.expect("second 48", SOON);
    let between = first.expect("second 48", SOON);
    assert!(
        !between.contains("in vain") && !between.contains("not for"),
        "{between}"
    );
    first.send("\x1d");
    assert_eq!(first.finish(SOON), Some(0));
    assert_eq!(
        first.settings().local_modes,
        before.local_modes | LocalModes::ICANON
    );

    a_client_that_does_not_read(&runtime.join("holm/machines/far/control.sock"), &mut second);
    assert_eq!(ask(runtime, &["pause", "far"]).status.code(), Some(0));
    assert_eq!(ask(runtime, &["resume", "far"]).status.code(), Some(0));
    second.send("poweroff -f\r");
    second.expect("far has ended", SOON);
    assert_eq!(second.finish(SOON), Some(0));
    assert_eq!(watcher.finish(SOON), Some(0));
    let mut text = String::new();
    follower
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(follower.wait().unwrap().code(), Some(0));
    let events: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let kinds: Vec<&str> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap())
        .collect();
    let expected = [
        "started",
        "keyboard-taken",
        "keyboard-taken",
        "keyboard-taken",
        "keyboard-taken",
        "paused",
        "resumed",
        "ended",
    ];
    assert_eq!(kinds, expected, "{text}");
    assert!(events.iter().all(|e| e["name"] == "far"));
    assert_eq!(ask(runtime, &["events", "far"]).status.code(), Some(28));
    assert!(runtime.join("state/holm/machines/far.log").exists());
}

/// It takes the keyboard, types nonsense and reads nothing of what the guest
/// then prints; others go on.
fn a_client_that_does_not_read(socket: &Path, other: &mut Terminal) {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut ask = |line: &str, expected: &str| {
        (&stream).write_all(format!("{line}\n").as_bytes()).unwrap();
        loop {
            let answer = lines.next().unwrap().unwrap();
            if answer.contains(expected) {
                return;
            }
            let other = answer.contains("printed") || answer.starts_with("{\"protocol");
            assert!(other, "{line}: {answer}");
        }
    };
    ask(r#"{"request":"type","data":"eA=="}"#, "not attached");
    ask(r#"{"request":"console","keyboard":"steal"}"#, "steal");
    ask(
        r#"{"request":"console","keyboard":"take"}"#,
        r#"{"keyboard":{"held":true}}"#,
    );
    ask(r#"{"request":"fly"}"#, "fly");
    ask(r#"{"request":"type","data":"!"}"#, "base64");
    ask(r#"{"request":"pause"}"#, "not for a console");
    other.expect("another has taken", SOON);
    other.send("\x01t");
    other.expect("you have the keyboard", SOON);
    other.send("seq 1 60000; echo en''d\r");
    other.expect("\nend", BOOT);
}
