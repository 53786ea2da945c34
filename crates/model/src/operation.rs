//! What is being done, and what happened.

use serde::{Deserialize, Serialize};
use store::Record;

use crate::{AccountId, EventId, OperationId, Timestamp};

/// A work that takes long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its own id.
    pub id: OperationId,
    /// Whose it is.
    pub account: AccountId,
    /// As `image-import`.
    pub kind: String,
    /// Id of what it is done to.
    pub resource: String,
    /// When it was asked for.
    pub began: Timestamp,
    /// When it was over.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// What it is doing, for people.
    #[serde(default)]
    pub stage: String,
    /// In percent, where that is known.
    #[serde(default)]
    pub progress: Option<u8>,
    /// How it stands.
    pub state: OperationState,
    /// Why it failed.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Record for Operation {
    const KIND: &'static str = "operation";
    const VERSION: u32 = 1;
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It is done.
    Succeeded,
    /// It could not be done.
    Failed,
}

/// Something that happened to a resource. The record's id begins with the
/// moment, so that events are kept in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its own id.
    pub id: EventId,
    /// Whose it is.
    pub account: AccountId,
    /// When.
    pub at: Timestamp,
    /// Id of what it happened to.
    pub resource: String,
    /// As `instance-running`.
    pub kind: String,
    /// For people.
    pub message: String,
    /// Who caused it; `None`: Holm itself.
    #[serde(default)]
    pub actor: Option<String>,
}

impl Event {
    /// The record's id.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{:013}-{}", self.at.0, self.id)
    }
}

impl Record for Event {
    const KIND: &'static str = "event";
    const VERSION: u32 = 1;
}
