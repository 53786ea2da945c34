//! TCP of a guest through the user network, to and from real sockets.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use smoltcp::socket::tcp::State;
use support::{Faults, Guest, Random, network};

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    (0..length).map(|_| random.byte()).collect()
}

/// Data both ways at once between a guest's connection and a real one; both
/// ends check every byte, and close in turn.
fn exchange(offload: bool, faults: Faults, up: usize, down: usize, buffer: usize, remote: &str) {
    let bind = if remote.starts_with('[') {
        "[::1]:0"
    } else {
        "127.0.0.1:0"
    };
    let listener = TcpListener::bind(bind).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (to_host, to_guest) = (pattern(1, up), pattern(2, down));
    let (expected, sent) = (to_host.clone(), to_guest.clone());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let feed = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        feed.join().unwrap();
        assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    });
    let network = network(|_| {});
    let mut guest = Guest::new(&network, offload);
    guest.faults = faults;
    let handle = guest.connect(&format!("{remote}:{port}"), 40_000, buffer);
    let (mut sent, mut got) = (0, Vec::new());
    guest.until("the end of both streams", |guest| {
        let socket = guest.socket(handle);
        if socket.may_send() && sent < up {
            sent += socket.send_slice(&to_host[sent..]).unwrap();
            if sent == up {
                socket.close();
            }
        }
        while socket.can_recv() {
            let count = socket.recv(|data| (data.len(), data.to_vec())).unwrap();
            got.extend(count);
        }
        got.len() >= down && sent == up && !socket.may_recv()
    });
    assert!(got == to_guest, "{} of {} bytes", got.len(), down);
    guest.until("the guest's closing", |guest| {
        matches!(
            guest.socket(handle).state(),
            State::Closed | State::TimeWait
        )
    });
    server.join().unwrap();
    guest.until("forgetting the connection", |_| {
        network.connections().is_empty()
    });
}

#[test]
fn both_ways_in_small_segments() {
    exchange(
        false,
        Faults::default(),
        3 << 20,
        3 << 20,
        65_535,
        "10.0.2.2",
    );
}

#[test]
fn both_ways_in_large_segments() {
    exchange(
        true,
        Faults::default(),
        32 << 20,
        32 << 20,
        1 << 20,
        "10.0.2.2",
    );
}

#[test]
fn both_ways_over_ipv6() {
    exchange(
        true,
        Faults::default(),
        4 << 20,
        4 << 20,
        200_000,
        "[fec0::2]",
    );
}

#[test]
fn every_byte_arrives_over_a_bad_link() {
    let faults = Faults {
        lost: 12,
        doubled: 20,
        late: 30,
    };
    exchange(false, faults, 60_000, 200_000, 30_000, "10.0.2.2");
    exchange(true, faults, 200_000, 1_000_000, 300_000, "10.0.2.2");
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_at_once() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let network = network(|_| {});
    let mut guest = Guest::new(&network, true);
    for remote in [
        format!("10.0.2.2:{free}"),
        "10.0.2.77:1".into(),
        "169.254.169.254:80".into(),
    ] {
        let handle = guest.connect(&remote, 40_001, 10_000);
        // The neighbour 10.0.2.77 does not exist: nobody answers for it.
        if !remote.starts_with("10.0.2.77") {
            guest.until("a reset", |guest| {
                guest.socket(handle).state() == State::Closed
            });
        }
        guest.sockets.remove(handle);
    }
    assert_eq!(network.metrics().denied, 1);
}

#[test]
fn a_full_host_socket_closes_the_window_and_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    let data = pattern(7, 24 << 20);
    let expected = data.clone();
    let (go, wait) = mpsc::channel::<()>();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        wait.recv().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == expected);
    });
    let network = network(|_| {});
    let mut guest = Guest::new(&network, true);
    let handle = guest.connect(&remote, 40_002, 1 << 20);
    let mut sent = 0;
    let mut still = 0;
    guest.until("a window that closes", |guest| {
        let socket = guest.socket(handle);
        let before = sent;
        if socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        still = if sent == before { still + 1 } else { 0 };
        sent > 0 && still > 100
    });
    assert!(sent < data.len(), "the host's socket took everything");
    guest.pass(Duration::from_secs(1));
    go.send(()).unwrap();
    guest.until("the rest", |guest| {
        let socket = guest.socket(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        sent == data.len()
    });
    guest.socket(handle).close();
    guest.until("the end", |_| server.is_finished());
    server.join().unwrap();
}

#[test]
fn resets_cross_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    let network = network(|_| {});
    let mut guest = Guest::new(&network, true);
    let first = guest.connect(&remote, 40_003, 10_000);
    guest.until("a connection", |guest| guest.socket(first).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    guest.socket(first).abort();
    guest.pass(Duration::from_millis(50));
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let error = stream.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let second = guest.connect(&remote, 40_004, 10_000);
    guest.until("a connection", |guest| guest.socket(second).may_send());
    let (stream, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("a reset", |guest| {
        guest.socket(second).state() == State::Closed
    });
    assert!(network.connections().is_empty());
}

#[test]
fn publications_lead_to_the_guest_and_change_while_it_runs() {
    let network = network(|config| {
        config.publish = vec!["0:22".parse().unwrap(), "[::1]:0:22".parse().unwrap()];
    });
    let mut guest = Guest::new(&network, true);
    let mut list = network.publications();
    let third = network.publish("0:22".parse().unwrap()).unwrap();
    list.push(
        *network
            .publications()
            .iter()
            .find(|p| p.host == third)
            .unwrap(),
    );
    for publication in list {
        let listening = guest.tcp(50_000);
        guest.socket(listening).listen(22).unwrap();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(publication.host).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let mut got = Vec::new();
        guest.until("five bytes", |guest| {
            let socket = guest.socket(listening);
            if socket.can_recv() {
                got.extend(socket.recv(|data| (data.len(), data.to_vec())).unwrap());
            }
            got == b"hello" && !socket.may_recv()
        });
        let peer = guest.socket(listening).remote_endpoint().unwrap();
        assert_eq!(peer.addr.to_string(), "10.0.2.2");
        guest.socket(listening).send_slice(b"world").unwrap();
        guest.socket(listening).close();
        guest.until("the answer", |_| client.is_finished());
        assert_eq!(client.join().unwrap(), "world");
        guest.sockets.remove(listening);
        network.unpublish(publication).unwrap();
        guest.poll();
        assert!(TcpStream::connect(publication.host).is_err());
    }
    // Nobody listens in the guest: the client is reset.
    let host = network.publish("0:23".parse().unwrap()).unwrap();
    let client = thread::spawn(move || TcpStream::connect(host).unwrap().read(&mut [0; 1]));
    guest.until("a reset", |_| client.is_finished());
    assert!(client.join().unwrap().is_err());
}

#[test]
fn after_a_restore_leases_go_on_and_old_connections_are_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    let old = network(|config| config.publish = vec!["0:22".parse().unwrap()]);
    let mut guest = Guest::new(&old, true);
    let handle = guest.connect(&remote, 40_010, 10_000);
    guest.until("a connection", |guest| guest.socket(handle).may_send());
    let state = old.save();
    assert_eq!(state.connections.len(), 1);
    // As a snapshot keeps it.
    let text = serde_json::to_string(&state).unwrap();
    let state: net::user::UserState = serde_json::from_str(&text).unwrap();
    drop(old);
    let new = network(|config| config.publish = vec!["0:22".parse().unwrap()]);
    new.restore(state.clone()).unwrap();
    assert_eq!(new.save().leases, state.leases);
    assert_eq!(new.publications().len(), 1);
    let mut renewed = Guest::new(&new, true);
    std::mem::swap(&mut guest.link, &mut renewed.link);
    drop(renewed);
    // The guest waits, and sends nothing of its own.
    guest.until("a reset", |guest| {
        guest.socket(handle).state() == State::Closed
    });
    let again = guest.connect(&remote, 40_010, 10_000);
    guest.until("a new connection", |guest| guest.socket(again).may_send());
    let newer = net::user::UserState {
        version: 99,
        ..state
    };
    let error = new.restore(newer).unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[test]
fn a_policy_delivers_to_a_unix_socket() {
    use net::user::{Flow, FlowPolicy, Target, Verdict};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    #[derive(Debug)]
    struct Metadata(PathBuf);

    impl FlowPolicy for Metadata {
        fn decide(&self, flow: &Flow) -> Verdict {
            if flow.remote.to_string() == "169.254.169.254:80" {
                Verdict::Deliver(Target::Unix(self.0.clone()))
            } else {
                Verdict::Default
            }
        }
    }

    let folder = std::env::temp_dir().join(format!("holm-metadata-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&[byte[0] + 1]).unwrap();
    });
    let network = network(|config| config.policy = std::sync::Arc::new(Metadata(path)));
    let mut guest = Guest::new(&network, true);
    let handle = guest.connect("169.254.169.254:80", 40_020, 10_000);
    guest.until("a connection", |guest| guest.socket(handle).may_send());
    guest.socket(handle).send_slice(&[41]).unwrap();
    guest.until("the answer", |guest| guest.socket(handle).can_recv());
    let answer = guest
        .socket(handle)
        .recv(|data| (data.len(), data.to_vec()))
        .unwrap();
    assert_eq!(answer, [42]);
    server.join().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}
