//! The REST interface: the door for the command line, for programs and for
//! the web. It reads requests, asks `control`, and writes answers; it decides
//! nothing.
//!
//! [`router`] serves all paths, [`UnixDoor`] and [`TlsDoor`] say to whom, and
//! [`document`] is the OpenAPI 3.1 document, made from the handlers.
#![forbid(unsafe_code)]

pub mod caller;
mod certificate;
mod document;
mod extract;
mod layers;
mod metrics;
pub mod problem;
mod rate;
pub mod resources;
mod serve;
pub mod tokens;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use prometheus::Registry;
use utoipa::openapi::OpenApi;

pub use certificate::{Certificate, CertificateError};
pub use extract::etag;
pub use rate::Rate;
pub use serve::{ListenError, Peer, TlsDoor, UnixDoor};

use metrics::Metrics;
use problem::{Code, Problem};
use rate::Limiter;
use tokens::TokenBook;

/// What bounds a request.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest body, in bytes.
    pub body: usize,
    /// Longest time until an answer begins.
    pub patience: Duration,
    /// How often one token may ask.
    pub rate: Rate,
    /// How often one address may send a wrong token.
    pub guesses: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1 << 20,
            patience: Duration::from_secs(60),
            rate: Rate::default(),
            guesses: Rate {
                per_second: 0.2,
                burst: 10.0,
            },
        }
    }
}

/// What all handlers share.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// Behind an [`App`].
pub struct Shared {
    /// User id of the state directory's owner.
    owner: u32,
    limits: Limits,
    limiter: Limiter,
    guesses: Limiter,
    metrics: Metrics,
    registry: Registry,
    tokens: TokenBook,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    /// An interface for the state directory of this owner (a user id).
    ///
    /// # Errors
    /// [`prometheus::Error`] if the registry has its counters already.
    pub fn new(owner: u32, registry: Registry, limits: Limits) -> prometheus::Result<Self> {
        Ok(Self(Arc::new(Shared {
            owner,
            limiter: Limiter::new(limits.rate),
            guesses: Limiter::new(limits.guesses),
            metrics: Metrics::register(&registry)?,
            registry,
            tokens: TokenBook::default(),
            limits,
        })))
    }

    /// Lets the bearer of a token in.
    pub fn let_in(&self, token: &tokens::Token, role: caller::Role) {
        self.tokens.add(&token.id, &token.digest(), role);
    }
}

/// All paths.
pub fn router(app: App) -> Router {
    let (router, _) = resources::all().split_for_parts();
    let around = |app: &App| app.clone();
    router
        .fallback(async || {
            Problem::new(Code::NoSuchPath, "this path does not exist")
                .next("GET /v1/openapi.json lists those that do")
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                Code::MethodNotAllowed,
                "this path does not have this method",
            )
            .next("the header Allow names those that it has")
        })
        .layer(DefaultBodyLimit::max(app.limits.body))
        .layer(middleware::from_fn_with_state(
            around(&app),
            layers::contain,
        ))
        .layer(middleware::from_fn_with_state(around(&app), layers::admit))
        .layer(middleware::from_fn_with_state(
            around(&app),
            layers::observe,
        ))
        .with_state(app)
}

/// The OpenAPI document.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = resources::all().to_openapi();
    document::complete(&mut document);
    document
}
