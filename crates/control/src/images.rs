//! Images: CreateImage, RegisterImage, DeregisterImage, ModifyImageAttribute.

use model::{
    AccountId, Claim, Image, ImageDisk, ImageId, ImageState, Instance, InstanceId, InstanceState,
    Invalid, Meta, Quota, Snapshot, SnapshotId, SnapshotState, Tags, Volume, check_tags,
};

use crate::snapshots::snapshot_of;
use crate::{Caller, Kind, Plane, Refusal};

/// An image to be made of snapshots.
#[derive(Clone, Debug)]
pub struct RegisterImage {
    /// Its name.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// Its disks, the root first.
    pub disks: Vec<RegisterDisk>,
    /// Name of what it is a version of.
    pub family: Option<String>,
    /// Who may log in.
    pub login: Option<String>,
    /// What its owner writes on it.
    pub tags: Tags,
}

/// Device of the root disk of images that do not say another.
const ROOT_DEVICE: &str = "/dev/xvda";

impl RegisterImage {
    /// An image of one disk, which goes with its instance.
    #[must_use]
    pub fn of(name: &str, snapshot: SnapshotId) -> Self {
        Self {
            name: name.to_owned(),
            description: String::new(),
            disks: vec![RegisterDisk {
                device: ROOT_DEVICE.into(),
                snapshot: Some(snapshot),
                size: None,
                delete_on_termination: true,
            }],
            family: None,
            login: None,
            tags: Tags::new(),
        }
    }
}

/// A disk of such an image.
#[derive(Clone, Debug)]
pub struct RegisterDisk {
    /// Name of its device.
    pub device: String,
    /// What it holds; `None`: nothing.
    pub snapshot: Option<SnapshotId>,
    /// Capacity in bytes; the snapshot's if missing.
    pub size: Option<u64>,
    /// Volumes made of it go with their instance.
    pub delete_on_termination: bool,
}

/// An image to be made of an instance.
#[derive(Clone, Debug)]
pub struct CreateImage {
    /// Of which.
    pub instance: InstanceId,
    /// Its name.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// What its owner writes on it.
    pub tags: Tags,
    /// What its owner writes on its snapshots.
    pub snapshot_tags: Tags,
}

fn claim(account: &AccountId, name: &str) -> String {
    let name: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("image/{account}/{name}")
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let easy = |c: char| c.is_ascii_alphanumeric() || " ()[]./-'@_".contains(c);
    match (3..=128).contains(&name.len()) && name.chars().all(easy) {
        true => Ok(()),
        false => Err(Refusal::invalid(
            "name",
            Invalid::Name {
                what: "image name",
                text: Invalid::shorten(name),
                reason: "it has 3 to 128 letters, digits, spaces and ()[]./-'@_",
            },
        )),
    }
}

impl Plane {
    /// Makes an image of snapshots that are complete.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::Invalid`], [`Refusal::State`],
    /// [`Refusal::Quota`], [`Refusal::NotFound`].
    pub async fn register_image(
        &self,
        caller: &Caller,
        new: RegisterImage,
    ) -> Result<Image, Refusal> {
        check_name(&new.name)?;
        check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
        let _counting = self.counting().await;
        self.transact(|batch| {
            let root = new.disks.first().filter(|disk| disk.snapshot.is_some());
            let root = root.ok_or(Refusal::Missing {
                field: "block_device_mapping",
            })?;
            let mut image = self.blank(caller, &new.name, &new.description, &new.tags)?;
            image.root_device.clone_from(&root.device);
            image.family.clone_from(&new.family);
            image.login.clone_from(&new.login);
            image.state = ImageState::Available;
            for disk in &new.disks {
                let mut size = disk.size;
                if let Some(id) = &disk.snapshot {
                    let snapshot = self.find::<Snapshot>(caller, id)?;
                    if snapshot.record.state != SnapshotState::Completed || snapshot.record.deleting
                    {
                        return Err(Refusal::State {
                            kind: Kind::Snapshot,
                            id: id.to_string(),
                            state: snapshot.record.state.name().into(),
                            wanted: "an image is made of completed snapshots",
                        });
                    }
                    batch.unchanged(&snapshot);
                    let least = snapshot.record.size;
                    size = Some(size.unwrap_or(least).max(least));
                }
                image.disks.push(ImageDisk {
                    device: disk.device.clone(),
                    snapshot: disk.snapshot.clone(),
                    size: size.ok_or(Refusal::Missing {
                        field: "volume_size",
                    })?,
                    delete_on_termination: disk.delete_on_termination,
                });
            }
            self.put_image(batch, caller, &image)?;
            Ok(image)
        })
        .await
    }

    /// Asks for an image of an instance's disks as they are now. It is pending
    /// until they are made; what the guest has not yet written is not in it.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::State`], [`Refusal::Quota`],
    /// [`Refusal::NotFound`].
    pub async fn create_image(&self, caller: &Caller, new: CreateImage) -> Result<Image, Refusal> {
        check_name(&new.name)?;
        check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
        let _counting = self.counting().await;
        self.transact(|batch| {
            let found = self.own::<Instance>(caller, &new.instance)?;
            let instance = &found.record;
            if !matches!(
                instance.state,
                InstanceState::Running | InstanceState::Stopped | InstanceState::Stopping
            ) {
                return Err(Refusal::State {
                    kind: Kind::Instance,
                    id: instance.id.to_string(),
                    state: instance.state.name().into(),
                    wanted: "an image is made of one that is running or stopped",
                });
            }
            let mut image = self.blank(caller, &new.name, &new.description, &new.tags)?;
            image.root_device.clone_from(&instance.root_device);
            image.source_instance = Some(instance.id.clone());
            let of = self.view().get::<Image>(&instance.image);
            image.login = of.and_then(|image| image.record.login.clone());
            for disk in &instance.disks {
                let volume = self.own::<Volume>(caller, &disk.volume)?;
                let tags = new.snapshot_tags.clone();
                let mut snapshot = snapshot_of(batch, caller, &volume.record, tags)?;
                snapshot.description =
                    format!("Created by CreateImage({}) for {}", instance.id, image.id);
                batch.put(snapshot.id.as_str(), &snapshot)?;
                image.disks.push(ImageDisk {
                    device: disk.device.clone(),
                    snapshot: Some(snapshot.id),
                    size: volume.record.size,
                    delete_on_termination: disk.delete_on_termination,
                });
            }
            self.put_image(batch, caller, &image)?;
            Ok(image)
        })
        .await
    }

    fn blank(
        &self,
        caller: &Caller,
        name: &str,
        description: &str,
        tags: &Tags,
    ) -> Result<Image, Refusal> {
        let taken = self.view().get::<Claim>(claim(&caller.account, name));
        if let Some(taken) = taken {
            return Err(Refusal::Exists {
                kind: Kind::Image,
                name: format!("{name}: {}", taken.record.holder),
            });
        }
        self.within(&caller.account, Quota::Images, 1)?;
        Ok(Image {
            id: ImageId::random(),
            meta: Meta::new(caller.account.clone(), tags.clone()),
            name: name.to_owned(),
            description: description.to_owned(),
            root_device: String::new(),
            disks: Vec::new(),
            public: false,
            shared_with: Vec::new(),
            source_instance: None,
            family: None,
            login: None,
            deregistering: false,
            state: ImageState::Pending,
            failure: None,
        })
    }

    fn put_image(
        &self,
        batch: &mut crate::Batch,
        caller: &Caller,
        image: &Image,
    ) -> Result<(), Refusal> {
        let holder = image.id.to_string();
        batch.create(&claim(&caller.account, &image.name), &Claim { holder })?;
        batch.create(image.id.as_str(), image)?;
        let account = &caller.account;
        batch.tell(
            account,
            Some(caller),
            "image-created",
            &image.id,
            &image.name,
        )
    }

    /// Removes an image. Instances made of it, and its snapshots, stay.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::NotAllowed`].
    pub async fn deregister_image(&self, caller: &Caller, id: &ImageId) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<Image>(caller, id)?;
            batch.remove(&found);
            batch.discard::<Claim>(&claim(&caller.account, &found.record.name));
            let name = &found.record.name;
            batch.tell(&caller.account, Some(caller), "image-removed", id, name)
        })
        .await
    }

    /// Changes what an image's owner may change.
    ///
    /// # Errors
    /// [`Refusal::NotFound`], [`Refusal::NotAllowed`].
    pub async fn modify_image(
        &self,
        caller: &Caller,
        id: &ImageId,
        mut change: impl FnMut(&mut Image) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.own::<Image>(caller, id)?;
        self.edit::<Image>(id, |image, _| {
            let before = image.clone();
            change(image)?;
            // What the reconciler owns, and what names it, stay.
            image.id = before.id;
            image.name = before.name;
            image.disks = before.disks;
            image.state = before.state;
            Ok(())
        })
        .await
        .map(drop)
    }

    /// The image of a name, or the newest version of a family, that can be
    /// used: how people name images.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn image_named(&self, caller: &Caller, name: &str) -> Result<Image, Refusal> {
        if name.parse::<ImageId>().is_ok() {
            return Ok(self.find::<Image>(caller, name)?.record.clone());
        }
        let usable = self.list::<Image>(caller).into_iter();
        let usable = usable.filter(|i| i.record.state == ImageState::Available);
        let named = usable.filter(|found| {
            let family = found.record.family.as_deref();
            found.record.name == name || family == Some(name)
        });
        let newest = named.max_by_key(|i| (i.record.name == name, i.record.meta.created));
        let found = newest.ok_or_else(|| Refusal::not_found(Kind::Image, name))?;
        Ok(found.record.clone())
    }
}
