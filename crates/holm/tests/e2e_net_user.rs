//! `--net user` as Debian's own programs see it: the package mirror, servers on
//! the host, ssh over a published port.

mod common;
#[path = "common/debian.rs"]
mod debian;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{BOOT, Console, SOON, holm};
use debian::{apt_options, logged_in, power_off, sh};
use sha2::{Digest, Sha256};

/// Bytes of the files that are carried to and fro.
const LARGE: usize = 32 << 20;

fn digest(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Bytes that do not repeat soon.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data.truncate(length);
    data
}

/// A web server for one large file; a PUT is answered with its digest.
fn web_server(address: &str, file: &'static [u8]) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || serve(stream, file));
        }
    });
    port
}

fn serve(mut stream: TcpStream, file: &[u8]) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let uploaded;
    let body = if request.starts_with("post") {
        let length = request
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |text| text.trim().parse().unwrap());
        let mut data = vec![0; length];
        stream.read_exact(&mut data).unwrap();
        uploaded = digest(&data);
        uploaded.as_bytes()
    } else {
        file
    };
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    // Who asked may have gone.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn debian_uses_the_hosts_network() {
    let file: &'static [u8] = noise(LARGE).leak();
    let sum = digest(file);
    let directory = tempfile::tempdir().unwrap();
    let ssh_port = free_port();
    let publish = format!("{ssh_port}:22");
    let options = [
        "--cpus",
        "2",
        "--memory",
        "1G",
        "--net",
        "user",
        "--publish",
        &publish,
    ];
    let mut console = logged_in(&options);

    addresses(&mut console);
    packages(&mut console);
    for (bind, name) in [("127.0.0.1:0", "10.0.2.2"), ("[::1]:0", "[fec0::2]")] {
        if bind.starts_with('[') && TcpListener::bind(bind).is_err() {
            // A host without IPv6: its guests have only the link.
            continue;
        }
        let port = web_server(bind, file);
        large_files(&mut console, &format!("http://{name}:{port}/"), &sum);
    }
    datagrams(&mut console);
    refusals(&mut console);
    ssh(&mut console, directory.path(), ssh_port, file, &sum);
    power_off(console);
}

fn addresses(console: &mut Console) {
    let (output, _) = sh(
        console,
        "for i in $(seq 100); do ip -6 route | grep -q '^fec0' && break; sleep 0.2; done\n\
         ip -4 -br address show eth0 | awk '{print $3}'\n\
         ip route | grep -o '^default via [0-9.]*'\n\
         ip -6 -br address show scope site | grep -o ' fec0::'\n\
         resolvectl dns eth0 | grep -o ' 10.0.2.3'",
        BOOT,
    );
    assert_eq!(
        output,
        "10.0.2.15/24\ndefault via 10.0.2.2\n fec0::\n 10.0.2.3\n"
    );
}

fn packages(console: &mut Console) {
    let options = apt_options();
    let (output, status) = sh(
        console,
        &format!(
            "(apt-get{options} -q update && \
             apt-get{options} -q -y install --no-install-recommends wget) > log 2>&1 || cat log\n\
             wget --version | head -n 1 | cut -d' ' -f1-2"
        ),
        Duration::from_secs(600),
    );
    assert_eq!((output.as_str(), status), ("GNU Wget\n", 0));
}

fn large_files(console: &mut Console, url: &str, sum: &str) {
    let (output, status) = sh(
        console,
        &format!(
            "cd /var/tmp\n\
             wget -q -O there {url} && sha256sum there | cut -c1-64\n\
             wget -q -O - --post-file=there {url}; echo\n\
             for i in 1 2 3 4; do wget -q -O - {url} | sha256sum & done | sort | uniq -c"
        ),
        Duration::from_secs(600),
    );
    let expected = format!("{sum}\n{sum}\n      4 {sum}  -\n");
    assert_eq!((output, status), (expected, 0));
}

fn datagrams(console: &mut Console) {
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = echo.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            echo.send_to(&buffer[..length], from).unwrap();
        }
    });
    let script = format!(
        "python3 - << 'END'\n\
         import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.settimeout(30)\n\
         for length in 0, 1, 1472, 1473, 9000, 60000:\n\
         \x20   data = bytes(n % 251 for n in range(length))\n\
         \x20   s.sendto(data, ('10.0.2.2', {port}))\n\
         \x20   assert s.recvfrom(65536) == (data, ('10.0.2.2', {port})), length\n\
         s.connect(('10.0.2.2', 9))\n\
         s.send(b'?')\n\
         try: s.recv(1)\n\
         except ConnectionRefusedError: print('refused')\n\
         END\n\
         ping -q -c 3 -i 0.2 10.0.2.2 | grep -o '3 received'\n\
         ping -q -c 3 -i 0.2 -s 4000 fec0::2 | grep -o '3 received'"
    );
    let (output, status) = sh(console, &script, SOON);
    assert_eq!(
        (output.as_str(), status),
        ("refused\n3 received\n3 received\n", 0)
    );
}

/// What a guest must not reach, and how it hears of it.
fn refusals(console: &mut Console) {
    let (output, _) = sh(
        console,
        "for to in 10.0.2.2/9 169.254.169.254/80 168.63.129.16/80; do\n\
         timeout 20 bash -c \"exec 3<> /dev/tcp/$to\" 2>&1 | head -n 1 | grep -o 'refused$'; done",
        SOON,
    );
    assert_eq!(output, "refused\nrefused\nrefused\n");
}

fn ssh(console: &mut Console, directory: &Path, port: u16, file: &[u8], sum: &str) {
    let key = directory.join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let (output, status) = sh(
        console,
        &format!(
            "mkdir -p /root/.ssh && echo '{}' > /root/.ssh/authorized_keys\n\
             (stress-ng --cpu 2 --vm 1 --vm-bytes 50M --timeout 300s > /dev/null 2>&1 &)",
            public.trim()
        ),
        SOON,
    );
    assert_eq!((output.as_str(), status), ("", 0));
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
    ])
    .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
    .args(["-o", "ConnectTimeout=120", "-i"])
    .arg(&key)
    .args(["-p", &port.to_string(), "root@127.0.0.1"])
    .arg("tee /var/tmp/sent | sha256sum; cat /var/tmp/sent; pkill stress-ng; true");
    let mut child = ssh
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = file[..LARGE / 4].to_vec();
    let expected = digest(&sent);
    let writer = thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let (line, back) = output.stdout.split_at(68);
    assert_eq!(String::from_utf8_lossy(line), format!("{expected}  -\n"));
    assert_eq!(digest(back), expected);
    assert_ne!(expected, sum);
}

#[test]
fn a_port_that_is_taken_is_an_error_before_the_guest_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("{}:22", taken.local_addr().unwrap().port());
    for (publish, words) in [
        (publish.as_str(), "choose another host port"),
        ("22", "[ADDR:]HOST:GUEST[/udp]"),
    ] {
        let output = holm()
            .args(["run", "tiny", "--net", "user", "--publish", publish])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(words), "{error}");
        assert!(output.stdout.is_empty());
    }
}
