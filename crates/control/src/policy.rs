//! Tag policies: which tags new instances and volumes must have.

use model::{AccountId, TagPolicy, Tags, check_tags};

use crate::{Caller, Plane, Refusal};

impl Plane {
    /// The tag policy of the caller's account; empty if it has none.
    #[must_use]
    pub fn tag_policy(&self, caller: &Caller) -> TagPolicy {
        self.policy_of(&caller.account)
    }

    /// Sets the tag policy of the caller's account. What exists is left as it
    /// is; [`Self::drift`] names what breaks the policy.
    ///
    /// # Errors
    /// [`Refusal::NotAllowed`], [`Refusal::Invalid`], the store's.
    pub async fn set_tag_policy(&self, caller: &Caller, policy: TagPolicy) -> Result<(), Refusal> {
        if !caller.admin {
            let reason = "only an administrator changes the tag policy";
            return Err(Refusal::NotAllowed(reason.into()));
        }
        let keys: Tags = policy
            .required
            .keys()
            .map(|key| (key.clone(), String::new()))
            .collect();
        check_tags(&keys).map_err(|e| Refusal::invalid("required", e))?;
        self.transact(|batch| {
            let id = caller.account.as_str();
            match self.view().get::<TagPolicy>(id) {
                Some(found) if found.record == policy => Ok(()),
                Some(found) => batch.replace(&found, &policy),
                None => batch.create(id, &policy),
            }
        })
        .await
    }

    pub(crate) fn required_tags(&self, caller: &Caller, tags: &Tags) -> Result<(), Refusal> {
        self.policy_of(&caller.account)
            .check(tags)
            .map_err(|e| Refusal::invalid("tags", e))
    }

    fn policy_of(&self, account: &AccountId) -> TagPolicy {
        let found = self.view().get::<TagPolicy>(account.as_str());
        found.map(|found| found.record.clone()).unwrap_or_default()
    }
}
