//! The daemon and its machines, with real processes.

mod common;
#[path = "../../host/tests/contract/mod.rs"]
mod contract;
#[path = "daemon/process.rs"]
mod process;
#[path = "daemon/site.rs"]
mod site;

use std::path::Path;
use std::time::Duration;

use host::{ControlClient, Driver, Observed, Real, RealConfig};
use machine_protocol::Request;
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
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
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
    // An image of it while it runs, and another one of that.
    let image = site.image_of(&id).await;
    let copy = site.run_of(&image).await;
    drop(daemon);
    let daemon = site.daemon();
    // `tiny` has no agent that could tell the end of its boot.
    site.until_settled(&daemon).await;
    assert_eq!(site.process(&id).await, pid, "it is another process");

    let directory = site.layout.machine(id.as_str());
    let mut machine = ControlClient::connect(&directory).await.unwrap();
    for request in [Request::Pause {}, Request::Resume {}] {
        machine.ask(&request).await.unwrap();
    }
    site.until_event(&id, "instance-paused").await;

    site.plane
        .stop_instances(&site.caller, std::slice::from_ref(&id), false)
        .await
        .unwrap();
    site.until_console(&copy, "HOLM-READY").await;
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
        .terminate_instances(&site.caller, &[id.clone(), copy.clone()])
        .await
        .unwrap();
    for id in [&id, &copy] {
        site.until(id, InstanceState::Terminated).await;
    }
    site.until_settled(&daemon).await;
    site.leaves_nothing();
    assert!(site.plane.view().all::<Volume>().is_empty());
}

/// `holm daemon` itself, killed again and again while it starts a machine, and
/// while it ends one.
#[test]
fn a_daemon_that_is_killed_leaves_machines_running_and_finishes_later() {
    let state = tempfile::tempdir().unwrap();
    let layout = host::Layout::new(state.path().join("state"));
    let id = site::with_plane(&layout, async |plane, caller| {
        let image = site::import(&layout, &plane, &caller, state.path()).await;
        let new = control::RunInstances::new(image.id, "t2.nano");
        let launched = plane.run_instances(&caller, new, None).await;
        launched.unwrap().instances.remove(0).id
    });
    let machine = layout.machine(id.as_str());
    for pause in [20, 60, 100, 150, 200, 300] {
        let mut daemon = process::start(&layout);
        std::thread::sleep(Duration::from_millis(pause));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        assert!(process::machines(&layout).len() <= 1);
    }
    let mut daemon = process::start(&layout);
    let printed = || std::fs::read_to_string(machine.join("serial.log")).unwrap_or_default();
    process::wait("the guest's console", || printed().contains("HOLM-READY"));
    let [pid] = process::machines(&layout)[..] else {
        panic!("{:?}", process::machines(&layout));
    };

    let second = process::daemon(&layout).output().unwrap();
    let refused = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(16), "{refused}");
    assert!(refused.contains("in use by another daemon"), "{refused}");
    let backup = state.path().join("backup.db");
    let arguments = [
        backup.to_str().unwrap(),
        "--state",
        layout.root().to_str().unwrap(),
    ];
    let saved = common::holm()
        .args(["state", "backup"])
        .args(arguments)
        .output();
    let saved = saved.unwrap();
    assert!(saved.status.success(), "{saved:?}");
    let checked = common::holm()
        .args(["state", "check"])
        .arg(&backup)
        .output();
    assert!(checked.unwrap().status.success());

    // In good order, and without a word: the machine goes on.
    process::signal(&daemon, rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert_eq!(process::machines(&layout), [pid]);
    site::with_plane(&layout, async |plane, caller| {
        let found = plane.view().get::<Instance>(&id).unwrap();
        assert_eq!(found.record.state, InstanceState::Running);
        plane
            .terminate_instances(&caller, std::slice::from_ref(&id))
            .await
            .unwrap();
    });
    for pause in [50, 200, 600] {
        let mut daemon = process::start(&layout);
        std::thread::sleep(Duration::from_millis(pause));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    let mut daemon = process::start(&layout);
    process::wait("the end of all files", || {
        !machine.exists() && std::fs::read_dir(layout.volumes()).unwrap().count() <= 2
    });
    process::wait("the end of all processes", || {
        process::machines(&layout).is_empty()
    });
    process::signal(&daemon, rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    site::with_plane(&layout, async |plane, _| {
        let found = plane.view().get::<Instance>(&id).unwrap();
        assert!(found.record.is_terminated(), "{:?}", found.record);
    });
}
