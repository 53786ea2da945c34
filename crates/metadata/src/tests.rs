//! The service as a guest sees it: bytes on its socket.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::facts::example;
use crate::*;

struct Now(Mutex<Option<Arc<Facts>>>);

impl Source for Now {
    fn facts(&self) -> Option<Arc<Facts>> {
        self.0.lock().unwrap().clone()
    }
}

/// A service of its own, with what it says of the instance.
struct Service {
    directory: tempfile::TempDir,
    now: Arc<Now>,
    task: JoinHandle<()>,
}

impl Service {
    fn start(facts: Facts) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let now = Arc::new(Now(Mutex::new(Some(Arc::new(facts)))));
        let source = now.clone();
        let task = tokio::spawn(async move { drop(serve(listener, source).await) });
        Self {
            directory,
            now,
            task,
        }
    }

    fn set(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = example();
        change(&mut facts);
        *self.now.0.lock().unwrap() = Some(Arc::new(facts));
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("s"))
            .await
            .unwrap()
    }

    /// Sends bytes; all that comes back until the service closes.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        // It may close in the middle of what it refuses.
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Status, head and body of a request with these headers.
    async fn ask(&self, method: &str, path: &str, headers: &[&str]) -> (u16, String, String) {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for header in headers {
            request += &format!("{header}\r\n");
        }
        let answer = self.raw(format!("{request}\r\n").as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        (status.unwrap_or(0), head.to_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.ask("GET", path, &[]).await;
        (status, body)
    }

    /// The body of what must be there.
    async fn text(&self, path: &str) -> String {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn token(&self) -> String {
        let ttl = ["X-aws-ec2-metadata-token-ttl-seconds: 60"];
        let (status, _, token) = self.ask("PUT", "/latest/api/token", &ttl).await;
        assert_eq!(status, 200);
        token
    }

    /// Status of a request with a token.
    async fn with(&self, token: &str) -> u16 {
        let header = format!("X-aws-ec2-metadata-token: {token}");
        self.ask("GET", "/latest/meta-data/mac", &[&header]).await.0
    }
}

#[tokio::test]
async fn listings_and_texts_are_as_ec2_has_them() {
    let service = Service::start(example());
    let versions = service.text("/").await;
    for version in [
        "1.0\n",
        "2009-04-04\n",
        "2016-09-02\n",
        "2018-09-24\n",
        "2021-03-23\n",
    ] {
        assert!(versions.contains(version), "{versions}");
    }
    assert!(versions.ends_with("\nlatest"));
    assert_eq!(
        service.text("/latest/").await,
        "dynamic\nmeta-data\nuser-data"
    );
    let list = service.text("/latest/meta-data/").await;
    assert_eq!(
        list,
        service
            .text("/2009-04-04/meta-data")
            .await
            .replace("mac\n", "mac\nnetwork/\n")
    );
    for line in [
        "instance-id",
        "placement/",
        "public-keys/",
        "local-ipv4",
        "network/",
    ] {
        assert!(list.lines().any(|l| l == line), "{line}: {list}");
    }
    for absent in ["tags/", "iam/", "public-hostname"] {
        assert!(!list.lines().any(|l| l == absent), "{absent}: {list}");
    }
    let m = "/2021-03-23/meta-data/network/interfaces/macs/02:00:0a:00:00:05";
    for (path, text) in [
        ("/latest/meta-data/instance-id", "i-0123456789abcdef0"),
        ("/1.0/meta-data/instance-id/", "i-0123456789abcdef0"),
        ("/latest/meta-data/public-keys/", "0=my-key"),
        ("/latest/meta-data/public-keys/0", "openssh-key"),
        (
            "/latest/meta-data/public-keys/0/openssh-key",
            "ssh-ed25519 AAAA my-key",
        ),
        ("/latest/meta-data/block-device-mapping/root", "/dev/sda1"),
        ("/latest/meta-data/placement/region", "us-east-1"),
        ("/latest/meta-data/security-groups", "default"),
        ("/latest/meta-data/public-ipv4", "127.86.0.5"),
        ("/latest/meta-data/instance-life-cycle", "on-demand"),
        ("/latest/meta-data/events/maintenance/scheduled", "[]"),
        ("/latest/dynamic/instance-identity", "document"),
        ("/latest/user-data", "#!/bin/sh\n"),
        (&format!("{m}/subnet-ipv4-cidr-block"), "10.0.0.0/24"),
        (&format!("{m}/vpc-ipv4-cidr-blocks"), "10.0.0.0/16"),
        (&format!("{m}/ipv4-associations/127.86.0.5"), "10.0.0.5"),
        (&format!("{m}/device-number"), "0"),
    ] {
        assert_eq!(service.text(path).await, text, "{path}");
    }
    let document = service
        .text("/latest/dynamic/instance-identity/document")
        .await;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["instanceId"], "i-0123456789abcdef0");
    assert_eq!(document["pendingTime"], "1970-01-01T00:00:00Z");
    for absent in [
        "/latest/dynamic/instance-identity/pkcs7",
        "/latest/dynamic/instance-identity/signature",
        "/latest/meta-data/instance-id/x",
        "/latest/meta-data/public-keys/1",
        "/latest/meta-data/tags/instance",
        "/1999-01-01/meta-data/",
        "/latest/../latest/meta-data/",
        "/latest/meta-data/%",
        "/favicon.ico",
    ] {
        let (status, body) = service.get(absent).await;
        assert_eq!(status, 404, "{absent}");
        assert!(body.contains("404 - Not Found"), "{body}");
    }
}

#[tokio::test]
async fn tags_are_shown_only_if_the_options_say_so() {
    let service = Service::start(example());
    service.set(|facts| facts.options.tags = true);
    assert_eq!(
        service.text("/latest/meta-data/tags/instance/").await,
        "Name\nenv"
    );
    assert_eq!(
        service
            .text("/2021-03-23/meta-data/tags/instance/Name")
            .await,
        "web1"
    );
    assert_eq!(
        service.text("/latest/meta-data/tags/instance/env").await,
        ""
    );
    assert_eq!(
        service.get("/latest/meta-data/tags/instance/a%2Fb").await.0,
        404
    );
    assert_eq!(
        service.get("/2018-09-24/meta-data/tags/instance").await.0,
        404
    );
}

#[tokio::test]
async fn an_instance_with_little_to_say_has_no_empty_folders() {
    let service = Service::start(example());
    service.set(|facts| {
        facts.keys.clear();
        facts.interfaces.clear();
        facts.block_devices.clear();
        facts.user_data = None;
    });
    assert_eq!(service.text("/latest").await, "dynamic\nmeta-data");
    let list = service.text("/latest/meta-data").await;
    for absent in [
        "public-keys/",
        "network/",
        "block-device-mapping/",
        "mac",
        "local-ipv4",
    ] {
        assert!(!list.lines().any(|l| l == absent), "{absent}: {list}");
    }
    assert_eq!(service.get("/latest/user-data").await.0, 404);
    *service.now.0.lock().unwrap() = None;
    assert_eq!(service.get("/latest").await.0, 503);
}

#[tokio::test]
async fn tokens_are_given_and_asked_for() {
    let service = Service::start(example());
    let put = |headers: &'static [&'static str]| service.ask("PUT", "/latest/api/token", headers);
    let (status, head, token) = put(&["X-AWS-EC2-Metadata-Token-TTL-Seconds: 21600"]).await;
    assert_eq!((status, token.len()), (200, 52));
    assert!(
        head.contains("x-aws-ec2-metadata-token-ttl-seconds: 21600"),
        "{head}"
    );
    for (status, headers) in [
        (400, &[][..]),
        (400, &["X-aws-ec2-metadata-token-ttl-seconds: 0"]),
        (400, &["X-aws-ec2-metadata-token-ttl-seconds: 21601"]),
        (400, &["X-aws-ec2-metadata-token-ttl-seconds: sixty"]),
        (
            400,
            &["X-aws-ec2-metadata-token-ttl-seconds: 99999999999999999999"],
        ),
        (
            403,
            &[
                "X-aws-ec2-metadata-token-ttl-seconds: 60",
                "X-Forwarded-For: 10.0.0.1",
            ],
        ),
    ] {
        assert_eq!(put(headers).await.0, status, "{headers:?}");
    }
    let twice = &["X-aws-ec2-metadata-token-ttl-seconds: 1"; 2];
    assert_eq!(put(twice).await.0, 400);
    let (status, head, _) = service.ask("GET", "/latest/api/token", &[]).await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: options, put"), "{head}");
    for method in ["POST", "DELETE", "PUT", "PATCH", "TRACE", "CONNECT", "X"] {
        let status = service.ask(method, "/latest/meta-data/", &[]).await.0;
        assert!(matches!(status, 405 | 404), "{method}: {status}");
    }
    let (status, head, body) = service.ask("HEAD", "/latest/meta-data/ami-id", &[]).await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: 21"), "{head}");

    // With optional tokens a wrong one is refused all the same.
    assert_eq!(service.with(&token).await, 200);
    assert_eq!(service.with("x").await, 401);
    service.set(|facts| facts.options.tokens = Tokens::Required);
    assert_eq!(service.with(&token).await, 200);
    assert_eq!(service.get("/latest/meta-data/mac").await.0, 401);
    assert_eq!(service.get("/").await.0, 401);
    service.set(|facts| facts.options.enabled = false);
    assert_eq!(service.with(&token).await, 403);
    assert_eq!(
        put(&["X-aws-ec2-metadata-token-ttl-seconds: 60"]).await.0,
        403
    );
}

#[tokio::test]
async fn a_token_outlives_the_service_and_is_of_one_instance() {
    let one = Service::start(example());
    let token = one.token().await;
    one.task.abort();
    let again = Service::start(example());
    assert_eq!(again.with(&token).await, 200);
    let mut other = example();
    other.instance_id = "i-2".into();
    let other = Service::start(other);
    assert_eq!(other.with(&token).await, 401);
    assert_eq!(again.with(&other.token().await).await, 401);
}

#[tokio::test]
async fn nothing_that_a_guest_sends_harms_the_service() {
    let service = Service::start(example());
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    for (request, words) in [
        (long.as_bytes(), &["414", "431", "400"][..]),
        (many.as_bytes(), &["431"]),
        (b"\0\xff\r\n\r\n", &["400"]),
        (b"GET / HTTP/9.9\r\n\r\n", &["400", "505"]),
        (b"GET http://[::1 HTTP/1.1\r\n\r\n", &["400", "404"]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["400", "505", "HTTP"]),
    ] {
        let answer = service.raw(request).await;
        let ok = answer.is_empty() || words.iter().any(|word| answer.contains(word));
        assert!(
            ok,
            "{}: {answer}",
            request
                .escape_ascii()
                .to_string()
                .chars()
                .take(60)
                .collect::<String>()
        );
    }
    // A body is never waited for.
    let answer = service
        .raw(b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx");
    let answer = tokio::time::timeout(Duration::from_secs(60), answer)
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

/// Time passes by itself while nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn connections_that_say_nothing_give_their_places_back() {
    let service = Service::start(example());
    let mut silent = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        let mut stream = service.connect().await;
        stream.write_all(b"GET / HT").await.unwrap();
        silent.push(stream);
    }
    // Waits until the service has given up on one of them.
    assert_eq!(service.get("/latest").await.0, 200);
    let mut rest = Vec::new();
    silent[0].read_to_end(&mut rest).await.unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(
        rest.is_empty() || rest.starts_with("HTTP/1.1 408"),
        "{rest}"
    );
}

fn find(facts: &Facts, path: &str) -> Option<crate::tree::Content> {
    crate::tree::find(facts, &crate::path::words(path)?)
}

/// Every path that listings lead to, as cloud-init follows them.
fn crawl(facts: &Facts, path: &str, seen: &mut Vec<String>) {
    let Some(crate::tree::Content::Text(list)) = find(facts, path) else {
        panic!("{path} leads nowhere");
    };
    for line in list.lines() {
        if let Some(folder) = line.strip_suffix('/') {
            crawl(facts, &format!("{path}{folder}/"), seen);
            continue;
        }
        let name = match line.split_once('=') {
            Some((number, _)) if number.parse::<u32>().is_ok() => format!("{number}/openssh-key"),
            _ => line.into(),
        };
        let leaf = format!("{path}{name}");
        assert!(
            find(facts, &leaf).is_some(),
            "{leaf} is listed and not there"
        );
        seen.push(leaf);
    }
}

#[test]
fn all_that_is_listed_is_there() {
    let mut facts = example();
    facts.options.tags = true;
    for version in ["latest", "2009-04-04"] {
        let mut seen = Vec::new();
        crawl(&facts, &format!("/{version}/meta-data/"), &mut seen);
        crawl(&facts, &format!("/{version}/dynamic/"), &mut seen);
        assert!(seen.len() > 15, "{seen:?}");
    }
}

proptest! {
    #[test]
    fn no_path_leads_out(path in "[/a-z0-9.%:=-]{0,80}|/latest/(meta-data|dynamic)/[/a-z%0-9.]{0,20}|\\PC{0,40}") {
        let facts = example();
        // Whatever is found is from the tree: no path says more than the facts.
        if let Some(crate::tree::Content::Text(text)) = find(&facts, &path) {
            prop_assert!(text.len() < 4096);
        }
    }

    #[test]
    fn tags_of_any_kind_keep_listings_whole(tags in proptest::collection::btree_map(".{0,20}", ".{0,20}", 0..8)) {
        let mut facts = example();
        facts.options.tags = true;
        facts.tags = tags;
        let mut seen = Vec::new();
        crawl(&facts, "/latest/meta-data/", &mut seen);
    }
}
