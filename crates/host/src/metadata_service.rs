//! What instances' guests are told about themselves.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use control::{Plane, View};
use metadata::nocloud::{self, SeedError};
use metadata::{Facts, Interface, Lifecycle, Options, PublicAddress, PublicKey, Source, Tokens};
use model::{Instance, SecurityGroup, Site, Subnet, Token, Vpc};

/// Domain of instances' names.
pub const DOMAIN: &str = "ec2.internal";

/// One instance.
pub struct InstanceSource {
    plane: Plane,
    id: String,
}

impl InstanceSource {
    /// That of this id.
    pub fn new(plane: Plane, id: String) -> Self {
        Self { plane, id }
    }
}

impl Source for InstanceSource {
    fn facts(&self) -> Option<Arc<Facts>> {
        let view = self.plane.view();
        let instance = view.get::<Instance>(&self.id)?;
        let site = view.get::<Site>(Site::ID)?;
        facts(view, &site.record, &instance.record).map(Arc::new)
    }
}

/// The seed disk of an instance; `None`: it is gone.
pub fn seed(plane: &Plane, id: &str) -> Option<Result<Vec<u8>, SeedError>> {
    let source = InstanceSource::new(plane.clone(), id.to_owned());
    source.facts().map(|facts| nocloud::volume(&facts))
}

fn facts(view: &View, site: &Site, instance: &Instance) -> Option<Facts> {
    let hostname = format!("{}.{DOMAIN}", instance.hostname);
    let cards = instance.interfaces.iter().zip(0..);
    let interfaces = cards.filter_map(|(card, number)| interface(view, &hostname, card, number));
    let zone = instance.subnet().and_then(|id| view.get::<Subnet>(id));
    let keys = instance.public_key.as_ref().map(|openssh| PublicKey {
        name: instance.key_name.clone().unwrap_or_else(|| "key".into()),
        openssh: openssh.clone(),
    });
    let launched = instance.launched.unwrap_or(instance.meta.created);
    let options = &instance.metadata_options;
    let token_key = instance.token_key.0.as_slice().try_into().ok()?;
    Some(Facts {
        instance_id: instance.id.to_string(),
        image_id: instance.image.to_string(),
        instance_type: instance.instance_type.clone(),
        reservation_id: instance.reservation.to_string(),
        launch_index: instance.launch_index,
        account_id: instance.meta.account.to_string(),
        region: site.region.clone(),
        zone: zone.map_or_else(String::new, |subnet| subnet.record.zone.clone()),
        zone_id: None,
        launched: UNIX_EPOCH + Duration::from_millis(launched.0),
        lifecycle: Lifecycle::OnDemand,
        interfaces: interfaces.collect(),
        hostname,
        keys: keys.into_iter().collect(),
        user_data: match instance.user_data.0.is_empty() {
            true => None,
            false => Some(instance.user_data.0.clone().into()),
        },
        tags: instance.meta.tags.clone(),
        block_devices: block_devices(instance),
        options: Options {
            enabled: options.enabled,
            tokens: match options.token {
                Token::Optional => Tokens::Optional,
                Token::Required => Tokens::Required,
            },
            tags: options.tags,
        },
        token_key: metadata::TokenKey(token_key),
    })
}

/// As EC2 has them: `ami` is the root's short name, the others are counted.
fn block_devices(instance: &Instance) -> Vec<(String, String)> {
    let root = &instance.root_device;
    let short = root.strip_prefix("/dev/").unwrap_or(root);
    let others = instance.disks.iter().filter(|disk| disk.device != *root);
    let others = others.zip(1..).map(|(disk, number)| {
        let device = &disk.device;
        let device = device.strip_prefix("/dev/").unwrap_or(device);
        (format!("ebs{number}"), device.to_owned())
    });
    let mut devices = vec![
        ("ami".to_owned(), short.to_owned()),
        ("root".to_owned(), root.clone()),
    ];
    devices.extend(others);
    devices
}

fn interface(
    view: &View,
    hostname: &str,
    card: &model::Interface,
    device_number: u32,
) -> Option<Interface> {
    let subnet = view.get::<Subnet>(&card.subnet)?;
    let vpc = view.get::<Vpc>(&card.vpc)?;
    let group = |id: &model::SecurityGroupId| {
        let name = view.get::<SecurityGroup>(id);
        let name = name.map_or_else(String::new, |group| group.record.name.clone());
        (id.to_string(), name)
    };
    let mac = model::mac_of(card.private_ip).map(|byte| format!("{byte:02x}"));
    let text = |net: &Option<ipnet::Ipv6Net>| net.iter().map(ToString::to_string).collect();
    Some(Interface {
        id: card.id.to_string(),
        mac: mac.join(":"),
        device_number,
        addresses: vec![card.private_ip],
        addresses_v6: card.ipv6.clone(),
        hostname: hostname.to_owned(),
        public: card.public_ip.map(|address| PublicAddress {
            address,
            hostname: None,
        }),
        subnet_id: card.subnet.to_string(),
        subnet_cidr: subnet.record.cidr.to_string(),
        subnet_cidrs_v6: text(&subnet.record.ipv6),
        vpc_id: card.vpc.to_string(),
        vpc_cidrs: vec![vpc.record.cidr.to_string()],
        vpc_cidrs_v6: text(&vpc.record.ipv6),
        security_groups: card.groups.iter().map(group).collect(),
    })
}
