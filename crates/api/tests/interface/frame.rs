//! What every path has in common: doors, callers, problems, limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Answer, Client, peer, site, site_with};
use api::problem::{Code, Problem};
use api::tokens::Token;
use api::{Certificate, Limits, Rate, TlsDoor, UnixDoor};
use axum::http::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;

fn problem(answer: &Answer) -> Problem {
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem: Problem = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem.status, answer.status.as_u16());
    assert_eq!(
        problem.request_id.as_deref(),
        Some(answer.header("x-request-id"))
    );
    problem
}

#[tokio::test]
async fn errors_are_problems_with_stable_codes() {
    let client = site().await.owner();
    for (method, path, code) in [
        ("GET", "/v1/nothing", Code::NoSuchPath),
        ("GET", "/", Code::NoSuchPath),
        ("GET", "/v1/caller/", Code::NoSuchPath),
        ("POST", "/v1/caller", Code::MethodNotAllowed),
        ("BREW", "/v1/caller", Code::MethodNotAllowed),
    ] {
        let answer = client.send(method, path, None).await;
        let problem = problem(&answer);
        assert_eq!(problem.code, code, "{method} {path}");
        assert_eq!(problem.code.status(), answer.status);
        assert!(problem.next.is_some());
        if code == Code::MethodNotAllowed {
            assert!(answer.header("allow").contains("GET"));
        }
    }
    let named = client
        .with("x-request-id", "mine-7")
        .send("GET", "/v1/nothing", None)
        .await;
    assert_eq!(problem(&named).request_id.as_deref(), Some("mine-7"));
    let forged = client.with("x-request-id", "a b").get("/healthz").await;
    assert_ne!(forged.header("x-request-id"), "a b");
}

#[tokio::test]
async fn only_owner_root_and_bearers_are_let_in() {
    let site = site().await;
    let (admin, reader) = (site.token(true).await, site.token(false).await);
    for path in ["/healthz", "/v1/openapi.json"] {
        let answer = Client::new(&site, peer::network()).get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "anybody may ask {path}");
    }
    let asks = async |peer, bearer: Option<&str>| {
        let client = Client::new(&site, peer);
        let client = match bearer {
            Some(text) => client.with("authorization", text),
            None => client,
        };
        client.get("/v1/caller").await
    };
    for user in [0, crate::common::OWNER] {
        let answer = asks(peer::process(user), None).await;
        assert_eq!(answer.json()["identity"], format!("user:{user}"));
        assert_eq!(answer.json()["role"], "admin");
    }
    let stranger = asks(peer::process(crate::common::OWNER + 1), None).await;
    assert_eq!(problem(&stranger).code, Code::Forbidden);
    let bearer = format!("Bearer {}", admin.text);
    let known = asks(peer::network(), Some(&bearer)).await;
    assert_eq!(known.json()["identity"], format!("token:{}", admin.id));
    let looking = format!("bearer {}", reader.text);
    let known = asks(peer::network(), Some(&looking)).await;
    assert_eq!(known.json()["role"], "reader");
    let unknown = format!("Bearer {}", Token::random().unwrap().text);
    let half = format!("Bearer {}", &admin.text[..admin.text.len() - 1]);
    for bad in [
        None,
        Some("Bearer"),
        Some("Basic eDp5"),
        Some(&unknown),
        Some(&half),
    ] {
        let answer = asks(peer::network(), bad.map(|s| s as &str)).await;
        assert_eq!(problem(&answer).code, Code::Unauthenticated, "{bad:?}");
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let limits = Limits {
        rate: Rate {
            per_second: 0.01,
            burst: 3.0,
        },
        guesses: Rate {
            per_second: 0.01,
            burst: 2.0,
        },
        ..Limits::default()
    };
    let site = site_with(crate::common::OWNER, limits).await;
    let token = site.token(true).await;
    let client = Client::new(&site, peer::network());
    let bearer = client.with("authorization", &format!("Bearer {}", token.text));
    for _ in 0..3 {
        assert_eq!(bearer.get("/v1/caller").await.status, StatusCode::OK);
    }
    let refused = bearer.get("/v1/caller").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let seconds: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1..=101).contains(&seconds), "{seconds}");
    assert_eq!(problem(&refused).retry_after, Some(seconds));
    let unknown = format!("Bearer {}", Token::random().unwrap().text);
    let guess = client.with("authorization", &unknown);
    for _ in 0..2 {
        let answer = guess.get("/v1/caller").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let refused = guess.get("/v1/caller").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let metrics = site.owner().get("/metrics").await.text();
    assert!(
        metrics.contains("\nholm_api_requests_limited_total 1\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn metrics_are_as_prometheus_wants_them() {
    let client = site().await.owner();
    client.get("/v1/caller").await;
    client.get("/v1/%2e%2e/etc").await;
    let answer = client.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("text/plain"));
    let text = answer.text();
    let line = "holm_api_requests_total{method=\"GET\",path=\"/v1/caller\",status=\"200\"} 1\n";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("path=\"none\""), "no series per unknown path");
    for line in [
        "holm_quota_limit{quota=\"vpcs\"} 100\n",
        "holm_quota_used{quota=\"vpcs\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    crate::common::promtool(&text);
}

async fn ask(
    door: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> StatusCode {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(door))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("/v1/caller")
        .header("host", "holm")
        .body(axum::body::Body::empty())
        .unwrap();
    sender.send_request(request).await.unwrap().status()
}

#[tokio::test]
async fn the_unix_socket_knows_its_peers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let door = UnixDoor::new(UnixListener::bind(&path).unwrap());
    let (end, ended) = oneshot::channel::<()>();
    let site = site_with(own_user(), Limits::default()).await;
    let serving = tokio::spawn(door.serve(api::router(site.app.clone()), async {
        let _ = ended.await;
    }));
    let stream = UnixStream::connect(&path).await.unwrap();
    assert_eq!(ask(stream).await, StatusCode::OK);
    // A client that says nothing does not hold the daemon up.
    let silent = UnixStream::connect(&path).await.unwrap();
    end.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), serving)
        .await
        .expect("the door closes")
        .unwrap();
    drop(silent);
}

fn own_user() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap())
}

#[tokio::test]
async fn tcp_is_tls_with_a_certificate_that_clients_can_pin() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = certificate(directory.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = TlsDoor::new(listener, &certificate).unwrap();
    let site = site().await;
    tokio::spawn(door.serve(api::router(site.app.clone()), std::future::pending()));

    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    for der in certificate.certificates() {
        roots.add(der.clone()).unwrap();
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    assert_eq!(ask(stream).await, StatusCode::UNAUTHORIZED, "no token");

    // Without TLS there is no answer, and the next client is served.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let stream = TcpStream::connect(address).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    assert!(connector.connect(name, stream).await.is_ok());
}

fn certificate(directory: &Path) -> Certificate {
    Certificate::load_or_make(&directory.join("api.pem"), &[]).unwrap()
}
