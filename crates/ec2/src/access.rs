//! Access keys, as the verification of signatures needs them.

use control::{Caller, Plane};

/// An access key as its owner has it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The secret that signs.
    pub secret: String,
    /// The token that requests with a temporary key must carry.
    pub session_token: Option<String>,
    /// Whose it is.
    pub caller: Caller,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("AccessKey")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

/// Finds access keys.
pub trait AccessKeys: Send + Sync {
    /// The key with that id, if there is one that may be used.
    fn find(&self, access_key_id: &str) -> Option<AccessKey>;
}

impl AccessKeys for Plane {
    fn find(&self, access_key_id: &str) -> Option<AccessKey> {
        let (caller, secret) = self.signer(access_key_id)?;
        Some(AccessKey {
            secret,
            session_token: None,
            caller,
        })
    }
}
