//! What machines tell becomes events of instances.

mod world;

use host::SimulatedConfig;
use machine_protocol::EventKind;
use machine_protocol::launch::Ended;
use model::{Event, InstanceId, InstanceState};
use world::World;

impl World {
    fn events(&self, id: &InstanceId, kind: &str) -> Vec<String> {
        let of = |e: &Event| e.resource == id.as_str() && e.kind == kind;
        let found = self.plane.view().filter::<Event>(of);
        found.iter().map(|e| e.record.message.clone()).collect()
    }
}

fn disk_error() -> EventKind {
    EventKind::DiskError {
        disk: "vol-1".into(),
        message: "no space left".into(),
        paused: true,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_machine_tells_is_noted_once_over_daemons() {
    let world = World::new(SimulatedConfig::default()).await;
    let daemon = world.daemon();
    let id = world.run().await;
    world.until_state(&id, InstanceState::Running).await;
    world.host.happen(id.as_str(), EventKind::Started);
    world.host.happen(id.as_str(), disk_error());
    let trouble = || world.instance(&id).unwrap().trouble;
    world.until("trouble", || trouble().is_some()).await;
    assert!(
        trouble().unwrap().contains("no space left"),
        "{trouble:?}",
        trouble = trouble()
    );
    assert!(trouble().unwrap().contains("holm resume i-"));
    drop(daemon);
    // While there is no daemon.
    world.host.happen(id.as_str(), EventKind::Resumed);
    let daemon = world.daemon();
    world
        .until("the end of trouble", || trouble().is_none())
        .await;
    drop(daemon);
    let _daemon = world.daemon();
    world
        .plane
        .stop_instances(&world.caller, std::slice::from_ref(&id), true)
        .await
        .unwrap();
    world.until_state(&id, InstanceState::Stopped).await;
    let told = world.events(&id, "instance-disk-error");
    assert_eq!(told, ["disk vol-1: no space left; the machine waits"]);
    assert_eq!(world.events(&id, "instance-resumed"), ["resumed"]);
    assert!(world.events(&id, "instance-started").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_resets_all_the_time_does_not_fill_the_store() {
    let world = World::new(SimulatedConfig::default()).await;
    let _daemon = world.daemon();
    let id = world.run().await;
    world.until_state(&id, InstanceState::Running).await;
    for _ in 0..1000 {
        world.host.happen(id.as_str(), EventKind::Rebooted);
    }
    let resets = || world.events(&id, "instance-reset-by-guest").len();
    world.until("some are noted", || resets() > 0).await;
    assert!(resets() <= 8, "{}", resets());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_crashes_is_stopped_with_the_reason() {
    let world = World::new(SimulatedConfig::default()).await;
    let _daemon = world.daemon();
    let id = world.run().await;
    world.until_state(&id, InstanceState::Running).await;
    world.host.happen(id.as_str(), EventKind::GuestPanicked);
    world.host.end(id.as_str(), Some(Ended::Crashed));
    world.until_state(&id, InstanceState::Stopped).await;
    let instance = world.instance(&id).unwrap();
    let reason = instance.state_reason.unwrap();
    assert_eq!(reason.code, "Server.InternalError");
    assert_eq!(instance.trouble, None, "it stands still");
    let panicked = || !world.events(&id, "instance-panicked").is_empty();
    world.until("the panic", panicked).await;
    let stopped = world.events(&id, "instance-stopped");
    assert_eq!(stopped, [reason.message]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_does_not_listen_ends_also_under_daemons_that_die_soon() {
    let world = World::new(SimulatedConfig {
        guests_listen: false,
        ..SimulatedConfig::default()
    })
    .await;
    let daemon = world.daemon();
    let id = world.run().await;
    world.until_state(&id, InstanceState::Running).await;
    drop(daemon);
    let ids = [id.clone()];
    let asked = world.plane.terminate_instances(&world.caller, &ids);
    asked.await.unwrap();
    // Each lives half as long as the guest is given.
    for _ in 0..100 {
        let _daemon = world.daemon();
        tokio::time::sleep(world::patience().terminate / 2).await;
        if world.instance(&id).unwrap().is_terminated() {
            return;
        }
    }
    panic!("{:?}", world.instance(&id));
}
