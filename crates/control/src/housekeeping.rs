//! What is done every few seconds without anybody asking.

use std::time::Duration;

use model::{Desired, Instance, InstanceState, StateReason, Timestamp};

use crate::instances::enter;
use crate::{Plane, Refusal};

/// How long a terminated instance is still shown, as in EC2.
const TERMINATED_SHOWN: Duration = Duration::from_secs(60 * 60);
/// How long a client may ask the same again.
const TOKENS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

impl Plane {
    /// Terminates what has expired, and forgets what nobody asks for any more.
    /// Safe to call at any time and by several daemons.
    ///
    /// # Errors
    /// The store's.
    pub async fn keep_house(&self) -> Result<(), Refusal> {
        self.keep_house_at(Timestamp::now()).await
    }

    pub(crate) async fn keep_house_at(&self, now: Timestamp) -> Result<(), Refusal> {
        let over = |i: &Instance| {
            i.expires.is_some_and(|end| end <= now) && i.desired != Desired::Terminated
        };
        for found in self.view().filter::<Instance>(over) {
            self.expire(&found.id, now).await?;
        }
        let ago = |time: Duration| {
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            Timestamp(now.0.saturating_sub(milliseconds))
        };
        self.forget_terminated(ago(TERMINATED_SHOWN)).await?;
        self.forget_done(ago(TOKENS_KEPT)).await?;
        self.trim_events().await?;
        self.trim_operations().await?;
        Ok(())
    }

    /// An expiry is a termination that its owner asked for beforehand: what
    /// protects against mistakes does not protect against that.
    async fn expire(&self, id: &str, now: Timestamp) -> Result<(), Refusal> {
        self.edit::<Instance>(id, |instance, batch| {
            let over = instance.expires.is_some_and(|end| end <= now);
            if !over || instance.desired == Desired::Terminated {
                return Ok(());
            }
            instance.desired = Desired::Terminated;
            enter(instance, InstanceState::ShuttingDown);
            let message = "Client.Expired: its time to live is over";
            instance.state_reason = Some(StateReason {
                code: "Client.Expired".into(),
                message: message.into(),
            });
            let account = instance.meta.account.clone();
            batch.tell(&account, None, "instance-expired", id, message)
        })
        .await
        .map(drop)
    }
}
