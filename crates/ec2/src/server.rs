//! Connections: HTTP/1.1, with limits on time and size.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::door::{Door, Request, refuse_early};
use crate::error::Error;

/// Longest body of a request, in bytes.
pub const BODY_MAX: usize = 1 << 20;
/// Longest head of a request, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Most connections at once; others wait.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take for a head, or stay without asking anything.
const HEAD_TIME: Duration = Duration::from_secs(120);
/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(60);
/// How long connections have to end when the door is closed.
const GRACE: Duration = Duration::from_secs(5);

/// Answers what comes to a socket until `shutdown`; requests that are being
/// answered then have five seconds.
pub async fn serve(listener: TcpListener, door: Arc<Door>, shutdown: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, say: those that are open will end.
                tracing::warn!(%error, "accepting a connection to the EC2 door");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let door = door.clone();
        let service = service_fn(move |request| {
            let door = door.clone();
            async move { Ok::<_, std::convert::Infallible>(answer(&door, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the EC2 door");
            }
        });
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(GRACE) => {}
    }
}

/// Reads the body, and has the request answered.
async fn answer(door: &Door, request: hyper::Request<Incoming>) -> Response {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect();
    let body = match tokio::time::timeout(BODY_TIME, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("A request has at most {BODY_MAX} bytes");
            let error = Error::new("RequestEntityTooLarge", message)
                .with_status(StatusCode::PAYLOAD_TOO_LARGE);
            return refuse_early(&head.headers, &error);
        }
        Ok(Err(_)) => {
            let error = Error::malformed("The body could not be read");
            return refuse_early(&head.headers, &error);
        }
        Err(_) => {
            let error = Error::new("RequestTimeout", "The body did not come in time")
                .with_status(StatusCode::REQUEST_TIMEOUT);
            return refuse_early(&head.headers, &error);
        }
    };
    door.answer(&Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    })
    .await
}
