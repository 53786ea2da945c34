//! `Idempotency-Key`: a request that comes again with the key of an earlier
//! one gets that one's answer, and is not done again.
//!
//! Answers are in the store, and outlive the daemon. A request is noted before
//! it is done: one that the daemon's end interrupted is not done twice, unless
//! `control` itself knows how far it came.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use model::{Answer, Given, Timestamp};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::App;
use crate::caller::Caller;
use crate::extract;
use crate::problem::{Code, Problem};

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(3600);
/// How often old ones are looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// Longest answer that is kept, in bytes.
const ANSWER_MAX: usize = 256 << 10;
/// Headers that are kept.
const HEADERS: [HeaderName; 3] = [header::CONTENT_TYPE, header::ETAG, header::LOCATION];
/// Paths whose requests `control` knows again by themselves.
const KNOWN_AGAIN: [&str; 3] = ["/v1/instances", "/v1/volumes", "/v1/route-tables"];

/// Marks an answer that holds a secret, and is given once.
#[derive(Clone, Copy)]
pub struct Secret;

/// Requests with keys.
#[derive(Default)]
pub struct Answers {
    /// Ids of those that are being done.
    running: Mutex<HashSet<String>>,
    /// When old ones were looked for last.
    swept: Mutex<Option<Instant>>,
}

/// A request that is being done; no longer when this goes.
struct Running<'a> {
    answers: &'a Answers,
    id: String,
}

impl<'a> Running<'a> {
    fn begin(answers: &'a Answers, id: String) -> Option<Self> {
        let new = answers.running.lock().insert(id.clone());
        new.then_some(Self { answers, id })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.answers.running.lock().remove(&self.id);
    }
}

/// Answers what was answered before.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    match extract::key(request.headers()) {
        Ok(Some(key)) => match keyed(&app, &key, request, next).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        },
        Ok(None) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn keyed(app: &App, key: &str, request: Request, next: Next) -> Result<Response, Problem> {
    sweep(app);
    let caller = request.extensions().get::<Caller>();
    let caller = caller.map_or_else(String::new, |caller| caller.identity.to_string());
    let id = digest([caller.as_bytes(), key.as_bytes()]);
    let path = request.extensions().get::<MatchedPath>();
    let again = path.is_some_and(|path| KNOWN_AGAIN.contains(&path.as_str()));
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, app.limits.body).await else {
        let detail = format!("the body is longer than {} bytes", app.limits.body);
        return Err(Problem::new(Code::TooLarge, detail));
    };
    let digest = digest([parts.uri.to_string().as_bytes(), &body]);
    let Some(running) = Running::begin(&app.answers, id) else {
        return Err(
            Problem::new(Code::Conflict, "a request with the same key is being done")
                .next("ask again in a moment, with the same key")
                .retry_after(1),
        );
    };
    let mut answer = Answer {
        request: digest,
        at: Timestamp::now(),
        given: None,
    };
    if let Some(earlier) = app.plane.answer(&running.id).await? {
        if earlier.request != answer.request {
            let detail = format!("the Idempotency-Key {key:?} came with another request");
            return Err(Problem::new(Code::IdempotencyMismatch, detail)
                .next("use a new key for a new request"));
        }
        match earlier.given {
            Some(given) => return replay(given),
            None if again => {}
            None => return Err(interrupted()),
        }
    }
    app.plane.note_answer(&running.id, &answer).await?;
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    // What may succeed the next time is tried the next time.
    if response.extensions().get::<Problem>().is_some() {
        app.plane.forget_answer(&running.id).await?;
        return Ok(response);
    }
    let secret = response.extensions().get::<Secret>().is_some();
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        let detail = "the answer could not be read to its end";
        return Err(Problem::new(Code::Internal, detail));
    };
    let kept = String::from_utf8(body.to_vec()).ok();
    let headers = HEADERS.into_iter().filter_map(|name| {
        let value = parts.headers.get(&name)?.to_str().ok()?.to_owned();
        Some((name.to_string(), value))
    });
    answer.given = Some(Given {
        status: parts.status.as_u16(),
        headers: headers.collect(),
        body: kept.filter(|text| !secret && text.len() <= ANSWER_MAX),
    });
    app.plane.note_answer(&running.id, &answer).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// An earlier answer.
fn replay(given: Given) -> Result<Response, Problem> {
    let Some(body) = given.body else {
        let place = given.headers.iter().find(|(name, _)| name == "location");
        let place = place.map_or("what it made", |(_, place)| place);
        let detail = "this was done, and its answer, which was given once, is not kept";
        return Err(Problem::new(Code::AlreadyExists, detail).next(format!(
            "if the answer was lost, remove {place} and ask with a new key"
        )));
    };
    let mut response = Bytes::from(body).into_response();
    *response.status_mut() = StatusCode::from_u16(given.status).unwrap_or_default();
    for (name, value) in given.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value)) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

fn interrupted() -> Problem {
    let detail = "the daemon ended while it did this request; it may or may not be done";
    Problem::new(Code::Conflict, detail).next("look at what there is, and ask with a new key")
}

/// Forgets old answers, now and then.
fn sweep(app: &App) {
    let now = Instant::now();
    let mut swept = app.answers.swept.lock();
    if swept.is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
        return;
    }
    *swept = Some(now);
    let plane = app.plane.clone();
    tokio::spawn(async move {
        let kept = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
        let before = Timestamp(Timestamp::now().0.saturating_sub(kept));
        if let Err(error) = plane.forget_answers(before).await {
            tracing::warn!(%error, "forgetting old answers");
        }
    });
}

fn digest<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        // Lengths keep `a`, `bc` and `ab`, `c` apart.
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let bytes = digest.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
