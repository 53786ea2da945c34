//! Who asks.

use model::AccountId;

/// Who asks for something, as a door found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose resources it acts on.
    pub account: AccountId,
    /// Its name there, as `root`.
    pub user: String,
    /// It may change quotas, accounts and what is not its own.
    pub admin: bool,
}

impl Caller {
    /// The owner of an account.
    #[must_use]
    pub fn owner(account: AccountId) -> Self {
        Self {
            account,
            user: "root".into(),
            admin: true,
        }
    }
}
