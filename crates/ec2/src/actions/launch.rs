//! RunInstances.

use control::{DiskRequest, PublicAddress, RunInstances};
use model::{ImageId, MetadataOptions, SecurityGroupId, ShutdownBehavior, SubnetId, Token, VpcId};

use super::instances::reservation;
use super::volumes::{bytes, kind};
use super::{Handler, Reply};
use crate::call::{Call, only};
use crate::error::Error;
use crate::ids::parse;
use crate::parameters::Parameters;
use crate::tagging::specified;

pub const ACTIONS: &[Handler] = &[Handler {
    name: "RunInstances",
    understood: &[
        "ImageId",
        "InstanceType",
        "MinCount",
        "MaxCount",
        "KeyName",
        "SecurityGroup.N",
        "SecurityGroupId.N",
        "SubnetId",
        "PrivateIpAddress",
        "UserData",
        "ClientToken",
        "DisableApiTermination",
        "DisableApiStop",
        "InstanceInitiatedShutdownBehavior",
        "EbsOptimized",
        "Monitoring.Enabled",
        "Placement.AvailabilityZone",
        "Placement.Tenancy",
        "CreditSpecification.CpuCredits",
        "HibernationOptions.Configured",
        "EnclaveOptions.Enabled",
        "MetadataOptions.HttpEndpoint",
        "MetadataOptions.HttpTokens",
        "MetadataOptions.HttpPutResponseHopLimit",
        "MetadataOptions.HttpProtocolIpv6",
        "MetadataOptions.InstanceMetadataTags",
        "NetworkInterface.N.DeviceIndex",
        "NetworkInterface.N.NetworkCardIndex",
        "NetworkInterface.N.InterfaceType",
        "NetworkInterface.N.SubnetId",
        "NetworkInterface.N.SecurityGroupId.N",
        "NetworkInterface.N.AssociatePublicIpAddress",
        "NetworkInterface.N.PrivateIpAddress",
        "NetworkInterface.N.PrivateIpAddresses.N.PrivateIpAddress",
        "NetworkInterface.N.PrivateIpAddresses.N.Primary",
        "NetworkInterface.N.DeleteOnTermination",
        "BlockDeviceMapping.N.DeviceName",
        "BlockDeviceMapping.N.NoDevice",
        "BlockDeviceMapping.N.Ebs.DeleteOnTermination",
        "BlockDeviceMapping.N.Ebs.SnapshotId",
        "BlockDeviceMapping.N.Ebs.VolumeSize",
        "BlockDeviceMapping.N.Ebs.VolumeType",
        "BlockDeviceMapping.N.Ebs.Iops",
        "BlockDeviceMapping.N.Ebs.Throughput",
        "BlockDeviceMapping.N.Ebs.Encrypted",
        "TagSpecification.N.ResourceType",
        "TagSpecification.N.Tag.N.Key",
        "TagSpecification.N.Tag.N.Value",
    ],
    filters: &[],
    run: |call| Box::pin(run(call)),
}];

/// Resources of a request that can be tagged, of which Holm keeps the first
/// two's tags.
const TAGGED: &[&str] = &["instance", "volume", "network-interface"];

async fn run(call: &Call<'_>) -> Reply {
    let new = request(call)?;
    let token = call.token()?;
    call.plane()
        .find::<model::Image>(&call.caller, &new.image)?;
    call.dry_run()?;
    let launched = call
        .plane()
        .run_instances(&call.caller, new, token.as_ref())
        .await?;
    let instances: Vec<_> = launched.instances.iter().collect();
    let shown = reservation(call, "", &instances);
    Ok(shown.into_children())
}

fn request(call: &Call<'_>) -> Result<RunInstances, Error> {
    let sent = &call.parameters;
    let image: ImageId = sent.require_id("ImageId")?;
    let mut new = RunInstances::new(image, sent.text("InstanceType").unwrap_or("m5.large"));
    let (least, most) = counts(sent)?;
    (new.at_least, new.count) = (Some(least), most);
    new.key_name = sent.text("KeyName").map(str::to_owned);
    let cards = sent.structures("NetworkInterface");
    match cards.as_slice() {
        [] => place(call, &mut new)?,
        [card] => card_of(call, card, &mut new)?,
        _ => {
            return Err(Error::unsupported(
                "Holm's instances have one network interface",
            ));
        }
    }
    let placement = sent.structure("Placement").unwrap_or_default();
    new.zone = placement.text("AvailabilityZone").map(str::to_owned);
    only(&placement, "Tenancy", &["default"])?;
    new.user_data = sent
        .blob("UserData")
        .map_err(|_| {
            Error::new(
                "InvalidUserData.Malformed",
                "User data is not encoded properly: Base64 is expected",
            )
        })?
        .unwrap_or_default();
    new.termination_protection = sent.boolean("DisableApiTermination")?.unwrap_or(false);
    new.stop_protection = sent.boolean("DisableApiStop")?.unwrap_or(false);
    if let Some(behavior) = sent.text("InstanceInitiatedShutdownBehavior") {
        new.shutdown_behavior = shutdown_behavior(behavior)?;
    }
    for mapping in sent.structures("BlockDeviceMapping") {
        new.disks.push(disk(&mapping)?);
    }
    new.metadata_options = metadata_options(
        sent.structure("MetadataOptions").unwrap_or_default(),
        MetadataOptions::default(),
    )?;
    new.tags = specified(sent, TAGGED, "instance")?;
    new.volume_tags = specified(sent, TAGGED, "volume")?;
    refuse_the_rest(call)?;
    Ok(new)
}

/// What Holm has only one value of.
fn refuse_the_rest(call: &Call<'_>) -> Result<(), Error> {
    let sent = &call.parameters;
    for tagged in sent.structures("TagSpecification") {
        if tagged.text("ResourceType") == Some("network-interface") {
            return Err(Error::unsupported(
                "Holm does not tag network interfaces when instances are made",
            ));
        }
    }
    sent.boolean("EbsOptimized")?;
    for (structure, name, allowed) in [
        ("Monitoring", "Enabled", &["false"][..]),
        ("HibernationOptions", "Configured", &["false"]),
        ("EnclaveOptions", "Enabled", &["false"]),
        ("CreditSpecification", "CpuCredits", &["unlimited"]),
    ] {
        only(
            &sent.structure(structure).unwrap_or_default(),
            name,
            allowed,
        )?;
    }
    Ok(())
}

/// The least and the most that are wanted.
fn counts(sent: &Parameters) -> Result<(u32, u32), Error> {
    let least: u32 = sent
        .number("MinCount")?
        .ok_or_else(|| Error::missing("MinCount"))?;
    let most: u32 = sent
        .number("MaxCount")?
        .ok_or_else(|| Error::missing("MaxCount"))?;
    if least == 0 || most == 0 {
        return Err(Error::invalid("minCount", least, "It must be at least 1."));
    }
    if least > most {
        return Err(Error::new(
            "InvalidParameterValue",
            format!(
                "Value ({least}) for parameter minCount is invalid. It is more than maxCount, {most}."
            ),
        ));
    }
    Ok((least, most))
}

/// Network and groups, said of the instance itself.
fn place(call: &Call<'_>, new: &mut RunInstances) -> Result<(), Error> {
    let sent = &call.parameters;
    new.subnet = sent.id("SubnetId")?;
    new.private_ip = address(sent, "PrivateIpAddress")?;
    new.groups = sent.ids("SecurityGroupId")?;
    let vpc = vpc_of(call, new.subnet.as_ref())?;
    for name in sent.texts("SecurityGroup") {
        // The CLI takes ids here as well.
        new.groups.push(match name.starts_with("sg-") {
            true => parse::<SecurityGroupId>(&name)?,
            false => call.group_named(&name, vpc.as_ref())?,
        });
    }
    Ok(())
}

/// Network and groups, said of its interface.
fn card_of(call: &Call<'_>, card: &Parameters, new: &mut RunInstances) -> Result<(), Error> {
    let sent = &call.parameters;
    for name in [
        "SubnetId",
        "SecurityGroupId",
        "SecurityGroup",
        "PrivateIpAddress",
    ] {
        if sent.has(name) {
            return Err(Error::combination(
                "Network interfaces and an instance-level subnet ID or security groups may not \
                 be specified on the same request",
            ));
        }
    }
    for (name, allowed) in [
        ("DeviceIndex", &["0"][..]),
        ("NetworkCardIndex", &["0"]),
        ("InterfaceType", &["interface"]),
        ("DeleteOnTermination", &["true"]),
    ] {
        only(card, name, allowed)?;
    }
    new.subnet = card.id("SubnetId")?;
    new.groups = card.ids("SecurityGroupId")?;
    new.private_ip = address(card, "PrivateIpAddress")?;
    for other in card.structures("PrivateIpAddresses") {
        let given = address(&other, "PrivateIpAddress")?;
        if other.boolean("Primary")? == Some(false) || new.private_ip.is_some() {
            return Err(Error::unsupported(
                "Holm's interfaces have one private address",
            ));
        }
        new.private_ip = given;
    }
    new.public_ip = match card.boolean("AssociatePublicIpAddress")? {
        None => PublicAddress::AsSubnet,
        Some(true) => PublicAddress::Yes,
        Some(false) => PublicAddress::No,
    };
    Ok(())
}

fn vpc_of(call: &Call<'_>, subnet: Option<&SubnetId>) -> Result<Option<VpcId>, Error> {
    let Some(subnet) = subnet else {
        return Ok(None);
    };
    let found = call.plane().find::<model::Subnet>(&call.caller, subnet)?;
    Ok(Some(found.record.vpc.clone()))
}

fn address(from: &Parameters, name: &str) -> Result<Option<std::net::Ipv4Addr>, Error> {
    from.parsed(name, "It is not an IPv4 address.")
}

/// A disk of the request.
fn disk(mapping: &Parameters) -> Result<DiskRequest, Error> {
    let ebs = mapping.structure("Ebs").unwrap_or_default();
    only(&ebs, "Encrypted", &["false"])?;
    Ok(DiskRequest {
        device: mapping.require("DeviceName")?.to_owned(),
        // Any text leaves the device out, as does an empty one.
        omit: mapping.raw("NoDevice").is_some(),
        size: bytes(&ebs, "VolumeSize")?,
        snapshot: ebs.id("SnapshotId")?,
        kind: kind(&ebs)?,
        iops: ebs.number("Iops")?,
        throughput: ebs.number("Throughput")?,
        delete_on_termination: ebs.boolean("DeleteOnTermination")?,
    })
}

/// What an instance's own power-off means.
pub fn shutdown_behavior(text: &str) -> Result<ShutdownBehavior, Error> {
    match text {
        "stop" => Ok(ShutdownBehavior::Stop),
        "terminate" => Ok(ShutdownBehavior::Terminate),
        other => Err(Error::invalid(
            "instanceInitiatedShutdownBehavior",
            other,
            "It is stop or terminate.",
        )),
    }
}

/// Metadata options where `sent` says something of them, else as they are.
pub fn metadata_options(
    sent: Parameters,
    mut options: MetadataOptions,
) -> Result<MetadataOptions, Error> {
    let switch = |name: &str| match sent.text(name) {
        None => Ok(None),
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        Some(other) => Err(Error::invalid(name, other, "It is enabled or disabled.")),
    };
    if let Some(enabled) = switch("HttpEndpoint")? {
        options.enabled = enabled;
    }
    if let Some(tags) = switch("InstanceMetadataTags")? {
        options.tags = tags;
    }
    switch("HttpProtocolIpv6")?;
    options.token = match sent.text("HttpTokens") {
        None => options.token,
        Some("optional") => Token::Optional,
        Some("required") => Token::Required,
        Some(other) => {
            return Err(Error::invalid(
                "HttpTokens",
                other,
                "It is optional or required.",
            ));
        }
    };
    if let Some(limit) = sent.number("HttpPutResponseHopLimit")? {
        if !(1..=64).contains(&limit) {
            return Err(Error::invalid(
                "HttpPutResponseHopLimit",
                limit,
                "It is between 1 and 64.",
            ));
        }
        options.hop_limit = limit;
    }
    Ok(options)
}
