//! Machines' network cards are told what changes in their networks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use model::{Instance, InstanceState, Vpc, VpcId};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Reconciler;
use crate::ports::{Concerned, Network, concerned};

/// Changes that come together are told together.
const GATHER: Duration = Duration::from_millis(50);
/// Cards that could not be told are told again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// The share of time that may go into this: a round that took long is followed
/// by so many times its length without one.
const REST: u32 = 4;
/// Machines that are told at once.
const AT_ONCE: usize = 16;

/// What cards were told last, by instance: the start of the machine, and the
/// fingerprints of what its cards know.
pub(super) type Told = HashMap<String, (u64, Vec<u64>)>;

impl Reconciler {
    /// Tells cards for as long as it is polled.
    pub(super) async fn tell_cards(self: Arc<Self>) {
        let mut changes = self.plane.view().changes();
        let mut dirty = self.all_networks();
        loop {
            while dirty.is_empty() {
                match changes.recv().await {
                    Ok(changed) => self.mark(&mut dirty, &changed.kind, &changed.id),
                    Err(RecvError::Lagged(_)) => dirty = self.all_networks(),
                    Err(RecvError::Closed) => return,
                }
            }
            tokio::time::sleep(GATHER).await;
            loop {
                match changes.try_recv() {
                    Ok(changed) => self.mark(&mut dirty, &changed.kind, &changed.id),
                    Err(tokio::sync::broadcast::error::TryRecvError::Lagged(_)) => {
                        dirty = self.all_networks();
                    }
                    Err(_) => break,
                }
            }
            let start = Instant::now();
            let mut left = HashSet::new();
            for vpc in dirty.drain() {
                if !self.clone().tell_network(&vpc).await {
                    left.insert(vpc);
                }
            }
            let rest = start.elapsed().saturating_mul(REST);
            let rest = match left.is_empty() {
                true => rest,
                false => rest.max(AGAIN),
            };
            dirty = left;
            tokio::time::sleep(rest).await;
        }
    }

    fn all_networks(&self) -> HashSet<VpcId> {
        let all = self.plane.view().all::<Vpc>();
        all.iter().map(|vpc| vpc.record.id.clone()).collect()
    }

    fn mark(&self, dirty: &mut HashSet<VpcId>, kind: &str, id: &str) {
        match concerned(self.plane.view(), kind, id) {
            Concerned::None => {}
            Concerned::One(vpc) => drop(dirty.insert(vpc)),
            Concerned::All => dirty.extend(self.all_networks()),
        }
    }

    /// Whether all its running machines know.
    async fn tell_network(self: Arc<Self>, vpc: &VpcId) -> bool {
        if !self.driver.takes_ports() {
            return true;
        }
        let Some(network) = Network::of(&self.plane, vpc) else {
            return true;
        };
        let network = Arc::new(network);
        let runs = |i: &Instance| i.state == InstanceState::Running && i.vpc() == Some(vpc);
        let running = self.plane.view().filter::<Instance>(runs);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut telling = JoinSet::new();
        for found in running {
            let (number, prints) = self.prints(&network, &found.record);
            let id = found.id.clone();
            if self.told.lock().get(&id) == Some(&(number, prints.clone())) {
                continue;
            }
            let Ok(place) = places.clone().acquire_owned().await else {
                return false;
            };
            let (this, network) = (self.clone(), network.clone());
            telling.spawn(async move {
                let _place = place;
                let told = this.tell_machine(&network, &found.record).await;
                if told {
                    this.told.lock().insert(id, (number, prints));
                }
                told
            });
        }
        telling.join_all().await.into_iter().all(|told| told)
    }

    fn prints(&self, network: &Network, instance: &Instance) -> (u64, Vec<u64>) {
        let cards = instance.interfaces.iter();
        let prints = cards.map(|card| network.fingerprint(instance, card));
        (instance.machine.unwrap_or_default(), prints.collect())
    }

    async fn tell_machine(&self, network: &Network, instance: &Instance) -> bool {
        let id = instance.id.as_str();
        for (index, card) in instance.interfaces.iter().enumerate() {
            let Some(port) = network.port(&self.layout, instance, card) else {
                continue;
            };
            if let Err(error) = self.driver.configure_nic(id, index, &port).await {
                tracing::warn!(instance = id, %error, "a network card was not told");
                return false;
            }
        }
        true
    }
}
