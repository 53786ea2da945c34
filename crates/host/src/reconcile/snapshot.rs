//! Snapshots' contents.

use model::{Instance, InstanceState, Snapshot, SnapshotState, Timestamp, Volume};

use super::{Next, Reconciler, StepError};
use crate::driver::DriverError;

impl Reconciler {
    pub(super) async fn snapshot(&self, id: &str) -> Result<Next, StepError> {
        let Some(found) = self.plane.view().get::<Snapshot>(id) else {
            return Ok(Next::Wait);
        };
        let snapshot = &found.record;
        if snapshot.deleting {
            return self.delete_snapshot(id, snapshot).await;
        }
        if snapshot.state != SnapshotState::Pending {
            return Ok(Next::Wait);
        }
        let doing = "making the snapshot";
        let volume = snapshot.volume.as_ref();
        let volume = volume.and_then(|v| self.plane.view().get::<Volume>(v));
        let Some(volume) = volume else {
            return Err(DriverError::refused(doing, id, "its volume is gone").into());
        };
        let machine = volume.record.attachment.as_ref().map(|a| &a.instance);
        let machine = machine.and_then(|i| self.plane.view().get::<Instance>(i));
        let machine = machine.filter(|found| found.record.state != InstanceState::Stopped);
        let machine = machine.map(|found| found.id.clone());
        let driver = &self.driver;
        let content = driver.snapshot_volume(&volume.id, id, machine.as_deref());
        let content = content.await?;
        self.plane
            .edit::<Snapshot>(id, |snapshot, batch| {
                if snapshot.state != SnapshotState::Pending {
                    return Ok(());
                }
                snapshot.content = Some(content.name.clone());
                snapshot.stored = content.stored;
                snapshot.state = SnapshotState::Completed;
                snapshot.progress = 100;
                snapshot.completed = Some(Timestamp::now());
                self.plane.end_operations(batch, &snapshot.id, None)?;
                let account = snapshot.meta.account.clone();
                batch.tell(&account, None, "snapshot-completed", &snapshot.id, "")
            })
            .await?;
        Ok(Next::Again)
    }

    async fn delete_snapshot(&self, id: &str, snapshot: &Snapshot) -> Result<Next, StepError> {
        // It may have been made by a daemon that died before it said so.
        let content = snapshot.content.as_deref().unwrap_or(id);
        let shared = self.plane.view().any::<Snapshot>(|other| {
            other.id != snapshot.id && other.content.as_deref() == Some(content)
        });
        if !shared {
            self.driver.remove_content(content).await?;
        }
        self.plane
            .transact(|batch| {
                batch.discard::<Snapshot>(id);
                self.plane
                    .end_operations(batch, id, Some("the snapshot was deleted"))
            })
            .await?;
        Ok(Next::Wait)
    }

    pub(super) async fn give_up_snapshot(&self, id: &str, reason: &str) -> Result<bool, StepError> {
        let given_up = self
            .plane
            .edit::<Snapshot>(id, |snapshot, batch| {
                if snapshot.state != SnapshotState::Pending {
                    return Ok(());
                }
                snapshot.state = SnapshotState::Error;
                snapshot.failure = Some(reason.to_owned());
                self.plane
                    .end_operations(batch, &snapshot.id, Some(reason))?;
                let account = snapshot.meta.account.clone();
                batch.tell(&account, None, "snapshot-failed", &snapshot.id, reason)
            })
            .await?;
        Ok(given_up.is_some_and(|snapshot| snapshot.state == SnapshotState::Error))
    }
}
