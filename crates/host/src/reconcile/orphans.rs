//! What is on the host and belongs to nobody.

use std::collections::HashMap;
use std::time::Duration;

use model::{Instance, Volume, Vpc};

use super::Reconciler;
use crate::queue::Key;
use tokio::time::Instant;

/// Between two looks, at most.
const PERIOD: Duration = Duration::from_secs(600);
/// And at least.
const LEAST: Duration = Duration::from_secs(1);

impl Reconciler {
    /// Looks at once and then again and again for what has no
    /// record. A record is written before anything is made on the host, and
    /// removed after it is gone: what has none was left by a host that lost
    /// its store's last words, or by a restored backup. Machines and
    /// networks go at once; volumes, which may hold what somebody misses, after a time.
    pub(super) async fn remove_orphans(&self) {
        let mut volumes: HashMap<String, Instant> = HashMap::new();
        loop {
            match self.driver.inventory().await {
                Err(error) => tracing::error!(%error, "looking for orphans"),
                Ok(inventory) => {
                    let view = self.plane.view();
                    let mut machines = inventory.machines;
                    machines.retain(|id| view.get::<Instance>(id).is_none());
                    for id in machines {
                        tracing::warn!(machine = id, "removing a machine of nobody");
                        self.queue.add(Key::Instance(id));
                    }
                    let mut networks = inventory.networks;
                    networks.retain(|id| view.get::<Vpc>(id).is_none());
                    for id in networks {
                        tracing::warn!(network = id, "removing a network of nobody");
                        self.queue.add(Key::Network(id));
                    }
                    let mut seen = inventory.volumes;
                    seen.retain(|id| view.get::<Volume>(id).is_none());
                    volumes.retain(|id, _| seen.contains(id));
                    seen.into_iter()
                        .for_each(|id| self.orphan_volume(&mut volumes, id));
                }
            }
            tokio::time::sleep(PERIOD.min(self.patience.orphans_kept / 2 + LEAST)).await;
        }
    }

    fn orphan_volume(&self, volumes: &mut HashMap<String, Instant>, id: String) {
        let known = volumes.contains_key(&id);
        let since = *volumes.entry(id.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= self.patience.orphans_kept {
            tracing::warn!(volume = id, "removing a volume of nobody");
            volumes.remove(&id);
            self.queue.add(Key::Volume(id));
        } else if !known {
            tracing::warn!(
                volume = id,
                kept_seconds = self.patience.orphans_kept.as_secs(),
                "a volume of nobody; it is removed after a time"
            );
        }
    }
}
