//! What an owner should look at: volumes of nobody, instances that are no
//! longer what they would be made as today, and how long images take to boot.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use model::{AccountId, Image, ImageId, ImageState, Instance, Timestamp, Volume, VolumeState};

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

/// How long an image's instances take from their start to a guest that is up.
/// Counted is the last start of each instance that is known, also of those
/// that are terminated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootTimes {
    /// The image.
    pub image: ImageId,
    /// Boots that came to their end.
    pub boots: usize,
    /// Boots in which something failed.
    pub failed: usize,
    /// The time that half of the boots kept; zero without any.
    pub p50: Duration,
    /// The time that 99 in 100 boots kept; zero without any.
    pub p99: Duration,
}

/// The boot times of instances, by their images.
#[must_use]
pub fn boot_times(instances: &[Arc<Found<Instance>>]) -> Vec<BootTimes> {
    let mut images: BTreeMap<&ImageId, (Vec<Duration>, usize)> = BTreeMap::new();
    for Found { record, .. } in instances.iter().map(AsRef::as_ref) {
        let (times, failed) = images.entry(&record.image).or_default();
        *failed += usize::from(record.boot.failure.is_some());
        if let (Some(began), Some(ready)) = (record.launched, record.boot.ready) {
            times.push(ready.since(began));
        }
    }
    let known = images
        .into_iter()
        .filter(|(_, (times, failed))| !times.is_empty() || *failed > 0);
    known
        .map(|(image, (mut times, failed))| {
            times.sort_unstable();
            BootTimes {
                image: image.clone(),
                boots: times.len(),
                failed,
                p50: nearest_rank(&times, 50),
                p99: nearest_rank(&times, 99),
            }
        })
        .collect()
}

/// The smallest of these ordered times that so many in 100 do not exceed.
fn nearest_rank(times: &[Duration], percent: usize) -> Duration {
    let rank = (times.len() * percent).div_ceil(100);
    let found = times.get(rank.saturating_sub(1));
    found.copied().unwrap_or_default()
}

impl Plane {
    /// How long the account's instances take to boot, by their images.
    #[must_use]
    pub fn boot_times(&self, caller: &Caller) -> Vec<BootTimes> {
        boot_times(&self.list::<Instance>(caller))
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let times = |n: u64| (1..=n).map(Duration::from_secs).collect::<Vec<_>>();
        let both = |n: u64| [50, 99].map(|p| nearest_rank(&times(n), p).as_secs());
        assert_eq!(both(0), [0, 0]);
        assert_eq!(both(1), [1, 1]);
        assert_eq!(both(2), [1, 2]);
        assert_eq!(both(100), [50, 99]);
        assert_eq!(both(200), [100, 198]);
    }
}
