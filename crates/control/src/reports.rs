//! What an owner should look at: volumes of nobody, and instances that are no
//! longer what they would be made as today.

use std::collections::HashMap;
use std::sync::Arc;

use model::{AccountId, Image, ImageState, Instance, Timestamp, Volume, VolumeState};

use store::Found;

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
        let (policy, newest) = (self.tag_policy(caller), self.newest_images());
        let instances = self.list::<Instance>(caller).into_iter();
        instances
            .filter(|found| !found.record.is_terminated())
            .filter_map(|found| {
                let instance = found.record.clone();
                let mut drift = Vec::new();
                drift.extend(self.image_drift(&instance, &newest));
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

    /// The newest available image of each owner's family.
    fn newest_images(&self) -> Newest {
        let mut newest = Newest::new();
        let available = |i: &Image| i.state == ImageState::Available && i.family.is_some();
        for found in self.view().filter::<Image>(available) {
            let key = (found.record.owner().clone(), found.record.family.clone());
            let known = newest.get(&key);
            if known.is_none_or(|k| k.record.meta.created < found.record.meta.created) {
                newest.insert(key, found);
            }
        }
        newest
    }

    fn image_drift(&self, instance: &Instance, newest: &Newest) -> Option<Drift> {
        let Some(image) = self.view().get::<Image>(&instance.image) else {
            return Some(Drift::ImageGone);
        };
        let key = (image.record.owner().clone(), image.record.family.clone());
        let newer = newest.get(&key)?;
        (newer.record.meta.created > image.record.meta.created).then(|| Drift::NewerImage {
            image: newer.id.clone(),
        })
    }
}

/// Images by their owner and family.
type Newest = HashMap<(AccountId, Option<String>), Arc<Found<Image>>>;
