//! Where the interface listens: a Unix socket, and TCP with TLS.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::certificate::Certificate;

/// Most connections of one listener.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take for a handshake or for a request's header.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long answers may take that are under way when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long to wait after a failed accept: descriptors may have run out.
const RETRY: Duration = Duration::from_millis(100);

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process of this host.
    Process {
        /// Its effective user id.
        user: u32,
    },
    /// Somebody in the network.
    Network(SocketAddr),
}

/// A Unix socket that will be served.
pub struct UnixDoor(UnixListener);

impl UnixDoor {
    /// Of a socket that is listened on.
    #[must_use]
    pub fn new(listener: UnixListener) -> Self {
        Self(listener)
    }

    /// Serves until `end`.
    pub async fn serve(self, router: Router, end: impl Future<Output = ()> + Send) {
        let gate = Gate::new(router);
        let mut end = std::pin::pin!(end);
        loop {
            let accepted = tokio::select! {
                accepted = self.0.accept() => accepted,
                () = &mut end => break,
            };
            match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
                Ok((user, stream)) => gate.let_in(stream, Peer::Process { user }),
                Err(e) => pause(&e).await,
            }
        }
        gate.close().await;
    }
}

/// A TCP port that will be served with TLS.
pub struct TlsDoor {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsDoor {
    /// Of a port that is listened on.
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub fn new(listener: TcpListener, certificate: &Certificate) -> io::Result<Self> {
        Ok(Self {
            listener,
            acceptor: TlsAcceptor::from(certificate.server()?),
        })
    }

    /// Serves until `end`.
    pub async fn serve(self, router: Router, end: impl Future<Output = ()> + Send) {
        let gate = Gate::new(router);
        let mut end = std::pin::pin!(end);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut end => break,
            };
            match accepted {
                Ok((stream, address)) => {
                    let acceptor = self.acceptor.clone();
                    gate.shake_hands(
                        async move { acceptor.accept(stream).await },
                        Peer::Network(address),
                    );
                }
                Err(e) => pause(&e).await,
            }
        }
        gate.close().await;
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!("accepting a connection to the API: {error}");
    tokio::time::sleep(RETRY).await;
}

/// Connections, as many as may be.
struct Gate {
    router: Router,
    places: Arc<Semaphore>,
    graceful: Arc<GracefulShutdown>,
}

impl Gate {
    fn new(router: Router) -> Self {
        Self {
            router,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            graceful: Arc::new(GracefulShutdown::new()),
        }
    }

    fn let_in<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.shake_hands(async move { Ok(stream) }, peer);
    }

    fn shake_hands<S>(
        &self,
        hands: impl Future<Output = io::Result<S>> + Send + 'static,
        peer: Peer,
    ) where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // Who finds no place is hung up on, and may come again.
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!("more than {CONNECTIONS_MAX} connections to the API; one is refused");
            return;
        };
        let router = self.router.clone();
        let watcher = self.graceful.watcher();
        tokio::spawn(async move {
            let _place = place;
            let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, hands).await else {
                return;
            };
            let service = router.map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(peer.clone());
                request.map(axum::body::Body::new)
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE);
            builder.http2().timer(TokioTimer::new());
            let connection = builder
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .into_owned();
            if let Err(e) = watcher.watch(connection).await {
                tracing::debug!("a connection to the API ended: {e}");
            }
        });
    }

    async fn close(self) {
        if let Ok(graceful) = Arc::try_unwrap(self.graceful) {
            // Watches have no end of their own.
            let _ = tokio::time::timeout(FAREWELL, graceful.shutdown()).await;
        }
    }
}
