"""boto3 with all that it brings: typed answers, waiters, paginators, resources, errors.

The endpoint and the keys are in the environment; the argument is a completed snapshot."""
import datetime
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ec2 = boto3.client("ec2", config=Config(retries={"max_attempts": 2}))
SNAPSHOT = sys.argv[1]


def wait(name, **of):
    ec2.get_waiter(name).wait(WaiterConfig={"Delay": 1, "MaxAttempts": 120}, **of)


def refused(code, call, **of):
    try:
        call(**of)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, (code, error)
        assert error.response["ResponseMetadata"]["RequestId"], error
    else:
        raise AssertionError(f"{call} {of} should be refused with {code}")


image = ec2.register_image(
    Name="debian", Architecture="x86_64", VirtualizationType="hvm", RootDeviceName="/dev/xvda",
    BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": SNAPSHOT, "DeleteOnTermination": True}}],
)["ImageId"]
wait("image_available", ImageIds=[image])

# A network of its own.
vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16", TagSpecifications=[
    {"ResourceType": "vpc", "Tags": [{"Key": "Name", "Value": "mine & <yours>"}]}])["Vpc"]
assert vpc["Tags"] == [{"Key": "Name", "Value": "mine & <yours>"}] and vpc["IsDefault"] is False
wait("vpc_available", VpcIds=[vpc["VpcId"]])
ec2.modify_vpc_attribute(VpcId=vpc["VpcId"], EnableDnsHostnames={"Value": True})
attribute = ec2.describe_vpc_attribute(VpcId=vpc["VpcId"], Attribute="enableDnsHostnames")
assert attribute["EnableDnsHostnames"] == {"Value": True}
subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.1.2.0/24")["Subnet"]["SubnetId"]
wait("subnet_available", SubnetIds=[subnet])
gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc["VpcId"])
table = ec2.create_route_table(VpcId=vpc["VpcId"])["RouteTable"]["RouteTableId"]
assert ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)["Return"]
association = ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)["AssociationId"]
group = ec2.create_security_group(GroupName="web", Description="web", VpcId=vpc["VpcId"])["GroupId"]
wait("security_group_exists", GroupIds=[group])
rules = ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
    {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0", "Description": "ssh"}]},
    {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]},
])["SecurityGroupRules"]
assert [rule["FromPort"] for rule in rules] == [22, -1]
shown = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
assert shown["IpPermissions"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0", "Description": "ssh"}]
assert shown["IpPermissionsEgress"][0]["IpProtocol"] == "-1"

# Keys.
key = ec2.create_key_pair(KeyName="k")
assert key["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----")
wait("key_pair_exists", KeyNames=["k"])
refused("InvalidKeyPair.Duplicate", ec2.create_key_pair, KeyName="k")

# Instances.
request = dict(
    ImageId=image, InstanceType="t3.micro", MinCount=2, MaxCount=2, KeyName="k", UserData="#cloud-config\n",
    NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": subnet, "Groups": [group], "AssociatePublicIpAddress": True}],
    MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web"}]}],
)
refused("DryRunOperation", ec2.run_instances, DryRun=True, **request)
reservation = ec2.run_instances(ClientToken="one", **request)
again = ec2.run_instances(ClientToken="one", **request)
assert again["ReservationId"] == reservation["ReservationId"]
ids = [instance["InstanceId"] for instance in reservation["Instances"]]
wait("instance_exists", InstanceIds=ids)
wait("instance_running", InstanceIds=ids)
pages = ec2.get_paginator("describe_instances").paginate(Filters=[{"Name": "tag:Name", "Values": ["w*"]}])
found = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
assert sorted(i["InstanceId"] for i in found) == sorted(ids)
first = next(i for i in found if i["InstanceId"] == ids[0])
assert first["State"] == {"Code": 16, "Name": "running"} and first["CpuOptions"]["CoreCount"] == 2
assert isinstance(first["LaunchTime"], datetime.datetime) and first["LaunchTime"].tzinfo
assert first["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
assert first["PublicIpAddress"].startswith("127.86.") and first["NetworkInterfaces"][0]["MacAddress"]
data = ec2.describe_instance_attribute(InstanceId=ids[0], Attribute="userData")["UserData"]["Value"]
assert data == "I2Nsb3VkLWNvbmZpZwo=", data
assert ec2.get_console_output(InstanceId=ids[0])["Output"] == "hello\n"

# Volumes and snapshots.
volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, VolumeType="gp3")["VolumeId"]
wait("volume_available", VolumeIds=[volume])
ec2.attach_volume(VolumeId=volume, InstanceId=ids[0], Device="/dev/sdf")
wait("volume_in_use", VolumeIds=[volume])
copy = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
wait("snapshot_completed", SnapshotIds=[copy])
ec2.detach_volume(VolumeId=volume)
wait("volume_available", VolumeIds=[volume])
ec2.delete_volume(VolumeId=volume)
wait("volume_deleted", VolumeIds=[volume])
ec2.delete_snapshot(SnapshotId=copy)

# Stop, change, start, protect.
ec2.stop_instances(InstanceIds=ids)
wait("instance_stopped", InstanceIds=ids)
ec2.modify_instance_attribute(InstanceId=ids[0], InstanceType={"Value": "t3.small"})
made = ec2.create_image(InstanceId=ids[0], Name="made of it")["ImageId"]
wait("image_available", ImageIds=[made])
ec2.start_instances(InstanceIds=ids)
wait("instance_running", InstanceIds=ids)
ec2.modify_instance_attribute(InstanceId=ids[0], DisableApiTermination={"Value": True})
refused("OperationNotPermitted", ec2.terminate_instances, InstanceIds=ids)
ec2.modify_instance_attribute(InstanceId=ids[0], DisableApiTermination={"Value": False})
refused("DependencyViolation", ec2.delete_security_group, GroupId=group)

# The resource interface, as older scripts use it.
machine = boto3.resource("ec2").Instance(ids[0])
assert machine.instance_type == "t3.small" and machine.vpc_id == vpc["VpcId"]
machine.create_tags(Tags=[{"Key": "stage", "Value": "end"}])
tags = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [ids[0]]}])["Tags"]
assert {"stage", "Name"} == {tag["Key"] for tag in tags}

# And all of it goes.
ec2.terminate_instances(InstanceIds=ids)
wait("instance_terminated", InstanceIds=ids)
ec2.delete_key_pair(KeyName="k")
ec2.delete_security_group(GroupId=group)
ec2.disassociate_route_table(AssociationId=association)
ec2.delete_route_table(RouteTableId=table)
ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc["VpcId"])
ec2.delete_internet_gateway(InternetGatewayId=gateway)
ec2.delete_subnet(SubnetId=subnet)
ec2.delete_vpc(VpcId=vpc["VpcId"])
for one in (image, made):
    ec2.deregister_image(ImageId=one)
refused("InvalidVpcID.NotFound", ec2.describe_vpcs, VpcIds=[vpc["VpcId"]])
refused("InvalidInstanceID.NotFound", ec2.describe_instances, InstanceIds=["i-01234567"])
assert ec2.describe_volumes()["Volumes"] == [], ec2.describe_volumes()["Volumes"]

# Presigned, and with a clock that is wrong.
url = ec2.generate_presigned_url("describe_regions", HttpMethod="GET")
import urllib.request  # noqa: E402

assert b"us-east-1" in urllib.request.urlopen(url).read()
print("all of it")
