//! Clients of the control socket that send anything, and snapshots that
//! somebody has edited: refused, or taken; nothing panics or hangs.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use fuzzing::{Fuzz, Input};
use machine::snapshot::Snapshot;
use machine::{CpuChoice, Machine, RunState};
use support::{consoles, description};

fn soft(
    ram: std::sync::Arc<memory::GuestRam>,
    cpus: u32,
    cpu: CpuChoice,
) -> Result<std::sync::Arc<dyn engine::Engine>, engine::EngineError> {
    engine_soft::SoftEngine::new(ram, cpus, cpu)
}

const LONG: Duration = Duration::from_secs(60);

fn fuzz<'a>(name: &'a str, words: &'a [&'a [u8]]) -> Fuzz<'a> {
    Fuzz {
        name,
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words,
        longest: 3000,
    }
}

/// All that comes back from one that sends these bytes and then no more.
fn told(socket: &Path, bytes: &[u8]) -> String {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return String::new();
    };
    stream.set_read_timeout(Some(LONG)).unwrap();
    // It may be cut off on the way.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        read => drop(read.unwrap()),
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn next_client_is_served(socket: &Path) -> bool {
    let text = told(
        socket,
        b"{\"request\":\"resume\"}\n{\"request\":\"describe\"}\n",
    );
    let lines: Vec<&str> = text.lines().collect();
    matches!(lines[..], [hello, "\"done\"", state] if hello.contains("protocol") && state.contains("running"))
}

#[test]
fn a_control_socket_survives() {
    let words: [&[u8]; 12] = [
        b"{\"request\":\"describe\"}\n",
        b"{\"request\":\"metrics\"}\n",
        b"{\"request\":\"pause\"}\n",
        b"{\"request\":\"resume\"}\n",
        b"{\"request\":\"events\",\"follow\":true}\n",
        b"{\"request\":\"console\",\"keyboard\":\"take\",\"replay\":99}\n",
        b"{\"request\":\"type\",\"data\":\"QUJD\"}\n",
        b"{\"request\":\"take-keyboard\"}\n",
        b"{\"request\":\"console-size\",\"columns\":1,\"rows\":2}\n",
        b"{\"request\":\"balloon\",\"memory\":99999999}\n",
        b"{\"request\":\"nmi\"}\n",
        b"\n",
    ];
    let directory = tempfile::tempdir().unwrap();
    let idle = description("idle", 1, "");
    let mut running: Option<(Machine, std::path::PathBuf)> = None;
    let mut started = 0;
    fuzz("control", &words).run(|bytes| {
        // One that was killed or reset by its client is replaced.
        let (machine, socket) = match running.take() {
            Some((machine, socket)) if machine.run_state() != RunState::Ended => (machine, socket),
            _ => {
                started += 1;
                let socket = directory.path().join(format!("control-{started}"));
                let machine = Machine::new(idle.clone(), &soft, consoles(&Default::default()));
                let machine = machine.unwrap();
                machine
                    .serve_control(UnixListener::bind(&socket).unwrap())
                    .unwrap();
                machine.start(None).unwrap();
                (machine, socket)
            }
        };
        let text = told(&socket, bytes);
        // The next client is served, unless the guest was killed, reset or
        // shot by an NMI, which takes it a moment.
        if !next_client_is_served(&socket) {
            assert!(machine.wait_for(LONG).is_some());
        }
        running = Some((machine, socket));
        let kinds: Vec<String> = text
            .lines()
            .map(|line| {
                line.chars()
                    .filter(char::is_ascii_alphabetic)
                    .take(24)
                    .collect()
            })
            .collect();
        kinds
    });
}

/// Changes numbers and letters of a file; sometimes cuts it off.
fn edit(text: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..input.u8() % 5 {
        let at = input.u32() as usize % text.len().max(1);
        let digit = (at..text.len()).find(|at| text[*at].is_ascii_digit());
        match (input.u8() % 8, digit) {
            (0, _) if at < text.len() => text[at] = input.u8(),
            (1, Some(digit)) => {
                text.splice(digit..digit, *b"99999999");
            }
            (2, Some(digit)) => {
                text.remove(digit);
            }
            (3, _) if input.u8() == 7 => text.truncate(at),
            (_, Some(digit)) => text[digit] = b'0' + input.u8() % 10,
            _ => {}
        }
    }
}

#[test]
fn a_snapshot_that_was_edited_is_refused_or_runs() {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("kept");
    let machine = Machine::new(
        description("idle", 2, ""),
        &soft,
        consoles(&Default::default()),
    );
    let machine = machine.unwrap();
    machine.start(None).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    machine.snapshot(&kept, false).unwrap();
    drop(machine);
    let names = ["manifest.json", "state.json", "memory.pages"];
    let read = |name: &str| std::fs::read(kept.join(name)).unwrap();
    let files = names.map(read);
    let hexadecimal = |data: &[u8]| blake3::hash(data).to_hex().to_string();
    let digest = hexadecimal(&files[1]);
    assert!(String::from_utf8_lossy(&files[0]).contains(&digest));
    fuzz("snapshot", &[]).run(|bytes| {
        let mut input = Input::new(bytes);
        let edited = directory.path().join("edited");
        let _ = std::fs::remove_dir_all(&edited);
        std::fs::create_dir(&edited).unwrap();
        std::fs::hard_link(kept.join("memory"), edited.join("memory")).unwrap();
        let [mut manifest, mut state, mut pages] = files.clone();
        // A clever editor mends the digest.
        let which = input.u8();
        if which & 1 != 0 {
            edit(&mut state, &mut input);
            let text = String::from_utf8_lossy(&manifest).replace(&digest, &hexadecimal(&state));
            manifest = text.into_bytes();
        }
        if which & 2 != 0 {
            edit(&mut manifest, &mut input);
        }
        if which & 4 != 0 {
            edit(&mut pages, &mut input);
        }
        for (name, data) in names.iter().zip([manifest, state, pages]) {
            std::fs::write(edited.join(name), data).unwrap();
        }
        let snapshot = match Snapshot::open(&edited) {
            Ok(snapshot) => snapshot,
            Err(error) => return refusal(&error),
        };
        let described = snapshot.manifest().machine.clone();
        // A machine of any size is well described; this test has no room for it.
        if described.memory > 64 << 20 || described.cpus > 4 {
            return "large".into();
        }
        let screen = Default::default();
        match Machine::from_snapshot(&snapshot, described, &soft, consoles(&screen)) {
            Err(error) => refusal(&error),
            Ok(machine) => {
                machine.start(None).unwrap();
                machine.resume();
                let _ = machine.wait_for(Duration::from_millis(1));
                machine.stop();
                machine.wait().to_string()
            }
        }
    });
}

/// A reason without what is the input's own.
fn refusal(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let text: String = text.chars().filter(char::is_ascii_alphabetic).collect();
    text.chars().rev().take(40).collect()
}
