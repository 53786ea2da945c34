//! What a guest says of its start: on its console, and by its agent.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use base64::Engine;
use fuzzing::Fuzz;
use provisioning::{BootProgress, Places, observe};

fn fuzz<'a>(name: &'a str, words: &'a [&'a [u8]]) -> Fuzz<'a> {
    Fuzz {
        name,
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words,
        longest: 4000,
    }
}

/// What users are shown is bounded, and no terminal obeys it.
fn shown(progress: &BootProgress) -> String {
    assert!(progress.failures.len() <= 100 && progress.warnings.len() <= 20);
    let texts = progress
        .failures
        .iter()
        .flat_map(|failure| [&failure.what, &failure.output])
        .chain(&progress.warnings)
        .chain(&progress.datasource);
    for text in texts {
        assert!(text.len() <= 16 << 10, "{} bytes", text.len());
        let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        assert!(!text.contains(harmful), "{text:?}");
    }
    let stages = progress.stages.iter().map(|stage| stage.stage.to_string());
    let stages: Vec<String> = stages.collect();
    format!(
        "{stages:?} {} {} {} {}",
        progress.failures.len().min(3),
        progress.warnings.len().min(2),
        progress.ready.is_some(),
        progress.datasource.is_some()
    )
}

#[test]
fn a_console_can_say_anything() {
    let words: [&[u8]; 14] = [
        b"[    0.000000] Linux version 6.1\n",
        b"[    1.5] systemd[1]: ",
        b"Kernel panic - not syncing: ",
        b"You are in emergency mode",
        b"(initramfs)",
        b"cloud-init[200]: ",
        b"Cloud-init v. 22 running 'init' at x. Up 5.0 seconds.\n",
        b"Cloud-init v. 22 running 'modules:final' at x. Up 1e300 seconds.\n",
        b"Cloud-init v. 22 finished at x. Datasource DataSourceEc2.  Up 9 seconds\n",
        b"[WARNING]: ",
        b"Running module scripts-user (x) failed\n",
        b"\x1b[31m",
        b"'",
        b"\xff",
    ];
    let directory = tempfile::tempdir().unwrap();
    let serial = directory.path().join("serial");
    let places = Places {
        agent: Path::new("/nowhere/agent"),
        serial: &serial,
        started: SystemTime::UNIX_EPOCH,
    };
    fuzz("console", &words).run(|bytes| {
        std::fs::write(&serial, bytes).unwrap();
        shown(&observe(places))
    });
}

/// An agent whose program printed `output`, on as many connections as come.
fn agent(listener: UnixListener, output: Arc<Mutex<Vec<u8>>>) {
    while let Ok((stream, _)) = listener.accept() {
        let mut requests = BufReader::new(&stream);
        let mut line = String::new();
        while requests.read_line(&mut line).is_ok_and(|count| count > 0) {
            let output = output.lock().unwrap();
            let answer = match output.split_first() {
                // What an agent answers can be anything, too.
                Some((b'!', raw)) => {
                    let end = raw.iter().position(|byte| *byte == b'\n');
                    [raw.get(..end.unwrap_or(raw.len())).unwrap(), b"\n"].concat()
                }
                _ if line.contains("guest-exec-status") => {
                    let data = base64::engine::general_purpose::STANDARD.encode(&*output);
                    let answer = format!(
                        "{{\"return\":{{\"exited\":true,\"exitcode\":0,\"out-data\":\"{data}\"}}}}\n"
                    );
                    answer.into_bytes()
                }
                _ => b"{\"return\":{\"pid\":7}}\n".to_vec(),
            };
            if (&stream).write_all(&answer).is_err() {
                break;
            }
            line.clear();
        }
    }
}

#[test]
fn an_agent_can_say_anything() {
    let words: [&[u8]; 16] = [
        b"\n@@holm clock\n1000.5\n40.00 70.00\n",
        b"\n@@holm boot\nUserspaceTimestampMonotonic=3000000\n",
        b"FinishTimestampMonotonic=9000000\n",
        b"\n@@holm unit network.target\nActiveEnterTimestampMonotonic=1\n",
        b"\n@@holm unit cloud-final.service\nLoadState=loaded\n",
        b"\n@@holm present\n/usr/bin/cloud-init\n",
        b"\n@@holm status\n{\"v1\": {\"datasource\": \"DataSourceEc2Local\"}}\n",
        b"{\"v1\": {\"init\": {\"errors\": [\"x\"], \"start\": 965.5, \"finished\": 1e308}}}",
        b"('scripts-user', RuntimeError('Runparts: 1 failures (part-001, part-002)",
        b"\n@@holm log\nFailed running /x/part-001 [7]\n",
        b"\n@@holm output\nCloud-init v. 22 running 'modules:final' at\n",
        b"[WARNING]: ",
        b"99999999999999999999",
        b"!{\"return\": ",
        b"{\"exited\": true, \"out-data\": \"AAAA\"}}",
        b"\x1b[31m",
    ];
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent");
    let output = Arc::new(Mutex::new(Vec::new()));
    let (listener, said) = (UnixListener::bind(&socket).unwrap(), output.clone());
    std::thread::spawn(move || agent(listener, said));
    let serial = directory.path().join("serial");
    let places = Places {
        agent: &socket,
        serial: &serial,
        started: SystemTime::UNIX_EPOCH,
    };
    fuzz("agent", &words).run(|bytes| {
        *output.lock().unwrap() = bytes.to_vec();
        shown(&observe(places))
    });
}
