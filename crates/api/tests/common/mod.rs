//! What the tests share: an interface in this process, and a client of it.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::io::Write;
use std::process::{Command, Stdio};

use api::{App, Limits};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use tower::ServiceExt;

/// User id of the state directory's owner.
pub const OWNER: u32 = 1000;

/// Who asks.
pub mod peer {
    use api::Peer;

    /// A process of a user.
    pub fn process(user: u32) -> Peer {
        Peer::Process { user }
    }

    /// A process of the state directory's owner.
    pub fn owner() -> Peer {
        process(super::OWNER)
    }

    /// Somebody in the network.
    pub fn network() -> Peer {
        Peer::Network("192.0.2.7:4242".parse().unwrap())
    }
}

/// An interface with usual limits.
pub async fn app() -> App {
    app_with(Limits::default()).await
}

/// An interface with these limits.
pub async fn app_with(limits: Limits) -> App {
    App::new(OWNER, prometheus::Registry::new(), limits).unwrap()
}

/// An interface for a state directory of this user.
pub async fn app_of(owner: u32) -> App {
    App::new(owner, prometheus::Registry::new(), Limits::default()).unwrap()
}

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// A client of an interface in this process.
#[derive(Clone)]
pub struct Client {
    router: axum::Router,
    peer: api::Peer,
    headers: Vec<(String, String)>,
}

impl Client {
    pub fn new(app: App, peer: api::Peer) -> Self {
        Self {
            router: api::router(app),
            peer,
            headers: Vec::new(),
        }
    }

    /// One that sends a header, too.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.into(), value.into()));
        client
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<serde_json::Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |value| Body::from(value.to_string()));
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(self.peer.clone());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_vec(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }
}

/// Lets Prometheus' own tool look at counts; CI has it, other hosts may not.
pub fn promtool(text: &str) {
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut tool = match tool {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
            eprintln!("promtool is not here (Debian: prometheus); not checked");
            return;
        }
        other => other.expect("promtool (Debian: prometheus) runs"),
    };
    tool.stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{text}");
}
