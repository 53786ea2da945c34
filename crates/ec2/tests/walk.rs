//! Every action, as its clients ask for it; every response against what the
//! wire has; and the table of docs/ec2.md against both.

mod support;
mod table;

use std::collections::BTreeSet;

use model::{
    AttachmentState, Instance, InstanceState, Snapshot, SnapshotState, Timestamp, Volume,
    VolumeState,
};
use support::Client;

/// What the host does, done at once.
async fn settle(client: &Client) {
    let plane = &client.plane;
    for found in plane.view().all::<Instance>() {
        plane
            .edit::<Instance>(&found.id, |instance, _| {
                instance.state = match instance.state {
                    InstanceState::Pending => InstanceState::Running,
                    InstanceState::Stopping => InstanceState::Stopped,
                    other => other,
                };
                instance.boot.ready = Some(Timestamp::now());
                Ok(())
            })
            .await
            .unwrap();
        if found.record.state == InstanceState::ShuttingDown {
            plane.instance_gone(&found.record.id).await.unwrap();
        }
    }
    for found in plane.view().all::<Volume>() {
        let attachment = found.record.attachment.as_ref();
        if let Some(attachment) = attachment.filter(|attachment| attachment.detaching) {
            plane
                .edit::<Instance>(&attachment.instance, |instance, _| {
                    instance.disks.retain(|disk| disk.volume != found.record.id);
                    Ok(())
                })
                .await
                .unwrap();
        }
        plane
            .edit::<Volume>(&found.id, |volume, _| {
                volume.actual_size = volume.size;
                volume.state = match &mut volume.attachment {
                    Some(attachment) if attachment.detaching => {
                        volume.attachment = None;
                        VolumeState::Available
                    }
                    Some(attachment) => {
                        attachment.state = AttachmentState::Attached;
                        VolumeState::InUse
                    }
                    None => VolumeState::Available,
                };
                Ok(())
            })
            .await
            .unwrap();
    }
    for found in plane.view().all::<Snapshot>() {
        plane
            .edit::<Snapshot>(&found.id, |snapshot, _| {
                snapshot.state = SnapshotState::Completed;
                snapshot.progress = 100;
                snapshot.completed = Some(Timestamp::now());
                Ok(())
            })
            .await
            .unwrap();
    }
}

/// An image of an imported disk of 2 GiB.
async fn image(client: &Client) -> String {
    let snapshot = client
        .plane
        .adopt_snapshot(&client.caller, "digest", 2 << 30, 1 << 20, "imported")
        .await
        .unwrap();
    let id = snapshot.id.as_str();
    let image = client
        .ok(
            "RegisterImage",
            &[
                ("Name", "debian 12"),
                ("Description", "for <tests> & \"such\""),
                ("Architecture", "x86_64"),
                ("VirtualizationType", "hvm"),
                ("RootDeviceName", "/dev/xvda"),
                ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
                ("BlockDeviceMapping.1.Ebs.SnapshotId", id),
                ("TagSpecification.1.ResourceType", "image"),
                ("TagSpecification.1.Tag.1.Key", "Name"),
                ("TagSpecification.1.Tag.1.Value", "debian"),
            ],
        )
        .await;
    image.text("imageId")
}

async fn identity_and_places(client: &Client) {
    let identity = client.ok("GetCallerIdentity", &[]).await;
    assert_eq!(identity.text("Account"), client.caller.account.as_str());
    let regions = client
        .ok(
            "DescribeRegions",
            &[
                ("Filter.1.Name", "region-name"),
                ("Filter.1.Value.1", "us-*"),
            ],
        )
        .await;
    assert_eq!(regions.text("regionInfo/item/regionName"), "us-east-1");
    let zones = client
        .ok("DescribeAvailabilityZones", &[("ZoneId.1", "use1-az1")])
        .await;
    assert_eq!(
        zones.text("availabilityZoneInfo/item/zoneName"),
        "us-east-1a"
    );
    let attributes = client.ok("DescribeAccountAttributes", &[]).await;
    assert!(attributes.items("accountAttributeSet").len() >= 5);
    let sizes = client
        .ok("DescribeInstanceTypes", &[("InstanceType.1", "t3.micro")])
        .await;
    assert_eq!(
        sizes.text("instanceTypeSet/item/memoryInfo/sizeInMiB"),
        "1024"
    );
    client
        .ok(
            "DescribeInstanceTypeOfferings",
            &[("LocationType", "availability-zone"), ("MaxResults", "5")],
        )
        .await;
    client.ok("DescribeDhcpOptions", &[]).await;
}

/// A VPC with a subnet, a gateway, a table and a group; ids of subnet and
/// group.
async fn network(client: &Client) -> (String, String, String) {
    let vpc = client
        .ok(
            "CreateVpc",
            &[("CidrBlock", "10.9.0.0/16"), ("InstanceTenancy", "default")],
        )
        .await
        .text("vpc/vpcId");
    for attribute in [
        "enableDnsSupport",
        "enableDnsHostnames",
        "enableNetworkAddressUsageMetrics",
    ] {
        client
            .ok(
                "DescribeVpcAttribute",
                &[("VpcId", &vpc), ("Attribute", attribute)],
            )
            .await;
    }
    client
        .ok(
            "ModifyVpcAttribute",
            &[("VpcId", &vpc), ("EnableDnsHostnames.Value", "true")],
        )
        .await;
    let vpcs = client
        .ok(
            "DescribeVpcs",
            &[("Filter.1.Name", "cidr"), ("Filter.1.Value.1", "10.9.*")],
        )
        .await;
    assert_eq!(vpcs.text("vpcSet/item/vpcId"), vpc);
    let subnet = client
        .ok(
            "CreateSubnet",
            &[
                ("VpcId", &vpc),
                ("CidrBlock", "10.9.1.0/24"),
                ("AvailabilityZone", "us-east-1a"),
            ],
        )
        .await
        .text("subnet/subnetId");
    client
        .ok(
            "ModifySubnetAttribute",
            &[("SubnetId", &subnet), ("MapPublicIpOnLaunch.Value", "true")],
        )
        .await;
    let subnets = client
        .ok("DescribeSubnets", &[("SubnetId.1", &subnet)])
        .await;
    assert_eq!(
        subnets.text("subnetSet/item/availableIpAddressCount"),
        "251"
    );
    assert_eq!(subnets.text("subnetSet/item/mapPublicIpOnLaunch"), "true");
    let gateway = client
        .ok("CreateInternetGateway", &[])
        .await
        .text("internetGateway/internetGatewayId");
    client
        .ok(
            "AttachInternetGateway",
            &[("InternetGatewayId", &gateway), ("VpcId", &vpc)],
        )
        .await;
    client
        .ok(
            "DescribeInternetGateways",
            &[
                ("Filter.1.Name", "attachment.vpc-id"),
                ("Filter.1.Value.1", &vpc),
            ],
        )
        .await;
    let table = client
        .ok("CreateRouteTable", &[("VpcId", &vpc)])
        .await
        .text("routeTable/routeTableId");
    let to = ("DestinationCidrBlock", "0.0.0.0/0");
    client
        .ok(
            "CreateRoute",
            &[("RouteTableId", &table), to, ("GatewayId", &gateway)],
        )
        .await;
    client
        .ok(
            "ReplaceRoute",
            &[("RouteTableId", &table), to, ("GatewayId", &gateway)],
        )
        .await;
    assert_eq!(
        client
            .code(
                "CreateRoute",
                &[("RouteTableId", &table), to, ("GatewayId", &gateway)]
            )
            .await,
        "RouteAlreadyExists"
    );
    let association = client
        .ok(
            "AssociateRouteTable",
            &[("RouteTableId", &table), ("SubnetId", &subnet)],
        )
        .await
        .text("associationId");
    let tables = client
        .ok(
            "DescribeRouteTables",
            &[
                ("Filter.1.Name", "association.subnet-id"),
                ("Filter.1.Value.1", &subnet),
            ],
        )
        .await;
    assert_eq!(tables.text("routeTableSet/item/routeTableId"), table);
    let association = client
        .ok(
            "ReplaceRouteTableAssociation",
            &[("AssociationId", &association), ("RouteTableId", &table)],
        )
        .await
        .text("newAssociationId");
    client
        .ok("DisassociateRouteTable", &[("AssociationId", &association)])
        .await;
    client
        .ok("DeleteRoute", &[("RouteTableId", &table), to])
        .await;
    client
        .ok("DeleteRouteTable", &[("RouteTableId", &table)])
        .await;
    client
        .ok(
            "DescribeNetworkAcls",
            &[("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", &vpc)],
        )
        .await;
    assert_eq!(
        client.code("DeleteVpc", &[("VpcId", &vpc)]).await,
        "DependencyViolation"
    );
    client
        .ok(
            "DetachInternetGateway",
            &[("InternetGatewayId", &gateway), ("VpcId", &vpc)],
        )
        .await;
    client
        .ok("DeleteInternetGateway", &[("InternetGatewayId", &gateway)])
        .await;
    let group = groups(client, &vpc).await;
    (vpc, subnet, group)
}

async fn groups(client: &Client, vpc: &str) -> String {
    let group = client
        .ok(
            "CreateSecurityGroup",
            &[
                ("GroupName", "web"),
                ("GroupDescription", "of the web"),
                ("VpcId", vpc),
                ("TagSpecification.1.ResourceType", "security-group"),
                ("TagSpecification.1.Tag.1.Key", "a"),
                ("TagSpecification.1.Tag.1.Value", "b"),
            ],
        )
        .await
        .text("groupId");
    let ssh = [
        ("GroupId", group.as_str()),
        ("IpProtocol", "tcp"),
        ("FromPort", "22"),
        ("ToPort", "22"),
        ("CidrIp", "0.0.0.0/0"),
    ];
    client.ok("AuthorizeSecurityGroupIngress", &ssh).await;
    assert_eq!(
        client.code("AuthorizeSecurityGroupIngress", &ssh).await,
        "InvalidPermission.Duplicate"
    );
    client
        .ok(
            "AuthorizeSecurityGroupIngress",
            &[
                ("GroupId", &group),
                ("IpPermissions.1.IpProtocol", "tcp"),
                ("IpPermissions.1.FromPort", "80"),
                ("IpPermissions.1.ToPort", "81"),
                ("IpPermissions.1.IpRanges.1.CidrIp", "10.0.0.0/8"),
                ("IpPermissions.1.IpRanges.1.Description", "inside"),
                ("IpPermissions.1.Ipv6Ranges.1.CidrIpv6", "::/0"),
                ("IpPermissions.1.Groups.1.GroupId", &group),
                ("IpPermissions.2.IpProtocol", "icmp"),
                ("IpPermissions.2.FromPort", "-1"),
                ("IpPermissions.2.ToPort", "-1"),
                ("IpPermissions.2.IpRanges.1.CidrIp", "0.0.0.0/0"),
                ("TagSpecification.1.ResourceType", "security-group-rule"),
                ("TagSpecification.1.Tag.1.Key", "a"),
                ("TagSpecification.1.Tag.1.Value", "b"),
            ],
        )
        .await;
    let all = ("IpPermissions.1.IpProtocol", "-1");
    // As Terraform does with a new group.
    client
        .ok(
            "RevokeSecurityGroupEgress",
            &[
                ("GroupId", &group),
                all,
                ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0"),
            ],
        )
        .await;
    let v6 = [
        ("GroupId", group.as_str()),
        all,
        ("IpPermissions.1.Ipv6Ranges.1.CidrIpv6", "::/0"),
    ];
    assert_eq!(
        client.code("RevokeSecurityGroupEgress", &v6).await,
        "InvalidPermission.NotFound"
    );
    client.ok("AuthorizeSecurityGroupEgress", &v6).await;
    let rules = client
        .ok(
            "DescribeSecurityGroupRules",
            &[("Filter.1.Name", "group-id"), ("Filter.1.Value.1", &group)],
        )
        .await;
    let rules = rules.items("securityGroupRuleSet");
    assert_eq!(rules.len(), 6);
    let id = rules
        .iter()
        .find(|rule| rule.text("fromPort") == "80" && rule.find("cidrIpv6").is_some())
        .unwrap()
        .text("securityGroupRuleId");
    client
        .ok(
            "RevokeSecurityGroupIngress",
            &[("GroupId", &group), ("SecurityGroupRuleId.1", &id)],
        )
        .await;
    let shown = client
        .ok("DescribeSecurityGroups", &[("GroupId.1", &group)])
        .await;
    let shown = shown.find("securityGroupInfo/item").unwrap();
    assert_eq!(shown.items("ipPermissions").len(), 3, "{shown:#?}");
    assert_eq!(
        shown.text("ipPermissionsEgress/item/ipv6Ranges/item/cidrIpv6"),
        "::/0"
    );
    group
}

async fn keys(client: &Client) {
    let made = client
        .ok(
            "CreateKeyPair",
            &[("KeyName", "mine"), ("KeyType", "ed25519")],
        )
        .await;
    assert!(
        made.text("keyMaterial")
            .starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    );
    assert_eq!(
        client.code("CreateKeyPair", &[("KeyName", "mine")]).await,
        "InvalidKeyPair.Duplicate"
    );
    let pairs = client
        .ok(
            "DescribeKeyPairs",
            &[("KeyName.1", "mine"), ("IncludePublicKey", "true")],
        )
        .await;
    let public = pairs.text("keySet/item/publicKey");
    use base64::Engine as _;
    let blob = base64::engine::general_purpose::STANDARD.encode(public);
    let imported = client
        .ok(
            "ImportKeyPair",
            &[("KeyName", "again"), ("PublicKeyMaterial", &blob)],
        )
        .await;
    assert_eq!(imported.text("keyFingerprint"), made.text("keyFingerprint"));
    client.ok("DeleteKeyPair", &[("KeyName", "again")]).await;
    client
        .ok("DeleteKeyPair", &[("KeyName", "never was")])
        .await;
    assert_eq!(
        client
            .code("DescribeKeyPairs", &[("KeyName.1", "again")])
            .await,
        "InvalidKeyPair.NotFound"
    );
}

async fn instances(client: &Client, ami: &str, subnet: &str, group: &str) -> String {
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

async fn storage(client: &Client, instance: &str) {
    let volume = client
        .ok(
            "CreateVolume",
            &[
                ("AvailabilityZone", "us-east-1a"),
                ("Size", "3"),
                ("VolumeType", "gp3"),
            ],
        )
        .await
        .text("volumeId");
    settle(client).await;
    client
        .ok(
            "AttachVolume",
            &[
                ("VolumeId", &volume),
                ("InstanceId", instance),
                ("Device", "/dev/sdf"),
            ],
        )
        .await;
    settle(client).await;
    let volumes = client
        .ok("DescribeVolumes", &[("VolumeId.1", &volume)])
        .await;
    assert_eq!(
        volumes.text("volumeSet/item/attachmentSet/item/status"),
        "attached"
    );
    assert_eq!(
        client.code("DeleteVolume", &[("VolumeId", &volume)]).await,
        "VolumeInUse"
    );
    client
        .ok("ModifyVolume", &[("VolumeId", &volume), ("Size", "4")])
        .await;
    let changes = client
        .ok("DescribeVolumesModifications", &[("VolumeId.1", &volume)])
        .await;
    assert_eq!(
        changes.text("volumeModificationSet/item/modificationState"),
        "modifying"
    );
    settle(client).await;
    let snapshot = client
        .ok(
            "CreateSnapshot",
            &[("VolumeId", &volume), ("Description", "before")],
        )
        .await
        .text("snapshotId");
    settle(client).await;
    let snapshots = client
        .ok(
            "DescribeSnapshots",
            &[("Owner.1", "self"), ("SnapshotId.1", &snapshot)],
        )
        .await;
    assert_eq!(snapshots.text("snapshotSet/item/status"), "completed");
    client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    settle(client).await;
    client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    client
        .ok("DeleteSnapshot", &[("SnapshotId", &snapshot)])
        .await;
}

async fn images(client: &Client, ami: &str, instance: &str) {
    let id = ("ImageId", ami);
    let all = client
        .ok(
            "DescribeImages",
            &[
                ("Owner.1", "self"),
                ("Filter.1.Name", "name"),
                ("Filter.1.Value.1", "debian*"),
            ],
        )
        .await;
    assert_eq!(
        all.text("imagesSet/item/description"),
        "for <tests> & \"such\""
    );
    client
        .ok(
            "ModifyImageAttribute",
            &[id, ("LaunchPermission.Add.1.UserId", "123456789012")],
        )
        .await;
    client
        .ok(
            "ModifyImageAttribute",
            &[
                id,
                ("Attribute", "launchPermission"),
                ("OperationType", "add"),
                ("UserGroup.1", "all"),
            ],
        )
        .await;
    client
        .ok("ModifyImageAttribute", &[id, ("Description.Value", "new")])
        .await;
    for attribute in ["launchPermission", "description", "blockDeviceMapping"] {
        client
            .ok("DescribeImageAttribute", &[id, ("Attribute", attribute)])
            .await;
    }
    let made = client
        .ok(
            "CreateImage",
            &[
                ("InstanceId", instance),
                ("Name", "of it"),
                ("NoReboot", "true"),
            ],
        )
        .await
        .text("imageId");
    settle(client).await;
    client.ok("DeregisterImage", &[("ImageId", &made)]).await;
    assert_eq!(
        client.code("DescribeImages", &[("ImageId.1", &made)]).await,
        "InvalidAMIID.NotFound"
    );
}

async fn tags(client: &Client, instance: &str) {
    client
        .ok(
            "CreateTags",
            &[
                ("ResourceId.1", instance),
                ("Tag.1.Key", "stage"),
                ("Tag.1.Value", ""),
                ("Tag.2.Key", "team"),
                ("Tag.2.Value", "a&b"),
            ],
        )
        .await;
    let found = client
        .ok(
            "DescribeTags",
            &[
                ("Filter.1.Name", "resource-id"),
                ("Filter.1.Value.1", instance),
            ],
        )
        .await;
    assert_eq!(found.items("tagSet").len(), 3);
    let by_tag = client
        .ok(
            "DescribeInstances",
            &[("Filter.1.Name", "tag:team"), ("Filter.1.Value.1", "a?b")],
        )
        .await;
    assert_eq!(by_tag.items("reservationSet").len(), 1);
    client
        .ok(
            "DeleteTags",
            &[("ResourceId.1", instance), ("Tag.1.Key", "team")],
        )
        .await;
    let found = client
        .ok(
            "DescribeTags",
            &[("Filter.1.Name", "key"), ("Filter.1.Value.1", "team")],
        )
        .await;
    assert!(found.items("tagSet").is_empty());
}

async fn end(client: &Client, (vpc, subnet, group): (&str, &str, &str), instance: &str, ami: &str) {
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

async fn walk(client: &Client) {
    identity_and_places(client).await;
    let ami = image(client).await;
    keys(client).await;
    let (vpc, subnet, group) = network(client).await;
    let instance = instances(client, &ami, &subnet, &group).await;
    storage(client, &instance).await;
    images(client, &ami, &instance).await;
    tags(client, &instance).await;
    every_filter(client).await;
    end(client, (&vpc, &subnet, &group), &instance, &ami).await;
}

/// Each filter that an action has is taken; a made-up one is not.
async fn every_filter(client: &Client) {
    for handler in ec2::actions::all().filter(|handler| !handler.filters.is_empty()) {
        let tag = handler.filters.iter().any(|name| name.starts_with("tag"));
        let names = handler
            .filters
            .iter()
            .copied()
            .chain(tag.then_some("tag:Name"));
        for name in names {
            client
                .ok(
                    handler.name,
                    &[("Filter.1.Name", name), ("Filter.1.Value.1", "*")],
                )
                .await;
        }
        let refused = client
            .call(
                handler.name,
                &[("Filter.1.Name", "made-up"), ("Filter.1.Value.1", "*")],
            )
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code.as_str(), refused.message.as_str()),
            ("InvalidParameterValue", "The filter 'made-up' is invalid"),
            "{}",
            handler.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_actions_answer_as_the_wire_has_it() {
    let client = Client::new().await;
    walk(&client).await;
    let produced = client.produced.lock().unwrap().clone();
    let missing: Vec<_> = ec2::actions::all()
        .map(|handler| handler.name)
        .filter(|name| !produced.contains_key(*name))
        .collect();
    assert!(missing.is_empty(), "no test does {missing:?}");
    table::check(&produced);
}

#[test]
fn what_handlers_declare_is_on_the_wire() {
    let facts = ec2::facts::facts();
    let handled: BTreeSet<&str> = ec2::actions::all().map(|handler| handler.name).collect();
    let known: BTreeSet<&str> = facts.actions.keys().copied().collect();
    assert_eq!(handled, known, "facts/actions and the handlers");
    for handler in ec2::actions::all() {
        let mut leaves = Vec::new();
        for parameter in &facts.actions[handler.name].parameters {
            parameter.leaves("", &mut leaves);
        }
        for name in handler.understood {
            assert!(
                leaves.iter().any(|leaf| leaf == name),
                "{} has no {name}",
                handler.name
            );
        }
    }
}
