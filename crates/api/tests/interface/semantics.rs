//! Pages, ETags, idempotency and watches, as clients rely on them.

use std::time::Duration;

use std::sync::Arc;

use crate::common::{Client, OWNER, peer, site, site_in};
use axum::body::{Body, BodyDataStream};
use axum::http::StatusCode;
use serde_json::{Value, json};

#[tokio::test]
async fn pages_go_through_all_and_end() {
    let site = site().await;
    let client = site.owner();
    for n in 0..7 {
        let body = json!({"size": 1_u64 << 30, "tags": {"n": n.to_string()}});
        client.does("POST", "/v1/volumes", Some(body), 201).await;
    }
    let mut seen = Vec::new();
    let mut path = "/v1/volumes?limit=3".to_owned();
    let mut pages = 0;
    loop {
        let page = client.does("GET", &path, None, 200).await.json();
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|v| v["id"].as_str().unwrap().to_owned()));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/volumes?limit=3&after={next}"),
            None => break,
        }
    }
    assert_eq!((pages, seen.len()), (3, 7));
    assert!(seen.is_sorted(), "{seen:?}");
    for bad in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "after=%21",
        "colour=red",
    ] {
        let path = format!("/v1/volumes?{bad}");
        client.refused("GET", &path, None, "bad-request").await;
    }
}

#[tokio::test]
async fn a_change_is_made_only_to_what_its_caller_has_seen() {
    let site = site().await;
    let client = site.owner();
    let body = json!({"size": 1_u64 << 30});
    let made = client.does("POST", "/v1/volumes", Some(body), 201).await;
    let path = format!("/v1/volumes/{}", made.json()["id"].as_str().unwrap());
    let first = made.header("etag").to_owned();
    let had = client.with("if-none-match", &first).get(&path).await;
    assert_eq!((had.status, had.body.len()), (StatusCode::NOT_MODIFIED, 0));

    let grow = |gib: u64| Some(json!({"size": gib << 30}));
    let holding = client.with("if-match", &first);
    let changed = holding.does("PATCH", &path, grow(2), 200).await;
    let second = changed.header("etag").to_owned();
    assert_ne!(first, second);
    let refused = holding
        .refused("PATCH", &path, grow(3), "revision-mismatch")
        .await;
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    holding
        .refused("DELETE", &path, None, "revision-mismatch")
        .await;
    let now = client.with("if-none-match", &first).get(&path).await.json();
    assert_eq!(now["size"], 2_u64 << 30);
    client
        .with("if-match", "*")
        .does("PATCH", &path, grow(4), 200)
        .await;
    for bad in ["7", "\"x\"", "W/\"7\"", ""] {
        let client = client.with("if-match", bad);
        client.refused("PATCH", &path, grow(5), "bad-request").await;
    }
    // Even a change that changes nothing must be of what was seen.
    holding
        .refused("PATCH", &path, grow(4), "revision-mismatch")
        .await;
}

/// Runs a daemon's life, to its end.
fn life<R>(directory: &Arc<tempfile::TempDir>, story: impl AsyncFnOnce(Client) -> R) -> R {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let site = site_in(directory.clone(), OWNER, api::Limits::default()).await;
        story(site.owner()).await
    })
}

#[test]
fn answers_outlive_the_daemon_but_for_their_secrets() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let body = || Some(json!({"name": "web"}));
    let path = "/v1/security-groups";
    let (made, place) = life(&directory, async |client| {
        let keyed = client.with("idempotency-key", "k-1");
        let made = keyed.does("POST", path, body(), 201).await;
        let keyed = client.with("idempotency-key", "k-2");
        let key = keyed.does("POST", "/v1/key-pairs", body(), 201).await;
        assert!(key.text().contains("PRIVATE KEY"));
        (made, key.header("location").to_owned())
    });
    life(&directory, async |client| {
        let keyed = client.with("idempotency-key", "k-1");
        let again = keyed.does("POST", path, body(), 201).await;
        assert_eq!(made.json(), again.json());
        for header in ["location", "etag", "content-type"] {
            assert_eq!(made.header(header), again.header(header), "{header}");
        }
        let other = Some(json!({"name": "db"}));
        let refused = keyed.refused("POST", path, other, "idempotency-mismatch");
        refused.await;
        let keyed = client.with("idempotency-key", "k-2");
        let refused = keyed.refused("POST", "/v1/key-pairs", body(), "already-exists");
        let refused = refused.await.text();
        assert!(
            refused.contains(&place) && !refused.contains("PRIVATE"),
            "{refused}"
        );
        let all = client.get("/v1/key-pairs").await.json();
        assert_eq!(all["items"].as_array().unwrap().len(), 1);
    });
    // Nothing of the private key is in the state directory.
    let left = std::process::Command::new("grep")
        .args(["-rlE", "PRIVATE KEY"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[tokio::test]
async fn a_request_that_was_interrupted_is_not_done_twice() {
    let site = site().await;
    let client = site.owner().with("idempotency-key", "k-1");
    let groups = async || site.owner().get("/v1/security-groups").await.json()["items"].clone();
    let body = || Some(json!({"name": "web"}));
    client
        .does("POST", "/v1/security-groups", body(), 201)
        .await;
    let store = site.plane.store();
    let noted = store.list("answer/", "", 10).await.unwrap().documents;
    assert_eq!(noted.len(), 1);
    // As if the daemon had ended before it noted what it answered.
    let id = noted[0].key.strip_prefix("answer/").unwrap();
    let mut answer = site.plane.answer(id).await.unwrap().unwrap();
    answer.given = None;
    site.plane.note_answer(id, &answer).await.unwrap();
    let before = groups().await;
    let path = "/v1/security-groups";
    let refused = client.refused("POST", path, body(), "conflict").await;
    assert!(refused.json()["next"].as_str().unwrap().contains("new key"));
    assert_eq!(groups().await, before);
    let at = answer.at;
    assert_eq!(site.plane.forget_answers(at).await.unwrap(), 0);
    let later = model::Timestamp(at.0 + 1);
    assert_eq!(site.plane.forget_answers(later).await.unwrap(), 1);
    client.refused("POST", path, body(), "already-exists").await;
}

#[tokio::test]
async fn a_request_with_a_key_is_done_once() {
    let site = site().await;
    let client = site.owner();
    let body = || Some(json!({"name": "web"}));
    let keyed = client.with("idempotency-key", "k-1");
    let path = "/v1/security-groups";
    let made = keyed.does("POST", path, body(), 201).await;
    let again = keyed.does("POST", path, body(), 201).await;
    assert_eq!(made.json(), again.json());
    assert_eq!(made.header("location"), again.header("location"));
    assert_ne!(made.header("x-request-id"), again.header("x-request-id"));
    let other = Some(json!({"name": "db"}));
    let refused = keyed
        .refused("POST", path, other, "idempotency-mismatch")
        .await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    // Another caller's key of the same text is another key.
    let token = site.token(true).await;
    let bearer = format!("Bearer {}", token.text);
    let theirs = Client::new(&site, peer::network()).with("authorization", &bearer);
    let theirs = theirs.with("idempotency-key", "k-1");
    theirs.refused("POST", path, body(), "already-exists").await;
    // What was refused is tried anew.
    let retried = client.with("idempotency-key", "k-2");
    retried
        .refused("POST", path, body(), "already-exists")
        .await;
    let group = format!("{path}/{}", made.json()["id"].as_str().unwrap());
    client.does("DELETE", &group, None, 204).await;
    retried.does("POST", path, body(), 201).await;
    for bad in ["", " ", &"x".repeat(65)] {
        let client = client.with("idempotency-key", bad);
        client.refused("POST", path, body(), "bad-request").await;
    }
    let volume = || Some(json!({"size": 1_u64 << 30}));
    let same = client.with("idempotency-key", "k-3");
    let (a, b) = tokio::join!(
        same.send("POST", "/v1/volumes", volume()),
        same.send("POST", "/v1/volumes", volume()),
    );
    assert!(a.status == 201 || b.status == 201);
    let all = client.get("/v1/volumes").await.json();
    assert_eq!(all["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bodies_that_are_wrong_are_told_so() {
    let site = site().await;
    let client = site.owner();
    let typed = client.with("content-type", "text/plain");
    let answer = typed.send("POST", "/v1/vpcs", None).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let long = json!({"cidr": "x".repeat(2 << 20)});
    client
        .refused("POST", "/v1/vpcs", Some(long.clone()), "too-large")
        .await;
    let keyed = client.with("idempotency-key", "k");
    keyed
        .refused("POST", "/v1/vpcs", Some(long), "too-large")
        .await;
    for (body, code) in [
        (json!([]), "invalid-value"),
        (json!({"cidr": 7}), "invalid-value"),
        (json!({}), "invalid-value"),
        (
            json!({"cidr": "10.0.0.0/16", "tags": {"": "x"}}),
            "invalid-value",
        ),
    ] {
        let answer = client.refused("POST", "/v1/vpcs", Some(body), code).await;
        assert!(!answer.json()["detail"].as_str().unwrap().is_empty());
    }
    // Not taken for an object's fields in their order.
    let (path, body) = ("/v1/access-keys", Some(json!(["me", null])));
    client.refused("POST", path, body, "invalid-value").await;
}

struct Events {
    body: BodyDataStream,
    text: String,
}

impl Events {
    async fn open(client: &Client, path: &str) -> Self {
        let response = client.open(path).await;
        assert_eq!(response.status(), StatusCode::OK);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert_eq!(kind, "text/event-stream");
        let body: Body = response.into_body();
        Self {
            body: body.into_data_stream(),
            text: String::new(),
        }
    }

    /// The next event and its data; `None`: the stream has ended.
    async fn next(&mut self) -> Option<(String, Value)> {
        use futures_util::StreamExt;
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let one: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    let line = one.lines().find_map(|line| line.strip_prefix(name));
                    line.map(str::trim).map(str::to_owned)
                };
                let Some(event) = field("event:") else {
                    continue;
                };
                let data = serde_json::from_str(&field("data:").unwrap()).unwrap();
                return Some((event, data));
            }
            let next = tokio::time::timeout(Duration::from_secs(60), self.body.next());
            let chunk = next.await.expect("something happens")?.unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn expect(&mut self, event: &str) -> Value {
        let (found, data) = self.next().await.expect("the watch goes on");
        assert_eq!(found, event, "{data}");
        data
    }
}

#[tokio::test]
async fn a_watch_shows_what_there_is_and_then_what_happens() {
    let site = site().await;
    let client = site.owner();
    let body = || Some(json!({"size": 1_u64 << 30}));
    let there = client.does("POST", "/v1/volumes", body(), 201).await.json();
    let mut events = Events::open(&client, "/v1/watch?kind=volume,key-pair").await;
    let first = events.expect("put").await;
    assert_eq!(
        (&first["kind"], &first["id"]),
        (&json!("volume"), &there["id"])
    );
    assert_eq!(first["value"], there);
    events.expect("synced").await;
    let second = client.does("POST", "/v1/volumes", body(), 201).await;
    let seen = events.expect("put").await;
    assert_eq!(seen["value"], second.json());
    assert_eq!(format!("\"{}\"", seen["revision"]), second.header("etag"));
    client
        .does(
            "POST",
            "/v1/vpcs",
            Some(json!({"cidr": "10.0.0.0/16"})),
            201,
        )
        .await;
    let made = client
        .does("POST", "/v1/key-pairs", Some(json!({"name": "k"})), 201)
        .await;
    let seen = events.expect("put").await;
    assert_eq!(seen["kind"], "key-pair", "networks are not watched");
    assert!(seen["value"]["private_key"].is_null());
    let path = format!("/v1/key-pairs/{}", made.json()["id"].as_str().unwrap());
    client.does("DELETE", &path, None, 204).await;
    let gone = events.expect("delete").await;
    assert!(gone["id"] == made.json()["id"] && gone["value"].is_null());

    let id = there["id"].as_str().unwrap();
    let mut one = Events::open(&client, &format!("/v1/watch?resource={id}")).await;
    assert_eq!(one.expect("put").await["id"], id);
    one.expect("synced").await;
    client
        .does("DELETE", &format!("/v1/volumes/{id}"), None, 204)
        .await;
    let (mut kinds, a, b) = (Vec::new(), one.expect("put").await, one.expect("put").await);
    for seen in [a, b] {
        kinds.push(seen["kind"].as_str().unwrap().to_owned());
    }
    kinds.sort();
    assert_eq!(kinds, ["event", "volume"], "and what is told of it");

    let metrics = client.get("/metrics").await.text();
    assert!(metrics.contains("\nholm_api_watches 2\n"), "{metrics}");
    site.app.end_watches();
    while one.next().await.is_some() {}
    while events.next().await.is_some() {}
    let metrics = client.get("/metrics").await.text();
    assert!(metrics.contains("\nholm_api_watches 0\n"), "{metrics}");
}
