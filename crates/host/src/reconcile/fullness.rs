//! Guests whose disks are nearly full are told of, before they stand still.

use std::sync::Arc;

use control::Batch;
use model::{Instance, InstanceId, InstanceState};
use provisioning::FileSystem;
use tokio::task::JoinSet;

use super::{Reconciler, StepError};

/// A file system is nearly full from this part of it on, in percent.
const FULL: u128 = 90;
/// It is no longer below this part: what moves around the limit is told once.
const AGAIN: u128 = 85;
/// Guests that are asked at once.
const AT_ONCE: usize = 4;

impl Reconciler {
    /// Asks the agents of all guests that are up, again and again.
    pub(super) async fn watch_fullness(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.patience.fullness).await;
            // Who was never ready has no agent.
            let up = |i: &Instance| i.state == InstanceState::Running && i.boot.ready.is_some();
            let mut asking = JoinSet::new();
            for found in self.plane.view().filter::<Instance>(up) {
                if asking.len() >= AT_ONCE {
                    asking.join_next().await;
                }
                let (this, id) = (self.clone(), found.record.id.clone());
                asking.spawn(async move {
                    if let Err(error) = this.look_at_fullness(&id).await {
                        tracing::warn!(instance = %id, %error, "asking how full its disks are");
                    }
                });
            }
            while asking.join_next().await.is_some() {}
        }
    }

    async fn look_at_fullness(&self, id: &InstanceId) -> Result<(), StepError> {
        let Some(all) = self.driver.file_systems(id.as_str()).await? else {
            return Ok(());
        };
        let Some(found) = self.plane.view().get::<Instance>(id) else {
            return Ok(());
        };
        if filling(&found.record, &all)
            .map(|f| &f.mountpoint)
            .eq(&found.record.filling)
        {
            return Ok(());
        }
        let edit = |instance: &mut Instance, batch: &mut Batch| {
            if instance.state != InstanceState::Running {
                return Ok(());
            }
            let now: Vec<&FileSystem> = filling(instance, &all).collect();
            let account = instance.meta.account.clone();
            for new in now
                .iter()
                .filter(|f| !instance.filling.contains(&f.mountpoint))
            {
                let message = format!(
                    "{} is {}% full: {} of {} MiB; `holm volume grow` makes its volume larger",
                    new.mountpoint,
                    percent(new),
                    new.used >> 20,
                    new.total >> 20,
                );
                batch.tell(
                    &account,
                    None,
                    "instance-disk-filling",
                    &instance.id,
                    message,
                )?;
            }
            instance.filling = now.iter().map(|f| f.mountpoint.clone()).collect();
            Ok(())
        };
        self.plane.edit::<Instance>(id, edit).await?;
        Ok(())
    }
}

/// Most file systems that an instance is told of.
const MOST: usize = 16;
/// Longest path of one, in bytes.
const LONGEST: usize = 256;

/// Those that are nearly full. A guest says what it likes: it is bounded.
fn filling<'a>(
    instance: &'a Instance,
    all: &'a [FileSystem],
) -> impl Iterator<Item = &'a FileSystem> {
    let full = |f: &&FileSystem| {
        let limit = match instance.filling.contains(&f.mountpoint) {
            true => AGAIN,
            false => FULL,
        };
        f.total > 0 && f.mountpoint.len() <= LONGEST && percent(f) >= limit
    };
    all.iter().filter(full).take(MOST)
}

fn percent(of: &FileSystem) -> u128 {
    u128::from(of.used) * 100 / u128::from(of.total.max(1))
}
