//! Who asks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::{Code, Problem};

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look.
    Reader,
    /// Everything.
    Admin,
}

/// How a caller was recognized.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A process of this host with this user id, by its socket's credentials.
    User(u32),
    /// A bearer of the token of this id.
    Token(String),
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(id) => write!(f, "user:{id}"),
            Self::Token(id) => write!(f, "token:{id}"),
        }
    }
}

/// Who asks, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// What they may do.
    pub role: Role,
}

impl Caller {
    /// Refuses one that may only look.
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn may(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        Err(
            Problem::new(Code::Forbidden, format!("{} may only read", self.identity))
                .next("use a token with the role admin, or the Unix socket"),
        )
    }
}
