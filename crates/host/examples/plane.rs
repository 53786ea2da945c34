//! How the management plane does with many instances, on a simulated host:
//! `cargo run --release -p host --example plane [INSTANCES]`. Prints what was
//! measured as JSON.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::{Caller, NewSubnet, Plane, RegisterImage, RunInstances};
use host::{Layout, Patience, Reconciler, Simulated, SimulatedConfig};
use model::{Image, Instance, InstanceId, InstanceState, Quota, Subnet, SubnetId, Tags};
use store::Sqlite;

/// Instances of one request.
const EACH: u32 = 20;
/// Requests at once.
const CLIENTS: usize = 4;
/// Measurements of each kind of question.
const SAMPLES: usize = 200;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let count = std::env::args().nth(1).map(|text| text.parse());
    let count: usize = count.transpose()?.unwrap_or(10_000);
    let directory = directory()?;
    let store = Sqlite::open(directory.path())?;
    let plane = Plane::open(Arc::new(store)).await?;
    let caller = Caller::owner(plane.site()?.account);
    let (image, subnet) = prepare(&plane, &caller).await?;
    let (host, changes) = Simulated::new(SimulatedConfig {
        takes_ports: false,
        ..SimulatedConfig::default()
    });
    host.add_content("sha256:base");
    let layout = Layout::new("/simulated".into());
    let reconciler = Reconciler::new(
        plane.clone(),
        Arc::new(host.clone()),
        layout,
        Patience::default(),
    );
    let _running = tokio::spawn(reconciler.run(changes));
    let before = resident();

    let start = Instant::now();
    let ids = create(&plane, &caller, &image, &subnet, count).await?;
    let asked = start.elapsed();
    until(&plane, |i| i.state == InstanceState::Running, count).await;
    let running = start.elapsed();
    let after = resident();

    let all = sample(|| plane.list::<Instance>(&caller).len());
    let filtered = sample(|| {
        let view = plane.view();
        let wanted = |i: &Instance| {
            i.state == InstanceState::Running && i.meta.tags.get("group").is_some_and(|g| g == "7")
        };
        view.filter::<Instance>(wanted).len()
    });
    let one = sample(|| plane.find::<Instance>(&caller, &ids[count / 2]).is_ok());
    let mut writes = Vec::new();
    for id in ids.iter().take(SAMPLES) {
        let start = Instant::now();
        plane
            .edit::<Instance>(id, |i, _| {
                i.meta.tags.insert("touched".into(), "yes".into());
                Ok(())
            })
            .await?;
        writes.push(start.elapsed());
    }

    let start = Instant::now();
    terminate(&plane, &caller, &ids).await?;
    until(&plane, |i| i.state == InstanceState::Terminated, count).await;
    let terminated = start.elapsed();
    let (left, _) = host.left();
    let figures = serde_json::json!({
        "instances": count,
        "created_per_second": rate(count, asked),
        "running_per_second": rate(count, running),
        "terminated_per_second": rate(count, terminated),
        "list_all_us": percentiles(all),
        "list_filtered_us": percentiles(filtered),
        "get_one_us": percentiles(one),
        "write_one_us": percentiles(writes),
        "memory_per_instance_bytes": (after.saturating_sub(before)) / count as u64,
        "resident_bytes": after,
        "left_machines": left.machines.len(),
        "left_volumes": left.volumes.len(),
    });
    println!("{figures:#}");
    Ok(())
}

fn directory() -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("holm-plane-")
        .tempdir_in(std::env::var_os("TMPDIR").map_or_else(|| "/tmp".into(), PathBuf::from))
}

async fn prepare(plane: &Plane, caller: &Caller) -> Result<(Image, SubnetId), Failure> {
    for quota in Quota::ALL {
        let account = &caller.account;
        plane
            .set_quota(caller, account, quota, Some(1 << 40))
            .await?;
    }
    let vpc = plane.default_vpc(caller)?;
    let new = NewSubnet {
        vpc: vpc.id,
        cidr: "172.31.128.0/17".parse()?,
        zone: None,
        tags: Tags::new(),
    };
    let subnet: Subnet = plane.create_subnet(caller, new).await?;
    let snapshot = plane.adopt_snapshot(caller, "sha256:base", 1 << 30, 0, "");
    let new = RegisterImage::of("debian", snapshot.await?.id);
    Ok((plane.register_image(caller, new).await?, subnet.id))
}

async fn create(
    plane: &Plane,
    caller: &Caller,
    image: &Image,
    subnet: &SubnetId,
    count: usize,
) -> Result<Vec<InstanceId>, Failure> {
    let requests = count.div_ceil(EACH as usize);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (plane, caller) = (plane.clone(), caller.clone());
        let (image, subnet) = (image.id.clone(), subnet.clone());
        clients.spawn(async move {
            let mut ids = Vec::new();
            for request in (client..requests).step_by(CLIENTS) {
                let first = request * EACH as usize;
                let each = u32::try_from((count - first).min(EACH as usize))?;
                let new = RunInstances {
                    count: each,
                    subnet: Some(subnet.clone()),
                    tags: Tags::from([("group".into(), (request % 100).to_string())]),
                    ..RunInstances::new(image.clone(), "t3.micro")
                };
                let launched = plane.run_instances(&caller, new, None).await?;
                ids.extend(launched.instances.into_iter().map(|i| i.id));
            }
            Ok::<_, Failure>(ids)
        });
    }
    let mut ids = Vec::with_capacity(count);
    for made in clients.join_all().await {
        ids.extend(made?);
    }
    Ok(ids)
}

async fn terminate(plane: &Plane, caller: &Caller, ids: &[InstanceId]) -> Result<(), Failure> {
    for some in ids.chunks(EACH as usize) {
        plane.terminate_instances(caller, some).await?;
    }
    Ok(())
}

async fn until(plane: &Plane, is: impl Fn(&Instance) -> bool, count: usize) {
    while plane.view().count::<Instance>(&is) < count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn sample<T>(ask: impl Fn() -> T) -> Vec<Duration> {
    (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(ask());
            start.elapsed()
        })
        .collect()
}

fn percentiles(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort_unstable();
    let at = |part: usize| {
        let index = (times.len() * part / 100).min(times.len() - 1);
        times[index].as_secs_f64() * 1e6
    };
    serde_json::json!({ "p50": at(50), "p99": at(99) })
}

fn rate(count: usize, time: Duration) -> u64 {
    (count as f64 / time.as_secs_f64()) as u64
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
