//! Volumes, snapshots, images and tags.

use crate::settle;
use crate::support::Client;

pub async fn storage(client: &Client, instance: &str) {
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

pub async fn images(client: &Client, ami: &str, instance: &str) {
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

pub async fn tags(client: &Client, instance: &str) {
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
