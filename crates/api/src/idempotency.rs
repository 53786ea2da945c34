//! `Idempotency-Key`: a request that comes again with the key of an earlier
//! one gets that one's answer, and is not done again.
//!
//! Answers are kept in memory; what `control` keeps of client tokens (of new
//! instances and volumes) outlives the daemon, too.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::App;
use crate::caller::Caller;
use crate::extract;
use crate::problem::{Code, Problem};

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(3600);
/// Most answers that are kept.
const ANSWERS_MAX: usize = 10_000;
/// Longest answer that is kept, in bytes.
const ANSWER_MAX: usize = 256 << 10;

/// Who asked, and the key.
type Name = (String, String);

/// What was answered to requests with keys.
#[derive(Default)]
pub struct Answers(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    answers: HashMap<Name, Entry>,
    order: VecDeque<(Instant, Name)>,
}

struct Entry {
    /// Digest of method, path and body.
    request: [u8; 32],
    /// `None`: it is being done.
    answer: Option<(StatusCode, HeaderMap, Bytes)>,
}

enum Found {
    New,
    Same(Option<(StatusCode, HeaderMap, Bytes)>),
    Other,
}

impl Answers {
    fn begin(&self, name: &Name, request: [u8; 32], now: Instant) -> Found {
        let mut kept = self.0.lock();
        while let Some((at, _)) = kept.order.front() {
            let old = now.saturating_duration_since(*at) > KEPT;
            if !old && kept.order.len() < ANSWERS_MAX {
                break;
            }
            if let Some((_, name)) = kept.order.pop_front() {
                kept.answers.remove(&name);
            }
        }
        if let Some(entry) = kept.answers.get(name) {
            return match entry.request == request {
                true => Found::Same(entry.answer.clone()),
                false => Found::Other,
            };
        }
        let answer = None;
        kept.answers.insert(name.clone(), Entry { request, answer });
        kept.order.push_back((now, name.clone()));
        Found::New
    }

    fn end(&self, name: &Name, answer: Option<(StatusCode, HeaderMap, Bytes)>) {
        let mut kept = self.0.lock();
        match answer {
            Some(answer) => {
                if let Some(entry) = kept.answers.get_mut(name) {
                    entry.answer = Some(answer);
                }
            }
            None => {
                kept.answers.remove(name);
                kept.order.retain(|(_, other)| other != name);
            }
        }
    }
}

/// Forgets a request that did not come to its end.
struct Unfinished<'a> {
    answers: &'a Answers,
    name: &'a Name,
    finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.answers.end(self.name, None);
        }
    }
}

/// Answers what was answered before.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let key = match extract::key(request.headers()) {
        Ok(Some(key)) => key,
        Ok(None) => return next.run(request).await,
        Err(problem) => return problem.into_response(),
    };
    let caller = request.extensions().get::<Caller>();
    let caller = caller.map_or_else(String::new, |caller| caller.identity.to_string());
    let name = (caller, key);
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, app.limits.body).await else {
        let detail = format!("the body is longer than {} bytes", app.limits.body);
        return Problem::new(Code::TooLarge, detail).into_response();
    };
    let mut digest = Sha256::new();
    digest.update(parts.uri.to_string());
    digest.update([0]);
    digest.update(&body);
    match app
        .answers
        .begin(&name, digest.finalize().into(), Instant::now())
    {
        Found::New => {}
        Found::Same(Some((status, headers, body))) => {
            return (status, headers, body).into_response();
        }
        Found::Same(None) => {
            return Problem::new(Code::Conflict, "the same request is being done")
                .next("ask again in a moment, with the same key")
                .retry_after(1)
                .into_response();
        }
        Found::Other => {
            let detail = format!("the Idempotency-Key {:?} came with another request", name.1);
            return Problem::new(Code::IdempotencyMismatch, detail)
                .next("use a new key for a new request")
                .into_response();
        }
    }
    let mut unfinished = Unfinished {
        answers: &app.answers,
        name: &name,
        finished: false,
    };
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    // What may succeed the next time is tried the next time.
    if response.extensions().get::<Problem>().is_some() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, ANSWER_MAX).await else {
        return Problem::new(Code::Internal, "the answer is too long to be kept").into_response();
    };
    unfinished.finished = true;
    let answer = (parts.status, parts.headers.clone(), body.clone());
    app.answers.end(&name, Some(answer));
    Response::from_parts(parts, Body::from(body))
}
