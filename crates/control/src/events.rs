//! What is told of what happened.

use model::{AccountId, Event, EventId, Timestamp};

use crate::{Batch, Caller, Plane, Refusal};

impl Batch {
    /// Tells that something happened to a resource, with the change itself.
    ///
    /// # Errors
    /// [`Refusal::Record`].
    pub fn tell(
        &mut self,
        account: &AccountId,
        actor: Option<&Caller>,
        kind: &str,
        resource: impl AsRef<str>,
        message: impl Into<String>,
    ) -> Result<(), Refusal> {
        let event = Event {
            id: EventId::random(),
            account: account.clone(),
            at: Timestamp::now(),
            resource: resource.as_ref().to_owned(),
            kind: kind.to_owned(),
            message: message.into(),
            actor: actor.map(|caller| caller.user.clone()),
        };
        self.put(&event.key(), &event)
    }
}

/// Events that are kept.
const KEPT: usize = 20_000;
/// Most that go in one transaction.
const AT_ONCE: usize = 90;

impl Plane {
    /// Removes the oldest events where there are too many; how many went.
    ///
    /// # Errors
    /// The store's.
    pub async fn trim_events(&self) -> Result<usize, Refusal> {
        let all = self.view().all::<Event>();
        let old = &all[..all.len().saturating_sub(KEPT)];
        for some in old.chunks(AT_ONCE) {
            self.transact(|batch| {
                some.iter()
                    .for_each(|event| batch.discard::<Event>(&event.id));
                Ok(())
            })
            .await?;
        }
        Ok(old.len())
    }
}
