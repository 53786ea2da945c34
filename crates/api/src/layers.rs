//! What happens to every request before and after its handler.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::App;
use crate::caller::{Caller, Identity, Role};
use crate::metrics::Held;
use crate::problem::{Code, Problem};
use crate::serve::Peer;
use crate::tokens;

/// The header that names a request in answers and in the log.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a client, in bytes.
const REQUEST_ID_MAX: usize = 64;
/// Paths that anybody may ask.
const OPEN: [&str; 2] = ["/healthz", "/v1/openapi.json"];

/// Names the request, counts and logs it.
pub async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let _held = Held::new(&app.metrics.in_flight);
    let id = request_id(&request);
    let method = known(request.method());
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("none", MatchedPath::as_str).to_owned();
    let mut response = next.run(request).await;
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        if problem.status >= 500 {
            tracing::warn!(request = %id, method, path, %problem, "failed");
        }
        problem.request_id = Some(id.as_str().into());
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(body);
    }
    let took = start.elapsed();
    let status = response.status().as_u16();
    app.metrics.answered(method, &path, status, took);
    tracing::debug!(request = %id, method, path, status, ?took, "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Runs the handler on a task of its own: it comes to its end when its client
/// goes away, a panic is a problem, and a client does not wait for ever.
pub async fn contain(State(app): State<App>, request: Request, next: Next) -> Response {
    let handler = tokio::spawn(next.run(request));
    match tokio::time::timeout(app.limits.patience, handler).await {
        Ok(Ok(response)) => response,
        Ok(Err(e)) => {
            tracing::error!("a handler did not come to its end: {e}");
            Problem::new(Code::Internal, "the daemon failed while it answered")
                .next("look for the request's id in the daemon's log")
                .into_response()
        }
        Err(_) => Problem::new(
            Code::TimedOut,
            format!(
                "the answer took longer than {} s",
                app.limits.patience.as_secs()
            ),
        )
        .next("it may still be done: look before you ask again, or use an Idempotency-Key")
        .into_response(),
    }
}

/// Lets in who may ask, as often as they may.
pub async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    if path.is_some_and(|path| OPEN.contains(&path.as_str())) {
        return next.run(request).await;
    }
    let caller = match recognize(&app, &request) {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    // The state directory's owner has other ways to be a nuisance.
    if let Identity::Token(id) = &caller.identity
        && let Err(wait) = app.limiter.take(id, Instant::now())
    {
        app.metrics.limited.inc();
        let seconds = seconds(wait);
        return Problem::new(Code::TooManyRequests, "this token asks too often")
            .next(format!("wait {seconds} s, and watch instead of polling"))
            .retry_after(seconds)
            .into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn recognize(app: &App, request: &Request) -> Result<Caller, Problem> {
    match request.extensions().get::<Peer>() {
        Some(Peer::Process { user }) if *user == 0 || *user == app.owner => Ok(Caller {
            identity: Identity::User(*user),
            role: Role::Admin,
        }),
        Some(Peer::Process { user }) => Err(Problem::new(
            Code::Forbidden,
            format!("user {user} is neither the owner of the state directory nor root"),
        )
        .next("use another state directory (--state), or a token over TCP")),
        Some(Peer::Network(address)) => {
            let missing = || {
                Problem::new(Code::Unauthenticated, "a token is needed here").next(
                    "make one with `holm token create`, and send it as Authorization: Bearer TOKEN",
                )
            };
            let value = request.headers().get(header::AUTHORIZATION);
            let token = value
                .and_then(|v| v.to_str().ok())
                .and_then(|v| {
                    let (scheme, token) = v.split_once(' ')?;
                    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
                })
                .ok_or_else(missing)?;
            // Guesses cost their address dearly.
            let address = address.ip().to_string();
            bearer(app, token).ok_or_else(|| {
                if let Err(wait) = app.guesses.take(&address, Instant::now()) {
                    let seconds = seconds(wait);
                    return Problem::new(Code::TooManyRequests, "too many wrong tokens")
                        .retry_after(seconds);
                }
                Problem::new(
                    Code::Unauthenticated,
                    "this token is not known, or has ended",
                )
                .next("make one with `holm token create`")
            })
        }
        None => Err(Problem::new(
            Code::Unauthenticated,
            "it is not known who asks",
        )),
    }
}

/// A time to wait, in whole seconds.
fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_secs())
        .unwrap_or(u32::MAX)
        .saturating_add(1)
}

/// Who bears this token.
fn bearer(app: &App, text: &str) -> Option<Caller> {
    let id = tokens::id(text)?;
    let found = app.plane.api_token(id)?;
    tokens::fits(text, &found.record.digest).then(|| Caller {
        identity: Identity::Token(id.to_owned()),
        role: match found.record.admin {
            true => Role::Admin,
            false => Role::Reader,
        },
    })
}

fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID);
    let fits = |text: &&str| {
        (1..=REQUEST_ID_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    if let Some(id) = given.and_then(|v| v.to_str().ok()).filter(fits) {
        return id.to_owned();
    }
    let mut random = [0; 12];
    match getrandom::fill(&mut random) {
        Ok(()) => URL_SAFE_NO_PAD.encode(random),
        Err(_) => "none".into(),
    }
}

/// A method's name; others share one, as each name is a time series.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
