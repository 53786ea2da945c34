//! What a state directory knows of itself, and what keeps names unique.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use store::Record;

use crate::{AccountId, Timestamp};

/// An installation of Holm; the only record of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Name of the region that it is, for tools that want one.
    pub region: String,
    /// Names of its zones.
    pub zones: Vec<String>,
    /// Account of who owns it.
    pub account: AccountId,
    /// Addresses at which the host reaches instances.
    pub public_pool: Ipv4Net,
    /// When it came into being.
    pub created: Timestamp,
}

impl Record for Site {
    const KIND: &'static str = "site";
    const VERSION: u32 = 1;
}

impl Site {
    /// The id of the only record.
    pub const ID: &'static str = "here";

    /// A new one, as a new state directory has it.
    #[must_use]
    pub fn new() -> Self {
        let pool = Ipv4Net::new(Ipv4Addr::new(127, 86, 0, 0), 16);
        Self {
            region: "us-east-1".into(),
            zones: vec!["us-east-1a".into()],
            account: AccountId::random(),
            public_pool: pool.unwrap_or_default(),
            created: Timestamp::now(),
        }
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// Who owns resources; the record's id is its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its number.
    pub id: AccountId,
    /// What it is called.
    pub name: String,
    /// When it came into being.
    pub created: Timestamp,
}

impl Record for Account {
    const KIND: &'static str = "account";
    const VERSION: u32 = 1;
}

/// That a name or an address is taken. Its id says which, as
/// `key-pair/123456789012/mine`; whoever writes it first has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Id of who has it.
    pub holder: String,
}

impl Record for Claim {
    const KIND: &'static str = "claim";
    const VERSION: u32 = 1;
}

/// What a request with a client token did; its id is account, action and
/// token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Digest of the request's parameters: the same token with others is an
    /// error.
    pub request: String,
    /// Ids of what it made.
    pub made: Vec<String>,
    /// When.
    pub at: Timestamp,
}

impl Record for Done {
    const KIND: &'static str = "done";
    const VERSION: u32 = 1;
}
