//! Instances, from the first to the last.

use model::Instance;

use crate::settle;
use crate::support::Client;

pub async fn instances(client: &Client, ami: &str, subnet: &str, group: &str) -> String {
    let request = [
        ("ImageId", ami),
        ("InstanceType", "t3.micro"),
        ("MinCount", "1"),
        ("MaxCount", "2"),
        ("KeyName", "mine"),
        ("SubnetId", subnet),
        ("SecurityGroupId.1", group),
        ("UserData", "I2Nsb3VkLWNvbmZpZwo="),
        ("ClientToken", "once"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/sdb"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "1"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "Name"),
        ("TagSpecification.1.Tag.1.Value", "web"),
    ];
    let run = client.ok("RunInstances", &request).await;
    let again = client.ok("RunInstances", &request).await;
    assert_eq!(
        again.text("reservationId"),
        run.text("reservationId"),
        "the token makes it one request"
    );
    assert_eq!(run.items("instancesSet").len(), 2);
    let id = run.text("instancesSet/item/instanceId");
    let other = run.items("instancesSet")[1].text("instanceId");
    let mut different = request.to_vec();
    different[1] = ("InstanceType", "t3.small");
    assert_eq!(
        client.code("RunInstances", &different).await,
        "IdempotentParameterMismatch"
    );
    settle(client).await;
    client
        .ok(
            "RunInstances",
            &[
                ("ImageId", ami),
                ("MinCount", "1"),
                ("MaxCount", "1"),
                ("NetworkInterface.1.DeviceIndex", "0"),
                ("NetworkInterface.1.AssociatePublicIpAddress", "true"),
                ("MetadataOptions.HttpTokens", "required"),
                ("DryRun", "false"),
            ],
        )
        .await;
    settle(client).await;
    let shown = client
        .ok("DescribeInstances", &[("InstanceId.1", &id)])
        .await;
    let shown = shown.find("reservationSet/item/instancesSet/item").unwrap();
    assert_eq!(shown.text("instanceState/name"), "running");
    assert!(shown.text("privateIpAddress").starts_with("10.9.1."));
    assert!(shown.text("ipAddress").starts_with("127.86."));
    assert_eq!(shown.items("blockDeviceMapping").len(), 2);
    let status = client
        .ok("DescribeInstanceStatus", &[("InstanceId.1", &id)])
        .await;
    assert_eq!(
        status.text("instanceStatusSet/item/instanceStatus/status"),
        "ok"
    );
    let cards = client
        .ok(
            "DescribeNetworkInterfaces",
            &[
                ("Filter.1.Name", "attachment.instance-id"),
                ("Filter.1.Value.1", &id),
            ],
        )
        .await;
    assert_eq!(cards.items("networkInterfaceSet").len(), 1);
    client.ok("GetConsoleOutput", &[("InstanceId", &id)]).await;
    attributes(client, &id, group).await;
    assert_eq!(
        client
            .code("DeleteSecurityGroup", &[("GroupId", group)])
            .await,
        "DependencyViolation"
    );
    client.ok("RebootInstances", &[("InstanceId.1", &id)]).await;
    client
        .ok("TerminateInstances", &[("InstanceId.1", &other)])
        .await;
    settle(client).await;
    let gone = client
        .ok(
            "DescribeInstances",
            &[
                ("Filter.1.Name", "instance-state-name"),
                ("Filter.1.Value.1", "terminated"),
            ],
        )
        .await;
    assert_eq!(
        gone.text("reservationSet/item/instancesSet/item/instanceId"),
        other
    );
    id
}

async fn attributes(client: &Client, id: &str, group: &str) {
    let of = ("InstanceId", id);
    client
        .ok(
            "ModifyInstanceAttribute",
            &[of, ("DisableApiTermination.Value", "true")],
        )
        .await;
    assert_eq!(
        client
            .code("TerminateInstances", &[("InstanceId.1", id)])
            .await,
        "OperationNotPermitted"
    );
    client
        .ok(
            "ModifyInstanceAttribute",
            &[
                of,
                ("Attribute", "disableApiTermination"),
                ("Value", "false"),
            ],
        )
        .await;
    client
        .ok("ModifyInstanceAttribute", &[of, ("GroupId.1", group)])
        .await;
    client
        .ok(
            "ModifyInstanceAttribute",
            &[
                of,
                ("BlockDeviceMapping.1.DeviceName", "/dev/sdb"),
                ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
            ],
        )
        .await;
    let options = client
        .ok(
            "ModifyInstanceMetadataOptions",
            &[of, ("HttpTokens", "required")],
        )
        .await;
    assert_eq!(
        options.text("instanceMetadataOptions/httpTokens"),
        "required"
    );
    let shown = |name: &'static str| {
        client.ok(
            "DescribeInstanceAttribute",
            Vec::leak(vec![
                ("InstanceId", String::leak(id.to_owned()) as &str),
                ("Attribute", name),
            ]),
        )
    };
    assert_eq!(
        shown("userData").await.text("userData/value"),
        "I2Nsb3VkLWNvbmZpZwo="
    );
    assert_eq!(
        shown("disableApiTermination")
            .await
            .text("disableApiTermination/value"),
        "false"
    );
    for name in [
        "instanceType",
        "disableApiStop",
        "instanceInitiatedShutdownBehavior",
        "rootDeviceName",
        "blockDeviceMapping",
        "groupSet",
        "sourceDestCheck",
        "ebsOptimized",
        "enaSupport",
        "productCodes",
        "kernel",
        "ramdisk",
        "sriovNetSupport",
        "enclaveOptions",
    ] {
        shown(name).await;
    }
}

/// An account that may have two more gets two of one to three, and none of
/// three to four.
pub async fn as_many_as_the_account_may_have(client: &Client, ami: &str) {
    let count = |least: &'static str, most: &'static str| {
        [
            ("ImageId", ami),
            ("InstanceType", "t3.micro"),
            ("MinCount", least),
            ("MaxCount", most),
        ]
    };
    let quota = model::Quota::Instances;
    let quotas = client.plane.quotas(&client.caller);
    let has = quotas.iter().find(|report| report.quota == quota);
    let has = has.and_then(|report| report.used).unwrap();
    let limit = |limit| {
        let account = &client.caller.account;
        client
            .plane
            .set_quota(&client.caller, account, quota, limit)
    };
    limit(Some(has + 2)).await.unwrap();
    assert_eq!(
        client.code("RunInstances", &count("3", "4")).await,
        "InstanceLimitExceeded"
    );
    let mut asked = count("1", "3").to_vec();
    asked.push(("ClientToken", "as-many-as-possible"));
    let made = client.ok("RunInstances", &asked).await;
    let made = made.items("instancesSet");
    assert_eq!(made.len(), 2);
    assert_eq!(made[0].text("clientToken"), "as-many-as-possible");
    limit(None).await.unwrap();
    for instance in made {
        let id = instance.text("instanceId");
        client
            .ok("TerminateInstances", &[("InstanceId.1", &id)])
            .await;
    }
    settle(client).await;
}

/// What Terraform asks besides.
pub async fn defaults(client: &Client, id: &str) {
    let credits = client.ok("DescribeInstanceCreditSpecifications", &[]).await;
    assert!(credits.items("instanceCreditSpecificationSet").is_empty());
    let named = [("InstanceId.1", id)];
    assert_eq!(
        client
            .code("DescribeInstanceCreditSpecifications", &named)
            .await,
        "UnsupportedOperation"
    );
    let defaults = client.ok("GetInstanceMetadataDefaults", &[]).await;
    assert!(defaults.find("accountLevel/httpTokens").is_none());
}

pub async fn end(
    client: &Client,
    (vpc, subnet, group): (&str, &str, &str),
    instance: &str,
    ami: &str,
) {
    let of = ("InstanceId.1", instance);
    client.ok("StopInstances", &[of]).await;
    settle(client).await;
    let stopped = client.ok("StartInstances", &[of]).await;
    assert_eq!(
        stopped.text("instancesSet/item/previousState/name"),
        "stopped"
    );
    settle(client).await;
    client.ok("TerminateInstances", &[of]).await;
    settle(client).await;
    client
        .ok("DeleteSecurityGroup", &[("GroupId", group)])
        .await;
    client.ok("DeleteSubnet", &[("SubnetId", subnet)]).await;
    client.ok("DeleteVpc", &[("VpcId", vpc)]).await;
    client.ok("DeleteKeyPair", &[("KeyName", "mine")]).await;
    client.ok("DeregisterImage", &[("ImageId", ami)]).await;
    default_again(client).await;
}

/// The default VPC can go, and come again.
async fn default_again(client: &Client) {
    assert_eq!(
        client.code("CreateDefaultVpc", &[]).await,
        "DefaultVpcAlreadyExists"
    );
    let vpc = client
        .ok("DescribeVpcs", &[])
        .await
        .text("vpcSet/item/vpcId");
    for instance in client.plane.view().all::<Instance>() {
        if !instance.record.is_terminated() {
            let of = [("InstanceId.1", instance.id.as_str())];
            client.ok("TerminateInstances", &of).await;
        }
    }
    settle(client).await;
    let subnets = client.ok("DescribeSubnets", &[]).await;
    let subnet = subnets.text("subnetSet/item/subnetId");
    client.ok("DeleteSubnet", &[("SubnetId", &subnet)]).await;
    let gateways = client.ok("DescribeInternetGateways", &[]).await;
    let gateway = gateways.text("internetGatewaySet/item/internetGatewayId");
    let of = ("InternetGatewayId", gateway.as_str());
    client
        .ok("DetachInternetGateway", &[of, ("VpcId", &vpc)])
        .await;
    client.ok("DeleteInternetGateway", &[of]).await;
    client.ok("DeleteVpc", &[("VpcId", &vpc)]).await;
    let made = client.ok("CreateDefaultVpc", &[]).await;
    assert_eq!(made.text("vpc/isDefault"), "true");
}
