//! Every action, as its clients ask for it; every response against what the
//! wire has; and the table of docs/ec2.md against both.

#[path = "walk/addresses.rs"]
mod addresses;
#[path = "walk/instances.rs"]
mod instances;
#[path = "walk/network.rs"]
mod network;
#[path = "walk/storage.rs"]
mod storage;
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

async fn walk(client: &Client) {
    identity_and_places(client).await;
    let ami = image(client).await;
    keys(client).await;
    let (vpc, subnet, group) = network::network(client).await;
    let instance = instances::instances(client, &ami, &subnet, &group).await;
    instances::as_many_as_the_account_may_have(client, &ami).await;
    instances::defaults(client, &instance).await;
    addresses::addresses(client, &instance).await;
    storage::storage(client, &instance).await;
    storage::images(client, &ami, &instance).await;
    storage::tags(client, &instance).await;
    every_filter(client).await;
    instances::end(client, (&vpc, &subnet, &group), &instance, &ami).await;
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
