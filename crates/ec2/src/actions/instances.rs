//! Instances that exist.

use std::collections::BTreeMap;

use base64::Engine as _;
use control::Transition;
use model::{Instance, InstanceId, InstanceState, Token, Volume};

use super::interfaces::{association, group_set, mac};
use super::{Handler, Reply, done};
use crate::call::Call;
use crate::describe::{Listing, Selection, many, maybe, none, one, paged, tag_set};
use crate::error::Error;
use crate::xml::Element;

pub const ACTIONS: &[Handler] = &[
    Handler {
        name: "DescribeInstances",
        understood: &[
            "InstanceId.N",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: LISTING.filters,
        run: |call| Box::pin(describe(call)),
    },
    Handler {
        name: "DescribeInstanceStatus",
        understood: &[
            "InstanceId.N",
            "IncludeAllInstances",
            "Filter.N.Name",
            "Filter.N.Value.N",
            "MaxResults",
            "NextToken",
        ],
        filters: STATUS_LISTING.filters,
        run: |call| Box::pin(describe_status(call)),
    },
    Handler {
        name: "StartInstances",
        understood: &["InstanceId.N"],
        filters: &[],
        run: |call| Box::pin(start(call)),
    },
    Handler {
        name: "StopInstances",
        understood: &["InstanceId.N", "Force", "Hibernate"],
        filters: &[],
        run: |call| Box::pin(stop(call)),
    },
    Handler {
        name: "RebootInstances",
        understood: &["InstanceId.N"],
        filters: &[],
        run: |call| Box::pin(reboot(call)),
    },
    Handler {
        name: "TerminateInstances",
        understood: &["InstanceId.N"],
        filters: &[],
        run: |call| Box::pin(terminate(call)),
    },
    Handler {
        name: "GetConsoleOutput",
        understood: &["InstanceId", "Latest"],
        filters: &[],
        run: |call| Box::pin(console_output(call)),
    },
];

const LISTING: Listing = Listing {
    ids: "InstanceId",
    filters: &[
        "architecture",
        "availability-zone",
        "availability-zone-id",
        "block-device-mapping.attach-time",
        "block-device-mapping.delete-on-termination",
        "block-device-mapping.device-name",
        "block-device-mapping.status",
        "block-device-mapping.volume-id",
        "dns-name",
        "ebs-optimized",
        "ena-support",
        "group-id",
        "group-name",
        "hypervisor",
        "image-id",
        "instance-id",
        "instance-state-code",
        "instance-state-name",
        "instance-type",
        "instance.group-id",
        "instance.group-name",
        "ip-address",
        "key-name",
        "launch-index",
        "launch-time",
        "metadata-options.http-endpoint",
        "metadata-options.http-put-response-hop-limit",
        "metadata-options.http-tokens",
        "metadata-options.instance-metadata-tags",
        "metadata-options.state",
        "monitoring-state",
        "network-interface.addresses.association.public-ip",
        "network-interface.addresses.private-ip-address",
        "network-interface.association.public-ip",
        "network-interface.attachment.attachment-id",
        "network-interface.attachment.device-index",
        "network-interface.attachment.instance-id",
        "network-interface.group-id",
        "network-interface.mac-address",
        "network-interface.network-interface-id",
        "network-interface.owner-id",
        "network-interface.private-ip-address",
        "network-interface.source-dest-check",
        "network-interface.status",
        "network-interface.subnet-id",
        "network-interface.vpc-id",
        "owner-id",
        "platform-details",
        "private-dns-name",
        "private-ip-address",
        "reason",
        "reservation-id",
        "root-device-name",
        "root-device-type",
        "source-dest-check",
        "state-reason-code",
        "state-reason-message",
        "subnet-id",
        "tag",
        "tag-key",
        "tag-value",
        "tenancy",
        "virtualization-type",
        "vpc-id",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: false,
};

const STATUS_LISTING: Listing = Listing {
    ids: "InstanceId",
    filters: &[
        "availability-zone",
        "availability-zone-id",
        "instance-state-code",
        "instance-state-name",
        "instance-status.reachability",
        "instance-status.status",
        "system-status.reachability",
        "system-status.status",
    ],
    pages: Some((5, 1000)),
    pages_of_ids: false,
};

/// The zone of an instance's subnet.
fn zone(call: &Call<'_>, instance: &Instance) -> String {
    let subnet = instance.subnet();
    let found = subnet.and_then(|id| call.plane().view().get::<model::Subnet>(id));
    match found {
        Some(subnet) => subnet.record.zone.clone(),
        // A terminated one's subnet may be gone.
        None => call
            .plane()
            .site()
            .ok()
            .and_then(|site| site.zones.first().cloned())
            .unwrap_or_default(),
    }
}

/// Why it is in its state, as EC2 says: `User initiated (…)`.
fn reason(instance: &Instance) -> String {
    match &instance.state_reason {
        Some(reason) if reason.code == "Client.UserInitiatedShutdown" => {
            let at = instance.state_since.to_string();
            let at = at.get(..19).unwrap_or_default().replace('T', " ");
            format!("User initiated ({at} GMT)")
        }
        Some(reason) => reason.message.clone(),
        None => String::new(),
    }
}

fn volume_status(call: &Call<'_>, disk: &model::BlockDevice) -> (&'static str, Option<String>) {
    let volume = call.plane().view().get::<Volume>(&disk.volume);
    let attachment = volume.and_then(|volume| volume.record.attachment.clone());
    match attachment {
        Some(attachment) => (attachment.state.name(), Some(attachment.since.to_string())),
        None => ("attaching", None),
    }
}

fn disk_field(call: &Call<'_>, instance: &Instance, name: &str) -> Vec<String> {
    let disks = instance.disks.iter();
    match name {
        "attach-time" => disks
            .filter_map(|disk| volume_status(call, disk).1)
            .collect(),
        "delete-on-termination" => many(disks.map(|disk| disk.delete_on_termination)),
        "device-name" => many(disks.map(|disk| &disk.device)),
        "status" => many(disks.map(|disk| volume_status(call, disk).0)),
        "volume-id" => many(disks.map(|disk| &disk.volume)),
        _ => none(),
    }
}

fn card_field(instance: &Instance, name: &str) -> Vec<String> {
    let cards = instance.interfaces.iter();
    match name {
        "addresses.association.public-ip" | "association.public-ip" => {
            many(cards.filter_map(|card| card.public_ip))
        }
        "addresses.private-ip-address" | "private-ip-address" => {
            many(cards.map(|card| card.private_ip))
        }
        "attachment.attachment-id" => many(cards.map(|card| &card.attachment)),
        "attachment.device-index" => many(cards.enumerate().map(|(index, _)| index)),
        "attachment.instance-id" => many(cards.map(|_| &instance.id)),
        "group-id" => many(cards.flat_map(|card| &card.groups)),
        "mac-address" => many(cards.map(mac)),
        "network-interface-id" => many(cards.map(|card| &card.id)),
        "owner-id" => many(cards.map(|_| &instance.meta.account)),
        "source-dest-check" => many(cards.map(|card| card.source_dest_check)),
        "status" => many(cards.map(|_| "in-use")),
        "subnet-id" => many(cards.map(|card| &card.subnet)),
        "vpc-id" => many(cards.map(|card| &card.vpc)),
        _ => none(),
    }
}

fn group_names(call: &Call<'_>, instance: &Instance) -> Vec<String> {
    let ids = instance.interfaces.iter().flat_map(|card| &card.groups);
    let groups = ids.filter_map(|id| call.plane().view().get::<model::SecurityGroup>(id));
    many(groups.map(|group| group.record.name.clone()))
}

fn field(call: &Call<'_>, instance: &Instance, name: &str) -> Vec<String> {
    if let Some(name) = name.strip_prefix("block-device-mapping.") {
        return disk_field(call, instance, name);
    }
    if let Some(name) = name.strip_prefix("network-interface.") {
        return card_field(instance, name);
    }
    match name {
        "architecture" => one("x86_64"),
        "availability-zone" => one(zone(call, instance)),
        "availability-zone-id" => one(call.zone_id(&zone(call, instance))),
        "dns-name" | "ip-address" => maybe(instance.public_ip()),
        "ebs-optimized" | "ena-support" => one(false),
        "group-id" | "instance.group-id" => card_field(instance, "group-id"),
        "group-name" | "instance.group-name" => group_names(call, instance),
        "hypervisor" => one("xen"),
        "image-id" => one(&instance.image),
        "instance-id" => one(&instance.id),
        "instance-state-code" => one(instance.state.code()),
        "instance-state-name" => one(instance.state.name()),
        "instance-type" => one(&instance.instance_type),
        "key-name" => maybe(instance.key_name.as_ref()),
        "launch-index" => one(instance.launch_index),
        "launch-time" => one(launched(instance)),
        "monitoring-state" => one("disabled"),
        "owner-id" => one(&instance.meta.account),
        "platform-details" => one("Linux/UNIX"),
        "private-dns-name" => one(call.private_name(instance)),
        "private-ip-address" => maybe(instance.private_ip()),
        "reason" => one(reason(instance)),
        "reservation-id" => one(&instance.reservation),
        "root-device-name" => one(&instance.root_device),
        "root-device-type" => one("ebs"),
        "source-dest-check" => card_field(instance, "source-dest-check"),
        "state-reason-code" => maybe(instance.state_reason.as_ref().map(|r| &r.code)),
        "state-reason-message" => maybe(instance.state_reason.as_ref().map(|r| &r.message)),
        "subnet-id" => maybe(instance.subnet()),
        "tenancy" => one("default"),
        "virtualization-type" => one("hvm"),
        "vpc-id" => maybe(instance.vpc()),
        _ => options_field(instance, name),
    }
}

fn options_field(instance: &Instance, name: &str) -> Vec<String> {
    let options = &instance.metadata_options;
    match name {
        "metadata-options.http-endpoint" => one(switch(options.enabled)),
        "metadata-options.http-put-response-hop-limit" => one(options.hop_limit),
        "metadata-options.http-tokens" => one(tokens(options.token)),
        "metadata-options.instance-metadata-tags" => one(switch(options.tags)),
        "metadata-options.state" => one("applied"),
        _ => none(),
    }
}

fn switch(on: bool) -> &'static str {
    match on {
        true => "enabled",
        false => "disabled",
    }
}

fn tokens(token: Token) -> &'static str {
    match token {
        Token::Optional => "optional",
        Token::Required => "required",
    }
}

fn launched(instance: &Instance) -> String {
    instance
        .launched
        .unwrap_or(instance.meta.created)
        .to_string()
}

/// How an instance's metadata are served.
pub fn metadata_options(name: &'static str, options: &model::MetadataOptions) -> Element {
    Element::new(name)
        .text("state", "applied")
        .text("httpTokens", tokens(options.token))
        .text("httpPutResponseHopLimit", options.hop_limit)
        .text("httpEndpoint", switch(options.enabled))
        .text("httpProtocolIpv6", switch(options.enabled))
        .text("instanceMetadataTags", switch(options.tags))
}

/// The disks of an instance.
pub fn disks(call: &Call<'_>, instance: &Instance) -> Vec<Element> {
    let items = instance.disks.iter().map(|disk| {
        let (status, since) = volume_status(call, disk);
        Element::item().text("deviceName", &disk.device).child(
            Element::new("ebs")
                .text("volumeId", &disk.volume)
                .text("status", status)
                .option("attachTime", since)
                .text("deleteOnTermination", disk.delete_on_termination),
        )
    });
    items.collect()
}

fn card(call: &Call<'_>, instance: &Instance, index: usize, card: &model::Interface) -> Element {
    let name = call.private_name(instance);
    let address = Element::item()
        .text("privateIpAddress", card.private_ip)
        .text("privateDnsName", &name)
        .text("primary", true)
        .extend(association(instance, card));
    let ipv6 = card.ipv6.iter();
    Element::item()
        .text("networkInterfaceId", &card.id)
        .text("subnetId", &card.subnet)
        .text("vpcId", &card.vpc)
        .text("description", &card.description)
        .text("ownerId", &instance.meta.account)
        .text("status", "in-use")
        .text("macAddress", mac(card))
        .text("privateIpAddress", card.private_ip)
        .text("privateDnsName", &name)
        .text("sourceDestCheck", card.source_dest_check)
        .text("interfaceType", "interface")
        .list("groupSet", group_set(call, card))
        .child(
            Element::new("attachment")
                .text("attachmentId", &card.attachment)
                .text("deviceIndex", index)
                .text("networkCardIndex", 0)
                .text("status", "attached")
                .text("attachTime", instance.meta.created)
                .text("deleteOnTermination", true),
        )
        .extend(association(instance, card))
        .list("privateIpAddressesSet", [address])
        .list(
            "ipv6AddressesSet",
            ipv6.map(|ip| Element::item().text("ipv6Address", ip)),
        )
}

/// What a terminated instance has no more.
fn network(call: &Call<'_>, element: Element, instance: &Instance) -> Element {
    if instance.state == InstanceState::Terminated {
        return element
            .text("privateDnsName", "")
            .text("dnsName", "")
            .list("blockDeviceMapping", [])
            .list("networkInterfaceSet", [])
            .list("groupSet", []);
    }
    let first = instance.interfaces.first();
    let cards = instance.interfaces.iter().enumerate();
    let groups = first.map(|card| group_set(call, card)).unwrap_or_default();
    let public = instance.public_ip();
    element
        .text("privateDnsName", call.private_name(instance))
        .text(
            "dnsName",
            public.map(|ip| ip.to_string()).unwrap_or_default(),
        )
        .option("privateIpAddress", instance.private_ip())
        .option("ipAddress", public)
        .option("subnetId", instance.subnet())
        .option("vpcId", instance.vpc())
        .option("sourceDestCheck", first.map(|card| card.source_dest_check))
        .list("blockDeviceMapping", disks(call, instance))
        .list("groupSet", groups)
        .list(
            "networkInterfaceSet",
            cards.map(|(index, one)| card(call, instance, index, one)),
        )
}

fn state(name: &'static str, state: InstanceState) -> Element {
    Element::new(name)
        .text("code", state.code())
        .text("name", state.name())
}

fn show(call: &Call<'_>, instance: &Instance) -> Element {
    let element = Element::item()
        .text("instanceId", &instance.id)
        .text("imageId", &instance.image)
        .child(state("instanceState", instance.state))
        .text("reason", reason(instance))
        .option("keyName", instance.key_name.as_ref())
        .text("amiLaunchIndex", instance.launch_index)
        .list("productCodes", [])
        .text("instanceType", &instance.instance_type)
        .text("launchTime", launched(instance))
        .child(
            Element::new("placement")
                .text("availabilityZone", zone(call, instance))
                .text("availabilityZoneId", call.zone_id(&zone(call, instance)))
                .text("groupName", "")
                .text("tenancy", "default"),
        )
        .child(Element::new("monitoring").text("state", "disabled"))
        .text("architecture", "x86_64")
        .text("rootDeviceType", "ebs")
        .text("rootDeviceName", &instance.root_device)
        .text("virtualizationType", "hvm")
        .text("hypervisor", "xen")
        .text("platformDetails", "Linux/UNIX")
        .text("usageOperation", "RunInstances")
        .text("ebsOptimized", false)
        .text("enaSupport", false)
        .text("currentInstanceBootMode", "legacy-bios")
        .child(
            Element::new("cpuOptions")
                .text("coreCount", instance.cpus)
                .text("threadsPerCore", 1),
        )
        .child(Element::new("hibernationOptions").text("configured", false))
        .child(Element::new("enclaveOptions").text("enabled", false))
        .child(metadata_options(
            "metadataOptions",
            &instance.metadata_options,
        ));
    let element = match &instance.state_reason {
        Some(reason) => element.child(
            Element::new("stateReason")
                .text("code", &reason.code)
                .text("message", &reason.message),
        ),
        None => element,
    };
    tag_set(network(call, element, instance), &instance.meta.tags)
}

/// Instances of one request.
pub fn reservation(call: &Call<'_>, name: &'static str, instances: &[&Instance]) -> Element {
    let first = instances.first();
    Element::new(name)
        .option("reservationId", first.map(|instance| &instance.reservation))
        .option("ownerId", first.map(|instance| &instance.meta.account))
        .list("groupSet", [])
        .list(
            "instancesSet",
            instances.iter().map(|instance| show(call, instance)),
        )
}

async fn describe(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &LISTING)?;
    let instances = call.nouns::<Instance, InstanceId>("InstanceId")?;
    call.dry_run()?;
    let (page, token) = selection.cut(instances, |instance, name| field(call, instance, name));
    let mut reservations: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
    for instance in &page {
        let of = reservations.entry(instance.reservation.as_str());
        of.or_default().push(instance);
    }
    let items = reservations.values_mut().map(|instances| {
        instances.sort_by_key(|instance| instance.launch_index);
        reservation(call, "item", instances)
    });
    Ok(paged("reservationSet", items, token))
}

/// Status and reachability: whether the guest is up.
fn health(instance: &Instance) -> (&'static str, &'static str) {
    let boot = &instance.boot;
    let fails = boot.failure.is_some() || instance.trouble.is_some();
    match (instance.state, boot.ready) {
        (InstanceState::Running, _) if fails => ("impaired", "failed"),
        (InstanceState::Running, Some(_)) => ("ok", "passed"),
        // Its guest has nothing that could tell.
        (InstanceState::Running, None) if boot.over => ("insufficient-data", "insufficient-data"),
        (InstanceState::Running, None) => ("initializing", "initializing"),
        _ => ("not-applicable", ""),
    }
}

/// The same of what is under the guest: a machine that runs is well.
fn system_health(instance: &Instance) -> (&'static str, &'static str) {
    match instance.state {
        InstanceState::Running => ("ok", "passed"),
        _ => ("not-applicable", ""),
    }
}

fn status(name: &'static str, (status, reachability): (&str, &str)) -> Element {
    let detail = Element::item()
        .text("name", "reachability")
        .text("status", reachability);
    let details = (!reachability.is_empty()).then_some(detail);
    Element::new(name)
        .text("status", status)
        .list("details", details)
}

async fn describe_status(call: &Call<'_>) -> Reply {
    let selection = Selection::parse(call, &STATUS_LISTING)?;
    let all = call.parameters.boolean("IncludeAllInstances")? == Some(true);
    let mut instances = call.nouns::<Instance, InstanceId>("InstanceId")?;
    instances.retain(|instance| all || instance.state == InstanceState::Running);
    call.dry_run()?;
    let (page, token) = selection.cut(instances, |instance, name| match name {
        "instance-status.reachability" => one(health(instance).1),
        "instance-status.status" => one(health(instance).0),
        "system-status.reachability" => one(system_health(instance).1),
        "system-status.status" => one(system_health(instance).0),
        _ => field(call, instance, name),
    });
    let items = page.iter().map(|instance| {
        Element::item()
            .text("instanceId", &instance.id)
            .text("availabilityZone", zone(call, instance))
            .text("availabilityZoneId", call.zone_id(&zone(call, instance)))
            .child(state("instanceState", instance.state))
            .child(status("systemStatus", system_health(instance)))
            .child(status("instanceStatus", health(instance)))
    });
    Ok(paged("instanceStatusSet", items, token))
}

/// The instances that a request names, all of which must exist.
fn named(call: &Call<'_>) -> Result<Vec<InstanceId>, Error> {
    let ids: Vec<InstanceId> = call.parameters.ids("InstanceId")?;
    if ids.is_empty() {
        return Err(Error::missing("InstanceId"));
    }
    for id in &ids {
        call.plane().find::<Instance>(&call.caller, id)?;
    }
    call.dry_run()?;
    Ok(ids)
}

fn transitions(transitions: &[Transition]) -> Reply {
    let items = transitions.iter().map(|transition| {
        Element::item()
            .text("instanceId", &transition.id)
            .child(state("currentState", transition.now))
            .child(state("previousState", transition.before))
    });
    Ok(vec![Element::new("instancesSet").extend(items)])
}

async fn start(call: &Call<'_>) -> Reply {
    let ids = named(call)?;
    transitions(&call.plane().start_instances(&call.caller, &ids).await?)
}

async fn stop(call: &Call<'_>) -> Reply {
    call.only("Hibernate", &["false"])?;
    let force = call.parameters.boolean("Force")?.unwrap_or(false);
    let ids = named(call)?;
    let stopped = call.plane().stop_instances(&call.caller, &ids, force);
    transitions(&stopped.await?)
}

async fn reboot(call: &Call<'_>) -> Reply {
    let ids = named(call)?;
    call.plane().reboot_instances(&call.caller, &ids).await?;
    done()
}

async fn terminate(call: &Call<'_>) -> Reply {
    let ids = named(call)?;
    transitions(&call.plane().terminate_instances(&call.caller, &ids).await?)
}

async fn console_output(call: &Call<'_>) -> Reply {
    let id: InstanceId = call.parameters.require_id("InstanceId")?;
    call.parameters.boolean("Latest")?;
    call.plane().find::<Instance>(&call.caller, &id)?;
    call.dry_run()?;
    let console = call.door.console(&id).await?;
    let reply = vec![Element::leaf("instanceId", &id)];
    let Some(console) = console else {
        return Ok(reply);
    };
    let text = base64::engine::general_purpose::STANDARD.encode(&console.output);
    let more = [
        Element::leaf("timestamp", crate::xml::time(console.at)),
        Element::leaf("output", text),
    ];
    Ok(reply.into_iter().chain(more).collect())
}
