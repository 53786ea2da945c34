//! A daemon that dies at its n-th write or step on the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use host::{Content, Driver, DriverError, Inventory, Observed, Simulated, VolumeFile, VolumeSpec};
use machine_protocol::launch::Launch;
use machine_protocol::vpc::PortConfig;
use provisioning::BootProgress;
use store::{Change, Document, LeaseId, Page, Revision, Store, StoreError, Watch};
use tokio::net::UnixListener;
use tokio::sync::Notify;

/// Whether the last thing that a daemon did has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

/// When a daemon dies.
pub struct Crash {
    at: u64,
    when: When,
    count: AtomicU64,
    died: Notify,
}

impl Crash {
    pub fn at(at: u64, when: When) -> Arc<Self> {
        Arc::new(Self {
            at,
            when,
            count: AtomicU64::new(0),
            died: Notify::new(),
        })
    }

    /// The daemon is dead: nothing of it goes on.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    async fn die(&self) -> ! {
        self.died.notify_one();
        std::future::pending::<()>().await;
        unreachable!("the dead wait for ever")
    }

    /// One write or step.
    async fn step<T>(&self, work: impl Future<Output = T>) -> T {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        if number > self.at || number == self.at && self.when == When::Before {
            self.die().await;
        }
        let done = work.await;
        if number == self.at {
            self.die().await;
        }
        done
    }
}

/// The store of such a daemon.
pub struct CrashingStore {
    pub crash: Arc<Crash>,
    pub store: Arc<dyn Store>,
}

#[async_trait]
impl Store for CrashingStore {
    async fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        self.store.list(prefix, after, limit).await
    }

    async fn commit(&self, change: Change) -> Result<Revision, StoreError> {
        self.crash.step(self.store.commit(change)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn grant(&self, time_to_live: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(time_to_live).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// The host of such a daemon. Looking at it is no step: nothing changes.
pub struct CrashingHost {
    pub crash: Arc<Crash>,
    pub host: Simulated,
}

#[async_trait]
impl Driver for CrashingHost {
    async fn inventory(&self) -> Result<Inventory, DriverError> {
        self.host.inventory().await
    }

    async fn observe(&self, machine: &str) -> Result<Observed, DriverError> {
        self.host.observe(machine).await
    }

    async fn launch(&self, machine: &str, launch: &Launch) -> Result<(), DriverError> {
        self.crash.step(self.host.launch(machine, launch)).await
    }

    async fn press_power_button(&self, machine: &str) -> Result<(), DriverError> {
        let step = self.host.press_power_button(machine);
        self.crash.step(step).await
    }

    async fn kill(&self, machine: &str) -> Result<(), DriverError> {
        self.crash.step(self.host.kill(machine)).await
    }

    async fn remove(&self, machine: &str) -> Result<(), DriverError> {
        self.crash.step(self.host.remove(machine)).await
    }

    async fn attach_disk(
        &self,
        machine: &str,
        disk: &serde_json::Value,
    ) -> Result<(), DriverError> {
        self.crash.step(self.host.attach_disk(machine, disk)).await
    }

    async fn detach_disk(&self, machine: &str, name: &str, force: bool) -> Result<(), DriverError> {
        let step = self.host.detach_disk(machine, name, force);
        self.crash.step(step).await
    }

    async fn grow_disk(&self, machine: &str, name: &str, size: u64) -> Result<(), DriverError> {
        let step = self.host.grow_disk(machine, name, size);
        self.crash.step(step).await
    }

    async fn configure_nic(
        &self,
        machine: &str,
        nic: usize,
        port: &PortConfig,
    ) -> Result<(), DriverError> {
        let step = self.host.configure_nic(machine, nic, port);
        self.crash.step(step).await
    }

    async fn remove_network(&self, network: &str) -> Result<(), DriverError> {
        self.crash.step(self.host.remove_network(network)).await
    }

    async fn place_seed(&self, machine: &str, volume: &[u8]) -> Result<(), DriverError> {
        self.crash.step(self.host.place_seed(machine, volume)).await
    }

    async fn metadata_listener(&self, machine: &str) -> Result<Option<UnixListener>, DriverError> {
        self.host.metadata_listener(machine).await
    }

    async fn boot_progress(
        &self,
        machine: &str,
        started: SystemTime,
    ) -> Result<Option<BootProgress>, DriverError> {
        self.host.boot_progress(machine, started).await
    }

    async fn console_log(&self, machine: &str, most: usize) -> Result<Vec<u8>, DriverError> {
        self.host.console_log(machine, most).await
    }

    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<VolumeFile, DriverError> {
        self.crash.step(self.host.ensure_volume(volume)).await
    }

    async fn remove_volume(&self, volume: &str) -> Result<(), DriverError> {
        self.crash.step(self.host.remove_volume(volume)).await
    }

    async fn snapshot_volume(
        &self,
        volume: &str,
        snapshot: &str,
        machine: Option<&str>,
    ) -> Result<Content, DriverError> {
        let step = self.host.snapshot_volume(volume, snapshot, machine);
        self.crash.step(step).await
    }

    async fn remove_content(&self, name: &str) -> Result<(), DriverError> {
        self.crash.step(self.host.remove_content(name)).await
    }
}
