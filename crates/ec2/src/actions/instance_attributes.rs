//! Attributes of instances.

use base64::Engine as _;
use control::InstanceChange;
use model::{Instance, InstanceId, SecurityGroupId, ShutdownBehavior};

use super::instances::{disks, metadata_options};
use super::interfaces::group_set;
use super::launch::{self, shutdown_behavior};
use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, Selection};
use crate::error::Error;
use crate::parameters::Parameters;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "DescribeInstanceCreditSpecifications",
        understood: &[
            "InstanceId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: CREDITS.filters,
        run: |call| Box::pin(credits(call)),
    },
    Handler {
        name: "GetInstanceMetadataDefaults",
        understood: &[],
        filters: &[],
        run: |call| Box::pin(metadata_defaults(call)),
    },
    Handler {
        name: "DescribeInstanceAttribute",
        understood: &["InstanceId", "Attribute"],
        filters: &[],
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "ModifyInstanceAttribute",
        understood: &[
            "InstanceId",
            "Attribute",
            "Value",
            "BlockDeviceMapping.N.DeviceName",
            "BlockDeviceMapping.N.Ebs.DeleteOnTermination",
            "BlockDeviceMapping.N.Ebs.VolumeId",
            "DisableApiStop.Value",
            "DisableApiTermination.Value",
            "EbsOptimized.Value",
            "GroupId.N",
            "InstanceInitiatedShutdownBehavior.Value",
            "InstanceType.Value",
            "SourceDestCheck.Value",
            "UserData.Value",
        ],
        filters: &[],
        run: |call| Box::pin(modify(call)),
    },
    Handler {
        name: "ModifyInstanceMetadataOptions",
        understood: &[
            "InstanceId",
            "HttpEndpoint",
            "HttpTokens",
            "HttpPutResponseHopLimit",
            "HttpProtocolIpv6",
            "InstanceMetadataTags",
        ],
        filters: &[],
        run: |call| Box::pin(modify_metadata_options(call)),
    },
];

fn attribute(call: &Call<'_>, instance: &Instance, name: &str) -> Result<Element, Error> {
    let value =
        |name: &'static str, value: &dyn std::fmt::Display| Element::new(name).text("value", value);
    let first = instance.interfaces.first();
    Ok(match name {
        "instanceType" => value("instanceType", &instance.instance_type),
        "userData" => match instance.user_data.0.is_empty() {
            true => Element::new("userData"),
            false => {
                let engine = base64::engine::general_purpose::STANDARD;
                value("userData", &engine.encode(&instance.user_data.0))
            }
        },
        "disableApiTermination" => value("disableApiTermination", &instance.termination_protection),
        "disableApiStop" => value("disableApiStop", &instance.stop_protection),
        "instanceInitiatedShutdownBehavior" => value(
            "instanceInitiatedShutdownBehavior",
            &match instance.shutdown_behavior {
                ShutdownBehavior::Stop => "stop",
                ShutdownBehavior::Terminate => "terminate",
            },
        ),
        "rootDeviceName" => value("rootDeviceName", &instance.root_device),
        "blockDeviceMapping" => Element::new("blockDeviceMapping").extend(disks(call, instance)),
        "groupSet" => {
            let groups = first.map(|card| group_set(call, card));
            Element::new("groupSet").extend(groups.unwrap_or_default())
        }
        "sourceDestCheck" => value(
            "sourceDestCheck",
            &first.is_none_or(|card| card.source_dest_check),
        ),
        "ebsOptimized" => value("ebsOptimized", &false),
        "enaSupport" => value("enaSupport", &false),
        "enclaveOptions" => Element::new("enclaveOptions").text("enabled", false),
        "productCodes" => Element::new("productCodes"),
        "kernel" => Element::new("kernel"),
        "ramdisk" => Element::new("ramdisk"),
        "sriovNetSupport" => Element::new("sriovNetSupport"),
        other => {
            return Err(Error::invalid("attribute", other, "Unknown attribute."));
        }
    })
}

async fn describe(call: &Call<'_>) -> Reply {
    let id: InstanceId = call.parameters.require_id("InstanceId")?;
    let found = call.plane().find::<Instance>(&call.caller, &id)?;
    let name = call.parameters.require("Attribute")?;
    let shown = attribute(call, &found.record, name)?;
    call.dry_run()?;
    Ok(vec![Element::leaf("instanceId", &id), shown])
}

/// The attribute that a request names with a text for its value, as if it had
/// been sent as a structure.
fn spelled_out(sent: &Parameters) -> Result<Parameters, Error> {
    let Some(name) = sent.text("Attribute") else {
        return Ok(sent.clone());
    };
    let mut letters = name.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    let capital: String = first.into_iter().chain(letters).collect();
    let known = [
        "DisableApiStop",
        "DisableApiTermination",
        "EbsOptimized",
        "InstanceInitiatedShutdownBehavior",
        "InstanceType",
        "SourceDestCheck",
        "UserData",
    ];
    if !known.contains(&capital.as_str()) {
        return Err(Error::invalid("attribute", name, "It cannot be modified."));
    }
    match sent.raw("Value") {
        // Without a value it only says which structure follows.
        None => Ok(sent.clone()),
        Some(value) => Parameters::new(&[(format!("{capital}.Value"), value.to_owned())]),
    }
}

async fn modify(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let id: InstanceId = sent.require_id("InstanceId")?;
    call.plane().find::<Instance>(&call.caller, &id)?;
    let attributes = spelled_out(sent)?;
    let of = |name: &str| attributes.structure(name).unwrap_or_default();
    let mut change = InstanceChange {
        instance_type: of("InstanceType").text("Value").map(str::to_owned),
        termination_protection: of("DisableApiTermination").boolean("Value")?,
        stop_protection: of("DisableApiStop").boolean("Value")?,
        source_dest_check: of("SourceDestCheck").boolean("Value")?,
        ..InstanceChange::default()
    };
    // An empty value takes the user data away.
    if let Some(data) = attributes.structure("UserData") {
        change.user_data = Some(data.blob("Value")?.unwrap_or_default());
    }
    if let Some(behavior) = of("InstanceInitiatedShutdownBehavior").text("Value") {
        change.shutdown_behavior = Some(shutdown_behavior(behavior)?);
    }
    if of("EbsOptimized").boolean("Value")? == Some(true) {
        return Err(Error::unsupported("Holm has no EBS-optimized instances"));
    }
    let groups: Vec<SecurityGroupId> = sent.ids("GroupId")?;
    change.groups = (!groups.is_empty()).then_some(groups);
    for disk in sent.structures("BlockDeviceMapping") {
        let ebs = disk.structure("Ebs").unwrap_or_default();
        if let Some(delete) = ebs.boolean("DeleteOnTermination")? {
            let device = disk.require("DeviceName")?.to_owned();
            change.delete_on_termination.push((device, delete));
        }
    }
    call.dry_run()?;
    call.plane()
        .modify_instance(&call.caller, &id, change)
        .await?;
    done()
}

async fn modify_metadata_options(call: &Call<'_>) -> Reply {
    let id: InstanceId = call.parameters.require_id("InstanceId")?;
    let found = call.plane().find::<Instance>(&call.caller, &id)?;
    let before = found.record.metadata_options.clone();
    let options = launch::metadata_options(call.parameters.clone(), before)?;
    call.dry_run()?;
    let change = InstanceChange {
        metadata_options: Some(options.clone()),
        ..InstanceChange::default()
    };
    call.plane()
        .modify_instance(&call.caller, &id, change)
        .await?;
    Ok(vec![
        Element::leaf("instanceId", &id),
        metadata_options("instanceMetadataOptions", &options),
    ])
}

const CREDITS: Listing = Listing {
    ids: "InstanceId",
    filters: &["instance-id"],
    pages: Some((5, 1000)),
    pages_of_ids: false,
};

/// No type is burstable, and so no instance has credits.
async fn credits(call: &Call<'_>) -> Reply {
    Selection::parse(call, &CREDITS)?;
    let ids: Vec<InstanceId> = call.parameters.ids(CREDITS.ids)?;
    for id in &ids {
        call.plane().find::<Instance>(&call.caller, id)?;
    }
    call.dry_run()?;
    match ids.first() {
        None => Ok(vec![Element::new("instanceCreditSpecificationSet")]),
        Some(id) => Err(Error::unsupported(format!(
            "The instance {id} has no CPU credits: no instance type of Holm is burstable"
        ))),
    }
}

/// Accounts have no defaults of their own.
async fn metadata_defaults(call: &Call<'_>) -> Reply {
    call.dry_run()?;
    Ok(vec![Element::new("accountLevel")])
}
