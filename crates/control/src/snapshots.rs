//! Snapshots: CreateSnapshot, DeleteSnapshot; and what is imported.

use model::{
    Image, Meta, Quota, Snapshot, SnapshotId, SnapshotState, Tags, Timestamp, Volume, VolumeId,
    VolumeState, check_tags,
};

use crate::{Batch, Caller, Kind, Plane, Refusal};

/// A snapshot to be made.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// Of what.
    pub volume: VolumeId,
    /// What its owner says of it.
    pub description: String,
    /// What its owner writes on it.
    pub tags: Tags,
}

impl Plane {
    /// Asks for a snapshot of a volume, in use or not.
    ///
    /// # Errors
    /// [`Refusal::State`], [`Refusal::Quota`], [`Refusal::NotFound`].
    pub async fn create_snapshot(
        &self,
        caller: &Caller,
        new: NewSnapshot,
    ) -> Result<Snapshot, Refusal> {
        check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
        let _counting = self.counting().await;
        self.transact(|batch| {
            self.within(&caller.account, Quota::Snapshots, 1)?;
            let volume = self.own::<Volume>(caller, &new.volume)?;
            let snapshot = snapshot_of(batch, caller, &volume.record, new.tags.clone())?;
            let snapshot = Snapshot {
                description: new.description.clone(),
                ..snapshot
            };
            batch.put(snapshot.id.as_str(), &snapshot)?;
            let stage = format!("copying {}", new.volume);
            batch.begin(&caller.account, "snapshot", &snapshot.id, &stage)?;
            Ok(snapshot)
        })
        .await
    }

    /// Takes in a disk's content that is in the image library already.
    ///
    /// # Errors
    /// [`Refusal::Quota`], the store's.
    pub async fn adopt_snapshot(
        &self,
        caller: &Caller,
        content: &str,
        size: u64,
        stored: u64,
        description: &str,
    ) -> Result<Snapshot, Refusal> {
        let _counting = self.counting().await;
        self.transact(|batch| {
            self.within(&caller.account, Quota::Snapshots, 1)?;
            let now = Timestamp::now();
            let snapshot = Snapshot {
                id: SnapshotId::random(),
                meta: Meta::new(caller.account.clone(), Tags::new()),
                volume: None,
                size,
                description: description.to_owned(),
                content: Some(content.to_owned()),
                stored,
                public: false,
                deleting: false,
                state: SnapshotState::Completed,
                progress: 100,
                completed: Some(now),
                failure: None,
            };
            batch.create(snapshot.id.as_str(), &snapshot)?;
            Ok(snapshot)
        })
        .await
    }

    /// Asks for the removal of a snapshot that no image needs. Volumes made of
    /// it keep what they have.
    ///
    /// # Errors
    /// [`Refusal::InUse`], [`Refusal::NotFound`].
    pub async fn delete_snapshot(&self, caller: &Caller, id: &SnapshotId) -> Result<(), Refusal> {
        self.own::<Snapshot>(caller, id)?;
        self.edit::<Snapshot>(id, |snapshot, batch| {
            let uses = |i: &Image| i.disks.iter().any(|d| d.snapshot.as_ref() == Some(id));
            if let Some(image) = self.view().filter::<Image>(uses).first() {
                return Err(Refusal::InUse {
                    kind: Kind::Snapshot,
                    id: id.to_string(),
                    by: image.id.clone(),
                });
            }
            let goes_back = |v: &Volume| v.rollback.as_ref().is_some_and(|r| r.snapshot == *id);
            if let Some(volume) = self.view().filter::<Volume>(goes_back).first() {
                return Err(Refusal::InUse {
                    kind: Kind::Snapshot,
                    id: id.to_string(),
                    by: volume.id.clone(),
                });
            }
            if !snapshot.deleting {
                let account = snapshot.meta.account.clone();
                batch.tell(&account, Some(caller), "snapshot-deleted", id, "")?;
            }
            snapshot.deleting = true;
            Ok(())
        })
        .await
        .map(drop)
    }
}

/// A snapshot that is still to be made, with its place in the batch.
pub(crate) fn snapshot_of(
    batch: &mut Batch,
    caller: &Caller,
    volume: &Volume,
    tags: Tags,
) -> Result<Snapshot, Refusal> {
    if volume.deleting || !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
        return Err(Refusal::State {
            kind: Kind::Volume,
            id: volume.id.to_string(),
            state: volume.state.name().into(),
            wanted: "a snapshot is made of one that is available or in use",
        });
    }
    if volume.rollback.is_some() {
        return Err(Refusal::State {
            kind: Kind::Volume,
            id: volume.id.to_string(),
            state: "going back to a snapshot".into(),
            wanted: "ask again when that is done",
        });
    }
    let snapshot = Snapshot {
        id: SnapshotId::random(),
        meta: Meta::new(caller.account.clone(), tags),
        volume: Some(volume.id.clone()),
        size: volume.size,
        description: String::new(),
        content: None,
        stored: 0,
        public: false,
        deleting: false,
        state: SnapshotState::Pending,
        progress: 0,
        completed: None,
        failure: None,
    };
    batch.create(snapshot.id.as_str(), &snapshot)?;
    Ok(snapshot)
}
