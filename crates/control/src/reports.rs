//! What an owner should look at: volumes of nobody, and instances that are no
//! longer what they would be made as today.

use model::{Image, ImageState, Instance, Timestamp, Volume, VolumeState};

use crate::{Caller, Owned, Plane};

/// A volume in no instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The volume.
    pub volume: Volume,
    /// Since when nothing was done to it, as far as is known: its making.
    pub since: Timestamp,
}

/// Why an instance is not what it would be made as today.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Its image was removed.
    ImageGone,
    /// Its image has a newer version.
    NewerImage {
        /// Its id.
        image: String,
    },
    /// Its size has other vCPUs or memory now, or is gone.
    Type,
    /// Its tags break the account's policy.
    Tags {
        /// How.
        reason: String,
    },
}

impl Plane {
    /// The account's volumes that are in no instance, the oldest first.
    #[must_use]
    pub fn orphans(&self, caller: &Caller) -> Vec<Orphan> {
        let volumes = self.list::<Volume>(caller).into_iter();
        let mut orphans: Vec<Orphan> = volumes
            .filter(|v| v.record.attachment.is_none() && v.record.state == VolumeState::Available)
            .map(|v| Orphan {
                since: v.record.meta.created,
                volume: v.record.clone(),
            })
            .collect();
        orphans.sort_by_key(|orphan| orphan.since);
        orphans
    }

    /// The account's instances that differ from what they would be made as
    /// today, with all differences.
    #[must_use]
    pub fn drift(&self, caller: &Caller) -> Vec<(Instance, Vec<Drift>)> {
        let policy = self.tag_policy(caller);
        let instances = self.list::<Instance>(caller).into_iter();
        instances
            .filter(|found| !found.record.is_terminated())
            .filter_map(|found| {
                let instance = found.record.clone();
                let mut drift = Vec::new();
                drift.extend(self.image_drift(&instance));
                let size = self.instance_type(&instance.instance_type);
                let same =
                    size.is_ok_and(|s| (s.cpus, s.memory()) == (instance.cpus, instance.memory));
                if !same {
                    drift.push(Drift::Type);
                }
                if let Err(error) = policy.check(&instance.meta.tags) {
                    let reason = error.to_string();
                    drift.push(Drift::Tags { reason });
                }
                (!drift.is_empty()).then_some((instance, drift))
            })
            .collect()
    }

    fn image_drift(&self, instance: &Instance) -> Option<Drift> {
        let Some(image) = self.view().get::<Image>(&instance.image) else {
            return Some(Drift::ImageGone);
        };
        let family = image.record.family.as_ref()?;
        let newer = self.view().filter::<Image>(|other| {
            other.family.as_ref() == Some(family)
                && other.owner() == image.record.owner()
                && other.state == ImageState::Available
                && other.meta.created > image.record.meta.created
        });
        let newest = newer.iter().max_by_key(|i| i.record.meta.created)?;
        let image = newest.id.clone();
        Some(Drift::NewerImage { image })
    }
}
