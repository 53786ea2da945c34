//! Who asks.

/// An access key as its owner has it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The secret that signs.
    pub secret: String,
    /// The token that requests with a temporary key must carry.
    pub session_token: Option<String>,
    /// Whose it is.
    pub principal: Principal,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("AccessKey")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

/// The account and user that a request is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Twelve digits.
    pub account: String,
    /// Name of the user within the account.
    pub user: String,
    /// Stable id of the user.
    pub user_id: String,
}

impl Principal {
    /// Its Amazon resource name.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:user/{}", self.account, self.user)
    }
}

/// Finds access keys.
pub trait AccessKeys: Send + Sync + 'static {
    /// The key with that id, if there is one that may be used.
    fn find(&self, access_key_id: &str) -> Option<AccessKey>;
}
