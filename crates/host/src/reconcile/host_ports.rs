//! The host's own ports in networks: there where instances run.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use machine_protocol::host_port::{HostPortStatus, Redirect};
use model::{Instance, InstanceState, Vpc};
use store::Record;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Reconciler, StepError};

/// Between two looks at the processes, unless an instance changes.
const PERIOD: Duration = Duration::from_secs(5);
/// Until a port that was just made is looked at.
const SOON: Duration = Duration::from_millis(500);

/// What was told last of each port.
type Told = HashMap<String, HostPortStatus>;

impl Reconciler {
    /// Keeps the ports for as long as it is polled. Without the privilege, or
    /// where none are wanted, only those of a former daemon are removed.
    pub(super) async fn keep_host_ports(self: Arc<Self>) {
        let mut changes = self.plane.view().changes();
        let mut told = Told::new();
        loop {
            let pause = match self.host_ports(&mut told).await {
                Ok(true) => PERIOD,
                Ok(false) => SOON,
                Err(error) => {
                    tracing::warn!(%error, "the host's ports in networks");
                    PERIOD
                }
            };
            if !self.driver.has_host_ports() || !changed_or(pause, &mut changes).await {
                return;
            }
        }
    }

    /// One look; whether all ports have said what they are.
    async fn host_ports(&self, told: &mut Told) -> Result<bool, StepError> {
        let wanted = self.wanted_ports();
        for network in self.driver.host_ports().await? {
            if !wanted.contains_key(&network) {
                self.driver.remove_host_port(&network).await?;
                told.remove(&network);
            }
        }
        let mut all = true;
        for (network, block) in wanted {
            let status = self.driver.ensure_host_port(&network, block).await?;
            let displaced = self.displaced_ports(&network).await?;
            self.driver.redirect(&network, displaced).await?;
            match status {
                Some(status) => self.tell_port(told, network, status).await?,
                None => all = false,
            }
        }
        Ok(all)
    }

    fn wanted_ports(&self) -> BTreeMap<String, Ipv4Net> {
        let mut wanted = BTreeMap::new();
        if !self.driver.has_host_ports() {
            return wanted;
        }
        let view = self.plane.view();
        let runs =
            |i: &Instance| !matches!(i.state, InstanceState::Terminated | InstanceState::Stopped);
        for instance in view.filter::<Instance>(runs) {
            let vpc = instance
                .record
                .vpc()
                .filter(|id| !wanted.contains_key(id.as_str()));
            if let Some(vpc) = vpc.and_then(|id| view.get::<Vpc>(id)) {
                wanted.insert(vpc.id.clone(), vpc.record.cidr);
            }
        }
        wanted
    }

    /// Of all running machines of a network.
    async fn displaced_ports(&self, network: &str) -> Result<Vec<Redirect>, StepError> {
        let runs = |i: &Instance| {
            let here = i.vpc().is_some_and(|vpc| vpc.as_str() == network);
            here && i.state == InstanceState::Running && i.public_ip().is_some()
        };
        let mut displaced = Vec::new();
        for instance in self.plane.view().filter::<Instance>(runs) {
            displaced.extend(self.driver.displaced_ports(&instance.id).await?);
        }
        displaced.sort();
        Ok(displaced)
    }

    /// Tells once what has become of a port.
    async fn tell_port(
        &self,
        told: &mut Told,
        network: String,
        status: HostPortStatus,
    ) -> Result<(), StepError> {
        let last = told.get(&network);
        if last == Some(&status) {
            return Ok(());
        }
        let mut news = Vec::new();
        if last.map(|last| &last.refused) != Some(&status.refused) {
            news.push(match (&status.refused, status.address) {
                (Some(reason), _) => ("network-not-reachable", reason.clone()),
                (None, address) => {
                    let address = address.map(|a| a.to_string()).unwrap_or_default();
                    let message =
                        format!("the host reaches private addresses, itself as {address}");
                    ("network-reachable", message)
                }
            });
        }
        let before = last.and_then(|last| last.not_redirected.as_ref());
        if let Some(reason) = &status.not_redirected
            && before != Some(reason)
        {
            news.push(("ports-not-redirected", reason.clone()));
        }
        self.plane
            .edit::<Vpc>(&network, |vpc, batch| {
                let account = vpc.meta.account.clone();
                news.iter().try_for_each(|(kind, message)| {
                    batch.tell(&account, None, kind, &vpc.id, message.clone())
                })
            })
            .await?;
        told.insert(network, status);
        Ok(())
    }
}

/// Waits for this time, or until an instance or network changes; `false`: the
/// plane is gone.
async fn changed_or(pause: Duration, changes: &mut Receiver<control::Changed>) -> bool {
    let end = Instant::now() + pause;
    loop {
        match timeout_at(end, changes.recv()).await {
            Err(_) | Ok(Err(RecvError::Lagged(_))) => return true,
            Ok(Err(RecvError::Closed)) => return false,
            Ok(Ok(changed)) if matches!(&*changed.kind, Instance::KIND | Vpc::KIND) => break,
            Ok(Ok(_)) => {}
        }
    }
    sleep(SOON / 5).await;
    true
}
