//! The daemon and its machines, with real processes.

mod common;
#[path = "../../host/tests/contract/mod.rs"]
mod contract;
#[path = "daemon/site.rs"]
mod site;

use std::path::Path;

use host::{Driver, Observed, Real, RealConfig};
use machine_protocol::launch::{Ended, Engine, LAUNCH_VERSION, Launch};
use model::{Instance, InstanceState, Volume};
use site::Site;

fn real(state: &Path) -> Real {
    let config = RealConfig {
        program: env!("CARGO_BIN_EXE_holm").into(),
        layout: host::Layout::new(state.to_owned()),
    };
    Real::new(config).unwrap().0
}

/// `tiny`, in a machine of the software CPU.
fn tiny() -> Launch {
    let image = common::image("tiny");
    Launch {
        version: LAUNCH_VERSION,
        number: 1,
        engine: Engine::Soft,
        serial_log_bytes: 1 << 20,
        machine: serde_json::json!({
            "version": 1,
            "cpus": 1,
            "memory": 256 << 20,
            "boot": {
                "kernel": image.join("vmlinuz"),
                "initrd": image.join("initrd"),
                "cmdline": "console=ttyS0 quiet",
            },
            "on_reset": "reboot",
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_host_keeps_the_contract_of_drivers() {
    // Longer than any socket's path may be.
    let state = tempfile::Builder::new()
        .prefix(&"deep-".repeat(30))
        .tempdir()
        .unwrap();
    let driver = real(state.path());
    contract::machine(&driver, "i-0123456789abcdef0", tiny()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_dies_or_cannot_start_is_seen() {
    let state = tempfile::tempdir().unwrap();
    let driver = real(state.path());
    let id = "i-0123456789abcdef0";
    driver.launch(id, &tiny()).await.unwrap();
    let Observed::Running { facts, .. } = driver.observe(id).await.unwrap() else {
        panic!("it should run");
    };
    let pid = i32::try_from(facts.pid).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // Another daemon finds it, and sees how it goes.
    let adopting = real(state.path());
    assert!(adopting.observe(id).await.unwrap().has_process());
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let end = loop {
        match adopting.observe(id).await.unwrap() {
            Observed::Ended { number: 1, end } => break end,
            _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    assert_eq!(end.how, None, "{end:?}");

    let mut broken = tiny();
    broken.number = 2;
    broken.machine["boot"]["kernel"] = "/nowhere/vmlinuz".into();
    driver.launch(id, &broken).await.unwrap();
    match driver.observe(id).await.unwrap() {
        Observed::Ended { number: 2, end } => {
            assert_eq!(end.how, Some(Ended::Failed));
            assert!(end.message.contains("/nowhere/vmlinuz"), "{end:?}");
        }
        other => panic!("{other:?}"),
    }
    driver.remove(id).await.unwrap();
    assert_eq!(driver.inventory().await.unwrap().machines, [""; 0]);
}

/// A whole life on a real host, with a daemon that dies in between.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_runs_without_a_daemon_and_leaves_nothing() {
    let site = Site::new().await;
    let daemon = site.daemon();
    let id = site.run().await;
    site.until(&id, InstanceState::Running).await;
    let pid = site.process(&id).await;
    site.until_console(&id, "HOLM-READY").await;
    let instance = site.plane.view().get::<Instance>(&id).unwrap();
    assert_eq!(instance.record.machine, Some(1));
    let volume = instance.record.disks[0].volume.clone();
    assert!(site.layout.volumes().join(volume.as_str()).is_dir());
    drop(daemon);
    let daemon = site.daemon();
    site.until_settled(&daemon).await;
    assert_eq!(site.process(&id).await, pid, "it is another process");

    site.plane
        .stop_instances(&site.caller, std::slice::from_ref(&id), false)
        .await
        .unwrap();
    // tiny does not hear its power button.
    site.until(&id, InstanceState::Stopped).await;
    site.plane
        .start_instances(&site.caller, std::slice::from_ref(&id))
        .await
        .unwrap();
    drop(daemon);
    let daemon = site.daemon();
    site.until(&id, InstanceState::Running).await;
    assert_ne!(site.process(&id).await, pid);

    site.plane
        .terminate_instances(&site.caller, std::slice::from_ref(&id))
        .await
        .unwrap();
    site.until(&id, InstanceState::Terminated).await;
    site.until_settled(&daemon).await;
    site.leaves_nothing();
    assert!(site.plane.view().all::<Volume>().is_empty());
}
