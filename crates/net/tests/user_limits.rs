//! Many connections, and what happens when the host has no more descriptors.
//! In a process of its own, since it changes the process's limits.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smoltcp::socket::tcp::State;
use support::{Guest, network};

const MANY: usize = 1000;

#[test]
fn many_connections_and_then_no_descriptors() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    let network = network(|config| {
        config.publish = vec!["0:22".parse().unwrap()];
        config.limits.tcp = MANY + 50;
    });
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let many = MANY.min(usize::try_from(most / 2 - 100).unwrap_or(MANY));
    let server = thread::spawn(move || {
        let mut streams = Vec::new();
        for _ in 0..many {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            streams.push(stream);
        }
        for stream in &mut streams {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"!");
        }
        listener
    });
    let mut guest = Guest::new(&network, true);
    let mut handles = Vec::new();
    for number in 0..many {
        handles.push(guest.connect(&remote, 10_000 + number as u16, 64));
        guest.poll();
    }
    guest.until("every greeting", |guest| {
        let greeted = |handle| {
            guest
                .sockets
                .get::<smoltcp::socket::tcp::Socket<'_>>(handle)
                .recv_queue()
                == 5
        };
        handles.iter().all(|handle| greeted(*handle))
    });
    assert_eq!(network.metrics().tcp_now, many as u64);
    for handle in &handles {
        guest.socket(*handle).send_slice(b"!").unwrap();
    }
    guest.until("every answer", |_| server.is_finished());
    let listener = server.join().unwrap();

    // The limit of the network.
    let before = network.metrics().limited;
    let mut last = Vec::new();
    for number in 0..100 {
        last.push(guest.connect(&remote, 30_000 + number, 64));
    }
    guest.until("resets", |guest| {
        let closed = |handle| {
            guest
                .sockets
                .get::<smoltcp::socket::tcp::Socket<'_>>(handle)
                .state()
                == State::Closed
        };
        last.iter().filter(|handle| closed(**handle)).count() >= 40
    });
    assert!(network.metrics().limited > before);
    for handle in handles.into_iter().chain(last) {
        guest.socket(handle).abort();
    }
    guest.until("the end of all", |_| network.metrics().tcp_now == 0);

    // The limit of the host: none is left.
    let client_side = network.publications()[0].host;
    let mut waiting = TcpStream::connect(client_side).unwrap();
    let old = getrlimit(Resource::Nofile);
    let free = std::fs::File::open("/dev/null").unwrap();
    let none = Rlimit {
        current: Some(free.as_raw_fd() as u64),
        maximum: old.maximum,
    };
    drop(free);
    setrlimit(Resource::Nofile, none).unwrap();
    let before = network.metrics().limited;
    let refused = guest.connect(&remote, 50_000, 64);
    guest.until("a reset", |guest| {
        guest.socket(refused).state() == State::Closed
    });
    waiting
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let error = waiting.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    setrlimit(Resource::Nofile, old).unwrap();
    assert!(network.metrics().limited >= before + 2);

    // And it goes on afterwards.
    let again = guest.connect(&remote, 50_001, 64);
    guest.until("a connection", |guest| guest.socket(again).may_send());
    drop(listener);
}
