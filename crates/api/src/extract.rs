//! What a request says, read with errors as problems.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use model::Timestamp;
use serde::de::DeserializeOwned;

use crate::App;
use crate::caller::{Caller, Role};
use crate::problem::{Code, Problem};

/// The header that makes a request one with an earlier one of the same key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_MAX: usize = 64;

/// A body of JSON.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let request = object(request, state).await?;
        let read = axum::Json::<T>::from_request(request, state).await;
        read.map(|axum::Json(value)| Self(value)).map_err(|e| {
            let code = match &e {
                JsonRejection::MissingJsonContentType(_) => Code::UnsupportedMediaType,
                JsonRejection::BytesRejection(_) if e.status() == 413 => Code::TooLarge,
                JsonRejection::JsonDataError(_) => Code::InvalidValue,
                _ => Code::BadRequest,
            };
            let problem = Problem::new(code, e.body_text());
            match code {
                Code::UnsupportedMediaType => {
                    problem.next("send JSON with the header Content-Type: application/json")
                }
                Code::TooLarge => problem,
                _ => problem.next("GET /v1/openapi.json says what the body looks like"),
            }
        })
    }
}

/// A request whose body is no array: serde would take one for an object's
/// fields in their order, which no document says.
async fn object<S: Send + Sync>(request: Request, state: &S) -> Result<Request, Problem> {
    let (parts, body) = request.into_parts();
    let head = Request::from_parts(parts.clone(), body);
    let bytes = Bytes::from_request(head, state).await.map_err(|e| {
        let code = match e.status() == StatusCode::PAYLOAD_TOO_LARGE {
            true => Code::TooLarge,
            false => Code::BadRequest,
        };
        Problem::new(code, e.body_text())
    })?;
    match bytes.trim_ascii_start().first() {
        Some(b'[') => Err(
            Problem::new(Code::InvalidValue, "the body is an array, not an object")
                .next("GET /v1/openapi.json says what the body looks like"),
        ),
        _ => Ok(Request::from_parts(parts, axum::body::Body::from(bytes))),
    }
}

/// The variables of a path.
pub struct InPath<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        read.map(|Path(value)| Self(value))
            .map_err(|e: PathRejection| Problem::new(Code::BadRequest, e.body_text()))
    }
}

/// The query.
pub struct InQuery<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for InQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Query::<T>::from_request_parts(parts, state).await;
        read.map(|Query(value)| Self(value))
            .map_err(|e: QueryRejection| {
                Problem::new(Code::BadRequest, e.body_text())
                    .next("GET /v1/openapi.json names the parameters of each path")
            })
    }
}

/// Who asks.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::new(Code::Unauthenticated, "this path needs a caller"))
    }
}

/// Who looks, as `control` knows them.
pub struct Reader(pub control::Caller);

impl FromRequestParts<App> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        Ok(Self(app.act_as(&caller)))
    }
}

/// Who may change things, as `control` knows them.
pub struct Admin(pub control::Caller);

impl FromRequestParts<App> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.may(Role::Admin)?;
        Ok(Self(app.act_as(&caller)))
    }
}

/// The revision of `If-Match`; `None`: any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfMatch(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(text) = header(&parts.headers, &header::IF_MATCH)? else {
            return Ok(Self(None));
        };
        if text == "*" {
            return Ok(Self(None));
        }
        revision(text).map(|r| Self(Some(r))).ok_or_else(|| {
            Problem::new(
                Code::BadRequest,
                format!("If-Match: {text:?} is no ETag of this interface"),
            )
            .next("send the ETag of an earlier answer, with its quotes, or leave If-Match away")
        })
    }
}

/// The ETag of a revision.
#[must_use]
pub fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// The revision of an ETag.
fn revision(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('"')?.strip_suffix('"')?;
    digits.parse().ok()
}

/// Whether `If-None-Match` names this revision: the caller has it already.
#[must_use]
pub fn has_already(headers: &HeaderMap, revision_now: u64) -> bool {
    let named = headers.get_all(header::IF_NONE_MATCH).iter();
    named
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| revision(tag.strip_prefix("W/").unwrap_or(tag)) == Some(revision_now))
}

/// The `Idempotency-Key`, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(Option<String>);

impl IdempotencyKey {
    /// As `control` knows it, for this body.
    ///
    /// # Errors
    /// What `control` does not take.
    pub fn token(&self, body: &impl serde::Serialize) -> Result<Option<control::Token>, Problem> {
        let Some(key) = &self.0 else { return Ok(None) };
        let body = serde_json::to_string(body).unwrap_or_default();
        Ok(Some(control::Token::new(key, [("body", body.as_str())])?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        key(&parts.headers).map(Self)
    }
}

/// The `Idempotency-Key` of a request.
///
/// # Errors
/// [`Code::BadRequest`].
pub fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(text) = header(headers, &IDEMPOTENCY_KEY)? else {
        return Ok(None);
    };
    let fits = (1..=IDEMPOTENCY_KEY_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic());
    match fits {
        true => Ok(Some(text.to_owned())),
        false => Err(Problem::new(
            Code::BadRequest,
            format!(
                "the Idempotency-Key is not 1 to {IDEMPOTENCY_KEY_MAX} printable ASCII characters"
            ),
        )),
    }
}

/// Longest time to live, in seconds: a hundred years.
pub const TTL_MAX: u64 = 100 * 365 * 86_400;

/// When something ends that lives so many seconds from now.
///
/// # Errors
/// [`Code::InvalidValue`]: it would not live at all, or longer than
/// [`TTL_MAX`].
pub fn end_of(ttl_seconds: u64) -> Result<Timestamp, Problem> {
    match (1..=TTL_MAX).contains(&ttl_seconds) {
        true => Ok(Timestamp::now().after(Duration::from_secs(ttl_seconds))),
        false => Err(Problem::new(
            Code::InvalidValue,
            format!("ttl_seconds: {ttl_seconds} is not 1 to {TTL_MAX}"),
        )),
    }
}

/// An IPv4 network of a field.
///
/// # Errors
/// [`Code::InvalidValue`].
pub fn network(field: &str, text: &str) -> Result<ipnet::Ipv4Net, Problem> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        Problem::new(
            Code::InvalidValue,
            format!("{field}: {shown:?} is no IPv4 network"),
        )
        .next("write it as 10.0.0.0/16")
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::new(
            Code::BadRequest,
            format!("{name} is given more than once"),
        ));
    }
    let text = first.map(|value| value.to_str()).transpose();
    text.map_err(|_| Problem::new(Code::BadRequest, format!("{name} is not ASCII text")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_revisions() {
        assert_eq!(revision(&etag(7)), Some(7));
        for bad in ["", "7", "\"\"", "\"x\"", "\"-1\"", "\"7", "\"\"7\"\""] {
            assert_eq!(revision(bad), None, "{bad}");
        }
        let mut headers = HeaderMap::new();
        assert!(!has_already(&headers, 7));
        headers.insert(header::IF_NONE_MATCH, "\"6\", W/\"7\"".parse().unwrap());
        assert!(has_already(&headers, 7) && !has_already(&headers, 8));
    }
}
