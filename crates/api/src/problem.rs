//! Errors as RFC 9457 has them: `application/problem+json`, with a code that
//! does not change and a text that says what to do next.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What went wrong, by a name that programs may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A path, query, header or body that is not as the document says.
    BadRequest,
    /// A value that is well formed and cannot be.
    InvalidValue,
    /// No token, or one that is not known.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden,
    /// No such path.
    NoSuchPath,
    /// The path exists, and not with this method.
    MethodNotAllowed,
    /// No such thing.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// It is in a state in which this cannot be done.
    WrongState,
    /// Something else uses it.
    InUse,
    /// Another writer was faster.
    Conflict,
    /// The key of an earlier request came with different contents.
    IdempotencyMismatch,
    /// It is no longer at the revision of `If-Match`.
    RevisionMismatch,
    /// The body is too long.
    TooLarge,
    /// The body is of a media type that is not understood.
    UnsupportedMediaType,
    /// A quota would be exceeded.
    QuotaExceeded,
    /// The caller asks too often.
    TooManyRequests,
    /// The host has no room for it.
    NoCapacity,
    /// It is not built in.
    Unsupported,
    /// The daemon failed.
    Internal,
    /// The daemon cannot do it now.
    Unavailable,
    /// It took too long.
    TimedOut,
}

impl Code {
    /// The status that goes with it.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::InvalidValue | Self::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::QuotaExceeded => StatusCode::FORBIDDEN,
            Self::NoSuchPath | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::AlreadyExists | Self::WrongState | Self::InUse | Self::Conflict => {
                StatusCode::CONFLICT
            }
            Self::RevisionMismatch => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoCapacity | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "The request is not as it should be",
            Self::InvalidValue => "A value cannot be",
            Self::Unauthenticated => "No valid token",
            Self::Forbidden => "Not allowed",
            Self::NoSuchPath => "No such path",
            Self::MethodNotAllowed => "Not with this method",
            Self::NotFound => "Not found",
            Self::AlreadyExists => "It exists already",
            Self::WrongState => "Not in this state",
            Self::InUse => "It is in use",
            Self::Conflict => "It was changed meanwhile",
            Self::IdempotencyMismatch => "The idempotency key was used for something else",
            Self::RevisionMismatch => "It is at another revision",
            Self::TooLarge => "The body is too long",
            Self::UnsupportedMediaType => "The body's media type is not understood",
            Self::QuotaExceeded => "The quota is used up",
            Self::TooManyRequests => "Too many requests",
            Self::NoCapacity => "No room",
            Self::Unsupported => "Not supported",
            Self::Internal => "The daemon failed",
            Self::Unavailable => "Not available now",
            Self::TimedOut => "It took too long",
        }
    }
}

/// An error (RFC 9457).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:holm:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What programs may rely on.
    pub code: Code,
    /// What happened, to what.
    pub detail: String,
    /// What can be done next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<Box<str>>,
    /// The request, as the daemon's log names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub request_id: Option<Box<str>>,
    /// Seconds to wait before trying again; also in `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Problem {
    /// A problem that says what happened.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let name = serde_json::to_value(code).unwrap_or_default();
        Self {
            kind: format!("urn:holm:problem:{}", name.as_str().unwrap_or("internal")),
            title: code.title().into(),
            status: code.status().as_u16(),
            code,
            detail: detail.into(),
            next: None,
            request_id: None,
            retry_after: None,
        }
    }

    /// Adds what can be done next.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into().into());
        self
    }

    /// Adds when to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        match &self.next {
            Some(step) => write!(f, "; {step}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let status = self.code.status();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"holm\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        // The observing layer adds the request's id to the body.
        response.extensions_mut().insert(self);
        response
    }
}
