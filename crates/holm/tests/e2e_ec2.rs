//! The example of every tutorial, with the AWS CLI and ssh as they come, on a
//! real machine.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{BOOT, SOON};

/// A state directory with an image, its daemon, and what `holm env` says.
struct World {
    state: tempfile::TempDir,
    daemon: Child,
    environment: Vec<(String, String)>,
}

impl World {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let log = fs::File::create(state.path().join("daemon.log")).unwrap();
        let daemon = common::holm()
            .args(["daemon", "--ec2", "127.0.0.1:0", "--state"])
            .arg(state.path())
            .env("HOLM_LOG", "info")
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut world = Self {
            state,
            daemon,
            environment: Vec::new(),
        };
        let file = world.state.path().join("run/ec2");
        until("the daemon listens", SOON, || {
            fs::read_to_string(&file).ok()
        });
        let disk = common::image("debian-disk").join("disk.img");
        let disk = disk.to_str().unwrap();
        world.holm(&["image", "import", disk, "debian", "--label", "login=debian"]);
        let lines = world.holm(&["env"]);
        let exports = lines
            .lines()
            .filter_map(|line| line.strip_prefix("export "));
        let pairs = exports.filter_map(|export| export.split_once('='));
        world.environment = pairs
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        world
    }

    /// What `holm` prints about this state directory; it must succeed.
    #[track_caller]
    fn holm(&self, words: &[&str]) -> String {
        let done = common::holm()
            .args(words)
            .env("HOLM_STATE", self.state.path())
            .output()
            .unwrap();
        if !done.status.success() {
            self.tell();
            panic!("holm {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
        String::from_utf8(done.stdout).unwrap()
    }

    /// What `aws` prints; it must succeed.
    #[track_caller]
    fn aws(&self, words: &str) -> String {
        let done = Command::new(clients::program("aws"))
            .args(words.split(' '))
            .args(["--output", "text"])
            .envs(self.environment.clone())
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
            .env("AWS_PAGER", "")
            .output()
            .unwrap();
        if !done.status.success() {
            self.tell();
            panic!("aws {words}: {}", String::from_utf8_lossy(&done.stderr));
        }
        String::from_utf8(done.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    /// Shows what the daemon said and what the consoles did.
    fn tell(&self) {
        let log = fs::read_to_string(self.state.path().join("daemon.log"));
        eprintln!("daemon: {}", log.unwrap_or_default());
        for machine in fs::read_dir(self.state.path().join("machines"))
            .into_iter()
            .flatten()
        {
            for file in fs::read_dir(machine.unwrap().path()).into_iter().flatten() {
                let path = file.unwrap().path();
                if path.is_file() && path.extension().is_some_and(|e| e == "log") {
                    let text = fs::read(&path).unwrap_or_default();
                    let end = text.len().saturating_sub(4000);
                    eprintln!(
                        "{}: {}",
                        path.display(),
                        String::from_utf8_lossy(&text[end..])
                    );
                }
            }
        }
    }

    fn ssh(&self, key: &Path, address: &str, command: &str) -> Output {
        Command::new("ssh")
            .args(["-F", "none", "-i"])
            .arg(key)
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=20"])
            .arg(format!("debian@{address}"))
            .arg(command)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // Machines outlive their daemon; those of a test that failed must not.
        let machines = self.state.path().join("machines");
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains(&*machines.to_string_lossy()) {
                let pid = process.file_name().to_string_lossy().parse().ok();
                if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

/// Asks again until there is an answer.
#[track_caller]
fn until<T>(what: &str, time: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < time, "{what} did not happen in {time:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// From the key pair to nothing.
#[test]
fn run_instances_and_then_ssh() {
    let world = World::new();
    let aws = |words: &str| world.aws(words);
    // What the waiters of `aws` wait for, without their 15 seconds between two looks.
    let wait = |words: &str, state: &str| {
        until(&format!("{state} of {words}"), BOOT, || {
            (aws(words) == state).then_some(())
        });
    };
    let image = until("the daemon offers the image", SOON, || {
        let id = aws("ec2 describe-images --owners self --query Images[0].ImageId");
        id.starts_with("ami-").then_some(id)
    });
    let material =
        aws("ec2 create-key-pair --key-name my-key-pair --key-type ed25519 --query KeyMaterial");
    let key = world.state.path().join("my-key-pair.pem");
    fs::write(&key, format!("{material}\n")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let subnet = aws("ec2 describe-subnets --query Subnets[0].SubnetId");
    let group = aws("ec2 create-security-group --group-name ssh --description ssh --query GroupId");
    aws(&format!(
        "ec2 authorize-security-group-ingress --group-id {group} --protocol tcp --port 22 --cidr 0.0.0.0/0"
    ));
    let instance = aws(&format!(
        "ec2 run-instances --image-id {image} --instance-type t3.micro --key-name my-key-pair \
         --security-group-ids {group} --subnet-id {subnet} --query Instances[0].InstanceId"
    ));
    let state = format!(
        "ec2 describe-instances --instance-ids {instance} --query Reservations[0].Instances[0].State.Name"
    );
    wait(&state, "running");
    let address = aws(&format!(
        "ec2 describe-instances --instance-ids {instance} --query Reservations[0].Instances[0].PublicIpAddress"
    ));
    let said = until_ssh(&world, &key, &address);
    assert!(said.starts_with("debian\n"), "{said}");
    // And by the door that needs neither port nor rule.
    let key_option = key.to_str().unwrap();
    let said = world.holm(&["ssh", &instance, "--", "-i", key_option, "id", "-un"]);
    assert_eq!(said.trim_end(), "debian");

    // Or by the guest's agent.
    let exec = ["exec", "--wait", "1m", &instance, "--", "uname", "-r"];
    assert!(world.holm(&exec).contains("cloud"));
    let from = format!("{instance}:/etc/hostname");
    let to = world.state.path().join("hostname");
    world.holm(&["cp", &from, to.to_str().unwrap()]);
    assert!(!fs::read_to_string(&to).unwrap().trim().is_empty());

    // A volume comes while it runs, and goes.
    let volume = aws("ec2 create-volume --availability-zone us-east-1a --size 1 --query VolumeId");
    let of_volume = format!("ec2 describe-volumes --volume-ids {volume} --query Volumes[0].State");
    wait(&of_volume, "available");
    aws(&format!(
        "ec2 attach-volume --volume-id {volume} --instance-id {instance} --device /dev/sdf"
    ));
    let serial = volume.replace('-', "");
    until("the guest has the volume", SOON, || {
        let list = "lsblk --nodeps --noheadings --output SERIAL,SIZE";
        let disks = world.ssh(&key, &address, list);
        let text = String::from_utf8_lossy(&disks.stdout).into_owned();
        let has = |line: &str| line.contains(&serial[..20]) && line.ends_with("1G");
        text.lines().any(has).then_some(())
    });
    aws(&format!("ec2 detach-volume --volume-id {volume}"));
    wait(&of_volume, "available");
    aws(&format!("ec2 delete-volume --volume-id {volume}"));
    let console = aws(&format!(
        "ec2 get-console-output --instance-id {instance} --query Output"
    ));
    assert!(console.contains("Cloud-init v."), "{console}");

    aws(&format!("ec2 stop-instances --instance-ids {instance}"));
    wait(&state, "stopped");
    aws(&format!("ec2 start-instances --instance-ids {instance}"));
    wait(&state, "running");
    aws(&format!(
        "ec2 terminate-instances --instance-ids {instance}"
    ));
    wait(&state, "terminated");
    aws(&format!("ec2 delete-security-group --group-id {group}"));
    let left = |name: &str| -> Vec<String> {
        let directory = fs::read_dir(world.state.path().join(name));
        let entries = directory.into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name != "snapshots" && !name.starts_with('.'))
            .collect()
    };
    let mut found = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        found = [left("machines"), left("volumes"), left("volumes/snapshots")].concat();
        if found.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(found.is_empty(), "left over: {found:?}");
    assert_eq!(aws("ec2 describe-volumes --query length(Volumes)"), "0");
    let cards = aws("ec2 describe-network-interfaces --query length(NetworkInterfaces)");
    assert_eq!(cards, "0");
}

fn until_ssh(world: &World, key: &Path, address: &str) -> String {
    let begun = Instant::now();
    loop {
        let done = world.ssh(key, address, "id -un; uname -r");
        if done.status.success() {
            eprintln!("ssh after {:.1?}", begun.elapsed());
            return String::from_utf8(done.stdout).unwrap();
        }
        if begun.elapsed() > BOOT {
            world.tell();
            panic!("no ssh: {}", String::from_utf8_lossy(&done.stderr));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
