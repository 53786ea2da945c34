//! A store, a simulated host and a daemon's reconciler, which can crash.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod crash;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::{Caller, Plane, RegisterImage, RunInstances};
use host::{Driver, Layout, Patience, Reconciler, Simulated, SimulatedConfig};
use model::{Claim, Image, Instance, InstanceId, InstanceState, Snapshot, Volume, VolumeId};
use store::{Sqlite, Store};
use tokio::task::JoinHandle;

/// How long anything may take on a busy host.
pub const SOON: Duration = Duration::from_secs(60);
/// Contents that the image is made of.
pub const CONTENT: &str = "sha256:base";

pub struct World {
    pub plane: Plane,
    pub caller: Caller,
    pub store: Arc<dyn Store>,
    pub host: Simulated,
    pub image: Image,
    _directory: tempfile::TempDir,
}

/// A daemon, as far as tests need one: it ends with the value, wherever it was.
pub struct Daemon {
    task: JoinHandle<()>,
    pub reconciler: Arc<Reconciler>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// In memory, where the host has such a place: syncs are then quick.
fn directory() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let made = tempfile::Builder::new().prefix("holm-").tempdir_in(memory);
    made.or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn patience() -> Patience {
    Patience {
        stop: Duration::from_millis(300),
        terminate: Duration::from_millis(200),
        attempts: 30,
        orphans_kept: Duration::ZERO,
        ..Patience::default()
    }
}

pub fn reconcile(
    plane: Plane,
    driver: Arc<dyn Driver>,
    changes: tokio::sync::mpsc::UnboundedReceiver<host::Happened>,
) -> Daemon {
    let layout = Layout::new("/simulated".into());
    let reconciler = Reconciler::new(plane, driver, layout, patience());
    Daemon {
        task: tokio::spawn(reconciler.clone().run(changes)),
        reconciler,
    }
}

impl World {
    pub async fn new(config: SimulatedConfig) -> Self {
        let directory = directory();
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(directory.path()).unwrap());
        let plane = Plane::open(store.clone()).await.unwrap();
        let caller = Caller::owner(plane.site().unwrap().account);
        let (host, _) = Simulated::new(config);
        host.add_content(CONTENT);
        let image = image(&plane, &caller).await;
        Self {
            plane,
            caller,
            store,
            host,
            image,
            _directory: directory,
        }
    }

    /// A daemon that works as it should.
    pub fn daemon(&self) -> Daemon {
        let (host, changes) = self.host.adopted();
        reconcile(self.plane.clone(), Arc::new(host), changes)
    }

    pub async fn run(&self) -> InstanceId {
        let new = RunInstances::new(self.image.id.clone(), "t3.micro");
        let launched = self.plane.run_instances(&self.caller, new, None).await;
        launched.unwrap().instances.remove(0).id
    }

    pub fn instance(&self, id: &InstanceId) -> Option<Instance> {
        let found = self.plane.view().get::<Instance>(id);
        found.map(|found| found.record.clone())
    }

    pub fn volume(&self, id: &VolumeId) -> Option<Volume> {
        let found = self.plane.view().get::<Volume>(id);
        found.map(|found| found.record.clone())
    }

    pub async fn until_state(&self, id: &InstanceId, state: InstanceState) {
        let what = format!("{id} is {}", state.name());
        self.until(&what, || {
            self.instance(id).is_some_and(|i| i.state == state)
        })
        .await;
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, test: impl Fn() -> bool) {
        let waited = tokio::time::timeout(SOON, async {
            while !test() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        if waited.await.is_err() {
            let view = self.plane.view();
            panic!(
                "not in time: {what}\n{:#?}\n{:#?}\n{:#?}",
                view.all::<Instance>(),
                view.all::<Volume>(),
                view.all::<Snapshot>(),
            );
        }
    }

    /// Terminates and deletes all that is there, and checks that nothing of it
    /// is left, on the host or in the store.
    pub async fn leave_nothing(&self) {
        let (plane, caller, view) = (&self.plane, &self.caller, self.plane.view());
        let alive = || view.filter::<Instance>(|i| !i.is_terminated());
        for instance in alive() {
            let ids = [instance.record.id.clone()];
            plane.terminate_instances(caller, &ids).await.unwrap();
        }
        self.until("all are terminated", || alive().is_empty())
            .await;
        for image in view.filter::<Image>(|i| i.id != self.image.id) {
            plane
                .deregister_image(caller, &image.record.id)
                .await
                .unwrap();
        }
        for volume in view.filter::<Volume>(|v| !v.deleting) {
            plane
                .delete_volume(caller, &volume.record.id)
                .await
                .unwrap();
        }
        let base = |s: &Snapshot| s.content.as_deref() == Some(CONTENT);
        for snapshot in view.filter::<Snapshot>(|s| !base(s)) {
            let id = &snapshot.record.id;
            plane.delete_snapshot(caller, id).await.unwrap();
        }
        self.until("no volume or snapshot is left", || {
            view.all::<Volume>().is_empty()
                && view.all::<Snapshot>().iter().all(|s| base(&s.record))
        })
        .await;
        let (left, contents) = self.host.left();
        assert_eq!(left.machines, [""; 0], "machines are left");
        assert_eq!(left.volumes, [""; 0], "volumes are left");
        assert_eq!(contents, [CONTENT], "contents are left");
        let claims = view.all::<Claim>();
        let claims = claims.iter().filter(|claim| {
            let holder = &claim.record.holder;
            holder.starts_with("i-") || holder.starts_with("vol-") || holder.starts_with("snap-")
        });
        assert_eq!(claims.count(), 0, "claims are left");
    }
}

async fn image(plane: &Plane, caller: &Caller) -> Image {
    let snapshot = plane.adopt_snapshot(caller, CONTENT, 1 << 30, 10, "");
    let new = RegisterImage::of("debian", snapshot.await.unwrap().id);
    plane.register_image(caller, new).await.unwrap()
}
