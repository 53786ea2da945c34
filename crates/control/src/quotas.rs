//! How much accounts have and may have.

use model::{
    AccountId, Desired, ElasticAddress, Image, Instance, KeyPair, Quota, Quotas, SecurityGroup,
    Snapshot, Volume, Vpc,
};

use crate::{Caller, Plane, Refusal};

/// A limit, and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaReport {
    /// Of what.
    pub quota: Quota,
    /// How much the account may have.
    pub limit: u64,
    /// How much it has; `None` where it is counted for each VPC or group.
    pub used: Option<u64>,
}

impl Plane {
    /// The limits of the caller's account.
    #[must_use]
    pub fn quotas(&self, caller: &Caller) -> Vec<QuotaReport> {
        let quotas = self.quotas_of(&caller.account);
        let report = |quota| QuotaReport {
            quota,
            limit: quotas.limit(quota),
            used: self.used(&caller.account, quota),
        };
        Quota::ALL.into_iter().map(report).collect()
    }

    /// Changes a limit of an account; `None`: as it was at first.
    ///
    /// # Errors
    /// [`Refusal::NotAllowed`], the store's.
    pub async fn set_quota(
        &self,
        caller: &Caller,
        account: &AccountId,
        quota: Quota,
        limit: Option<u64>,
    ) -> Result<(), Refusal> {
        if !caller.admin {
            return Err(Refusal::NotAllowed(
                "only an administrator changes quotas".into(),
            ));
        }
        self.transact(|batch| {
            let found = self.view().get::<Quotas>(account.as_str());
            let mut quotas = found.as_ref().map(|f| f.record.clone()).unwrap_or_default();
            match limit {
                Some(limit) => drop(quotas.limits.insert(quota, limit)),
                None => drop(quotas.limits.remove(&quota)),
            }
            match &found {
                Some(found) => batch.replace(found, &quotas),
                None => batch.create(account.as_str(), &quotas),
            }
        })
        .await
    }

    /// Refuses what would be more than the account may have.
    pub(crate) fn within(
        &self,
        account: &AccountId,
        quota: Quota,
        wanted: u64,
    ) -> Result<(), Refusal> {
        let used = self.used(account, quota).unwrap_or_default();
        self.within_used(account, quota, used, wanted)
    }

    /// The same, where who asks has counted.
    pub(crate) fn within_used(
        &self,
        account: &AccountId,
        quota: Quota,
        used: u64,
        wanted: u64,
    ) -> Result<(), Refusal> {
        let limit = self.quotas_of(account).limit(quota);
        match used.saturating_add(wanted) <= limit {
            true => Ok(()),
            false => Err(Refusal::Quota {
                quota,
                limit,
                used,
                wanted,
            }),
        }
    }

    /// How much more the account may have.
    pub(crate) fn left(&self, account: &AccountId, quota: Quota) -> u64 {
        let used = self.used(account, quota).unwrap_or_default();
        self.quotas_of(account).limit(quota).saturating_sub(used)
    }

    fn quotas_of(&self, account: &AccountId) -> Quotas {
        let found = self.view().get::<Quotas>(account.as_str());
        found.map(|found| found.record.clone()).unwrap_or_default()
    }

    fn used(&self, account: &AccountId, quota: Quota) -> Option<u64> {
        let view = self.view();
        let own = |meta: &model::Meta| meta.account == *account;
        let sum_running = |of: fn(&Instance) -> u64| {
            let running = view.filter::<Instance>(|i| {
                own(&i.meta) && !i.is_terminated() && i.desired == Desired::Running
            });
            running.iter().map(|found| of(&found.record)).sum::<u64>()
        };
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        Some(match quota {
            Quota::Instances => {
                count(view.count::<Instance>(|i| own(&i.meta) && !i.is_terminated()))
            }
            Quota::Cpus => sum_running(|i| u64::from(i.cpus)),
            Quota::MemoryMib => sum_running(|i| i.memory >> 20),
            Quota::Volumes => count(view.count::<Volume>(|v| own(&v.meta))),
            Quota::VolumeGib => {
                let volumes = view.filter::<Volume>(|v| own(&v.meta));
                volumes
                    .iter()
                    .map(|v| v.record.size.div_ceil(1 << 30))
                    .sum()
            }
            Quota::Snapshots => count(view.count::<Snapshot>(|s| own(&s.meta))),
            Quota::Images => count(view.count::<Image>(|i| own(&i.meta))),
            Quota::KeyPairs => count(view.count::<KeyPair>(|k| own(&k.meta))),
            Quota::Addresses => count(view.count::<ElasticAddress>(|a| own(&a.meta))),
            Quota::Vpcs => count(view.count::<Vpc>(|v| own(&v.meta))),
            Quota::SecurityGroups => count(view.count::<SecurityGroup>(|g| own(&g.meta))),
            Quota::SubnetsPerVpc | Quota::RulesPerGroup => return None,
        })
    }
}
