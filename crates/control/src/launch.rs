//! New instances: RunInstances.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::{
    Attachment, AttachmentState, Base64, BlockDevice, Boot, DATASOURCE_TAG, Desired, Image,
    ImageDisk, ImageId, ImageState, Instance, InstanceId, InstanceState, InstanceType, Interface,
    InterfaceAttachmentId, InterfaceId, Invalid, Meta, MetadataOptions, Quota, ReservationId,
    SecurityGroup, SecurityGroupId, ShutdownBehavior, Site, SnapshotId, Subnet, SubnetId, Tags,
    Timestamp, USER_DATA_MAX, Volume, VolumeKind, VolumeState, catalogued, check_tags,
    random_bytes,
};

use crate::volumes::{ATTACHED_MAX, NewVolume, check_device};
use crate::{Batch, Caller, Kind, Plane, Refusal, Token};

/// Most instances of one request, so that it is one transaction.
const AT_ONCE: u32 = 20;

/// Instances to be made.
#[derive(Clone, Debug)]
pub struct RunInstances {
    /// Of what.
    pub image: ImageId,
    /// Name of their size.
    pub instance_type: String,
    /// How many.
    pub count: u32,
    /// Who may log in.
    pub key_name: Option<String>,
    /// What may come in and go out; the network's default group if empty.
    pub groups: Vec<SecurityGroupId>,
    /// Where; the default subnet if missing.
    pub subnet: Option<SubnetId>,
    /// Zone of the default subnet.
    pub zone: Option<String>,
    /// The address that one instance gets.
    pub private_ip: Option<Ipv4Addr>,
    /// Whether they get an address at which the host reaches them.
    pub public_ip: PublicAddress,
    /// What their cloud-init is told.
    pub user_data: Vec<u8>,
    /// Disks that differ from the image's, or that it does not have.
    pub disks: Vec<DiskRequest>,
    /// What their owner writes on them.
    pub tags: Tags,
    /// What their owner writes on their volumes.
    pub volume_tags: Tags,
    /// How their metadata are served.
    pub metadata_options: MetadataOptions,
    /// They cannot be terminated.
    pub termination_protection: bool,
    /// They cannot be stopped.
    pub stop_protection: bool,
    /// What their own power-off means.
    pub shutdown_behavior: ShutdownBehavior,
    /// When they go by themselves.
    pub expires: Option<Timestamp>,
}

impl RunInstances {
    /// One instance of an image, all else as the image and the network say.
    #[must_use]
    pub fn new(image: ImageId, instance_type: &str) -> Self {
        Self {
            image,
            instance_type: instance_type.to_owned(),
            count: 1,
            key_name: None,
            groups: Vec::new(),
            subnet: None,
            zone: None,
            private_ip: None,
            public_ip: PublicAddress::AsSubnet,
            user_data: Vec::new(),
            disks: Vec::new(),
            tags: Tags::new(),
            volume_tags: Tags::new(),
            metadata_options: MetadataOptions::default(),
            termination_protection: false,
            stop_protection: false,
            shutdown_behavior: ShutdownBehavior::default(),
            expires: None,
        }
    }
}

/// Whether an instance gets an address at which the host reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicAddress {
    /// As its subnet says.
    AsSubnet,
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// A disk of new instances; what is `None` is as the image says.
#[derive(Clone, Debug, Default)]
pub struct DiskRequest {
    /// Name of its device.
    pub device: String,
    /// The image's disk of that name is left out.
    pub omit: bool,
    /// Capacity in bytes.
    pub size: Option<u64>,
    /// What it holds at first.
    pub snapshot: Option<SnapshotId>,
    /// Kind.
    pub kind: Option<VolumeKind>,
    /// Operations each second.
    pub iops: Option<u32>,
    /// MiB each second.
    pub throughput: Option<u32>,
    /// It goes with its instance.
    pub delete_on_termination: Option<bool>,
}

/// Instances that one request made.
#[derive(Clone, Debug)]
pub struct Launched {
    /// Of the request.
    pub reservation: ReservationId,
    /// They.
    pub instances: Vec<Instance>,
}

/// What all instances of a request share, looked up once.
struct Ground<'a> {
    caller: &'a Caller,
    new: &'a RunInstances,
    site: Site,
    image: Image,
    size: InstanceType,
    subnet: Subnet,
    groups: Vec<SecurityGroupId>,
    public_key: Option<String>,
    public: bool,
    disks: Vec<(ImageDisk, DiskRequest)>,
}

impl Plane {
    /// Asks for instances, all or none.
    ///
    /// # Errors
    /// [`Refusal`]: what is wrong with the request, which quota it exceeds, or
    /// [`Refusal::TokenMismatch`].
    pub async fn run_instances(
        &self,
        caller: &Caller,
        new: RunInstances,
        token: Option<&Token>,
    ) -> Result<Launched, Refusal> {
        check(&new)?;
        let _counting = self.counting().await;
        self.transact(|batch| {
            if let Some(made) = self.done(caller, "RunInstances", token)? {
                return self.launched(caller, &made);
            }
            self.required_tags(caller, &new.tags)?;
            let ground = self.ground(caller, &new)?;
            self.room(&ground)?;
            let reservation = ReservationId::random();
            let (mut private, mut public) = (Vec::new(), Vec::new());
            let mut instances = Vec::new();
            for index in 0..new.count {
                let taken = (&mut private, &mut public);
                let instance = self.place(batch, &ground, &reservation, index, taken)?;
                instances.push(instance);
            }
            let made = instances.iter().map(|i| i.id.to_string()).collect();
            batch.note(caller, "RunInstances", token, made)?;
            Ok(Launched {
                reservation,
                instances,
            })
        })
        .await
    }

    fn launched(&self, caller: &Caller, ids: &[String]) -> Result<Launched, Refusal> {
        let mut instances = Vec::new();
        for id in ids {
            instances.push(self.own::<Instance>(caller, id)?.record.clone());
        }
        let reservation = instances.first().map(|i| i.reservation.clone());
        Ok(Launched {
            reservation: reservation
                .ok_or_else(|| Refusal::not_found(Kind::Instance, "of that request"))?,
            instances,
        })
    }

    /// A size by its name: the catalogue's, or a custom one.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn instance_type(&self, name: &str) -> Result<InstanceType, Refusal> {
        let custom = || self.view().get::<InstanceType>(name);
        let found = catalogued(name).cloned();
        found
            .or_else(|| custom().map(|found| found.record.clone()))
            .ok_or_else(|| Refusal::not_found(Kind::InstanceType, name))
    }

    fn ground<'a>(&self, caller: &'a Caller, new: &'a RunInstances) -> Result<Ground<'a>, Refusal> {
        let image = self.find::<Image>(caller, &new.image)?.record.clone();
        if image.state != ImageState::Available || image.deregistering {
            return Err(Refusal::State {
                kind: Kind::Image,
                id: image.id.to_string(),
                state: image.state.name().into(),
                wanted: "instances are made of one that is available",
            });
        }
        let subnet = match &new.subnet {
            Some(id) => self.own::<Subnet>(caller, id)?.record.clone(),
            None => self.default_subnet(caller, new.zone.as_deref())?,
        };
        let groups = match new.groups.is_empty() {
            true => vec![self.default_group(&subnet)?],
            false => new.groups.clone(),
        };
        for id in &groups {
            let group = self.own::<SecurityGroup>(caller, id)?;
            if group.record.vpc != subnet.vpc {
                return Err(Refusal::invalid(
                    "security_group_id",
                    format!(
                        "{id} is not in {}, the network of {}",
                        subnet.vpc, subnet.id
                    ),
                ));
            }
        }
        let key = new.key_name.as_deref();
        let key = key.map(|name| self.key_pair_named(caller, name));
        let public = match new.public_ip {
            PublicAddress::AsSubnet => subnet.map_public_ip,
            PublicAddress::Yes => true,
            PublicAddress::No => false,
        };
        Ok(Ground {
            disks: disks(&image, &new.disks)?,
            size: self.instance_type(&new.instance_type)?,
            public_key: key.transpose()?.map(|pair| pair.public_key),
            site: self.site()?,
            caller,
            new,
            image,
            subnet,
            groups,
            public,
        })
    }

    fn default_group(&self, subnet: &Subnet) -> Result<SecurityGroupId, Refusal> {
        let default = |g: &SecurityGroup| g.vpc == subnet.vpc && g.name == "default";
        let found = self.view().filter::<SecurityGroup>(default);
        let found = found.first().ok_or(Refusal::Missing {
            field: "security_group_id",
        })?;
        Ok(found.record.id.clone())
    }

    fn room(&self, ground: &Ground<'_>) -> Result<(), Refusal> {
        let account = &ground.caller.account;
        let count = u64::from(ground.new.count);
        let disks = u64::try_from(ground.disks.len()).unwrap_or(u64::MAX);
        let bytes = ground.disks.iter().map(|(disk, _)| disk.size);
        let gib = bytes.fold(0_u64, |sum, size| {
            sum.saturating_add(size.div_ceil(1 << 30))
        });
        for (quota, each) in [
            (Quota::Instances, 1),
            (Quota::Cpus, u64::from(ground.size.cpus)),
            (Quota::MemoryMib, ground.size.memory_mib),
            (Quota::Volumes, disks),
            (Quota::VolumeGib, gib),
        ] {
            self.within(account, quota, count.saturating_mul(each))?;
        }
        Ok(())
    }

    /// One instance with its addresses and volumes.
    fn place(
        &self,
        batch: &mut Batch,
        ground: &Ground<'_>,
        reservation: &ReservationId,
        index: u32,
        (private, public): (&mut Vec<Ipv4Addr>, &mut Vec<Ipv4Addr>),
    ) -> Result<Instance, Refusal> {
        let (caller, new, subnet) = (ground.caller, ground.new, &ground.subnet);
        let id = InstanceId::random();
        let wanted = new.private_ip;
        let private_ip = self.take_address(batch, subnet, wanted, id.as_str(), private)?;
        let public_ip = match ground.public {
            false => None,
            true => {
                let pool = ground.site.public_pool;
                Some(self.take_public(batch, pool, id.as_str(), public)?)
            }
        };
        let interface = Interface {
            id: InterfaceId::random(),
            attachment: InterfaceAttachmentId::random(),
            vpc: subnet.vpc.clone(),
            subnet: subnet.id.clone(),
            private_ip,
            ipv6: Vec::new(),
            public_ip,
            groups: ground.groups.clone(),
            description: String::new(),
            source_dest_check: true,
            tags: Tags::new(),
        };
        for group in &ground.groups {
            batch.present::<SecurityGroup>(group.as_str());
        }
        batch.present::<Subnet>(subnet.id.as_str());
        batch.present::<Image>(ground.image.id.as_str());
        let disks = self.volumes_of(batch, ground, &id)?;
        let now = Timestamp::now();
        let instance = Instance {
            meta: Meta::new(caller.account.clone(), new.tags.clone()),
            reservation: reservation.clone(),
            launch_index: index,
            image: ground.image.id.clone(),
            instance_type: ground.size.name.clone().into_owned(),
            cpus: ground.size.cpus,
            memory: ground.size.memory(),
            hostname: self.hostname(subnet, new, index, private_ip),
            key_name: new.key_name.clone(),
            public_key: ground.public_key.clone(),
            user_data: Base64(new.user_data.clone()),
            interfaces: vec![interface],
            disks,
            root_device: ground.image.root_device.clone(),
            metadata_options: new.metadata_options.clone(),
            termination_protection: new.termination_protection,
            stop_protection: new.stop_protection,
            shutdown_behavior: new.shutdown_behavior,
            expires: new.expires,
            desired: Desired::Running,
            force: false,
            reboots_wanted: 0,
            state: InstanceState::Pending,
            state_reason: None,
            state_since: now,
            reboots_done: 0,
            starts: 0,
            machine: None,
            launched: Some(now),
            boot: Boot::default(),
            host: None,
            pressed: None,
            nocloud: [&new.tags, &ground.image.meta.tags]
                .into_iter()
                .find_map(|tags| tags.get(DATASOURCE_TAG))
                .is_some_and(|source| source == "nocloud"),
            noted: model::Noted::default(),
            trouble: None,
            token_key: Base64(random_bytes::<32>().to_vec()),
            id,
        };
        batch.create(instance.id.as_str(), &instance)?;
        let account = &caller.account;
        let message = format!("{} of {}", instance.instance_type, ground.image.name);
        batch.tell(
            account,
            Some(caller),
            "instance-asked-for",
            &instance.id,
            message,
        )?;
        Ok(instance)
    }

    fn volumes_of(
        &self,
        batch: &mut Batch,
        ground: &Ground<'_>,
        instance: &InstanceId,
    ) -> Result<Vec<BlockDevice>, Refusal> {
        let mut disks = Vec::new();
        for (disk, asked) in &ground.disks {
            let new = NewVolume {
                size: Some(disk.size),
                snapshot: disk.snapshot.clone(),
                kind: asked.kind.unwrap_or_default(),
                iops: asked.iops,
                throughput: asked.throughput,
                zone: None,
                tags: ground.new.volume_tags.clone(),
            };
            let volume = self.volume(batch, ground.caller, &new, &ground.subnet.zone)?;
            let volume = Volume {
                attachment: Some(Attachment {
                    instance: instance.clone(),
                    device: disk.device.clone(),
                    delete_on_termination: disk.delete_on_termination,
                    since: Timestamp::now(),
                    detaching: false,
                    force: false,
                    state: AttachmentState::Attaching,
                }),
                state: VolumeState::Creating,
                ..volume
            };
            batch.create(volume.id.as_str(), &volume)?;
            disks.push(BlockDevice {
                device: disk.device.clone(),
                volume: volume.id,
                delete_on_termination: disk.delete_on_termination,
            });
        }
        Ok(disks)
    }

    /// The name that the owner gave, if it can be a host's and is free in the
    /// network; else the address as a name, as in EC2.
    fn hostname(&self, subnet: &Subnet, new: &RunInstances, index: u32, ip: Ipv4Addr) -> String {
        let given = new.tags.get("Name").map(|name| name.to_ascii_lowercase());
        let given = given.map(|name| match new.count {
            1 => name,
            _ => format!("{name}-{}", index + 1),
        });
        let is_label = |name: &String| {
            (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !name.starts_with('-')
                && !name.ends_with('-')
                && !name.starts_with("ip-")
        };
        let is_free = |name: &String| {
            !self.view().any::<Instance>(|other| {
                other.hostname == *name
                    && !other.is_terminated()
                    && other.vpc() == Some(&subnet.vpc)
            })
        };
        given.filter(is_label).filter(is_free).unwrap_or_else(|| {
            let [a, b, c, d] = ip.octets();
            format!("ip-{a}-{b}-{c}-{d}")
        })
    }
}

/// The image's disks and the request's, by device.
fn disks(image: &Image, asked: &[DiskRequest]) -> Result<Vec<(ImageDisk, DiskRequest)>, Refusal> {
    let mut by_device: BTreeMap<&str, &DiskRequest> = BTreeMap::new();
    for disk in asked {
        check_device(&disk.device)?;
        if by_device.insert(&disk.device, disk).is_some() {
            let reason = format!("{} is named twice", disk.device);
            return Err(Refusal::invalid("block_device_mapping", reason));
        }
    }
    let mut disks = Vec::new();
    for disk in &image.disks {
        let asked = by_device.remove(disk.device.as_str());
        let asked = asked.cloned().unwrap_or_default();
        if asked.omit {
            if disk.device == image.root_device {
                let reason = "the root disk cannot be left out";
                return Err(Refusal::invalid("block_device_mapping", reason));
            }
            continue;
        }
        let size = asked.size.unwrap_or(disk.size);
        if size < disk.size {
            let reason = format!("{} has {} bytes in the image", disk.device, disk.size);
            return Err(Refusal::invalid("block_device_mapping", reason));
        }
        let with = ImageDisk {
            device: disk.device.clone(),
            snapshot: asked.snapshot.clone().or_else(|| disk.snapshot.clone()),
            size,
            delete_on_termination: asked
                .delete_on_termination
                .unwrap_or(disk.delete_on_termination),
        };
        disks.push((with, asked));
    }
    for (device, asked) in by_device {
        if asked.omit {
            continue;
        }
        let missing = Refusal::Missing {
            field: "volume_size",
        };
        let with = ImageDisk {
            device: device.to_owned(),
            snapshot: asked.snapshot.clone(),
            size: asked.size.ok_or(missing)?,
            delete_on_termination: asked.delete_on_termination.unwrap_or(false),
        };
        disks.push((with, asked.clone()));
    }
    match disks.len() > ATTACHED_MAX {
        true => Err(Refusal::invalid(
            "block_device_mapping",
            format!("an instance has at most {ATTACHED_MAX} disks at first"),
        )),
        false => Ok(disks),
    }
}

fn check(new: &RunInstances) -> Result<(), Refusal> {
    check_tags(&new.tags).map_err(|e| Refusal::invalid("tags", e))?;
    check_tags(&new.volume_tags).map_err(|e| Refusal::invalid("volume_tags", e))?;
    if !(1..=AT_ONCE).contains(&new.count) {
        let reason = format!("a request makes 1 to {AT_ONCE} instances");
        return Err(Refusal::invalid("count", reason));
    }
    if new.user_data.len() > USER_DATA_MAX {
        let reason = Invalid::UserData(new.user_data.len());
        return Err(Refusal::invalid("user_data", reason));
    }
    if new.private_ip.is_some() && new.count != 1 {
        return Err(Refusal::Combination(
            "one private address is for one instance".into(),
        ));
    }
    if !(1..=64).contains(&new.metadata_options.hop_limit) {
        let reason = "a hop limit is 1 to 64";
        return Err(Refusal::invalid("metadata_options", reason));
    }
    Ok(())
}
