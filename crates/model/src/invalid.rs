//! What a noun cannot be.

/// A value that no resource can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not the id of such a resource.
    #[error("{text:?} is not an id: ids of this kind are {prefix} and 8 to 32 hexadecimal digits")]
    Id {
        /// What such ids begin with.
        prefix: &'static str,
        /// What was given, shortened.
        text: String,
    },
    /// Not an account.
    #[error("{0:?} is not an account: accounts have 12 decimal digits")]
    Account(String),
    /// A tag that cannot be.
    #[error("the tag {key:?} cannot be: {reason}")]
    Tag {
        /// Its key, shortened.
        key: String,
        /// Why.
        reason: &'static str,
    },
    /// More tags than a resource may have.
    #[error("a resource has at most 50 tags, not {0}")]
    Tags(usize),
    /// A name that cannot be.
    #[error("the {what} {text:?} cannot be: {reason}")]
    Name {
        /// Of what.
        what: &'static str,
        /// What was given, shortened.
        text: String,
        /// Why.
        reason: &'static str,
    },
    /// User data that is too long.
    #[error("user data has at most 16384 bytes, not {0}")]
    UserData(usize),
    /// A network that cannot be.
    #[error("{text} cannot be {what}: {reason}")]
    Network {
        /// `a VPC`, `a subnet`.
        what: &'static str,
        /// The CIDR.
        text: String,
        /// Why.
        reason: &'static str,
    },
    /// A rule that cannot be.
    #[error("the rule cannot be: {0}")]
    Rule(&'static str),
    /// A key that cannot be read.
    #[error("the public key cannot be used: {0}")]
    Key(&'static str),
}

impl Invalid {
    /// A short copy of what somebody gave, for a message.
    #[must_use]
    pub fn shorten(text: &str) -> String {
        text.chars().take(64).collect()
    }
}
