//! How long EC2's answers take with many instances, over TCP, with signatures,
//! on a simulated host: `cargo run --release -p ec2 --example latency
//! [INSTANCES]`. Prints what was measured as JSON.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::{NewSubnet, Plane, RegisterImage, RunInstances};
use host::{Layout, Patience, Reconciler, Simulated, SimulatedConfig};
use model::{Instance, InstanceState, Quota, Tags};
use support::Client;

/// Instances of one request.
const EACH: u32 = 20;
/// Measurements of each kind of question.
const SAMPLES: usize = 200;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Its name in the figures, its action, its parameters.
type Question<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let count = std::env::args().nth(1).map(|text| text.parse());
    let count: usize = count.transpose()?.unwrap_or(10_000);
    let client = Arc::new(Client::new().await);
    let directory = tempfile::tempdir()?;
    let (driver, changes) = Simulated::new(SimulatedConfig {
        takes_ports: false,
        ..SimulatedConfig::default()
    });
    driver.add_content("debian");
    let reconciler = Reconciler::new(
        client.plane.clone(),
        Arc::new(driver),
        Layout::new(directory.path().to_owned()),
        Patience::default(),
    );
    tokio::spawn(reconciler.run(changes));
    run(&client, count).await?;
    let all = client.plane.list::<Instance>(&client.caller);
    let one = all[count / 2].record.id.to_string();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let door = Arc::clone(&client.door);
    tokio::spawn(ec2::serve(listener, door, std::future::pending()));
    let mut figures = serde_json::Map::new();
    figures.insert("instances".into(), count.into());
    let questions: [Question; 5] = [
        ("one_by_id", "DescribeInstances", &[("InstanceId.1", &one)]),
        (
            "a_hundredth_by_tag",
            "DescribeInstances",
            &[("Filter.1.Name", "tag:group"), ("Filter.1.Value.1", "7")],
        ),
        ("page_of_100", "DescribeInstances", &[("MaxResults", "100")]),
        (
            "page_of_1000",
            "DescribeInstances",
            &[("MaxResults", "1000")],
        ),
        (
            "write_a_tag",
            "CreateTags",
            &[
                ("ResourceId.1", &one),
                ("Tag.1.Key", "touched"),
                ("Tag.1.Value", "yes"),
            ],
        ),
    ];
    for (name, action, parameters) in questions {
        let form = Client::form(action, parameters);
        let asking = Arc::clone(&client);
        let times = tokio::task::spawn_blocking(move || sample(&asking, address, &form)).await??;
        figures.insert(format!("{name}_us"), times);
    }
    println!("{:#}", serde_json::Value::Object(figures));
    Ok(())
}

/// Starts instances, and waits until they run.
async fn run(client: &Client, count: usize) -> Result<(), Failure> {
    let (plane, caller): (&Plane, _) = (&client.plane, &client.caller);
    for quota in Quota::ALL {
        let account = &caller.account;
        plane
            .set_quota(caller, account, quota, Some(1 << 40))
            .await?;
    }
    let new = NewSubnet {
        vpc: plane.default_vpc(caller)?.id,
        cidr: "172.31.128.0/17".parse()?,
        zone: None,
        tags: Tags::new(),
    };
    let subnet = plane.create_subnet(caller, new).await?.id;
    let snapshot = plane.adopt_snapshot(caller, "debian", 1 << 30, 0, "");
    let image = RegisterImage::of("debian", snapshot.await?.id);
    let image = plane.register_image(caller, image).await?.id;
    for request in 0..count.div_ceil(EACH as usize) {
        let group = (request % 100).to_string();
        let new = RunInstances {
            count: EACH,
            subnet: Some(subnet.clone()),
            tags: [("group".to_owned(), group)].into(),
            ..RunInstances::new(image.clone(), "t3.micro")
        };
        plane.run_instances(caller, new, None).await?;
    }
    let running = |i: &Instance| i.state == InstanceState::Running;
    while plane.view().filter::<Instance>(running).len() < count {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Percentiles of the times from a new connection to the whole answer, in
/// microseconds.
fn sample(client: &Client, address: SocketAddr, form: &str) -> Result<serde_json::Value, Failure> {
    let mut times = Vec::new();
    let mut length = 0;
    for _ in 0..SAMPLES {
        let request = client.signed("ec2", form);
        let mut head = format!(
            "POST / HTTP/1.1\r\ncontent-length: {}\r\nconnection: close\r\n",
            form.len()
        );
        for (name, value) in &request.headers {
            head += &format!("{name}: {}\r\n", value.to_str()?);
        }
        let start = Instant::now();
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(format!("{head}\r\n{form}").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        times.push(start.elapsed());
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&answer).into());
        }
        length = answer.len();
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros() as u64;
    Ok(serde_json::json!({"p50": at(50), "p90": at(90), "p99": at(99), "answer_bytes": length}))
}
