//! A daemon may die at any of its steps: the next one finishes what it began,
//! and nothing is left over.

mod world;

use std::sync::Arc;
use std::time::Duration;

use control::{AttachVolume, CreateImage, NewSnapshot, NewVolume, Plane, VolumeChange};
use host::{Driver, Observed, SimulatedConfig, VolumeSource};
use machine_protocol::launch::Ended;
use model::{
    AttachmentState, Image, ImageState, InstanceId, InstanceState, Snapshot, SnapshotState, Tags,
    VolumeId, VolumeState,
};
use world::World;
use world::crash::{Crash, CrashingHost, CrashingStore, When};

/// What is asked of a daemon that dies.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Create,
    CreateThenTerminate,
    Stop,
    Start,
    Reboot,
    PowerOff,
    Terminate,
    Attach,
    Detach,
    CreateVolume,
    GrowVolume,
    DeleteVolume,
    RollBack,
    Snapshot,
    DeleteSnapshot,
    Image,
}

/// Where it is asked: an instance and a volume beside it.
struct Scene {
    world: World,
    instance: Option<InstanceId>,
    volume: Option<VolumeId>,
}

impl Scene {
    /// What there is before, made by a daemon without fault.
    async fn before(ask: Ask) -> Self {
        // What cards are told is computed anew after each death: `cards.rs`.
        let config = SimulatedConfig {
            takes_ports: false,
            ..SimulatedConfig::default()
        };
        let world = World::new(config).await;
        let mut scene = Self {
            world,
            instance: None,
            volume: None,
        };
        let daemon = scene.world.daemon();
        let world = &scene.world;
        let bare = matches!(
            ask,
            Ask::Create | Ask::CreateThenTerminate | Ask::CreateVolume
        );
        if bare {
            return scene;
        }
        let instance = world.run().await;
        world.until_state(&instance, InstanceState::Running).await;
        let new = NewVolume {
            size: Some(1 << 30),
            ..NewVolume::default()
        };
        let volume = world.plane.create_volume(&world.caller, new, None).await;
        let volume = volume.unwrap().id;
        let state = |id: &VolumeId, state| world.volume(id).is_some_and(|v| v.state == state);
        world
            .until("the volume", || state(&volume, VolumeState::Available))
            .await;
        match ask {
            Ask::Start => {
                let ids = [instance.clone()];
                let stop = world.plane.stop_instances(&world.caller, &ids, false);
                stop.await.unwrap();
                world.until_state(&instance, InstanceState::Stopped).await;
            }
            Ask::Detach | Ask::Terminate | Ask::GrowVolume => {
                attach(world, &instance, &volume).await;
                let attached = || {
                    let volume = world.volume(&volume).unwrap();
                    volume.attachment.unwrap().state == AttachmentState::Attached
                };
                world.until("the attachment", attached).await;
            }
            Ask::DeleteSnapshot | Ask::RollBack => {
                snapshot(world, &volume).await;
                let done = |s: &Snapshot| s.volume.is_some() && s.state == SnapshotState::Completed;
                world
                    .until("the snapshot", || world.plane.view().any::<Snapshot>(done))
                    .await;
            }
            _ => {}
        }
        drop(daemon);
        (scene.instance, scene.volume) = (Some(instance), Some(volume));
        scene
    }

    /// Asks.
    async fn ask(&mut self, ask: Ask) {
        let world = &self.world;
        let (plane, caller) = (&world.plane, &world.caller);
        let instances: Vec<InstanceId> = self.instance.iter().cloned().collect();
        let volume = self.volume.clone();
        let unused = VolumeId::random();
        let volume = volume.as_ref().unwrap_or(&unused);
        match ask {
            Ask::Create | Ask::CreateThenTerminate => {
                let instance = world.run().await;
                if matches!(ask, Ask::CreateThenTerminate) {
                    let ids = [instance.clone()];
                    plane.terminate_instances(caller, &ids).await.unwrap();
                }
                self.instance = Some(instance);
            }
            Ask::Stop => {
                drop(
                    plane
                        .stop_instances(caller, &instances, false)
                        .await
                        .unwrap(),
                );
            }
            Ask::Start => drop(plane.start_instances(caller, &instances).await.unwrap()),
            Ask::Reboot => plane.reboot_instances(caller, &instances).await.unwrap(),
            Ask::PowerOff => {
                let instance = instances[0].as_str();
                world.host.end(instance, Some(Ended::PoweredOff));
            }
            Ask::Terminate => {
                drop(plane.terminate_instances(caller, &instances).await.unwrap());
            }
            Ask::Attach => attach(world, &instances[0], volume).await,
            Ask::Detach => {
                let detach = plane.detach_volume(caller, volume, None, false);
                detach.await.unwrap();
            }
            Ask::CreateVolume => {
                let new = NewVolume {
                    size: Some(1 << 30),
                    ..NewVolume::default()
                };
                let made = plane.create_volume(caller, new, None).await.unwrap();
                self.volume = Some(made.id);
            }
            Ask::GrowVolume => {
                let change = VolumeChange {
                    size: Some(2 << 30),
                    ..VolumeChange::default()
                };
                let grow = plane.modify_volume(caller, volume, change);
                grow.await.unwrap();
            }
            Ask::DeleteVolume => plane.delete_volume(caller, volume).await.unwrap(),
            Ask::RollBack => {
                let of = plane.view().filter::<Snapshot>(|s| s.volume.is_some());
                let to = &of[0].record.id;
                drop(plane.roll_back_volume(caller, volume, to).await.unwrap());
            }
            Ask::Snapshot => snapshot(world, volume).await,
            Ask::DeleteSnapshot => {
                let of = plane.view().filter::<Snapshot>(|s| s.volume.is_some());
                let id = &of[0].record.id;
                plane.delete_snapshot(caller, id).await.unwrap();
            }
            Ask::Image => {
                let new = CreateImage {
                    instance: instances[0].clone(),
                    name: "copy".into(),
                    description: String::new(),
                    tags: Tags::new(),
                    snapshot_tags: Tags::new(),
                };
                drop(plane.create_image(caller, new).await.unwrap());
            }
        }
    }

    /// What was asked for is so.
    fn is_done(&self, ask: Ask) -> bool {
        let (world, view) = (&self.world, self.world.plane.view());
        let instance = self.instance.as_ref();
        let instance = instance.and_then(|id| world.instance(id));
        let volume = self.volume.as_ref().and_then(|id| world.volume(id));
        let is = |state| instance.as_ref().is_some_and(|i| i.state == state);
        match ask {
            Ask::Create | Ask::Start => is(InstanceState::Running),
            Ask::Stop | Ask::PowerOff => is(InstanceState::Stopped),
            Ask::CreateThenTerminate | Ask::Terminate => is(InstanceState::Terminated),
            Ask::Reboot => {
                let instance = instance.unwrap();
                let launched = world.host.launched(instance.id.as_str());
                instance.state == InstanceState::Running
                    && instance.reboots_done == 1
                    && launched.map(|l| l.number) == instance.machine
            }
            Ask::Attach => volume.is_some_and(|v| {
                let attachment = v.attachment.as_ref();
                attachment.is_some_and(|a| a.state == AttachmentState::Attached)
            }),
            Ask::Detach => {
                let free = volume.is_some_and(|v| v.state == VolumeState::Available);
                free && instance.is_some_and(|i| i.disks.len() == 1)
            }
            Ask::CreateVolume => volume.is_some_and(|v| v.state == VolumeState::Available),
            Ask::GrowVolume => volume.is_some_and(|v| v.actual_size == 2 << 30),
            Ask::DeleteVolume => volume.is_none(),
            Ask::RollBack => {
                let of = view.filter::<Snapshot>(|s| s.volume.is_some());
                let content = of[0].record.content.clone().unwrap();
                volume.is_some_and(|v| {
                    let held = world.host.volume(v.id.as_str()).unwrap().source;
                    v.rollback.is_none() && held == VolumeSource::Content(content)
                })
            }
            Ask::Snapshot => view.any::<Snapshot>(|s| {
                s.volume.is_some() && s.state == SnapshotState::Completed && s.content.is_some()
            }),
            Ask::DeleteSnapshot => !view.any::<Snapshot>(|s| s.volume.is_some()),
            Ask::Image => {
                view.any::<Image>(|i| i.name == "copy" && i.state == ImageState::Available)
            }
        }
    }

    /// The host has just what the records say.
    async fn check(&self) {
        let Some(instance) = self.instance.as_ref().and_then(|i| self.world.instance(i)) else {
            return;
        };
        let observed = self.world.host.observe(instance.id.as_str()).await.unwrap();
        match (instance.state, &observed) {
            (InstanceState::Running, Observed::Running { number, facts }) => {
                assert_eq!(Some(*number), instance.machine);
                let mut disks: Vec<_> = instance
                    .disks
                    .iter()
                    .map(|d| d.volume.to_string())
                    .collect();
                disks.sort();
                assert_eq!(facts.disks, disks);
            }
            (InstanceState::Stopped, Observed::Ended { .. })
            | (InstanceState::Terminated, Observed::Absent) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn attach(world: &World, instance: &InstanceId, volume: &VolumeId) {
    let new = AttachVolume {
        volume: volume.clone(),
        instance: instance.clone(),
        device: None,
        delete_on_termination: false,
    };
    world.plane.attach_volume(&world.caller, new).await.unwrap();
}

async fn snapshot(world: &World, volume: &VolumeId) {
    let new = NewSnapshot {
        volume: volume.clone(),
        description: String::new(),
        tags: Tags::new(),
    };
    world
        .plane
        .create_snapshot(&world.caller, new)
        .await
        .unwrap();
}

/// Lets the daemon die at each step in turn, until there is no more.
async fn dies_at_each_step(ask: Ask) {
    for when in [When::Before, When::After] {
        let mut at = 1;
        while dies(ask, at, when).await {
            at += 1;
            assert!(at < 100, "{ask:?} takes too many steps");
        }
        // The test is about something.
        assert!(at > 1, "{ask:?} takes no step");
    }
}

/// Whether a daemon that dies at this step has come so far.
async fn dies(ask: Ask, at: u64, when: When) -> bool {
    let mut scene = Scene::before(ask).await;
    let crash = Crash::at(at, when);
    let store = Arc::new(CrashingStore {
        crash: crash.clone(),
        store: scene.world.store.clone(),
    });
    let plane = Plane::open(store).await.unwrap();
    let (host, changes) = scene.world.host.adopted();
    let host = CrashingHost {
        crash: crash.clone(),
        host,
    };
    let dying = world::reconcile(plane, Arc::new(host), changes);
    scene.ask(ask).await;
    let done = async {
        while !(scene.is_done(ask) && dying.reconciler.is_settled()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let died = tokio::time::timeout(world::SOON, async {
        tokio::select! {
            () = crash.died() => true,
            () = done => false,
        }
    });
    let Ok(died) = died.await else {
        panic!("{ask:?} neither ends nor dies {when:?} step {at}");
    };
    drop(dying);
    let what = format!("{ask:?} after a death {when:?} step {at}");
    let daemon = scene.world.daemon();
    scene.world.until(&what, || scene.is_done(ask)).await;
    scene
        .world
        .until(&what, || daemon.reconciler.is_settled())
        .await;
    scene.check().await;
    scene.world.leave_nothing().await;
    died
}

macro_rules! tests {
    ($($name:ident: $ask:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            dies_at_each_step(Ask::$ask).await;
        }
    )*};
}

tests! {
    create: Create,
    create_then_terminate: CreateThenTerminate,
    stop: Stop,
    start: Start,
    reboot: Reboot,
    power_off: PowerOff,
    terminate: Terminate,
    attach_a_volume: Attach,
    detach_a_volume: Detach,
    create_a_volume: CreateVolume,
    grow_a_volume: GrowVolume,
    delete_a_volume: DeleteVolume,
    roll_a_volume_back: RollBack,
    make_a_snapshot: Snapshot,
    delete_a_snapshot: DeleteSnapshot,
    make_an_image: Image,
}
