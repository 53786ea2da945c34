//! Why something is not done.

use model::{Invalid, Quota};
use store::{RecordError, StoreError};

/// Kinds of resources, for messages and for the codes of doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An instance.
    Instance,
    /// A size of instances.
    InstanceType,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A key pair.
    KeyPair,
    /// A VPC.
    Vpc,
    /// A subnet.
    Subnet,
    /// A security group.
    SecurityGroup,
    /// A rule of one.
    SecurityGroupRule,
    /// An elastic address.
    Address,
    /// An internet gateway.
    InternetGateway,
    /// A route table.
    RouteTable,
    /// A route.
    Route,
    /// The use of a route table by a subnet.
    Association,
    /// A network interface.
    Interface,
    /// An access key.
    AccessKey,
    /// A token of the REST interface.
    ApiToken,
    /// A zone.
    Zone,
    /// An operation.
    Operation,
    /// Something else that was looked for by its id.
    Resource,
}

impl Kind {
    /// As people say it.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::InstanceType => "instance type",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::KeyPair => "key pair",
            Self::Vpc => "VPC",
            Self::Subnet => "subnet",
            Self::SecurityGroup => "security group",
            Self::SecurityGroupRule => "security group rule",
            Self::Address => "elastic address",
            Self::InternetGateway => "internet gateway",
            Self::RouteTable => "route table",
            Self::Route => "route",
            Self::Association => "association",
            Self::Interface => "network interface",
            Self::AccessKey => "access key",
            Self::ApiToken => "token",
            Self::Zone => "availability zone",
            Self::Operation => "operation",
            Self::Resource => "resource",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.noun())
    }
}

/// Why something was not done. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is none, or it is another account's.
    #[error("there is no {kind} {id}")]
    NotFound {
        /// Of what.
        kind: Kind,
        /// What was looked for.
        id: String,
    },
    /// A field's value cannot be.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, in snake case.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A field is missing.
    #[error("{field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// Fields that cannot be together.
    #[error("{0}")]
    Combination(String),
    /// Its state does not allow it.
    #[error("the {kind} {id} is {state}; {wanted}")]
    State {
        /// Of what.
        kind: Kind,
        /// Which.
        id: String,
        /// Its state.
        state: String,
        /// What is needed, and what can be done.
        wanted: &'static str,
    },
    /// Others need it.
    #[error("the {kind} {id} is in use by {by}")]
    InUse {
        /// Of what.
        kind: Kind,
        /// Which.
        id: String,
        /// By what.
        by: String,
    },
    /// The name is taken, or the thing is there already.
    #[error("there is already a {kind} {name}")]
    Exists {
        /// Of what.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Its owner protected it.
    #[error(
        "the instance {id} is protected: {what} is not allowed; take the protection away first"
    )]
    Protected {
        /// Which.
        id: String,
        /// Against what.
        what: &'static str,
    },
    /// It is not this caller's to do.
    #[error("{0}")]
    NotAllowed(String),
    /// More than the account may have.
    #[error(
        "the account has {used} of at most {limit} {name} and asked for {wanted} more; `holm quota` shows and changes limits",
        name = quota.name()
    )]
    Quota {
        /// Of what.
        quota: Quota,
        /// How much it may have.
        limit: u64,
        /// How much it has.
        used: u64,
        /// How much more was asked for.
        wanted: u64,
    },
    /// A subnet, or the public pool, is full.
    #[error("{0} has no free address left")]
    NoAddress(String),
    /// Networks that overlap.
    #[error("{0} overlaps {1}")]
    Overlap(String, String),
    /// A client token came again with another request.
    #[error("the client token {0} was used with other parameters; use a new one for a new request")]
    TokenMismatch(String),
    /// It is not at the revision that its caller has seen.
    #[error("{key} was changed meanwhile; read it again")]
    Stale {
        /// Kind and id, as `volume/vol-…`.
        key: String,
        /// Its revision now; `None`: it is gone.
        found: Option<store::Revision>,
    },
    /// Others wrote the same again and again.
    #[error("the same was changed by others at that moment; try again")]
    Busy,
    /// What is stored cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refusal {
    /// There is none of this id.
    #[must_use]
    pub fn not_found(kind: Kind, id: impl AsRef<str>) -> Self {
        Self::NotFound {
            kind,
            id: Invalid::shorten(id.as_ref()),
        }
    }

    /// A field cannot have this value.
    #[must_use]
    pub fn invalid(field: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Invalid {
            field,
            reason: reason.to_string(),
        }
    }

    /// It is Holm that failed, not who asked.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Record(_) | Self::Store(_) | Self::Busy)
    }
}
