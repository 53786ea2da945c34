//! Volumes' files.

use std::time::Duration;

use model::{Instance, InstanceState, Rollback, Snapshot, SnapshotState, Volume, VolumeState};

use super::{Next, Reconciler, StepError};
use crate::driver::{DriverError, VolumeSource, VolumeSpec};

impl Reconciler {
    pub(super) async fn volume(&self, id: &str) -> Result<Next, StepError> {
        let Some(found) = self.plane.view().get::<Volume>(id) else {
            self.driver.remove_volume(id).await?;
            return Ok(Next::Wait);
        };
        let volume = &found.record;
        if volume.deleting {
            if volume.attachment.is_some() {
                return Ok(Next::Wait);
            }
            self.driver.remove_volume(id).await?;
            self.plane
                .transact(|batch| {
                    batch.discard::<Volume>(id);
                    Ok(())
                })
                .await?;
            return Ok(Next::Wait);
        }
        if let Some(rollback) = &volume.rollback {
            return self.roll_back(id, rollback).await;
        }
        if volume.state == VolumeState::Error
            || volume.actual_size >= volume.size
            || self.grows_with_machine(volume)
        {
            return Ok(Next::Wait);
        }
        match self.volume_spec(volume)? {
            Some(spec) => drop(self.driver.ensure_volume(&spec).await?),
            // What it is to hold is not there yet.
            None => return Ok(Next::After(Duration::from_secs(1))),
        }
        self.note_size(id, volume.size).await?;
        Ok(Next::Again)
    }

    async fn roll_back(&self, id: &str, rollback: &Rollback) -> Result<Next, StepError> {
        let snapshot = self.plane.view().get::<Snapshot>(&rollback.snapshot);
        let content = snapshot.and_then(|found| found.record.content.clone());
        let Some(content) = content else {
            let why = format!("the snapshot {} is gone", rollback.snapshot);
            return Err(DriverError::refused("rolling back the volume", id, why).into());
        };
        let driver = &self.driver;
        driver
            .roll_back_volume(id, &content, &rollback.token)
            .await?;
        self.end_rollback(id, "volume-rolled-back", None).await?;
        Ok(Next::Again)
    }

    /// No rollback is asked for any more; says how the last one ended. Returns
    /// whether there was one.
    async fn end_rollback(
        &self,
        id: &str,
        event: &str,
        failure: Option<&str>,
    ) -> Result<bool, StepError> {
        let mut was = false;
        self.plane
            .edit::<Volume>(id, |volume, batch| {
                let Some(rollback) = volume.rollback.take() else {
                    was = false;
                    return Ok(());
                };
                was = true;
                self.plane.end_operations(batch, &volume.id, failure)?;
                let account = volume.meta.account.clone();
                let message = failure.unwrap_or(rollback.snapshot.as_str());
                batch.tell(&account, None, event, &volume.id, message)
            })
            .await?;
        Ok(was)
    }

    fn grows_with_machine(&self, volume: &Volume) -> bool {
        let instance = volume.attachment.as_ref();
        let instance = instance.and_then(|a| self.plane.view().get::<Instance>(&a.instance));
        volume.actual_size > 0
            && instance.is_some_and(|found| {
                let state = found.record.state;
                !matches!(state, InstanceState::Pending | InstanceState::Stopped)
            })
    }

    /// A volume's file has this size now.
    pub(super) async fn note_size(&self, id: &str, size: u64) -> Result<(), StepError> {
        self.plane
            .edit::<Volume>(id, |volume, _| {
                volume.actual_size = volume.actual_size.max(size);
                if volume.state == VolumeState::Creating {
                    volume.state = match volume.attachment {
                        Some(_) => VolumeState::InUse,
                        None => VolumeState::Available,
                    };
                }
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// A volume for the driver; `None`: what it is to hold is not there yet.
    pub(super) fn volume_spec(&self, volume: &Volume) -> Result<Option<VolumeSpec>, StepError> {
        let source = match &volume.snapshot {
            None => VolumeSource::Empty,
            // Made already: the driver knows what of.
            Some(_) if volume.actual_size > 0 => VolumeSource::Made,
            Some(id) => {
                let doing = "making the volume";
                let of = volume.id.as_str();
                let Some(snapshot) = self.plane.view().get::<Snapshot>(id) else {
                    let why = format!("the snapshot {id} is gone");
                    return Err(DriverError::refused(doing, of, why).into());
                };
                let snapshot = &snapshot.record;
                match (&snapshot.content, snapshot.state) {
                    (Some(content), SnapshotState::Completed) => {
                        VolumeSource::Content(content.clone())
                    }
                    (_, SnapshotState::Error) => {
                        let why = format!("the snapshot {id} could not be made");
                        return Err(DriverError::refused(doing, of, why).into());
                    }
                    _ => return Ok(None),
                }
            }
        };
        Ok(Some(VolumeSpec {
            id: volume.id.to_string(),
            size: volume.size,
            source,
        }))
    }

    pub(super) async fn give_up_volume(&self, id: &str, reason: &str) -> Result<bool, StepError> {
        let event = "volume-rollback-failed";
        if self.end_rollback(id, event, Some(reason)).await? {
            return Ok(true);
        }
        let given_up = self
            .plane
            .edit::<Volume>(id, |volume, batch| {
                if volume.state != VolumeState::Creating {
                    return Ok(());
                }
                volume.state = VolumeState::Error;
                volume.failure = Some(reason.to_owned());
                let account = volume.meta.account.clone();
                batch.tell(&account, None, "volume-failed", &volume.id, reason)
            })
            .await?;
        Ok(given_up.is_some_and(|volume| volume.state == VolumeState::Error))
    }
}
