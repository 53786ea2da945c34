//! Keys with which programs sign their requests.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{Meta, Timestamp};

/// An access key. Signatures are made of the secret itself, so it is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// Its public part, as `AKIA…`; the record's id.
    pub id: String,
    /// Its account, and when it was made.
    pub meta: Meta,
    /// Its secret part.
    pub secret: String,
    /// Who has it, as `root` or `ci`.
    pub user: String,
    /// Requests signed with it are served.
    pub active: bool,
    /// When it goes.
    #[serde(default)]
    pub expires: Option<Timestamp>,
}

impl Record for AccessKey {
    const KIND: &'static str = "access-key";
    const VERSION: u32 = 1;
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .field("user", &self.user)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}
