//! Volumes.

use control::{AttachVolume, NewVolume, VolumeChange};
use model::{Attachment, InstanceId, Volume, VolumeId, VolumeKind};

use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, Selection, maybe, none, one, paged, tag_set};
use crate::error::Error;
use crate::parameters::Parameters;
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateVolume",
        understood: &[
            "AvailabilityZone",
            "AvailabilityZoneId",
            "Size",
            "SnapshotId",
            "VolumeType",
            "Iops",
            "Throughput",
            "Encrypted",
            "MultiAttachEnabled",
            "ClientToken",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "DescribeVolumes",
        understood: &[
            "VolumeId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "AttachVolume",
        understood: &["VolumeId", "InstanceId", "Device"],
        filters: &[],
        run: |call| Box::pin(attach(call)),
    },
    Handler {
        name: "DetachVolume",
        understood: &["VolumeId", "InstanceId", "Device", "Force"],
        filters: &[],
        run: |call| Box::pin(detach(call)),
    },
    Handler {
        name: "DeleteVolume",
        understood: &["VolumeId"],
        filters: &[],
        run: |call| Box::pin(delete(call)),
    },
    Handler {
        name: "ModifyVolume",
        understood: &["VolumeId", "Size", "VolumeType", "Iops", "Throughput"],
        filters: &[],
        run: |call| Box::pin(modify(call)),
    },
    Handler {
        name: "DescribeVolumesModifications",
        understood: &[
            "VolumeId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: MODIFICATIONS.filters,
        run: |call| Box::pin(describe_modifications(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "VolumeId",
    filters: &[
        "attachment.attach-time",
        "attachment.delete-on-termination",
        "attachment.device",
        "attachment.instance-id",
        "attachment.status",
        "availability-zone",
        "availability-zone-id",
        "create-time",
        "encrypted",
        "multi-attach-enabled",
        "size",
        "snapshot-id",
        "status",
        "tag",
        "tag-key",
        "volume-id",
        "volume-type",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: false,
};

const MODIFICATIONS: Listing = Listing {
    ids: "VolumeId",
    filters: &[
        "volume-id",
        "modification-state",
        "target-size",
        "original-size",
    ],
    pages: Some((5, 500)),
    pages_of_ids: true,
};

/// Bytes as EC2 says sizes.
pub fn gib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 30)
}

/// Bytes of a parameter in GiB.
pub fn bytes(from: &Parameters, name: &str) -> Result<Option<u64>, Error> {
    let size = from.number::<u64>(name)?;
    size.map(|size| {
        size.checked_mul(1 << 30)
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| Error::invalid(name, size, "It is a number of GiB."))
    })
    .transpose()
}

/// A volume's type by its name.
pub fn kind(from: &Parameters) -> Result<Option<VolumeKind>, Error> {
    from.text("VolumeType")
        .map(|name| {
            VolumeKind::named(name).ok_or_else(|| {
                Error::new(
                    "UnknownVolumeType",
                    format!("Unsupported volume type '{name}' for volume creation."),
                )
            })
        })
        .transpose()
}

/// Operations each second, as EC2 says of types that let nobody choose.
fn iops(volume: &Volume) -> Option<u64> {
    match volume.kind {
        VolumeKind::Gp3 => Some(u64::from(volume.iops.unwrap_or(3000))),
        VolumeKind::Gp2 => Some((gib(volume.size) * 3).clamp(100, 16_000)),
        VolumeKind::Io1 | VolumeKind::Io2 => volume.iops.map(u64::from),
        _ => None,
    }
}

fn throughput(volume: &Volume) -> Option<u32> {
    match volume.kind {
        VolumeKind::Gp3 => Some(volume.throughput.unwrap_or(125)),
        _ => None,
    }
}

fn field(call: &Call<'_>, volume: &Volume, name: &str) -> Vec<String> {
    let attachment = volume.attachment.as_ref();
    match name {
        "attachment.attach-time" => maybe(attachment.map(|a| a.since)),
        "attachment.delete-on-termination" => maybe(attachment.map(|a| a.delete_on_termination)),
        "attachment.device" => maybe(attachment.map(|a| &a.device)),
        "attachment.instance-id" => maybe(attachment.map(|a| &a.instance)),
        "attachment.status" => maybe(attachment.map(|a| a.state.name())),
        "availability-zone" => one(&volume.zone),
        "availability-zone-id" => one(call.zone_id(&volume.zone)),
        "create-time" => one(volume.meta.created),
        "encrypted" | "multi-attach-enabled" => one(false),
        "size" => one(gib(volume.size)),
        "snapshot-id" => maybe(volume.snapshot.as_ref()),
        "status" => one(volume.state.name()),
        "volume-id" => one(&volume.id),
        "volume-type" => one(volume.kind.name()),
        _ => none(),
    }
}

fn show_attachment(element: Element, volume: &VolumeId, attachment: &Attachment) -> Element {
    element
        .text("volumeId", volume)
        .text("instanceId", &attachment.instance)
        .text("device", &attachment.device)
        .text("status", attachment.state.name())
        .text("attachTime", attachment.since)
        .text("deleteOnTermination", attachment.delete_on_termination)
}

fn show(call: &Call<'_>, element: Element, volume: &Volume) -> Element {
    let attachment = volume.attachment.as_ref();
    let element = element
        .text("volumeId", &volume.id)
        .text("size", gib(volume.size))
        // EC2 says an empty one, and not none, of a volume that was empty.
        .text(
            "snapshotId",
            volume.snapshot.as_ref().map_or("", |id| id.as_str()),
        )
        .text("availabilityZone", &volume.zone)
        .text("availabilityZoneId", call.zone_id(&volume.zone))
        .text("status", volume.state.name())
        .text("createTime", volume.meta.created)
        .list(
            "attachmentSet",
            attachment.map(|a| show_attachment(Element::item(), &volume.id, a)),
        )
        .text("volumeType", volume.kind.name())
        .option("iops", iops(volume))
        .option("throughput", throughput(volume))
        .text("encrypted", false)
        .text("multiAttachEnabled", false);
    tag_set(element, &volume.meta.tags)
}

async fn create(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    call.only("Encrypted", &["false"])?;
    call.only("MultiAttachEnabled", &["false"])?;
    let zone = match (
        sent.text("AvailabilityZone"),
        sent.text("AvailabilityZoneId"),
    ) {
        (Some(zone), _) => zone.to_owned(),
        (None, Some(id)) => call.zone_of_id(id)?,
        (None, None) => return Err(Error::missing("AvailabilityZone")),
    };
    let new = NewVolume {
        size: bytes(sent, "Size")?,
        snapshot: sent.id("SnapshotId")?,
        // Without a type EC2 makes gp2; gp3 is what Holm has no limits for.
        kind: kind(sent)?.unwrap_or_default(),
        iops: sent.number("Iops")?,
        throughput: sent.number("Throughput")?,
        zone: Some(zone),
        tags: specified(sent, &["volume"], "volume")?,
    };
    let token = call.token()?;
    call.dry_run()?;
    let volume = call
        .plane()
        .create_volume(&call.caller, new, token.as_ref())
        .await?;
    Ok(show(call, Element::new(""), &volume).into_children())
}

async fn describe(call: &Call<'_>) -> Reply {
    call.describe::<Volume, VolumeId>(
        &LISTING,
        "volumeSet",
        |volume, name| field(call, volume, name),
        |volume| show(call, Element::item(), volume),
    )
}

async fn attach(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let volume: VolumeId = sent.require_id("VolumeId")?;
    let instance: InstanceId = sent.require_id("InstanceId")?;
    let new = AttachVolume {
        volume: volume.clone(),
        instance,
        device: Some(sent.require("Device")?.to_owned()),
        delete_on_termination: false,
    };
    call.dry_run()?;
    let attachment = call.plane().attach_volume(&call.caller, new).await?;
    Ok(show_attachment(Element::new(""), &volume, &attachment).into_children())
}

async fn detach(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let id: VolumeId = sent.require_id("VolumeId")?;
    let instance: Option<InstanceId> = sent.id("InstanceId")?;
    let force = sent.boolean("Force")?.unwrap_or(false);
    let found = call.plane().find::<Volume>(&call.caller, &id)?;
    if let (Some(device), Some(attachment)) = (sent.text("Device"), &found.record.attachment)
        && device != attachment.device
    {
        return Err(Error::new(
            "InvalidAttachment.NotFound",
            format!("Volume '{id}' is not attached as '{device}'"),
        ));
    }
    call.dry_run()?;
    let attachment = call
        .plane()
        .detach_volume(&call.caller, &id, instance.as_ref(), force)
        .await?;
    Ok(show_attachment(Element::new(""), &id, &attachment).into_children())
}

async fn delete(call: &Call<'_>) -> Reply {
    let id: VolumeId = call.parameters.require_id("VolumeId")?;
    call.plane().find::<Volume>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane().delete_volume(&call.caller, &id).await?;
    done()
}

/// What was asked of a volume, and how far it is: its file grows at once.
fn modification(element: Element, before: &Volume, now: &Volume) -> Element {
    let grown = now.actual_size >= now.size;
    element
        .text("volumeId", &now.id)
        .text(
            "modificationState",
            if grown { "completed" } else { "modifying" },
        )
        .text("targetSize", gib(now.size))
        .option("targetIops", iops(now))
        .text("targetVolumeType", now.kind.name())
        .option("targetThroughput", throughput(now))
        .text("originalSize", gib(before.size))
        .option("originalIops", iops(before))
        .text("originalVolumeType", before.kind.name())
        .option("originalThroughput", throughput(before))
        .text("progress", if grown { 100 } else { 0 })
}

async fn modify(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let id: VolumeId = sent.require_id("VolumeId")?;
    let change = VolumeChange {
        size: bytes(sent, "Size")?,
        kind: kind(sent)?,
        iops: sent.number("Iops")?,
        throughput: sent.number("Throughput")?,
    };
    let before = call.plane().find::<Volume>(&call.caller, &id)?;
    call.dry_run()?;
    let now = call
        .plane()
        .modify_volume(&call.caller, &id, change)
        .await?;
    let element = modification(Element::new("volumeModification"), &before.record, &now);
    Ok(vec![element])
}

async fn describe_modifications(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &MODIFICATIONS)?;
    let mut volumes = call.nouns::<Volume, VolumeId>("VolumeId")?;
    // A volume as it was made was never modified; which were is not kept once
    // their files have grown.
    let named = !call.parameters.texts("VolumeId").is_empty();
    volumes.retain(|volume| named || volume.actual_size < volume.size);
    call.dry_run()?;
    let before = |volume: &Volume| Volume {
        size: volume.actual_size,
        ..volume.clone()
    };
    let (page, token) = selection.cut(volumes, |volume, name| match name {
        "volume-id" => one(&volume.id),
        "modification-state" if volume.actual_size >= volume.size => one("completed"),
        "modification-state" => one("modifying"),
        "target-size" => one(gib(volume.size)),
        "original-size" => one(gib(volume.actual_size)),
        _ => none(),
    });
    let items = page
        .iter()
        .map(|volume| modification(Element::item(), &before(volume), volume));
    Ok(paged("volumeModificationSet", items, token))
}
