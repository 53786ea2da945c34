//! What programs show at the REST interface.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{Meta, Timestamp};

/// A bearer token. It is given out when it is made; what is kept cannot be
/// used as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// Its part that is no secret; the record's id.
    pub id: String,
    /// Its account, and when it was made.
    pub meta: Meta,
    /// What its owner calls it.
    #[serde(default)]
    pub name: String,
    /// Digest of all of it.
    pub digest: String,
    /// Its bearer may change things, not only look.
    pub admin: bool,
    /// When it goes.
    #[serde(default)]
    pub expires: Option<Timestamp>,
}

impl Record for ApiToken {
    const KIND: &'static str = "api-token";
    const VERSION: u32 = 1;
}
