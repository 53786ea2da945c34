//! Images.

use control::{CreateImage, RegisterDisk, RegisterImage};
use model::{AccountId, Image, ImageDisk, ImageId, InstanceId, SnapshotId};

use super::volumes::{bytes, gib};
use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, Selection, many, maybe, none, one, paged, tag_set};
use crate::error::Error;
use crate::parameters::Parameters;
use crate::tagging::specified;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "CreateImage",
        understood: &[
            "InstanceId",
            "Name",
            "Description",
            "NoReboot",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(create(call)),
    },
    Handler {
        name: "RegisterImage",
        understood: &[
            "Name",
            "Description",
            "Architecture",
            "RootDeviceName",
            "VirtualizationType",
            "EnaSupport",
            "BootMode",
            "BlockDeviceMapping.N.DeviceName",
            "BlockDeviceMapping.N.Ebs.SnapshotId",
            "BlockDeviceMapping.N.Ebs.VolumeSize",
            "BlockDeviceMapping.N.Ebs.VolumeType",
            "BlockDeviceMapping.N.Ebs.DeleteOnTermination",
            "TagSpecification.N.ResourceType",
            "TagSpecification.N.Tag.N.Key",
            "TagSpecification.N.Tag.N.Value",
        ],
        filters: &[],
        run: |call| Box::pin(register(call)),
    },
    Handler {
        name: "DescribeImages",
        understood: &[
            "ImageId.N",
            "Owner.N",
            "ExecutableBy.N",
            "IncludeDeprecated",
            "IncludeDisabled",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DeregisterImage",
        understood: &["ImageId"],
        filters: &[],
        run: |call| Box::pin(deregister(call)),
    },
    Handler {
        name: "DescribeImageAttribute",
        understood: &["ImageId", "Attribute"],
        filters: &[],
        run: |call| Box::pin(describe_attribute(call)),
    },
    Handler {
        name: "ModifyImageAttribute",
        understood: &[
            "ImageId",
            "Attribute",
            "OperationType",
            "Value",
            "UserId.N",
            "UserGroup.N",
            "Description.Value",
            "LaunchPermission.Add.N.UserId",
            "LaunchPermission.Add.N.Group",
            "LaunchPermission.Remove.N.UserId",
            "LaunchPermission.Remove.N.Group",
        ],
        filters: &[],
        run: |call| Box::pin(modify_attribute(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "ImageId",
    filters: &[
        "architecture",
        "block-device-mapping.delete-on-termination",
        "block-device-mapping.device-name",
        "block-device-mapping.encrypted",
        "block-device-mapping.snapshot-id",
        "block-device-mapping.volume-size",
        "block-device-mapping.volume-type",
        "creation-date",
        "description",
        "ena-support",
        "hypervisor",
        "image-id",
        "image-type",
        "is-public",
        "name",
        "owner-id",
        "root-device-name",
        "root-device-type",
        "source-instance-id",
        "state",
        "state-reason-message",
        "tag",
        "tag-key",
        "virtualization-type",
    ],
    pages: Some((1, 1000)),
    pages_of_ids: true,
};

fn field(image: &Image, name: &str) -> Vec<String> {
    let disks = image.disks.iter();
    match name {
        "architecture" => one("x86_64"),
        "block-device-mapping.delete-on-termination" => {
            many(disks.map(|disk| disk.delete_on_termination))
        }
        "block-device-mapping.device-name" => many(disks.map(|disk| &disk.device)),
        "block-device-mapping.encrypted" => many(disks.map(|_| false)),
        "block-device-mapping.snapshot-id" => many(disks.filter_map(|disk| disk.snapshot.as_ref())),
        "block-device-mapping.volume-size" => many(disks.map(|disk| gib(disk.size))),
        "block-device-mapping.volume-type" => many(disks.map(|_| "gp3")),
        "creation-date" => one(image.meta.created),
        "description" => one(&image.description),
        "ena-support" => one(false),
        "hypervisor" => one("xen"),
        "image-id" => one(&image.id),
        "image-type" => one("machine"),
        "is-public" => one(image.public),
        "name" => one(&image.name),
        "owner-id" => one(&image.meta.account),
        "root-device-name" => one(&image.root_device),
        "root-device-type" => one("ebs"),
        "source-instance-id" => maybe(image.source_instance.as_ref()),
        "state" => one(image.state.name()),
        "state-reason-message" => maybe(image.failure.as_ref()),
        "virtualization-type" => one("hvm"),
        _ => none(),
    }
}

fn mapping(disk: &ImageDisk) -> Element {
    Element::item().text("deviceName", &disk.device).child(
        Element::new("ebs")
            .option("snapshotId", disk.snapshot.as_ref())
            .text("volumeSize", gib(disk.size))
            .text("deleteOnTermination", disk.delete_on_termination)
            .text("volumeType", "gp3")
            .text("encrypted", false),
    )
}

fn show(image: &Image) -> Element {
    let said = Some(&image.description).filter(|text| !text.is_empty());
    let element = Element::item()
        .text("imageId", &image.id)
        .text(
            "imageLocation",
            format!("{}/{}", image.meta.account, image.name),
        )
        .text("imageState", image.state.name())
        .text("imageOwnerId", &image.meta.account)
        .text("creationDate", image.meta.created)
        .text("isPublic", image.public)
        .text("architecture", "x86_64")
        .text("imageType", "machine")
        .text("platformDetails", "Linux/UNIX")
        .text("usageOperation", "RunInstances")
        .text("name", &image.name)
        .option("description", said)
        .text("rootDeviceType", "ebs")
        .text("rootDeviceName", &image.root_device)
        .list("blockDeviceMapping", image.disks.iter().map(mapping))
        .text("virtualizationType", "hvm")
        .text("hypervisor", "xen")
        .text("enaSupport", false)
        .option("sourceInstanceId", image.source_instance.as_ref());
    let element = match &image.failure {
        Some(failure) => element.child(
            Element::new("stateReason")
                .text("code", "Server.InternalError")
                .text("message", failure),
        ),
        None => element,
    };
    tag_set(element, &image.meta.tags)
}

async fn create(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    // The guest is not stopped for an image, with or without NoReboot.
    sent.boolean("NoReboot")?;
    let types = ["image", "snapshot"];
    let new = CreateImage {
        instance: sent.require_id::<InstanceId>("InstanceId")?,
        name: sent.require("Name")?.to_owned(),
        description: sent.text("Description").unwrap_or_default().to_owned(),
        tags: specified(sent, &types, "image")?,
        snapshot_tags: specified(sent, &types, "snapshot")?,
    };
    call.plane()
        .find::<model::Instance>(&call.caller, &new.instance)?;
    call.dry_run()?;
    let image = call.plane().create_image(&call.caller, new).await?;
    Ok(vec![Element::leaf("imageId", &image.id)])
}

fn disk(from: &Parameters) -> Result<RegisterDisk, Error> {
    let ebs = from.structure("Ebs").unwrap_or_default();
    let snapshot: Option<SnapshotId> = ebs.id("SnapshotId")?;
    // Which type a volume of an image is, is said when it is made.
    super::volumes::kind(&ebs)?;
    Ok(RegisterDisk {
        device: from.require("DeviceName")?.to_owned(),
        snapshot,
        size: bytes(&ebs, "VolumeSize")?,
        delete_on_termination: ebs.boolean("DeleteOnTermination")?.unwrap_or(true),
    })
}

async fn register(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    call.only("Architecture", &["x86_64"])?;
    call.only("VirtualizationType", &["hvm"])?;
    call.only("BootMode", &["legacy-bios"])?;
    sent.boolean("EnaSupport")?;
    let disks = sent.structures("BlockDeviceMapping");
    let mut disks: Vec<RegisterDisk> = disks.iter().map(disk).collect::<Result<_, _>>()?;
    // The root comes first.
    if let Some(root) = sent.text("RootDeviceName") {
        let index = disks.iter().position(|disk| disk.device == root);
        let index = index.ok_or_else(|| {
            Error::new(
                "InvalidBlockDeviceMapping",
                format!("No disk is mapped to the root device {root}"),
            )
        })?;
        let root = disks.remove(index);
        disks.insert(0, root);
    }
    let new = RegisterImage {
        name: sent.require("Name")?.to_owned(),
        description: sent.text("Description").unwrap_or_default().to_owned(),
        disks,
        family: None,
        login: None,
        tags: specified(sent, &["image"], "image")?,
    };
    call.dry_run()?;
    let image = call.plane().register_image(&call.caller, new).await?;
    Ok(vec![Element::leaf("imageId", &image.id)])
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let owners = call.owners("Owner")?;
    let users = call.parameters.texts("ExecutableBy");
    call.parameters.boolean("IncludeDeprecated")?;
    call.parameters.boolean("IncludeDisabled")?;
    let mut images = call.nouns::<Image, ImageId>("ImageId")?;
    images.retain(|image| {
        let owned = owners
            .as_ref()
            .is_none_or(|owners| owners.contains(&image.meta.account));
        let may = |user: &String| match user.as_str() {
            "all" => image.public,
            "self" => {
                image.meta.account != call.caller.account
                    && image.shared_with.contains(&call.caller.account)
            }
            account => image.shared_with.iter().any(|a| a.as_str() == account),
        };
        owned && (users.is_empty() || users.iter().any(may))
    });
    call.dry_run()?;
    let (page, token) = selection.cut(images, |image, name| field(image, name));
    Ok(paged(
        "imagesSet",
        page.iter().map(|image| show(image)),
        token,
    ))
}

async fn deregister(call: &Call<'_>) -> Reply {
    let id: ImageId = call.parameters.require_id("ImageId")?;
    call.plane().find::<Image>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane().deregister_image(&call.caller, &id).await?;
    done()
}

async fn describe_attribute(call: &Call<'_>) -> Reply {
    let id: ImageId = call.parameters.require_id("ImageId")?;
    let attribute = call.parameters.require("Attribute")?;
    let found = call.plane().own::<Image>(&call.caller, &id)?;
    let image = &found.record;
    let shown = match attribute {
        "description" => Element::new("description").text("value", &image.description),
        "launchPermission" => {
            let all = image.public.then(|| Element::item().text("group", "all"));
            let users = image.shared_with.iter();
            let users = users.map(|user| Element::item().text("userId", user));
            Element::new("launchPermission").extend(all.into_iter().chain(users))
        }
        "blockDeviceMapping" => {
            Element::new("blockDeviceMapping").extend(image.disks.iter().map(mapping))
        }
        other => {
            return Err(Error::invalid(
                "Attribute",
                other,
                "Holm's images have description, launchPermission and blockDeviceMapping.",
            ));
        }
    };
    call.dry_run()?;
    Ok(vec![Element::leaf("imageId", &image.id), shown])
}

/// Who may use an image from now on, and who may not any more.
#[derive(Default)]
struct Permission {
    public: Option<bool>,
    add: Vec<AccountId>,
    remove: Vec<AccountId>,
}

impl Permission {
    fn user(&mut self, text: &str, add: bool) -> Result<(), Error> {
        let account = AccountId::try_from(text.to_owned()).map_err(|_| {
            Error::new(
                "InvalidAMIAttributeItemValue",
                format!("Invalid attribute item value \"{text}\" for userId item type."),
            )
        })?;
        match add {
            true => self.add.push(account),
            false => self.remove.push(account),
        }
        Ok(())
    }

    fn group(&mut self, text: &str, add: bool) -> Result<(), Error> {
        if text != "all" {
            return Err(Error::new(
                "InvalidAMIAttributeItemValue",
                format!("Invalid attribute item value \"{text}\" for group item type."),
            ));
        }
        self.public = Some(add);
        Ok(())
    }

    fn parse(sent: &Parameters) -> Result<Self, Error> {
        let mut all = Self::default();
        let lists = sent.structure("LaunchPermission").unwrap_or_default();
        for (name, add) in [("Add", true), ("Remove", false)] {
            for one in lists.structures(name) {
                if let Some(user) = one.text("UserId") {
                    all.user(user, add)?;
                }
                if let Some(group) = one.text("Group") {
                    all.group(group, add)?;
                }
            }
        }
        let (users, groups) = (sent.texts("UserId"), sent.texts("UserGroup"));
        if users.is_empty() && groups.is_empty() {
            return Ok(all);
        }
        let add = match sent.require("OperationType")? {
            "add" => true,
            "remove" => false,
            other => {
                return Err(Error::invalid(
                    "OperationType",
                    other,
                    "It is add or remove.",
                ));
            }
        };
        users.iter().try_for_each(|user| all.user(user, add))?;
        groups.iter().try_for_each(|group| all.group(group, add))?;
        Ok(all)
    }
}

async fn modify_attribute(call: &Call<'_>) -> Reply {
    let sent = &call.parameters;
    let id: ImageId = sent.require_id("ImageId")?;
    let permission = Permission::parse(sent)?;
    let description = match (sent.structure("Description"), sent.text("Attribute")) {
        (Some(given), _) => given.raw("Value").map(str::to_owned),
        (None, Some("description")) => Some(sent.raw("Value").unwrap_or_default().to_owned()),
        (None, None | Some("launchPermission")) => None,
        (None, Some(other)) => {
            return Err(Error::invalid(
                "Attribute",
                other,
                "It is description or launchPermission.",
            ));
        }
    };
    call.plane().find::<Image>(&call.caller, &id)?;
    call.dry_run()?;
    call.plane()
        .modify_image(&call.caller, &id, |image| {
            if let Some(description) = &description {
                image.description.clone_from(description);
            }
            image.public = permission.public.unwrap_or(image.public);
            for account in &permission.add {
                if !image.shared_with.contains(account) {
                    image.shared_with.push(account.clone());
                }
            }
            image
                .shared_with
                .retain(|account| !permission.remove.contains(account));
            Ok(())
        })
        .await?;
    done()
}
