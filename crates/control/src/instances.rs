//! Instances that exist: Start-, Stop-, Reboot- and TerminateInstances,
//! ModifyInstanceAttribute; and the steps that crate `host` reports.

use model::{
    Base64, Claim, Desired, Instance, InstanceId, InstanceState, Quota, SecurityGroup,
    SecurityGroupId, ShutdownBehavior, Timestamp, USER_DATA_MAX, Volume, VolumeState,
};

use crate::subnets::address;
use crate::{Batch, Caller, Kind, Plane, Refusal};

/// What a request did to an instance's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Which.
    pub id: InstanceId,
    /// Its state before.
    pub before: InstanceState,
    /// Its state now.
    pub now: InstanceState,
}

/// What is to be changed of an instance; `None` leaves it.
#[derive(Clone, Debug, Default)]
pub struct InstanceChange {
    /// Name of its size; it must be stopped.
    pub instance_type: Option<String>,
    /// What its cloud-init is told; it must be stopped.
    pub user_data: Option<Vec<u8>>,
    /// Groups of its first card.
    pub groups: Option<Vec<SecurityGroupId>>,
    /// It cannot be terminated.
    pub termination_protection: Option<bool>,
    /// It cannot be stopped.
    pub stop_protection: Option<bool>,
    /// What its own power-off means.
    pub shutdown_behavior: Option<ShutdownBehavior>,
    /// Its first card sends and takes only what is of its own addresses.
    pub source_dest_check: Option<bool>,
    /// How its metadata are served.
    pub metadata_options: Option<model::MetadataOptions>,
    /// When it goes by itself; `Some(None)`: never.
    pub expires: Option<Option<Timestamp>>,
    /// Whether disks go with it, by device.
    pub delete_on_termination: Vec<(String, bool)>,
}

impl Plane {
    /// Starts instances that are stopped, all or none.
    ///
    /// # Errors
    /// [`Refusal::State`], [`Refusal::Quota`], [`Refusal::NotFound`].
    pub async fn start_instances(
        &self,
        caller: &Caller,
        ids: &[InstanceId],
    ) -> Result<Vec<Transition>, Refusal> {
        let _counting = self.counting().await;
        self.transition(caller, ids, |plane, batch, instance| match instance.state {
            InstanceState::Stopped => {
                let account = &instance.meta.account.clone();
                plane.within(account, Quota::Cpus, u64::from(instance.cpus))?;
                plane.within(account, Quota::MemoryMib, instance.memory >> 20)?;
                instance.desired = Desired::Running;
                instance.force = false;
                instance.launched = Some(Timestamp::now());
                enter(instance, InstanceState::Pending);
                instance.state_reason = None;
                batch.tell(
                    account,
                    Some(caller),
                    "instance-start-asked-for",
                    &instance.id,
                    "",
                )
            }
            InstanceState::Pending | InstanceState::Running => Ok(()),
            _ => Err(state(instance, "only a stopped one can be started")),
        })
        .await
    }

    /// Stops instances: by their power buttons, or at once with `force`.
    ///
    /// # Errors
    /// [`Refusal::State`], [`Refusal::Protected`], [`Refusal::NotFound`].
    pub async fn stop_instances(
        &self,
        caller: &Caller,
        ids: &[InstanceId],
        force: bool,
    ) -> Result<Vec<Transition>, Refusal> {
        self.transition(caller, ids, |_, batch, instance| match instance.state {
            InstanceState::Running | InstanceState::Pending | InstanceState::Stopping => {
                if instance.stop_protection {
                    return Err(protected(instance, "stopping it"));
                }
                instance.desired = Desired::Stopped;
                instance.force |= force;
                enter(instance, InstanceState::Stopping);
                user_initiated(instance);
                let account = &instance.meta.account;
                batch.tell(
                    account,
                    Some(caller),
                    "instance-stop-asked-for",
                    &instance.id,
                    "",
                )
            }
            InstanceState::Stopped => Ok(()),
            _ => Err(state(instance, "only a running one can be stopped")),
        })
        .await
    }

    /// Restarts the guests of running instances.
    ///
    /// # Errors
    /// [`Refusal::State`], [`Refusal::NotFound`].
    pub async fn reboot_instances(
        &self,
        caller: &Caller,
        ids: &[InstanceId],
    ) -> Result<(), Refusal> {
        let done = self.transition(caller, ids, |_, batch, instance| match instance.state {
            InstanceState::Running | InstanceState::Pending => {
                instance.reboots_wanted += 1;
                let account = &instance.meta.account;
                batch.tell(
                    account,
                    Some(caller),
                    "instance-reboot-asked-for",
                    &instance.id,
                    "",
                )
            }
            _ => Err(state(instance, "only a running one can be rebooted")),
        });
        done.await.map(drop)
    }

    /// Terminates instances: they and their disks that go with them are gone
    /// for good.
    ///
    /// # Errors
    /// [`Refusal::Protected`], [`Refusal::NotFound`].
    pub async fn terminate_instances(
        &self,
        caller: &Caller,
        ids: &[InstanceId],
    ) -> Result<Vec<Transition>, Refusal> {
        self.transition(caller, ids, |_, batch, instance| {
            if matches!(
                instance.state,
                InstanceState::Terminated | InstanceState::ShuttingDown
            ) {
                return Ok(());
            }
            if instance.termination_protection {
                return Err(protected(instance, "terminating it"));
            }
            instance.desired = Desired::Terminated;
            enter(instance, InstanceState::ShuttingDown);
            user_initiated(instance);
            let account = &instance.meta.account;
            batch.tell(
                account,
                Some(caller),
                "instance-terminate-asked-for",
                &instance.id,
                "",
            )
        })
        .await
    }

    async fn transition(
        &self,
        caller: &Caller,
        ids: &[InstanceId],
        mut change: impl FnMut(&Self, &mut Batch, &mut Instance) -> Result<(), Refusal>,
    ) -> Result<Vec<Transition>, Refusal> {
        if ids.len() > 40 {
            let reason = "at most 40 instances at once";
            return Err(Refusal::invalid("instance_id", reason));
        }
        self.transact(|batch| {
            let mut transitions: Vec<Transition> = Vec::new();
            for id in ids {
                if transitions.iter().any(|other| other.id == *id) {
                    continue;
                }
                let found = self.own::<Instance>(caller, id)?;
                let mut instance = found.record.clone();
                change(self, batch, &mut instance)?;
                transitions.push(Transition {
                    id: id.clone(),
                    before: found.record.state,
                    now: instance.state,
                });
                if instance != found.record {
                    batch.replace(&found, &instance)?;
                }
            }
            Ok(transitions)
        })
        .await
    }

    /// Changes an instance.
    ///
    /// # Errors
    /// [`Refusal::State`]: it must be stopped for that; [`Refusal::Invalid`],
    /// [`Refusal::NotFound`].
    pub async fn modify_instance(
        &self,
        caller: &Caller,
        id: &InstanceId,
        change: InstanceChange,
    ) -> Result<(), Refusal> {
        self.own::<Instance>(caller, id)?;
        self.edit::<Instance>(id, |instance, batch| {
            let stopped = instance.state == InstanceState::Stopped;
            if (change.instance_type.is_some() || change.user_data.is_some()) && !stopped {
                return Err(state(instance, "stop it first"));
            }
            if let Some(name) = &change.instance_type {
                let size = self.instance_type(name)?;
                instance.instance_type = size.name.clone().into_owned();
                instance.cpus = size.cpus;
                instance.memory = size.memory();
            }
            if let Some(data) = &change.user_data {
                if data.len() > USER_DATA_MAX {
                    let reason = model::Invalid::UserData(data.len());
                    return Err(Refusal::invalid("user_data", reason));
                }
                instance.user_data = Base64(data.clone());
            }
            if let Some(groups) = &change.groups {
                self.regroup(batch, caller, instance, groups)?;
            }
            let set = |to: &mut bool, from: Option<bool>| *to = from.unwrap_or(*to);
            set(
                &mut instance.termination_protection,
                change.termination_protection,
            );
            set(&mut instance.stop_protection, change.stop_protection);
            if let Some(card) = instance.interfaces.first_mut() {
                set(&mut card.source_dest_check, change.source_dest_check);
            }
            if let Some(behavior) = change.shutdown_behavior {
                instance.shutdown_behavior = behavior;
            }
            if let Some(options) = &change.metadata_options {
                instance.metadata_options = options.clone();
            }
            if let Some(expires) = change.expires {
                instance.expires = expires;
            }
            for (device, delete) in &change.delete_on_termination {
                let disk = instance.disks.iter_mut().find(|d| d.device == *device);
                let disk = disk.ok_or_else(|| {
                    Refusal::invalid("block_device_mapping", format!("{id} has no {device}"))
                })?;
                disk.delete_on_termination = *delete;
                if let Some(volume) = self.view().get::<Volume>(&disk.volume) {
                    let mut changed = volume.record.clone();
                    if let Some(attachment) = &mut changed.attachment {
                        attachment.delete_on_termination = *delete;
                        batch.replace(&volume, &changed)?;
                    }
                }
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    fn regroup(
        &self,
        batch: &mut Batch,
        caller: &Caller,
        instance: &mut Instance,
        groups: &[SecurityGroupId],
    ) -> Result<(), Refusal> {
        if groups.is_empty() {
            return Err(Refusal::Missing {
                field: "security_group_id",
            });
        }
        let vpc = instance.vpc().cloned();
        for id in groups {
            let group = self.own::<SecurityGroup>(caller, id)?;
            if Some(&group.record.vpc) != vpc.as_ref() {
                let reason = format!("{id} is in another network");
                return Err(Refusal::invalid("security_group_id", reason));
            }
            batch.present::<SecurityGroup>(id.as_str());
        }
        if let Some(card) = instance.interfaces.first_mut() {
            card.groups = groups.to_vec();
        }
        Ok(())
    }

    /// Notes that an instance's machine and files are gone: its addresses are
    /// free, its volumes go or are free. The last step of a termination.
    ///
    /// # Errors
    /// The store's.
    pub async fn instance_gone(&self, id: &InstanceId) -> Result<(), Refusal> {
        self.edit::<Instance>(id, |instance, batch| {
            if instance.state == InstanceState::Terminated {
                return Ok(());
            }
            for card in &instance.interfaces {
                batch.discard::<Claim>(&address(&card.subnet, card.private_ip));
                if let Some(ip) = card.public_ip {
                    self.let_go(batch, ip)?;
                }
            }
            for disk in &instance.disks {
                let Some(found) = self.view().get::<Volume>(&disk.volume) else {
                    continue;
                };
                let mut volume = found.record.clone();
                if volume.attachment.as_ref().is_none_or(|a| a.instance != *id) {
                    continue;
                }
                volume.attachment = None;
                match disk.delete_on_termination || volume.actual_size == 0 {
                    true => {
                        volume.deleting = true;
                        volume.state = VolumeState::Deleting;
                    }
                    false => volume.state = VolumeState::Available,
                }
                batch.replace(&found, &volume)?;
            }
            if let Some(card) = instance.interfaces.first_mut() {
                card.public_ip = None;
            }
            instance.disks.clear();
            enter(instance, InstanceState::Terminated);
            let account = instance.meta.account.clone();
            batch.tell(&account, None, "instance-terminated", id, "")
        })
        .await
        .map(drop)
    }

    /// Forgets instances that were terminated before this moment.
    ///
    /// # Errors
    /// The store's.
    pub async fn forget_terminated(&self, before: Timestamp) -> Result<usize, Refusal> {
        let gone = |i: &Instance| i.is_terminated() && i.state_since < before;
        let old = self.view().filter::<Instance>(gone);
        for some in old.chunks(90) {
            self.transact(|batch| {
                some.iter()
                    .for_each(|instance| batch.discard::<Instance>(&instance.id));
                Ok(())
            })
            .await?;
        }
        Ok(old.len())
    }
}

/// Puts an instance into a state, if it is not in it.
pub(crate) fn enter(instance: &mut Instance, state: InstanceState) {
    if instance.state != state {
        instance.state = state;
        instance.state_since = Timestamp::now();
    }
}

fn user_initiated(instance: &mut Instance) {
    instance.state_reason = Some(model::StateReason {
        code: "Client.UserInitiatedShutdown".into(),
        message: "Client.UserInitiatedShutdown: User initiated shutdown".into(),
    });
}

fn state(instance: &Instance, wanted: &'static str) -> Refusal {
    Refusal::State {
        kind: Kind::Instance,
        id: instance.id.to_string(),
        state: instance.state.name().into(),
        wanted,
    }
}

fn protected(instance: &Instance, what: &'static str) -> Refusal {
    Refusal::Protected {
        id: instance.id.to_string(),
        what,
    }
}
