//! Many instances on a simulated host.

mod world;

use std::sync::Arc;
use std::time::Duration;

use control::RunInstances;
use host::SimulatedConfig;
use model::{Instance, InstanceId, InstanceState, Quota};
use world::World;

/// Instances in all.
const CHURN: usize = 1000;
/// Requests at once.
const AT_ONCE: usize = 8;
/// Instances of a request.
const EACH: u32 = 10;

async fn unlimited(world: &World) {
    for quota in Quota::ALL {
        let (caller, account) = (&world.caller, &world.caller.account);
        let set = world.plane.set_quota(caller, account, quota, Some(1 << 40));
        set.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_come_and_go_and_nothing_is_left() {
    let world = World::new(SimulatedConfig {
        seed: 7,
        delay: Duration::from_millis(3),
        failures: 20,
        guests_listen: true,
        takes_ports: false,
    })
    .await;
    unlimited(&world).await;
    let daemon = world.daemon();
    let world = Arc::new(world);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let world = world.clone();
        clients.spawn(async move {
            for _ in 0..CHURN / AT_ONCE / EACH as usize {
                come_and_go(&world).await;
            }
        });
    }
    for client in clients.join_all().await {
        let () = client;
    }
    world
        .until("all is settled", || daemon.reconciler.is_settled())
        .await;
    world.leave_nothing().await;
}

/// Some instances run and are terminated, half of them before they run.
async fn come_and_go(world: &World) {
    let new = RunInstances {
        count: EACH,
        ..RunInstances::new(world.image.id.clone(), "t3.micro")
    };
    let launched = world.plane.run_instances(&world.caller, new, None).await;
    let instances = launched.unwrap().instances;
    let ids: Vec<InstanceId> = instances.into_iter().map(|i| i.id).collect();
    let (soon, later) = ids.split_at(ids.len() / 2);
    let terminate = |ids: Vec<InstanceId>| async move {
        let done = world.plane.terminate_instances(&world.caller, &ids);
        done.await.unwrap();
    };
    terminate(soon.to_vec()).await;
    for id in later {
        let done = |i: Instance| i.state == InstanceState::Running;
        world
            .until("it runs", || world.instance(id).is_some_and(done))
            .await;
    }
    terminate(later.to_vec()).await;
    for id in &ids {
        world.until_state(id, InstanceState::Terminated).await;
    }
}
