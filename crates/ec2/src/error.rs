//! Errors as EC2 says them.

use std::borrow::Cow;

use axum::http::StatusCode;

/// A refusal: a code that programs know, a message for people, and the HTTP
/// status.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{code}: {message}")]
pub struct Error {
    /// Such as `InvalidInstanceID.NotFound`.
    pub code: Cow<'static, str>,
    /// What is wrong with what.
    pub message: String,
    /// HTTP status.
    pub status: StatusCode,
}

impl Error {
    /// A client's error (status 400).
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            status: StatusCode::BAD_REQUEST,
        }
    }

    /// With another status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// `MissingParameter`.
    #[must_use]
    pub fn missing(parameter: &str) -> Self {
        Self::new(
            "MissingParameter",
            format!("The request must contain the parameter {parameter}"),
        )
    }

    /// `InvalidParameterValue`: the value, its parameter, and what is asked.
    pub fn invalid(parameter: &str, value: impl std::fmt::Display, asked: &str) -> Self {
        Self::new(
            "InvalidParameterValue",
            format!("Value ({value}) for parameter {parameter} is invalid. {asked}"),
        )
    }

    /// `UnknownParameter`: no action of EC2 with that name has it.
    #[must_use]
    pub fn unknown_parameter(parameter: &str) -> Self {
        Self::new(
            "UnknownParameter",
            format!("The parameter {parameter} is not recognized"),
        )
    }

    /// `InvalidParameterCombination`.
    pub fn combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    /// `UnsupportedOperation`: EC2 has it, Holm does not.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new("UnsupportedOperation", message)
    }

    /// `InvalidAction`: nobody has it.
    #[must_use]
    pub fn invalid_action(action: &str) -> Self {
        Self::new(
            "InvalidAction",
            format!("The action {action} is not valid for this web service."),
        )
    }

    /// `DryRunOperation`: the request was fine and asked for no more.
    #[must_use]
    pub fn dry_run() -> Self {
        Self::new(
            "DryRunOperation",
            "Request would have succeeded, but DryRun flag is set.",
        )
        .with_status(StatusCode::PRECONDITION_FAILED)
    }

    /// `MalformedQueryString`.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new("MalformedQueryString", message)
    }

    /// `InternalError`: what went wrong is in the daemon's log.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new("InternalError", message).with_status(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
