//! What lies under each path: names, folders and texts as EC2 has them.

use bytes::Bytes;
use serde_json::json;

use crate::facts::{Facts, Interface, Lifecycle};
use crate::path::VERSIONS;

/// Since this version there is `tags/`.
const TAGS_SINCE: &str = "2021-03-23";
/// Since this version there is `network/`.
const NETWORK_SINCE: &str = "2011-01-01";
/// Version of the identity document that is written.
const DOCUMENT: &str = "2017-09-30";

/// What an address leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A listing or a text.
    Text(String),
    /// User data, as it was given.
    Binary(Bytes),
}

/// Something that has a path.
enum Node {
    Leaf(Content),
    Folder(Folder),
}

/// Entries in the order of their listing.
#[derive(Default)]
struct Folder(Vec<Entry>);

struct Entry {
    name: String,
    /// As the listing has it.
    listed: String,
    node: Node,
}

impl Folder {
    fn text(mut self, name: &str, text: impl Into<String>) -> Self {
        self.0.push(Entry {
            name: name.into(),
            listed: name.into(),
            node: Node::Leaf(Content::Text(text.into())),
        });
        self
    }

    /// Nothing if there is no text.
    fn text_of(self, name: &str, text: Option<impl Into<String>>) -> Self {
        match text {
            Some(text) => self.text(name, text),
            None => self,
        }
    }

    /// One line for each item; nothing without any.
    fn lines<I: ToString>(self, name: &str, items: &[I]) -> Self {
        let lines: Vec<String> = items.iter().map(ToString::to_string).collect();
        self.text_of(name, (!lines.is_empty()).then(|| lines.join("\n")))
    }

    /// Nothing if the folder is empty.
    fn folder(self, name: &str, folder: Folder) -> Self {
        self.folder_as(name, &format!("{name}/"), folder)
    }

    fn folder_as(mut self, name: &str, listed: &str, folder: Folder) -> Self {
        if !folder.0.is_empty() {
            self.0.push(Entry {
                name: name.into(),
                listed: listed.into(),
                node: Node::Folder(folder),
            });
        }
        self
    }

    fn listing(&self) -> Content {
        let names: Vec<&str> = self.0.iter().map(|e| e.listed.as_str()).collect();
        Content::Text(names.join("\n"))
    }
}

/// What the words of a path lead to; a folder's is its listing.
pub fn find(facts: &Facts, words: &[String]) -> Option<Content> {
    let Some((version, rest)) = words.split_first() else {
        return Some(Content::Text(VERSIONS.join("\n")));
    };
    let version = *VERSIONS.iter().find(|known| *known == version)?;
    let mut folder = root(facts, version);
    for (index, word) in rest.iter().enumerate() {
        let at = folder.0.iter().position(|entry| entry.name == *word)?;
        match folder.0.swap_remove(at).node {
            Node::Folder(inner) => folder = inner,
            Node::Leaf(content) => return (index + 1 == rest.len()).then_some(content),
        }
    }
    Some(folder.listing())
}

fn root(facts: &Facts, version: &str) -> Folder {
    let identity = Folder::default().text("document", document(facts));
    let dynamic = Folder::default().folder("instance-identity", identity);
    let mut root = Folder::default()
        .folder_as("dynamic", "dynamic", dynamic)
        .folder_as("meta-data", "meta-data", meta_data(facts, version));
    if let Some(data) = facts.user_data.as_ref().filter(|data| !data.is_empty()) {
        root.0.push(Entry {
            name: "user-data".into(),
            listed: "user-data".into(),
            node: Node::Leaf(Content::Binary(data.clone())),
        });
    }
    root
}

/// In the alphabetical order in which EC2 lists it.
fn meta_data(facts: &Facts, version: &str) -> Folder {
    let primary = facts.primary();
    let public = primary.and_then(|card| card.public.as_ref());
    let groups: Vec<&str> = primary.map_or(Vec::new(), |card| {
        card.security_groups
            .iter()
            .map(|(_, name)| name.as_str())
            .collect()
    });
    let scheduled = Folder::default()
        .text("history", "[]")
        .text("scheduled", "[]");
    Folder::default()
        .text("ami-id", &facts.image_id)
        .text("ami-launch-index", facts.launch_index.to_string())
        .text("ami-manifest-path", "(unknown)")
        .folder("block-device-mapping", block_devices(facts))
        .folder("events", Folder::default().folder("maintenance", scheduled))
        .text("hostname", &facts.hostname)
        .text("instance-action", "none")
        .text("instance-id", &facts.instance_id)
        .text(
            "instance-life-cycle",
            match facts.lifecycle {
                Lifecycle::OnDemand => "on-demand",
                Lifecycle::Spot => "spot",
            },
        )
        .text("instance-type", &facts.instance_type)
        .text("local-hostname", &facts.hostname)
        .text_of(
            "local-ipv4",
            primary.and_then(|card| Some(card.addresses.first()?.to_string())),
        )
        .text_of("mac", primary.map(|card| card.mac.as_str()))
        .folder("network", network(facts, version))
        .folder("placement", placement(facts))
        .text("profile", "default-hvm")
        .text_of(
            "public-hostname",
            public.and_then(|p| p.hostname.as_deref()),
        )
        .text_of("public-ipv4", public.map(|p| p.address.to_string()))
        .folder("public-keys", keys(facts))
        .text("reservation-id", &facts.reservation_id)
        .lines("security-groups", &groups)
        .folder(
            "services",
            Folder::default()
                .text("domain", "amazonaws.com")
                .text("partition", "aws"),
        )
        .folder("tags", tags(facts, version))
}

fn block_devices(facts: &Facts) -> Folder {
    let devices = facts.block_devices.iter();
    devices.fold(Folder::default(), |all, (name, device)| {
        all.text(name, device)
    })
}

fn placement(facts: &Facts) -> Folder {
    Folder::default()
        .text("availability-zone", &facts.zone)
        .text_of("availability-zone-id", facts.zone_id.as_deref())
        .text("region", &facts.region)
}

/// `0=name`, and below it `openssh-key`.
fn keys(facts: &Facts) -> Folder {
    let keys = facts.keys.iter().enumerate();
    keys.fold(Folder::default(), |all, (number, key)| {
        let listed = format!("{number}={}", key.name);
        let folder = Folder::default().text("openssh-key", key.openssh.trim_end());
        all.folder_as(&number.to_string(), &listed, folder)
    })
}

fn tags(facts: &Facts, version: &str) -> Folder {
    if !facts.options.tags || !is_since(version, TAGS_SINCE) {
        return Folder::default();
    }
    let tags = facts.tags.iter().filter(|(key, _)| is_servable(key));
    let folder = tags.fold(Folder::default(), |all, (key, value)| all.text(key, value));
    Folder::default().folder("instance", folder)
}

/// Whether a tag's key can be a name in a listing. EC2 refuses to show the
/// tags of an instance that has others; here only those are missing.
fn is_servable(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c);
    !matches!(key, "" | "." | ".." | "_index") && key.chars().all(allowed)
}

fn network(facts: &Facts, version: &str) -> Folder {
    if !is_since(version, NETWORK_SINCE) {
        return Folder::default();
    }
    let cards = facts.interfaces.iter();
    let macs = cards.fold(Folder::default(), |all, card| {
        all.folder(&card.mac, interface(facts, card))
    });
    let interfaces = Folder::default().folder("macs", macs);
    Folder::default().folder("interfaces", interfaces)
}

fn interface(facts: &Facts, card: &Interface) -> Folder {
    let public = card.public.as_ref();
    let associations = match (public, card.addresses.first()) {
        (Some(public), Some(private)) => {
            Folder::default().text(&public.address.to_string(), private.to_string())
        }
        _ => Folder::default(),
    };
    let (ids, names): (Vec<&str>, Vec<&str>) = card
        .security_groups
        .iter()
        .map(|(id, name)| (id.as_str(), name.as_str()))
        .unzip();
    Folder::default()
        .text("device-number", card.device_number.to_string())
        .text("interface-id", &card.id)
        .folder("ipv4-associations", associations)
        .lines("ipv6s", &card.addresses_v6)
        .text("local-hostname", &card.hostname)
        .lines("local-ipv4s", &card.addresses)
        .text("mac", &card.mac)
        .text("owner-id", &facts.account_id)
        .text_of(
            "public-hostname",
            public.and_then(|p| p.hostname.as_deref()),
        )
        .text_of("public-ipv4s", public.map(|p| p.address.to_string()))
        .lines("security-group-ids", &ids)
        .lines("security-groups", &names)
        .text("subnet-id", &card.subnet_id)
        .text("subnet-ipv4-cidr-block", &card.subnet_cidr)
        .lines("subnet-ipv6-cidr-blocks", &card.subnet_cidrs_v6)
        .text("vpc-id", &card.vpc_id)
        .text_of(
            "vpc-ipv4-cidr-block",
            card.vpc_cidrs.first().map(String::as_str),
        )
        .lines("vpc-ipv4-cidr-blocks", &card.vpc_cidrs)
        .lines("vpc-ipv6-cidr-blocks", &card.vpc_cidrs_v6)
}

/// `latest` and versions from `first` on. Their names sort by age; `1.0` is
/// older than all dates.
fn is_since(version: &str, first: &str) -> bool {
    version != "1.0" && version >= first
}

/// The instance identity document. Its signatures are 404: nobody could trust
/// a key of this host's as EC2's.
fn document(facts: &Facts) -> String {
    let primary = facts.primary().and_then(|card| card.addresses.first());
    let document = json!({
        "accountId": facts.account_id,
        "architecture": "x86_64",
        "availabilityZone": facts.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": facts.image_id,
        "instanceId": facts.instance_id,
        "instanceType": facts.instance_type,
        "kernelId": null,
        "pendingTime": humantime::format_rfc3339_seconds(facts.launched).to_string(),
        "privateIp": primary.map(ToString::to_string),
        "ramdiskId": null,
        "region": facts.region,
        "version": DOCUMENT,
    });
    format!("{document:#}")
}
