//! Volumes: CreateVolume, ModifyVolume, AttachVolume, DetachVolume,
//! DeleteVolume.

use model::{
    Attachment, AttachmentState, BlockDevice, Instance, InstanceId, InstanceState, Meta, Quota,
    Rollback, Snapshot, SnapshotId, SnapshotState, Tags, Timestamp, Volume, VolumeId, VolumeKind,
    VolumeState, check_tags,
};

use crate::{Batch, Caller, Kind, Plane, Refusal, Token};

/// A volume to be made.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// Capacity in bytes; that of the snapshot if missing.
    pub size: Option<u64>,
    /// What it holds at first.
    pub snapshot: Option<SnapshotId>,
    /// Kind.
    pub kind: VolumeKind,
    /// Operations each second.
    pub iops: Option<u32>,
    /// MiB each second.
    pub throughput: Option<u32>,
    /// Its zone; the first if missing.
    pub zone: Option<String>,
    /// What its owner writes on it.
    pub tags: Tags,
}

/// An attachment to be made.
#[derive(Clone, Debug)]
pub struct AttachVolume {
    /// What is attached.
    pub volume: VolumeId,
    /// To what.
    pub instance: InstanceId,
    /// Name of its device there; a free one if missing.
    pub device: Option<String>,
    /// It goes with the instance.
    pub delete_on_termination: bool,
}

/// What is to be changed of a volume; `None` leaves it.
#[derive(Clone, Copy, Debug, Default)]
pub struct VolumeChange {
    /// Capacity in bytes, never smaller than it was.
    pub size: Option<u64>,
    /// Kind.
    pub kind: Option<VolumeKind>,
    /// Operations each second.
    pub iops: Option<u32>,
    /// MiB each second.
    pub throughput: Option<u32>,
}

/// Largest volume (CreateVolume): 16 TiB.
const SIZE_MAX: u64 = 16 << 40;
/// Most disks of an instance that can come and go: its hot-plug ports.
pub(crate) const ATTACHED_MAX: usize = 8;

impl Plane {
    /// Asks for a volume.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Quota`], [`Refusal::NotFound`],
    /// [`Refusal::TokenMismatch`].
    pub async fn create_volume(
        &self,
        caller: &Caller,
        new: NewVolume,
        token: Option<&Token>,
    ) -> Result<Volume, Refusal> {
        check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
        let site = self.site()?;
        let zone = new.zone.clone().or_else(|| site.zones.first().cloned());
        let zone = zone.filter(|zone| site.zones.contains(zone));
        let zone = zone.ok_or_else(|| {
            Refusal::not_found(Kind::Zone, new.zone.as_deref().unwrap_or_default())
        })?;
        let _counting = self.counting().await;
        self.transact(|batch| {
            if let Some(made) = self.done(caller, "CreateVolume", token)? {
                let id = made.first().map_or("", String::as_str);
                return Ok(self.own::<Volume>(caller, id)?.record.clone());
            }
            self.required_tags(caller, &new.tags)?;
            let volume = self.volume(batch, caller, &new, &zone)?;
            self.within(&caller.account, Quota::Volumes, 1)?;
            let gib = volume.size.div_ceil(1 << 30);
            self.within(&caller.account, Quota::VolumeGib, gib)?;
            batch.create(volume.id.as_str(), &volume)?;
            let made = vec![volume.id.to_string()];
            batch.note(caller, "CreateVolume", token, made)?;
            batch.tell(
                &caller.account,
                Some(caller),
                "volume-created",
                &volume.id,
                "",
            )?;
            Ok(volume)
        })
        .await
    }

    /// A volume as it is asked for, not yet in the batch.
    pub(crate) fn volume(
        &self,
        batch: &mut Batch,
        caller: &Caller,
        new: &NewVolume,
        zone: &str,
    ) -> Result<Volume, Refusal> {
        let mut least = 1;
        if let Some(id) = &new.snapshot {
            let snapshot = self.find::<Snapshot>(caller, id)?;
            if snapshot.record.state != SnapshotState::Completed || snapshot.record.deleting {
                return Err(Refusal::State {
                    kind: Kind::Snapshot,
                    id: id.to_string(),
                    state: snapshot.record.state.name().into(),
                    wanted: "volumes are made of completed ones",
                });
            }
            batch.unchanged(&snapshot);
            least = snapshot.record.size;
        }
        let missing = Refusal::Missing { field: "size" };
        let size = new.size.or(new.snapshot.as_ref().map(|_| least));
        let size = size.ok_or(missing)?;
        if !(least..=SIZE_MAX).contains(&size) {
            return Err(Refusal::invalid(
                "size",
                format!("a volume has {least} bytes (its snapshot's size) to 16 TiB, not {size}"),
            ));
        }
        check_rates(new.iops, new.throughput)?;
        Ok(Volume {
            id: VolumeId::random(),
            meta: Meta::new(caller.account.clone(), new.tags.clone()),
            size,
            actual_size: 0,
            snapshot: new.snapshot.clone(),
            kind: new.kind,
            iops: new.iops,
            throughput: new.throughput,
            zone: zone.to_owned(),
            attachment: None,
            deleting: false,
            state: VolumeState::Creating,
            rollback: None,
            failure: None,
        })
    }

    /// Changes a volume; its machine, if it runs, sees that at once.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Quota`], [`Refusal::NotFound`].
    pub async fn modify_volume(
        &self,
        caller: &Caller,
        id: &VolumeId,
        change: VolumeChange,
    ) -> Result<Volume, Refusal> {
        check_rates(change.iops, change.throughput)?;
        let _counting = self.counting().await;
        self.own::<Volume>(caller, id)?;
        let changed = self
            .edit::<Volume>(id, |volume, _| {
                let size = change.size.unwrap_or(volume.size);
                if !(volume.size..=SIZE_MAX).contains(&size) {
                    let reason = "a volume can grow, up to 16 TiB, and not shrink";
                    return Err(Refusal::invalid("size", reason));
                }
                let gib = |bytes: u64| bytes.div_ceil(1 << 30);
                let more = gib(size) - gib(volume.size);
                self.within(&caller.account, Quota::VolumeGib, more)?;
                volume.size = size;
                volume.kind = change.kind.unwrap_or(volume.kind);
                volume.iops = change.iops.or(volume.iops);
                volume.throughput = change.throughput.or(volume.throughput);
                Ok(())
            })
            .await?;
        changed.ok_or_else(|| Refusal::not_found(Kind::Volume, id))
    }

    /// Asks for a volume to hold again what a snapshot of it has; what was
    /// written since is lost. Its instance, if it is in one, is stopped.
    ///
    /// # Errors
    /// [`Refusal::State`]: the volume is used, a snapshot of it is being made,
    /// or the snapshot is not complete; [`Refusal::Invalid`]: the snapshot is
    /// of another volume; [`Refusal::NotFound`].
    pub async fn roll_back_volume(
        &self,
        caller: &Caller,
        id: &VolumeId,
        to: &SnapshotId,
    ) -> Result<Volume, Refusal> {
        self.transact(|batch| {
            let volume = self.own::<Volume>(caller, id)?;
            let snapshot = self.own::<Snapshot>(caller, to)?;
            self.may_roll_back(caller, batch, &volume.record, &snapshot.record)?;
            batch.unchanged(&snapshot);
            let mut changed = volume.record.clone();
            changed.rollback = Some(Rollback {
                snapshot: to.clone(),
                token: SnapshotId::random().to_string(),
            });
            batch.replace(&volume, &changed)?;
            let stage = format!("going back to {to}");
            batch.begin(&caller.account, "volume-rollback", id, &stage)?;
            Ok(changed)
        })
        .await
    }

    fn may_roll_back(
        &self,
        caller: &Caller,
        batch: &mut Batch,
        volume: &Volume,
        snapshot: &Snapshot,
    ) -> Result<(), Refusal> {
        if snapshot.volume.as_ref() != Some(&volume.id) {
            let reason = format!("{} is not a snapshot of {}", snapshot.id, volume.id);
            return Err(Refusal::invalid("snapshot_id", reason));
        }
        if snapshot.state != SnapshotState::Completed || snapshot.deleting {
            return Err(Refusal::State {
                kind: Kind::Snapshot,
                id: snapshot.id.to_string(),
                state: snapshot.state.name().into(),
                wanted: "volumes go back to completed ones",
            });
        }
        let wrong = |state: &str, wanted| Refusal::State {
            kind: Kind::Volume,
            id: volume.id.to_string(),
            state: state.into(),
            wanted,
        };
        if volume.deleting || volume.actual_size == 0 {
            return Err(wrong(volume.state.name(), "it is not available"));
        }
        let pending = |other: &Snapshot| {
            other.volume.as_ref() == Some(&volume.id) && other.state == SnapshotState::Pending
        };
        if self.view().any::<Snapshot>(pending) {
            return Err(wrong("being copied to a snapshot", "wait for that"));
        }
        if let Some(attachment) = &volume.attachment {
            let instance = self.own::<Instance>(caller, &attachment.instance)?;
            if instance.record.state != InstanceState::Stopped {
                return Err(wrong("in use", "stop its instance, or detach it"));
            }
            batch.unchanged(&instance);
        }
        Ok(())
    }

    /// Asks for a volume to be put into an instance, running or stopped.
    ///
    /// # Errors
    /// [`Refusal::State`], [`Refusal::InUse`], [`Refusal::Invalid`],
    /// [`Refusal::NotFound`].
    pub async fn attach_volume(
        &self,
        caller: &Caller,
        new: AttachVolume,
    ) -> Result<Attachment, Refusal> {
        self.transact(|batch| {
            let volume = self.own::<Volume>(caller, &new.volume)?;
            let instance = self.own::<Instance>(caller, &new.instance)?;
            if let Some(other) = &volume.record.attachment {
                return Err(Refusal::InUse {
                    kind: Kind::Volume,
                    id: new.volume.to_string(),
                    by: other.instance.to_string(),
                });
            }
            if volume.record.state != VolumeState::Available || volume.record.deleting {
                return Err(Refusal::State {
                    kind: Kind::Volume,
                    id: new.volume.to_string(),
                    state: volume.record.state.name().into(),
                    wanted: "one that is available can be attached",
                });
            }
            settled(&instance.record)?;
            let device = free_device(&instance.record, new.device.as_deref())?;
            let attachment = Attachment {
                instance: new.instance.clone(),
                device: device.clone(),
                delete_on_termination: new.delete_on_termination,
                since: Timestamp::now(),
                detaching: false,
                force: false,
                state: AttachmentState::Attaching,
            };
            let mut with = instance.record.clone();
            with.disks.push(BlockDevice {
                device,
                volume: new.volume.clone(),
                delete_on_termination: new.delete_on_termination,
            });
            batch.replace(&instance, &with)?;
            let mut attached = volume.record.clone();
            attached.state = VolumeState::InUse;
            attached.attachment = Some(attachment.clone());
            batch.replace(&volume, &attached)?;
            Ok(attachment)
        })
        .await
    }

    /// Asks for a volume to be taken out of its instance; its guest may take
    /// its time, unless it is forced.
    ///
    /// # Errors
    /// [`Refusal::State`]: it is in none, or it is a root disk of one that
    /// runs; [`Refusal::NotFound`].
    pub async fn detach_volume(
        &self,
        caller: &Caller,
        id: &VolumeId,
        from: Option<&InstanceId>,
        force: bool,
    ) -> Result<Attachment, Refusal> {
        self.transact(|batch| {
            let volume = self.own::<Volume>(caller, id)?;
            let wrong = |state: String, wanted| Refusal::State {
                kind: Kind::Volume,
                id: id.to_string(),
                state,
                wanted,
            };
            let mut changed = volume.record.clone();
            let attached = changed.attachment.as_mut();
            let attached = attached.filter(|a| from.is_none_or(|from| a.instance == *from));
            let Some(attached) = attached else {
                let state = volume.record.state.name().to_owned();
                return Err(wrong(state, "it is not attached to that instance"));
            };
            let instance = self.own::<Instance>(caller, &attached.instance)?;
            let root = instance.record.root_device == attached.device;
            if root && instance.record.state != InstanceState::Stopped {
                let state = "the root disk of an instance that is not stopped".into();
                return Err(wrong(state, "stop the instance first"));
            }
            attached.detaching = true;
            attached.force |= force;
            attached.state = AttachmentState::Detaching;
            let attachment = attached.clone();
            batch.unchanged(&instance);
            batch.replace(&volume, &changed)?;
            Ok(attachment)
        })
        .await
    }

    /// Asks for the removal of a volume that is in no instance.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotFound`].
    pub async fn delete_volume(&self, caller: &Caller, id: &VolumeId) -> Result<(), Refusal> {
        self.own::<Volume>(caller, id)?;
        self.edit::<Volume>(id, |volume, batch| {
            if let Some(attachment) = &volume.attachment {
                return Err(Refusal::InUse {
                    kind: Kind::Volume,
                    id: id.to_string(),
                    by: attachment.instance.to_string(),
                });
            }
            if !volume.deleting {
                let account = volume.meta.account.clone();
                batch.tell(&account, Some(caller), "volume-deleted", id, "")?;
            }
            volume.deleting = true;
            volume.state = VolumeState::Deleting;
            Ok(())
        })
        .await
        .map(drop)
    }
}

fn check_rates(iops: Option<u32>, throughput: Option<u32>) -> Result<(), Refusal> {
    if iops.is_some_and(|iops| !(100..=256_000).contains(&iops)) {
        let reason = "a volume does 100 to 256000 operations each second";
        return Err(Refusal::invalid("iops", reason));
    }
    if throughput.is_some_and(|mib| !(1..=4000).contains(&mib)) {
        let reason = "a volume moves 1 to 4000 MiB each second";
        return Err(Refusal::invalid("throughput", reason));
    }
    Ok(())
}

/// Refuses an instance whose disks cannot be changed at this moment.
fn settled(instance: &Instance) -> Result<(), Refusal> {
    match instance.state {
        InstanceState::Running | InstanceState::Stopped => Ok(()),
        state => Err(Refusal::State {
            kind: Kind::Instance,
            id: instance.id.to_string(),
            state: state.name().into(),
            wanted: "volumes are attached to one that is running or stopped",
        }),
    }
}

fn free_device(instance: &Instance, wanted: Option<&str>) -> Result<String, Refusal> {
    if instance.disks.len() > ATTACHED_MAX {
        return Err(Refusal::invalid(
            "instance_id",
            format!(
                "{} has {ATTACHED_MAX} attached volumes, and takes no more",
                instance.id
            ),
        ));
    }
    let taken = |device: &str| instance.disks.iter().any(|disk| disk.device == device);
    match wanted {
        Some(device) if taken(device) => Err(Refusal::invalid(
            "device",
            format!("{device} is taken in {}", instance.id),
        )),
        Some(device) => {
            check_device(device)?;
            Ok(device.to_owned())
        }
        None => ('f'..='p')
            .map(|letter| format!("/dev/sd{letter}"))
            .find(|device| !taken(device))
            .ok_or_else(|| Refusal::invalid("device", "no name is free; give one")),
    }
}

/// Refuses what is not the name of a device.
pub(crate) fn check_device(device: &str) -> Result<(), Refusal> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let good = (2..=24).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    match good {
        true => Ok(()),
        false => Err(Refusal::invalid(
            "device",
            "a device's name is as /dev/sdf or xvdf",
        )),
    }
}
