//! The door as the world finds it: over TCP, with requests of every kind.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use support::{Client, Xml};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn served(client: &Client) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(ec2::serve(
        listener,
        Arc::clone(&client.door),
        std::future::pending(),
    ));
    address
}

/// Sends bytes and reads what comes until the end; status and body.
async fn exchange(to: SocketAddr, bytes: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // A server that has read enough may close before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).map_or(0, |s| s.parse().unwrap());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

fn post(request: &ec2::Request, body: &[u8]) -> Vec<u8> {
    let mut text = String::from("POST / HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in &request.headers {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    [text.as_bytes(), body].concat()
}

fn code(body: &str) -> String {
    Xml::parse(body).text("Errors/Error/Code")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_by_action_and_code() {
    let client = Client::new().await;
    let to = served(&client).await;
    for (action, parameters, status) in [
        ("DescribeRegions", &[][..], 200),
        ("DescribeRegions", &[][..], 200),
        (
            "DescribeVpcs",
            &[("VpcId.1", "vpc-0123456789abcdef0")][..],
            400,
        ),
        ("InventNothing", &[][..], 400),
    ] {
        let form = Client::form(action, parameters);
        let signed = client.signed("ec2", &form);
        let (answer, body) = exchange(to, &post(&signed, form.as_bytes())).await;
        assert_eq!(answer, status, "{body}");
    }
    let encoder = prometheus::TextEncoder::new();
    let text = encoder.encode_to_string(&client.registry.gather()).unwrap();
    for line in [
        "holm_ec2_requests_total{action=\"DescribeRegions\",code=\"OK\"} 2\n",
        "holm_ec2_requests_total{action=\"DescribeVpcs\",code=\"InvalidVpcID.NotFound\"} 1\n",
        "holm_ec2_requests_total{action=\"none\",code=\"InvalidAction\"} 1\n",
        "holm_ec2_request_duration_seconds_count{action=\"DescribeRegions\"} 2\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_every_kind_get_their_answer() {
    let client = Client::new().await;
    let to = served(&client).await;
    let form = Client::form("DescribeRegions", &[]);
    let good = client.signed("ec2", &form);
    let (status, body) = exchange(to, &post(&good, form.as_bytes())).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        Xml::parse(&body).text("regionInfo/item/regionEndpoint"),
        "127.0.0.1:4780"
    );
    // The same once more, as SDKs do that ask twice in one second.
    assert_eq!(exchange(to, &post(&good, form.as_bytes())).await.0, 200);

    let (status, body) = exchange(to, &post(&good, b"Action=TerminateInstances")).await;
    assert_eq!(
        (status, code(&body).as_str()),
        (403, "SignatureDoesNotMatch")
    );

    let mut unsigned = client.signed("ec2", &form);
    unsigned.headers.remove("authorization");
    let (status, body) = exchange(to, &post(&unsigned, form.as_bytes())).await;
    assert_eq!(
        (status, code(&body).as_str()),
        (403, "MissingAuthenticationToken")
    );

    let large = vec![b'a'; ec2::BODY_MAX + 1];
    let (status, body) = exchange(to, &post(&good, &large)).await;
    assert_eq!(
        (status, code(&body).as_str()),
        (413, "RequestEntityTooLarge")
    );

    let (status, body) = exchange(
        to,
        b"GET /favicon.ico HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!((status, code(&body).as_str()), (404, "InvalidAction"));
    let (status, body) = exchange(
        to,
        b"PUT / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!((status, code(&body).as_str()), (405, "InvalidRequest"));
    assert_eq!(
        exchange(to, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
            .await
            .0,
        400
    );
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(200 << 10));
    assert_eq!(exchange(to, head.as_bytes()).await.0, 431);
    // And it goes on.
    assert_eq!(exchange(to, &post(&good, form.as_bytes())).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_what_is_wrong() {
    let client = Client::new().await;
    let refused = async |action: &str, parameters: &[(&str, &str)]| {
        let refused = client.call(action, parameters).await.unwrap_err();
        (
            refused.status,
            format!("{}: {}", refused.code, refused.message),
        )
    };
    for (action, parameters, said) in [
        (
            "MakeCoffee",
            &[][..],
            "InvalidAction: The action MakeCoffee is not valid for this web service.",
        ),
        (
            "CreateFleet",
            &[],
            "UnsupportedOperation: Holm does not support the action CreateFleet",
        ),
        (
            "StopInstances",
            &[],
            "MissingParameter: The request must contain the parameter InstanceId",
        ),
        (
            "StopInstances",
            &[("InstanceId.1", "i-x")],
            "InvalidInstanceID.Malformed: Invalid id: \"i-x\" (expecting \"i-...\")",
        ),
        (
            "StopInstances",
            &[("InstanceId.1", "i-01234567")],
            "InvalidInstanceID.NotFound: The instance ID 'i-01234567' does not exist",
        ),
        (
            "DescribeInstances",
            &[("Instance", "1")],
            "UnknownParameter: The parameter Instance is not recognized",
        ),
        (
            "DescribeInstances",
            &[("MaxResults", "4")],
            "InvalidParameterValue: Value (4) for parameter MaxResults is invalid. It must be between 5 and 1000.",
        ),
        (
            "DescribeInstances",
            &[("MaxResults", "5"), ("InstanceId.1", "i-01234567")],
            "InvalidParameterCombination: The parameter InstanceId cannot be used with the parameter MaxResults",
        ),
        (
            "DescribeInstances",
            &[("NextToken", "abc")],
            "InvalidNextToken: The NextToken is not one that this request's answer had",
        ),
        (
            "CreateVpc",
            &[("CidrBlock", "10.0.0.0/8")],
            "InvalidVpc.Range: Invalid value for CidrBlock: 10.0.0.0/8 cannot be a VPC: its prefix is 16 to 28 bits long",
        ),
        (
            "DeleteVpc",
            &[("VpcId", "vpc-01234567")],
            "InvalidVpcID.NotFound: The vpc ID 'vpc-01234567' does not exist",
        ),
        (
            "ImportKeyPair",
            &[("KeyName", "k"), ("PublicKeyMaterial", "aGVsbG8=")],
            "InvalidKey.Format: Invalid value for PublicKeyMaterial: the public key cannot be used: it is not in OpenSSH's form, as `ssh-ed25519 AAAA… name`",
        ),
        (
            "CreateTags",
            &[
                ("ResourceId.1", "vpc-01234567"),
                ("Tag.1.Key", "aws:x"),
                ("Tag.1.Value", ""),
            ],
            "InvalidParameterValue: Invalid value for Tags: the tag \"aws:x\" cannot be: keys that begin with aws: are reserved",
        ),
        (
            "RunInstances",
            &[
                ("ImageId", "ami-01234567"),
                ("MinCount", "1"),
                ("MaxCount", "1"),
            ],
            "InvalidAMIID.NotFound: The image id '[ami-01234567]' does not exist",
        ),
        (
            "CreateSecurityGroup",
            &[("GroupName", "default"), ("GroupDescription", "d")],
            "InvalidGroup.Duplicate: ",
        ),
    ] {
        let (status, text) = refused(action, parameters).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.starts_with(said), "{text}\n{said}");
    }
    // What is asked of STS is refused in its form.
    let request = client.signed("sts", "Action=AssumeRole&Version=2011-06-15");
    let (status, _, text) = client.send(&request).await;
    let root = Xml::parse(&text);
    assert_eq!((status, root.name.as_str()), (400, "ErrorResponse"));
    assert_eq!(root.text("Error/Code"), "InvalidAction");
    let request = client.signed("ec2", "Action=DescribeVpcs&Version=2016-11-16");
    assert!(client.send(&request).await.2.contains("NoSuchVersion"));
    let request = client.signed("iam", "Action=ListAccountAliases&Version=2010-05-08");
    let (_, _, text) = client.send(&request).await;
    assert_eq!(
        Xml::parse(&text).text("Error/Message"),
        "Holm has no service iam"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_everything_once() {
    let client = Client::new().await;
    for number in 0..13 {
        let cidr = format!("10.{number}.0.0/16");
        client.ok("CreateVpc", &[("CidrBlock", &cidr)]).await;
    }
    let mut ids = Vec::new();
    let mut token = String::new();
    loop {
        let page = client
            .ok(
                "DescribeVpcs",
                &[("MaxResults", "5"), ("NextToken", &token)],
            )
            .await;
        let found = page.items("vpcSet");
        assert!(found.len() <= 5);
        ids.extend(found.iter().map(|vpc| vpc.text("vpcId")));
        match page.find("nextToken") {
            Some(next) => token = next.text.clone(),
            None => break,
        }
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 14, "with the default one");
    // A token is of its own question only.
    let other = [
        ("NextToken", token.as_str()),
        ("Filter.1.Name", "cidr"),
        ("Filter.1.Value.1", "10.*"),
    ];
    assert_eq!(
        client.code("DescribeVpcs", &other).await,
        "InvalidNextToken"
    );
    assert_eq!(
        client
            .code("DescribeSubnets", &[("NextToken", &token)])
            .await,
        "InvalidNextToken"
    );
}

/// Actions that change something, with enough to be fine.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing() {
    let client = Client::new().await;
    let vpc = client
        .ok("DescribeVpcs", &[])
        .await
        .text("vpcSet/item/vpcId");
    let subnet = client
        .ok("DescribeSubnets", &[])
        .await
        .text("subnetSet/item/subnetId");
    let group = client
        .ok("DescribeSecurityGroups", &[])
        .await
        .text("securityGroupInfo/item/groupId");
    let before = client.plane.view().revision();
    for (action, parameters) in [
        ("CreateVpc", &[("CidrBlock", "10.0.0.0/16")][..]),
        ("DeleteVpc", &[("VpcId", &vpc)]),
        (
            "CreateSubnet",
            &[("VpcId", &vpc), ("CidrBlock", "172.31.64.0/24")],
        ),
        ("DeleteSubnet", &[("SubnetId", &subnet)]),
        (
            "CreateSecurityGroup",
            &[("GroupName", "a"), ("GroupDescription", "b")],
        ),
        (
            "AuthorizeSecurityGroupIngress",
            &[
                ("GroupId", &group),
                ("IpProtocol", "-1"),
                ("CidrIp", "0.0.0.0/0"),
            ],
        ),
        ("CreateKeyPair", &[("KeyName", "k")]),
        (
            "CreateVolume",
            &[("AvailabilityZone", "us-east-1a"), ("Size", "1")],
        ),
        ("CreateInternetGateway", &[]),
        ("CreateRouteTable", &[("VpcId", &vpc)]),
        (
            "CreateTags",
            &[
                ("ResourceId.1", &vpc),
                ("Tag.1.Key", "a"),
                ("Tag.1.Value", "b"),
            ],
        ),
        ("DescribeVpcs", &[]),
        ("DescribeInstances", &[]),
        ("DescribeRegions", &[]),
    ] {
        let parameters: Vec<_> = parameters
            .iter()
            .copied()
            .chain([("DryRun", "true")])
            .collect();
        let refused = client.call(action, &parameters).await.unwrap_err();
        assert_eq!(
            (refused.status, refused.code.as_str()),
            (412, "DryRunOperation"),
            "{action}"
        );
    }
    assert_eq!(client.plane.view().revision(), before);
}
