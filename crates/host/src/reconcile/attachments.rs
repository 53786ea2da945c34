//! Disks that come to instances and go from them.

use std::time::Duration;

use control::Refusal;
use model::{Attachment, AttachmentState, BlockDevice, Instance, Timestamp, Volume, VolumeState};
use store::Found;

use super::instance::LOOK;
use super::{Next, Reconciler, StepError};
use crate::describe;
use crate::driver::{DriverError, Facts, Failure};

/// How long a guest may take until it listens to the slots of its disks.
const STARTING: Duration = Duration::from_secs(180);

impl Reconciler {
    /// Takes a step for the disks of an instance that is settled: running, with
    /// what its machine says, or stopped.
    pub(super) async fn attachments(
        &self,
        instance: &Instance,
        facts: Option<&Facts>,
    ) -> Result<Next, StepError> {
        let mut next = Next::Wait;
        for disk in &instance.disks {
            let Some(volume) = self.plane.view().get::<Volume>(&disk.volume) else {
                continue;
            };
            let attachment = volume.record.attachment.as_ref();
            let Some(attachment) = attachment.filter(|a| a.instance == instance.id) else {
                continue;
            };
            let step = if attachment.detaching {
                self.detach(instance, facts, disk, attachment).await?
            } else if attachment.state == AttachmentState::Attaching {
                self.attach(instance, facts, &volume).await?
            } else {
                self.grow_attached(facts, &volume, instance).await?
            };
            match step {
                Next::Wait => {}
                Next::Again => return Ok(Next::Again),
                Next::After(_) => next = step,
            }
        }
        Ok(next)
    }

    async fn attach(
        &self,
        instance: &Instance,
        facts: Option<&Facts>,
        volume: &Found<Volume>,
    ) -> Result<Next, StepError> {
        let id = volume.id.as_str();
        if volume.record.actual_size < volume.record.size {
            // Its file comes first.
            return Ok(Next::After(LOOK));
        }
        if let Some(facts) = facts
            && !facts.disks.iter().any(|name| name == id)
        {
            let Some(spec) = self.volume_spec(&volume.record)? else {
                return Ok(Next::After(LOOK));
            };
            let file = self.driver.ensure_volume(&spec).await?;
            let disk = describe::disk(&self.plane, id, &file);
            match self.driver.attach_disk(instance.id.as_str(), &disk).await {
                Err(error) if error.failure == Failure::Refused => {
                    return self.undo_attach(instance, id, &error).await;
                }
                other => other?,
            }
        }
        self.plane
            .edit::<Volume>(id, |volume, batch| {
                let attachment = volume.attachment.as_mut();
                if let Some(a) = attachment.filter(|a| a.state == AttachmentState::Attaching) {
                    a.state = AttachmentState::Attached;
                    let account = volume.meta.account.clone();
                    let of = instance.id.as_str();
                    batch.tell(&account, None, "volume-attached", &volume.id, of)?;
                }
                Ok(())
            })
            .await?;
        Ok(Next::Again)
    }

    /// The machine cannot have the disk: it is as if it had not been asked for.
    async fn undo_attach(
        &self,
        instance: &Instance,
        volume: &str,
        error: &DriverError,
    ) -> Result<Next, StepError> {
        self.take_out(instance, volume, "volume-attach-failed", &error.to_string())
            .await?;
        Ok(Next::Again)
    }

    async fn detach(
        &self,
        instance: &Instance,
        facts: Option<&Facts>,
        disk: &BlockDevice,
        attachment: &Attachment,
    ) -> Result<Next, StepError> {
        let id = disk.volume.as_str();
        if facts.is_some_and(|facts| facts.disks.iter().any(|name| name == id)) {
            let machine = instance.id.as_str();
            let asked = self.driver.detach_disk(machine, id, attachment.force).await;
            match asked {
                Err(error) if error.failure == Failure::Refused => {
                    let since = facts.map_or(0, |facts| facts.since_ms);
                    if Timestamp::now().since(Timestamp(since)) < STARTING {
                        return Ok(Next::After(LOOK * 4));
                    }
                    return self.undo_detach(id, &error).await;
                }
                other => other?,
            }
            return Ok(Next::After(LOOK * 4));
        }
        self.take_out(instance, id, "volume-detached", instance.id.as_str())
            .await?;
        Ok(Next::Again)
    }

    /// The machine cannot give the disk up: it is as if that had not been asked.
    async fn undo_detach(&self, volume: &str, error: &DriverError) -> Result<Next, StepError> {
        self.plane
            .edit::<Volume>(volume, |volume, batch| {
                if let Some(attachment) = volume.attachment.as_mut().filter(|a| a.detaching) {
                    attachment.detaching = false;
                    attachment.force = false;
                    attachment.state = AttachmentState::Attached;
                    let (account, why) = (volume.meta.account.clone(), error.to_string());
                    batch.tell(&account, None, "volume-detach-failed", &volume.id, why)?;
                }
                Ok(())
            })
            .await?;
        Ok(Next::Again)
    }

    /// A volume is no longer in an instance.
    async fn take_out(
        &self,
        instance: &Instance,
        volume: &str,
        event: &str,
        message: &str,
    ) -> Result<(), StepError> {
        self.plane
            .edit::<Instance>(&instance.id, |instance, batch| {
                instance.disks.retain(|disk| disk.volume.as_str() != volume);
                let Some(found) = self.plane.view().get::<Volume>(volume) else {
                    return Ok::<(), Refusal>(());
                };
                let mut changed = found.record.clone();
                let attachment = changed.attachment.take_if(|a| a.instance == instance.id);
                if attachment.is_some() {
                    changed.state = VolumeState::Available;
                    batch.replace(&found, &changed)?;
                    let account = &found.record.meta.account;
                    batch.tell(account, None, event, volume, message)?;
                }
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// A volume of a running machine grows with its machine; of others, its
    /// file does.
    async fn grow_attached(
        &self,
        facts: Option<&Facts>,
        volume: &Found<Volume>,
        instance: &Instance,
    ) -> Result<Next, StepError> {
        let (id, record) = (volume.id.as_str(), &volume.record);
        let small = record.actual_size > 0 && record.actual_size < record.size;
        if facts.is_none() || !small {
            return Ok(Next::Wait);
        }
        let machine = instance.id.as_str();
        self.driver.grow_disk(machine, id, record.size).await?;
        self.note_size(id, record.size).await?;
        Ok(Next::Again)
    }
}
