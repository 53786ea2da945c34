//! What `control` refuses, as problems: the one place that says which status
//! goes with what.

use control::Refusal;
use store::StoreError;

use crate::problem::{Code, Problem};

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let (code, next) = match &refusal {
            Refusal::NotFound { .. } => (
                Code::NotFound,
                Some("list what there is, and look at the id"),
            ),
            Refusal::Invalid { .. } | Refusal::Overlap(..) | Refusal::Combination(_) => {
                (Code::InvalidValue, None)
            }
            Refusal::Missing { .. } => (Code::InvalidValue, Some("send the field")),
            Refusal::State { .. } | Refusal::Protected { .. } => (Code::WrongState, None),
            Refusal::InUse { .. } => (Code::InUse, Some("remove or detach what uses it first")),
            Refusal::Exists { .. } => (
                Code::AlreadyExists,
                Some("use that one, or choose another name"),
            ),
            Refusal::NotAllowed(_) => (Code::Forbidden, None),
            Refusal::Quota { .. } => (Code::QuotaExceeded, None),
            Refusal::NoAddress(_) => (
                Code::NoCapacity,
                Some("remove what is not needed, or use another subnet"),
            ),
            Refusal::TokenMismatch(_) => (Code::IdempotencyMismatch, None),
            Refusal::Stale { .. } => (
                Code::RevisionMismatch,
                Some("read it again, and send its new ETag as If-Match"),
            ),
            Refusal::Busy => (Code::Conflict, None),
            Refusal::Store(StoreError::Closed) => {
                (Code::Unavailable, Some("the daemon is ending; try again"))
            }
            Refusal::Record(_) | Refusal::Store(_) => (
                Code::Internal,
                Some("read before you try again; `holm state check` tells more"),
            ),
        };
        let problem = Self::new(code, detail);
        match next {
            Some(step) => problem.next(step),
            None => problem,
        }
    }
}
