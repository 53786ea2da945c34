//! Instances: pending, running, stopping, stopped, shutting-down, terminated.

use std::time::Duration;

use control::{Batch, Refusal};
use machine_protocol::launch::Ended;
use model::{
    Attachment, AttachmentState, Boot, BootStage, Desired, Instance, InstanceState,
    ShutdownBehavior, StateReason, Timestamp, Volume, VolumeState,
};

use super::{Next, Reconciler, StepError};
use crate::driver::{Facts, MachineEnd, Observed};

/// A machine that dies sooner than this is not started again by itself.
const LIVED: Duration = Duration::from_secs(60);
/// Between two looks at what does not say when it is done.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// Between two looks at a machine that says nothing.
const SEEN: Duration = Duration::from_secs(300);
/// Its guest, or whoever asked for a stop, wanted it.
const BY_USER: &str = "Client.UserInitiatedShutdown";
const BY_GUEST: &str = "Client.InstanceInitiatedShutdown";
const BY_FAULT: &str = "Server.InternalError";

impl Reconciler {
    pub(super) async fn instance(&self, id: &str) -> Result<Next, StepError> {
        let Some(found) = self.plane.view().get::<Instance>(id) else {
            self.told_by_machines.lock().remove(id);
            self.driver.kill(id).await?;
            self.driver.remove(id).await?;
            return Ok(Next::Wait);
        };
        let noted = self.note_events(&found.record).await?;
        Ok(self.toward(&found.record).await?.sooner(noted))
    }

    /// The next step towards what is wanted.
    async fn toward(&self, instance: &Instance) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        match (instance.desired, instance.state) {
            (_, InstanceState::Terminated) => Ok(Next::Wait),
            (Desired::Terminated, _) | (_, InstanceState::ShuttingDown) => {
                self.terminate(instance).await
            }
            (Desired::Stopped, _) | (_, InstanceState::Stopping) => self.stop(instance).await,
            (Desired::Running, InstanceState::Stopped) => {
                self.enter(id, InstanceState::Pending, None).await
            }
            (Desired::Running, InstanceState::Pending) => self.start(instance).await,
            (Desired::Running, InstanceState::Running) => self.keep_running(instance).await,
        }
    }

    /// Writes the instance's state, unless it is another than before already.
    pub(super) async fn enter(
        &self,
        id: &str,
        state: InstanceState,
        reason: Option<StateReason>,
    ) -> Result<Next, StepError> {
        let reason = &reason;
        self.plane
            .edit::<Instance>(id, |instance, batch| {
                if instance.state != state {
                    change_state(instance, batch, state, reason.clone())?;
                }
                Ok(())
            })
            .await?;
        Ok(Next::Again)
    }

    /// Pending.
    async fn start(&self, instance: &Instance) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        let Some(number) = instance.machine else {
            self.plane
                .edit::<Instance>(id, |instance, _| {
                    if instance.machine.is_none() {
                        new_start(instance);
                    }
                    Ok(())
                })
                .await?;
            return Ok(Next::Again);
        };
        match self.disks(instance)? {
            Disks::Ready => {}
            Disks::Pending => return Ok(Next::After(Duration::from_secs(1))),
            Disks::Failed(reason) => {
                self.give_up_instance(id, &reason).await?;
                return Ok(Next::Again);
            }
        }
        match self.driver.observe(id).await? {
            Observed::Running { number: n, facts } if n == number => {
                self.started(instance, number, &facts).await
            }
            Observed::Starting { number: n } if n == number => Ok(Next::After(LOOK)),
            Observed::Ended { number: n, end } if n == number => {
                self.ended(instance, number, &end).await
            }
            other => self.launch(instance, number, &other).await,
        }
    }

    /// Its machine runs: so does the instance.
    async fn started(
        &self,
        instance: &Instance,
        number: u64,
        facts: &Facts,
    ) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        self.plane
            .edit::<Instance>(id, |instance, batch| {
                if instance.state != InstanceState::Pending || instance.machine != Some(number) {
                    return Ok(());
                }
                change_state(instance, batch, InstanceState::Running, None)?;
                for disk in &instance.disks {
                    self.attached(batch, instance, disk)?;
                }
                let began = Timestamp(facts.since_ms);
                if !instance
                    .boot
                    .stages
                    .iter()
                    .any(|s| s.name == super::boot::MACHINE)
                {
                    instance.boot.stages.push(BootStage {
                        name: super::boot::MACHINE.into(),
                        began,
                        ended: None,
                        failure: None,
                    });
                }
                Ok(())
            })
            .await?;
        Ok(Next::Again)
    }

    /// A disk that was there when the machine started is attached.
    fn attached(
        &self,
        batch: &mut Batch,
        instance: &Instance,
        disk: &model::BlockDevice,
    ) -> Result<(), Refusal> {
        let Some(volume) = self.plane.view().get::<Volume>(&disk.volume) else {
            return Ok(());
        };
        let mut changed = volume.record.clone();
        changed.state = VolumeState::InUse;
        match &mut changed.attachment {
            Some(a) if a.instance == instance.id && a.state == AttachmentState::Attaching => {
                a.state = AttachmentState::Attached;
            }
            Some(_) => {}
            None => {
                changed.attachment = Some(Attachment {
                    instance: instance.id.clone(),
                    device: disk.device.clone(),
                    delete_on_termination: disk.delete_on_termination,
                    since: Timestamp::now(),
                    detaching: false,
                    force: false,
                    state: AttachmentState::Attached,
                });
            }
        }
        match changed == volume.record {
            true => Ok(()),
            false => batch.replace(&volume, &changed),
        }
    }

    /// Running, and to be.
    async fn keep_running(&self, instance: &Instance) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        let Some(number) = instance.machine else {
            return self.enter(id, InstanceState::Pending, None).await;
        };
        match self.driver.observe(id).await? {
            Observed::Running { number: n, facts } if n == number => {
                self.serve_metadata(id).await?;
                if instance.reboots_wanted > instance.reboots_done {
                    return self
                        .shut_down(instance, number, false, self.patience.stop)
                        .await;
                }
                let disks = self.attachments(instance, Some(&facts)).await?;
                if matches!(disks, Next::Again) {
                    return Ok(disks);
                }
                let boot = self.watch_boot(instance).await?;
                // Its end is told; should that be missed, it is seen.
                Ok(disks.sooner(boot).sooner(Next::After(SEEN)))
            }
            Observed::Starting { number: n } if n == number => Ok(Next::After(LOOK)),
            Observed::Ended { number: n, end } if n == number => {
                self.ended(instance, number, &end).await
            }
            other => self.launch(instance, number, &other).await,
        }
    }

    /// A machine that should run has ended.
    async fn ended(
        &self,
        instance: &Instance,
        number: u64,
        end: &MachineEnd,
    ) -> Result<Next, StepError> {
        self.pressed.lock().remove(instance.id.as_str());
        let pending = instance.state == InstanceState::Pending;
        let rebooting = !pending && instance.reboots_wanted > instance.reboots_done;
        let lived = Timestamp::now().since(instance.state_since) >= LIVED;
        let starts_again = match end.how {
            _ if rebooting => true,
            // The host went down in good order, or without a word.
            Some(Ended::Signal) => true,
            None => lived && !pending,
            _ => false,
        };
        let reason = |code: &str| {
            Some(StateReason {
                code: code.into(),
                message: format!("{code}: {}", end.message),
            })
        };
        let (id, first) = (instance.id.as_str(), instance.starts <= 1);
        let edit = |instance: &mut Instance, batch: &mut Batch| {
            if instance.machine != Some(number) {
                return Ok(());
            }
            if starts_again {
                let kind = if rebooting { "rebooted" } else { "recovered" };
                let kind = format!("instance-{kind}");
                let account = instance.meta.account.clone();
                batch.tell(&account, None, &kind, &instance.id, &end.message)?;
                instance.reboots_done = instance.reboots_wanted;
                new_start(instance);
                return Ok(());
            }
            let by_guest = matches!(end.how, Some(Ended::PoweredOff | Ended::Reset));
            let code = if by_guest { BY_GUEST } else { BY_FAULT };
            let goes = match by_guest {
                true => instance.shutdown_behavior == ShutdownBehavior::Terminate,
                // As EC2 does with what could never be started.
                false => pending && first,
            };
            if goes {
                instance.desired = Desired::Terminated;
                return change_state(instance, batch, InstanceState::ShuttingDown, reason(code));
            }
            instance.desired = Desired::Stopped;
            instance.machine = None;
            instance.reboots_done = instance.reboots_wanted;
            change_state(instance, batch, InstanceState::Stopped, reason(code))
        };
        self.plane.edit::<Instance>(id, edit).await?;
        Ok(Next::Again)
    }

    /// To be stopped, or being so.
    async fn stop(&self, instance: &Instance) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        if instance.state == InstanceState::Stopped {
            return self.attachments(instance, None).await;
        }
        if instance.state != InstanceState::Stopping {
            return self.enter(id, InstanceState::Stopping, None).await;
        }
        let observed = self.driver.observe(id).await?;
        if observed.has_process() {
            let number = observed.number().unwrap_or_default();
            let patience = self.patience.stop;
            return self
                .shut_down(instance, number, instance.force, patience)
                .await;
        }
        self.pressed.lock().remove(id);
        self.plane
            .edit::<Instance>(id, |instance, batch| {
                if instance.state != InstanceState::Stopping {
                    return Ok(());
                }
                instance.machine = None;
                instance.force = false;
                instance.reboots_done = instance.reboots_wanted;
                let reason = instance.state_reason.take();
                let reason = reason.unwrap_or_else(|| StateReason {
                    code: BY_USER.into(),
                    message: format!("{BY_USER}: User initiated shutdown"),
                });
                change_state(instance, batch, InstanceState::Stopped, Some(reason))
            })
            .await?;
        Ok(Next::Again)
    }

    /// To be gone, or going.
    async fn terminate(&self, instance: &Instance) -> Result<Next, StepError> {
        let id = instance.id.as_str();
        if instance.state != InstanceState::ShuttingDown {
            return self.enter(id, InstanceState::ShuttingDown, None).await;
        }
        let observed = self.driver.observe(id).await?;
        if observed.has_process() {
            let number = observed.number().unwrap_or_default();
            let patience = self.patience.terminate;
            return self
                .shut_down(instance, number, instance.force, patience)
                .await;
        }
        self.pressed.lock().remove(id);
        self.metadata.lock().remove(id);
        self.told.lock().remove(id);
        self.looked.lock().remove(id);
        self.told_by_machines.lock().remove(id);
        self.driver.remove(id).await?;
        self.plane.instance_gone(&instance.id).await?;
        Ok(Next::Again)
    }

    /// What was asked of an instance cannot be done; whether that could be
    /// noted.
    pub(super) async fn give_up_instance(&self, id: &str, reason: &str) -> Result<bool, StepError> {
        let Some(found) = self.plane.view().get::<Instance>(id) else {
            return Ok(false);
        };
        if found.record.state != InstanceState::Pending {
            return Ok(false);
        }
        self.plane
            .edit::<Instance>(id, |instance, batch| {
                if instance.state != InstanceState::Pending {
                    return Ok(());
                }
                let why = StateReason {
                    code: BY_FAULT.into(),
                    message: format!("{BY_FAULT}: {reason}"),
                };
                // As EC2 does with what could never be started.
                let (desired, state) = match instance.starts <= 1 {
                    true => (Desired::Terminated, InstanceState::ShuttingDown),
                    false => (Desired::Stopped, InstanceState::Stopping),
                };
                instance.desired = desired;
                change_state(instance, batch, state, Some(why))
            })
            .await?;
        Ok(true)
    }

    /// Whether the disks of an instance can be used.
    fn disks(&self, instance: &Instance) -> Result<Disks, StepError> {
        for disk in &instance.disks {
            let Some(volume) = self.plane.view().get::<Volume>(&disk.volume) else {
                return Ok(Disks::Failed(format!("the volume {} is gone", disk.volume)));
            };
            let volume = &volume.record;
            if volume.state == VolumeState::Error {
                let why = volume.failure.as_deref().unwrap_or("it could not be made");
                return Ok(Disks::Failed(format!("the volume {}: {why}", disk.volume)));
            }
            if volume.actual_size < volume.size {
                return Ok(Disks::Pending);
            }
        }
        Ok(Disks::Ready)
    }
}

enum Disks {
    Ready,
    Pending,
    Failed(String),
}

/// Another start of its machine is wanted.
fn new_start(instance: &mut Instance) {
    instance.starts = instance.starts.saturating_add(1);
    instance.machine = Some(instance.starts);
    instance.boot = Boot::default();
    instance.trouble = None;
}

fn change_state(
    instance: &mut Instance,
    batch: &mut Batch,
    state: InstanceState,
    reason: Option<StateReason>,
) -> Result<(), Refusal> {
    let message = reason.as_ref().map_or("", |reason| reason.message.as_str());
    let kind = format!("instance-{}", state.name());
    let account = instance.meta.account.clone();
    batch.tell(&account, None, &kind, &instance.id, message)?;
    instance.state = state;
    instance.state_since = Timestamp::now();
    instance.state_reason = reason;
    if state != InstanceState::Running {
        instance.trouble = None;
    }
    Ok(())
}
