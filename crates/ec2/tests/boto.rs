//! boto3 and the AWS CLI, unmodified, against the door on a simulated host.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use host::{Layout, Patience, Reconciler, Simulated, SimulatedConfig};
use support::Client;
use tokio::net::TcpListener;

/// A token that a client makes by itself must be taken.
#[test]
fn every_client_token_is_understood() {
    for handler in ec2::actions::all() {
        let action = &ec2::facts::facts().actions[handler.name];
        let has = action.parameters.iter().any(|p| p.name == "ClientToken");
        assert_eq!(
            has,
            handler.understood.contains(&"ClientToken"),
            "{}",
            handler.name
        );
    }
}

struct Served {
    client: Client,
    url: String,
    _directory: tempfile::TempDir,
}

/// A door over TCP, and a simulated host that does what is asked for.
async fn served() -> Served {
    let client = Client::new().await;
    let directory = tempfile::tempdir().unwrap();
    let (driver, changes) = Simulated::new(SimulatedConfig::default());
    driver.add_content("debian");
    let layout = Layout::new(directory.path().to_owned());
    let reconciler = Reconciler::new(
        client.plane.clone(),
        Arc::new(driver),
        layout,
        Patience::default(),
    );
    tokio::spawn(reconciler.run(changes));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(ec2::serve(
        listener,
        Arc::clone(&client.door),
        std::future::pending(),
    ));
    Served {
        client,
        url,
        _directory: directory,
    }
}

impl Served {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(clients::program(program));
        let (id, secret) = self.client.credentials();
        command
            .env("AWS_ENDPOINT_URL", &self.url)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", id)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
            .env("AWS_PAGER", "");
        command
    }
}

/// Runs to the end; its output.
async fn finish(mut command: Command) -> String {
    let done = tokio::task::spawn_blocking(move || command.output()).await;
    let done = done.unwrap().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout).into_owned(),
        String::from_utf8_lossy(&done.stderr).into_owned(),
    );
    assert!(done.status.success(), "{out}\n{err}");
    out
}

async fn snapshot(served: &Served) -> String {
    let plane = &served.client.plane;
    let caller = &served.client.caller;
    let made = plane.adopt_snapshot(caller, "debian", 2 << 30, 1 << 20, "debian");
    made.await.unwrap().id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_with_its_waiters_and_paginators() {
    let served = served().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boto/walk.py");
    let mut command = served.command("python");
    command.arg(script).arg(snapshot(&served).await);
    let said = finish(command).await;
    assert!(said.ends_with("all of it\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_aws_cli() {
    let served = served().await;
    let aws = async |words: &str| {
        let mut command = served.command("aws");
        command.args(words.split(' '));
        finish(command).await
    };
    let identity = aws("sts get-caller-identity --query Account --output text").await;
    assert_eq!(identity.trim(), served.client.caller.account.as_str());
    let id = snapshot(&served).await;
    let mapping = format!("DeviceName=/dev/xvda,Ebs={{SnapshotId={id}}}");
    let image = aws(&format!(
        "ec2 register-image --name debian --root-device-name /dev/xvda --block-device-mappings {mapping} --query ImageId --output text"
    )).await;
    aws("ec2 create-key-pair --key-name my-key-pair --key-type ed25519 --query KeyMaterial --output text").await;
    let group = aws("ec2 create-security-group --group-name ssh --description ssh --query GroupId --output text").await;
    let group = group.trim();
    aws(&format!("ec2 authorize-security-group-ingress --group-id {group} --protocol tcp --port 22 --cidr 0.0.0.0/0")).await;
    let subnet = aws("ec2 describe-subnets --filters Name=default-for-az,Values=true --query Subnets[0].SubnetId --output text").await;
    let image = image.trim();
    let run = aws(&format!(
        "ec2 run-instances --image-id {image} --instance-type t3.micro --key-name my-key-pair --security-group-ids {group} --subnet-id {} --count 1 --query Instances[0].InstanceId --output text",
        subnet.trim()
    )).await;
    let instance = run.trim();
    aws(&format!(
        "ec2 wait instance-running --instance-ids {instance}"
    ))
    .await;
    let address = aws(&format!("ec2 describe-instances --instance-ids {instance} --query Reservations[0].Instances[0].PublicIpAddress --output text")).await;
    assert!(address.starts_with("127.86."), "{address}");
    aws(&format!(
        "ec2 terminate-instances --instance-ids {instance}"
    ))
    .await;
    aws(&format!(
        "ec2 wait instance-terminated --instance-ids {instance}"
    ))
    .await;
}
