//! Networks and what is in them.

use crate::support::Client;

/// A VPC with a subnet, a gateway, a table and a group; ids of subnet and
/// group.
pub async fn network(client: &Client) -> (String, String, String) {
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

pub async fn groups(client: &Client, vpc: &str) -> String {
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
