//! What instances are told about themselves, and how their boots are seen: an
//! unmodified Debian with stock cloud-init, and a second machine beside it.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use common::{BOOT, Console, SOON, holm, image};
use machine::{Boot, Description, Disk, DiskBoot, Nic, NicNetwork, Smbios, VpcNic};
use machine_protocol::launch::{self, AGENT_SOCKET, LAUNCH_VERSION, Launch, SERIAL_LOG};
use machine_protocol::vpc::{Cidr, HostName, MetadataPort, PortConfig, Protocol, Rule};
use metadata::{
    Facts, Interface, Lifecycle, Options, PublicKey, SmbiosIdentity, Source, TokenKey, Tokens,
    nocloud,
};
use provisioning::{BootProgress, Places, Seen, Stage};

const ONE: &str = "i-0123456789abcdef0";
const TWO: &str = "i-0fedcba9876543210";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 4);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHQ8pXt1TLjyRpWdt42ANW6dpOadTdvK2os/SKhLRgQH me";
const USER_DATA: &str = "#!/bin/sh\n\
    echo user data ran as $(id -un)\ntouch /root/was-here\necho E: no such package >&2\nexit 7\n";
/// Bytes of the root disk, more than the image's: its file system has to grow.
const DISK: u64 = 6 << 30;

struct Fixed(Arc<Facts>);

impl Source for Fixed {
    fn facts(&self) -> Option<Arc<Facts>> {
        Some(self.0.clone())
    }
}

fn facts(id: &str, address: Ipv4Addr) -> Facts {
    let hostname = format!("ip-{}", address.to_string().replace('.', "-"));
    let [a, b, c, d] = address.octets();
    Facts {
        instance_id: id.into(),
        image_id: "ami-0123456789abcdef0".into(),
        instance_type: "t3.micro".into(),
        reservation_id: "r-0123456789abcdef0".into(),
        launch_index: 0,
        account_id: "123456789012".into(),
        region: "us-east-1".into(),
        zone: "us-east-1a".into(),
        zone_id: None,
        launched: SystemTime::now(),
        lifecycle: Lifecycle::OnDemand,
        hostname: format!("{hostname}.ec2.internal"),
        interfaces: vec![Interface {
            id: "eni-0123456789abcdef0".into(),
            mac: format!("0a:48:{a:02x}:{b:02x}:{c:02x}:{d:02x}"),
            device_number: 0,
            addresses: vec![address],
            addresses_v6: Vec::new(),
            hostname: format!("{hostname}.ec2.internal"),
            public: None,
            subnet_id: "subnet-1".into(),
            subnet_cidr: "10.0.1.0/24".into(),
            subnet_cidrs_v6: Vec::new(),
            vpc_id: "vpc-1".into(),
            vpc_cidrs: vec!["10.0.0.0/16".into()],
            vpc_cidrs_v6: Vec::new(),
            security_groups: vec![("sg-1".into(), "default".into())],
        }],
        keys: vec![PublicKey {
            name: "my-key".into(),
            openssh: KEY.into(),
        }],
        user_data: Some(USER_DATA.as_bytes().into()),
        tags: [("Name".into(), "web1".into())].into(),
        block_devices: vec![("root".into(), "/dev/vda".into())],
        options: Options {
            tokens: Tokens::Required,
            tags: true,
            ..Options::default()
        },
        token_key: TokenKey([id.len() as u8; 32]),
    }
}

/// Serves the metadata of one machine, as the daemon does.
fn serve(socket: &Path, facts: Facts) {
    let socket = socket.to_owned();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::bind(socket).unwrap();
            ready.send(()).unwrap();
            let source = Arc::new(Fixed(Arc::new(facts)));
            let Err(error) = metadata::serve(listener, source).await;
            panic!("{error}");
        });
    });
    is_ready.recv().unwrap();
}

fn port(directory: &Path, name: &str, address: Ipv4Addr) -> PortConfig {
    let block = |text: &str| text.parse::<Cidr>().unwrap();
    let mut port = PortConfig::new(address, block("10.0.1.0/24"), vec![block("10.0.0.0/16")]);
    let hostname = format!("ip-{}", address.to_string().replace('.', "-"));
    port.names = vec![HostName {
        name: hostname.clone(),
        addresses: vec![address.into()],
    }];
    port.hostname = Some(hostname);
    port.domain = Some("ec2.internal".into());
    port.metadata = Some(MetadataPort {
        socket: directory.join(format!("{name}.imds")),
        hop_limit: 1,
    });
    port.egress = vec![Rule::all(Protocol::All, vec![block("0.0.0.0/0")])];
    port
}

/// A machine as the daemon starts it.
struct Instance {
    process: Child,
    directory: PathBuf,
    started: SystemTime,
}

impl Instance {
    fn start(runtime: &Path, disk: &Path) -> Self {
        // Where commands look for machines with names.
        let directory = runtime.join("holm/machines/m1");
        fs::create_dir_all(&directory).unwrap();
        let identity = SmbiosIdentity::of(ONE);
        let mut machine = Description::new(2, 1 << 30, "");
        machine.boot = Boot::Disk(DiskBoot {
            console: Some("console=ttyS0".into()),
            ..DiskBoot::default()
        });
        machine.disks = vec![Disk {
            format: Some(disk::Format::Qcow2),
            ..Disk::new(disk)
        }];
        machine.nics = vec![Nic::new(NicNetwork::Vpc(Box::new(VpcNic {
            directory: runtime.join("vpc"),
            port: port(runtime, "one", ADDRESS),
            door: Some(directory.join("door")),
        })))];
        machine.peripherals.agent = true;
        (machine.uuid, machine.serial) = (identity.uuid, identity.serial);
        machine.smbios = Smbios {
            asset_tag: Some(ONE.into()),
            product: Some("t3.micro".into()),
            manufacturer: None,
        };
        let launch = Launch {
            version: LAUNCH_VERSION,
            number: 1,
            engine: launch::Engine::Auto,
            serial_log_bytes: 1 << 20,
            machine: serde_json::to_value(machine).unwrap(),
        };
        let text = serde_json::to_vec(&launch).unwrap();
        fs::write(directory.join(launch::LAUNCH_FILE), text).unwrap();
        let process = holm()
            .arg("machine")
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            directory,
            started: SystemTime::now(),
        }
    }

    fn observe(&self, agent: &str) -> BootProgress {
        provisioning::observe(Places {
            agent: &self.directory.join(agent),
            serial: &self.directory.join(SERIAL_LOG),
            started: self.started,
        })
    }

    /// Runs a script in the guest, which must succeed; what it printed.
    fn sh(&self, script: &str) -> String {
        let mut command = holm();
        command.arg("exec").arg(self.directory.join(AGENT_SOCKET));
        let output = command.args(["--", "sh", "-c", script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {text}{errors}");
        text
    }

    fn console(&self) -> String {
        let bytes = fs::read(self.directory.join(SERIAL_LOG)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks again until it is so.
fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > patience => panic!("no {what}: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

#[test]
fn a_stock_debian_is_provisioned_and_its_failure_told() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    serve(&runtime.join("one.imds"), facts(ONE, ADDRESS));
    serve(&runtime.join("two.imds"), facts(TWO, OTHER));
    let disk = runtime.join("root.qcow2");
    let base = image("debian-disk").join("disk.img");
    let mut create = holm();
    create.args(["disk", "create", "--format", "qcow2", "--backing"]);
    let made = create.arg(&base).arg(&disk).arg(DISK.to_string()).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
    let one = Instance::start(runtime, &disk);
    let mut two = other(runtime);

    let progress = until("end of the boot", BOOT, || {
        let progress = one.observe(AGENT_SOCKET);
        let over = progress.is_over() && progress.seen == Seen::Agent;
        over.then_some(progress).ok_or_else(|| one.console())
    });
    tells_the_stages(&one, &progress);
    is_as_the_metadata_say(&one);
    metadata_are_guarded(&one, &mut two);
    finds_a_seed_disk(runtime, &one);
    is_reachable(&one);
}

fn tells_the_stages(one: &Instance, progress: &BootProgress) {
    let stages: Vec<Stage> = progress.stages.iter().map(|s| s.stage).collect();
    let all = [
        Stage::Kernel,
        Stage::Userspace,
        Stage::Network,
        Stage::CloudInitLocal,
        Stage::CloudInit,
        Stage::CloudConfig,
        Stage::CloudFinal,
    ];
    assert_eq!(stages, all, "{progress:?}");
    for stage in &progress.stages {
        let took = stage
            .ended
            .map(|ended| ended.duration_since(stage.began).unwrap());
        println!("{:17} {took:?}", stage.stage.to_string());
    }
    let took = progress.ready.unwrap().duration_since(one.started);
    println!("ready after {:?}", took.unwrap());
    assert_eq!(progress.datasource.as_deref(), Some("DataSourceEc2Local"));
    let [failure] = progress.failures.as_slice() else {
        panic!("{progress:?}")
    };
    assert_eq!(failure.stage, Stage::CloudFinal);
    assert!(failure.what.contains("part-001"), "{failure}");
    for line in ["user data ran as root\n", "E: no such package\n"] {
        assert!(failure.output.contains(line), "{failure}");
    }
    // Without an agent the console tells the same, less exactly.
    let console = one.observe("no-agent");
    assert_eq!(console.seen, Seen::Console);
    assert!(console.ready.is_some(), "{console:?}");
    let [failure] = console.failures.as_slice() else {
        panic!("{console:?}")
    };
    assert!(failure.output.contains("E: no such package"), "{failure}");
}

fn is_as_the_metadata_say(one: &Instance) {
    let text = one.sh(
        "hostname; cat /home/debian/.ssh/authorized_keys; ls /root/was-here; cloud-id\n\
         cat /sys/class/dmi/id/board_asset_tag; df --output=size -B1M / | tail -1\n\
         cat /etc/machine-id; ls /etc/ssh/ssh_host_ed25519_key\n\
         cloud-init query ds.meta_data.tags.instance.Name",
    );
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let [name, key, file, cloud, tag, size, id, host_key, tagged] = lines.as_slice() else {
        panic!("{text}")
    };
    assert_eq!(*name, "ip-10-0-1-4");
    assert_eq!(*key, KEY);
    assert_eq!((*file, *cloud, *tag), ("/root/was-here", "aws", ONE));
    assert!(size.parse::<u64>().unwrap() > 5000, "{size} MiB");
    assert_eq!((id.len(), *tagged), (32, "web1"));
    assert_eq!(*host_key, "/etc/ssh/ssh_host_ed25519_key");
}

/// A second machine in the network, small.
fn other(runtime: &Path) -> Console {
    image("tiny");
    let file = runtime.join("two.json");
    let port = port(runtime, "two", OTHER);
    fs::write(&file, serde_json::to_string(&port).unwrap()).unwrap();
    let net = format!(
        "vpc={},port={}",
        runtime.join("vpc").display(),
        file.display()
    );
    let mut command = holm();
    command.args([
        "run", "tiny", "--memory", "128M", "--append", "quiet", "--net", &net,
    ]);
    Console::start(&mut command).unwrap()
}

/// A guest has no token but its own, and no metadata but its own.
fn metadata_are_guarded(one: &Instance, two: &mut Console) {
    let script = "U=http://169.254.169.254/latest; H='X-aws-ec2-metadata-token'\n\
         code() { curl -s -m 30 -o /dev/null -w '%{http_code} ' \"$@\"; }\n\
         T=$(curl -s -m 30 -X PUT -H \"$H-ttl-seconds: 600\" $U/api/token)\n\
         code $U/meta-data/; code -H \"$H: wrong\" $U/meta-data/; code -X PUT $U/api/token\n\
         code -X PUT -H \"$H-ttl-seconds: 60\" -H 'X-Forwarded-For: 10.0.0.1' $U/api/token\n\
         code -H \"$H: $T\" $U/meta-data/none; code -H \"$H: $T\" $U/user-data\n\
         echo; curl -s -H \"$H: $T\" $U/meta-data/instance-id; echo; echo $T";
    let text = one.sh(script);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let [codes, id, token] = lines.as_slice() else {
        panic!("{text}")
    };
    assert_eq!((*codes, *id), ("401 401 400 403 404 200", ONE));

    two.expect("# ", BOOT).unwrap();
    let script = format!(
        "ip addr add {OTHER}/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.1.1\n\
         ask() {{ printf \"$1 HTTP/1.0\\r\\n$2\\r\\n\\r\\n\" | nc -w 60 169.254.169.254 80 | tr -d '\\r'; }}\n\
         ask 'GET /latest/meta-data/instance-id' 'X-aws-ec2-metadata-token: {token}' | head -n 1\n\
         T=$(ask 'PUT /latest/api/token' 'X-aws-ec2-metadata-token-ttl-seconds: 60' | tail -n 1)\n\
         ask 'GET /latest/meta-data/instance-id' \"X-aws-ec2-metadata-token: $T\" | tail -n 1; echo; echo all-told\n"
    );
    let script = common::base64(script.as_bytes());
    two.send(&format!("echo {script} | base64 -d | sh; poweroff -f\n"))
        .unwrap();
    let said = two.expect("all-told", SOON).unwrap();
    assert!(said.contains("401 Unauthorized"), "{said}");
    assert!(said.contains(TWO) && !said.contains(ONE), "{said}");
}

/// The kernel and cloud-init know NoCloud's volume for what it is.
fn finds_a_seed_disk(runtime: &Path, one: &Instance) {
    let seed = runtime.join("seed.img");
    nocloud::write(&seed, &facts(ONE, ADDRESS)).unwrap();
    let disk = format!("{},readonly,name=seed", seed.display());
    let mut attach = holm();
    attach.args(["attach", "m1", "--disk", &disk]);
    let attached = attach.env("XDG_RUNTIME_DIR", runtime).output();
    let attached = attached.unwrap();
    assert!(attached.status.success(), "{attached:?}");
    let text = one.sh(
        "for i in $(seq 100); do blkid -L CIDATA > /dev/null && break; sleep 0.1; done\n\
         mkdir /seed; mount -o ro LABEL=CIDATA /seed; ls /seed; cat /seed/user-data\n\
         /usr/lib/cloud-init/ds-identify --force > /dev/null; grep -a NoCloud /run/cloud-init/cloud.cfg",
    );
    let (files, rest) = text.split_once("#!/bin/sh").unwrap();
    assert_eq!(files, "meta-data\nnetwork-config\nuser-data\n");
    assert!(
        USER_DATA.contains(rest.split("datasource").next().unwrap().trim()),
        "{text}"
    );
    assert!(rest.contains("datasource_list: [ NoCloud"), "{text}");
}

/// The owner's door leads to the guest's sshd.
fn is_reachable(one: &Instance) {
    let mut stream = UnixStream::connect(one.directory.join("door")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"22\n").unwrap();
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(256));
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("SSH-2.0-"), "{line}");
}
