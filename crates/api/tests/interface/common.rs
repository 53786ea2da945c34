//! What the tests share: an interface in this process, and a client of it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use api::tokens::Token;
use api::{App, Consoles, Limits, Parts};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use control::{Caller, NewApiToken, Plane, RegisterImage};
use model::{Image, Instance, InstanceId, InstanceState, Volume, VolumeState};
use store::Sqlite;
use tempfile::TempDir;
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

/// An interface in a state directory of its own.
pub struct Site {
    pub app: App,
    pub plane: Plane,
    pub caller: Caller,
    directory: Arc<TempDir>,
}

/// An interface with usual limits.
pub async fn site() -> Site {
    site_with(OWNER, Limits::default()).await
}

/// An interface for a state directory of this user.
pub async fn site_with(owner: u32, limits: Limits) -> Site {
    site_in(Arc::new(tempfile::tempdir().unwrap()), owner, limits).await
}

/// An interface for a state directory that may have been used before.
pub async fn site_in(directory: Arc<TempDir>, owner: u32, limits: Limits) -> Site {
    let store = Sqlite::open(&directory.path().join("store")).unwrap();
    let plane = Plane::open(Arc::new(store)).await.unwrap();
    let caller = Caller::owner(plane.site().unwrap().account);
    let app = App::new(Parts {
        plane: plane.clone(),
        owner,
        registry: prometheus::Registry::new(),
        consoles: Arc::new(Printed),
        ec2_endpoint: Some("http://127.0.0.1:4780".into()),
        limits,
    });
    Site {
        app: app.unwrap(),
        plane,
        caller,
        directory,
    }
}

struct Printed;

#[async_trait::async_trait]
impl Consoles for Printed {
    async fn console(&self, instance: &InstanceId) -> Result<Vec<u8>, String> {
        let mut printed = format!("booting {instance}\n").into_bytes();
        // No guest promises UTF-8.
        printed.push(0xff);
        Ok(printed)
    }
}

impl Site {
    /// A client that may do everything.
    pub fn owner(&self) -> Client {
        Client::new(self, peer::owner())
    }

    /// A token that is let in.
    pub async fn token(&self, admin: bool) -> Token {
        let token = Token::random().unwrap();
        let new = NewApiToken {
            id: token.id.clone(),
            digest: token.digest(),
            name: "test".into(),
            admin,
            expires: None,
        };
        let made = self.plane.create_api_token(&self.caller, new).await;
        made.unwrap();
        token
    }

    /// An image from which instances can be made.
    pub async fn image(&self) -> Image {
        self.image_of("debian-13").await
    }

    /// Such an image, with another name.
    pub async fn image_of(&self, name: &str) -> Image {
        let (plane, caller) = (&self.plane, &self.caller);
        let snapshot = plane.adopt_snapshot(caller, "sha256:00", 1 << 30, 10, "");
        let new = RegisterImage {
            family: Some("debian".into()),
            login: Some("debian".into()),
            ..RegisterImage::of(name, snapshot.await.unwrap().id)
        };
        plane.register_image(caller, new).await.unwrap()
    }

    /// Notes of an instance what its host would.
    pub async fn enters(&self, id: &str, state: InstanceState) {
        let entered = self.plane.edit::<Instance>(id, |instance, _| {
            instance.state = state;
            Ok(())
        });
        let instance = entered.await.unwrap().unwrap();
        for disk in &instance.disks {
            let volume = self.plane.edit::<Volume>(&disk.volume, |volume, _| {
                volume.actual_size = volume.size;
                volume.state = VolumeState::InUse;
                Ok(())
            });
            volume.await.unwrap();
        }
    }

    /// Notes that a volume's file is there.
    pub async fn made(&self, id: &str) {
        let made = self.plane.edit::<Volume>(id, |volume, _| {
            volume.actual_size = volume.size;
            volume.state = VolumeState::Available;
            Ok(())
        });
        assert!(made.await.unwrap().is_some(), "{id}");
    }
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
    /// Operations that were called, as `GET /v1/volumes/vol-…`.
    pub called: Arc<Mutex<Vec<(String, String, StatusCode)>>>,
    _directory: Arc<TempDir>,
}

impl Client {
    pub fn new(site: &Site, peer: api::Peer) -> Self {
        Self {
            router: api::router(site.app.clone()),
            peer,
            headers: Vec::new(),
            called: Arc::default(),
            _directory: site.directory.clone(),
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
        let call = (method.to_owned(), path.to_owned(), parts.status);
        self.called.lock().unwrap().push(call);
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

    /// Asks for what must succeed with this status; the answer.
    pub async fn does(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
        status: u16,
    ) -> Answer {
        let answer = self.send(method, path, body).await;
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, status, "{method} {path}: {text}");
        answer
    }

    /// Asks for what must be refused with this code.
    pub async fn refused(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
        code: &str,
    ) -> Answer {
        let answer = self.send(method, path, body).await;
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status.as_u16() >= 400, "{method} {path}: {text}");
        assert_eq!(answer.json()["code"], code, "{method} {path}: {text}");
        answer
    }

    /// Begins a request whose answer does not end, as a watch.
    pub async fn open(&self, path: &str) -> axum::response::Response {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(self.peer.clone());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let call = ("GET".to_owned(), path.to_owned(), response.status());
        self.called.lock().unwrap().push(call);
        response
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
