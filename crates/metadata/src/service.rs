//! One request and its answer, with EC2's statuses.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode, Uri};

use crate::facts::{Facts, Tokens};
use crate::path;
use crate::token::TOKEN_SECONDS;
use crate::tree::{self, Content};

/// Header of a request for a token and of answers: seconds it holds.
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Header that carries a token.
const TOKEN: &str = "x-aws-ec2-metadata-token";
/// Who came by way of a proxy is not the guest itself.
const FORWARDED: &str = "x-forwarded-for";
/// Longest header value that is looked at, in bytes.
const LONGEST: usize = 256;

/// Answers a request.
pub fn answer(
    facts: Option<&Arc<Facts>>,
    now: SystemTime,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Response<Full<Bytes>> {
    let result = match facts {
        None => Err(StatusCode::SERVICE_UNAVAILABLE.into()),
        Some(facts) => route(facts, now, method, uri, headers),
    };
    let mut response = match result {
        Ok(response) => response,
        Err(refusal) => refusal.response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static("EC2ws"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    if *method == Method::HEAD {
        // Its length stays: it is that of the answer to GET.
        let length = http_body_length(response.body());
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
        *response.body_mut() = Full::default();
    }
    response
}

fn http_body_length(body: &Full<Bytes>) -> HeaderValue {
    let length = hyper::body::Body::size_hint(body).exact().unwrap_or(0);
    HeaderValue::from(length)
}

/// A request that is not granted.
struct Refusal {
    status: StatusCode,
    /// Methods that would be.
    allow: Option<&'static str>,
}

impl From<StatusCode> for Refusal {
    fn from(status: StatusCode) -> Self {
        Self {
            status,
            allow: None,
        }
    }
}

impl Refusal {
    fn method(allow: &'static str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            allow: Some(allow),
        }
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let title = self.status.to_string().replacen(' ', " - ", 1);
        let page = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
             <html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
        );
        let mut response = Response::new(Full::from(page));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

fn route(
    facts: &Facts,
    now: SystemTime,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Response<Full<Bytes>>, Refusal> {
    if !facts.options.enabled {
        return Err(StatusCode::FORBIDDEN.into());
    }
    let words = path::words(uri.path()).ok_or(StatusCode::NOT_FOUND)?;
    if words == ["latest", "api", "token"] {
        return match *method {
            Method::PUT => new_token(facts, now, headers),
            _ => Err(Refusal::method("OPTIONS, PUT")),
        };
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Refusal::method("GET, HEAD"));
    }
    let left = session(facts, now, headers)?;
    let content = tree::find(facts, &words).ok_or(StatusCode::NOT_FOUND)?;
    let (body, kind) = match content {
        Content::Text(text) => (Bytes::from(text), "text/plain"),
        Content::Binary(bytes) => (bytes, "application/octet-stream"),
    };
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(left) = left {
        headers.insert(TTL, HeaderValue::from(left));
    }
    Ok(response)
}

/// `PUT /latest/api/token`.
fn new_token(
    facts: &Facts,
    now: SystemTime,
    headers: &HeaderMap,
) -> Result<Response<Full<Bytes>>, Refusal> {
    if headers.contains_key(FORWARDED) {
        return Err(StatusCode::FORBIDDEN.into());
    }
    let seconds = single(headers, TTL)?.ok_or(StatusCode::BAD_REQUEST)?;
    let seconds = seconds.to_str().ok().and_then(|text| text.parse().ok());
    let seconds: u32 = seconds
        .filter(|seconds| TOKEN_SECONDS.contains(seconds))
        .ok_or(StatusCode::BAD_REQUEST)?;
    let token = facts.token_key.issue(&facts.instance_id, now, seconds);
    let token = token.map_err(|error| {
        tracing::error!(%error, "the host has no random numbers for a metadata token");
        StatusCode::SERVICE_UNAVAILABLE
    })?;
    let mut response = Response::new(Full::from(token));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(TTL, HeaderValue::from(seconds));
    Ok(response)
}

/// Seconds that the request's token still holds; `None` if it has none and
/// needs none.
fn session(facts: &Facts, now: SystemTime, headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let unauthorized = || Refusal::from(StatusCode::UNAUTHORIZED);
    match single(headers, TOKEN)? {
        Some(token) => {
            let left = facts
                .token_key
                .check(&facts.instance_id, now, token.as_bytes());
            left.map(|left| Some(left.as_secs()))
                .ok_or_else(unauthorized)
        }
        None if facts.options.tokens == Tokens::Required => Err(unauthorized()),
        None => Ok(None),
    }
}

/// A header that may be there once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() || value.is_some_and(|value| value.len() > LONGEST) {
        return Err(StatusCode::BAD_REQUEST.into());
    }
    Ok(value)
}
