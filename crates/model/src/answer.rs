//! What was answered to requests that may come again.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::Timestamp;

/// A request with an `Idempotency-Key`, and what was answered to it. The
/// record's id is a digest of who asked and the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Digest of the request: the same key with another is an error.
    pub request: String,
    /// When it came.
    pub at: Timestamp,
    /// `None`: it was begun, and not answered yet.
    pub given: Option<Given>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// HTTP status.
    pub status: u16,
    /// Headers, by name.
    pub headers: Vec<(String, String)>,
    /// `None`: it held a secret, or was long, and was not kept.
    pub body: Option<String>,
}

impl Record for Answer {
    const KIND: &'static str = "answer";
    const VERSION: u32 = 1;
}
