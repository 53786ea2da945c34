//! The REST interface: the door for the command line, for programs and for
//! the web. It reads requests, asks `control`, and writes answers; it decides
//! nothing.
//!
//! [`router`] serves all paths, [`UnixDoor`] and [`TlsDoor`] say to whom, and
//! [`document`] is the OpenAPI 3.1 document, made from the handlers.
#![forbid(unsafe_code)]

pub mod caller;
mod certificate;
mod collection;
mod document;
mod extract;
mod idempotency;
mod layers;
mod listing;
mod metrics;
pub mod problem;
mod rate;
mod refusals;
pub mod resources;
mod serve;
pub mod tokens;
mod watching;

use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use control::Plane;
use model::{AccountId, InstanceId};
use prometheus::Registry;
use store::Record;
use tokio::sync::watch;
use utoipa::openapi::OpenApi;

pub use certificate::{Certificate, CertificateError};
pub use extract::etag;
pub use rate::Rate;
pub use serve::{Peer, TlsDoor, UnixDoor};

use idempotency::Answers;
use metrics::Metrics;
use problem::{Code, Problem};
use rate::Limiter;

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
    answers: Answers,
    plane: Plane,
    account: AccountId,
    consoles: Arc<dyn Consoles>,
    ec2_endpoint: Option<String>,
    ending: watch::Sender<bool>,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Where the consoles of machines can be read.
#[async_trait]
pub trait Consoles: Send + Sync {
    /// The end of what a machine's serial console printed.
    ///
    /// # Errors
    /// What cannot be read, in words.
    async fn console(&self, instance: &InstanceId) -> Result<Vec<u8>, String>;
}

/// What an interface is made of.
pub struct Parts {
    /// What it does things with.
    pub plane: Plane,
    /// User id of the state directory's owner.
    pub owner: u32,
    /// What counts are in, its own and others'.
    pub registry: Registry,
    /// Where consoles are.
    pub consoles: Arc<dyn Consoles>,
    /// URL of the EC2 door, where there is one.
    pub ec2_endpoint: Option<String>,
    /// What bounds requests.
    pub limits: Limits,
}

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The registry has its counts already.
    #[error("counting requests: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The store has no installation.
    #[error("reading the installation: {0}")]
    Site(#[from] control::Refusal),
}

impl App {
    /// An interface.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(parts: Parts) -> Result<Self, StartError> {
        let Parts {
            plane,
            owner,
            registry,
            consoles,
            ec2_endpoint,
            limits,
        } = parts;
        Ok(Self(Arc::new(Shared {
            account: plane.site()?.account,
            plane,
            owner,
            limiter: Limiter::new(limits.rate),
            guesses: Limiter::new(limits.guesses),
            metrics: Metrics::register(&registry)?,
            registry,
            answers: Answers::default(),
            consoles,
            ec2_endpoint,
            ending: watch::Sender::new(false),
            limits,
        })))
    }

    /// Ends all watches, so that their connections can end.
    pub fn end_watches(&self) {
        self.ending.send_replace(true);
    }

    /// A caller, as `control` knows it.
    fn act_as(&self, caller: &caller::Caller) -> control::Caller {
        control::Caller {
            account: self.account.clone(),
            user: caller.identity.to_string(),
            admin: caller.role == caller::Role::Admin,
        }
    }

    /// The plane, that changes a record only at the revision of `If-Match`.
    fn expecting<T: Record>(&self, id: &str, expected: extract::IfMatch) -> Plane {
        match expected.0 {
            Some(revision) => self.plane.expecting::<T>(id, revision),
            None => self.plane.clone(),
        }
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
            idempotency::once,
        ))
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
pub fn document() -> &'static OpenApi {
    static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(|| {
        let mut document = resources::all().to_openapi();
        document::complete(&mut document);
        document
    });
    &DOCUMENT
}
