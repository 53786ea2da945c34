//! The command line's nouns, with a daemon and a guest of `tiny`.

mod common;
#[path = "daemon/site.rs"]
#[allow(dead_code, reason = "only the disk is of use here")]
mod site;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

/// A daemon and a state directory of its own.
struct Plane {
    daemon: Option<Child>,
    directory: tempfile::TempDir,
}

impl Plane {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut plane = Self {
            daemon: None,
            directory,
        };
        let disk = site::disk(plane.directory.path());
        let disk = disk.to_str().unwrap().to_owned();
        plane.ok(&[
            "image",
            "import",
            &disk,
            "tiny",
            "--label",
            "licence=GPL-2.0",
        ]);
        plane.start();
        plane
    }

    fn start(&mut self) {
        let daemon = ["daemon", "--ec2", "127.0.0.1:0", "--grace", "1s"];
        let child = self.command(&daemon).spawn().unwrap();
        self.daemon = Some(child);
        let start = Instant::now();
        loop {
            let answers = self.run(&["ls", "-o", "json"]).status.success()
                && self.run(&["quota", "ls"]).status.success();
            if answers {
                return;
            }
            assert!(start.elapsed() < common::SOON, "the daemon answers");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = common::holm();
        let state = self.directory.path().join("state");
        command
            .args(arguments)
            .env("HOLM_STATE", state)
            // Machines of others are none of its business.
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .current_dir(self.directory.path());
        command
    }

    /// Waits until the daemon offers the image.
    fn until_offered(&self) {
        self.until("the image is offered", || {
            let output = self.run(&["create", "tiny", "--type", "none", "--wait", "made"]);
            String::from_utf8_lossy(&output.stderr).contains("instance type")
        });
    }

    /// Starts a command whose output is read line by line.
    fn follow(&self, arguments: &[&str]) -> Follower {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        Follower { child, lines, said }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let command = &mut self.command(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// What it printed; it must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert_eq!(code, Some(0), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.ok(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&printed).unwrap()
    }

    /// What it said; it must end with this status.
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        error
    }

    fn until(&self, what: &str, test: impl Fn() -> bool) {
        let start = Instant::now();
        while !test() {
            assert!(start.elapsed() < common::BOOT, "not in time: {what}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// A command that goes on.
struct Follower {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: Lines<BufReader<ChildStderr>>,
}

impl Follower {
    fn expect(&mut self, text: &str) {
        let found = self.lines.any(|line| line.unwrap().contains(text));
        assert!(found, "it ended without {text:?}");
    }

    fn expect_said(&mut self, text: &str) {
        let found = self.said.any(|line| line.unwrap().contains(text));
        assert!(found, "it ended and did not say {text:?}");
    }

    /// Interrupts it; its status, and what it said.
    fn interrupt(mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let said: Vec<String> = self.said.map(Result::unwrap).collect();
        (self.child.wait().unwrap().code(), said.join("\n"))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // Its machines would go on without it.
        if let Ok(Value::Array(all)) =
            serde_json::from_slice(&self.run(&["ls", "-o", "json"]).stdout)
        {
            for id in all.iter().filter_map(|i| i["id"].as_str()) {
                self.run(&["rm", "--force", id]);
            }
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn a_machine_of_a_daemon_lives_its_life_by_the_command_line() {
    let plane = Plane::new();
    plane.until_offered();
    let disk = site::disk(plane.directory.path());
    plane.ok(&["image", "import", disk.to_str().unwrap(), "second"]);
    // An image that was imported is there for the next command.
    let error = plane.refused(&["create", "second", "--type", "none"], 28);
    assert!(error.contains("instance type"), "{error}");
    plane.refused(&["create", "tiny", "--count", "21"], 2);
    let error = plane.refused(&["create", "nothing"], 28);
    assert!(error.contains("nothing"), "{error}");

    plane.ok(&[
        "type", "create", "lab.tiny", "--cpus", "1", "--memory", "192M",
    ]);
    let create = [
        "create", "tiny", "--name", "web1", "--type", "lab.tiny", "--wait", "running",
    ];
    let made = plane.json(&create);
    let id = made[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(made[0]["state"], "running");
    let listed = plane.ok(&["ls"]);
    assert!(listed.contains("web1") && listed.contains(&id), "{listed}");
    let shown = plane.ok(&["show", "web1"]);
    assert!(shown.contains("192 MiB") && shown.contains(&id), "{shown}");
    plane.until("it has booted", || {
        plane.ok(&["logs", "web1"]).contains("HOLM-READY")
    });
    // What a machine that runs alone can do, it can, too.
    plane.ok(&["pause", "web1"]);
    plane.ok(&["resume", &id]);
    assert!(plane.ok(&["metrics", "web1"]).contains("# TYPE"));
    let events = plane.ok(&["events", "web1"]);
    assert!(events.contains("instance-"), "{events}");

    let volume = plane.ok(&["volume", "create", "--name", "data", "--size", "1G"]);
    plane.until("the volume is made", || {
        plane.ok(&["volume", "ls"]).contains("available")
    });
    let said = plane.refused(&["volume", "rm", "dada"], 28);
    assert!(said.contains("did you mean data?"), "{said}");
    let snapshot = plane.ok(&["volume", "snapshot", "data", "--description", "monday"]);
    assert!(plane.ok(&["snapshot", "ls"]).contains("monday"));
    plane.until("the snapshot is made", || {
        // Images have snapshots, too.
        let all = plane.ok(&["snapshot", "ls"]);
        let made = all.lines().find(|line| line.contains("monday"));
        made.is_some_and(|line| line.contains("completed"))
    });
    plane.ok(&["volume", "rollback", "data", snapshot.trim()]);
    assert!(
        plane
            .ok(&["events", volume.trim()])
            .contains("volume-rolled-back")
    );
    let works = plane.ok(&["operations"]);
    assert!(
        works.contains("volume-rollback") && works.contains("succeeded"),
        "{works}"
    );
    assert!(plane.ok(&["report", "orphans"]).contains(volume.trim()));
    assert_eq!(plane.json(&["report", "drift"]), serde_json::json!([]));
    // Its guest tells nobody that it is up.
    assert_eq!(plane.json(&["report", "boot-times"]), serde_json::json!([]));
    plane.ok(&["tag-policy", "require", "owner"]);
    let said = plane.refused(&["volume", "create", "--size", "1G"], 28);
    assert!(said.contains("owner"), "{said}");
    plane.ok(&["tag-policy", "drop", "owner"]);
    plane.ok(&["volume", "rm", volume.trim()]);

    let error = plane.refused(&["start", "nobody"], 28);
    assert!(error.contains("holm ls"), "{error}");
    plane.ok(&["stop", "web1", "--force"]);
    assert_eq!(plane.json(&["show", "web1"])["state"], "stopped");
    plane.ok(&["start", "web1"]);
    plane.ok(&["rm", "web1"]);
    plane.refused(&["ssh", "web1"], 28);
}

#[test]
fn run_makes_a_machine_that_the_daemon_keeps_and_shows_it() {
    let plane = Plane::new();
    plane.until_offered();
    for (arguments, code, next) in [
        (&["run", "tiny", "--cpus", "2"][..], 2, "--type"),
        (&["run", "tiny", "--append", "x"], 2, "--standalone"),
        (&["run", "./disk.img", "--key", "k"], 2, "holm image import"),
        (
            &["run", "tiny", "--standalone", "--sg", "k"],
            2,
            "--standalone",
        ),
        (&["run", "tyni"], 28, "did you mean tiny?"),
        (&["run", "windows"], 28, "holm image build debian"),
        (
            &["run", "tiny", "--type", "t3.mikro"],
            28,
            "did you mean t3.micro",
        ),
        (&["create", "tiny", "--key", "none"], 28, "holm key create"),
        (&["logs", "web9"], 28, "holm ls"),
    ] {
        let said = plane.refused(arguments, code);
        assert!(said.contains(next), "{arguments:?}: {said}");
    }

    // In the foreground: stages, and what it prints; interrupted, it goes.
    let mut run = plane.follow(&["run", "tiny", "--type", "t2.nano", "--name", "gone", "--rm"]);
    run.expect("HOLM-READY");
    run.expect_said("gone is running after");
    run.expect_said("  machine ");
    let (code, said) = run.interrupt();
    assert_eq!(code, Some(22), "{said}");
    assert!(said.contains("gone is removed"), "{said}");

    // What is piped in is typed; when the guest powers off, it is over.
    let words = [
        "run", "tiny", "--type", "t2.nano", "--name", "typed", "--rm",
    ];
    let mut typed = plane.command(&words);
    let typed = typed.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut typed = typed.stderr(Stdio::piped()).spawn().unwrap();
    let mut keys = typed.stdin.take().unwrap();
    keys.write_all(b"echo still-$((6*7)); exit\n").unwrap();
    let output = typed.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("still-42"));
    drop(keys);

    let detached = [
        "run", "-d", "tiny", "--type", "t2.nano", "--ttl", "1h", "--wait", "running",
    ];
    let made = plane.json(&detached);
    let id = made[0]["id"].as_str().unwrap();
    assert_eq!(made[0]["name"], "tiny-1", "a name is made up");
    assert!(made[0]["expires"].is_string(), "{made}");
    let mut log = plane.follow(&["logs", "-f", "tiny-1"]);
    log.expect("HOLM-READY");
    log.interrupt();
    assert!(
        plane
            .ok(&["show", id, "-o", "yaml"])
            .contains("state: running")
    );
    names_are_completed(&plane);
    let top = plane.json(&["top"]);
    assert_eq!(top[0]["id"], id);
    assert!(
        top[0]["memory_used_bytes"].as_u64().unwrap() > 1 << 20,
        "{top}"
    );
    assert!(top[0]["cpu_percent"].is_f64(), "{top}");

    let mut watch = plane.follow(&["ls", "--watch", "-o", "json"]);
    watch.expect("\"running\"");
    names_of_both_kinds(&plane);
    plane.ok(&["stop", "tiny-1", "--force"]);
    watch.expect("\"stopped\"");
    watch.interrupt();
    let said = plane.refused(&["pause", "tiny-1"], 28);
    assert!(said.contains("holm start tiny-1"), "{said}");
    assert!(plane.ok(&["logs", "-f", "tiny-1"]).contains("HOLM-READY"));
    let mut watch = plane.follow(&["show", id, "--watch"]);
    watch.expect("stopped");
    plane.ok(&["rm", id]);
    watch.expect("terminated");
    assert!(
        watch.child.wait().unwrap().success(),
        "it ends with the machine"
    );
}

/// As bash asks for the last word.
fn names_are_completed(plane: &Plane) {
    let complete = |words: &[&str]| {
        let mut command = plane.command(&["--", "holm"]);
        let index = words.len().to_string();
        command
            .args(words)
            .env("COMPLETE", "bash")
            .env("_CLAP_IFS", "\n");
        let output = command.env("_CLAP_COMPLETE_INDEX", index).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        printed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["stop", "tin"]), ["tiny-1"]);
    assert_eq!(complete(&["run", "--type", "t2.n"]), ["t2.nano"]);
    assert!(complete(&["create", "t"]).contains(&"tiny".to_owned()));
    assert!(complete(&["sg", "show", ""]).contains(&"default".to_owned()));
    assert_eq!(complete(&["quota", "set", "vpc"]), ["vpcs"]);
    assert_eq!(complete(&["comp"]), ["completion"]);
    let elsewhere = complete(&["--state", "/nowhere", "stop", "tin"]);
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// A machine that runs alone beside one that the daemon keeps.
fn names_of_both_kinds(plane: &Plane) {
    let alone = [
        "run",
        "tiny",
        "--standalone",
        "--memory",
        "192M",
        "--net",
        "none",
        "--name",
        "tiny-1",
        "-d",
    ];
    plane.ok(&alone);
    let said = plane.refused(&["metrics", "tiny-1"], 28);
    assert!(said.contains("alone:tiny-1 or i-"), "{said}");
    assert!(plane.ok(&["show", "alone:tiny-1"]).contains("192 MiB"));
    plane.until("it has booted", || {
        plane.ok(&["logs", "alone:tiny-1"]).contains("HOLM-READY")
    });
    let both = plane.ok(&["ls"]);
    assert!(both.contains("Not kept by the daemon"), "{both}");
    plane.ok(&["stop", "alone:tiny-1", "--force"]);
    plane.ok(&["pause", "tiny-1"]);
    plane.ok(&["resume", "tiny-1"]);
}

#[test]
fn keys_groups_and_networks_are_made_and_removed() {
    let plane = Plane::new();
    let directory = plane.directory.path();
    plane.ok(&["key", "create", "mine"]);
    let pem = directory.join("mine.pem");
    let mode = fs::metadata(&pem).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(fs::read_to_string(&pem).unwrap().contains("PRIVATE KEY"));
    plane.refused(&["key", "create", "mine"], 14);
    assert!(plane.ok(&["key", "ls"]).contains("mine"));
    plane.ok(&["key", "rm", "mine"]);

    plane.ok(&["sg", "create", "web"]);
    plane.ok(&["sg", "allow", "web", "22", "8000-8099", "53/udp", "icmp"]);
    plane.ok(&["sg", "allow", "web", "5432", "--from", "web"]);
    let group = plane.json(&["sg", "show", "web"]);
    let rules = group["rules"].as_array().unwrap();
    let inward: Vec<_> = rules
        .iter()
        .filter(|r| r["direction"] == "ingress")
        .collect();
    assert_eq!(inward.len(), 5, "{group}");
    plane.ok(&["sg", "revoke", "web", inward[0]["id"].as_str().unwrap()]);
    let error = plane.refused(&["sg", "allow", "web", "53/udp"], 28);
    assert!(error.contains("already"), "{error}");
    plane.refused(&["sg", "allow", "web", "ssh"], 2);
    plane.ok(&["sg", "rm", "web"]);

    let made = plane.json(&["net", "create", "lab", "--cidr", "10.9.0.0/16"]);
    assert_eq!(made["cidr"], "10.9.0.0/16");
    plane.ok(&[
        "net",
        "subnet",
        "lab",
        "--cidr",
        "10.9.1.0/24",
        "--name",
        "front",
    ]);
    assert!(plane.ok(&["net", "ls"]).contains("10.9.1.0/24"));
    let error = plane.refused(&["net", "rm", "lab"], 28);
    assert!(error.contains("in use"), "{error}");
    plane.ok(&["net", "rm", "front"]);
    plane.ok(&["net", "rm", "lab"]);

    plane.ok(&["quota", "set", "vpcs", "1"]);
    let error = plane.refused(&["net", "create", "more", "--cidr", "10.8.0.0/16"], 28);
    assert!(error.contains("holm quota"), "{error}");
    let yaml = plane.ok(&["quota", "ls", "-o", "yaml"]);
    assert!(yaml.contains("name: vpcs"), "{yaml}");

    let env = plane.ok(&["env"]);
    let value = |name: &str| {
        let line = env
            .lines()
            .find_map(|l| l.strip_prefix(&format!("export {name}=")));
        line.unwrap_or_else(|| panic!("{name} in {env}")).to_owned()
    };
    assert!(value("AWS_ENDPOINT_URL").starts_with("http://127.0.0.1:"));
    assert!(value("AWS_ACCESS_KEY_ID").starts_with("AKIA"));
    assert_eq!(env, plane.ok(&["env"]), "the key is made once");
    plane.ok(&["key", "access", "rm", &value("AWS_ACCESS_KEY_ID")]);
    assert_ne!(env, plane.ok(&["env"]), "and anew when it was removed");
    assert!(
        plane
            .ok(&["completion", "bash"])
            .contains("_clap_complete_holm")
    );
}

#[test]
fn without_a_daemon_it_is_said_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let run = |state: &Path, arguments: &[&str]| {
        let output = common::holm()
            .args(arguments)
            .env("HOLM_STATE", state)
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(28), "{arguments:?}");
        BufReader::new(&output.stderr[..])
            .lines()
            .next()
            .unwrap()
            .unwrap()
    };
    let long = directory.path().join("d".repeat(120));
    fs::create_dir(&long).unwrap();
    for state in [directory.path(), &long] {
        for command in ["ls", "rm", "start", "key", "volume"] {
            let arguments: &[&str] = match command {
                "ls" => &["net", "ls"],
                "key" => &["key", "ls"],
                "volume" => &["volume", "ls"],
                other => &[other, "web1"],
            };
            let said = run(state, arguments);
            assert!(
                said.contains("holm daemon") && said.contains("--state"),
                "{said}"
            );
        }
    }
}
