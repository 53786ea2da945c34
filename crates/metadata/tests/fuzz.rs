//! What a guest sends to its metadata service, and the seed disk of whatever
//! users wrote.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuzzing::{Fuzz, Input};
use metadata::{Facts, Interface, Lifecycle, Options, PublicKey, Source, TokenKey, Tokens};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const SECRET: &str = "SECRET-of-the-user";
/// An answer that takes so long is none.
const PATIENCE: Duration = Duration::from_secs(60);

fn fuzz<'a>(name: &'a str, words: &'a [&'a [u8]], longest: usize) -> Fuzz<'a> {
    Fuzz {
        name,
        crate_directory: env!("CARGO_MANIFEST_DIR"),
        scratch: env!("CARGO_TARGET_TMPDIR"),
        words,
        longest,
    }
}

/// An instance whose texts are of a user.
fn facts(mut text: impl FnMut(&str) -> String) -> Facts {
    Facts {
        instance_id: "i-0123456789abcdef0".into(),
        image_id: "ami-1".into(),
        instance_type: "t3.micro".into(),
        reservation_id: "r-1".into(),
        launch_index: 0,
        account_id: "123456789012".into(),
        region: "us-east-1".into(),
        zone: "us-east-1a".into(),
        zone_id: None,
        launched: SystemTime::UNIX_EPOCH,
        lifecycle: Lifecycle::OnDemand,
        hostname: text("ip-10-0-0-5.ec2.internal"),
        interfaces: vec![Interface {
            id: "eni-1".into(),
            mac: "02:00:0a:00:00:05".into(),
            device_number: 0,
            addresses: vec![Ipv4Addr::new(10, 0, 0, 5)],
            addresses_v6: Vec::new(),
            hostname: "ip-10-0-0-5.ec2.internal".into(),
            public: None,
            subnet_id: "subnet-1".into(),
            subnet_cidr: "10.0.0.0/24".into(),
            subnet_cidrs_v6: Vec::new(),
            vpc_id: "vpc-1".into(),
            vpc_cidrs: vec!["10.0.0.0/16".into()],
            vpc_cidrs_v6: Vec::new(),
            security_groups: vec![("sg-1".into(), text("default"))],
        }],
        keys: vec![PublicKey {
            name: text("my key/1"),
            openssh: text("ssh-ed25519 AAAA my-key\n"),
        }],
        user_data: Some(text(SECRET).into()),
        tags: BTreeMap::from([(text("Name"), text("web1")), (text("a/b"), text("x"))]),
        block_devices: vec![("ami".into(), "/dev/sda1".into())],
        options: Options {
            enabled: true,
            tokens: Tokens::Required,
            tags: true,
        },
        token_key: TokenKey([7; 32]),
    }
}

struct Always(Arc<Facts>);

impl Source for Always {
    fn facts(&self) -> Option<Arc<Facts>> {
        Some(self.0.clone())
    }
}

/// Statuses of the answers to what is said on one connection. Whatever was
/// said, the next connection is served.
async fn converse(socket: &std::path::Path, bytes: &[u8]) -> Vec<String> {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The service may close in the middle of what it refuses.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(PATIENCE, read).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    // Only who has a token is told; none can be guessed.
    assert!(!answer.contains(SECRET), "{answer}");
    let statuses = answer.match_indices("HTTP/1.").take(4);
    statuses
        .map(|(at, _)| answer[at..].chars().skip(9).take(3).collect())
        .collect()
}

#[test]
fn requests_of_a_guest_are_answered_or_refused() {
    let words: [&[u8]; 20] = [
        b"GET ",
        b"PUT ",
        b"HEAD ",
        b"/latest/api/token",
        b"/latest/user-data",
        b"/latest/meta-data/",
        b"/latest/dynamic/instance-identity/document",
        b"/2021-01-03/",
        b"public-keys/0/openssh-key",
        b"tags/instance/",
        b"%2e%2e/",
        b"//",
        b" HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"\r\n\r\n",
        b"X-aws-ec2-metadata-token: ",
        b"X-aws-ec2-metadata-token-ttl-seconds: 60\r\n",
        b"X-Forwarded-For: 1.2.3.4\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let source = Arc::new(Always(Arc::new(facts(str::to_owned))));
    let listener = {
        let _context = runtime.enter();
        UnixListener::bind(&socket).unwrap()
    };
    let service = runtime.spawn(async move { drop(metadata::serve(listener, source).await) });
    fuzz("requests", &words, 2000).run(|bytes| {
        let statuses = runtime.block_on(converse(&socket, bytes));
        assert!(!service.is_finished());
        statuses
    });
    let token =
        b"PUT /latest/api/token HTTP/1.0\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    assert_eq!(runtime.block_on(converse(&socket, token)), ["200"]);
}

#[test]
fn a_seed_disk_holds_what_users_wrote() {
    let words: [&[u8]; 6] = [
        b"\0",
        b"\n",
        b"\"",
        b"../",
        b"#cloud-config\n",
        b"\xf0\x9f\x90\xa7",
    ];
    fuzz("seed", &words, 6000).run(|bytes| {
        let mut input = Input::new(bytes);
        let facts = facts(|_| {
            let length = usize::from(input.u16() % 4096);
            String::from_utf8_lossy(input.bytes(length)).into_owned()
        });
        let volume = metadata::nocloud::volume(&facts).unwrap();
        let user_data = facts.user_data.unwrap_or_default();
        let found = user_data.is_empty()
            || volume
                .windows(user_data.len())
                .any(|window| window == user_data);
        assert!(found, "the user data is not on the disk as they are");
        assert_eq!(volume.get(510..512), Some(&[0x55, 0xaa][..]));
        volume.len()
    });
}
