//! Elastic addresses.

use crate::settle;
use crate::support::Client;

/// An address stays the same with one instance after another.
pub async fn addresses(client: &Client, instance: &str) {
    let first = client
        .ok(
            "AllocateAddress",
            &[
                ("Domain", "vpc"),
                ("TagSpecification.1.ResourceType", "elastic-ip"),
                ("TagSpecification.1.Tag.1.Key", "Name"),
                ("TagSpecification.1.Tag.1.Value", "web"),
            ],
        )
        .await;
    let (id, ip) = (first.text("allocationId"), first.text("publicIp"));
    let (of, allocation) = (("InstanceId", instance), ("AllocationId", id.as_str()));
    let had = public_ip(client, instance).await;
    let associated = client.ok("AssociateAddress", &[allocation, of]).await;
    let association = associated.text("associationId");
    assert_eq!(public_ip(client, instance).await, ip);
    assert_ne!(had, ip);
    let again = client.ok("AssociateAddress", &[allocation, of]).await;
    assert_eq!(again.text("associationId"), association, "once is enough");
    let shown = client
        .ok(
            "DescribeAddresses",
            &[
                ("Filter.1.Name", "instance-id"),
                ("Filter.1.Value.1", instance),
                ("PublicIp.1", &ip),
            ],
        )
        .await;
    let item = |name: &str| shown.text(&format!("addressesSet/item/{name}"));
    assert_eq!(
        (item("associationId"), item("instanceId")),
        (association.clone(), instance.into())
    );
    assert_eq!(item("tagSet/item/value"), "web");
    let names = client
        .ok("DescribeAddressesAttribute", &[("AllocationId.1", &id)])
        .await;
    assert_eq!(names.text("addressSet/item/publicIp"), ip);

    moves_to_another(client, &id, instance, &ip).await;
    assert_eq!(
        client.code("ReleaseAddress", &[allocation]).await,
        "InvalidIPAddress.InUse"
    );
    client.ok("DisassociateAddress", &[("PublicIp", &ip)]).await;
    let own = public_ip(client, instance).await;
    assert!(own.starts_with("127.86.") && own != ip, "{own}");
    assert_eq!(
        client
            .code("DisassociateAddress", &[("AssociationId", &association)])
            .await,
        "InvalidAssociationID.NotFound"
    );
    client.ok("ReleaseAddress", &[allocation]).await;
    assert_eq!(
        client.code("ReleaseAddress", &[allocation]).await,
        "InvalidAllocationID.NotFound"
    );
    let unknown = [("PublicIp.1", ip.as_str())];
    assert_eq!(
        client.code("DescribeAddresses", &unknown).await,
        "InvalidAddress.NotFound"
    );
}

/// Another instance takes the address over, and is terminated with it.
async fn moves_to_another(client: &Client, id: &str, instance: &str, ip: &str) {
    let known = client
        .ok("DescribeInstances", &[("InstanceId.1", instance)])
        .await;
    let image = known.text("reservationSet/item/instancesSet/item/imageId");
    let run = [
        ("ImageId", image.as_str()),
        ("InstanceType", "t3.micro"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
    ];
    let other = client.ok("RunInstances", &run).await;
    let other = other.text("instancesSet/item/instanceId");
    settle(client).await;
    let here = [("AllocationId", id), ("InstanceId", &other)];
    let only = [&here[..], &[("AllowReassociation", "false")]].concat();
    assert_eq!(
        client.code("AssociateAddress", &only).await,
        "Resource.AlreadyAssociated"
    );
    client.ok("AssociateAddress", &here).await;
    assert_eq!(public_ip(client, &other).await, ip);
    assert_ne!(public_ip(client, instance).await, ip);
    let gone = ("InstanceId.1", other.as_str());
    client.ok("TerminateInstances", &[gone]).await;
    settle(client).await;
    let kept = client
        .ok("DescribeAddresses", &[("AllocationId.1", id)])
        .await;
    assert_eq!(kept.text("addressesSet/item/publicIp"), ip, "it stays");
    assert!(kept.find("addressesSet/item/instanceId").is_none());
    client
        .ok(
            "AssociateAddress",
            &[("AllocationId", id), ("InstanceId", instance)],
        )
        .await;
}

async fn public_ip(client: &Client, instance: &str) -> String {
    let shown = client
        .ok("DescribeInstances", &[("InstanceId.1", instance)])
        .await;
    shown.text("reservationSet/item/instancesSet/item/ipAddress")
}
