//! Works that take long: what they are about, and how they ended.

use model::{AccountId, Operation, OperationId, OperationState, Timestamp};

use crate::{Batch, Plane, Refusal};

/// Operations that are over and kept nevertheless.
const KEPT: usize = 1_000;
/// Most that go in one transaction.
const AT_ONCE: usize = 90;

impl Batch {
    /// A work begins, with the record that asks for it. `kind` is as
    /// `snapshot`, `stage` for people.
    ///
    /// # Errors
    /// [`Refusal::Record`].
    pub(crate) fn begin(
        &mut self,
        account: &AccountId,
        kind: &str,
        resource: impl AsRef<str>,
        stage: &str,
    ) -> Result<(), Refusal> {
        let operation = Operation {
            id: OperationId::random(),
            account: account.clone(),
            kind: kind.to_owned(),
            resource: resource.as_ref().to_owned(),
            began: Timestamp::now(),
            ended: None,
            stage: stage.to_owned(),
            progress: None,
            state: OperationState::Running,
            failure: None,
        };
        self.create(operation.id.as_str(), &operation)
    }
}

impl Plane {
    /// The works on a resource are over, with the change of its record; no
    /// effect if there are none.
    ///
    /// # Errors
    /// [`Refusal::Record`].
    pub fn end_operations(
        &self,
        batch: &mut Batch,
        resource: impl AsRef<str>,
        failure: Option<&str>,
    ) -> Result<(), Refusal> {
        let resource = resource.as_ref();
        let running = |o: &Operation| o.state == OperationState::Running && o.resource == resource;
        for found in self.view().filter::<Operation>(running) {
            let mut over = found.record.clone();
            over.ended = Some(Timestamp::now());
            over.failure = failure.map(str::to_owned);
            (over.state, over.progress) = match failure {
                None => (OperationState::Succeeded, Some(100)),
                Some(_) => (OperationState::Failed, over.progress),
            };
            batch.replace(&found, &over)?;
        }
        Ok(())
    }

    /// Removes the oldest operations that are over where there are too many.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn trim_operations(&self) -> Result<(), Refusal> {
        let over = |o: &Operation| o.ended.is_some();
        let mut all = self.view().filter::<Operation>(over);
        all.sort_by_key(|found| found.record.ended);
        let old = &all[..all.len().saturating_sub(KEPT)];
        for some in old.chunks(AT_ONCE) {
            self.transact(|batch| {
                some.iter()
                    .for_each(|found| batch.discard::<Operation>(&found.id));
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
