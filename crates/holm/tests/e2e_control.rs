//! Machines with names: found, paused, reset, measured and ended from other
//! processes; clients that misbehave harm nothing.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::{BOOT, Console, SOON, holm, image};
use serde_json::Value;

fn at(runtime: &Path, arguments: &[&str]) -> Command {
    let mut command = holm();
    command.args(arguments).env("XDG_RUNTIME_DIR", runtime);
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
    for bad in ["", "../x", "a b"] {
        assert_eq!(
            ask(runtime, &["show", bad]).status.code(),
            Some(2),
            "{bad:?}"
        );
    }
}
