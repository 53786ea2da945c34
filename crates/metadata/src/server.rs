//! The service on a socket, within bounds: a hostile guest harms only itself.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;

use crate::facts::Source;
use crate::service;

/// Connections of one guest that are served at once; further ones wait.
pub const MOST_CONNECTIONS: usize = 32;
/// Time for a request's head, and between two requests.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time for a connection as a whole, however slowly its guest reads.
const LIFE: Duration = Duration::from_secs(120);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// Headers of a request.
const HEADERS: usize = 64;
/// Requests a second, in the long run; further ones wait their turn.
const RATE: u32 = 1000;
/// Requests that may come at once.
const BURST: u32 = 2000;
/// Time to let go of a failure to accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves one instance until the future is dropped; its connections end with
/// it. Tokens that it gave hold for the next service of the same
/// [`crate::TokenKey`].
///
/// # Errors
/// If the listener is no longer one.
pub async fn serve(listener: UnixListener, source: Arc<dyn Source>) -> io::Result<Infallible> {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let pace = Arc::new(Pace::new(Instant::now()));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "a metadata connection could not be accepted");
                time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let (source, pace) = (source.clone(), pace.clone());
        connections.spawn(async move {
            connection(stream, source, pace).await;
            drop(place);
        });
    }
}

/// Whether the next connection may fare better.
fn is_passing(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotConnected
    )
}

async fn connection(stream: UnixStream, source: Arc<dyn Source>, pace: Arc<Pace>) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (source, pace) = (source.clone(), pace.clone());
        async move {
            pace.wait().await;
            let facts = source.facts();
            let (head, _) = request.into_parts();
            let answer = service::answer(
                facts.as_ref(),
                SystemTime::now(),
                &head.method,
                &head.uri,
                &head.headers,
            );
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    // A client may have said all that it will, as `printf … | nc` does.
    http.half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS);
    let served = http.serve_connection(TokioIo::new(stream), service);
    // What a guest does wrong is no fault of the host's.
    match time::timeout(LIFE, pin!(served)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a metadata connection broke"),
        Err(_) => tracing::debug!("a metadata connection lived too long"),
    }
}

/// When the next request may be answered: times are handed out, a request
/// waits for its own.
struct Pace {
    start: Instant,
    /// Nanoseconds after `start` at which all that was asked is paid for.
    paid: AtomicU64,
}

impl Pace {
    const EACH: u64 = 1_000_000_000 / RATE as u64;

    fn new(start: Instant) -> Self {
        Self {
            start,
            paid: AtomicU64::new(0),
        }
    }

    /// How long the next request has to wait.
    fn next(&self, now: Instant) -> Duration {
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos());
        let now = now.unwrap_or(u64::MAX);
        let add = |paid: u64| Some(paid.max(now).saturating_add(Self::EACH));
        let before = self
            .paid
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .unwrap_or_default();
        let ahead = before.saturating_sub(now);
        Duration::from_nanos(ahead.saturating_sub(Self::EACH * u64::from(BURST)))
    }

    async fn wait(&self) {
        let wait = self.next(Instant::now());
        if !wait.is_zero() {
            time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_more_is_paced() {
        let start = Instant::now();
        let pace = Pace::new(start);
        let waits: Vec<Duration> = (0..BURST + 10).map(|_| pace.next(start)).collect();
        assert!(waits.iter().take(2000).all(Duration::is_zero));
        assert_eq!(waits.last(), Some(&Duration::from_millis(9)));
        assert!(pace.next(start + Duration::from_secs(60)).is_zero());
    }
}
