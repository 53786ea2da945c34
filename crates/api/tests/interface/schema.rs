//! Schemathesis, unmodified: whatever the document allows or forbids is sent,
//! and what comes back must be as the document says, and never the daemon's
//! failure.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use api::{Certificate, Limits, Rate, TlsDoor};
use control::RegisterImage;
use host::{Layout, Patience, Reconciler, Simulated, SimulatedConfig};
use serde_json::json;
use tokio::net::TcpListener;

use crate::common::{OWNER, Site, site_with};

/// Does what is asked for, as a host would.
async fn reconcile(site: &Site, directory: &Path) {
    let (driver, changes) = Simulated::new(SimulatedConfig::default());
    driver.add_content("sha256:debian");
    let snapshot = site
        .plane
        .adopt_snapshot(&site.caller, "sha256:debian", 1 << 30, 10, "");
    let new = RegisterImage {
        family: Some("debian".into()),
        ..RegisterImage::of("debian-13", snapshot.await.unwrap().id)
    };
    let made = site.plane.register_image(&site.caller, new).await;
    made.unwrap();
    let layout = Layout::new(directory.to_owned());
    let reconciler = Reconciler::new(
        site.plane.clone(),
        Arc::new(driver),
        layout,
        Patience::default(),
    );
    tokio::spawn(reconciler.run(changes));
}

/// Has paths name what there is, so that not all of them end at "not found".
async fn parameters(site: &Site) -> String {
    let client = site.owner();
    let first = async |path: &str| {
        let all = client.get(path).await.json();
        all["items"][0]["id"].as_str().unwrap().to_owned()
    };
    let body = json!({"image": "debian", "instance_type": "t3.micro"});
    let made = client.does("POST", "/v1/instances", Some(body), 201);
    made.await;
    let body = json!({"size": 1_u64 << 30});
    client.does("POST", "/v1/volumes", Some(body), 201).await;
    let body = json!({"name": "mine"});
    client.does("POST", "/v1/key-pairs", Some(body), 201).await;
    let mut text = String::from("[parameters]\n");
    for (name, path) in [
        ("image_id", "/v1/images"),
        ("instance_id", "/v1/instances"),
        ("internet_gateway_id", "/v1/internet-gateways"),
        ("key_pair_id", "/v1/key-pairs"),
        ("resource_id", "/v1/vpcs"),
        ("route_table_id", "/v1/route-tables"),
        ("security_group_id", "/v1/security-groups"),
        ("snapshot_id", "/v1/snapshots"),
        ("subnet_id", "/v1/subnets"),
        ("volume_id", "/v1/volumes"),
        ("vpc_id", "/v1/vpcs"),
    ] {
        let id = first(path).await;
        text.push_str(&format!("\"path.{name}\" = \"{id}\"\n"));
    }
    text + "\"path.quota\" = \"vpcs\"\n"
}

/// What is the same every time: a seed, and no watch, which does not end.
/// Not all that a schema allows can be: an id must be of something.
const ARGUMENTS: [&str; 9] = [
    "--tls-verify=false",
    "--exclude-operation-id=watch",
    "--seed=4",
    "--phases=examples,fuzzing,stateful",
    "--checks=all",
    "--exclude-checks=positive_data_acceptance",
    "--max-examples=3",
    "--continue-on-failure",
    "--suppress-health-check=all",
];

/// More than a few seconds' worth:
/// `HOLM_SCHEMATHESIS="--phases=coverage,fuzzing --max-examples=100"`.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_the_answer_is_as_the_document_says() {
    let often = Rate {
        per_second: 1e6,
        burst: 1e6,
    };
    let limits = Limits {
        rate: often,
        guesses: often,
        ..Limits::default()
    };
    let site = site_with(OWNER, limits).await;
    let directory = tempfile::tempdir().unwrap();
    reconcile(&site, directory.path()).await;
    let certificate = Certificate::load_or_make(&directory.path().join("api.pem"), &[]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = TlsDoor::new(listener, &certificate).unwrap();
    tokio::spawn(door.serve(api::router(site.app.clone()), std::future::pending()));

    let token = site.token(true).await.text;
    let config = directory.path().join("schemathesis.toml");
    std::fs::write(&config, parameters(&site).await).unwrap();
    let mut command = Command::new(clients::program("schemathesis"));
    command
        .current_dir(directory.path())
        .args(["--no-color", "--config-file"])
        .arg(&config)
        .arg("run")
        .arg(format!("https://{address}/v1/openapi.json"))
        .arg(format!("--header=Authorization: Bearer {token}"))
        .args(ARGUMENTS);
    let more = std::env::var("HOLM_SCHEMATHESIS").unwrap_or_default();
    command.args(more.split_whitespace());
    let done = tokio::task::spawn_blocking(move || command.output()).await;
    let done = done.unwrap().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    if !more.is_empty() {
        println!("{said}");
    }
    let failed = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{failed}");
}
